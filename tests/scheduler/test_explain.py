"""Decisions: what each candidate would have meant, and what moving a task does."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.scheduler import DeviceSpec, LinkSpec, Problem, TaskSpec, schedule
from crossdock.scheduler.timeline import Timeline
from tests.scheduler.problems import LINKS, problems


@settings(max_examples=40)
@given(problems(), st.sampled_from(LINKS))
def test_every_decision_agrees_with_the_schedule(problem: Problem, links: str) -> None:
    made = schedule(problem, links=links, compiled=False)  # type: ignore[arg-type]
    assert len(made.decisions) == problem.n
    for t, decision in enumerate(made.decisions):
        assert decision.winner == made.device[t]
        assert len(decision.candidates) == problem.m
        chosen = decision.candidates[decision.winner]
        assert chosen.finish == pytest.approx(made.finish[t])
        assert chosen.exec_s == problem.cost[t, decision.winner]
        for d, other in enumerate(decision.candidates):
            assert (other.exec_s is None) == math.isinf(problem.cost[t, d])
            if other.finish is not None and other.exec_s is not None:
                begin = other.ready + other.queue_wait
                assert other.finish == pytest.approx(begin + other.exec_s)
                assert other.transfer_in >= -1e-9


@settings(max_examples=40)
@given(problems(), st.sampled_from(LINKS))
def test_a_candidate_begins_in_the_first_gap_that_the_others_leave(
    problem: Problem, links: str
) -> None:
    made = schedule(problem, links=links, compiled=False)  # type: ignore[arg-type]
    for t, decision in enumerate(made.decisions):
        for d, other in enumerate(decision.candidates):
            if d == decision.winner or other.finish is None or other.exec_s is None:
                continue
            lane = Timeline()
            on = [u for u in range(problem.n) if u != t]
            on = [u for u in on if problem.resource[made.device[u]] == problem.resource[d]]
            for u in sorted(on, key=lambda u: (made.start[u], made.finish[u])):
                lane.insert(len(lane.starts), made.start[u], made.finish[u])
            begin, _ = lane.earliest(other.ready, other.exec_s)
            assert other.ready + other.queue_wait == pytest.approx(begin)


def two_devices() -> Problem:
    tasks = [
        TaskSpec("a", {"p": 1.0}, reasons={"q": "no kernel for int8"}),
        TaskSpec("b", [4.0, 2.0]),
        TaskSpec("c", {"p": 1.0}),
    ]
    links = [LinkSpec("p", "q", 0.5, 2.0, both=True)]
    devices = [DeviceSpec("p"), DeviceSpec("q")]
    return Problem.build(tasks, [(0, 1, 1.0), (1, 2, 1.0)], devices, links)


def test_a_decision_names_costs_waits_margin_and_reasons() -> None:
    made = schedule(two_devices(), "heft")
    decision = made.decision("b")
    stay, go = decision.candidates
    assert decision.winner == 1
    assert (go.exec_s, go.transfer_in, go.ready, go.queue_wait) == (2.0, 1.0, 2.0, 0.0)
    assert (stay.exec_s, stay.transfer_in, stay.finish) == (4.0, 0.0, 5.0)
    assert decision.margin == pytest.approx(1.0)
    assert made.decision("a").candidates[1].reason == "no kernel for int8"
    assert made.decision("a").margin is None


def test_moving_a_task_gives_the_makespan_of_the_other_plan() -> None:
    made = schedule(two_devices(), "heft")
    assert made.makespan == pytest.approx(1.0 + 1.0 + 2.0 + 1.0 + 1.0)
    assert made.makespan_if("b", "q") == made.makespan
    assert made.makespan_if("b", "p") == pytest.approx(1.0 + 4.0 + 1.0)
    assert math.isinf(made.makespan_if("a", "q"))


def test_a_candidate_waits_for_a_busy_device() -> None:
    tasks = [TaskSpec("long", {"p": 5.0}), TaskSpec("short", [1.0, 4.0])]
    problem = Problem.build(
        tasks, [], [DeviceSpec("p"), DeviceSpec("q")], [LinkSpec("p", "q", 0.0, 1.0, both=True)]
    )
    made = schedule(problem, "heft")
    assert made.decision("short").winner == 1
    assert made.decision("short").candidates[0].queue_wait == pytest.approx(5.0)
    assert made.decision("short").margin == pytest.approx(2.0)
