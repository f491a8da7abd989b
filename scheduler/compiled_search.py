"""Simulated annealing over (topological order, device vector), compiled.

Moves: reassign a task, reassign a connected cluster (which crosses offload barriers), exchange the
devices of two tasks, and shift a task in the order; most start at a task of the critical path.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_core import (
    BIG,
    Graph,
    below,
    compiled,
    copy_into,
    kernel,
    uniform,
)
from crossdock.scheduler.compiled_reinsert import Gaps, new_gaps, reinsertion
from crossdock.scheduler.compiled_state import State, commit, evaluate, reject
from crossdock.scheduler.problem import Floats, Ints

PULL = 0.15  # share of moves that shift a task with its relatives
NEIGHBOUR = 0.5  # share of reassignments to a neighbour's device


class Moves(NamedTuple):
    """Scratch of a search: the trial's changes and the critical path."""

    task: Ints  # (n,) tasks whose device the trial changes
    old: Ints  # (n,) their devices before
    path: Ints  # (n,) a critical path, last task first
    length: Ints  # (1,) of the path
    before: Ints  # (n,) previous task on the same lane
    last: Ints  # (lanes,)
    mark: Ints  # (n,) number of the pull that a task takes part in
    pulls: Ints  # (1,) pulls so far
    mix: Floats
    gaps: Gaps
    rng: np.ndarray  # uint64 (1,)


@compiled
def new_moves(g: Graph, rng: np.ndarray) -> Moves:
    """Empty scratch."""
    n = g.cost.shape[0]
    return Moves(
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(1, np.int64),
        np.zeros(n, np.int64),
        np.zeros(g.lanes, np.int64),
        np.zeros(n, np.int64),
        np.zeros(1, np.int64),
        np.array(
            [
                0.75,
                0.45,
                0.65,
                0.7,
                0.85,
                0.5,
                0.3,
                0.0,
                2.0,
                0.15,
                6.0,
                0.2,
                0.5,
                6.0,
                -2.0,
                0.0,
                1.0,
            ]
        ),
        new_gaps(g),
        rng,
    )


@kernel
def input_arrival(g: Graph, s: State, k: int, t: int) -> float:
    """Arrival of predecessor edge ``k`` of ``t`` in the current solution."""
    p = g.pred[k]
    a, d = s.device[p], s.device[t]
    if a == d:
        return s.finish[p]
    if g.serial:
        return s.sent[g.pred_tensor[k], d]
    return s.finish[p] + g.latency[a, d] + g.pred_bytes[k] * g.inv_bw[a, d]


@kernel
def trace_path(g: Graph, s: State, v: Moves) -> None:
    """Fill ``v.path`` with a chain of tasks that wait for one another up to the makespan."""
    n = len(s.order)
    for r in range(g.lanes):
        v.last[r] = -1
    t = -1
    for q in range(n):
        u = s.order[q]
        r = g.lane[s.device[u]]
        v.before[u] = v.last[r]
        v.last[r] = u
        if t < 0 and s.finish[u] >= s.value[0]:
            t = u
    count = 0
    eps = 1e-9 * s.value[0]
    while t >= 0:
        v.path[count] = t
        count += 1
        if s.start[t] <= 0.0 or count == n:
            break
        by_lane = v.before[t]
        if by_lane >= 0 and s.finish[by_lane] < s.start[t] - eps:
            by_lane = -1
        by_input = -1
        for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
            if input_arrival(g, s, k, t) >= s.start[t] - eps:
                by_input = g.pred[k]
                break
        if by_lane < 0 or (by_input >= 0 and uniform(v.rng) < 0.5):
            t = by_input
        else:
            t = by_lane
    v.length[0] = count


@kernel
def reassign(g: Graph, s: State, v: Moves, count: int, t: int, d: int) -> int:
    """Add "``t`` to device ``d``" to the trial if it can; returns the number of changes."""
    if s.new_device[t] == d or g.cost[t, d] >= BIG or g.held[t] > s.room[d]:
        return count
    v.task[count] = t
    v.old[count] = s.new_device[t]
    s.room[s.new_device[t]] += g.held[t]
    s.room[d] -= g.held[t]
    s.new_device[t] = d
    return count + 1


@kernel
def other_device(g: Graph, s: State, v: Moves, t: int) -> int:
    """A device for ``t`` other than its own: half of the time that of a neighbour."""
    if uniform(v.rng) < v.mix[5]:
        low, middle = g.pred_ptr[t], g.pred_ptr[t + 1]
        first = g.succ_ptr[t]
        both = middle - low + g.succ_ptr[t + 1] - first
        if both > 0:
            k = below(v.rng, both)
            u = g.pred[low + k] if k < middle - low else g.succ[first + k - (middle - low)]
            if s.device[u] != s.device[t]:
                return s.device[u]
    d = below(v.rng, g.cost.shape[1] - 1)
    return d + 1 if d >= s.device[t] else d


