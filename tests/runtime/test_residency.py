"""Residency of inputs that lie on devices, and of outputs that stay there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices.base import Device
from crossdock.devices.sim import Fault
from crossdock.kernels.reference import evaluate
from crossdock.runtime.device_array import HostFeeds
from crossdock.runtime.errors import DeviceError, FeedError, NoPlacement, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.residency import Residency
from crossdock.runtime.session import Session
from tests.runtime.conftest import Machine
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_exchange import on
from tests.runtime.test_executor import ADVERSARIAL, placed_graphs

pytestmark = pytest.mark.usefixtures("no_hang")
HOST, A, B = "cpu:0", "sim:a", "sim:b"
X = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


@pytest.fixture
def pair(machine: Machine) -> tuple[Device, Device]:
    """Two devices without a way between them but the host."""
    return machine.device(machine.sim("a")), machine.device(machine.sim("b"))


def two_ops() -> Graph:
    """x -> seen = -x -> after = |seen|, and the other input w, which after is added to."""
    b = xd.GraphBuilder("two ops")
    x, w = b.input("x", X.shape), b.input("w", X.shape)
    after = b.abs(b.neg(x, label="seen"), label="after")
    return b.build({"y": b.add(after, w, label="sum")})


def compiled(label: dict[str, Any], **options: Any) -> Session:
    """``two_ops`` on both devices and the host, op by op."""
    rules = xd.Constraints(residency=label, pin=options.pop("pin", {}))
    options.setdefault("devices", [HOST, A, B])
    return xd.compile(two_ops(), constraints=rules, measure=False, **options)


def ends(session: Session, name: str) -> set[str]:
    """The devices that copies of a value begin and end on."""
    steps = [s for s in session.plan.steps if s.kind == "copy" and s.name == name]
    return {device for s in steps for device in (s.src, s.dst)}


@pytest.mark.parametrize(
    ("label", "lies"),
    [
        ({"x": HOST}, A),
        ({"x": [HOST, B]}, A),
        ({"x": B}, A),
        ({"x": A}, HOST),
        ({"?": [B, HOST]}, A),
    ],
)
def test_an_input_that_lies_where_it_is_barred_is_refused(
    pair: tuple[Device, Device], label: dict[str, Any], lies: str
) -> None:
    with pytest.raises(NoPlacement) as caught:
        compiled(label, feeds_on={"x": lies})
    said = str(caught.value)
    assert f"residency {next(iter(label))!r}" in said
    assert f"input 'x', which lies on {lies}: add {lies} to the label" in said
    assert "\n" not in said


def test_an_input_may_lie_on_a_device_and_never_see_the_host(pair: tuple[Device, Device]) -> None:
    with compiled({"x": A}, feeds_on={"x": A}) as session:
        places = {s.name: s.device for s in session.plan.launches()}
        assert places["seen"] == A
        assert ends(session, "x") <= {A}
        made = session.run({"x": on(pair[0], X), "w": X})
        np.testing.assert_array_equal(made["y"], np.abs(X) + X)
        assert f"{A}->{HOST}" not in session.receipt.links or "x" not in {
            s.name for s in session.plan.copies()
        }


def test_a_label_that_allows_it_holds_for_all_copies(pair: tuple[Device, Device]) -> None:
    with compiled({"x": [A, HOST]}, feeds_on={"x": A}, pin={"after": B}) as session:
        places = {s.name: s.device for s in session.plan.launches()}
        assert places["seen"] in (A, HOST)
        assert ends(session, "x") <= {A, HOST}


@pytest.mark.parametrize("label", ["x", "seen"])
def test_runs_that_have_it_elsewhere_are_refused_before_anything_is_copied(
    pair: tuple[Device, Device], label: str
) -> None:
    a, b = pair
    b_ = xd.GraphBuilder("kept")
    x = b_.input("x", X.shape)
    graph = b_.build({"y": b_.neg(x, label="seen")})
    rules = xd.Constraints(residency={label: A, "seen": A})
    told: dict[str, Any] = {"feeds_on": A, "outputs": "device"}
    with xd.compile(graph, [HOST, A, B], constraints=rules, measure=False, **told) as session:
        kept = session.run({"x": on(a, X)})["y"]
        assert kept.device == A
        assert session.profile({"x": on(a, X)}).outputs["y"].device == A  # type: ignore[attr-defined]
        with pytest.raises(FeedError, match=rf"residency .* output 'y', which goes to {HOST}"):
            session.run({"x": on(a, X)}, outputs="host")
        if label == "x":
            for value, where in ((X, HOST), (on(b, X), B)):
                with pytest.raises(FeedError, match=f"input 'x', which lies on {where}: add"):
                    session.run({"x": value})
                with pytest.raises(FeedError, match=f"input 'x', which lies on {where}: add"):
                    session.submit({"x": value}).result()
        np.testing.assert_array_equal(session.run({"x": on(a, X)})["y"].numpy(), -X)


def test_an_output_that_is_barred_from_the_host_has_to_stay(pair: tuple[Device, Device]) -> None:
    with pytest.raises(NoPlacement, match=r"output 'y', which goes to cpu:0: .*outputs='device'"):
        compiled({"sum": A})
    with compiled({"sum": A}, outputs="device") as session:
        made = session.run({"x": X, "w": X})["y"]
        assert (made.device, ends(session, made and "sum")) == (A, {A})
        np.testing.assert_array_equal(made.numpy(), np.abs(X) + X)


@pytest.mark.parametrize("looks", [{"check_finite": True}, {"verify": "transfers"}])
def test_values_kept_off_the_host_are_not_looked_at_there(
    pair: tuple[Device, Device], looks: dict[str, Any]
) -> None:
    with pytest.raises(PlanError, match=r"residency 'x' keeps values off cpu:0"):
        compiled({"x": A}, feeds_on={"x": A}, **looks)
    with compiled({"x": [A, HOST]}, feeds_on={"x": A}, **looks) as session:
        made = session.run({"x": on(pair[0], X), "w": X})
        np.testing.assert_array_equal(made["y"], np.abs(X) + X)


def test_a_plan_that_is_given_is_held_to_the_labels(pair: tuple[Device, Device]) -> None:
    told: dict[str, Any] = {"feeds_on": {"x": A}, "pin": {"seen": A, "after": B}}
    with compiled({}, **told) as session:
        plan = session.plan
    del told["feeds_on"]
    for label in ({"x": A}, {"seen": [HOST, A, B]}):
        with compiled(label, plan=plan, **told) as session:
            made = session.run({"x": on(pair[0], X), "w": X})
            np.testing.assert_array_equal(made["y"], np.abs(X) + X)
    for label, said in (
        ({"x": [HOST, B]}, "input 'x', which lies on sim:a"),
        ({"after": [HOST, A]}, "keeps its result on cpu:0, sim:a, and the plan has 'after' on"),
        ({"seen": B}, "the plan has 'seen' on sim:a"),
    ):
        with pytest.raises(NoPlacement, match=said):
            compiled(label, plan=plan, **told)


def test_a_plan_that_copies_a_labelled_value_away_is_refused(pair: tuple[Device, Device]) -> None:
    del pair
    with compiled({}, pin={"seen": A, "after": A, "sum": HOST}) as session:
        plan, graph = session.plan, session.ready().graph
    rule = Residency({"after": [HOST, A]}, graph)
    assert rule.broken(plan) == ""
    there = next(s for s in plan.steps if s.kind == "copy" and s.dst == HOST)
    astray = replace(there, src=A, dst=B, device=B)
    bad = replace(plan, steps=(*plan.steps, astray))
    assert rule.broken(bad).endswith(f"and the plan copies it {A}->{B}")
    parts = replace(plan, steps=tuple(s for s in plan.steps if s.name != "after"))
    assert "the plan has 'after' in parts" in rule.broken(parts)


def test_a_run_is_not_rescued_through_the_host_with_what_may_not_be_there(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fetch = HostFeeds.__getitem__
    monkeypatch.setattr(
        HostFeeds, "__getitem__", lambda self, name: seen.append(name) or fetch(self, name)
    )
    a = machine.device(machine.sim("a"))
    b = xd.GraphBuilder("there and back")
    x = b.input("x", X.shape)
    far = b.abs(b.neg(x, label="seen"), label="far")
    graph = b.build({"y": b.add(far, x, label="back")})
    pins = {"seen": A, "far": B, "back": A}
    for homes, lives in ((A, False), ([A, HOST], True)):
        xd.rescan()
        machine.sim("b", faults=(Fault("lost", 0),))
        rules = xd.Constraints(residency={"x": homes}, pin=pins)
        with xd.compile(
            graph, [HOST, A, B], constraints=rules, measure=False, feeds_on={"x": A}
        ) as session:
            seen.clear()
            if lives:
                np.testing.assert_array_equal(session.run({"x": on(a, X)})["y"], np.abs(X) + X)
                assert session.receipt.recoveries
                assert seen == ["x"]
            else:
                with pytest.raises(DeviceError, match="residency 'x' keeps the value of 'x' on"):
                    session.run({"x": on(a, X)})
                assert seen == []


@ADVERSARIAL
@given(placed_graphs(), st.data())
def test_no_plan_has_a_labelled_value_elsewhere(
    machine: Machine, made: tuple[Graph, dict[str, int]], data: st.DataObject
) -> None:
    graph, _ = made
    ids = [HOST, machine.sim("a", peers=("b",)), machine.sim("b", peers=("a",))]
    names = [*graph.inputs, *(n.name for n in graph.nodes)]
    label = data.draw(st.sampled_from(names))
    homes = data.draw(st.sets(st.sampled_from(ids), min_size=1))
    lies = {name: data.draw(st.sampled_from(ids)) for name in graph.inputs}
    outputs: Any = data.draw(st.sampled_from(["host", "device"]))
    rules = xd.Constraints(residency={label: sorted(homes)})
    try:
        session = xd.compile(
            graph, ids, constraints=rules, measure=False, feeds_on=lies, outputs=outputs
        )
    except PlanError:
        return
    with session:
        rule = Residency(rules.residency, session.ready().graph)
        assert rule.broken(session.plan) == ""
        feeds = whole_feeds(graph, 1)
        placed = {n: on(machine.device(lies[n]), np.asarray(v)) for n, v in feeds.items()}
        got = session.run(placed)
        for name, value in evaluate(graph, feeds).items():
            found: Any = got[name]
            np.testing.assert_array_equal(found if outputs == "host" else found.numpy(), value)
