"""Compiled insertion-based list schedulers: the seeds of the search.

The algorithms are those of :mod:`crossdock.scheduler.lists`. Under serial links a schedule is only
an estimate (a tensor is priced by the edge that first needs it): the caller evaluates it exactly.
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
    copy_into,
    hop,
    kernel,
    leaf,
    part,
    zeros,
)
from crossdock.scheduler.problem import Floats, Ints

MAX_CHILDREN = 60


class Placed(NamedTuple):
    """Tasks placed so far."""

    device: Ints  # (n,), -1 while not placed
    start: Floats  # (n,)
    finish: Floats  # (n,)
    room: Floats  # (m,) bytes left


class Lanes(NamedTuple):
    """Busy intervals of every lane, sorted."""

    starts: Floats  # (lanes, n + slack)
    finishes: Floats
    used: Ints  # (lanes,) intervals


class Sent(NamedTuple):
    """Transfers so far under serial links; no tensors under free ones."""

    arrival: Floats  # (tensors, m), negative where not sent
    channel: Floats  # (m, m) when a direction is free
    log: Ints  # (k, 2) tensors sent and devices, newest last
    logged: Ints  # (1,)
    queue: Floats  # (m,) scratch


class Partial(NamedTuple):
    """A partial schedule."""

    placed: Placed
    lanes: Lanes
    sent: Sent


def empty_partial(g: Graph) -> Partial:
    """Nothing placed yet."""
    n, m = g.cost.shape
    wide = n + MAX_CHILDREN + 1
    tensors = g.tensors if g.serial else 0
    return Partial(
        Placed(np.full(n, -1, np.int64), np.zeros(n), np.zeros(n), g.room.copy()),
        Lanes(np.zeros((g.lanes, wide)), np.zeros((g.lanes, wide)), zeros(g.lanes)),
        Sent(
            np.full((tensors, m), -1.0),
            np.zeros((m, m)),
            zeros(tensors * m + 1, 2),
            zeros(1),
            np.zeros(m),
        ),
    )


@kernel
def clear(g: Graph, s: Partial) -> None:
    """Take everything out of a partial schedule."""
    placed, lanes, sent = s.placed, s.lanes, s.sent
    for t in range(len(placed.device)):
        placed.device[t] = -1
    for r in range(g.lanes):
        lanes.used[r] = 0
    for x in range(len(sent.arrival)):
        for d in range(len(g.room)):
            sent.arrival[x, d] = -1.0
    copy_into(placed.room, g.room)
    for a in range(len(g.room)):
        for b in range(len(g.room)):
            sent.channel[a, b] = 0.0
    sent.logged[0] = 0


@leaf
def earliest(lanes: Lanes, r: int, ready: float, takes: float) -> tuple[float, int]:
    """(start, index) of the first gap of ``takes`` at or after ``ready`` on lane ``r``."""
    low, count = 0, lanes.used[r]
    high = count
    while low < high:
        mid = (low + high) // 2
        if lanes.finishes[r, mid] <= ready:
            low = mid + 1
        else:
            high = mid
    begin = ready
    for i in range(low, count):
        if begin + takes <= lanes.starts[r, i]:
            return begin, i
        begin = max(begin, lanes.finishes[r, i])
    return begin, count


@leaf
def occupy(lanes: Lanes, r: int, at: int, begin: float, end: float) -> None:
    """Insert an interval at an index of lane ``r``."""
    i = lanes.used[r]
    while i > at:
        lanes.starts[r, i] = lanes.starts[r, i - 1]
        lanes.finishes[r, i] = lanes.finishes[r, i - 1]
        i -= 1
    lanes.starts[r, at] = begin
    lanes.finishes[r, at] = end
    lanes.used[r] += 1


@leaf
def release(lanes: Lanes, r: int, at: int) -> None:
    """Remove the interval at an index of lane ``r``."""
    lanes.used[r] -= 1
    for i in range(at, lanes.used[r]):
        lanes.starts[r, i] = lanes.starts[r, i + 1]
        lanes.finishes[r, i] = lanes.finishes[r, i + 1]


@part
def arrival(net: Net, wires: Wires, placed: Placed, sent: Sent, t: int, d: int) -> float:
    """When the placed inputs of ``t`` can be on ``d``; nothing is committed."""
    ready, serial, queue = 0.0, len(sent.arrival) > 0, sent.queue
    if serial:
        for a in range(len(queue)):
            queue[a] = sent.channel[a, d]
    for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
        p = net.pred[k]
        a = placed.device[p]
        if a < 0:
            continue
        at = placed.finish[p]
        if a != d:
            takes = hop(wires, net.pred_bytes[k], a, d)
            if not serial:
                at += takes
            elif sent.arrival[net.pred_tensor[k], d] >= 0.0:
                at = sent.arrival[net.pred_tensor[k], d]
            else:
                at = max(at, queue[a]) + takes
                queue[a] = at
        ready = max(ready, at)
    return ready


@part
def send_inputs(net: Net, wires: Wires, placed: Placed, sent: Sent, t: int, d: int) -> None:
    """Commit the transfers that ``arrival`` priced."""
    for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
        p, x = net.pred[k], net.pred_tensor[k]
        a = placed.device[p]
        if a >= 0 and a != d and sent.arrival[x, d] < 0.0:
            takes = hop(wires, net.pred_bytes[k], a, d)
            sent.channel[a, d] = max(placed.finish[p], sent.channel[a, d]) + takes
            sent.arrival[x, d] = sent.channel[a, d]
            sent.log[sent.logged[0], 0] = x
            sent.log[sent.logged[0], 1] = d
            sent.logged[0] += 1


@part
def place(g: Graph, s: Partial, t: int, d: int, begin: float, at: int) -> float:
    """Put ``t`` on ``d`` at a gap found by ``earliest``; returns its finish."""
    placed = s.placed
    if g.serial:
        send_inputs(g.net, g.wires, placed, s.sent, t, d)
    end = begin + g.cost[t, d]
    occupy(s.lanes, g.lane[d], at, begin, end)
    placed.start[t], placed.finish[t], placed.device[t] = begin, end, d
    placed.room[d] -= g.held[t]
    return end


@part
def remove(g: Graph, s: Partial, t: int, at: int) -> None:
    """Take ``t`` off its lane, where it is at index ``at``; its transfers stay."""
    d = s.placed.device[t]
    release(s.lanes, g.lane[d], at)
    s.placed.device[t] = -1
    s.placed.room[d] += g.held[t]


@part
def gap_on(g: Graph, s: Partial, t: int, d: int) -> tuple[float, int]:
    """(start, index) of the earliest gap for ``t`` on ``d``; BIG where it cannot run."""
    if g.cost[t, d] >= BIG or g.tail[t, d] >= BIG or g.held[t] > s.placed.room[d]:
        return BIG, 0
    ready = arrival(g.net, g.wires, s.placed, s.sent, t, d)
    return earliest(s.lanes, g.lane[d], ready, g.cost[t, d])


@part
def best_device(g: Graph, s: Partial, t: int, bias: Floats, share: float) -> tuple[int, float, int]:
    """(device, start, index) of the least finish plus ``share * bias[t]``; device -1: none."""
    best, best_key, best_start, best_at = NOWHERE, BIG, 0.0, 0
    for d in range(len(g.lane)):
        begin, at = gap_on(g, s, t, d)
        key = begin + g.cost[t, d]
        if share != 0.0:
            key += share * bias[t, d]
        if begin < BIG and key < best_key:
            best, best_key, best_start, best_at = d, key, begin, at
    return best, best_start, best_at


@part
def insert_all(g: Graph, s: Partial, order: Ints, bias: Floats, share: float) -> float:
    """Insertion list schedule into ``s``, a device chosen by finish plus ``share * bias`` (n, m).

    Returns the makespan, BIG if some task found no device.
    """
    clear(g, s)
    makespan = 0.0
    for q in range(len(order)):
        t = order[q]
        d, begin, at = best_device(g, s, t, bias, share)
        if d < 0:
            return BIG
        makespan = max(makespan, place(g, s, t, d, begin, at))
    return makespan


@part
def child_horizon(
    g: Graph, s: Partial, t: int, d: int, children: Ints, count: int, spots: Ints
) -> float:
    """Latest finish of ``t`` on ``d`` and its children, each placed greedily; then undone.

    The caller restores the link directions. ``spots`` (MAX_CHILDREN, 2) is scratch.
    """
    begin, at = gap_on(g, s, t, d)
    if begin >= BIG:
        return BIG
    mark = s.sent.logged[0]
    worst = place(g, s, t, d, begin, at)
    done = 0
    for i in range(count):
        c = children[i]
        e, child_begin, child_at = best_device(g, s, c, g.tail, 0.0)
        if e < 0:
            worst = BIG
            break
        worst = max(worst, place(g, s, c, e, child_begin, child_at))
        spots[done, 0], spots[done, 1] = c, child_at
        done += 1
    for i in range(done - 1, -1, -1):
        remove(g, s, spots[i, 0], spots[i, 1])
    remove(g, s, t, at)
    for i in range(mark, s.sent.logged[0]):
        s.sent.arrival[s.sent.log[i, 0], s.sent.log[i, 1]] = -1.0
    s.sent.logged[0] = mark
    return worst


@part
def urgent_children(net: Net, rank: Floats, t: int, children: Ints) -> int:
    """Fill ``children`` with the consumers of ``t``, largest rank first; returns their number."""
    count = 0
    for k in range(net.succ_ptr[t], net.succ_ptr[t + 1]):
        c = net.succ[k]
        if count == MAX_CHILDREN:
            if rank[children[count - 1]] >= rank[c]:
                continue
            count -= 1
        i = count
        while i > 0 and rank[children[i - 1]] < rank[c]:
            children[i] = children[i - 1]
            i -= 1
        children[i] = c
        count += 1
    return count


@kernel
def look_ahead_all(
    g: Graph, s: Partial, order: Ints, rank: Floats, spots: Ints, children: Ints, saved: Floats
) -> float:
    """One-level look-ahead HEFT into ``s``; returns the makespan, BIG if a task found no device.

    ``spots`` (MAX_CHILDREN, 2), ``children`` (MAX_CHILDREN,) and ``saved`` (m, m) are scratch.
    """
    makespan, m = 0.0, len(g.lane)
    for q in range(len(order)):
        t = order[q]
        count = urgent_children(g.net, rank, t, children)
        best, best_key = NOWHERE, BIG
        for a in range(m):
            copy_into(saved[a], s.sent.channel[a])
        for d in range(m):
            key = child_horizon(g, s, t, d, children, count, spots)
            for a in range(m):
                copy_into(s.sent.channel[a], saved[a])
            if key < best_key:
                best, best_key = d, key
        if best < 0:
            return BIG
        begin, at = gap_on(g, s, t, best)
        makespan = max(makespan, place(g, s, t, best, begin, at))
    return makespan


def look_ahead(g: Graph, s: Partial, order: Ints, rank: Floats) -> float:
    """One-level look-ahead HEFT with insertion into ``s``; returns the makespan."""
    m = len(g.lane)
    scratch = (zeros(MAX_CHILDREN, 2), zeros(MAX_CHILDREN), np.zeros((m, m)))
    clear(g, s)
    return look_ahead_all(g, s, order, rank, *scratch)
