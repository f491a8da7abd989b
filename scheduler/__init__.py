"""Placement: problems, cost estimates, policies and the solver. Pure and deterministic.

What is imported from here is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossdock.scheduler.bounds import lower_bound
    from crossdock.scheduler.check import validate
    from crossdock.scheduler.cost import CostModel
    from crossdock.scheduler.linkmodel import LinkModel
    from crossdock.scheduler.policies import policy, policy_names, schedule, warm_up
    from crossdock.scheduler.problem import DeviceSpec, EdgeSpec, LinkSpec, Problem, TaskSpec
    from crossdock.scheduler.result import Candidate, Decision, Options, Schedule, Transfer
    from crossdock.scheduler.solver import solve
    from crossdock.scheduler.work import DeviceRates, Estimate, Source, Work

_WHERE = {
    "Candidate": "crossdock.scheduler.result",
    "CostModel": "crossdock.scheduler.cost",
    "Decision": "crossdock.scheduler.result",
    "DeviceRates": "crossdock.scheduler.work",
    "DeviceSpec": "crossdock.scheduler.problem",
    "EdgeSpec": "crossdock.scheduler.problem",
    "Estimate": "crossdock.scheduler.work",
    "LinkModel": "crossdock.scheduler.linkmodel",
    "LinkSpec": "crossdock.scheduler.problem",
    "Options": "crossdock.scheduler.result",
    "Problem": "crossdock.scheduler.problem",
    "Schedule": "crossdock.scheduler.result",
    "Source": "crossdock.scheduler.work",
    "TaskSpec": "crossdock.scheduler.problem",
    "Transfer": "crossdock.scheduler.result",
    "Work": "crossdock.scheduler.work",
    "lower_bound": "crossdock.scheduler.bounds",
    "policy": "crossdock.scheduler.policies",
    "policy_names": "crossdock.scheduler.policies",
    "schedule": "crossdock.scheduler.policies",
    "solve": "crossdock.scheduler.solver",
    "validate": "crossdock.scheduler.check",
    "warm_up": "crossdock.scheduler.policies",
}

__all__ = [
    "Candidate",
    "CostModel",
    "Decision",
    "DeviceRates",
    "DeviceSpec",
    "EdgeSpec",
    "Estimate",
    "LinkModel",
    "LinkSpec",
    "Options",
    "Problem",
    "Schedule",
    "Source",
    "TaskSpec",
    "Transfer",
    "Work",
    "lower_bound",
    "policy",
    "policy_names",
    "schedule",
    "solve",
    "validate",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    """Import a name at its first use."""
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'crossdock.scheduler' has no attribute {name!r}")
    value = getattr(importlib.import_module(where), name)
    globals()[name] = value
    return value
