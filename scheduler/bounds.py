"""Lower bounds on the makespan, valid under both link models and resource groups.

Path bounds are the best-imaginary-level tables of H. Oh and S. Ha, "A static scheduling heuristic
for heterogeneous processors", Euro-Par 1996, used in both directions. The load bound is the dual
of the fractional assignment of tasks to unrelated machines: for weights w >= 0 that sum to 1,
``sum_t min_d w[resource(d)] * cost[t, d]`` never exceeds the makespan.
"""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.problem import Floats, Ints, Problem

DUAL_STEPS = 30
QUANTILES = (0.1, 0.25)  # of the lead-in and lead-out times that load windows are tried at


def path_tables(problem: Problem) -> tuple[Floats, Floats]:
    """(heads, tails), float64 (n, m) each; ``inf`` where impossible.

    A head is the least time at which the task can finish on the device, from its ancestors alone;
    a tail is the least time from its start there to the end of all that follows.
    """
    return _levels(problem, forward=True), problem.tails


def tails(problem: Problem) -> Floats:
    """Least time from the start of task t on device d to the end; see ``path_tables``."""
    return _levels(problem, forward=False)


def _levels(problem: Problem, *, forward: bool) -> Floats:
    near = problem.preds if forward else problem.succs
    ptr = near.ptr.tolist()
    latency, inv_bw = problem.latency, problem.inv_bw
    if not forward:
        latency, inv_bw = latency.T, inv_bw.T
    size = problem.edge_bytes[near.edge][:, None, None]
    level = problem.cost.copy()
    order = problem.topo.tolist()
    for t in order if forward else reversed(order):
        low, high = ptr[t], ptr[t + 1]
        if low < high:
            # axes: edge, the neighbour's device, this task's device
            way = level[near.task[low:high], :, None] + (latency + size[low:high] * inv_bw)
            level[t] += way.min(axis=1).max(axis=0)
    return level


def load_bound(cost: Floats, resource: Ints) -> float:
    """Fractional load bound of tasks (k, m) on exclusive resources, by multiplicative weights."""
    count = int(resource.max()) + 1
    least = np.stack([cost[:, resource == r].min(axis=1) for r in range(count)], axis=1)
    weight = np.full(count, 1.0 / count)
    bound, rows = 0.0, np.arange(len(least))
    able = np.where(np.isfinite(least), least, 1e300)
    for step in range(DUAL_STEPS if count > 1 else 1):
        scaled = able * weight
        at = scaled.argmin(axis=1)
        bound = max(bound, float(scaled[rows, at].sum()))
        load = np.bincount(at, able[rows, at], minlength=count)
        peak = load.max()
        if peak <= 0.0:
            break
        weight = weight * np.exp((load / peak) * (0.5 / (1.0 + 0.1 * step)))
        weight /= weight.sum()
    return bound


def lower_bound(problem: Problem) -> float:
    """The best of the path and load bounds, in the problem's time unit."""
    if not problem.n:
        return 0.0
    head, tail = path_tables(problem)
    possible = np.isfinite(head) & np.isfinite(tail)
    cost = np.where(possible, problem.cost, 0.0)
    before = np.where(possible, head - cost, np.inf)
    after = np.where(possible, tail - cost, np.inf)
    path = float((before + cost + after).min(axis=1).max())
    table = np.where(possible, problem.cost, np.inf)
    return max(path, _windows(problem, table, before.min(axis=1), after.min(axis=1)))


def _windows(problem: Problem, cost: Floats, ready: Floats, after: Floats) -> float:
    """Load of the tasks that start late and end early, plus the least lead-in and lead-out."""
    best = load_bound(cost, problem.resource)
    for lead in sorted({0.0, *np.quantile(ready, QUANTILES, method="lower").tolist()}):
        for trail in sorted({0.0, *np.quantile(after, QUANTILES, method="lower").tolist()}):
            inside = (ready >= lead) & (after >= trail)
            if inside.any() and (lead > 0.0 or trail > 0.0):
                best = max(best, lead + trail + load_bound(cost[inside], problem.resource))
    return best
