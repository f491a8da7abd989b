"""Largest shares and residency labels: kept by every plan, or refused with op, label and fix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.runtime import costing, rules
from crossdock.runtime.errors import NoPlacement, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.prepare import simplify
from crossdock.scheduler import DeviceRates
from tests.runtime.strategies import exact_graphs
from tests.runtime.test_planner import CPU, FAST, A, B, target, targets, two_branches, where

SLOW = DeviceRates({"*": 1e9}, 1e9, 1e-6)


def plan_of(graph: Graph, **constraints: object) -> Plan:
    rated = target((CPU, SLOW), (A, FAST), (B, FAST))
    given_ = Constraints(**constraints)  # type: ignore[arg-type]
    return make_plan(graph, rated, Options(constraints=given_))


def private() -> Graph:
    """x -> secret -> reshape -> reader -> product with a weight."""
    b = xd.GraphBuilder("private")
    x = b.input("x", (64, 64))
    secret = b.matmul(x, b.constant(np.eye(64, dtype=np.float32)), label="secret")
    seen = b.matmul(b.reshape(secret, (64, 64)), x, label="reader")
    return b.build({"y": b.matmul(seen, seen, label="after")})


def test_a_share_is_kept_and_the_rest_goes_elsewhere() -> None:
    free = plan_of(private())
    most = max(set(where(free).values()), key=list(where(free).values()).count)
    kept = plan_of(private(), max_share={most: 0.5})
    seconds = {s.name: s.seconds for s in kept.launches()}
    share = sum(v for n, v in seconds.items() if where(kept)[n] == most) / sum(seconds.values())
    assert share <= 0.51  # uploads of weights count in a device's seconds, a little
    assert kept.predicted >= free.predicted


def test_a_share_that_nothing_keeps_is_refused() -> None:
    with pytest.raises(NoPlacement, match="at most 0% of the ops' seconds"):
        plan_of(private(), max_share={CPU.id: 0.0, A.id: 0.0, B.id: 0.0})


@pytest.mark.parametrize("given_", [{"gpu:9": 0.5}, {"cpu:0": 1.5}, {"cpu:0": -0.1}])
def test_a_wrong_share_is_refused(given_: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="max_share gives"):
        plan_of(private(), max_share=given_)


def test_a_labelled_value_and_what_reads_it_stay() -> None:
    placed = where(plan_of(private(), residency={"secret": [HOST]}))
    assert placed["secret"] == placed["reader"] == HOST
    assert placed["after"] != HOST  # a value of its own: free to go


def test_a_value_may_stay_off_the_host() -> None:
    plan = plan_of(private(), residency={"secret": A.id})
    assert where(plan)["secret"] == where(plan)["reader"] == A.id
    assert all(c.name != "secret" for c in plan.copies())


def test_an_input_may_be_labelled() -> None:
    placed = where(plan_of(private(), residency={"x": HOST}))
    assert placed["secret"] == placed["reader"] == HOST


def test_a_violation_names_the_op_the_label_and_the_fix() -> None:
    with pytest.raises(NoPlacement) as caught:
        plan_of(private(), residency={"secret": HOST}, pin={"reader": A.id})
    said = str(caught.value)
    assert "reader (matmul)" in said
    assert "residency 'secret' keeps the value of 'secret' on cpu:0" in said
    assert "lift the constraint" in said


def test_an_output_off_the_host_is_refused() -> None:
    with pytest.raises(NoPlacement, match=r"it is the graph's output 'y'.*add cpu:0 to the label"):
        plan_of(private(), residency={"after": A.id})


def test_an_input_off_the_host_is_refused() -> None:
    with pytest.raises(NoPlacement, match=r"the graph's input 'x', which lies on cpu:0: add cpu:0"):
        plan_of(private(), residency={"x": A.id})


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"nothing": HOST}, "matches no op and no input"),
        ({"secret": "gpu:9"}, "names gpu:9; there are"),
        ({"secret": []}, "names no device"),
        ({"secret": [A.id, B.id]}, "exchange values through cpu:0"),
    ],
)
def test_a_wrong_label_is_refused(labels: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan_of(private(), residency=labels)


def test_passes_leave_labelled_ops_and_their_readers() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (8,))
    y = b.tanh(b.relu(b.exp(x, label="secret"), label="reader"), label="after")
    graph = b.build({"y": y})
    kept = {n.name for n in simplify(graph, Constraints(residency={"secret": HOST})).nodes}
    assert {"secret", "reader"} <= kept
    assert len(simplify(graph, Constraints()).nodes) == 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_plan_breaks_a_label(data: st.DataObject) -> None:
    graph, on = data.draw(exact_graphs()), data.draw(targets())
    names = [n.name for n in graph.nodes if not costing.is_alias(n)]
    if not names:
        return
    name = data.draw(st.sampled_from(names))
    homes = {HOST, data.draw(st.sampled_from(sorted(d.id for d in on.devices)))}
    given_ = Constraints(residency={name: sorted(homes)})
    try:
        plan = make_plan(graph, replace(on, asked=on.asked | homes), Options(constraints=given_))
    except PlanError:
        return
    bound = rules.named(graph, given_)
    assert all(where(plan)[n] in homes for n in bound if n in where(plan))
    labelled = {v for n in graph.nodes if rules.matches(name, n) for v in n.outputs}
    assert all({c.src, c.dst} <= homes for c in plan.copies() if c.name in labelled)


def test_a_session_keeps_a_label(costs: costing.CostStore) -> None:
    graph = two_branches()
    rule = Constraints(residency={"left": HOST})
    with xd.compile(graph, "cpu:0", constraints=rule, measure=False) as session:
        assert session.run({"x": np.ones((64, 64), np.float32)})["y"].shape == (64, 64)
