"""Polish a schedule by constraint programming: OR-tools' CP-SAT, where that is installed.

The model is that of free links: a task has an optional interval on every device that can run it,
the tasks of a device do not overlap, and a consumer waits for its producer and their transfer.
Times are whole numbers of a unit, rounded down, so that what the solver proves is a bound, under
serial links too; what it finds is timed exactly.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from crossdock.runtime.errors import PlanError
from crossdock.scheduler.decode import decode
from crossdock.scheduler.drafts import Draft, freeze
from crossdock.scheduler.memory import peak_bytes
from crossdock.scheduler.problem import Ints, Problem
from crossdock.scheduler.result import Options

UNITS = 10**9  # of a makespan


class Polished(NamedTuple):
    """What constraint programming made of a draft."""

    bound: float  # no schedule is shorter
    device: Ints  # (n,)
    order: Ints  # (n,) by start


def polish(problem: Problem, options: Options, draft: Draft, bound: float) -> tuple[Draft, float]:
    """The better of a draft and what constraint programming makes of it; and the better bound.

    Raises:
        PlanError: OR-tools is not installed.
    """
    found = improve(problem, draft, options.polish_s, options.seed)
    if found is None:
        return draft, bound
    timed = decode(problem, found.order, found.device, options.links)
    made = Draft(f"{draft.name}+polish", found.device, timed)
    fits = not options.memory or bool(
        (
            peak_bytes(problem, freeze(problem, options.links, made, bound=0.0))
            <= problem.mem_bytes
        ).all()
    )
    better = fits and made.makespan < draft.makespan
    return made if better else draft, max(bound, found.bound)


def improve(problem: Problem, draft: Draft, seconds: float, seed: int) -> Polished | None:
    """Search on from ``draft`` for ``seconds`` on one thread; None if nothing was found.

    Raises:
        PlanError: OR-tools is not installed.
    """
    cp_model = solver_module()
    if not problem.n or draft.makespan <= 0.0:
        return None
    model = _Model(cp_model, problem, draft.makespan / UNITS)
    model.hint(draft)
    solver: Any = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    if solver.solve(model.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return model.read(solver)


def solver_module() -> Any:
    """OR-tools' CP-SAT.

    Raises:
        PlanError: it is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise PlanError(
            "polishing a plan needs OR-tools; run `pip install crossdock[polish]`"
        ) from None
    return cp_model


class _Model:
    """The variables of a problem; ``unit`` is the time of one step."""

    def __init__(self, cp_model: Any, problem: Problem, unit: float) -> None:
        self.problem, self.unit = problem, unit
        self.model: Any = cp_model.CpModel()
        horizon = 2 * UNITS
        names = range(problem.n)
        self.start = [self.model.new_int_var(0, horizon, "") for _ in names]
        self.takes = [self.model.new_int_var(0, horizon, "") for _ in names]
        self.on: list[dict[int, Any]] = [{} for _ in names]
        self.last = self.model.new_int_var(0, horizon, "")
        self._tasks()
        for k in range(len(problem.edge_src)):
            self._edge(k)
        self.model.minimize(self.last)

    def steps(self, seconds: float) -> int:
        """Whole units that are over after ``seconds``."""
        return math.floor(seconds / self.unit * (1.0 - 1e-12))

    def _tasks(self) -> None:
        p, model = self.problem, self.model
        lanes: dict[int, list[Any]] = {}
        for t in range(p.n):
            for d in np.flatnonzero(np.isfinite(p.cost[t])).tolist():
                here = self.on[t][d] = model.new_bool_var("")
                size = self.steps(float(p.cost[t, d]))
                model.add(self.takes[t] == size).only_enforce_if(here)
                busy = model.new_optional_fixed_size_interval_var(self.start[t], size, here, "")
                lanes.setdefault(int(p.resource[d]), []).append(busy)
            model.add_exactly_one(self.on[t].values())
            model.add(self.start[t] + self.takes[t] <= self.last)
        for busy_lane in lanes.values():
            model.add_no_overlap(busy_lane)

    def _edge(self, k: int) -> None:
        p, model = self.problem, self.model
        a, b, size = int(p.edge_src[k]), int(p.edge_dst[k]), float(p.edge_bytes[k])
        end, begin = self.start[a] + self.takes[a], self.start[b]
        model.add(begin >= end)
        for d, here in self.on[a].items():
            for e, there in self.on[b].items():
                wait = p.transfer_s(size, d, e)
                if math.isinf(wait):
                    model.add_bool_or(here.negated(), there.negated())
                elif d != e and self.steps(wait):
                    both = [here, there]
                    model.add(begin >= end + self.steps(wait)).only_enforce_if(both)

    def hint(self, draft: Draft) -> None:
        """Start from the draft."""
        for t, d in enumerate(np.asarray(draft.device).tolist()):
            self.model.add_hint(self.start[t], self.steps(float(draft.timed.start[t])))
            for e, literal in self.on[t].items():
                self.model.add_hint(literal, e == d)

    def read(self, solver: Any) -> Polished:
        """The solution at hand."""
        p = self.problem
        device = [
            next(d for d, literal in row.items() if solver.boolean_value(literal))
            for row in self.on
        ]
        start = np.array([solver.value(x) for x in self.start])
        position = np.empty(p.n, np.int64)
        position[p.topo] = np.arange(p.n)
        order = np.lexsort((position, start)).astype(np.int64)
        bound = float(solver.best_objective_bound) * self.unit
        return Polished(bound, np.array(device, np.int64), order)
