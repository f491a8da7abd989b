"""The validator finds every kind of broken schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossdock.scheduler import (
    DeviceSpec,
    LinkSpec,
    Problem,
    Schedule,
    TaskSpec,
    schedule,
    validate,
)


@pytest.fixture
def problem() -> Problem:
    tasks = [
        TaskSpec("a", [1.0, 5.0], param_bytes=10.0),
        TaskSpec("b", {"q": 1.0}),
        TaskSpec("c", {"q": 1.0}),
        TaskSpec("d", {"p": 3.0}),
    ]
    links = [LinkSpec("p", "q", 0.5, 4.0, both=True)]
    devices = [DeviceSpec("p", mem_bytes=11.0), DeviceSpec("q")]
    return Problem.build(tasks, [(0, 1, 2.0), (0, 2, 2.0)], devices, links)


def changed(made: Schedule, **fields: object) -> Schedule:
    return replace(made, **fields)  # type: ignore[arg-type]


def shifted(made: Schedule, task: int, by: float) -> Schedule:
    start, finish = made.start.copy(), made.finish.copy()
    start[task] += by
    finish[task] += by
    return changed(made, start=start, finish=finish, makespan=float(finish.max()))


def test_broken_schedules_are_named(problem: Problem) -> None:
    made = schedule(problem, "heft")
    assert validate(problem, made) == []
    (transfer,) = made.transfers
    elsewhere = made.device.copy()
    elsewhere[1] = 0
    cases: list[tuple[Schedule, str]] = [
        (changed(made, device=elsewhere), "cannot run"),
        (changed(made, device=made.device[:2]), "2 tasks scheduled of 4"),
        (changed(made, makespan=made.makespan + 1.0), "not the last finish"),
        (changed(made, finish=made.finish + np.array([0.0, 0.5, 0.0, 0.0])), "take its cost"),
        (shifted(made, 0, -2.0), "starts at"),
        (shifted(made, 3, -0.5), "overlaps"),
        (shifted(made, 1, -0.4), "too early"),
        (changed(made, sent=()), "no transfer"),
        (changed(made, sent=(transfer, transfer)), "sent twice"),
        (changed(made, sent=(replace(transfer, finish=transfer.start),)), "too short"),
        (changed(made, sent=(replace(transfer, start=0.0),)), "before it exists"),
        (changed(made, lower_bound=made.makespan * 2), "bound"),
    ]
    for broken, message in cases:
        assert message in " | ".join(validate(problem, broken)), message


def test_the_free_model_wants_arrivals(problem: Problem) -> None:
    made = schedule(problem, "heft", links="free")
    assert validate(problem, made) == []
    assert "arrives" in " ".join(validate(problem, shifted(made, 1, -0.4)))


def test_memory_is_checked_when_asked(problem: Problem) -> None:
    made = schedule(problem, "heft")
    assert validate(problem, made) == []
    assert validate(problem, made, memory=True) == ["device p holds 12 of 11 B"]
