"""Compiled list schedulers: the seeds of the search.

Ranks: mean, least, largest and middle cost (HEFT variants, Topcuoglu et al. 2002), the mean
optimistic tail (PEFT: H. Arabnejad, J. Barbosa, IEEE TPDS 25(3), 2014) and the least tail.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_core import BIG, Graph, compiled, kernel
from crossdock.scheduler.problem import Floats, Ints

MEAN, LEAST, LARGEST, MIDDLE, OPTIMISTIC, FREE_COMM, LEAST_TAIL = range(7)
MAX_CHILDREN = 60


@kernel
def mean_link(g: Graph) -> tuple[float, float]:
    """Mean latency and inverse bandwidth over the reachable pairs."""
    m = g.cost.shape[1]
    latency, inv_bw, pairs = 0.0, 0.0, 0
    for a in range(m):
        for b in range(m):
            if a != b and g.latency[a, b] < BIG:
                latency += g.latency[a, b]
                inv_bw += g.inv_bw[a, b]
                pairs += 1
    if pairs == 0:
        return 0.0, 0.0
    return latency / pairs, inv_bw / pairs


@kernel
def task_weight(g: Graph, t: int, mode: int) -> float:
    """Cost of a task as a rank mode sees it, over the devices that can run it."""
    total, least, largest, count = 0.0, BIG, 0.0, 0
    for d in range(g.cost.shape[1]):
        c = g.cost[t, d]
        if c < BIG:
            total += c
            least = min(least, c)
            largest = max(largest, c)
            count += 1
    if mode == LEAST:
        return least
    if mode == LARGEST:
        return largest
    if mode == MIDDLE:
        return 0.5 * (total / count + least)
    return total / count


@kernel
def optimistic_rank(g: Graph, t: int, mode: int) -> float:
    """Mean or least of cost plus optimistic tail over the devices."""
    total, least, count = 0.0, BIG, 0
    for d in range(g.cost.shape[1]):
        v = g.cost[t, d] + g.tail[t, d]
        if v < BIG:
            total += v
            least = min(least, v)
            count += 1
    if mode == LEAST_TAIL:
        return least
    return total / max(1, count)


@compiled
def ranks(g: Graph, mode: int) -> Floats:
    """Priority of every task, larger first; float64 (n,)."""
    n = g.cost.shape[0]
    rank = np.zeros(n)
    latency, inv_bw = mean_link(g)
    share = 1.0
    if mode in (LEAST, MIDDLE):
        share = 0.5
    elif mode == FREE_COMM:
        share = 0.0
    for q in range(n - 1, -1, -1):
        t = g.topo[q]
        if mode in (OPTIMISTIC, LEAST_TAIL):
            rank[t] = optimistic_rank(g, t, mode)
            continue
        best = 0.0
        for k in range(g.succ_ptr[t], g.succ_ptr[t + 1]):
            comm = share * (latency + g.succ_bytes[k] * inv_bw)
            best = max(best, comm + rank[g.succ[k]])
        rank[t] = task_weight(g, t, mode) + best
    return rank


@compiled
def order_by(g: Graph, priority: Floats) -> Ints:
    """Topological order, of the ready tasks always the one of the largest priority."""
    n = len(priority)
    position = np.empty(n, np.int64)
    for i in range(n):
        position[g.topo[i]] = i
    by_topo = np.empty(n)
    for i in range(n):
        by_topo[i] = -priority[g.topo[i]]
    sequence = np.argsort(by_topo, kind="mergesort")
    place = np.empty(n, np.int64)
    for i in range(n):
        place[g.topo[sequence[i]]] = i
    return ready_order(g, place, sequence)


@compiled
def ready_order(g: Graph, place: Ints, sequence: Ints) -> Ints:
    """Topological order that follows ``sequence`` (indices into topo) as far as it can."""
    n = len(place)
    waits = np.empty(n, np.int64)
    ready = np.zeros(n, np.bool_)
    for t in range(n):
        waits[t] = g.pred_ptr[t + 1] - g.pred_ptr[t]
        if waits[t] == 0:
            ready[place[t]] = True
    order = np.empty(n, np.int64)
    at = 0
    for i in range(n):
        while not ready[at]:
            at += 1
        t = g.topo[sequence[at]]
        ready[at] = False
        order[i] = t
        at += 1
        for k in range(g.succ_ptr[t], g.succ_ptr[t + 1]):
            c = g.succ[k]
            waits[c] -= 1
            if waits[c] == 0:
                ready[place[c]] = True
                at = min(at, place[c])
    return order


@kernel
def earliest(starts: Floats, finishes: Floats, count: int, ready: float, takes: float):
    """(start, index) of the first gap of ``takes`` at or after ``ready`` on one lane."""
    low, high = 0, count
    while low < high:
        mid = (low + high) // 2
        if finishes[mid] <= ready:
            low = mid + 1
        else:
            high = mid
    begin = ready
    for i in range(low, count):
        if begin + takes <= starts[i]:
            return begin, i
        begin = max(begin, finishes[i])
    return begin, count


@kernel
def occupy(starts: Floats, finishes: Floats, count: int, at: int, begin: float, end: float) -> None:
    """Insert an interval at an index of a lane."""
    for i in range(count, at, -1):
        starts[i] = starts[i - 1]
        finishes[i] = finishes[i - 1]
    starts[at] = begin
    finishes[at] = end


@kernel
def release(starts: Floats, finishes: Floats, count: int, at: int) -> None:
    """Remove the interval at an index of a lane."""
    for i in range(at, count - 1):
        starts[i] = starts[i + 1]
        finishes[i] = finishes[i + 1]


class Partial(NamedTuple):
    """A partial schedule with an undo log of transfers."""

    device: Ints  # (n,), -1 while not placed
    start: Floats  # (n,)
    finish: Floats  # (n,)
    starts: Floats  # (lanes, n + slack) busy intervals of every lane
    finishes: Floats
    count: Ints  # (lanes,)
    sent: Floats  # (tensors, m) arrivals, negative where not sent; serial links only
    channel: Floats  # (m, m) when a link direction is free
    room: Floats  # (m,) bytes left for parameters
    log: Ints  # (k, 2) tensors sent, newest last
    logged: Ints  # (1,)


@compiled
def empty_partial(g: Graph) -> Partial:
    """Nothing placed yet."""
    n, m = g.cost.shape
    wide = n + MAX_CHILDREN + 1
    tensors = g.tensors if g.serial else 0
    return Partial(
        np.full(n, -1, np.int64),
        np.zeros(n),
        np.zeros(n),
        np.empty((g.lanes, wide)),
        np.empty((g.lanes, wide)),
        np.zeros(g.lanes, np.int64),
        np.full((tensors, m), -1.0),
        np.zeros((m, m)),
        g.room.copy(),
        np.empty((tensors * m + 1, 2), np.int64),
        np.zeros(1, np.int64),
    )


@kernel
def arrival(g: Graph, s: Partial, t: int, d: int, queue: Floats) -> float:
    """When the placed inputs of ``t`` can be on ``d``; nothing is committed.

    ``queue`` (m,) is scratch for the directions into ``d``.
    """
    ready = 0.0
    if g.serial:
        for a in range(len(queue)):
            queue[a] = s.channel[a, d]
    for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
        p = g.pred[k]
        a = s.device[p]
        if a < 0:
            continue
        at = s.finish[p]
        if a != d:
            takes = g.latency[a, d] + g.pred_bytes[k] * g.inv_bw[a, d]
            if not g.serial:
                at += takes
            elif s.sent[g.pred_tensor[k], d] >= 0.0:
                at = s.sent[g.pred_tensor[k], d]
            else:
                at = max(at, queue[a]) + takes
                queue[a] = at
        ready = max(ready, at)
    return ready


@kernel
def send_inputs(g: Graph, s: Partial, t: int, d: int) -> None:
    """Commit the transfers that ``arrival`` priced."""
    for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
        p = g.pred[k]
        a = s.device[p]
        x = g.pred_tensor[k]
        if a >= 0 and a != d and s.sent[x, d] < 0.0:
            takes = g.latency[a, d] + g.pred_bytes[k] * g.inv_bw[a, d]
            s.channel[a, d] = max(s.finish[p], s.channel[a, d]) + takes
            s.sent[x, d] = s.channel[a, d]
            s.log[s.logged[0], 0] = x
            s.log[s.logged[0], 1] = d
            s.logged[0] += 1


@kernel
def place(g: Graph, s: Partial, t: int, d: int, begin: float, at: int) -> float:
    """Put ``t`` on ``d`` at a gap found by ``earliest``; returns its finish."""
    if g.serial:
        send_inputs(g, s, t, d)
    r = g.lane[d]
    end = begin + g.cost[t, d]
    occupy(s.starts[r], s.finishes[r], s.count[r], at, begin, end)
    s.count[r] += 1
    s.start[t], s.finish[t], s.device[t] = begin, end, d
    return end


@kernel
def unsend(s: Partial, mark: int) -> None:
    """Forget the transfers logged since ``mark``; the caller restores the channels."""
    for i in range(mark, s.logged[0]):
        s.sent[s.log[i, 0], s.log[i, 1]] = -1.0
    s.logged[0] = mark


@kernel
def best_device(g: Graph, s: Partial, t: int, bias: Floats, queue: Floats):
    """(device, start, index) of the least finish plus ``bias`` (m,); device -1: none."""
    best, best_key, best_start, best_at = -1, BIG, 0.0, 0
    for d in range(g.cost.shape[1]):
        if g.cost[t, d] >= BIG or g.tail[t, d] >= BIG or g.held[t] > s.room[d]:
            continue
        ready = arrival(g, s, t, d, queue)
        r = g.lane[d]
        begin, at = earliest(s.starts[r], s.finishes[r], s.count[r], ready, g.cost[t, d])
        key = begin + g.cost[t, d] + bias[d]
        if key < best_key:
            best, best_key, best_start, best_at = d, key, begin, at
    return best, best_start, best_at


@kernel
def insert_all(g: Graph, s: Partial, order: Ints, bias: Floats, queue: Floats) -> float:
    """Insertion list schedule into ``s``; a device is chosen by finish plus ``bias`` (n, m).

    Returns the makespan, BIG if some task found no device.
    """
    clear(g, s)
    makespan = 0.0
    for q in range(len(order)):
        t = order[q]
        d, begin, at = best_device(g, s, t, bias[t], queue)
        if d < 0:
            return BIG
        makespan = max(makespan, place(g, s, t, d, begin, at))
        s.room[d] -= g.held[t]
    return makespan


@kernel
def clear(g: Graph, s: Partial) -> None:
    """Take everything out of a partial schedule."""
    for t in range(len(s.device)):
        s.device[t] = -1
    for r in range(g.lanes):
        s.count[r] = 0
    for x in range(len(s.sent)):
        for d in range(len(s.room)):
            s.sent[x, d] = -1.0
    for a in range(len(s.room)):
        s.room[a] = g.room[a]
        for b in range(len(s.room)):
            s.channel[a, b] = 0.0
    s.logged[0] = 0


@compiled
def insertion(g: Graph, order: Ints, bias: Floats) -> tuple[float, Ints, Floats]:
    """(makespan, device, start) of one insertion list schedule, see ``insert_all``."""
    s = empty_partial(g)
    makespan = insert_all(g, s, order, bias, np.zeros(g.cost.shape[1]))
    return makespan, s.device, s.start


@compiled
def children_of(g: Graph, t: int, rank: Floats) -> Ints:
    """Most urgent consumers of a task, at most MAX_CHILDREN."""
    low, high = g.succ_ptr[t], g.succ_ptr[t + 1]
    children = g.succ[low:high].copy()
    children = children[np.argsort(-rank[children], kind="mergesort")]
    return children[:MAX_CHILDREN]


@kernel
def child_horizon(
    g: Graph, s: Partial, t: int, d: int, children: Ints, spots: Ints, scratch: Floats
) -> float:
    """Latest finish of ``t`` on ``d`` and its children, each placed greedily; then undone.

    ``scratch`` (m + 2, m): rows for the link queue, a zero bias and the saved link directions.
    """
    queue, zero, saved = scratch[0], scratch[1], scratch[2:]
    mark = s.logged[0]
    if g.serial:
        copy_square(saved, s.channel)
    ready = arrival(g, s, t, d, queue)
    r = g.lane[d]
    begin, at = earliest(s.starts[r], s.finishes[r], s.count[r], ready, g.cost[t, d])
    worst = place(g, s, t, d, begin, at)
    done = 0
    for c in children:
        e, child_begin, child_at = best_device(g, s, c, zero, queue)
        if e < 0:
            worst = BIG
            break
        worst = max(worst, place(g, s, c, e, child_begin, child_at))
        spots[done, 0], spots[done, 1] = c, child_at
        done += 1
    for i in range(done - 1, -1, -1):
        remove(g, s, spots[i, 0], spots[i, 1])
    remove(g, s, t, at)
    if g.serial:
        unsend(s, mark)
        copy_square(s.channel, saved)
    return worst


@kernel
def copy_square(target: Floats, source: Floats) -> None:
    """Copy a small matrix."""
    for a in range(target.shape[0]):
        for b in range(target.shape[1]):
            target[a, b] = source[a, b]


@kernel
def remove(g: Graph, s: Partial, t: int, at: int) -> None:
    """Take ``t`` off its lane, where it is at index ``at``."""
    r = g.lane[s.device[t]]
    release(s.starts[r], s.finishes[r], s.count[r], at)
    s.count[r] -= 1
    s.device[t] = -1


@compiled
def look_ahead(g: Graph, order: Ints, rank: Floats) -> tuple[float, Ints, Floats]:
    """One-level look-ahead HEFT with insertion; results as of ``insertion``."""
    s = empty_partial(g)
    m = g.cost.shape[1]
    scratch = np.zeros((m + 2, m))
    spots = np.empty((MAX_CHILDREN, 2), np.int64)
    makespan = 0.0
    for q in range(len(order)):
        t = order[q]
        end = place_looking_ahead(g, s, t, children_of(g, t, rank), spots, scratch)
        if end >= BIG:
            return BIG, s.device, s.start
        makespan = max(makespan, end)
    return makespan, s.device, s.start


@kernel
def place_looking_ahead(
    g: Graph, s: Partial, t: int, children: Ints, spots: Ints, scratch: Floats
) -> float:
    """Place ``t`` where its children end first; returns its finish, BIG if it has no device."""
    best, best_key = -1, BIG
    for d in range(g.cost.shape[1]):
        if g.cost[t, d] >= BIG or g.tail[t, d] >= BIG or g.held[t] > s.room[d]:
            continue
        key = child_horizon(g, s, t, d, children, spots, scratch)
        if key < best_key:
            best, best_key = d, key
    if best < 0:
        return BIG
    r = g.lane[best]
    ready = arrival(g, s, t, best, scratch[0])
    begin, at = earliest(s.starts[r], s.finishes[r], s.count[r], ready, g.cost[t, best])
    s.room[best] -= g.held[t]
    return place(g, s, t, best, begin, at)


@compiled
def order_by_start(g: Graph, device: Ints, start: Floats) -> Ints:
    """Tasks by start, then finish, then topology: a topological order, int64 (n,)."""
    n = len(start)
    key = np.empty(n)
    order = g.topo.copy()
    for i in range(n):
        key[i] = start[order[i]] + g.cost[order[i], device[order[i]]]
    order = order[np.argsort(key, kind="mergesort")]
    for i in range(n):
        key[i] = start[order[i]]
    return order[np.argsort(key, kind="mergesort")]
