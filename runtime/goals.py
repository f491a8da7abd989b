"""Objectives of plans: what a schedule is made for, and what a plan's steps come to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from crossdock.devices.base import Cap
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.plan_parts import Goal
from crossdock.runtime.target import Target
from crossdock.scheduler import Problem, Schedule, schedule
from crossdock.scheduler.objective import UNITS, Objective
from crossdock.scheduler.objective_search import Aim, place
from crossdock.scheduler.objectives import Power
from crossdock.scheduler.throughput import Jobs, interval_bound, interval_of


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a placement: the objective, and watts (idle, active) by device id."""

    objective: Objective = field(default_factory=Objective)
    watts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether latency alone counts, and any share of the work may go to any device."""
        return self.objective == Objective() and not self.shares


def place_for(
    problem: Problem,
    wanted: Wanted,
    policy: str,
    budget_s: float,
    *,
    memory: bool,
    search: bool,
) -> tuple[Schedule, Goal]:
    """Schedule a problem for what is wanted; the goal has what only the problem says.

    Latency without largest shares is the policies' own business.

    Raises:
        PlanError: watts of a device are missing, or the policy places for latency alone.
        NoPlacement, MemoryBudget: as the scheduler's.
    """
    name = str(wanted.objective)
    if wanted.plain:
        made = schedule(
            problem,
            policy,
            links="serial",
            budget_s=budget_s,
            seed=0,
            memory=memory,
            compiled=search,
        )
        return made, Goal(name)
    power = None
    if wanted.objective.energy > 0.0:
        power = Power.of(problem, {**wanted.watts})
    shares = None
    if wanted.shares:
        shares = np.array([wanted.shares.get(d, 1.0) for d in problem.device_ids])
    aim = Aim(wanted.objective, power, problem.device_index(HOST), shares, memory)
    aimed = place(problem, aim)
    bounds = {"latency": aimed.schedule.lower_bound, "throughput": interval_bound(problem)}
    return aimed.schedule, Goal(name, aimed.score, UNITS.get(name, ""), bounds.get(name, 0.0))


def with_goal(plan: Plan, goal: Goal, wanted: Wanted, target: Target) -> Plan:
    """The plan with what its steps come to; a mix keeps the value that it was placed with."""
    interval = interval_of(jobs_of_plan(plan, target))
    joules = _joules(plan, wanted.watts)
    value = {"latency": 0.0, "throughput": interval, "energy": joules}.get(
        goal.objective, goal.value
    )
    assert value is not None, "energy was placed for without watts"
    bound = 0.0 if goal.objective == "latency" else min(goal.bound, value)
    made = replace(goal, value=value, bound=bound, interval=interval, joules=joules)
    return replace(plan, goal=made)


def jobs_of_plan(plan: Plan, target: Target) -> Jobs:
    """The queues' jobs of a run: a device without queues for transfers has one for everything."""
    merged = {d.id for d in target.devices if Cap.COPY_QUEUES not in d.caps}
    queues = [s.device if s.device in merged else s.queue for s in plan.steps]
    groups = {d.id: d.resource_group for d in plan.devices}
    loads: dict[str, float] = {}
    for step in plan.launches():
        group = groups[step.device]
        loads[group] = loads.get(group, 0.0) + step.seconds
    shared: dict[Hashable, float] = {
        group: load / max(1, target.capacity.get(group, 1)) for group, load in loads.items()
    }
    return Jobs(queues, [s.seconds for s in plan.steps], [s.waits for s in plan.steps], shared)


def _joules(plan: Plan, watts: Mapping[str, tuple[float, float]]) -> float | None:
    """Joules of a run, where the watts of every device are known; see ``Power``."""
    if not all(part.id in watts for part in plan.devices):
        return None
    idle: dict[str, float] = {}
    for part in plan.devices:
        group = part.resource_group
        idle[group] = max(idle.get(group, 0.0), watts[part.id][0])
    added = sum(s.seconds * (watts[s.device][1] - watts[s.device][0]) for s in plan.launches())
    return plan.predicted * sum(idle.values()) + added
