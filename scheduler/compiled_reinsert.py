"""Best reinsertion of a task: every device and every gap, from one forward and one backward pass.

With a task taken out, let ``head`` be the finish of the task before a gap and ``rest`` the longest
way from the start of the task after it to the end. Inserting there makes the makespan the larger
of that without the task and ``max(head, arrival) + cost + max(rest, way after the task)``. This is
exact under free links (M. Mastrolilli, L. Gambardella, "Effective neighbourhood functions for the
flexible job shop problem", Journal of Scheduling 3(1), 2000); under serial links it is a guess
that the caller evaluates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_core import BIG, Graph, compiled, kernel, uniform
from crossdock.scheduler.compiled_state import State
from crossdock.scheduler.problem import Floats

TIE = 0.01  # weight of the way through the task itself where the makespan ties


class Gaps(NamedTuple):
    """Scratch of a reinsertion."""

    finish: Floats  # (n,) without the task
    rest: Floats  # (n,) from a task's start to the end, without the task
    lane: Floats  # (lanes,) finish of the last task seen on a lane
    lane_rest: Floats  # (lanes,) rest of the next task on a lane
    beyond: Floats  # (lanes,) the same behind the last gap
    arrive: Floats  # (m,) of the task's inputs
    depart: Floats  # (m,) way after the task


@compiled
def new_gaps(g: Graph) -> Gaps:
    """Empty scratch."""
    n, m = g.cost.shape
    return Gaps(
        np.zeros(n),
        np.zeros(n),
        np.zeros(g.lanes),
        np.zeros(g.lanes),
        np.zeros(g.lanes),
        np.zeros(m),
        np.zeros(m),
    )


@kernel
def forward(g: Graph, s: State, w: Gaps, t: int) -> float:
    """Fill ``w.finish`` without ``t``; returns the makespan without it (0 if not recomputed)."""
    n = len(s.order)
    here = s.position[t]
    for q in range(here):
        w.finish[s.order[q]] = s.finish[s.order[q]]
    for r in range(g.lanes):
        w.lane[r] = s.lane_free[here, r]
    makespan = s.prefix[here]
    for q in range(here + 1, n):
        u = s.order[q]
        if g.serial:
            w.finish[u] = s.finish[u]
            continue
        d = s.device[u]
        ready = w.lane[g.lane[d]]
        for k in range(g.pred_ptr[u], g.pred_ptr[u + 1]):
            p = g.pred[k]
            if p == t:
                continue
            at = w.finish[p]
            if s.device[p] != d:
                at += g.latency[s.device[p], d] + g.pred_bytes[k] * g.inv_bw[s.device[p], d]
            ready = max(ready, at)
        end = ready + g.cost[u, d]
        w.finish[u] = end
        w.lane[g.lane[d]] = end
        makespan = max(makespan, end)
    return makespan


@kernel
def way_after(g: Graph, s: State, w: Gaps, u: int, d: int, skip: int) -> float:
    """Longest way from the finish of ``u`` on ``d`` through its consumers, ``skip`` left out."""
    longest = 0.0
    for k in range(g.succ_ptr[u], g.succ_ptr[u + 1]):
        c = g.succ[k]
        if c == skip:
            continue
        way = w.rest[c]
        if s.device[c] != d:
            way += g.latency[d, s.device[c]] + g.succ_bytes[k] * g.inv_bw[d, s.device[c]]
        longest = max(longest, way)
    return longest


@kernel
def backward(g: Graph, s: State, w: Gaps, t: int, low: int, high: int) -> None:
    """Fill ``w.rest`` from position ``low`` on without ``t``, and ``w.beyond`` at ``high``."""
    n = len(s.order)
    for r in range(g.lanes):
        w.lane_rest[r] = 0.0
    for q in range(n - 1, low - 1, -1):
        if q == high:
            for r in range(g.lanes):
                w.beyond[r] = w.lane_rest[r]
        u = s.order[q]
        if u == t:
            continue
        d = s.device[u]
        r = g.lane[d]
        w.rest[u] = g.cost[u, d] + max(w.lane_rest[r], way_after(g, s, w, u, d, t))
        w.lane_rest[r] = w.rest[u]


@kernel
def fill_ends(g: Graph, s: State, w: Gaps, t: int) -> None:
    """Fill arrival and way after ``t`` for every device."""
    for d in range(g.cost.shape[1]):
        ready = 0.0
        for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
            p = g.pred[k]
            at = s.finish[p]
            if s.device[p] != d:
                if g.serial and s.sent_at[g.pred_tensor[k], d] < s.position[t]:
                    at = s.sent[g.pred_tensor[k], d]
                else:
                    at += g.latency[s.device[p], d] + g.pred_bytes[k] * g.inv_bw[s.device[p], d]
            ready = max(ready, at)
        w.arrive[d] = ready
        w.depart[d] = way_after(g, s, w, t, d, -1)


@kernel
def reinsertion(g: Graph, s: State, w: Gaps, t: int, heat: float, rng: np.ndarray):
    """(device, position, makespan) of a good gap for ``t``; noise grows with ``heat``.

    The position is that of ``t`` in the order after the move.
    """
    low, high = 0, len(s.order) - 1
    for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
        low = max(low, s.position[g.pred[k]] + 1)
    for k in range(g.succ_ptr[t], g.succ_ptr[t + 1]):
        high = min(high, s.position[g.succ[k]] - 1)
    without = forward(g, s, w, t)
    backward(g, s, w, t, low, high)
    fill_ends(g, s, w, t)
    for r in range(g.lanes):
        w.lane[r] = s.lane_free[low, r]
    best, best_device, best_at, best_makespan = BIG, -1, 0, BIG
    here = s.position[t]
    for q in range(low, high + 2):
        u = s.order[q] if q <= high else -1
        if u == t:
            continue
        at = q - 1 if q > here else q
        for d in range(g.cost.shape[1]):
            r = g.lane[d]
            if u >= 0 and g.lane[s.device[u]] != r:
                continue
            if g.cost[t, d] >= BIG or (d != s.device[t] and g.held[t] > s.room[d]):
                continue
            rest = w.rest[u] if u >= 0 else w.beyond[r]
            way = max(w.lane[r], w.arrive[d]) + g.cost[t, d] + max(rest, w.depart[d])
            makespan = max(without, way)
            score = makespan + TIE * way
            if score < best:
                score *= 1.0 - heat * np.log(1.0 - uniform(rng))
                if score < best:
                    best, best_device, best_at, best_makespan = score, d, at, makespan
        if u >= 0:
            w.lane[g.lane[s.device[u]]] = w.finish[u]
    return best_device, best_at, best_makespan
