"""Plans: complete, safe, never predicted worse than one device, and what the constraints say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices import cpu, sim
from crossdock.devices.base import DeviceInfo
from crossdock.devices.links import link_ends
from crossdock.devices.sim import SimSpec
from crossdock.runtime import costing
from crossdock.runtime.errors import MemoryBudget, NoPlacement, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Constraints, Plan
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel, DeviceRates, LinkModel
from tests.runtime.closure import check_plan
from tests.runtime.strategies import exact_graphs

CPU = cpu.probe().devices[0]
FAST, SLOW = DeviceRates({"*": 1e12}, 1e12, 1e-7), DeviceRates({"*": 1e8}, 1e8, 1e-5)
WIRE = LinkModel(1e-6, ((1.0, 1e10),))


def simulated(name: str, **spec: object) -> DeviceInfo:
    """A device that nothing is opened for."""
    sim.register(SimSpec(name, **spec))  # type: ignore[arg-type]
    info = next(d for d in sim.probe().devices if d.id == f"sim:{name}")
    sim.unregister(name)
    return info


A, B, C = (simulated(name) for name in "abc")


def target(
    *rated: tuple[DeviceInfo, DeviceRates],
    link: LinkModel | None = WIRE,
    asked: list[DeviceInfo] | None = None,
    capacity: dict[str, int] | None = None,
) -> Target:
    """Devices with rooflines, the host among them, and one link to each of the others."""
    model = CostModel()
    given = [info for info, _ in rated]
    devices = (CPU, *(d for d in given if d.id != CPU.id))
    for info, made in rated:
        model.set_rates(info.fingerprint, made)
    for info in devices[1:]:
        if link is not None:
            model.set_link(CPU.fingerprint, info.fingerprint, link)
            model.set_link(info.fingerprint, CPU.fingerprint, link)
    ids = frozenset(d.id for d in (devices if asked is None else asked))
    return Target(devices, ids, model, capacity or {})


def two_branches(size: int = 64) -> Graph:
    """x -> two products with weights -> their sum; whole ones, so that sums are exact."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder()
    x = b.input("x", (size, size))
    w = [b.constant(rng.integers(-4, 5, (size, size)).astype(np.float32)) for _ in "lr"]
    left = b.matmul(x, w[0], label="left")
    right = b.matmul(x, w[1], label="right")
    return b.build({"y": b.add(left, right, label="join")})


def where(plan: Plan) -> dict[str, str]:
    return {s.name: s.device for s in plan.launches()}


@st.composite
def targets(draw: st.DrawFn) -> Target:
    """One to four devices, of any speed or of none known, sharing compute or not."""
    model = CostModel()
    shared = draw(st.booleans())
    others = (A, B, C)[: draw(st.integers(0, 3))]
    beside = [replace(d, resource_group=CPU.resource_group) if shared else d for d in others]
    devices = [CPU, *beside]
    for info in devices:
        if draw(st.booleans()):
            speed = 10.0 ** draw(st.integers(7, 12))
            rates = DeviceRates({"*": speed}, speed, 10.0 ** -draw(st.integers(4, 7)))
            model.set_rates(info.fingerprint, rates)
        if info is not CPU and draw(st.booleans()):
            link = LinkModel(10.0 ** -draw(st.integers(4, 7)), ((1.0, 1e9),))
            model.set_link(CPU.fingerprint, info.fingerprint, link)
            model.set_link(info.fingerprint, CPU.fingerprint, WIRE)
    pairs = [(a.id, b.id) for a in beside for b in beside if a is not b]
    peers = dict.fromkeys(draw(st.sets(st.sampled_from(pairs))) if pairs else (), "a wire")
    for a, b in sorted(peers):
        if draw(st.booleans()):
            fast = LinkModel(1e-6, ((1.0, 10.0 ** draw(st.integers(7, 11))),))
            model.set_link(
                *link_ends(*(next(d for d in beside if d.id == e) for e in (a, b))), fast
            )
    asked = draw(st.lists(st.sampled_from(devices), min_size=1, max_size=4))
    capacity = {CPU.resource_group: draw(st.integers(1, 3))}
    ids = frozenset(d.id for d in asked)
    return Target(tuple(devices), ids, model, capacity, peers=peers)


