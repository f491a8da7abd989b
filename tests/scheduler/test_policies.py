"""Every policy gives a schedule that keeps every rule, within its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.scheduler import (
    DeviceSpec,
    EdgeSpec,
    LinkSpec,
    Problem,
    TaskSpec,
    schedule,
    validate,
)

POLICIES = ("best_single", "heft", "lookahead", "auto")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Random graphs of up to 12 tasks over up to 3 devices, some of one resource group."""
    devices = [f"d{i}" for i in range(draw(st.integers(1, 3)))]
    cost = st.floats(0.1, 10.0)
    tasks, edges = [], []
    for t in range(draw(st.integers(1, 12))):
        costs = {d: draw(cost) for d in devices if d == "d0" or draw(st.booleans())}
        tasks.append(TaskSpec(f"t{t}", costs))
        sources = draw(st.sets(st.integers(0, t - 1), max_size=3)) if t else set()
        edges += [EdgeSpec(f"t{s}", f"t{t}", draw(st.floats(1.0, 100.0))) for s in sorted(sources)]
    grouped = draw(st.booleans())
    specs = [DeviceSpec(d, resource_group="one" if grouped else None) for d in devices]
    links = [LinkSpec(a, b, 0.1, 50.0) for a in devices for b in devices if a != b]
    return Problem.build(tasks, edges, specs, links, group_capacity={"one": 1})


@pytest.mark.parametrize("links", ["free", "serial"])
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25)
@given(problem=problems())
def test_schedules_are_valid_and_bounded(policy: str, links: str, problem: Problem) -> None:
    made = schedule(problem, policy, links=links, budget_s=0.01, compiled=False)  # type: ignore[arg-type]
    assert validate(problem, made) == []
    assert made.lower_bound <= made.makespan * (1 + 1e-9)


@settings(max_examples=25)
@given(problems())
def test_auto_is_never_predicted_worse_than_the_best_single_device(problem: Problem) -> None:
    best = schedule(problem, "best_single", compiled=False)
    made = schedule(problem, "auto", budget_s=0.01, compiled=False)
    again = schedule(problem, "auto", budget_s=0.01, compiled=False)
    assert made.makespan <= best.makespan * (1 + 1e-9)
    assert made.placement() == again.placement()
