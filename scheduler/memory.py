"""Bytes that a schedule keeps on each device."""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.problem import Floats, Problem
from crossdock.scheduler.result import Schedule


def peak_bytes(problem: Problem, schedule: Schedule) -> Floats:
    """Most bytes live at once on each device, float64 (m,).

    Parameters stay for the whole schedule. An output is held from its task's start until its last
    local consumer has finished and its last transfer has arrived; outputs without a consumer
    stay to the end. A copy is held from the transfer's start until its last consumer there has
    finished. Scratch is held while the task runs.
    """
    p, s = problem, schedule
    events: list[list[tuple[float, int, float]]] = [[] for _ in range(p.m)]
    fixed = np.zeros(p.m)

    def hold(device: int, begin: float, end: float, nbytes: float) -> None:
        if nbytes > 0.0:
            events[device].append((begin, 1, nbytes))
            events[device].append((max(begin, end), 0, -nbytes))

    release = _release_times(p, s)
    for t in range(p.n):
        d = int(s.device[t])
        fixed[d] += p.param_bytes[t]
        hold(d, float(s.start[t]), release[t], float(p.out_bytes[t]))
        hold(d, float(s.start[t]), float(s.finish[t]), float(p.scratch_bytes[t]))
    last_use: dict[tuple[int, int], float] = {}
    for e in range(len(p.edge_src)):
        b = int(p.edge_dst[e])
        key = (int(p.edge_tensor[e]), int(s.device[b]))
        last_use[key] = max(last_use.get(key, 0.0), float(s.finish[b]))
    for x in s.transfers:
        hold(x.dst, x.start, last_use.get((x.tensor, x.dst), x.finish), x.nbytes)
    peaks: Floats = fixed + np.array([_peak(rows) for rows in events])
    return peaks


def _release_times(p: Problem, s: Schedule) -> list[float]:
    release: list[float] = s.finish.tolist()
    for t in np.flatnonzero(np.diff(p.succs.ptr) == 0).tolist():
        release[t] = s.makespan
    for a, b in zip(p.edge_src.tolist(), p.edge_dst.tolist(), strict=True):
        if s.device[a] == s.device[b]:
            release[a] = max(release[a], float(s.finish[b]))
    for x in s.transfers:
        release[x.task] = max(release[x.task], x.finish)
    return release


def _peak(events: list[tuple[float, int, float]]) -> float:
    """Largest running sum; at equal times what ends is released first."""
    held = peak = 0.0
    for _, _, change in sorted(events):
        held += change
        peak = max(peak, held)
    return peak
