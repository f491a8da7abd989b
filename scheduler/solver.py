"""Solve a placement instance given as plain JSON data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from crossdock.scheduler.policies import schedule, warm_up
from crossdock.scheduler.problem import Problem
from crossdock.scheduler.result import Links


def solve(
    instance: Mapping[str, Any],
    *,
    links: Links = "free",
    budget_s: float = 0.1,
    memory: bool = False,
    polish_s: float = 0.0,
) -> dict[str, Any]:
    """Schedule an instance in the JSON form of Problem.

    Args:
        instance: ``devices``, ``links``, ``tasks``, ``edges``.
        links: ``"free"`` or ``"serial"`` transfers.
        budget_s: wall seconds, reading the instance included; loading the compiled search, in the
            first call of a process, is not.
        memory: never exceed the devices' ``mem_bytes``.
        polish_s: further wall seconds of constraint programming; needs OR-tools
            (``pip install crossdock[polish]``).

    Returns:
        ``makespan``, ``lower_bound``, ``tasks`` (id, device, start, finish) and, under serial
        links, ``transfers`` (task, to, start, finish).
    """
    warm_up()
    began = time.perf_counter()
    problem = Problem.from_json(instance)
    left = max(0.0, budget_s - (time.perf_counter() - began))
    plan = schedule(
        problem,
        "auto",
        links=links,
        budget_s=left,
        memory=memory,
        compiled=True,
        polish_s=polish_s,
    )
    return plan.to_json()