@kernel
def reassign_cluster(g: Graph, s: State, v: Moves, t: int) -> int:
    """Reassign a walk along edges from ``t``; returns the number of changes."""
    d = other_device(g, s, v, t)
    size = 2 + below(v.rng, int(v.mix[10]))
    if uniform(v.rng) < v.mix[9]:
        size *= 4
    down = uniform(v.rng) < 0.5
    count = reassign(g, s, v, 0, t, d)
    for _ in range(size):
        low, high = (
            (g.succ_ptr[t], g.succ_ptr[t + 1]) if down else (g.pred_ptr[t], g.pred_ptr[t + 1])
        )
        if low == high:
            break
        k = low + below(v.rng, high - low)
        t = g.succ[k] if down else g.pred[k]
        count = reassign(g, s, v, count, t, d)
    return count


@kernel
def reassign_group(g: Graph, s: State, v: Moves, t: int, scale: float) -> int:
    """Reassign tasks around ``t`` on its device, along edges that are dear to cut.

    An edge joins with probability c / (c + scale), c its transfer time to the new device: like
    the clusters of R. Swendsen, J.-S. Wang, Physical Review Letters 58, 1987.
    """
    a, d = s.device[t], other_device(g, s, v, t)
    count = reassign(g, s, v, 0, t, d)
    done = 0
    while done < count:
        u = v.task[done]
        done += 1
        for k in range(g.pred_ptr[u], g.pred_ptr[u + 1]):
            c = g.latency[a, d] + g.pred_bytes[k] * g.inv_bw[a, d]
            if s.new_device[g.pred[k]] == a and uniform(v.rng) * (c + scale) < c:
                count = reassign(g, s, v, count, g.pred[k], d)
        for k in range(g.succ_ptr[u], g.succ_ptr[u + 1]):
            c = g.latency[a, d] + g.succ_bytes[k] * g.inv_bw[a, d]
            if s.new_device[g.succ[k]] == a and uniform(v.rng) * (c + scale) < c:
                count = reassign(g, s, v, count, g.succ[k], d)
    return count


@kernel
def exchange(g: Graph, s: State, v: Moves, t: int) -> int:
    """Exchange the devices of ``t`` and another task; returns the number of changes."""
    u = s.order[below(v.rng, len(s.order))]
    d, e = s.device[t], s.device[u]
    if d == e:
        return 0
    return reassign(g, s, v, reassign(g, s, v, 0, t, e), u, d)


@kernel
def shift_target(g: Graph, s: State, v: Moves, t: int) -> int:
    """Another position for ``t`` between its producers and consumers; its own if there is none."""
    low, high, here = 0, len(s.order) - 1, s.position[t]
    for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
        low = max(low, s.position[g.pred[k]] + 1)
    for k in range(g.succ_ptr[t], g.succ_ptr[t + 1]):
        high = min(high, s.position[g.succ[k]] - 1)
    if high <= low:
        return here
    r = g.lane[s.new_device[t]]
    if uniform(v.rng) < 0.3:
        return low + below(v.rng, high - low + 1)
    step = 1 if uniform(v.rng) < 0.5 else -1
    skip = 1 if uniform(v.rng) < 0.6 else 1 + below(v.rng, 4)
    q, target = here + step, here
    while low <= q <= high:
        if g.lane[s.new_device[s.order[q]]] == r:
            target = q
            skip -= 1
            if skip == 0:
                break
        q += step
    return target


@kernel
def shift(s: State, t: int, target: int) -> None:
    """Move ``t`` to position ``target`` of the trial order."""
    here = s.position[t]
    step = 1 if target > here else -1
    q = here
    while q != target:
        s.new_order[q] = s.order[q + step]
        q += step
    s.new_order[target] = t


@kernel
def pull_ahead(g: Graph, s: State, v: Moves, t: int, target: int) -> None:
    """Move ``t`` ahead to ``target``, with those of its ancestors that are in between."""
    v.pulls[0] += 1
    number = v.pulls[0]
    v.mark[t] = number
    here = s.position[t]
    q = here
    for i in range(here, target - 1, -1):
        u = s.order[i]
        for k in range(g.succ_ptr[u], g.succ_ptr[u + 1]):
            if v.mark[g.succ[k]] == number:
                v.mark[u] = number
                break
        if v.mark[u] != number:
            s.new_order[q] = u
            q -= 1
    for i in range(here, target - 1, -1):
        if v.mark[s.order[i]] == number:
            s.new_order[q] = s.order[i]
            q -= 1


@kernel
def push_back(g: Graph, s: State, v: Moves, t: int, target: int) -> None:
    """Move ``t`` back to ``target``, with those of its descendants that are in between."""
    v.pulls[0] += 1
    number = v.pulls[0]
    v.mark[t] = number
    here = s.position[t]
    q = here
    for i in range(here, target + 1):
        u = s.order[i]
        for k in range(g.pred_ptr[u], g.pred_ptr[u + 1]):
            if v.mark[g.pred[k]] == number:
                v.mark[u] = number
                break
        if v.mark[u] != number:
            s.new_order[q] = u
            q += 1
    for i in range(here, target + 1):
        if v.mark[s.order[i]] == number:
            s.new_order[q] = s.order[i]
            q += 1


