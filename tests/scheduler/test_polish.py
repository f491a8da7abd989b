"""Constraint programming after the search."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings

from crossdock.runtime.errors import PlanError
from crossdock.scheduler import Problem, schedule, solve, validate
from tests.scheduler.problems import problems


@settings(max_examples=15)
@given(problems())
def test_a_polished_plan_is_valid_and_no_worse(problem: Problem) -> None:
    pytest.importorskip("ortools", reason="OR-tools is an extra")
    plain = schedule(problem, links="free", compiled=True, iterations=1)
    made = schedule(problem, links="free", compiled=True, iterations=1, polish_s=2.0)
    assert validate(problem, made) == []
    assert made.makespan <= plain.makespan
    assert made.lower_bound >= plain.lower_bound
    # so few tasks are solved to the optimum, to the solver's unit
    assert made.gap <= 1e-6


def test_serial_plans_keep_their_own_times() -> None:
    pytest.importorskip("ortools", reason="OR-tools is an extra")
    instance = {
        "devices": [{"id": 0}, {"id": 1}],
        "links": [{"a": 0, "b": 1, "lat": 0.0, "bw": 1.0}],
        "tasks": [{"id": t, "cost": [2.0, 3.0]} for t in range(5)],
        "edges": [[0, t, 1.0] for t in range(1, 5)],
    }
    made = solve(instance, links="serial", budget_s=0.01, polish_s=1.0)
    assert made["lower_bound"] <= made["makespan"]
    assert made["makespan"] <= 10.0


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ortools", "ortools.sat", "ortools.sat.python"):
        monkeypatch.setitem(sys.modules, name, None)
    instance = {"devices": [{"id": 0}, {"id": 1}], "links": [], "edges": []}
    tasks = [{"id": 0, "cost": [1.0, 1.0]}, {"id": 1, "cost": [2.0, 1.0]}]
    with pytest.raises(PlanError, match=r"pip install crossdock\[polish\]"):
        solve({**instance, "tasks": tasks}, budget_s=0.01, polish_s=1.0)
