"""Weights that each run brings: right answers within the budget, and the copies as planned."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing, region, streams, virtual
from crossdock.runtime.errors import MemoryBudget
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.runtime.planner import Options, Planning
from crossdock.runtime.session import Session
from crossdock.runtime.simulate import simulate
from crossdock.runtime.target import Target
from crossdock.scheduler import DeviceRates, LinkModel
from tests.runtime.conftest import Machine
from tests.runtime.lazy_device import World
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_executor import ADVERSARIAL, check_runs
from tests.runtime.test_planner import CPU

pytestmark = pytest.mark.usefixtures("no_hang")
ROWS = 3


@st.composite
def weighted_graphs(draw: st.DrawFn) -> Graph:
    """Layers of products with weights of many sizes, some of them read by several ops.

    Of whole numbers, which every order of adding gives exactly.
    """
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    b = xd.GraphBuilder("weighted")
    width = draw(st.sampled_from((4, 16, 40)))
    values = [b.input("x", (ROWS, width))]
    weights: dict[tuple[int, int], list[Any]] = {}
    for i in range(draw(st.integers(1, 9))):
        x = values[-1]
        wide = draw(st.sampled_from((4, 16, 40)))
        known = weights.setdefault((x.shape[1], wide), [])
        if not known or draw(st.booleans()):
            known.append(b.constant(rng.integers(-1, 2, (x.shape[1], wide)).astype(np.float32)))
        y = b.matmul(x, draw(st.sampled_from(known)), label=f"m{i}")
        if draw(st.booleans()):
            y = b.add(y, b.constant(rng.integers(-1, 2, (wide,)).astype(np.float32)))
        y = b.clamp(y, min_value=-3.0, max_value=3.0)
        same = [v for v in values if v.shape == y.shape]
        if same and draw(st.booleans()):
            y = b.clamp(b.add(y, draw(st.sampled_from(same))), min_value=-3.0, max_value=3.0)
        values.append(y)
    return b.build({"y": values[-1], "z": b.identity(values[len(values) // 2])})


def chain(depth: int = 8, side: int = 64, *, tied: bool = False) -> Graph:
    """Products one after the other, each with a weight of its own, or all with one of two."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("chain")
    y = b.input("x", (ROWS, side))
    made = [
        b.constant(rng.integers(-1, 2, (side, side)).astype(np.float32))
        for _ in range(2 if tied else depth)
    ]
    for i in range(depth):
        y = b.clamp(
            b.matmul(y, made[i % len(made)], label=f"m{i}"),
            min_value=-2,
            max_value=2,
            label=f"c{i}",
        )
    return b.build({"y": y})


def compiled(graph: Graph, ids: list[str], **options: Any) -> Session:
    return xd.compile(graph, ids, measure=False, split=False, **options)


def free_plan(graph: Graph, device: str) -> Plan:
    """The plan of a device that has room for everything."""
    with compiled(graph, [device]) as session:
        return session.plan


def brought(plan: Plan, device: str) -> int:
    """Bytes of weights that a run brings, by its steps."""
    return sum(s.nbytes for s in plan.steps if s.brings_weight and s.device == device)


@settings(ADVERSARIAL, max_examples=12)
@given(weighted_graphs(), st.floats(0.0, 1.0), st.integers(0, 1 << 16))
def test_answers_hold_and_no_byte_more_is_taken_however_late_work_is_done(
    machine: Machine, graph: Graph, share: float, seed: int
) -> None:
    part = free_plan(graph, machine.sim("free")).device("sim:free")
    budget = int(part.run_bytes + share * part.fixed_bytes)
    device = machine.lazy("tight", World(seed), memory_bytes=budget)
    try:
        session = compiled(graph, [device], runs_at_once=2)
    except MemoryBudget:
        return  # not even two loads fit: see below
    with session:
        check_runs(session, graph, seed)
        plan = session.plan
        assert registry.open_device(device).gauge.peak <= plan.device(device).peak_bytes <= budget
        assert session.receipt.streamed == (
            {f"cpu:0->{device}": brought(plan, device)} if plan.streamed else {}
        )


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.integers(0, 100),
    st.sampled_from(region.LAYOUTS),
)
def test_a_load_never_lies_over_the_one_before_it(
    sizes: list[int], more: int, layout: region.Layout
) -> None:
    nbytes = region.pair(sizes) + more
    offsets = layout(sizes, nbytes)
    ends = [at + size for at, size in zip(offsets, sizes, strict=True)]
    assert all(at >= 0 and end <= nbytes for at, end in zip(offsets, ends, strict=True))
    there: list[int] = [-1] * nbytes  # who lies in each byte
    for i, last in enumerate(region.before(offsets, sizes)):
        under = max(there[offsets[i] : ends[i]])
        assert (-1 if last is None else last) == under
        there[offsets[i] : ends[i]] = [i] * sizes[i]
        if layout is region.two_ends and i:
            assert under < i - 1


