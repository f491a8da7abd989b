"""A Schedule: where and when each task runs, with its transfers, bound and explanation.

Two link models, as in the problem's JSON form:

``free``
    an input from another device arrives at ``finish(producer) + latency + bytes / bandwidth``.
``serial``
    each direction of a link carries one transfer at a time; a tensor is sent to a device once, as
    large as the largest edge of that tensor into that device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from crossdock.scheduler.problem import Floats, Ints, Problem, TaskRef

if TYPE_CHECKING:
    from crossdock.scheduler.explain import Decider

Links = Literal["free", "serial"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """Tensor ``tensor`` of task ``task`` sent from device ``src`` to ``dst`` (indices)."""

    task: int
    tensor: int
    src: int
    dst: int
    nbytes: float
    start: float
    finish: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """What running a task on one device would mean, all other tasks staying as scheduled.

    Times are seconds. ``finish`` is ``None`` when the device cannot run the task (``reason`` says
    why) or an input cannot reach it. ``start = ready + queue_wait``; ``transfer_in`` is how much
    later than its last producer's finish the inputs are there.
    """

    device: int
    exec_s: float | None
    transfer_in: float
    ready: float
    queue_wait: float
    finish: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a task runs where it does: its candidates, the winner and the winner's margin.

    ``margin`` is the best other candidate's finish minus the winner's, in seconds: negative when
    the plan accepts a later finish of this task for an earlier end of the whole; ``None`` when
    there is no other candidate.
    """

    task: int
    winner: int
    margin: float | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A complete schedule of a problem; arrays are indexed by task.

    Attributes:
        device: int64 (n,), start, finish: float64 (n,).
        order: for each device, its tasks by start time.
        sent: the transfers that a link model with contention timed; None under free links.
        makespan: the last finish; ``lower_bound`` <= any schedule's makespan.
        policy: what made it (``auto`` keeps the name of the best seed after a colon).
        single: predicted makespan of each best single device fallback, by device id, where a
            policy computed it.
        stats: counters of the search (evaluations, seconds), for reports.
    """

    problem: Problem
    links: Links
    device: Ints
    start: Floats
    finish: Floats
    sent: tuple[Transfer, ...] | None
    makespan: float
    lower_bound: float
    policy: str
    single: Mapping[str, float] = field(default_factory=dict)
    stats: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def order(self) -> tuple[tuple[int, ...], ...]:
        """Tasks of every device in start order (ties: topological)."""
        position = np.empty(self.problem.n, np.int64)
        position[self.problem.topo] = np.arange(self.problem.n)
        ranked = np.lexsort((position, self.finish, self.start)).tolist()
        rows: list[list[int]] = [[] for _ in range(self.problem.m)]
        for t in ranked:
            rows[int(self.device[t])].append(t)
        return tuple(tuple(row) for row in rows)

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """Every copy between devices, by start time (both link models)."""
        from crossdock.scheduler.decode import free_transfers

        moves = self.sent
        if moves is None:
            moves = tuple(free_transfers(self.problem, self.device, self.finish))
        return tuple(sorted(moves, key=lambda x: (x.start, x.finish, x.tensor, x.dst)))

    @property
    def gap(self) -> float:
        """``makespan / lower_bound - 1``; 0 means proven optimal."""
        if self.makespan <= self.lower_bound:
            return 0.0
        return self.makespan / self.lower_bound - 1.0 if self.lower_bound > 0 else float("inf")

    @property
    def proven_optimal(self) -> bool:
        """Whether the lower bound equals the makespan (to rounding)."""
        return self.gap <= 1e-9

    def placement(self) -> dict[str, str]:
        """Device id of every task by name."""
        p = self.problem
        return {name: p.device_ids[int(self.device[t])] for t, name in enumerate(p.task_names)}

    def decision(self, task: TaskRef) -> Decision:
        """Why ``task`` (name or index) runs where it does."""
        return self._decider.decide(self.problem.index(task))

    @cached_property
    def _decider(self) -> Decider:
        from crossdock.scheduler.explain import Decider

        return Decider(replace(self))  # not itself: it holds this one

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """The decision of every task, in task order."""
        return tuple(self.decision(t) for t in range(self.problem.n))

    def makespan_if(self, task: TaskRef, device: int | str) -> float:
        """Predicted makespan with ``task`` moved to ``device``, the rest as it is (``inf``: no)."""
        from crossdock.scheduler.explain import makespan_if

        p = self.problem
        return makespan_if(self, p.index(task), p.device_index(device))

    def to_json(self) -> dict[str, Any]:
        """Result form of ``solve``: ids, times, and transfers under serial links."""
        p = self.problem
        result: dict[str, Any] = {
            "makespan": float(self.makespan),
            "lower_bound": float(self.lower_bound),
            "tasks": [
                {"id": p.task_ids[t], "device": p.device_keys[d], "start": s, "finish": f}
                for t, (d, s, f) in enumerate(
                    zip(
                        self.device.tolist(), self.start.tolist(), self.finish.tolist(), strict=True
                    )
                )
            ],
        }
        if self.links == "serial":
            result["transfers"] = [
                {
                    "task": p.task_ids[x.task],
                    "to": p.device_keys[x.dst],
                    "start": x.start,
                    "finish": x.finish,
                }
                for x in self.transfers
            ]
        return result


Policy = Callable[[Problem, "Options"], Schedule]


@dataclass(frozen=True, slots=True)
class Options:
    """What a policy is asked for.

    Attributes:
        links: link model the times are predicted with.
        budget_s: wall seconds a searching policy may take, warm-up excluded.
        seed: of the search; with ``iterations`` set the result depends on nothing else.
        iterations: search steps instead of wall time.
        memory: never exceed the devices' memory.
        compiled: use the compiled search; ``None``: only where ``warm_up`` has loaded it.
        polish_s: wall seconds of constraint programming after the compiled search; needs OR-tools.
    """

    links: Links = "serial"
    budget_s: float = 0.1
    seed: int = 0
    iterations: int | None = None
    memory: bool = False
    compiled: bool | None = None
    polish_s: float = 0.0
