"""Rehearsing plans, settling on the one that measures fastest, and planning again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime import costing, prepare, settle
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.runtime.prediction import run_mark
from crossdock.runtime.ready import PATIENCE, WINDOW, Watch
from crossdock.runtime.rehearsal import Contender
from crossdock.scheduler import CostModel
from tests.runtime.conftest import Machine

Feeds = {"x": np.ones((64, 64), np.float32)}


def graph() -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (64, 64))
    left, right = b.relu(b.matmul(x, x, label="a")), b.tanh(b.matmul(x, x, label="b"))
    return b.build({"y": b.add(left, right, label="sum")})


Speeds = Callable[[frozenset[str]], float]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speeds], list[frozenset[str]]]:
    """Rehearsals on simulated devices that measure what a function of the devices used says."""

    def install(seconds: Speeds) -> list[frozenset[str]]:
        seen: list[frozenset[str]] = []

        def rehearse(
            run: object, plan: Plan, graph: Graph, inputs: Graph, devices: Mapping[str, Any],
            model: CostModel, budget_s: float, *, anew: bool = False,
        ) -> float:  # fmt: skip
            used = frozenset(s.device for s in plan.launches())
            seen.append(used)
            model.record_many(*run_mark(plan), [seconds(used)] * 5, running=True, anew=anew)
            return seconds(used)

        def compare_runs(
            contenders: Sequence[Contender], inputs: Graph, model: CostModel, budget_s: float
        ) -> None:
            for c in contenders:
                rehearse(c.run, c.plan, c.graph, inputs, c.devices, model, budget_s, anew=True)

        monkeypatch.setattr(settle, "rehearse", rehearse)
        monkeypatch.setattr(settle, "compare_runs", compare_runs)
        monkeypatch.setattr(prepare, "_simulated", lambda devices: False)
        return seen

    return install


def fast(machine: Machine) -> str:
    return machine.sim("fast", speed_flops=1e13, bandwidth=1e13, launch_s=1e-9, link_latency=1e-9)


def test_a_rehearsed_plan_predicts_what_it_measured(machine: Machine, pretend: Any) -> None:
    seen = pretend(lambda used: 0.25)
    with xd.compile(graph(), ["cpu:0", fast(machine)]) as session:
        plan = session.plan
        assert plan.source == "measured"
        assert plan.predicted == pytest.approx(0.25, rel=0.01)
        assert plan.low <= 0.25 <= plan.high
        assert len(seen) >= 1
        out = session.run(Feeds)["y"]
    np.testing.assert_allclose(out, np.maximum(64.0, 0) + np.tanh(64.0), rtol=1e-5)


def test_a_plan_that_does_not_keep_its_promise_gives_way(machine: Machine, pretend: Any) -> None:
    device = fast(machine)
    pretend(lambda used: 0.5 if device in used else 1e-6)
    with xd.compile(graph(), ["cpu:0", device]) as session:
        assert {s.device for s in session.plan.launches()} == {"cpu:0"}
        assert session.plan.predicted == pytest.approx(1e-6, rel=0.1)
        session.run(Feeds)
        assert any("planned again before the first run" in n for n in session.receipt.notes)


def test_what_another_session_measured_is_known(machine: Machine, pretend: Any) -> None:
    device = fast(machine)
    seen = pretend(lambda used: 0.5 if device in used else 1e-6)
    counts = []
    for _ in range(2):
        with xd.compile(graph(), ["cpu:0", device]) as session:
            assert {s.device for s in session.plan.launches()} == {"cpu:0"}
        counts.append(len(seen))
    assert counts[0] == counts[1]  # nothing was rehearsed again


def test_without_measuring_nothing_is_rehearsed(machine: Machine, pretend: Any) -> None:
    seen = pretend(lambda used: 0.25)
    with xd.compile(graph(), ["cpu:0", fast(machine)], measure=False) as session:
        assert session.plan.source == "composed"
    assert not seen


def test_a_watch_wants_several_slow_windows_and_learns_patience() -> None:
    watch = Watch(high=1.0)
    assert not any(watch.note(0.9) for _ in range(10 * WINDOW))
    slow = [watch.note(1.1) for _ in range(PATIENCE * WINDOW)]
    assert slow.index(True) == PATIENCE * WINDOW - 1
    slow = [watch.note(1.1) for _ in range(2 * PATIENCE * WINDOW)]
    assert slow.index(True) == 2 * PATIENCE * WINDOW - 1


def test_spikes_do_not_wake_a_watch() -> None:
    watch = Watch(high=1.0)
    assert not any(watch.note(100.0 if k % 20 == 0 else 0.9) for k in range(40 * WINDOW))


def test_runs_that_stay_too_slow_are_planned_again(machine: Machine, pretend: Any) -> None:
    device = fast(machine)
    times = {True: 1e-9, False: 1.0}  # by whether the device takes part
    pretend(lambda used: times[device in used])
    with xd.compile(graph(), ["cpu:0", device]) as session:
        assert device in {s.device for s in session.plan.launches()}
        times.update({True: 2.0, False: 1e-3})  # now the device is slow
        for _ in range(PATIENCE * WINDOW):
            session.run(Feeds)
        for _ in range(500):
            if {s.device for s in session.plan.launches()} == {"cpu:0"}:
                break
            time.sleep(0.02)
        session.run(Feeds)
        (note,) = [n for n in session.receipt.notes if "planned again after" in n]
        assert "predicted were" in note
        assert {s.device for s in session.plan.launches()} == {"cpu:0"}


def test_a_real_rehearsal_records_steps_and_runs(costs: costing.CostStore) -> None:
    with xd.compile(graph(), ["cpu:0"]) as session:
        plan = session.plan
        assert plan.source == "measured"
        model, calls = costs.model, costing.op_calls(session.ready().program.graph)
        fingerprint = plan.device("cpu:0").fingerprint
        for step in plan.launches():
            key = calls[step.name].key()
            assert model.samples(fingerprint, step.kernel, key, running=True)
        before = len(model.samples(*run_mark(plan), running=True))
        assert before >= 3
        assert model.pace(fingerprint) > 0
        first = plan.launches()[-1]
        key = calls[first.name].key()
        count = len(model.samples(fingerprint, first.kernel, key, running=True))
        session.profile(Feeds)
        assert len(model.samples(fingerprint, first.kernel, key, running=True)) == count + 1
        made = session.estimate()
        assert 0 < made.low <= made.seconds <= made.high