@pytest.fixture
def device(machine: Machine, costs: costing.CostStore) -> str:
    """A simulated device, far faster than the processor, with a fast link."""
    name = machine.sim("card", memory_bytes=1 << 30)
    linked(costs, name, 1e9)
    return name


def linked(costs: costing.CostStore, name: str, rate: float) -> None:
    """Say how fast a device computes, and is reached at ``rate`` bytes a second."""
    info = registry.open_device(name).info
    costs.model.set_rates(info.fingerprint, DeviceRates({"*": 1e10}, 1e12, 1e-7))
    costs.model.set_rates(CPU.fingerprint, DeviceRates({"*": 1e7}, 1e7, 1e-6))
    for ends in ((CPU, info), (info, CPU)):
        fingerprints = [end.fingerprint for end in ends]
        costs.model.set_link(*fingerprints, LinkModel(1e-6, ((1.0, rate),)))


def squeezed(graph: Graph, device: str, share: float, *others: str, **options: Any) -> Session:
    part = free_plan(graph, device).device(device)
    budget = part.run_bytes + share * part.fixed_bytes
    memory = {device: budget}
    rules = xd.Constraints(memory=memory, pin=options.pop("pin", {}))
    return compiled(graph, [device, *others], constraints=rules, **options)


def test_the_copies_of_a_run_are_those_of_the_plan(device: str) -> None:
    graph = chain()
    with squeezed(graph, device, 0.6) as session:
        check_runs(session, graph, 0)
        plan, receipt = session.plan, session.receipt
        nbytes = brought(plan, device)
        unit = 4 * 64 * 64
        assert nbytes == sum(one.nbytes for one in plan.streamed) == 6 * unit
        assert plan.device(device).resident_bytes == 2 * unit
        assert plan.device(device).region_bytes >= 2 * unit
        assert receipt.links[f"cpu:0->{device}"] == nbytes + graph.inputs["x"].nbytes
        assert session.estimate().streamed_bytes == {device: nbytes}
        assert f"{nbytes} B more brought each run" in plan.explain()
        assert [r.name for r in plan.rungs if r.taken] == ["stream"]
        assert f"brought to {device} each run" in plan.explain()
        assert xd.Plan.from_json(plan.to_json()) == plan


def test_the_plan_takes_on_virtual_time_what_it_says(device: str) -> None:
    with squeezed(chain(), device, 0.6) as session:
        plan = session.plan
    played, run = simulate(plan), virtual.execute(plan)
    assert played.makespan == pytest.approx(plan.predicted)
    np.testing.assert_allclose(run.finish, played.finish)
    copies = [s for s in plan.steps if s.brings_weight]
    assert plan.predicted < 0.95 * sum(s.seconds for s in plan.steps), "nothing overlaps"
    for a, b in itertools.pairwise(copies):
        assert a.finish <= b.start + 1e-12


def test_a_weight_of_several_ops_stays_rather_than_one_of_a_single_op(device: str) -> None:
    b = xd.GraphBuilder()
    rng = np.random.default_rng(1)
    often, *rest = (b.constant(rng.integers(-1, 2, (64, 64)).astype(np.float32)) for i in range(5))
    y = b.input("x", (ROWS, 64))
    for w in (*rest[:2], often, rest[2], often, rest[3], often):
        y = b.clamp(b.matmul(y, w), min_value=-2, max_value=2)
    with squeezed(b.build({"y": y}), device, 0.65) as session:
        names = {one.weight for one in session.plan.streamed}
    assert len(names) == 4
    assert often.name not in names