@kernel
def change_window(g: Graph, s: State, v: Moves, count: int, first: int):
    """(first position, last position) that the trial's device changes touch directly."""
    lo, reach = first, 0
    for i in range(count):
        u = v.task[i]
        lo = min(lo, s.position[u])
        reach = max(reach, max(s.position[u], s.last_use[u]))
        if g.serial:
            for k in range(g.pred_ptr[u], g.pred_ptr[u + 1]):
                reach = max(reach, s.last_use[g.pred[k]])
                x = g.pred_tensor[k]
                if g.mixed[x]:
                    lo = min(lo, min(s.sent_at[x, s.device[u]], s.sent_at[x, s.new_device[u]]))
    return lo, reach


@kernel
def propose(g: Graph, s: State, v: Moves, heat: float):
    """Draw a move: (device changes, task to shift, its target position, with its relatives)."""
    n = len(s.order)
    if v.length[0] > 0 and uniform(v.rng) < v.mix[0]:
        t = v.path[below(v.rng, v.length[0])]
    else:
        t = below(v.rng, n)
    if uniform(v.rng) < v.mix[11]:
        d, target, _ = reinsertion(g, s, v.gaps, t, heat, v.rng)
        count = reassign(g, s, v, 0, t, d) if d >= 0 else 0
        return count, t, target, False
    kind = uniform(v.rng) if g.cost.shape[1] > 1 else 1.0
    count, target = 0, s.position[t]
    if kind < v.mix[1]:
        count = reassign(g, s, v, 0, t, other_device(g, s, v, t))
        if uniform(v.rng) < v.mix[6]:
            target = shift_target(g, s, v, t)
    elif kind < v.mix[2]:
        if uniform(v.rng) < v.mix[12]:
            scale = g.cost[t, s.device[t]] * np.exp(v.mix[13] * uniform(v.rng) + v.mix[14])
            count = reassign_group(g, s, v, t, scale)
        else:
            count = reassign_cluster(g, s, v, t)
        if uniform(v.rng) < v.mix[7]:
            reach = 1 + int((n - 1) * uniform(v.rng) ** v.mix[8])
            target = min(n - 1, max(0, target + (reach if uniform(v.rng) < 0.5 else -reach)))
            return count, t, target, True
    elif kind < v.mix[3]:
        count = exchange(g, s, v, t)
    elif kind < v.mix[4]:
        target = shift_target(g, s, v, t)
    else:
        reach = 1 + int((n - 1) * uniform(v.rng) ** v.mix[8])
        target = min(n - 1, max(0, target + (reach if uniform(v.rng) < 0.5 else -reach)))
        return count, t, target, True
    return count, t, target, False


@kernel
def undo_devices(g: Graph, s: State, v: Moves, count: int) -> None:
    """Take the trial's device changes back."""
    for i in range(count - 1, -1, -1):
        t = v.task[i]
        s.room[s.new_device[t]] += g.held[t]
        s.room[v.old[i]] -= g.held[t]
        s.new_device[t] = v.old[i]


@kernel
def try_move(g: Graph, s: State, v: Moves, heat: float) -> bool:
    """Propose, evaluate and accept or reject one move at relative temperature ``heat``."""
    count, t, target, pull = propose(g, s, v, heat)
    here = s.position[t]
    if count == 0 and target == here:
        return False
    first, last = min(here, target), max(here, target)
    if target == here:
        last = first - 1
        lo, reach = change_window(g, s, v, count, len(s.order))
    else:
        if not pull:
            shift(s, t, target)
        elif target < here:
            pull_ahead(g, s, v, t, target)
        else:
            push_back(g, s, v, t, target)
        lo, reach = change_window(g, s, v, count, first)
    n = len(s.order)
    alpha = v.mix[15] / n
    energy = s.value[0] + alpha * s.value[2]
    limit = energy - s.value[0] * heat * np.log(1.0 - uniform(v.rng))
    stop, makespan = evaluate(g, s, lo, last, reach, limit - alpha * s.value[2] * v.mix[16])
    if makespan >= BIG or makespan + alpha * s.value[3] > limit:
        reject(s, lo, stop, first, last)
        undo_devices(g, s, v, count)
        return False
    commit(g, s, lo, stop, first, last)
    if makespan < s.value[1] * (1.0 - 1e-12):
        s.value[1] = makespan
        copy_into(s.best_order, s.order)
        copy_into(s.best_device, s.device)
    return True


@kernel
def anneal(g: Graph, s: State, v: Moves, steps: int, hot: float, cold: float) -> int:
    """``steps`` moves with relative temperature falling from ``hot`` to ``cold``.

    Improves ``s`` in place; returns the number of accepted moves.
    """
    factor = (cold / hot) ** (1.0 / max(1, steps))
    heat = hot
    stale, accepted = True, 0
    patience = len(s.order) // 32
    since = 0
    for _ in range(steps):
        heat *= factor
        since += 1
        if stale and since > patience:
            trace_path(g, s, v)
            stale, since = False, 0
        if try_move(g, s, v, heat):
            stale = True
            accepted += 1
    return accepted
