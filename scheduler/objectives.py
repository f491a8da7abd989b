"""What a placement is made for: latency, throughput, energy, or a weighted mix of them.

*latency* is the makespan of one run; *throughput* the steady-state interval between the ends of
successive runs that are in flight together; *energy* the joules of one run by itself. A mix weighs
each of them relative to its value on the best single device, so that its terms have no unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.errors import PlanError
from crossdock.scheduler.decode import Timed
from crossdock.scheduler.objective import Objective
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.throughput import interval_of, jobs_of


@dataclass(frozen=True)
class Power:
    """Watts of each device while it computes and while it does not, float64 (m,) each.

    Devices of one resource group are one piece of silicon: it idles once, at the largest of their
    idle figures.
    """

    idle: Floats
    active: Floats

    @classmethod
    def of(cls, problem: Problem, watts: Mapping[str, tuple[float, float]]) -> Power:
        """From (idle, active) by device id; raises PlanError naming a device without."""
        for name, (idle, active) in watts.items():
            if not 0.0 <= idle <= active < math.inf:
                raise PlanError(
                    f"watts of {name} are idle {idle}, active {active}; give 0 <= idle <= active"
                )
        missing = [d for d in problem.device_ids if d not in watts]
        if missing:
            raise PlanError(
                f"objective 'energy' needs the watts of {', '.join(missing)}; give "
                f"watts={{{missing[0]!r}: (idle, active)}} or leave the device out"
            )
        pairs = np.array([watts[d] for d in problem.device_ids], np.float64).reshape(-1, 2)
        return cls(pairs[:, 0], pairs[:, 1])

    def joules(self, problem: Problem, busy: Floats, makespan: float) -> float:
        """Joules of a run: idle watts over the makespan, and what computing adds to them."""
        idle: dict[str, float] = {}
        for group, watts in zip(problem.groups, self.idle.tolist(), strict=True):
            idle[group] = max(idle.get(group, 0.0), watts)
        return makespan * sum(idle.values()) + float(((self.active - self.idle) * busy).sum())


@dataclass(frozen=True, slots=True)
class Values:
    """What a placement comes to: seconds, seconds between runs, joules (None: watts unknown)."""

    latency: float
    throughput: float
    energy: float | None

    def term(self, name: str) -> float:
        """The value of a term by name."""
        found: float | None = getattr(self, name)
        return math.inf if found is None else found


def busy_seconds(problem: Problem, device: Ints) -> Floats:
    """Seconds that each device computes in a run, float64 (m,)."""
    cost = problem.cost[np.arange(problem.n), device]
    busy: Floats = np.bincount(device, cost, minlength=problem.m).astype(np.float64)
    return busy


def evaluate(
    problem: Problem,
    device: Sequence[int] | Ints,
    timed: Timed,
    hub: int | None,
    power: Power | None,
) -> Values:
    """Values of a timed placement; transfers that do not touch ``hub`` pass through it."""
    if math.isinf(timed.makespan):
        return Values(math.inf, math.inf, None if power is None else math.inf)
    where = np.asarray(device, np.int64)
    rate = interval_of(jobs_of(problem, where, timed, hub))
    joules = None
    if power is not None:
        joules = power.joules(problem, busy_seconds(problem, where), timed.makespan)
    return Values(timed.makespan, rate, joules)


def score(objective: Objective, values: Values, reference: Values) -> float:
    """What is to be as small as possible.

    Of one term its value; of a mix the weighted sum of the values over ``reference``'s.
    """
    if not objective.mixed:
        return values.term(next(iter(objective.weights)))
    return sum(
        weight * values.term(name) / max(reference.term(name), 1e-300)
        for name, weight in objective.weights.items()
    )
