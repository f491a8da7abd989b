"""Explanations: complete, in agreement with planning anew, and borne out by devices."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.sim import SimSpec
from crossdock.kernels import table
from crossdock.kernels.refusal import Cause
from crossdock.runtime import costing, explain, flips, planner
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Constraints, Plan
from crossdock.runtime.planner import Options
from crossdock.runtime.prepare import simplify
from crossdock.runtime.target import Target
from crossdock.scheduler import DeviceRates, LinkModel
from crossdock.scheduler.objective import Objective
from tests.runtime.conftest import Machine
from tests.runtime.test_planner import CPU, FAST, SLOW, A, B, target, two_branches

pytestmark = pytest.mark.usefixtures("no_hang")

CARD = DeviceRates({"*": 1e11}, 1e11, 1e-6)


def made(graph: Graph, on: Target, rules: Constraints | None = None, **more: Any) -> Plan:
    options = Options(constraints=rules or Constraints())
    plan = planner.make_plan(graph, on, options)
    return explain.attach(plan, graph, on, options, **more)


def test_every_kernel_of_every_device_has_a_row_with_its_parts() -> None:
    plan = made(two_branches(), target((CPU, SLOW), (A, CARD)))
    found = explain.explain_op(plan, "left")
    rows = {(r.device, r.kernel): r for r in found.candidates}
    kernels = {k.name for k in table.candidates(
        costing.op_calls(two_branches())["left"], CPU).fitting}  # fmt: skip
    assert kernels <= {kernel for device, kernel in rows if device == CPU.id}
    assert [(r.device, r.kernel) for r in found.candidates if r.chosen] == [(A.id, found.kernel)]
    for row in rows.values():
        if row.cause != Cause.OK:
            assert row.reason
            continue
        assert row.seconds is not None
        assert None not in (row.launch, row.transfer_in, row.queue_wait, row.finish, row.head_room)
        assert row.launch == (SLOW if row.device == CPU.id else CARD).launch_s
    best = rows[A.id, found.kernel]
    assert best.seconds == pytest.approx(
        next(s for s in plan.launches() if s.name == "left").seconds
    )
    assert {r.cause for r in found.candidates if r.kernel == "cpu.elementwise"} == {"form"}


def test_the_margin_is_that_of_planning_anew() -> None:
    graph, on = two_branches(), target((CPU, SLOW), (A, CARD), (B, SLOW))
    plan = made(graph, on)
    found = explain.explain_op(plan, "join")
    others = {}
    for device in {CPU.id, A.id, B.id} - {found.device}:
        rules = Constraints(pin={"join": device})
        others[device] = planner.make_plan(graph, on, Options(constraints=rules)).predicted
    assert found.scope == "whole"
    assert found.runner_up == min(others, key=lambda d: others[d])
    assert found.margin == pytest.approx(min(others.values()) - plan.predicted)
    whole = {r.device: r.whole for r in found.candidates if r.whole is not None}
    assert whole == pytest.approx({**others, found.device: plan.predicted})
    assert found.sigma is not None
    assert found.sigma > 0
    assert found.confidence == pytest.approx(
        0.5 * (1 + math.erf((found.sigmas or 0) / math.sqrt(2)))
    )


def test_what_keeps_a_device_out_has_a_code() -> None:
    on = target((CPU, FAST), (A, CARD), (B, CARD), asked=[A, B])
    rules = Constraints(pin={"left": A.id}, forbid={"right": B.id})
    on = replace(on, broken={})
    plan = made(two_branches(), on, rules)

    def codes(name: str) -> dict[str, str]:
        rows = explain.explain_op(plan, name, 0.0).candidates
        return {r.device: r.cause for r in reversed(rows)}  # the first row of each

    assert codes("left") == {CPU.id: "pinned", A.id: "ok", B.id: "pinned"}
    assert codes("right") == {CPU.id: "not-asked", A.id: "ok", B.id: "forbidden"}
    broken = made(two_branches(), replace(on, broken={B.id: "wrong sums"}))
    rows = explain.explain_op(broken, "join", 0.0).candidates
    assert {r.cause for r in rows if r.device == B.id} == {"broken"}


def test_one_device_is_compared_by_kernels_and_no_time_means_local_margins() -> None:
    alone = explain.explain_op(made(two_branches(), target((CPU, SLOW))), "left")
    assert alone.scope == "kernel"
    assert alone.runner_up.startswith("cpu:0/")
    hurried = explain.explain_all(made(two_branches(), target((CPU, SLOW), (A, CARD))), 0.0)
    assert {e.scope for e in hurried} == {"local"}
    assert all(e.flips == () for e in hurried)


def test_a_plan_from_a_file_explains_what_it_holds() -> None:
    plan = Plan.loads(made(two_branches(), target((CPU, SLOW), (A, CARD))).dumps())
    found = explain.explain_op(plan, "left")
    assert found.scope == "local"
    assert {r.device for r in found.candidates} == {CPU.id, A.id}
    assert "left" in plan.explain_op("left")


def test_another_objective_is_said_beside_the_margin() -> None:
    graph, on = two_branches(), target((CPU, SLOW), (A, CARD))
    options = Options(objective=Objective.of("throughput"))
    plan = explain.attach(planner.make_plan(graph, on, options), graph, on, options)
    assert "placed for throughput" in plan.explain_op("left")
    assert "placed for" not in made(graph, on).explain_op("left")


def test_a_plans_own_words_have_margin_and_flips() -> None:
    text = made(two_branches(), target((CPU, SLOW), (A, CARD))).explain_op("left")
    for said in ("-> sim:a", "launch", "compute", "transfer in", "queue wait", "sigma", "B free",
                 "to move it: bandwidth of the links of sim:a"):  # fmt: skip
        assert said in text


def batched() -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", ("n", 64))
    y = b.matmul(x, b.constant(np.ones((64, 64), np.float32)), label="mm")
    return b.build({"y": y})


def placed(plan: Plan, name: str) -> str:
    return plan.find(name).device


def test_a_batch_that_flips_is_the_first_one() -> None:
    source = batched()
    far = LinkModel(1e-4, ((1.0, 1e10),))
    on = target((CPU, SLOW), (A, CARD), link=far)
    passes = simplify(source.bind({"n": 2}), Constraints())
    batch = flips.batch_of(source, source.bind({"n": 2}), lambda g: simplify(g, Constraints()))
    plan = made(passes, on, batch=batch)
    assert placed(plan, "mm") == CPU.id
    flip = explain.explain_op(plan, "mm").flips[0]
    assert (flip.knob, flip.device, flip.now) == ("batch", A.id, 2)
    assert flip.value is not None
    n = int(flip.value)
    assert n > 2
    before, after = (
        placed(
            planner.make_plan(simplify(source.bind({"n": k}), Constraints()), on, Options()), "mm"
        )
        for k in (n - 1, n)
    )
    assert (before, after) == (CPU.id, A.id)


def test_a_graph_without_an_open_batch_says_so() -> None:
    flip = explain.explain_op(made(two_branches(), target((CPU, SLOW), (A, CARD))), "left").flips[0]
    assert flip.value is None
    assert "no input's first dimension is open" in str(flip)


def test_a_budget_that_flips_is_the_largest_that_moves_the_op() -> None:
    graph, on = two_branches(), target((CPU, SLOW), (A, CARD))
    plan = made(graph, on)
    assert placed(plan, "left") == A.id
    flip = next(f for f in explain.explain_op(plan, "left").flips if f.knob == "memory")
    assert flip.at == A.id
    assert flip.value is not None
    assert flip.now == plan.device(A.id).peak_bytes
    rules = Constraints(memory={A.id: flip.value})
    assert placed(planner.make_plan(graph, on, Options(constraints=rules)), "left") == CPU.id
    rules = Constraints(memory={A.id: flip.value * flips.CLOSE + 1})
    assert placed(planner.make_plan(graph, on, Options(constraints=rules)), "left") == A.id


# --- on devices that run: simulated ones, whose clocks are virtual -------------------------------

NEAR = {"speed_flops": 2e10, "bandwidth": 1e12, "link_bandwidth": 1e11, "link_latency": 1e-7}
FAR = {"speed_flops": 1e12, "bandwidth": 1e12, "link_bandwidth": 2e8, "link_latency": 1e-6}


def chain() -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (128, 128))
    w = b.input("w", (128, 128))
    h = b.matmul(x, w, label="first")
    return b.build({"y": b.matmul(h, h, label="second")})


FEEDS = {name: np.ones((128, 128), np.float32) for name in "xw"}


class Pair:
    """Two simulated devices, the costs of which the planner knows, and what they take."""

    def __init__(self, machine: Machine, costs: costing.CostStore) -> None:
        self.machine, self.costs = machine, costs

    def ids(self, factor: float) -> list[str]:
        """The devices, the second one's links ``factor`` times as fast."""
        far = {**FAR, "link_bandwidth": FAR["link_bandwidth"] * factor}
        made = [self.machine.sim("near", **NEAR), self.machine.sim("far", **far)]
        host = self.machine.device("cpu:0").info.fingerprint
        for name, spec in zip(made, (NEAR, far), strict=True):
            mark = self.machine.device(name).info.fingerprint
            sim = SimSpec(name, **spec)  # type: ignore[arg-type]
            rates = DeviceRates({"*": sim.speed_flops}, sim.bandwidth, sim.launch_s)
            self.costs.model.set_rates(mark, rates)
            link = LinkModel(sim.link_latency, ((1.0, sim.link_bandwidth),))
            self.costs.model.set_link(host, mark, link)
            self.costs.model.set_link(mark, host, link)
        return made

    def session(self, factor: float, pin: dict[str, str] | None = None) -> xd.Session:
        rules = xd.Constraints(pin=pin or {})
        return xd.compile(chain(), self.ids(factor), constraints=rules, measure=False)

    def takes(self, factor: float, first: str, second: str) -> float:
        """Virtual seconds of a run on fresh devices: the clocks start at 0."""
        with self.session(factor, {"first": first, "second": second}) as session:
            session.run(FEEDS)
            return max(self.machine.device(name).now for name in {first, second})  # type: ignore[attr-defined]


