"""Moves of the compiled search: what a trial changes in devices and order.

Reassign a task, a walk along edges or a group of tasks that is dear to cut; exchange two tasks'
devices; shift a task in the order, alone or with its relatives; reinsert it at its best gap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_core import (
    BIG,
    NONE,
    Graph,
    Net,
    Wires,
    Words,
    below,
    hop,
    leaf,
    uniform,
    zeros,
)
from crossdock.scheduler.compiled_reinsert import Gaps, new_gaps, reinsertion, window
from crossdock.scheduler.compiled_state import Plan, State, Trial
from crossdock.scheduler.problem import Floats, Ints

ON_PATH = 0.9  # share of moves that start at a task of the critical path
REINSERT = 0.5  # share of moves that are reinsertions; of the rest:
SINGLE, CLUSTER, EXCHANGE, SHIFT = 0.45, 0.65, 0.7, 0.85  # cumulative shares; then pulls
NEIGHBOUR = 0.5  # share of reassignments to a neighbour's device
ALSO_SHIFT = 0.6  # share of single reassignments that also shift
GROUP = 0.5  # share of cluster moves that take a group instead of a walk
GROUP_LOW, GROUP_RANGE = -2.0, 6.0  # log of the cut price that holds a group together
FAR = 0.3  # share of shifts to any position


class Changes(NamedTuple):
    """Scratch of a move; (n,) unless said otherwise."""

    task: Ints  # tasks whose device the trial changes
    old: Ints  # their devices before
    mark: Ints  # number of the pull that a task takes part in
    pulls: Ints  # (1,) pulls so far
    path: Ints  # a critical path, last task first
    length: Ints  # (1,) of the path
    before: Ints  # previous task on the same lane
    last: Ints  # (lanes,)


class Moves(NamedTuple):
    """Scratch of a search."""

    changes: Changes
    gaps: Gaps
    rng: Words  # uint64 (1,)


def new_moves(g: Graph, rng: Words) -> Moves:
    """Empty scratch."""
    n = len(g.cost)
    changes = Changes(
        zeros(n), zeros(n), zeros(n), zeros(1), zeros(n), zeros(1), zeros(n), zeros(g.lanes)
    )
    return Moves(changes, new_gaps(g), rng)


class Able(NamedTuple):
    """Where tasks can go: costs and memory."""

    cost: Floats  # (n, m)
    held: Floats  # (n,)
    room: Floats  # (m,)


@leaf
def reassign(able: Able, device: Ints, v: Changes, count: int, t: int, d: int) -> int:
    """Add "``t`` to device ``d``" to the trial if it can; returns the number of changes."""
    if device[t] == d or able.cost[t, d] >= BIG or able.held[t] > able.room[d]:
        return count
    v.task[count] = t
    v.old[count] = device[t]
    able.room[device[t]] += able.held[t]
    able.room[d] -= able.held[t]
    device[t] = d
    return count + 1


@leaf
def other_device(net: Net, device: Ints, m: int, t: int, rng: Words) -> int:
    """A device for ``t`` other than its own: often that of a neighbour."""
    if uniform(rng) < NEIGHBOUR:
        low, middle = net.pred_ptr[t], net.pred_ptr[t + 1]
        first = net.succ_ptr[t]
        both = middle - low + net.succ_ptr[t + 1] - first
        if both > 0:
            k = below(rng, both)
            u = net.pred[low + k] if k < middle - low else net.succ[first + k - (middle - low)]
            if device[u] != device[t]:
                return device[u]
    d = below(rng, m - 1)
    return d + 1 if d >= device[t] else d


@leaf
def reassign_walk(
    net: Net, able: Able, device: Ints, v: Changes, t: int, d: int, rng: Words
) -> int:
    """Reassign a walk along edges from ``t`` to ``d``; returns the number of changes."""
    size = 2 + below(rng, 6)
    if uniform(rng) < 0.15:
        size *= 4
    down = uniform(rng) < 0.5
    count = reassign(able, device, v, NONE, t, d)
    for _ in range(size):
        ptr = net.succ_ptr if down else net.pred_ptr
        low, high = ptr[t], ptr[t + 1]
        if low == high:
            break
        k = low + below(rng, high - low)
        t = net.succ[k] if down else net.pred[k]
        count = reassign(able, device, v, count, t, d)
    return count


@leaf
def reassign_group(
    net: Net, wires: Wires, able: Able, device: Ints, v: Changes, t: int, d: int, rng: Words
) -> int:
    """Reassign tasks around ``t`` on its device, along edges that are dear to cut.

    An edge joins with probability c / (c + scale), c its transfer time to the new device: like
    the clusters of R. Swendsen, J.-S. Wang, Physical Review Letters 58, 1987.
    """
    a = device[t]
    scale = able.cost[t, a] * np.exp(GROUP_RANGE * uniform(rng) + GROUP_LOW)
    count = reassign(able, device, v, NONE, t, d)
    done = 0
    while done < count:
        u = v.task[done]
        done += 1
        for k in range(net.pred_ptr[u], net.pred_ptr[u + 1]):
            c = hop(wires, net.pred_bytes[k], a, d)
            if device[net.pred[k]] == a and uniform(rng) * (c + scale) < c:
                count = reassign(able, device, v, count, net.pred[k], d)
        for k in range(net.succ_ptr[u], net.succ_ptr[u + 1]):
            c = hop(wires, net.succ_bytes[k], a, d)
            if device[net.succ[k]] == a and uniform(rng) * (c + scale) < c:
                count = reassign(able, device, v, count, net.succ[k], d)
    return count


@leaf
def shift_target(net: Net, plan: Plan, device: Ints, lane: Ints, t: int, rng: Words) -> int:
    """Another position for ``t`` between its producers and consumers; its own if there is none."""
    low, high = window(net, plan.position, t)
    here = plan.position[t]
    if high <= low:
        return here
    if uniform(rng) < FAR:
        return low + below(rng, high - low + 1)
    step = 1 if uniform(rng) < 0.5 else -1
    skip = 1 if uniform(rng) < 0.6 else 1 + below(rng, 4)
    q, target = here + step, here
    while low <= q <= high:
        if lane[device[plan.order[q]]] == lane[device[t]]:
            target = q
            skip -= 1
            if skip == 0:
                break
        q += step
    return target


@leaf
def shift(plan: Plan, trial: Trial, t: int, target: int) -> None:
    """Move ``t`` to position ``target`` of the trial order."""
    q = plan.position[t]
    step = 1 if target > q else -1
    while q != target:
        trial.order[q] = plan.order[q + step]
        q += step
    trial.order[target] = t


@leaf
def pull(net: Net, plan: Plan, trial: Trial, v: Changes, t: int, target: int) -> None:
    """Move ``t`` to ``target`` with its relatives in between: ancestors ahead, others back."""
    v.pulls[0] += 1
    number, here = v.pulls[0], plan.position[t]
    ahead = target < here
    step = -1 if ahead else 1
    ptr = net.succ_ptr if ahead else net.pred_ptr
    near = net.succ if ahead else net.pred
    v.mark[t] = number
    at = here
    for i in range(here, target + step, step):
        u = plan.order[i]
        for k in range(ptr[u], ptr[u + 1]):
            if v.mark[near[k]] == number:
                v.mark[u] = number
                break
        if v.mark[u] != number:
            trial.order[at] = u
            at += step
    for i in range(here, target + step, step):
        if v.mark[plan.order[i]] == number:
            trial.order[at] = plan.order[i]
            at += step


@leaf
def change_devices(g: Graph, s: State, v: Changes, t: int, kind: float, rng: Words) -> int:
    """Draw and make device changes around ``t`` in the trial; returns their number."""
    able, device = Able(g.cost, g.held, s.room), s.trial.device
    if kind >= EXCHANGE:
        return 0
    if kind >= CLUSTER:
        u = below(rng, len(device))
        d, e = device[t], device[u]
        if d == e:
            return 0
        return reassign(able, device, v, reassign(able, device, v, NONE, t, e), u, d)
    d = other_device(g.net, device, len(g.lane), t, rng)
    if kind < SINGLE:
        return reassign(able, device, v, NONE, t, d)
    if uniform(rng) < GROUP:
        return reassign_group(g.net, g.wires, able, device, v, t, d, rng)
    return reassign_walk(g.net, able, device, v, t, d, rng)


@leaf
def propose(g: Graph, s: State, v: Moves, heat: float) -> tuple[int, int, int, bool, float]:
    """Draw a move: (device changes, task to shift, its target position, with its relatives, way).

    The makespan is at least ``way`` after the move.
    """
    path, rng, n = v.changes, v.rng, len(s.plan.order)
    on_path = path.length[0] > 0 and uniform(rng) < ON_PATH
    t = path.path[below(rng, path.length[0])] if on_path else below(rng, n)
    target = s.plan.position[t]
    if uniform(rng) < REINSERT:
        d, position, way = reinsertion(g, s, v.gaps, t, heat, rng)
        if d < 0:
            return 0, t, target, False, 0.0
        able = Able(g.cost, g.held, s.room)
        return reassign(able, s.trial.device, path, NONE, t, d), t, position, False, way
    kind = uniform(rng)
    if len(g.lane) == 1:
        kind = EXCHANGE + (1.0 - EXCHANGE) * kind
    count = change_devices(g, s, path, t, kind, rng)
    if kind >= SHIFT:
        reach = 1 + int((n - 1) * uniform(rng) ** 2)
        target += reach if uniform(rng) < 0.5 else -reach
        return count, t, min(n - 1, max(0, target)), True, 0.0
    if kind >= EXCHANGE or (kind < SINGLE and uniform(rng) < ALSO_SHIFT):
        target = shift_target(g.net, s.plan, s.trial.device, g.lane, t, rng)
    return count, t, target, False, 0.0


@leaf
def undo_devices(held: Floats, room: Floats, device: Ints, v: Changes, count: int) -> None:
    """Take the trial's device changes back."""
    for i in range(count - 1, -1, -1):
        t = v.task[i]
        room[device[t]] += held[t]
        room[v.old[i]] -= held[t]
        device[t] = v.old[i]
