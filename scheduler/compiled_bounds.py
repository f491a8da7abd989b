"""Compiled lower bounds; the same bounds as :mod:`crossdock.scheduler.bounds`, more windows."""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.compiled_core import BIG, Bools, Graph, Net, Wires, hop, kernel
from crossdock.scheduler.problem import Floats, Ints

DUAL_STEPS = 40
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


@kernel
def load(cost: Floats, lane: Ints, inside: Bools, weight: Floats, total: Floats) -> float:
    """Load bound of the marked tasks by multiplicative weights; (lanes,) arrays are scratch."""
    lanes, best = len(weight), 0.0
    for r in range(lanes):
        weight[r] = 1.0 / lanes
    for step in range(DUAL_STEPS if lanes > 1 else 1):
        best = max(best, assign(cost, lane, inside, weight, total))
        peak, scale = 0.0, 0.0
        for r in range(lanes):
            peak = max(peak, total[r])
        if peak <= 0.0:
            break
        for r in range(lanes):
            weight[r] *= np.exp(total[r] / peak * (0.5 / (1.0 + 0.1 * step)))
            scale += weight[r]
        for r in range(lanes):
            weight[r] /= scale
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


def graph_bound(g: Graph) -> float:
    """The best of the path and windowed load bounds."""
    n, m = g.cost.shape
    head = np.zeros((n, m))
    fill_heads(g.net, g.wires, g.cost, g.topo, head)
    ready, after = np.empty(n), np.empty(n)
    best = path_bound(g.cost, head, g.tail, ready, after)
    weight, total = np.zeros(g.lanes), np.zeros(g.lanes)
    leads, trails = np.sort(ready), np.sort(after)
    for i in range(LEVELS):
        for j in range(LEVELS):
            lead = leads[i * n // (3 * LEVELS)] if i else 0.0
            trail = trails[j * n // (3 * LEVELS)] if j else 0.0
            inside = (ready >= lead) & (after >= trail)
            best = max(best, lead + trail + load(g.cost, g.lane, inside, weight, total))
    return float(best)
