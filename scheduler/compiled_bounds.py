"""Compiled lower bounds; the same bounds as :mod:`crossdock.scheduler.bounds`, more windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_core import BIG, Bools, Graph, Net, Wires, hop, kernel
from crossdock.scheduler.problem import Floats, Ints

DUAL_STEPS = 40
CLOSE = 1.0 - 1e-6  # a bound this near to what is possible is not improved
LEVELS = 4  # lead-in and lead-out times tried, each


@kernel
def fill_heads(net: Net, wires: Wires, cost: Floats, topo: Ints, head: Floats) -> None:
    """Least start of every task on every device, from its ancestors alone; (n, m)."""
    n, m = cost.shape
    for q in range(n):
        t = topo[q]
        for d in range(m):
            worst = 0.0
            for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
                p = net.pred[k]
                best = BIG
                for e in range(m):
                    v = head[p, e] + cost[p, e]
                    if e != d:
                        v += hop(wires, net.pred_bytes[k], e, d)
                    best = min(best, v)
                worst = max(worst, best)
            head[t, d] = worst


@kernel
def assign(cost: Floats, lane: Ints, inside: Bools, weight: Floats, total: Floats) -> float:
    """Bound of the marked tasks at lane weights; fills the load (lanes,) that it gives."""
    bound = 0.0
    for r in range(len(total)):
        total[r] = 0.0
    for t in range(len(cost)):
        if not inside[t]:
            continue
        least, at, taken = BIG, 0, 0.0
        for d in range(len(lane)):
            v = cost[t, d] * weight[lane[d]]
            if cost[t, d] < BIG and v < least:
                least, at, taken = v, lane[d], cost[t, d]
        if least < BIG:
            bound += least
            total[at] += taken
    return bound


class Duals(NamedTuple):
    """Scratch of a load bound; (lanes,) each."""

    weight: Floats
    load: Floats  # of the assignment at hand
    mean: Floats  # sum of the loads so far


@kernel
def load(cost: Floats, lane: Ints, inside: Bools, v: Duals, target: float) -> float:
    """Load bound of the marked tasks by multiplicative weights, as far as it can pass ``target``.

    The mean of the assignments is a fractional one, so that its largest load is no less than any
    bound: where that is within the target there is nothing to gain.
    """
    lanes, best = len(v.weight), 0.0
    for r in range(lanes):
        v.weight[r], v.mean[r] = 1.0 / lanes, 0.0
    for step in range(DUAL_STEPS if lanes > 1 else 1):
        best = max(best, assign(cost, lane, inside, v.weight, v.load))
        peak, scale, most = 0.0, 0.0, 0.0
        for r in range(lanes):
            v.mean[r] += v.load[r]
            peak, most = max(peak, v.load[r]), max(most, v.mean[r] / (step + 1))
        if peak <= 0.0 or most <= target or best >= most * CLOSE:
            break
        for r in range(lanes):
            v.weight[r] *= np.exp(v.load[r] / peak * (0.5 / (1.0 + 0.1 * step)))
            scale += v.weight[r]
        for r in range(lanes):
            v.weight[r] /= scale
    return best


@kernel
def path_bound(cost: Floats, head: Floats, tail: Floats, ready: Floats, after: Floats) -> float:
    """Longest least way through a task; fills least lead-in and lead-out (n,) of every task."""
    path = 0.0
    for t in range(len(cost)):
        through = BIG
        ready[t], after[t] = BIG, BIG
        for d in range(cost.shape[1]):
            if cost[t, d] < BIG and tail[t, d] < BIG and head[t, d] < BIG:
                through = min(through, head[t, d] + cost[t, d] + tail[t, d])
                ready[t] = min(ready[t], head[t, d])
                after[t] = min(after[t], tail[t, d])
        if through < BIG:
            path = max(path, through)
    return path


class Bound(NamedTuple):
    """A lower bound, and what branch and bound and windowed bounds start from."""

    makespan: float
    head: Floats  # (n, m) least starts
    weight: Floats  # (lanes,) of the load bound of all tasks
    ready: Floats  # (n,) least start on any device
    after: Floats  # (n,) least way after the finish, from any device


def graph_bound(g: Graph) -> Bound:
    """The better of the path bound and the load bound of all tasks."""
    n, m = g.cost.shape
    head = np.zeros((n, m))
    fill_heads(g.net, g.wires, g.cost, g.topo, head)
    ready, after = np.empty(n), np.empty(n)
    path = path_bound(g.cost, head, g.tail, ready, after)
    duals = new_duals(g.lanes)
    best = max(path, load(g.cost, g.lane, np.ones(n, np.bool_), duals, 0.0))
    return Bound(float(best), head, duals.weight / duals.weight.sum(), ready, after)


def new_duals(lanes: int) -> Duals:
    """Empty scratch."""
    return Duals(np.zeros(lanes), np.zeros(lanes), np.zeros(lanes))


def window_bounds(g: Graph, root: Bound) -> Iterator[float]:
    """Load bounds of the tasks that start late and end early, one by one, each at least the last.

    Each is the least lead-in, the load in between and the least lead-out.
    """
    n, best, duals = len(g.cost), root.makespan, new_duals(g.lanes)
    leads, trails = np.sort(root.ready), np.sort(root.after)
    for i, j in sorted(np.ndindex(LEVELS, LEVELS), key=sum)[1:]:
        lead = leads[i * n // (3 * LEVELS)] if i else 0.0
        trail = trails[j * n // (3 * LEVELS)] if j else 0.0
        inside = (root.ready >= lead) & (root.after >= trail)
        least = float(lead + trail)
        best = max(best, least + load(g.cost, g.lane, inside, duals, best - least))
        yield best
