"""The cheapest total on two devices."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.scheduler import DeviceSpec, LinkSpec, Problem, TaskSpec, schedule
from crossdock.scheduler.labels import Labels
from crossdock.scheduler.mincut import cheapest_pair_labels

COSTS = st.floats(0.1, 10.0)


@st.composite
def pairs(draw: st.DrawFn) -> Problem:
    """Up to seven tasks on two devices with links of different speeds each way."""
    n = draw(st.integers(1, 7))
    tasks = [TaskSpec(str(t), [draw(COSTS), draw(COSTS)]) for t in range(n)]
    size = [draw(COSTS) for _ in range(n)]
    ways = [(a, b) for b in range(n) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(ways), unique=True, max_size=10)) if ways else []
    links = [LinkSpec("a", "b", 0.1, draw(COSTS)), LinkSpec("b", "a", 0.2, draw(COSTS))]
    rows = [(a, b, size[a]) for a, b in edges]
    return Problem.build(tasks, rows, [DeviceSpec("a"), DeviceSpec("b")], links)


@settings(max_examples=60)
@given(pairs())
def test_no_labelling_is_cheaper_in_total(problem: Problem) -> None:
    labels = Labels(problem)
    totals = {}
    for device in itertools.product(range(2), repeat=problem.n):
        labels.device = list(device)
        totals[device] = labels.total()
    found = tuple(cheapest_pair_labels(problem).tolist())
    assert totals[found] == pytest.approx(min(totals.values()), rel=1e-9)


def test_a_task_that_one_device_cannot_run_stays_on_the_other() -> None:
    tasks = [TaskSpec("x", {"a": 5.0}), TaskSpec("y", {"b": 5.0}), TaskSpec("z", [5.0, 1.0])]
    links = [LinkSpec("a", "b", 1.0, 1.0, both=True)]
    devices = [DeviceSpec("a"), DeviceSpec("b")]
    problem = Problem.build(tasks, [("x", "y", 9.0), ("y", "z", 9.0)], devices, links)
    assert cheapest_pair_labels(problem).tolist() == [0, 1, 1]


def test_on_a_chain_the_total_is_the_shortest_makespan() -> None:
    tasks = [TaskSpec(str(t), [3.0, 1.0] if t % 3 else [1.0, 2.0]) for t in range(9)]
    rows = [(t, t + 1, 0.5) for t in range(8)]
    devices = [DeviceSpec("a"), DeviceSpec("b")]
    links = [LinkSpec("a", "b", 0.1, 1.0, both=True)]
    problem = Problem.build(tasks, rows, devices, links)
    labels = Labels(problem)
    labels.device = cheapest_pair_labels(problem).tolist()
    best = schedule(problem, links="serial", compiled=True)
    assert best.proven_optimal
    assert labels.total() == pytest.approx(best.makespan)
