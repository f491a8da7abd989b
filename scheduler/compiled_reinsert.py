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
    NONE,
    NOWHERE,
    Graph,
    Net,
    Wires,
    Words,
    copy_into,
    hop,
    leaf,
    uniform,
)
from crossdock.scheduler.compiled_state import CURRENT, FIRST, LAST, Back, Copies, Plan, State
from crossdock.scheduler.problem import Floats, Ints


class Gaps(NamedTuple):
    """Scratch of a reinsertion."""

    finish: Floats  # (n,) without the task, behind it in its window
    rest: Floats  # (n,) without the task, ahead of it in its window
    lane: Floats  # (lanes,) finish of the last task seen on a lane
    lane_rest: Floats  # (lanes,) rest of the next task on a lane
    arrive: Floats  # (m,) of the task's inputs
    depart: Floats  # (m,) way after the task


def new_gaps(g: Graph) -> Gaps:
    """Empty scratch."""
    n, m = g.cost.shape
    return Gaps(
        np.zeros(n), np.zeros(n), np.zeros(g.lanes), np.zeros(g.lanes), np.zeros(m), np.zeros(m)
    )


@leaf
def way_after(net: Net, wires: Wires, device: Ints, rest: Floats, u: int, d: int) -> float:
    """Longest way from the finish of ``u`` on ``d`` through its consumers."""
    longest = 0.0
    for k in range(net.succ_ptr[u], net.succ_ptr[u + 1]):
        c = net.succ[k]
        way = rest[c]
        if device[c] != d:
            way += hop(wires, net.succ_bytes[k], d, device[c])
        longest = max(longest, way)
    return longest


@leaf
def refresh(net: Net, wires: Wires, cost: Floats, lane: Ints, plan: Plan, back: Back) -> None:
    """Bring ``back`` up to date, as far ahead as changes reach."""
    rows, q, first = back.lane_rest, back.stale[LAST], back.stale[FIRST]
    pending, moved = len(plan.order), True
    while q >= 0 and (moved or q >= first or q >= pending):
        u = plan.order[q]
        d = plan.device[u]
        r = lane[d]
        after = way_after(net, wires, plan.device, back.rest, u, d)
        rest = cost[u, d] + max(rows[q + 1, r], after)
        if rest != back.rest[u] or d != back.device[u]:
            back.rest[u], back.device[u] = rest, d
            for k in range(net.pred_ptr[u], net.pred_ptr[u + 1]):
                pending = min(pending, plan.position[net.pred[k]])
        moved = False
        for x in range(rows.shape[1]):
            now = rest if x == r else rows[q + 1, x]
            if rows[q, x] != now:
                rows[q, x] = now
                moved = True
        q -= 1
    back.stale[LAST], back.stale[FIRST] = -1, len(plan.order)


@leaf
def way_through(
    net: Net, wires: Wires, cost: Floats, plan: Plan, rest: Floats, t: int, d: int
) -> float:
    """Longest way from the start through ``t`` on ``d`` to the end, lanes of ``t`` left out.

    The makespan is at least that after any change of ``t`` alone, under both link models.
    """
    ready = 0.0
    for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
        p = net.pred[k]
        at = plan.finish[p]
        if plan.device[p] != d:
            at += hop(wires, net.pred_bytes[k], plan.device[p], d)
        ready = max(ready, at)
    return ready + cost[t, d] + way_after(net, wires, plan.device, rest, t, d)


@leaf
def forward(g: Graph, s: State, w: Gaps, here: int, high: int) -> None:
    """Fill ``w.finish`` of positions ``here`` + 1 to ``high`` without the task at ``here``."""
    net, wires, plan, front, cost, lane = g.net, g.wires, s.plan, s.front, g.cost, g.lane
    copy_into(w.lane, front.lane_free[here])
    for q in range(here + 1, high + 1):
        u = plan.order[q]
        if g.serial:
            w.finish[u] = plan.finish[u]
            continue
        d = plan.device[u]
        ready = w.lane[lane[d]]
        for k in range(net.pred_ptr[u], net.pred_ptr[u + 1]):
            p = net.pred[k]
            at = w.finish[p] if plan.position[p] > here else plan.finish[p]
            if plan.device[p] != d:
                at += hop(wires, net.pred_bytes[k], plan.device[p], d)
            ready = max(ready, at)
        w.finish[u] = ready + cost[u, d]
        w.lane[lane[d]] = w.finish[u]


