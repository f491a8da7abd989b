"""Memory: what a schedule holds, and plans that must fit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.runtime.errors import MemoryBudget
from crossdock.scheduler import DeviceSpec, LinkSpec, Problem, TaskSpec, schedule, validate
from crossdock.scheduler.memory import peak_bytes


def pair(tasks: list[TaskSpec], edges: list[Any], *room: float) -> Problem:
    devices = [DeviceSpec(f"d{i}", mem_bytes=x) for i, x in enumerate(room)]
    links = [
        LinkSpec(a, b, 0.1, 100.0) for a in range(len(room)) for b in range(len(room)) if a != b
    ]
    return Problem.build(tasks, edges, devices, links)


def test_peak_counts_parameters_outputs_copies_and_scratch() -> None:
    tasks = [
        TaskSpec("a", {"d0": 1.0}, param_bytes=100.0, scratch_bytes=7.0),
        TaskSpec("b", {"d1": 1.0}, out_bytes=5.0),
        TaskSpec("c", {"d0": 1.0}, out_bytes=3.0),
    ]
    problem = pair(tasks, [(0, 1, 20.0), (0, 2, 20.0)], 1e9, 1e9)
    made = schedule(problem, "heft")
    # d0: parameters, a's output until c is done, c's own output; scratch only beside a alone.
    # d1: the copy while b runs, and b's output.
    assert peak_bytes(problem, made).tolist() == [100.0 + max(20.0 + 7.0, 20.0 + 3.0), 25.0]


@pytest.mark.parametrize("name", ["heft", "lookahead", "auto"])
def test_parameters_spill_to_the_slower_device(name: str) -> None:
    tasks = [TaskSpec(f"t{i}", [1.0, 3.0], param_bytes=40.0) for i in range(4)]
    problem = pair(tasks, [(i, i + 1, 1.0) for i in range(3)], 100.0, 1000.0)
    made = schedule(problem, name, memory=True, compiled=False)
    assert validate(problem, made, memory=True) == []
    assert (made.device == 0).sum() == 2
    assert (schedule(problem, name, compiled=False).device == 0).all()


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    problem = pair([TaskSpec("t", [1.0, 1.0], param_bytes=50.0)], [], 10.0, 20.0)
    for name in ("heft", "lookahead", "auto", "best_single"):
        with pytest.raises(MemoryBudget, match=r"50 B|needs \d+ B more than its"):
            schedule(problem, name, memory=True, compiled=False)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 5.0), st.floats(0.1, 5.0), st.integers(0, 50)),
        min_size=1,
        max_size=10,
    ),
    st.integers(20, 300),
)
def test_a_plan_made_with_memory_fits_or_is_refused(
    rows: list[tuple[float, float, int]], room: int
) -> None:
    tasks = [
        TaskSpec(f"t{i}", [a, b], param_bytes=float(size)) for i, (a, b, size) in enumerate(rows)
    ]
    edges = [(max(0, i - 2), i, float(i)) for i in range(1, len(rows))]
    problem = pair(tasks, edges, float(room), float(room))
    try:
        made = schedule(problem, memory=True, compiled=False)
    except MemoryBudget:
        assert schedule(problem, compiled=False).makespan > 0.0
        return
    assert validate(problem, made, memory=True) == []
    assert (peak_bytes(problem, made) <= room * (1 + 1e-9)).all()
    assert np.isfinite(made.makespan)


def test_a_task_that_no_device_holds_is_named_with_its_inputs() -> None:
    tasks = [TaskSpec("a", [1.0, 1.0]), TaskSpec("b", [1.0, 1.0], param_bytes=70.0)]
    problem = pair(tasks, [(0, 1, 40.0)], 100.0, 90.0)
    with pytest.raises(MemoryBudget, match=r"'b' alone needs 110 B .* has 100 B"):
        schedule(problem, memory=True)


def test_parameters_that_do_not_pack_are_proven_so() -> None:
    three = [TaskSpec(f"t{i}", [1.0, 1.0], param_bytes=60.0) for i in range(3)]
    with pytest.raises(MemoryBudget, match="every packing"):
        schedule(pair(three, [], 100.0, 100.0), memory=True)
    with pytest.raises(MemoryBudget, match="180 B and all devices together have 170 B"):
        schedule(pair(three, [], 100.0, 70.0), memory=True)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(10, 60))
def test_what_packs_is_placed_and_what_does_not_is_refused(sizes: list[int], room: int) -> None:
    tasks = [TaskSpec(f"t{i}", [1.0, 2.0], param_bytes=float(x)) for i, x in enumerate(sizes)]
    problem = pair(tasks, [], float(room), float(room))
    halves = itertools.product((0, 1), repeat=len(sizes))
    possible = any(
        max(sum(x for x, d in zip(sizes, where, strict=True) if d == e) for e in (0, 1)) <= room
        for where in halves
    )
    if possible:
        assert validate(problem, schedule(problem, memory=True), memory=True) == []
    else:
        with pytest.raises(MemoryBudget, match="no placement fits"):
            schedule(problem, memory=True)
