"""Plans that are given: those that were saved run as they did, and no damaged one gets to run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing
from crossdock.runtime.errors import MemoryBudget, PlanError, StalePlan
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan, Split, Step
from crossdock.scheduler import DeviceRates, LinkModel
from tests.runtime.conftest import Machine
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_executor import ADVERSARIAL, placed_graphs
from tests.runtime.test_plan import JUNK, paths

pytestmark = pytest.mark.usefixtures("no_hang")

X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)


def graph() -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (8, 8))
    w = b.constant(np.eye(8, dtype=np.float32) * 2)
    left = b.matmul(x, w, label="left")
    right = b.reshape(b.tanh(b.transpose(x, label="turn"), label="right"), (8, 8))
    return b.build({"y": b.matmul(left, right, label="join")})


WANT = evaluate(graph(), {"x": X})["y"]
PINS = {"left": "sim:a", "turn": "sim:b", "right": "sim:b", "join": "cpu:0"}


def saved(machine: Machine, **more: Any) -> tuple[Plan, list[str]]:
    ids = ["cpu:0", machine.sim("a"), machine.sim("b")]
    rules = xd.Constraints(pin=PINS)
    with xd.compile(graph(), ids, constraints=rules, measure=False, **more) as session:
        return session.plan, ids


def run(plan: Plan, **more: Any) -> Any:
    rules = xd.Constraints(pin=PINS)
    with xd.compile(graph(), constraints=rules, plan=plan, **more) as session:
        assert session.plan == plan
        return session.run({"x": X})["y"]


def test_a_saved_plan_runs_where_it_says(machine: Machine) -> None:
    plan, ids = saved(machine)
    again = Plan.loads(plan.dumps())
    np.testing.assert_allclose(run(again), WANT, rtol=1e-5, atol=1e-6)
    with xd.compile(graph(), constraints=xd.Constraints(pin=PINS), plan=again) as session:
        session.run({"x": X})
        assert {op.name: op.device for op in session.receipt.ops} == PINS
        assert session.receipt.plan == plan.digest()
        assert set(session.devices) == set(ids)


@settings(ADVERSARIAL, max_examples=15)
@given(placed_graphs(), st.integers(0, 9))
def test_every_plan_that_was_made_passes(
    machine: Machine, made: tuple[Graph, dict[str, int]], seed: int
) -> None:
    whole, where = made
    ids = ["cpu:0", *(machine.sim(name) for name in "abc")]
    rules = xd.Constraints(pin={name: ids[at] for name, at in where.items()})
    feeds = whole_feeds(whole, seed)
    with xd.compile(whole, ids, constraints=rules, measure=False) as session:
        want, plan = session.run(feeds), session.plan
    with xd.compile(whole, constraints=rules, plan=Plan.loads(plan.dumps())) as session:
        got = session.run(feeds)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


@settings(ADVERSARIAL, max_examples=60)
@given(st.data())
def test_a_damaged_plan_runs_right_or_not_at_all(machine: Machine, draw: st.DataObject) -> None:
    plan, _ = saved(machine)
    broken: Any = json.loads(plan.dumps())
    for _ in range(draw.draw(st.integers(1, 2))):
        at = draw.draw(st.sampled_from([p for p in paths(broken) if p]))
        parent: Any = broken
        for key in at[:-1]:
            parent = parent[key]
        how = draw.draw(st.sampled_from(["replace", "remove", "other"]))
        if how == "remove":
            del parent[at[-1]]
        elif how == "replace":
            parent[at[-1]] = draw.draw(JUNK)
        else:  # what stands elsewhere in the plan: the right type, the wrong place
            values = [p for p in paths(broken) if p and p[-1] == at[-1]]
            source: Any = broken
            for key in draw.draw(st.sampled_from(values)):
                source = source[key]
            parent[at[-1]] = json.loads(json.dumps(source))
    try:
        made = Plan.loads(json.dumps(broken))
        got = run(made, measure=False)
    except PlanError:
        return
    np.testing.assert_allclose(got, WANT, rtol=1e-5, atol=1e-6)


def changed(plan: Plan, what: Callable[[Step], bool], **fields: Any) -> Plan:
    index = next(s.index for s in plan.steps if what(s))
    steps = [replace(s, **fields) if s.index == index else s for s in plan.steps]
    return replace(plan, steps=tuple(steps))


def copy(step: Step) -> bool:
    return step.kind == "copy"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: changed(p, lambda s: bool(s.waits), waits=()), "its waits or its memory"),
        (lambda p: changed(p, copy, nbytes=8), "copies nothing"),
        (lambda p: changed(p, copy, name="w"), "copies nothing"),
        (lambda p: changed(p, copy, queue="sim:a/compute"), "copies nothing"),
        (lambda p: changed(p, lambda s: s.name == "left", op="gemm"), "is no op of the graph"),
        (lambda p: changed(p, lambda s: s.name == "left", device="sim:b",
                           queue="sim:b/compute"), "is not on sim:a"),
        (lambda p: replace(p, steps=p.steps[:-1]), "has no step for"),
        (lambda p: replace(p, steps=()), "has no step for"),
        (lambda p: changed(p, copy, seconds=-1.0), "less than no time"),
        (lambda p: replace(p, devices=tuple(
            replace(d, arena_bytes=64) for d in p.devices)), "its waits or its memory"),
        (lambda p: replace(p, devices=tuple(
            replace(d, offsets=dict.fromkeys(d.offsets, 0)) for d in p.devices)), "its memory"),
        (lambda p: replace(p, splits=(Split("left", 0, ("left",), ("a", "b"), (4, 3), 1.0,
                                            True, ""),)), "does not split"),
        (lambda p: replace(p, splits=(Split("none", 0, (), (), (), 1.0, True, ""),)), "no op"),
        (lambda p: changed(p, lambda s: s.name == "left", kernel="gone"), "which is not here"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_named(
    damage: Callable[[Plan], Plan], said: str, machine: Machine
) -> None:
    plan, _ = saved(machine)
    with pytest.raises(PlanError, match=said):
        run(damage(plan))


def test_what_makes_a_plan_stale_is_said_when_it_is_given(machine: Machine) -> None:
    plan, _ = saved(machine)
    gone = replace(plan.devices[1], id="sim:gone")
    newer = tuple(replace(d, driver="x") for d in plan.devices)
    for other, said in (
        (replace(plan, graph="0"), "is for another graph"),
        (replace(plan, kernels="0"), "the kernels are not those"),
        (replace(plan, devices=(*plan.devices, gone)), "needs sim:gone"),
        (replace(plan, devices=newer), "the driver of"),
    ):
        with pytest.raises(StalePlan, match=said):
            run(other)
    machine.sim("b", speed_flops=5e11)
    with pytest.raises(StalePlan, match="sim:b is not the device"):
        run(plan)


def test_other_costs_than_the_plans_are_noted_in_the_receipt(machine: Machine) -> None:
    plan, _ = saved(machine)
    with xd.compile(
        graph(), constraints=xd.Constraints(pin=PINS), plan=replace(plan, cost_model="0")
    ) as session:
        session.run({"x": X})
        (note,) = session.receipt.notes
    assert note.startswith("costs are of version")


def test_a_plan_is_for_one_shape(machine: Machine) -> None:
    b = xd.GraphBuilder()
    source = b.build({"y": b.neg(b.input("x", ("n", 2)), label="minus")})
    with xd.compile(source, machine.sim("a"), dims={"n": 3}, measure=False) as session:
        plan = session.plan
    with xd.compile(source, plan=plan) as session:
        assert session.run({"x": np.ones((3, 2), np.float32)})["y"].shape == (3, 2)
        with pytest.raises(StalePlan, match="another graph"):
            session.run({"x": np.ones((4, 2), np.float32)})


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(PlanError, match=r"plan is a crossdock\.Plan, not dict"):
        xd.compile(graph(), plan={})  # type: ignore[arg-type]


def test_a_plan_with_ops_in_parts_is_run_in_parts(
    machine: Machine, costs: costing.CostStore
) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (64, 512))
    w = b.constant(np.full((512, 512), 0.01, np.float32))
    whole = b.build({"y": b.relu(b.matmul(x, w, label="mm"), label="cut")})
    ids = [machine.sim(name, speed_flops=1e9, link_latency=1e-7) for name in "ab"]
    host = machine.device("cpu:0").info.fingerprint
    for name in ids:
        mark = machine.device(name).info.fingerprint
        costs.model.set_rates(mark, DeviceRates({"*": 1e9}, 1e11, 5e-6))
        for ends in ((host, mark), (mark, host)):
            costs.model.set_link(*ends, LinkModel(1e-7, ((1.0, 1e10),)))
    feeds = {"x": np.ones((64, 512), np.float32)}
    with xd.compile(whole, ids, measure=False) as session:
        plan, want = session.plan, session.run(feeds)["y"]
    assert any(s.taken for s in plan.splits)
    with xd.compile(whole, plan=Plan.loads(plan.dumps())) as session:
        assert session.plan == plan
        np.testing.assert_allclose(session.run(feeds)["y"], want, rtol=1e-6)


def test_a_given_plan_respects_the_memory_there_is(machine: Machine) -> None:
    plan, _ = saved(machine)
    small = xd.Constraints(pin=PINS, memory={"sim:a": 8})
    with (
        pytest.raises(MemoryBudget, match="sim:a needs"),
        xd.compile(graph(), constraints=small, plan=plan),
    ):
        pass