@leaf
def backward(g: Graph, plan: Plan, back: Back, w: Gaps, low: int, here: int) -> None:
    """Fill ``w.rest`` of positions ``low`` to ``here`` - 1 without the task at ``here``."""
    net, wires, cost, lane = g.net, g.wires, g.cost, g.lane
    copy_into(w.lane_rest, back.lane_rest[here + 1])
    for q in range(here - 1, low - 1, -1):
        u = plan.order[q]
        d = plan.device[u]
        longest = w.lane_rest[lane[d]]
        for k in range(net.succ_ptr[u], net.succ_ptr[u + 1]):
            c = net.succ[k]
            way = w.rest[c] if plan.position[c] < here else back.rest[c]
            if plan.device[c] != d:
                way += hop(wires, net.succ_bytes[k], d, plan.device[c])
            longest = max(longest, way)
        w.rest[u] = w.lane_rest[lane[d]] = cost[u, d] + longest


@leaf
def fill_ends(net: Net, wires: Wires, plan: Plan, c: Copies, rest: Floats, w: Gaps, t: int) -> None:
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
        w.depart[d] = way_after(net, wires, plan.device, rest, t, d)


@leaf
def window(net: Net, position: Ints, t: int) -> tuple[int, int]:
    """First and last position that ``t`` can take in the order."""
    low, high = 0, len(position) - 1
    for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
        low = max(low, position[net.pred[k]] + 1)
    for k in range(net.succ_ptr[t], net.succ_ptr[t + 1]):
        high = min(high, position[net.succ[k]] - 1)
    return low, high


@leaf
def reinsertion(
    g: Graph, s: State, w: Gaps, t: int, heat: float, rng: Words
) -> tuple[int, int, float]:
    """(device, position, longest way through) of a good gap for ``t``; noise grows with ``heat``.

    The gap that the task is in is left out: whether to stay is decided by who accepts the move.
    The position is that of ``t`` in the order after the move; the device -1: there is none.
    ``s.back`` has to be up to date.
    """
    plan, cost, lane, held, room = s.plan, g.cost, g.lane, g.held, s.room
    low, high = window(g.net, plan.position, t)
    here = plan.position[t]
    forward(g, s, w, here, high)
    backward(g, plan, s.back, w, low, here)
    fill_ends(g.net, g.wires, plan, s.copies, s.back.rest, w, t)
    copy_into(w.lane, s.front.lane_free[low])
    noise = heat * s.value[CURRENT]
    best, device, position, through, m = BIG, NOWHERE, 0, 0.0, len(lane)
    own, passed = plan.device[t], False
    for q in range(low, high + 2):
        u = plan.order[q] if q <= high else NOWHERE
        if u == t:
            continue
        # ahead of a task are only the gaps of its lane
        only = u >= 0 and g.lanes == m
        low_d = plan.device[u] if only else NONE
        for d in range(low_d, low_d + 1 if only else m):
            r = lane[d]
            if d == own and q > here and not passed:
                continue  # the gap that the task is in
            open_gap = u < 0 or lane[plan.device[u]] == r
            fits = cost[t, d] < BIG and (d == own or held[t] <= room[d])
            if not (open_gap and fits):
                continue
            rest = s.back.lane_rest[high + 1, r]
            if u >= 0:
                rest = w.rest[u] if q < here else s.back.rest[u]
            way = max(w.lane[r], w.arrive[d]) + cost[t, d] + max(rest, w.depart[d])
            if way >= best:
                continue
            noisy = way - noise * np.log(1.0 - uniform(rng))
            if noisy < best:
                best, through, device, position = noisy, way, d, q - 1 if q > here else q
        if u >= 0:
            passed = passed or (q > here and lane[plan.device[u]] == lane[own])
            w.lane[lane[plan.device[u]]] = w.finish[u] if q > here else plan.finish[u]
    return device, position, 0.0 if g.serial else through
