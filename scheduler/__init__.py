"""Placement: problems, cost estimates, policies and the solver. Pure and deterministic."""

from __future__ import annotations

from crossdock.scheduler.bounds import lower_bound
from crossdock.scheduler.check import validate
from crossdock.scheduler.cost import CostModel
from crossdock.scheduler.linkmodel import LinkModel
from crossdock.scheduler.policies import policy, policy_names, schedule, warm_up
from crossdock.scheduler.problem import DeviceSpec, EdgeSpec, LinkSpec, Problem, TaskSpec
from crossdock.scheduler.result import Candidate, Decision, Options, Schedule, Transfer
from crossdock.scheduler.solver import solve
from crossdock.scheduler.work import DeviceRates, Estimate, Source, Work

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
