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

from crossdock.scheduler.compiled_core import (
    BIG,
    NOWHERE,
    Graph,
    Net,
    Wires,
    Words,
    hop,
    kernel,
    leaf,
    uniform,
)
from crossdock.scheduler.compiled_state import Copies, Plan, State
from crossdock.scheduler.problem import Floats, Ints

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
    """Fill ``w.finish`` without ``t``; returns the makespan without it (under free links)."""
    net, wires, plan, front, cost, lane = g.net, g.wires, s.plan, s.front, g.cost, g.lane
    n, here = len(plan.order), plan.position[t]
    first = n if g.serial else here + 1
    for q in range(n):
        w.finish[plan.order[q]] = plan.finish[plan.order[q]]
    for r in range(g.lanes):
        w.lane[r] = front.lane_free[here, r]
    makespan = front.prefix[here]
    for q in range(first, n):
        u = plan.order[q]
        d = plan.device[u]
        ready = w.lane[lane[d]]
        for k in range(net.pred_ptr[u], net.pred_ptr[u + 1]):
            p = net.pred[k]
            if p == t:
                continue
            at = w.finish[p]
            if plan.device[p] != d:
                at += hop(wires, net.pred_bytes[k], plan.device[p], d)
            ready = max(ready, at)
        w.finish[u] = ready + cost[u, d]
        w.lane[lane[d]] = w.finish[u]
        makespan = max(makespan, w.finish[u])
    return makespan


@leaf
def way_after(
    net: Net, wires: Wires, device: Ints, rest: Floats, u: int, d: int, skip: int
) -> float:
    """Longest way from the finish of ``u`` on ``d`` through its consumers, ``skip`` left out."""
    longest = 0.0
    for k in range(net.succ_ptr[u], net.succ_ptr[u + 1]):
        c = net.succ[k]
        if c == skip:
            continue
        way = rest[c]
        if device[c] != d:
            way += hop(wires, net.succ_bytes[k], d, device[c])
        longest = max(longest, way)
    return longest


@kernel
def backward(g: Graph, plan: Plan, w: Gaps, t: int, low: int, high: int) -> None:
    """Fill ``w.rest`` from position ``low`` on without ``t``, and ``w.beyond`` at ``high``."""
    net, wires, cost, lane = g.net, g.wires, g.cost, g.lane
    for r in range(g.lanes):
        w.lane_rest[r] = 0.0
    for q in range(len(plan.order) - 1, low - 1, -1):
        if q == high:
            for r in range(g.lanes):
                w.beyond[r] = w.lane_rest[r]
        u = plan.order[q]
        if u == t:
            continue
        d = plan.device[u]
        after = way_after(net, wires, plan.device, w.rest, u, d, t)
        w.rest[u] = cost[u, d] + max(w.lane_rest[lane[d]], after)
        w.lane_rest[lane[d]] = w.rest[u]


@kernel
def fill_ends(net: Net, wires: Wires, plan: Plan, c: Copies, w: Gaps, t: int) -> None:
    """Fill arrival and way after ``t`` for every device."""
    for d in range(len(w.arrive)):
        ready = 0.0
        for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
            p, x = net.pred[k], net.pred_tensor[k]
            at = plan.finish[p]
            if plan.device[p] != d:
                if len(c.sent) > 0 and c.sent_at[x, d] < plan.position[t]:
                    at = c.sent[x, d]
                else:
                    at += hop(wires, net.pred_bytes[k], plan.device[p], d)
            ready = max(ready, at)
        w.arrive[d] = ready
        w.depart[d] = way_after(net, wires, plan.device, w.rest, t, d, NOWHERE)


@leaf
def window(net: Net, position: Ints, t: int) -> tuple[int, int]:
    """First and last position that ``t`` can take in the order."""
    low, high = 0, len(position) - 1
    for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
        low = max(low, position[net.pred[k]] + 1)
    for k in range(net.succ_ptr[t], net.succ_ptr[t + 1]):
        high = min(high, position[net.succ[k]] - 1)
    return low, high


@kernel
def reinsertion(g: Graph, s: State, w: Gaps, t: int, heat: float, rng: Words) -> tuple[int, int]:
    """(device, position) of a good gap for ``t``; noise grows with ``heat``.

    The position is that of ``t`` in the order after the move; the device -1: there is none.
    """
    plan, cost, lane, held, room = s.plan, g.cost, g.lane, g.held, s.room
    low, high = window(g.net, plan.position, t)
    without = forward(g, s, w, t)
    backward(g, plan, w, t, low, high)
    fill_ends(g.net, g.wires, plan, s.copies, w, t)
    for r in range(g.lanes):
        w.lane[r] = s.front.lane_free[low, r]
    best, device, position, here = BIG, NOWHERE, 0, plan.position[t]
    for q in range(low, high + 2):
        u = plan.order[q] if q <= high else NOWHERE
        if u == t:
            continue
        for d in range(len(lane)):
            r = lane[d]
            open_gap = u < 0 or lane[plan.device[u]] == r
            fits = cost[t, d] < BIG and (d == plan.device[t] or held[t] <= room[d])
            if not (open_gap and fits):
                continue
            rest = w.rest[u] if u >= 0 else w.beyond[r]
            way = max(w.lane[r], w.arrive[d]) + cost[t, d] + max(rest, w.depart[d])
            score = noisy(max(without, way) + TIE * way, best, heat, rng)
            if score < best:
                best, device, position = score, d, q - 1 if q > here else q
        if u >= 0:
            w.lane[lane[plan.device[u]]] = w.finish[u]
    return device, position


@leaf
def noisy(score: float, best: float, heat: float, rng: Words) -> float:
    """``score`` raised by exponential noise, drawn only where it can still be the best."""
    if score >= best:
        return score
    return score * (1.0 - heat * np.log(1.0 - uniform(rng)))