@pytest.mark.parametrize("rate", [5e7, 2e8, 1e9])
def test_what_stays_is_nearly_the_best_there_is(
    device: str, costs: costing.CostStore, rate: float
) -> None:
    """Held against all ways to keep some of the weights."""
    linked(costs, device, rate)
    infos = (CPU, registry.open_device(device).info)
    target = Target(infos, frozenset({device}), costs.model)
    planning = Planning(chain(9), target, Options())
    plan = planning.draft()
    lane = streams.Lane(planning, plan, device)
    keys = [key for reader in lane.readers for key in reader.weights]
    unit = 4 * 64 * 64
    room = 6 * unit
    best = np.inf
    for count in range(len(keys)):
        for kept in itertools.combinations(keys, count):
            loads = [load.nbytes for load in lane.loads(kept)]
            nbytes = room - count * unit
            if region.pair(loads) <= nbytes:
                for layout in region.LAYOUTS:
                    made = lane.made(streams.Choice(frozenset(kept), nbytes, layout))
                    best = min(best, simulate(made).makespan)
    assert simulate(lane.brought(room)).makespan <= 1.02 * best


def test_the_fastest_of_the_ways_that_fit_is_taken(
    device: str, machine: Machine, costs: costing.CostStore
) -> None:
    graph = chain()
    feeds = whole_feeds(graph, 0)
    with squeezed(graph, device, 0.6, "cpu:0") as session:
        assert session.plan.rungs[-1].name == "stream"
        (other,) = [r for r in session.plan.rungs if r.name == "elsewhere"]
        assert not other.taken
        assert other.seconds >= session.plan.rungs[-1].seconds
        assert f"elsewhere: {other.device} would take" in session.plan.explain()
        want = session.run(feeds)
    linked(costs, device, 1e5)
    machine.forget(device)
    with squeezed(graph, device, 0.6, "cpu:0") as session:
        assert session.plan.rungs[-1].name == "elsewhere"
        assert not session.plan.streamed
        np.testing.assert_array_equal(session.run(feeds)["y"], want["y"])


def test_where_not_even_two_loads_fit_it_is_refused_with_the_numbers(device: str) -> None:
    unit = 4 * 64 * 64
    with pytest.raises(MemoryBudget) as caught:
        squeezed(chain(), device, 0.2)
    said = str(caught.value)
    assert "stream" in said
    assert f"of which {unit} B for 'c0' and {unit} B for 'c1' are there at once" in said
    assert f"{device} would still take" in said


def test_one_load_at_a_time_is_enough_where_other_ops_lie_between(device: str) -> None:
    with squeezed(chain(), device, 0.2, pin={"*": device}) as session:
        assert session.plan.rungs[-1].name == "stream"
        assert session.plan.device(device).arena_bytes < 2 * 4 * 64 * 64
        check_runs(session, chain(), 0)


def test_values_that_leave_no_room_for_weights_are_spilled_as_well(
    device: str, costs: costing.CostStore
) -> None:
    """Less is made of the values where weights would fit but for them."""
    b = xd.GraphBuilder()
    rng = np.random.default_rng(1)
    first = b.clamp(b.input("x", (64, 64)), min_value=-2, max_value=2, label="kept")
    y = first
    for i in range(6):
        w = b.constant(rng.integers(-1, 2, (64, 64)).astype(np.float32))
        y = b.clamp(b.matmul(y, w, label=f"m{i}"), min_value=-2, max_value=2)
    graph = b.build({"y": b.add(y, first, label="last")})
    part = free_plan(graph, device).device(device)
    unit = 4 * 64 * 64
    budget = part.run_bytes + 2 * unit - unit // 2
    rules = xd.Constraints(memory={device: budget})
    with compiled(graph, [device], constraints=rules) as session:
        assert session.plan.rungs[-1].name == "stream"
        assert session.plan.streamed
        check_runs(session, graph, 0)
        assert session.plan.device(device).peak_bytes <= budget
        assert f"{device}->cpu:0" in session.receipt.links
    assert costs is not None


