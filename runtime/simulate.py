"""Replay of a plan on virtual time: what its queues and waits give, without a device.

The executor's rules hold: a queue runs its steps in order, a step starts when the steps that it
waits for are done, and of the devices of one resource group only so many compute at once. Nothing
is started early and nothing is left idle that may run, so the replay is also what a plan takes
when its predictions are scaled.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from crossdock.runtime.errors import PlanError
from crossdock.runtime.plan import Plan, Step
from crossdock.runtime.tensor import Array


@dataclass(frozen=True)
class Simulation:
    """Times in seconds from the start of the run.

    Attributes:
        start, finish: float64 (steps,), by step index; of several runs one after the other,
            (runs * steps,).
        makespan: the last finish; 0 for a plan without steps.
        busy: seconds in which each queue runs a step.
        runs: runs that were replayed, each posted as soon as the one before.
    """

    start: Array
    finish: Array
    makespan: float
    busy: Mapping[str, float]
    runs: int = 1

    @property
    def run_ends(self) -> Array:
        """When each run is done, float64 (runs,)."""
        ends: Array = self.finish.reshape(self.runs, -1).max(axis=1, initial=0.0)
        return ends

    @property
    def interval(self) -> float:
        """Seconds between the ends of successive runs, over the later half of them."""
        half = self.runs // 2
        if half == 0:
            return self.makespan
        ends = self.run_ends
        return float(ends[-1] - ends[-1 - half]) / half


def simulate(
    plan: Plan,
    capacity: Mapping[str, int] | None = None,
    scale: Mapping[str, float] | None = None,
    runs: int = 1,
) -> Simulation:
    """Replay a plan, or several runs of it that are in flight together.

    Args:
        plan: the steps, in an order in which every wait is for an earlier step.
        capacity: how many devices of a resource group compute at once; 1 where not given.
        scale: factor on the predicted seconds of a device's ops (2: twice as slow); copies keep
            theirs.
        runs: successive runs; every queue takes them in order, as the executor's do.

    Raises:
        PlanError: a step waits for itself or a later one, or a scale is not positive.
    """
    factors = dict(scale or {})
    check(plan, factors)
    done = _Replay(repeated(plan, runs), dict(capacity or {}), factors).run()
    return replace(done, runs=runs)


def check(plan: Plan, scale: Mapping[str, float]) -> None:
    """Refuse what cannot be simulated; raises PlanError."""
    for device, factor in scale.items():
        if not factor > 0.0:
            raise PlanError(f"scale of {device} is {factor}; give a factor greater than 0")
    for step in plan.steps:
        if any(not 0 <= w < step.index for w in step.waits):
            raise PlanError(f"step #{step.index} waits for a step that is not before it")


def repeated(plan: Plan, runs: int) -> Plan:
    """The steps of several runs, one after the other; raises PlanError for less than one."""
    if runs < 1:
        raise PlanError(f"runs={runs}: give 1 or more")
    if runs == 1:
        return plan
    steps = [
        replace(step, index=base + step.index, waits=tuple(base + w for w in step.waits))
        for base in range(0, runs * len(plan.steps), max(1, len(plan.steps)))
        for step in plan.steps
    ]
    return replace(plan, steps=tuple(steps))


def step_seconds(step: Step, scale: Mapping[str, float]) -> float:
    """Predicted seconds of a step, scaled where it is an op."""
    return step.seconds * (scale.get(step.device, 1.0) if step.kind == "launch" else 1.0)


class _Replay:
    """The state at one moment of virtual time."""

    def __init__(self, plan: Plan, capacity: dict[str, int], scale: dict[str, float]) -> None:
        self.plan = plan
        self.groups = {d.id: d.resource_group for d in plan.devices}
        self.free = {g: max(1, capacity.get(g, 1)) for g in self.groups.values()}
        self.seconds = [step_seconds(s, scale) for s in plan.steps]
        self.queues: dict[str, list[int]] = {}
        self.readers: list[list[int]] = [[] for _ in plan.steps]
        self.missing = [len(s.waits) for s in plan.steps]
        for step in plan.steps:
            self.queues.setdefault(step.queue, []).append(step.index)
            for wait in step.waits:
                self.readers[wait].append(step.index)
        self.position = dict.fromkeys(self.queues, 0)
        self.start = np.zeros(len(plan.steps))
        self.finish = np.zeros(len(plan.steps))
        self.running: list[tuple[float, int]] = []
        self.waiting: dict[str, list[int]] = {}  # steps ready for their group, a heap each

    def run(self) -> Simulation:
        """Start what may start, then move to the next finish, until nothing runs."""
        for queue in self.queues:
            self._offer(queue)
        self._start_waiting(0.0)
        done = 0
        while self.running:
            now = self.running[0][0]
            while self.running and self.running[0][0] == now:
                self._end(heapq.heappop(self.running)[1])
                done += 1
            self._start_waiting(now)
        assert done == len(self.plan.steps), "steps that never became ready"
        busy = {q: sum(self.seconds[i] for i in steps) for q, steps in self.queues.items()}
        makespan = float(self.finish.max()) if done else 0.0
        return Simulation(self.start, self.finish, makespan, busy)

    def _head(self, queue: str) -> int | None:
        at, steps = self.position[queue], self.queues[queue]
        return steps[at] if at < len(steps) else None

    def _offer(self, queue: str) -> None:
        """Let the step at the head of a queue wait for its group, once its waits are over."""
        index = self._head(queue)
        if index is not None and self.missing[index] == 0:
            heapq.heappush(self.waiting.setdefault(self._group(index), []), index)

    def _group(self, index: int) -> str:
        """The group a step takes a share of: a copy takes none."""
        step = self.plan.steps[index]
        return self.groups.get(step.device, "") if step.kind == "launch" else ""

    def _start_waiting(self, now: float) -> None:
        for group, ready in self.waiting.items():
            while ready and (group not in self.free or self.free[group] > 0):
                index = heapq.heappop(ready)
                if group in self.free:
                    self.free[group] -= 1
                self.start[index] = now
                self.finish[index] = now + self.seconds[index]
                heapq.heappush(self.running, (float(self.finish[index]), index))

    def _end(self, index: int) -> None:
        group = self._group(index)
        if group in self.free:
            self.free[group] += 1
        queue = self.plan.steps[index].queue
        self.position[queue] += 1
        moved = {queue: None}
        for reader in self.readers[index]:
            self.missing[reader] -= 1
            other = self.plan.steps[reader].queue
            if self.missing[reader] == 0 and self._head(other) == reader:
                moved[other] = None
        for name in moved:
            self._offer(name)
