"""Graphs that fall apart at single tasks are solved exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.scheduler import Problem, TaskSpec, schedule, validate
from crossdock.scheduler.decode import decode
from crossdock.scheduler.segments import cuts, solve_blocks
from tests.scheduler.problems import LINKS, chain, optimum, problems
from tests.scheduler.test_memory import pair


def diamonds(draw_cost: list[float], sizes: list[float]) -> Problem:
    """A diamond and a task behind it, on two devices."""
    tasks = [TaskSpec(f"t{i}", draw_cost[2 * i : 2 * i + 2]) for i in range(5)]
    pairs = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]
    return pair(tasks, [(a, b, x) for (a, b), x in zip(pairs, sizes, strict=True)], 1e9, 1e9)


def test_cuts_are_what_all_paths_pass() -> None:
    assert cuts(diamonds([1.0] * 10, [1.0] * 5)).tolist() == [0, 3, 4]
    assert cuts(chain([[1.0, 2.0]] * 4)).tolist() == [0, 1, 2, 3]
    apart = pair([TaskSpec("a", [1.0, 1.0]), TaskSpec("b", [1.0, 1.0])], [], 1e9, 1e9)
    assert cuts(apart).tolist() == []
    passed = pair(
        [TaskSpec(str(i), [1.0, 1.0]) for i in range(3)], [(0, 1, 1), (1, 2, 1), (0, 2, 1)], 1, 1
    )
    assert cuts(passed).tolist() == [0, 2]


@settings(max_examples=20)
@given(
    st.lists(st.floats(0.0, 5.0), min_size=10, max_size=10),
    st.lists(st.floats(0.0, 300.0), min_size=5, max_size=5),
)
def test_chains_of_blocks_are_solved_exactly(cost: list[float], sizes: list[float]) -> None:
    problem = diamonds(cost, sizes)
    found = solve_blocks(problem, lambda _nodes: True)
    assert found is not None
    assert found.makespan == pytest.approx(optimum(problem, "free"), rel=1e-9, abs=1e-12)
    timed = decode(problem, found.order, found.device, "free")
    assert timed.makespan == pytest.approx(found.makespan, rel=1e-9, abs=1e-12)


@settings(max_examples=30)
@given(problems(max_tasks=9))
def test_whatever_is_solved_bounds_every_schedule(problem: Problem) -> None:
    found = solve_blocks(problem, lambda _nodes: True)
    for links in LINKS:
        made = schedule(problem, links=links, compiled=False)
        assert found is None or found.makespan <= made.makespan * (1 + 1e-9)


def test_a_long_chain_is_proven_optimal_at_once() -> None:
    problem = chain([[1.0 + i % 3, 2.0 - i % 2] for i in range(60)], group=None)
    for links in LINKS:
        made = schedule(problem, links=links, compiled=True, iterations=20_000)
        assert made.proven_optimal
        assert validate(problem, made) == []


def test_a_budget_too_small_gives_nothing() -> None:
    problem = chain([[1.0, 2.0]] * 20, group=None)
    assert solve_blocks(problem, lambda _nodes: False) is None
    assert solve_blocks(problem, lambda _nodes: True, nodes=100.0) is None
