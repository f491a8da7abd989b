"""Runs that bring their weights, on a device that fails on the way."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.faults import Fault
from crossdock.devices.sim import SimDevice, SimSpec
from crossdock.runtime.errors import Cancelled
from crossdock.runtime.graph import Graph
from crossdock.runtime.receipt import Receipt
from tests.runtime.faults.machine import A, B, FaultyMachine, right, untouched
from tests.runtime.strategies import whole_feeds

pytestmark = pytest.mark.usefixtures("no_hang")
SIDE = 16
UNIT = 4 * SIDE * SIDE
ROOM = 4 * UNIT + 2048
"""For a region of two weights, two that stay, and the values."""


def layers() -> Graph:
    """Six products with a weight each."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder()
    y = b.input("x", (3, SIDE))
    for i in range(6):
        w = b.constant(rng.integers(-1, 2, (SIDE, SIDE)).astype(np.float32))
        y = b.matmul(y, w, label=f"m{i}")
        y = b.clamp(y, min_value=-2, max_value=2, label=f"c{i}")
    return b.build({"y": y})


def tight() -> SimDevice:
    """A device that has no room for all weights."""
    return SimDevice(SimSpec("inside", memory_bytes=ROOM))


def compiled(graph: Graph, *devices: str, **options: object) -> xd.Session:
    made: xd.Session = xd.compile(graph, list(devices), measure=False, runs_at_once=1, **options)
    return made


def outlives(faulty: FaultyMachine, fault: Fault, *others: str, **options: object) -> Receipt:
    """Three runs with a fault on the way; the receipt of the one that it happened in, or last."""
    graph, told = layers(), None
    device = faulty.add("a", fault, inner=tight())
    with compiled(graph, A, *others, **options) as session:
        assert session.plan.streamed
        for seed in range(3):
            feeds = whole_feeds(graph, seed)
            right(graph, feeds, session.run(feeds, timeout=30))
            told = session.receipt if session.receipt.recoveries else told
        assert device.inner.gauge.peak <= ROOM
        assert device.faults.injected
        untouched([device])
        return told or session.receipt


def counts(faulty: FaultyMachine, call: str) -> tuple[int, int]:
    """Calls of a sort until the first run, and to its end."""
    graph, device = layers(), faulty.add("a", inner=tight())
    with compiled(graph, A) as session:
        before = device.faults.count(call)
        session.run(whole_feeds(graph, 0))
    return before, device.faults.count(call)


ALL = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"]
)


def numbers(faulty: FaultyMachine, call: str, *, every: bool) -> list[int]:
    """The calls of a sort in a run; or the first, one in the middle and the last."""
    before, after = counts(faulty, call)
    found = list(range(before, after))
    return found if every else [found[0], found[len(found) // 2], found[-1]]


@ALL
@pytest.mark.parametrize("call", ["copy", "execute"])
def test_a_device_out_of_memory_at_any_step_goes_on_within_it(
    faulty: FaultyMachine, call: str, every: bool
) -> None:
    for nth in numbers(faulty, call, every=every):
        told = outlives(faulty, Fault("oom", nth, call=call))
        (recovery,) = told.recoveries
        assert recovery.action == "caches freed"
        assert {op.device for op in told.ops} == {A}


@ALL
@pytest.mark.parametrize("call", ["copy", "execute"])
def test_a_device_lost_at_any_step_gives_way_to_another(
    faulty: FaultyMachine, call: str, every: bool
) -> None:
    for nth in numbers(faulty, call, every=every):
        faulty.add("b", inner=SimDevice(SimSpec("other", memory_bytes=ROOM)))
        told = outlives(faulty, Fault("lost", nth, call=call), B)
        assert told.recoveries[0].action == "lost"
        assert B in {op.device for op in told.ops}
        faulty.end()


@ALL
@pytest.mark.parametrize("kind", ["corrupt", "short"])
def test_a_damaged_weight_is_brought_again(faulty: FaultyMachine, kind: str, every: bool) -> None:
    for nth in numbers(faulty, "copy", every=every):
        told = outlives(faulty, Fault(kind, 2 * nth, call="copy", bit=30), verify="transfers")
        assert not told.recoveries


def test_a_run_that_is_given_up_leaves_the_next_its_place(faulty: FaultyMachine) -> None:
    graph, fed = layers(), whole_feeds(layers(), 0)
    before, _ = counts(faulty, "copy")
    faulty.add("a", Fault("hang", before + 2, call="copy", seconds=0.3), inner=tight())
    with compiled(graph, A) as session:
        future = session.submit(fed)
        threading.Timer(0.05, future.cancel).start()
        with pytest.raises(Cancelled):
            future.result(timeout=10)
        for seed in range(2):
            right(graph, whole_feeds(graph, seed), session.run(whole_feeds(graph, seed)))


def test_less_memory_than_was_said_brings_more(faulty: FaultyMachine) -> None:
    """What a device really has is found at the first run; then fewer weights stay."""
    graph = layers()
    inner = SimDevice(SimSpec("inside", memory_bytes=ROOM + 3 * UNIT))
    device = faulty.add("a", inner=inner)
    with compiled(graph, A) as session:
        assert not session.plan.streamed
        hog = device.allocate(3 * UNIT)
        for seed in range(3):
            right(graph, whole_feeds(graph, seed), session.run(whole_feeds(graph, seed)))
            assert {op.device for op in session.receipt.ops} == {A}
            assert bool(session.receipt.recoveries) == (seed == 0)
        assert session.plan.streamed
        with compiled(graph, A) as other:
            assert session.plan.streamed
            right(graph, whole_feeds(graph, 7), other.run(whole_feeds(graph, 7)))
        hog.release()


def test_steps_are_computed_again_with_weights_that_are_gone(faulty: FaultyMachine) -> None:
    graph = layers()
    faulty.add("a", inner=tight())
    with compiled(graph, A, verify="transfers,sample:1") as session:
        assert session.plan.streamed
        right(graph, whole_feeds(graph, 0), session.run(whole_feeds(graph, 0)))
    with compiled(graph, A, check_finite=True) as session:
        assert session.plan.streamed
        right(graph, whole_feeds(graph, 0), session.run(whole_feeds(graph, 0)))