def pinned(draw: st.DrawFn, graph: Graph, on: Target) -> Constraints:
    """Random devices for some of the ops."""
    names = [n.name for n in graph.nodes if not costing.is_alias(n)]
    some = draw(st.lists(st.sampled_from(names), max_size=8, unique=True)) if names else []
    ids = [d.id for d in on.devices]
    return Constraints(pin={name: draw(st.sampled_from(ids)) for name in some})


@st.composite
def planning(draw: st.DrawFn) -> tuple[Graph, Target, Options]:
    graph, on = draw(exact_graphs()), draw(targets())
    rules = pinned(draw, graph, on)
    asked = on.asked | set(rules.pin.values())
    return graph, replace(on, asked=asked), Options(constraints=rules)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(planning())
def test_any_plan_is_complete_and_safe(given_: tuple[Graph, Target, Options]) -> None:
    graph, on, options = given_
    plan = make_plan(graph, on, options)
    check_plan(graph, plan)
    ops = [n for n in graph.nodes if not costing.is_alias(n)]
    assert {s.name for s in plan.launches()} == {n.name for n in ops}
    for name, device in options.constraints.pin.items():
        assert where(plan)[name] == device
    assert all(0 <= s.low <= s.seconds <= s.high for s in plan.steps)
    assert 0 <= plan.low <= plan.predicted <= plan.high
    singles = [d.single_seconds for d in plan.devices if d.single_seconds is not None]
    assert plan.predicted <= min(singles) * (1 + 1e-9)
    assert plan.lower_bound <= plan.predicted * (1 + 1e-9)


@settings(max_examples=15)
@given(planning())
def test_the_same_question_gets_the_same_plan(given_: tuple[Graph, Target, Options]) -> None:
    graph, on, options = given_
    first, second = (make_plan(graph, on, options) for _ in range(2))
    assert first.to_json() == second.to_json()
    again = Plan.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first
    assert again.digest() == first.digest()


def test_both_devices_are_used_where_that_is_faster_and_one_where_it_is_not() -> None:
    graph = two_branches(256)
    even = make_plan(graph, target((CPU, SLOW), (A, SLOW)), Options())
    assert set(where(even).values()) == {"cpu:0", "sim:a"}
    assert even.predicted < min(d.single_seconds or 9e9 for d in even.devices)
    uneven = make_plan(graph, target((CPU, FAST), (A, SLOW)), Options())
    assert set(where(uneven).values()) == {"cpu:0"}
    assert not uneven.copies()


def test_devices_of_a_group_compute_one_after_the_other_unless_it_has_room() -> None:
    graph = two_branches(256)
    beside = replace(A, resource_group=CPU.resource_group)
    rates = ((CPU, SLOW), (beside, SLOW))
    alone = make_plan(graph, target(*rates), Options())
    assert set(where(alone).values()) == {"cpu:0"}
    rules = Constraints(pin={"left": "sim:a", "right": "cpu:0"})
    tight = make_plan(graph, target(*rates), Options(constraints=rules))
    left, right = (next(s for s in tight.launches() if s.name == n) for n in ("left", "right"))
    assert left.finish <= right.start + 1e-12 or right.finish <= left.start + 1e-12
    roomy = make_plan(graph, target(*rates, capacity={CPU.resource_group: 2}), Options())
    assert set(where(roomy).values()) == {"cpu:0", "sim:a"}
    assert roomy.predicted < 0.7 * alone.predicted


