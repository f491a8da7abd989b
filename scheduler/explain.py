"""Explanation data: what each candidate device would have meant for a task."""

from __future__ import annotations

import math

import numpy as np

from crossdock.scheduler.decode import decode
from crossdock.scheduler.problem import Problem
from crossdock.scheduler.result import Candidate, Decision, Schedule
from crossdock.scheduler.timeline import Timeline


def decide(schedule: Schedule, task: int) -> Decision:
    """Candidates of ``task`` with every other task where and when the schedule has it."""
    winner = int(schedule.device[task])
    rows = tuple(_candidate(schedule, task, d) for d in range(schedule.problem.m))
    others = [c.finish for c in rows if c.device != winner and c.finish is not None]
    margin = min(others) - float(schedule.finish[task]) if others else None
    return Decision(task, winner, margin, rows)


def _candidate(s: Schedule, task: int, device: int) -> Candidate:
    p = s.problem
    exec_s = float(p.cost[task, device])
    if math.isinf(exec_s):
        why = p.reasons.get((task, device), "no kernel or cost for this device")
        return Candidate(device, None, 0.0, 0.0, 0.0, None, why)
    produced, ready = _inputs_ready(s, task, device)
    transfer_in = ready - produced
    if math.isinf(ready):
        return Candidate(device, exec_s, transfer_in, ready, 0.0, None, "inputs cannot reach it")
    if device == s.device[task]:
        begin = float(s.start[task])
    else:
        begin, _ = _lane_without(s, int(p.resource[device]), task).earliest(ready, exec_s)
    wait = max(0.0, begin - ready)
    return Candidate(device, exec_s, transfer_in, ready, wait, begin + exec_s)


def _inputs_ready(s: Schedule, task: int, device: int) -> tuple[float, float]:
    """Last producer's finish, and when the inputs are on ``device`` (no new contention)."""
    p = s.problem
    sent = {(x.tensor, x.dst): x.finish for x in s.transfers} if s.links == "serial" else {}
    produced = ready = 0.0
    for k in range(int(p.preds.ptr[task]), int(p.preds.ptr[task + 1])):
        a, e = int(p.preds.task[k]), int(p.preds.edge[k])
        src = int(s.device[a])
        done = float(s.finish[a])
        produced = max(produced, done)
        arrive = done + p.transfer_s(float(p.edge_bytes[e]), src, device)
        if src != device:
            arrive = sent.get((int(p.edge_tensor[e]), device), arrive)
        ready = max(ready, arrive)
    return produced, ready


def _lane_without(s: Schedule, resource: int, task: int) -> Timeline:
    lane = Timeline()
    on = np.flatnonzero(s.problem.resource[s.device] == resource)
    for t in on[np.lexsort((s.finish[on], s.start[on]))].tolist():
        if t != task:
            lane.insert(len(lane.starts), float(s.start[t]), float(s.finish[t]))
    return lane


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
