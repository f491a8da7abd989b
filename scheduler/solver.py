"""Solve a placement instance given as plain JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossdock.scheduler.policies import schedule
from crossdock.scheduler.problem import Problem
from crossdock.scheduler.result import Links


def solve(
    instance: Mapping[str, Any],
    *,
    links: Links = "free",
    budget_s: float = 0.1,
    memory: bool = False,
) -> dict[str, Any]:
    """Schedule an instance in the JSON form of Problem.

    Args:
        instance: ``devices``, ``links``, ``tasks``, ``edges``.
        links: ``"free"`` or ``"serial"`` transfers.
        budget_s: wall seconds, after the first call in the process (which compiles).
        memory: never exceed the devices' ``mem_bytes``.

    Returns:
        ``makespan``, ``lower_bound``, ``tasks`` (id, device, start, finish) and, under serial
        links, ``transfers`` (task, to, start, finish).
    """
    problem = Problem.from_json(instance)
    plan = schedule(problem, "auto", links=links, budget_s=budget_s, memory=memory, compiled=True)
    return plan.to_json()
