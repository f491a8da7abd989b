"""Placements for an objective: exhaustive where that is cheap, else seeds and local search.

The search is a pure function of its arguments: its effort is counted in evaluations, not seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from crossdock.runtime.errors import MemoryBudget, NoPlacement
from crossdock.scheduler.decode import decode
from crossdock.scheduler.drafts import Draft, freeze
from crossdock.scheduler.limits import Limits
from crossdock.scheduler.memory import peak_bytes
from crossdock.scheduler.objective import Objective
from crossdock.scheduler.objectives import (
    Power,
    Values,
    busy_seconds,
    evaluate,
    score,
)
from crossdock.scheduler.policies import python_drafts, rank_order, spans
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Links, Schedule
from crossdock.scheduler.single import single_drafts

EXHAUSTIVE = 1024
"""Placements up to which all are tried."""
EFFORT = 100_000
"""Tasks and edges that all evaluations together may pass."""
CUTS = 16
"""Parts of the order between which two-stage pipelines are cut."""
SLACK = 1e-9
LEAST = 64
"""Evaluations of even the largest problem."""


@dataclass(frozen=True)
class Aim:
    """What to place for, and within what.

    Attributes:
        objective: what is to be small.
        power: watts of the devices, where energy counts.
        hub: device (index) that transfers between two others pass.
        shares: largest share of all tasks' predicted seconds on each device, float64 (m,).
        memory: keep within the devices' memory.
    """

    objective: Objective = field(default_factory=Objective)
    power: Power | None = None
    hub: int | None = None
    shares: Floats | None = None
    memory: bool = False


@dataclass(frozen=True)
class Aimed:
    """A schedule made for an objective: its terms, and what they come to (see ``score``)."""

    schedule: Schedule
    values: Values
    score: float


@dataclass(frozen=True)
class _Found:
    """A draft with what it comes to; ``over`` is how far it is beyond what is allowed."""

    over: float
    score: float
    values: Values
    draft: Draft

    @property
    def key(self) -> tuple[float, float, float]:
        """What is to be small; of equals the one that ends first."""
        return self.over, self.score, self.values.latency


def place(problem: Problem, aim: Aim, links: Links = "serial") -> Aimed:
    """Place a problem for an objective.

    Raises:
        NoPlacement: nothing found is within the largest shares, or an input cannot arrive.
        MemoryBudget: nothing found is within memory.
    """
    singles = single_drafts(problem, links, rank_order(problem))
    best = _Search(problem, aim, links, list(singles.values())).run()
    if best.over > 0.0:
        _refuse(problem, aim, best)
    draft = Draft(f"{aim.objective}:{best.draft.name}", best.draft.device, best.draft.timed)
    made = freeze(problem, links, draft, single=spans(singles))
    return Aimed(made, best.values, best.score)


def shares_of(problem: Problem, device: Sequence[int] | Ints) -> Floats:
    """Each device's share of all tasks' predicted seconds, float64 (m,)."""
    busy = busy_seconds(problem, np.asarray(device, np.int64))
    return busy / max(float(busy.sum()), 1e-300)


class _Search:
    """The search for one aim; counts what its evaluations pass."""

    def __init__(self, problem: Problem, aim: Aim, links: Links, singles: list[Draft]) -> None:
        self.problem, self.aim, self.links, self.singles = problem, aim, links, singles
        self.order = rank_order(problem)
        size = problem.n + len(problem.edge_src)
        self.left = max(LEAST, EFFORT // max(1, size))
        self.able = [np.flatnonzero(np.isfinite(row)).tolist() for row in problem.cost]
        self.reference = Values(1.0, 1.0, 1.0)
        values = [self._values(d) for d in singles]
        self.reference = Values(
            *(min(v.term(name) for v in values) for name in ("latency", "throughput", "energy"))
        )

    def run(self) -> _Found:
        """The best placement found."""
        count = math.prod(len(row) for row in self.able)
        if count <= EXHAUSTIVE:
            return min(
                (self._found(where, "exhaustive") for where in itertools.product(*self.able)),
                key=lambda x: x.key,
            )
        drafts = [
            *self.singles,
            *python_drafts(self.problem, self.links, Limits.none(self.problem)),
        ]
        best = min((self._judged(d) for d in drafts), key=lambda x: x.key)
        best = min([best, *self._cuts()], key=lambda x: x.key)
        return self._climb(best)

    def _cuts(self) -> Iterator[_Found]:
        """Two devices, one before and one after a point of the order: pipelines of two stages."""
        p, order = self.problem, self.order.tolist()
        points = sorted({round(i * p.n / CUTS) for i in range(1, CUTS)})
        for a, b in itertools.permutations(range(p.m), 2):
            for at in points:
                if self.left <= 0:
                    return
                where = [0] * p.n
                for i, t in enumerate(order):
                    where[t] = self._near(t, a if i < at else b)
                yield self._found(where, "cut")

    def _near(self, task: int, device: int) -> int:
        """The device if the task can run there, else the cheapest that can."""
        row = self.problem.cost[task]
        return device if np.isfinite(row[device]) else int(row.argmin())

    def _climb(self, best: _Found) -> _Found:
        """Move ranges of the order to another device while that helps, long ranges first."""
        p, order = self.problem, self.order.tolist()
        improved = True
        while improved and self.left > 0:
            improved = False
            for tasks in _ranges(order):
                for d in range(p.m):
                    where = list(best.draft.device)
                    for t in tasks:
                        where[t] = self._near(t, d)
                    if self.left <= 0 or where == list(best.draft.device):
                        continue
                    found = self._found(where, f"{best.draft.name.removesuffix('+moves')}+moves")
                    if found.key < best.key:
                        best, improved = found, True
        return best

    def _found(self, where: Sequence[int], name: str) -> _Found:
        timed = decode(self.problem, self.order, where, self.links)
        return self._judged(Draft(name, [int(d) for d in where], timed))

    def _values(self, draft: Draft) -> Values:
        self.left -= 1
        return evaluate(self.problem, draft.device, draft.timed, self.aim.hub, self.aim.power)

    def _judged(self, draft: Draft) -> _Found:
        values = self._values(draft)
        return _Found(
            self._over(draft), score(self.aim.objective, values, self.reference), values, draft
        )

    def _over(self, draft: Draft) -> float:
        """How far a draft is beyond shares and memory, each relative to what is allowed."""
        p, over = self.problem, 0.0
        if self.aim.shares is not None:
            excess = shares_of(p, draft.device) - self.aim.shares
            over += float(excess[excess > SLACK].sum())
        if self.aim.memory and math.isfinite(draft.makespan):
            held = peak_bytes(p, freeze(p, self.links, draft, bound=0.0))
            over += float(np.maximum(held / np.maximum(p.mem_bytes, 1.0) - 1.0, 0.0).sum())
        return over


def _ranges(order: Sequence[int]) -> Iterator[Sequence[int]]:
    """Ranges of the order: halves, quarters and so on, each half overlapped, then single tasks."""
    size = len(order)
    while size >= 1:
        step = max(1, size // 2)
        for begin in range(0, len(order), step):
            yield order[begin : begin + size]
        size = 0 if size == 1 else size // 2


def _refuse(problem: Problem, aim: Aim, best: _Found) -> None:
    if aim.shares is not None:
        found = shares_of(problem, best.draft.device)
        for name, share, most in zip(problem.device_ids, found, aim.shares, strict=True):
            if share > most + SLACK:
                raise NoPlacement(
                    f"no placement found gives {name} at most {most:.0%} of the ops' seconds; the "
                    f"nearest gives it {share:.0%}: raise max_share or allow another device"
                )
    held = peak_bytes(problem, freeze(problem, "serial", best.draft, bound=0.0))
    worst = int((held - problem.mem_bytes).argmax())
    raise MemoryBudget(
        f"no placement found that fits: {problem.device_ids[worst]} needs {held[worst]:.0f} B and "
        f"has {problem.mem_bytes[worst]:.0f} B"
    )
