"""Compiled lower bounds; the same bounds as :mod:`crossdock.scheduler.bounds`, more windows."""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.compiled_core import BIG, Graph, compiled, kernel
from crossdock.scheduler.problem import Floats

DUAL_STEPS = 40
LEVELS = 4  # lead-in and lead-out times tried, each


@kernel
def fill_heads(g: Graph, head: Floats) -> None:
    """Least start of every task on every device, from its ancestors alone; (n, m)."""
    n, m = g.cost.shape
    for q in range(n):
        t = g.topo[q]
        for d in range(m):
            worst = 0.0
            for k in range(g.pred_ptr[t], g.pred_ptr[t + 1]):
                p = g.pred[k]
                best = BIG
                for e in range(m):
                    v = head[p, e] + g.cost[p, e]
                    if e != d:
                        v += g.latency[e, d] + g.pred_bytes[k] * g.inv_bw[e, d]
                    best = min(best, v)
                worst = max(worst, best)
            head[t, d] = worst


@kernel
def load(g: Graph, inside: np.ndarray, weight: Floats, total: Floats) -> float:
    """Load bound of the marked tasks by multiplicative weights; ``weight`` (lanes,) is scratch."""
    n, m = g.cost.shape
    best = 0.0
    for r in range(g.lanes):
        weight[r] = 1.0 / g.lanes
    for step in range(DUAL_STEPS if g.lanes > 1 else 1):
        bound = 0.0
        for r in range(g.lanes):
            total[r] = 0.0
        for t in range(n):
            if not inside[t]:
                continue
            least, at, cost = BIG, 0, 0.0
            for d in range(m):
                v = g.cost[t, d] * weight[g.lane[d]]
                if g.cost[t, d] < BIG and v < least:
                    least, at, cost = v, g.lane[d], g.cost[t, d]
            if least < BIG:
                bound += least
                total[at] += cost
        best = max(best, bound)
        peak, scale = 0.0, 0.0
        for r in range(g.lanes):
            peak = max(peak, total[r])
        if peak <= 0.0:
            break
        for r in range(g.lanes):
            weight[r] *= np.exp(total[r] / peak * (0.5 / (1.0 + 0.1 * step)))
            scale += weight[r]
        for r in range(g.lanes):
            weight[r] /= scale
    return best


@compiled
def graph_bound(g: Graph) -> float:
    """The best of the path and windowed load bounds."""
    n, m = g.cost.shape
    head = np.zeros((n, m))
    fill_heads(g, head)
    ready, after = np.full(n, BIG), np.full(n, BIG)
    path = 0.0
    for t in range(n):
        through = BIG
        for d in range(m):
            if g.cost[t, d] < BIG and g.tail[t, d] < BIG and head[t, d] < BIG:
                through = min(through, head[t, d] + g.cost[t, d] + g.tail[t, d])
                ready[t] = min(ready[t], head[t, d])
                after[t] = min(after[t], g.tail[t, d])
        if through < BIG:
            path = max(path, through)
    weight, total = np.zeros(g.lanes), np.zeros(g.lanes)
    leads, trails = np.sort(ready), np.sort(after)
    for i in range(LEVELS):
        for j in range(LEVELS):
            lead = leads[i * n // (3 * LEVELS)] if i else 0.0
            trail = trails[j * n // (3 * LEVELS)] if j else 0.0
            inside = (ready >= lead) & (after >= trail)
            path = max(path, lead + trail + load(g, inside, weight, total))
    return path