def test_weights_take_the_memory_of_values_that_are_gone(device: str) -> None:
    """Large values first, then large weights: there is room for either."""
    rng = np.random.default_rng(1)
    b = xd.GraphBuilder()
    y = b.input("x", (64, 64))
    for _ in range(2):
        y = b.clamp(b.cumulative_sum(y, axis=1), min_value=-2, max_value=2)
    y = b.slice(y, [0, 0], [ROWS, 64])
    for i in range(6):
        w = b.constant(rng.integers(-1, 2, (64, 64)).astype(np.float32))
        y = b.clamp(b.matmul(y, w, label=f"m{i}"), min_value=-2, max_value=2)
    graph = b.build({"y": y})
    with squeezed(graph, device, 0.1) as session:
        part = session.plan.device(device)
        assert session.plan.rungs[-1].name == "stream"
        assert part.arena_bytes < part.region_bytes + 2 * 4 * 64 * 64
        check_runs(session, graph, 0)


def test_several_runs_in_flight_each_bring_their_own(device: str) -> None:
    graph = chain()
    part = free_plan(graph, device).device(device)
    memory = {device: 2 * part.run_bytes + 0.9 * part.fixed_bytes}
    rules = xd.Constraints(memory=memory)
    registry.open_device(device).gauge.reset()
    with (
        compiled(graph, [device], constraints=rules, runs_at_once=4) as session,
        ThreadPoolExecutor(4) as pool,
    ):
        assert session.plan.streamed
        feeds = [whole_feeds(graph, seed) for seed in range(24)]
        wants = [evaluate(graph, fed) for fed in feeds]
        for got, want in zip(pool.map(session.run, feeds), wants, strict=True):
            np.testing.assert_array_equal(got["y"], want["y"])
        assert registry.open_device(device).gauge.peak <= memory[device]


def test_the_same_plan_every_time(device: str) -> None:
    made = []
    for _ in range(2):
        with squeezed(chain(), device, 0.6, deterministic=True) as session:
            made.append(session.plan.dumps())
    assert made[0] == made[1]


def test_the_host_brings_nothing_to_itself(machine: Machine) -> None:
    graph = chain()
    part = free_plan(graph, "cpu:0").device("cpu:0")
    rules = xd.Constraints(memory={"cpu:0": part.run_bytes + part.fixed_bytes // 2})
    with pytest.raises(MemoryBudget) as caught:
        compiled(graph, ["cpu:0"], constraints=rules)
    assert "memory: stream" not in str(caught.value)
    assert machine is not None


def test_opencl_keeps_within_its_budget(opencl: DeviceInfo, machine: Machine) -> None:
    graph = chain()
    with squeezed(graph, opencl.id, 0.6) as session:
        assert session.plan.rungs[-1].name == "stream"
        for seed in range(3):
            check_runs(session, graph, seed)
        assert machine is not None


def resampled() -> Graph:
    """Ops whose weights, made for resampling, OpenCL kernels take in a layout of their own."""
    b = xd.GraphBuilder()
    y = b.input("x", (1, 1, 24, 24))
    for i in range(6):
        size = 36 if i % 2 == 0 else 24
        y = b.resample2d(y, sizes=[size, size], mode="linear", label=f"r{i}")
    return b.build({"y": y})


def test_packed_weights_are_brought_too(opencl: DeviceInfo, machine: Machine) -> None:
    graph = resampled()
    feeds = whole_feeds(graph, 0)
    with compiled(graph, [opencl.id]) as session:
        want, part = session.run(feeds)["y"], session.plan.device(opencl.id)
    assert part.packed_bytes
    rules = xd.Constraints(memory={opencl.id: part.run_bytes + 0.7 * part.fixed_bytes})
    with compiled(graph, [opencl.id], constraints=rules) as session:
        assert any(one.pack is not None for one in session.plan.streamed)
        for _ in range(2):
            np.testing.assert_array_equal(session.run(feeds)["y"], want)
    assert machine is not None
