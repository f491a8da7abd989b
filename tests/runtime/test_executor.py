"""Running plans: right answers however late devices work, and failures that reach the caller."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices.base import DeviceInfo
from crossdock.devices.host_memory import HostBuffer
from crossdock.kernels import table
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing
from crossdock.runtime.graph import Graph
from crossdock.runtime.pool import Deadline
from crossdock.runtime.session import Session
from tests.runtime.conftest import Machine
from tests.runtime.lazy_device import World
from tests.runtime.strategies import exact_graphs, whole_feeds

ADVERSARIAL = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def placed_graphs(draw: st.DrawFn) -> tuple[Graph, dict[str, int]]:
    """A graph, and for most of its ops which of four devices they are pinned to."""
    graph = draw(exact_graphs())
    names = [n.name for n in graph.nodes if not costing.is_alias(n)]
    where = draw(st.lists(st.integers(0, 4), min_size=len(names), max_size=len(names)))
    return graph, {name: at for name, at in zip(names, where, strict=True) if at < 4}


def poison(session: Session) -> None:
    """Fill the next instance's memory on the host with NaN: what is read too early shows."""
    pool = session._plans.bound().pool
    instance = pool.take(Deadline())
    for buffer in instance.arenas.values():
        if isinstance(buffer, HostBuffer):
            np.copyto(buffer.bytes(), 0xFF)
    pool.give(instance)


def check_runs(session: Session, graph: Graph, seed: int, runs: int = 2) -> None:
    """Compare runs on different inputs with the reference, exactly."""
    for i in range(runs):
        feeds = whole_feeds(graph, seed + i)
        want = evaluate(graph, feeds)
        poison(session)
        got = session.run(feeds, timeout=60)
        assert list(got) == list(graph.outputs)
        for name, array in got.items():
            np.testing.assert_array_equal(array, want[name], err_msg=name)
            assert array.dtype == want[name].dtype


@ADVERSARIAL
@given(placed_graphs(), st.integers(0, 1 << 16), st.sets(st.sampled_from("abc")))
def test_answers_hold_however_late_work_is_done(
    machine: Machine, made: tuple[Graph, dict[str, int]], seed: int, peers: set[str]
) -> None:
    graph, where = made
    world = World(seed)
    spec = {"peers": tuple(sorted(peers))}  # what the others copy from directly
    ids = ["cpu:0", *(machine.lazy(name, world, **spec) for name in "abc")]
    rules = xd.Constraints(pin={name: ids[at] for name, at in where.items()})
    with xd.compile(graph, ids, constraints=rules, measure=False) as session:
        check_runs(session, graph, seed)


def able(graph: Graph, info: DeviceInfo) -> set[str]:
    """The ops that a device has a kernel for."""
    calls = costing.op_calls(graph)
    return {name for name, call in calls.items() if table.candidates(call, info).fitting}


@settings(ADVERSARIAL, max_examples=12)
@given(placed_graphs(), st.integers(0, 1 << 16))
def test_answers_hold_between_real_and_late_devices(
    machine: Machine, opencl: DeviceInfo, made: tuple[Graph, dict[str, int]], seed: int
) -> None:
    graph, where = made
    can = able(graph, opencl)
    ids = ["cpu:0", opencl.id, machine.lazy("a", World(seed)), opencl.id]
    pin = {n: ids[at] for n, at in where.items() if ids[at] != opencl.id or n in can}
    with xd.compile(
        graph, ids, constraints=xd.Constraints(pin=pin), measure=False, runs_at_once=2
    ) as session:
        check_runs(session, graph, seed)
        feeds = whole_feeds(graph, seed)
        want = evaluate(graph, feeds)
        futures = [session.submit(feeds, timeout=60) for _ in range(6)]
        for future in futures:
            for name, array in future.result().items():
                np.testing.assert_array_equal(array, want[name], err_msg=name)
