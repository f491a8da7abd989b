"""Plans over a memory budget: each rung of the ladder when the one before it no longer fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.sim import SimDevice
from crossdock.runtime import costing
from crossdock.runtime.degrade import runs_within
from crossdock.runtime.errors import MemoryBudget
from crossdock.runtime.graph import Graph
from crossdock.runtime.session import Session
from crossdock.runtime.tensor import to_numpy
from crossdock.scheduler import DeviceRates, LinkModel
from tests.runtime.conftest import Machine
from tests.runtime.strategies import exact_graphs
from tests.runtime.test_planner import CPU

N = 64
UNIT = 4 * N * N
"""Bytes of an N by N tensor."""


def matrix(seed: int) -> Any:
    return (np.random.default_rng(seed).standard_normal((N, N)) / N**0.5).astype(np.float32)


def branches() -> Graph:
    """Eight outer products, each reduced: breadth first they are all alive together."""
    b = xd.GraphBuilder("branches")
    x, y = b.input("x", (N, 1)), b.input("y", (1, N))
    ends = []
    for i in range(8):
        wide = b.matmul(b.mul(x, b.constant(np.float32(i + 1))), y, label=f"wide{i}")
        ends.append(b.reduce_sum(wide, axes=[0, 1], label=f"end{i}"))
    total = ends[0]
    for end in ends[1:]:
        total = b.add(total, end)
    return b.build({"out": total})


def cheap_and_late() -> Graph:
    """An outer product, cheap to make from vectors, read at the start and at the very end."""
    b = xd.GraphBuilder("late")
    x, y = b.input("x", (N, 1)), b.input("y", (1, N))
    wide = b.matmul(x, y, label="wide")
    z = wide
    for i in range(3):
        left = b.matmul(z, b.constant(matrix(i)), label=f"left{i}")
        z = b.matmul(left, b.matmul(z, b.constant(matrix(i + 9)), label=f"right{i}"))
    return b.build({"out": b.matmul(z, wide, label="last")})


def bulge() -> Graph:
    """Narrow, very wide, narrow again: only parts of its rows need less at once."""
    b = xd.GraphBuilder("bulge")
    x = b.input("x", (N, 4))
    rng = np.random.default_rng(1)
    wide = b.matmul(x, b.constant(rng.standard_normal((4, 8 * N)).astype(np.float32)), label="up")
    wide = b.softmax(wide, axis=1, label="wide")
    down = b.constant(rng.standard_normal((8 * N, 4)).astype(np.float32))
    return b.build({"out": b.matmul(wide, down, label="down")})


def dear_and_late() -> Graph:
    """A value made from what is gone, read late; what lies between mixes rows and columns."""
    b = xd.GraphBuilder("dear")
    x = b.input("x", (N, N))
    v = b.cumulative_sum(b.cumulative_sum(x, axis=0, label="v0"), axis=1, label="v1")
    z = v
    for i in range(3):
        z = b.cumulative_sum(b.matmul(z, b.transpose(z), label=f"m{i}"), axis=0, label=f"c{i}")
    z = b.softmax(z, axis=1)
    return b.build({"out": b.matmul(z, v, label="last")})


@pytest.fixture
def device(machine: Machine, costs: costing.CostStore) -> str:
    """A simulated device, far faster than the processor."""
    name = machine.sim("card", memory_bytes=1 << 30)
    info = registry.open_device(name).info
    costs.model.set_rates(info.fingerprint, DeviceRates({"*": 1e12}, 1e12, 1e-6))
    costs.model.set_rates(CPU.fingerprint, DeviceRates({"*": 1e8}, 1e8, 1e-6))
    for ends in ((CPU, info), (info, CPU)):
        fingerprints = [end.fingerprint for end in ends]
        costs.model.set_link(*fingerprints, LinkModel(1e-6, ((1.0, 1e11),)))
    return name


def feeds(graph: Graph) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {n: rng.standard_normal(s.dims).astype(np.float32) / N for n, s in graph.inputs.items()}


def compiled(graph: Graph, device: str, budget: float | None = None, **options: Any) -> Session:
    memory = {} if budget is None else {device: budget}
    return xd.compile(
        graph,
        [device, "cpu:0"],
        constraints=xd.Constraints(memory=memory, **options),
        measure=False,
        split=False,
    )


def squeezed(graph: Graph, device: str, budget: float) -> Session:
    """A session within the budget, its answers compared with those of one without."""
    fed = feeds(graph)
    with compiled(graph, device) as free:
        want = free.run(fed)
        alone = free.plan.predicted
    session = compiled(graph, device, budget)
    opened = registry.open_device(device)
    assert isinstance(opened, SimDevice)
    before = opened.gauge.used
    opened.gauge.reset()
    got = session.run(fed)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)
    plan = session.plan
    took = opened.gauge.peak - before + plan.device(device).fixed_bytes
    assert took <= plan.device(device).peak_bytes <= budget
    last = plan.rungs[-1]
    assert last.taken
    assert plan.predicted - alone == pytest.approx(last.seconds, abs=0.2 * plan.predicted)
    assert f"memory: {last.name}" in plan.explain()
    return session


def need(graph: Graph, device: str) -> int:
    with compiled(graph, device) as session:
        return session.plan.device(device).peak_bytes


RUNGS: list[tuple[Callable[[], Graph], str, float]] = [
    (branches, "reorder", 0.5),
    (cheap_and_late, "recompute", 0.92),
    (bulge, "split", 0.5),
    (dear_and_late, "spill", 0.8),
]


@pytest.mark.parametrize(("make", "rung", "share"), RUNGS, ids=[r for _, r, _ in RUNGS])
def test_a_rung_is_taken_when_those_before_do_not_fit(
    make: Callable[[], Graph], rung: str, share: float, device: str
) -> None:
    graph = make()
    session = squeezed(graph, device, share * need(graph, device))
    rungs = session.plan.rungs
    assert [r.name for r in rungs][-1] == rung
    assert all(not r.taken for r in rungs[:-1])
    assert all(r.needs > r.budget or r.seconds >= rungs[-1].seconds for r in rungs[:-1])
    assert {s.device for s in session.plan.launches()} <= {device, "cpu:0"}


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_squeezed_graph_answers_as_the_free_one(device: str, data: st.DataObject) -> None:
    graph = data.draw(exact_graphs())
    share = data.draw(st.floats(0.2, 1.0))
    rng = np.random.default_rng(3)
    fed = {
        n: rng.integers(-4, 5, s.dims).astype(to_numpy(s.dtype)) for n, s in graph.inputs.items()
    }
    with compiled(graph, device) as free:
        want, part = free.run(fed), free.plan.device(device)
    budget = part.fixed_bytes + share * part.run_bytes
    try:
        session = compiled(graph, device, budget)
    except MemoryBudget:
        return
    with session:
        got = session.run(fed)
        assert session.plan.device(device).peak_bytes <= budget
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)


def test_elsewhere_where_no_order_and_no_edit_fits(device: str) -> None:
    session = squeezed(dear_and_late(), device, 100)
    assert session.plan.rungs[-1].name == "elsewhere"
    assert {s.device for s in session.plan.launches()} == {"cpu:0"}


def test_a_refusal_has_the_numbers_of_every_rung(device: str) -> None:
    graph = dear_and_late()
    with pytest.raises(MemoryBudget) as caught:
        compiled(graph, device, 100, pin={"*": device})
    said = str(caught.value)
    assert f"{device} needs {need(graph, device)} B (arena" in said
    assert ") and has 100 B (" in said
    for rung in ("reorder", "recompute", "split", "spill", "elsewhere"):
        assert f"{rung}" in said
    assert "raise constraints.memory" in said


def test_the_host_is_squeezed_too() -> None:
    graph = branches()
    with xd.compile(graph, "cpu:0", measure=False) as free:
        peak = free.plan.device("cpu:0").peak_bytes
        want = free.run(feeds(graph))["out"]
    tight = xd.Constraints(memory={"cpu:0": 0.6 * peak})
    with xd.compile(graph, "cpu:0", constraints=tight, measure=False) as session:
        assert session.plan.rungs[-1].name in ("reorder", "recompute", "split")
        assert session.plan.device("cpu:0").peak_bytes <= 0.6 * peak
        np.testing.assert_allclose(session.run(feeds(graph))["out"], want, rtol=1e-4)


def test_runs_in_flight_are_limited_by_the_budget(device: str) -> None:
    with compiled(dear_and_late(), device) as session:
        plan = session.plan
    part = plan.device(device)
    assert runs_within(plan, {}, 8) == 8
    assert runs_within(plan, {device: part.fixed_bytes + 3.5 * part.run_bytes}, 8) == 3
    assert runs_within(plan, {device: 1}, 8) == 1
