"""Plans for inputs that lie on devices, and outputs that stay on those that make them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices.base import Device
from crossdock.devices.registry import lose
from crossdock.devices.sim import SimSpec
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing
from crossdock.runtime.conduct import conducts
from crossdock.runtime.errors import FeedError, NotFinite, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.order import with_waits
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.program import Program
from crossdock.runtime.ready import WINDOW, Ready, make_ready
from crossdock.runtime.session import Session
from crossdock.runtime.sites import Sites
from crossdock.runtime.split import SplitGraph
from crossdock.runtime.split_choice import Planned
from crossdock.runtime.target import Target
from tests.runtime.conftest import Machine
from tests.runtime.lazy_device import LazyEvent, World
from tests.runtime.spread import Spread
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_exchange import on
from tests.runtime.test_executor import ADVERSARIAL, placed_graphs
from tests.runtime.test_session_staged import reshaping
from tests.runtime.test_split_choice import known

pytestmark = pytest.mark.usefixtures("no_hang")
A, B = "sim:a", "sim:b"
SIZE = 256
VALUES = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE) % 7 - 3
BYTES = VALUES.nbytes


def steps_of(session: Session) -> list[tuple[str, str, str, str]]:
    """What the copies of a plan do."""
    return [(s.moves, s.name, s.src, s.dst) for s in session.plan.steps if s.kind == "copy"]


def one_op(**options: Any) -> Session:
    """y = -x, wherever that is planned."""
    b = xd.GraphBuilder()
    graph = b.build({"y": b.neg(b.input("x", VALUES.shape), label="neg")})
    options.setdefault("devices", [A, B])
    return xd.compile(graph, **options)


def pair(machine: Machine, **near: Any) -> tuple[Device, Device]:
    """Two devices alike; what is given of the second one."""
    return machine.device(machine.sim("a")), machine.device(machine.sim("b", **near))


def until(done: Callable[[], bool]) -> None:
    """Wait for something that is done in the background."""
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- what is planned ------------------------------------------------------------------------------


def test_what_lies_on_a_device_and_stays_there_crosses_no_link(machine: Machine) -> None:
    a, _ = pair(machine)
    with one_op(feeds_on=A, outputs="device") as session:
        assert steps_of(session) == [("take", "x", A, A), ("keep", "neg", A, A)]
        assert session.plan.copies() == ()
        assert session.plan.feeds_on == {"x": A}
        made = session.run({"x": on(a, VALUES)})["y"]
        assert made.device == A
        np.testing.assert_array_equal(made.numpy(), -VALUES)
        assert (session.receipt.transfers, session.receipt.avoided) == ({}, {})
        assert "take x on sim:a" in session.plan.explain()


def test_runs_that_differ_from_what_was_planned_are_right_and_told_of(machine: Machine) -> None:
    a, b = pair(machine)
    with one_op(feeds_on=A, outputs="device") as session:
        host = session.run({"x": VALUES}, outputs="host")["y"]
        np.testing.assert_array_equal(host, -VALUES)
        assert session.receipt.links == {f"cpu:0->{A}": BYTES, f"{A}->cpu:0": BYTES}
        far = session.run({"x": on(b, VALUES)})["y"]
        np.testing.assert_array_equal(far.numpy(), -VALUES)
        assert session.receipt.links == {f"{B}->cpu:0": BYTES, f"cpu:0->{A}": BYTES}
        profiled = session.profile({"x": on(a, VALUES)})
        stayed: Any = profiled.outputs["y"]  # as it was compiled to
        assert stayed.device == A
        np.testing.assert_array_equal(stayed.numpy(), -VALUES)
    with one_op(devices=[A]) as session:  # and the other way round
        kept = session.run({"x": on(a, VALUES)}, outputs="device")["y"]
        np.testing.assert_array_equal(kept.numpy(), -VALUES)
        assert session.receipt.avoided == {f"cpu:0->{A}": BYTES, f"{A}->cpu:0": BYTES}


def test_predictions_are_of_the_copies_that_are_made(machine: Machine) -> None:
    a, b = pair(machine, peers=("a",))
    spec: SimSpec = b.spec  # type: ignore[attr-defined]
    rules = xd.Constraints(pin={"neg": B})
    far = spec.transfer_seconds(BYTES)
    with one_op(constraints=rules) as plain, one_op(constraints=rules, feeds_on=A) as peer:
        assert peer.plan.copies()[0].seconds == pytest.approx(spec.peer_seconds(BYTES), rel=0.05)
        assert plain.plan.copies()[0].seconds == pytest.approx(far, rel=0.05)
        saved = plain.estimate().seconds - peer.estimate().seconds
        assert saved == pytest.approx(far - spec.peer_seconds(BYTES), rel=0.05)
        peer.run({"x": on(a, VALUES)})
        link = peer.receipt.transfers[f"{A}->{B}"]
        assert (link.nbytes, link.copies) == (BYTES, 1)
        assert link.predicted == pytest.approx(spec.peer_seconds(BYTES), rel=0.05)
        before = peer.estimate().seconds
    with one_op(constraints=rules, feeds_on=A, outputs="device") as kept:
        assert before - kept.estimate().seconds == pytest.approx(far, rel=0.05)


def test_without_a_way_between_them_it_passes_the_host_in_two_copies(machine: Machine) -> None:
    a, _ = pair(machine)
    with one_op(constraints=xd.Constraints(pin={"neg": B}), feeds_on=A) as session:
        assert steps_of(session)[:2] == [("take", "x", A, "cpu:0"), ("copy", "x", "cpu:0", B)]
        np.testing.assert_array_equal(session.run({"x": on(a, VALUES)})["y"], -VALUES)
        assert session.receipt.links == {
            f"{A}->cpu:0": BYTES, f"cpu:0->{B}": BYTES, f"{B}->cpu:0": BYTES
        }  # fmt: skip
        np.testing.assert_array_equal(session.run({"x": VALUES})["y"], -VALUES)
        assert session.receipt.links == {f"cpu:0->{B}": BYTES, f"{B}->cpu:0": BYTES}


def test_an_op_goes_to_where_its_input_lies(machine: Machine) -> None:
    pair(machine, speed_flops=5e11, bandwidth=5e10)  # half as fast
    for where, home in (("cpu:0", A), (B, B), (A, A)):
        with one_op(feeds_on=where, outputs="device") as session:
            assert {s.device for s in session.plan.launches()} == {home}


def test_a_device_that_was_not_asked_for_holds_inputs_and_computes_nothing(
    machine: Machine,
) -> None:
    a, _ = pair(machine, bandwidth=1e9, launch_s=1e-3, peers=("a",))
    with one_op(devices=[B], feeds_on=A) as session:
        assert {s.device for s in session.plan.launches()} == {B}
        assert "holds inputs, and is not among" in session.plan.explain_op("neg")
        np.testing.assert_array_equal(session.run({"x": on(a, VALUES)})["y"], -VALUES)
        assert session.receipt.links[f"{A}->{B}"] == BYTES


@pytest.mark.parametrize("deterministic", [False, True])
def test_it_computes_nothing_where_it_would_be_the_best_either(
    machine: Machine, deterministic: bool
) -> None:
    pair(machine, bandwidth=1e9, launch_s=1e-3, peers=("a",))
    with one_op(devices=[B], feeds_on=A, outputs="device", deterministic=deterministic) as session:
        assert {s.device for s in session.plan.launches()} == {B}


def test_a_plan_for_devices_is_kept_and_given_again(machine: Machine) -> None:
    a, _ = pair(machine, peers=("a",))
    rules = xd.Constraints(pin={"neg": B})
    with one_op(constraints=rules, feeds_on=A, outputs="device") as session:
        plan = xd.Plan.loads(session.plan.dumps())
    assert plan.feeds_on == {"x": A}
    with one_op(constraints=rules, plan=plan) as again:
        np.testing.assert_array_equal(again.run({"x": on(a, VALUES)})["y"], -VALUES)
        assert f"cpu:0->{B}" not in again.receipt.links
    for i, step in enumerate(plan.steps):
        changes: list[dict[str, Any]] = [
            {"inputs": ("x",)} if step.arrives else {"inputs": ()},
            {"outputs": ()} if not step.departs else {"outputs": (step.name,)},
            {"src": "cpu:0"},
            {"nbytes": 0},
            {"queue": f"{step.device}/compute"},
        ]
        for change in changes if step.kind == "copy" else ():
            bad = replace(
                plan, steps=(*plan.steps[:i], replace(step, **change), *plan.steps[i + 1 :])
            )
            with pytest.raises(PlanError, match="damaged"):
                one_op(constraints=rules, plan=bad)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"feeds_on": {"q": A}}, r"feeds_on names 'q', no input of .*; it has x"),
        ({"feeds_on": 3}, "give the id of the device that all inputs lie on"),
        ({"feeds_on": {"x": 3}}, "give the id of the device that all inputs lie on"),
        ({"feeds_on": "sim:nowhere"}, "no device 'sim:nowhere'"),
        ({"outputs": "gpu"}, "'host' or 'device'; it is 'gpu'"),
    ],
)
def test_what_makes_no_sense_is_refused(machine: Machine, told: Any, said: str) -> None:
    pair(machine)
    with pytest.raises(xd.Error, match=said):
        one_op(**told)


def test_a_staged_graph_takes_its_inputs_on_the_host(machine: Machine) -> None:
    pair(machine)
    with pytest.raises(PlanError, match=r"runs in stages.*compile without feeds_on"):
        xd.compile(reshaping(), "cpu:0", feeds_on=A)


# --- plans of any make ----------------------------------------------------------------------------


@settings(ADVERSARIAL, max_examples=12)
@given(placed_graphs(), st.integers(0, 1 << 16), st.booleans())
def test_answers_hold_wherever_inputs_lie_however_late_work_is_done(
    machine: Machine, made: tuple[Graph, dict[str, int]], seed: int, keep: bool
) -> None:
    spread = Spread(machine, made, seed)
    graph, stays = spread.graph, "device" if keep else "host"
    with spread.session(stays) as session:
        for turn in range(3):
            feeds = whole_feeds(graph, seed + turn)
            want = evaluate(graph, feeds)
            placed = spread.placed(feeds, turn)
            how = [stays, "device", "host"][turn]
            got: dict[str, Any] = session.run(placed, outputs=how, timeout=60)
            if turn == 0:
                assert not session.receipt.avoided
            assert list(got) == list(graph.outputs)
            for name, array in got.items():
                found = array if how == "host" else array.numpy()
                np.testing.assert_array_equal(found, want[name], err_msg=name)
                assert found.dtype == want[name].dtype


def passed_on(machine: Machine, seed: int, *, outputs: str) -> tuple[Ready, Graph]:
    """near = -first + last on the host, last copied after -first by one queue; first is put out."""
    b = xd.GraphBuilder()
    first, last = b.input("first", (2, 2)), b.input("last", (2, 2))
    far = b.neg(first, label="far")
    graph = b.build({"y": b.reshape(first, (4,)), "z": b.add(far, last, label="near")})
    a = machine.lazy("a", World(seed))
    known(machine, [a])
    rules = xd.Constraints(pin={"far": A, "near": "cpu:0"})
    sites = Sites({"first": A, "last": A}, ("y", "z") if outputs == "device" else ())
    devices = {name: machine.device(name) for name in ("cpu:0", a)}
    infos = tuple(d.info for d in devices.values())
    target = Target(infos, frozenset(devices), costing.store().model)
    plan = make_plan(graph, target, Options(constraints=rules, sites=sites))
    steps = sorted(plan.steps, key=lambda s: (s.name == "near", s.name == "last"))
    at = {s.index: i for i, s in enumerate(steps)}
    moved = [
        replace(s, index=i, waits=tuple(sorted(at[w] for w in s.waits)))
        for i, s in enumerate(steps)
    ]
    ends = tuple(s.index for s in moved if s.dst == "cpu:0" and s.name != "first")
    near = moved[-1]
    assert (near.name, len(ends)) == ("near", 2)
    moved[-1] = replace(near, waits=ends)
    plan = replace(plan, steps=tuple(with_waits(moved)))
    assert plan.steps[-1].waits == ends[1:], "the one before it is implied"
    made = Planned(SplitGraph(graph), plan)
    return make_ready(graph, made, frozenset(devices), devices, 1, {}), graph


@pytest.mark.parametrize("conducted", [False, True])
@pytest.mark.parametrize("outputs", ["host", "device"])
def test_what_is_fed_on_the_host_is_copied_at_once_and_what_was_asked_for_before_is_waited_for(
    machine: Machine, outputs: str, conducted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = LazyEvent.wait

    def late(self: LazyEvent) -> None:
        time.sleep(0.01)  # who does not wait goes on meanwhile
        wait(self)

    monkeypatch.setattr(LazyEvent, "wait", late)
    for seed in range(4):
        ready, graph = passed_on(machine, seed, outputs=outputs)
        ready.program.devices[A].submits_at_once = conducted
        assert conducts(ready.program) == conducted
        feeds = whole_feeds(graph, seed)
        made = ready.run(feeds, Deadline(None if conducted else 60.0), profile=False)
        for name, value in evaluate(graph, feeds).items():
            np.testing.assert_array_equal(made.outputs[name], value)


# --- inputs that come from elsewhere for long -----------------------------------------------------


def feed_for_long(session: Session, *feeds: Any, runs: int = WINDOW, **options: Any) -> None:
    for i in range(runs):
        session.run({"x": feeds[i % len(feeds)]}, **options)


def test_a_session_plans_again_for_inputs_that_come_from_elsewhere(machine: Machine) -> None:
    _, b = pair(machine, speed_flops=5e11, bandwidth=5e10)
    with one_op(split=False) as session:
        first = session.plan
        assert {s.device for s in first.launches()} == {A}
        value = on(b, VALUES)
        feed_for_long(session, value, runs=WINDOW - 1, outputs="device")
        assert session.plan is first
        feed_for_long(session, value, runs=1, outputs="device")
        until(lambda: session.plan is not first)
        assert {s.device for s in session.plan.launches()} == {B}
        assert session.estimate().seconds < first.predicted
        made = session.run({"x": value}, outputs="device")["y"]
        np.testing.assert_array_equal(made.numpy(), -VALUES)
        assert session.receipt.transfers == {}
        assert any("planned again for runs that have" in note for note in session.receipt.notes)


def test_inputs_that_come_by_turns_change_nothing(machine: Machine) -> None:
    a, b = pair(machine)
    with one_op() as session:
        first = session.plan
        feed_for_long(session, on(a, VALUES), on(b, VALUES), VALUES, runs=3 * WINDOW)
        assert session.ready().drift.count <= 1
        assert session.plan is first


def test_ops_stay_where_they_are_unless_that_is_slower(machine: Machine) -> None:
    _, b = pair(machine)
    with one_op(constraints=xd.Constraints(pin={"neg": A})) as session:
        first = session.plan
        feed_for_long(session, on(b, VALUES))
        until(lambda: session.plan is not first)
        assert {s.device for s in session.plan.launches()} == {A}
        assert session.plan.feeds_on == {"x": B}, "what is predicted is right all the same"
        assert session.ready().drift.patience == 2 * WINDOW


def test_nothing_is_planned_again_where_that_was_ruled_out(machine: Machine) -> None:
    _, b = pair(machine)
    with one_op(deterministic=True) as session:
        assert session.ready().resite is None
        feed_for_long(session, on(b, VALUES))
        assert session.ready().sites == Sites()


@pytest.mark.parametrize("device", ["cpu:0", "opencl:0"])
def test_measured_sessions_plan_again_by_what_they_measure(
    machine: Machine, opencl: Any, device: str
) -> None:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.neg(b.input("x", (64, 64)), label="neg")})
    values = VALUES[:64, :64].copy()
    rules = xd.Constraints(pin={"neg": "opencl:0"})
    with xd.compile(graph, ["cpu:0", "opencl:0"], constraints=rules, measure=0.2) as session:
        first = session.plan
        assert first.source == "measured"
        value = on(machine.device("opencl:0"), values) if device != "cpu:0" else values
        for _ in range(WINDOW):
            session.run({"x": value}, outputs="device")
        until(lambda: session.plan is not first)
        assert session.plan.source == "measured"
        assert session.plan.copies() == (() if device != "cpu:0" else session.plan.copies()[:1])
        made = session.run({"x": value}, outputs="device")["y"]
        np.testing.assert_array_equal(made.numpy(), -values)


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_lost_device_holds_nothing_any_more(machine: Machine) -> None:
    a, b = pair(machine)
    with one_op(feeds_on=B, outputs="device") as session:
        value = on(b, VALUES)
        session.run({"x": value})
        lose(b, "pulled out")
        with pytest.raises(FeedError, match="gone with the device"):
            session.run({"x": value})
        made = session.run({"x": on(a, VALUES)})["y"]
        np.testing.assert_array_equal(made.numpy(), -VALUES)
        assert session.plan.feeds_on == {}
        np.testing.assert_array_equal(session.run({"x": VALUES}, outputs="host")["y"], -VALUES)


def test_inputs_on_devices_are_looked_at_like_others(machine: Machine) -> None:
    a, _ = pair(machine)
    b = xd.GraphBuilder()
    graph = b.build({"y": b.log(b.neg(b.input("x", (4,)), label="neg"), label="log")})
    bad, good = np.array([1, np.nan, 2, 3], np.float32), np.array([1, 2, 3, 4], np.float32)
    with xd.compile(
        graph, A, measure=False, feeds_on=A, check_finite=True, skip_passes=["fuse-elementwise"]
    ) as session:
        made = session.run({"x": on(a, bad)})["y"]  # no op has made it
        assert np.isnan(made).all()
        with pytest.raises(NotFinite, match="'log'"):
            session.run({"x": on(a, good)})


def test_copies_are_verified_where_they_pass_the_host(machine: Machine) -> None:
    a, _ = pair(machine, peers=("a",))
    rules = xd.Constraints(pin={"neg": B})
    with one_op(constraints=rules, feeds_on=A, verify="transfers", measure=False) as session:
        for value in (on(a, VALUES), VALUES):
            np.testing.assert_array_equal(session.run({"x": value})["y"], -VALUES)
            assert f"{A}->{B}" not in session.receipt.links


def forget_takes(self: Program, *, made: Any = Program.ends.func) -> Any:  # type: ignore[attr-defined]
    """An end that is planned is not known of."""
    found = made(self)
    return replace(found, takes={}, keeps={})


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_forgets_what_was_planned_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = pair(machine)
    monkeypatch.setattr(Program, "ends", property(forget_takes))
    with pytest.raises((xd.Error, AssertionError, KeyError)), one_op(feeds_on=A) as session:
        np.testing.assert_array_equal(session.run({"x": on(a, VALUES)})["y"], -VALUES)


@pytest.mark.parametrize("short", [0, 1, 2, 3])
def test_a_plan_that_is_eased_into_its_memory_has_its_ends_where_they_were(
    machine: Machine, short: int
) -> None:
    a, _ = pair(machine)
    b = xd.GraphBuilder()
    x = b.input("x", (64, 64))
    parts = [b.exp(b.neg(x, label=f"neg{i}"), label=f"exp{i}") for i in range(4)]
    graph = b.build({"y": b.max(b.max(parts[0], parts[1]), b.max(parts[2], parts[3]))})
    values = VALUES[:64, :64].copy()
    options: dict[str, Any] = {"measure": False, "feeds_on": A, "outputs": "device"}
    with xd.compile(graph, A, skip_passes=["fuse-elementwise"], **options) as whole:
        peak = whole.plan.device(A).peak_bytes
        want = whole.run({"x": on(a, values)}, outputs="host")["y"]
    rules = xd.Constraints(memory={A: peak - short * values.nbytes})
    with xd.compile(
        graph, A, skip_passes=["fuse-elementwise"], constraints=rules, runs_at_once=1, **options
    ) as session:
        assert bool(session.plan.rungs) is (short > 0)
        for value in (on(a, values), values):
            got = session.run({"x": value}, outputs="host")["y"]
            np.testing.assert_array_equal(got, want)