def test_weights_upload_is_spread_over_the_expected_runs() -> None:
    b = xd.GraphBuilder()
    w = b.constant(np.ones((512, 512), np.float32))
    graph = b.build({"y": b.matmul(b.input("x", (1, 512)), w, label="mm")})
    crawling = LinkModel(1e-6, ((1.0, 1e6),))  # a megabyte takes a second, the vector 2 ms
    on = target((CPU, SLOW), (A, FAST), link=crawling)
    assert where(make_plan(graph, on, Options(expected_runs=1)))["mm"] == "cpu:0"
    assert where(make_plan(graph, on, Options(expected_runs=100_000)))["mm"] == "sim:a"


def test_a_device_not_asked_for_runs_nothing_the_others_can() -> None:
    plan = make_plan(two_branches(), target((CPU, FAST), (A, SLOW), asked=[A]), Options())
    assert set(where(plan).values()) == {"sim:a"}
    choice = next(c for c in plan.launches()[0].choices if c.device == "cpu:0")
    assert "not among the devices asked for" in choice.reason


def test_unknown_costs_are_said_to_be_unknown() -> None:
    plan = make_plan(two_branches(), target((CPU, FAST), (A, FAST), link=None), Options())
    assert {s.source for s in plan.launches()} == {"roofline"}
    blind = make_plan(two_branches(), Target((CPU,), frozenset([CPU.id]), CostModel()), Options())
    assert {s.source for s in blind.launches()} == {"unknown"}
    rules = Constraints(pin={"*": "sim:a"})
    away = make_plan(two_branches(), target((A, FAST), link=None), Options(constraints=rules))
    assert {s.source for s in away.copies()} == {"unknown"}
    wired = make_plan(two_branches(), target((A, FAST)), Options(constraints=rules))
    assert {s.source for s in wired.copies()} == {"measured"}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("left", {"left"}),
        ("matmul", {"left", "right"}),
        ("*t", {"left", "right"}),
        ("jo??", {"join"}),
    ],
)
def test_a_pin_names_a_node_an_op_or_a_pattern(pattern: str, names: set[str]) -> None:
    rules = Constraints(pin={pattern: "sim:a"})
    plan = make_plan(two_branches(), target((CPU, FAST), (A, SLOW)), Options(constraints=rules))
    assert {n for n, d in where(plan).items() if d == "sim:a"} == names


def test_forbidden_devices_are_left_out_with_the_reason() -> None:
    rules = Constraints(forbid={"left": "sim:a", "add": ["sim:a", "sim:b"]})
    on = target((CPU, SLOW), (A, FAST), (B, SLOW))
    plan = make_plan(two_branches(), on, Options(constraints=rules))
    assert where(plan)["left"] != "sim:a"
    assert where(plan)["join"] == "cpu:0"
    assert "forbidden by 'left'" in plan.explain_op("left")


def test_a_broken_device_gets_nothing_and_its_reason_is_told() -> None:
    on = replace(target((CPU, SLOW), (A, FAST)), broken={"sim:a": "failed its probe: 2 + 2 = 5"})
    plan = make_plan(two_branches(), on, Options())
    assert set(where(plan).values()) == {"cpu:0"}
    assert "2 + 2 = 5" in plan.explain_op("left")
    with pytest.raises(NoPlacement, match="2 \\+ 2 = 5"):
        make_plan(two_branches(), on, Options(constraints=Constraints(pin={"*": "sim:a"})))


def test_rules_that_leave_nothing_name_every_op() -> None:
    everywhere = ("cpu:0", "sim:a")
    rules = Constraints(forbid={"left": everywhere, "join": everywhere})
    with pytest.raises(NoPlacement, match=r"2 op\(s\) have no device: left .*join"):
        make_plan(two_branches(), target((CPU, FAST), (A, FAST)), Options(constraints=rules))
    both = Constraints(pin={"left": "cpu:0", "le*": "sim:a"})
    with pytest.raises(NoPlacement, match="pinned to sim:a by 'le\\*'"):
        make_plan(two_branches(), target((CPU, FAST), (A, FAST)), Options(constraints=both))