def test_a_bandwidth_that_flips_is_the_one_at_which_devices_break_even(
    machine: Machine, costs: costing.CostStore
) -> None:
    pair = Pair(machine, costs)
    with pair.session(1.0) as session:
        assert placed(session.plan, "first") == "sim:near"
        found = explain.explain_op(session.plan, "first")
    flip = next(f for f in found.flips if f.knob == "bandwidth")
    assert (flip.at, flip.device) == ("sim:far", "sim:far")
    assert flip.value is not None
    low, high = 1.0, 1024.0

    def far_pays(factor: float) -> bool:
        near, far = (pair.takes(factor, f"sim:{name}", f"sim:{name}") for name in ("near", "far"))
        return far < near

    assert not far_pays(low)
    assert far_pays(high)
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        if not far_pays(middle):
            low = middle
        else:
            high = middle
    assert flip.value == pytest.approx(high, rel=0.2)


def test_keeping_an_op_on_the_runner_up_takes_longer_by_the_margin(
    machine: Machine, costs: costing.CostStore
) -> None:
    pair = Pair(machine, costs)
    with pair.session(1.0) as session:
        found = explain.explain_op(session.plan, "second", 2.0)
    assert found.runner_up == "sim:far"
    assert (found.sigmas or 0) > 0
    with pair.session(1.0, {"second": "sim:far"}) as session:
        first = placed(session.plan, "first")
    took = pair.takes(1.0, first, "sim:far") - pair.takes(1.0, "sim:near", "sim:near")
    assert took == pytest.approx(found.margin or 0, rel=0.1)
