"""Independent check of a schedule against every rule of the problem."""

from __future__ import annotations

import math

from crossdock.scheduler.memory import peak_bytes
from crossdock.scheduler.problem import Problem
from crossdock.scheduler.result import Links, Schedule, Transfer

RELATIVE = 1e-9


def validate(
    problem: Problem, schedule: Schedule, links: Links | None = None, *, memory: bool = False
) -> list[str]:
    """Every violated rule, one line each; an empty list means that the schedule is valid.

    Args:
        problem: the problem the schedule is for.
        schedule: times and transfers to check.
        links: link model to check against; default: the schedule's own.
        memory: also check that no device ever holds more than its memory.
    """
    model = links or schedule.links
    eps = RELATIVE * max(1e-12, schedule.makespan)
    if len(schedule.device) != problem.n:
        return [f"{len(schedule.device)} tasks scheduled of {problem.n}"]
    faults = _check_tasks(problem, schedule, eps)
    if faults:
        return faults
    faults += _check_resources(problem, schedule, eps)
    if model == "free":
        faults += _check_free(problem, schedule, eps)
    else:
        faults += _check_serial(problem, schedule, eps)
    if schedule.lower_bound > schedule.makespan + eps:
        faults.append(f"bound {schedule.lower_bound} is above makespan {schedule.makespan}")
    if memory:
        peaks = peak_bytes(problem, schedule)
        for d, (peak, limit) in enumerate(zip(peaks, problem.mem_bytes, strict=True)):
            if peak > limit * (1 + RELATIVE):
                faults.append(f"device {problem.device_ids[d]} holds {peak:.0f} of {limit:.0f} B")
    return faults


def _check_tasks(p: Problem, s: Schedule, eps: float) -> list[str]:
    faults = []
    for t, name in enumerate(p.task_names):
        d = int(s.device[t])
        if not 0 <= d < p.m or math.isinf(p.cost[t, d]):
            faults.append(f"task {name} cannot run on device {d}")
        elif not s.start[t] >= 0.0:
            faults.append(f"task {name} starts at {s.start[t]}")
        elif not abs(s.finish[t] - s.start[t] - p.cost[t, d]) <= eps:
            faults.append(f"task {name} does not take its cost on {p.device_ids[d]}")
    last = max(s.finish.tolist(), default=0.0)
    if not abs(last - s.makespan) <= eps:
        faults.append(f"makespan {s.makespan} is not the last finish {last}")
    return faults


def _overlaps(spans: list[tuple[float, float, str]], eps: float, where: str) -> list[str]:
    faults, busy, holder = [], 0.0, ""
    for start, finish, name in sorted(spans):
        if start < busy - eps:
            faults.append(f"{name} overlaps {holder} on {where}")
        if finish > busy:
            busy, holder = finish, name
    return faults


def _check_resources(p: Problem, s: Schedule, eps: float) -> list[str]:
    lanes: dict[int, list[tuple[float, float, str]]] = {}
    for t, name in enumerate(p.task_names):
        span = (float(s.start[t]), float(s.finish[t]), f"task {name}")
        lanes.setdefault(int(p.resource[s.device[t]]), []).append(span)
    return [f for r, spans in lanes.items() for f in _overlaps(spans, eps, f"resource {r}")]


def _check_free(p: Problem, s: Schedule, eps: float) -> list[str]:
    faults = []
    rows = zip(p.edge_src.tolist(), p.edge_dst.tolist(), p.edge_bytes.tolist(), strict=True)
    for a, b, size in rows:
        arrival = s.finish[a] + p.transfer_s(size, int(s.device[a]), int(s.device[b]))
        if not s.start[b] >= arrival - eps:
            faults.append(f"{p.task_names[b]} starts before {p.task_names[a]}'s output arrives")
    return faults


def _check_serial(p: Problem, s: Schedule, eps: float) -> list[str]:
    faults: list[str] = []
    sent: dict[tuple[int, int], Transfer] = {}
    channels: dict[tuple[int, int], list[tuple[float, float, str]]] = {}
    for x in s.transfers:
        name = f"output of {p.task_names[x.task]}"
        if (x.tensor, x.dst) in sent:
            faults.append(f"{name} is sent twice to {p.device_ids[x.dst]}")
        if x.src != s.device[x.task] or x.start < s.finish[x.task] - eps:
            faults.append(f"{name} is sent from the wrong device or before it exists")
        sent[x.tensor, x.dst] = x
        channels.setdefault((x.src, x.dst), []).append((x.start, x.finish, name))
    for (a, b), spans in channels.items():
        faults += _overlaps(spans, eps, f"link {p.device_ids[a]} to {p.device_ids[b]}")
    for e in range(len(p.edge_src)):
        faults += _check_edge(p, s, e, sent, eps)
    return faults


def _check_edge(
    p: Problem, s: Schedule, e: int, sent: dict[tuple[int, int], Transfer], eps: float
) -> list[str]:
    a, b = int(p.edge_src[e]), int(p.edge_dst[e])
    src, dst = int(s.device[a]), int(s.device[b])
    arrival = float(s.finish[a])
    label = f"{p.task_names[a]} to {p.task_names[b]}"
    if src != dst:
        x = sent.get((int(p.edge_tensor[e]), dst))
        if x is None:
            return [f"no transfer for {label}"]
        if x.finish - x.start < p.transfer_s(float(p.edge_bytes[e]), src, dst) - eps:
            return [f"transfer for {label} is too short"]
        arrival = x.finish
    return [] if s.start[b] >= arrival - eps else [f"{label}: the consumer starts too early"]