def test_a_rule_for_what_runs_nowhere_says_so() -> None:
    b = xd.GraphBuilder()
    x = b.relu(b.input("x", (4,)))
    graph = b.build({"y": b.relu(b.reshape(x, [2, 2], label="shape"))})
    with pytest.raises(PlanError, match=r"'shape' .*runs nowhere"):
        make_plan(graph, target((CPU, FAST)), Options(constraints=Constraints({"shape": "cpu:0"})))
    # A pattern that also names others is fine.
    make_plan(graph, target((CPU, FAST)), Options(constraints=Constraints({"*": "cpu:0"})))


@pytest.mark.parametrize("memory", [{"sim:z": 10}, {"cpu:0": -1}, {"cpu:0": float("nan")}])
def test_a_budget_that_makes_no_sense_is_refused(memory: dict[str, float]) -> None:
    rules = Constraints(memory=memory)
    with pytest.raises(PlanError, match="memory gives"):
        make_plan(two_branches(), target((CPU, FAST)), Options(constraints=rules))


def test_ops_leave_a_device_whose_memory_is_too_small() -> None:
    graph, on = two_branches(), target((CPU, SLOW), (A, FAST), (B, SLOW))
    free = make_plan(graph, on, Options())
    assert set(where(free).values()) == {"sim:a"}
    need = free.device("sim:a").peak_bytes
    fits = make_plan(graph, on, Options(constraints=Constraints(memory={"sim:a": need})))
    assert where(fits) == where(free)
    less = make_plan(graph, on, Options(constraints=Constraints(memory={"sim:a": need // 8})))
    assert all(d.peak_bytes <= (need // 8 if d.id == "sim:a" else 1 << 30) for d in less.devices)
    check_plan(graph, less)


def test_a_budget_nothing_can_keep_is_refused_with_the_bytes() -> None:
    on = target((CPU, SLOW), (A, FAST))
    rules = Constraints(pin={"*": "sim:a"}, memory={"sim:a": 1000})
    with pytest.raises(MemoryBudget, match=r"sim:a needs \d+ B .* has 1000 B"):
        make_plan(two_branches(), on, Options(constraints=rules))
    with pytest.raises(MemoryBudget, match="cpu:0 needs"):
        make_plan(two_branches(), on, Options(constraints=Constraints(memory={"cpu:0": 10})))


def test_devices_in_one_memory_share_it() -> None:
    small = replace(A, physical_id=CPU.physical_id)
    host = replace(CPU, memory_bytes=100_000)
    graph = two_branches()
    model = target((CPU, SLOW), (small, FAST)).model
    on = Target((host, replace(small, memory_bytes=100_000)), frozenset(["cpu:0", "sim:a"]), model)
    plan = make_plan(graph, on, Options())
    assert sum(d.peak_bytes for d in plan.devices) <= 100_000


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(PlanError, match="best_single"):
        make_plan(two_branches(), target((CPU, FAST)), Options(policy="nope"))


@pytest.mark.parametrize("policy", ["best_single", "heft", "lookahead", "auto"])
def test_every_policy_makes_a_safe_plan(policy: str) -> None:
    graph = two_branches()
    plan = make_plan(graph, target((CPU, SLOW), (A, SLOW), (B, FAST)), Options(policy=policy))
    check_plan(graph, plan)
    if policy == "best_single":
        assert len(set(where(plan).values())) == 1


def test_tensors_between_two_devices_are_staged_through_the_host_once() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (64, 64))
    made = b.relu(x, label="make")
    graph = b.build({f"y{i}": b.tanh(made, label=f"use{i}") for i in range(3)})
    rules = Constraints(pin={"make": "sim:a", "use0": "sim:b", "use1": "sim:b", "use2": "cpu:0"})
    plan = make_plan(graph, target((CPU, SLOW), (A, FAST), (B, FAST)), Options(constraints=rules))
    check_plan(graph, plan)
    value = graph.nodes[0].outputs[0]
    assert [(c.src, c.dst) for c in plan.copies() if c.name == value] == [
        ("sim:a", "cpu:0"),
        ("cpu:0", "sim:b"),
    ]
