"""Explanation data: what each candidate device would have meant for a task."""

from __future__ import annotations

import math

import numpy as np

from crossdock.scheduler.decode import decode
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Candidate, Decision, Schedule


class Decider:
    """Decisions of one schedule; what they have in common is worked out once."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        serial = schedule.links == "serial"
        self._sent = {(x.tensor, x.dst): x.finish for x in schedule.transfers} if serial else {}
        self._lanes: dict[int, _Lane] = {}

    def decide(self, task: int) -> Decision:
        """Candidates of ``task`` with every other task where and when the schedule has it."""
        s = self.schedule
        winner = int(s.device[task])
        rows = tuple(self._candidate(task, d) for d in range(s.problem.m))
        others = [c.finish for c in rows if c.device != winner and c.finish is not None]
        margin = min(others) - float(s.finish[task]) if others else None
        return Decision(task, winner, margin, rows)

    def _candidate(self, task: int, device: int) -> Candidate:
        s, p = self.schedule, self.schedule.problem
        exec_s = float(p.cost[task, device])
        if math.isinf(exec_s):
            why = p.reasons.get((task, device), "no kernel or cost for this device")
            return Candidate(device, None, 0.0, 0.0, 0.0, None, why)
        produced, ready = self._inputs_ready(task, device)
        transfer_in = ready - produced
        if math.isinf(ready):
            why = "inputs cannot reach it"
            return Candidate(device, exec_s, transfer_in, ready, 0.0, None, why)
        if device == s.device[task]:
            begin = float(s.start[task])
        else:
            begin = self._lane(int(p.resource[device])).earliest(ready, exec_s, task)
        wait = max(0.0, begin - ready)
        return Candidate(device, exec_s, transfer_in, ready, wait, begin + exec_s)

    def _inputs_ready(self, task: int, device: int) -> tuple[float, float]:
        """Last producer's finish, and when the inputs are on ``device`` (no new contention)."""
        s, p = self.schedule, self.schedule.problem
        produced = ready = 0.0
        for k in range(int(p.preds.ptr[task]), int(p.preds.ptr[task + 1])):
            a, e = int(p.preds.task[k]), int(p.preds.edge[k])
            src = int(s.device[a])
            done = float(s.finish[a])
            produced = max(produced, done)
            arrive = done + p.transfer_s(float(p.edge_bytes[e]), src, device)
            if src != device:
                arrive = self._sent.get((int(p.edge_tensor[e]), device), arrive)
            ready = max(ready, arrive)
        return produced, ready

    def _lane(self, resource: int) -> _Lane:
        found = self._lanes.get(resource)
        if found is None:
            s = self.schedule
            on = np.flatnonzero(s.problem.resource[s.device] == resource)
            on = on[np.lexsort((s.finish[on], s.start[on]))]
            found = self._lanes[resource] = _Lane(on, s.start[on], s.finish[on])
        return found


class _Lane:
    """When a resource is busy, and with which tasks: arrays by start time."""

    def __init__(self, tasks: Ints, starts: Floats, finishes: Floats) -> None:
        self.tasks, self.starts, self.finishes = tasks, starts, np.maximum.accumulate(finishes)
        self._at = {int(t): i for i, t in enumerate(tasks)}

    def earliest(self, ready: float, duration: float, task: int) -> float:
        """First start >= ``ready`` where ``duration`` fits, ``task`` taken out."""
        starts, finishes = self.starts, self.finishes
        at = self._at.get(task)
        if at is not None:
            starts, finishes = np.delete(starts, at), np.delete(finishes, at)
        first = int(np.searchsorted(finishes, ready, side="right"))
        if first == len(starts) or ready + duration <= starts[first]:
            return ready
        fits = finishes[first:-1] + duration <= starts[first + 1 :]
        gap = int(fits.argmax()) if fits.any() else len(fits)
        return max(ready, float(finishes[first + gap]))


def makespan_if(schedule: Schedule, task: int, device: int) -> float:
    """Makespan when ``task`` moves to ``device``; order and other placements stay."""
    p = schedule.problem
    if math.isinf(p.cost[task, device]):
        return math.inf
    if device == schedule.device[task]:
        return schedule.makespan
    where = schedule.device.copy()
    where[task] = device
    return decode(p, schedule_order(p, schedule), where, schedule.links).makespan


def schedule_order(
    problem: Problem, schedule: Schedule
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Tasks by start time, ties in topological order, int64 (n,)."""
    position = np.empty(problem.n, np.int64)
    position[problem.topo] = np.arange(problem.n)
    return np.lexsort((position, schedule.finish, schedule.start)).astype(np.int64)
