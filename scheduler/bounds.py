"""Lower bounds on the makespan, valid under both link models and resource groups.

Path bounds are the best-imaginary-level tables of H. Oh and S. Ha, "A static scheduling heuristic
for heterogeneous processors", Euro-Par 1996, used in both directions. The load bound is the dual
of the fractional assignment of tasks to unrelated machines: for weights w >= 0 that sum to 1,
``sum_t min_d w[resource(d)] * cost[t, d]`` never exceeds the makespan.
"""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.problem import Floats, Problem

DUAL_STEPS = 60


def tails(problem: Problem) -> Floats:
    """Least time from the start of task t on device d to the end of all that follows it.

    float64 (n, m); ``inf`` where the task cannot run or nothing can follow it from there.
    """
    return _levels(problem, forward=False)


def heads(problem: Problem) -> Floats:
    """Least time at which task t on device d can finish, from its ancestors alone; (n, m)."""
    return _levels(problem, forward=True)


def _levels(problem: Problem, *, forward: bool) -> Floats:
    near = problem.preds if forward else problem.succs
    ptr, task, edge = near.ptr.tolist(), near.task.tolist(), near.edge.tolist()
    latency, inv_bw = problem.latency, problem.inv_bw
    if not forward:
        latency, inv_bw = latency.T, inv_bw.T
    size = problem.edge_bytes.tolist()
    level = problem.cost.copy()
    order = problem.topo.tolist()
    for t in order if forward else reversed(order):
        low, high = ptr[t], ptr[t + 1]
        if low == high:
            continue
        gap = np.zeros(problem.m)
        for k in range(low, high):
            # rows: the neighbour's device; columns: this task's device
            arrive = level[task[k]][:, None] + (latency + size[edge[k]] * inv_bw)
            np.maximum(gap, arrive.min(axis=0), out=gap)
        level[t] += gap
    return level


def load_bound(cost: Floats, resource: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Fractional load bound of tasks (k, m) on exclusive resources, by multiplicative weights."""
    count = int(resource.max()) + 1
    best = np.stack([cost[:, resource == r].min(axis=1) for r in range(count)], axis=1)
    best = best[np.isfinite(best).any(axis=1)]
    if not best.size:
        return 0.0
    weight = np.full(count, 1.0 / count)
    bound, rows = 0.0, np.arange(len(best))
    for step in range(DUAL_STEPS if count > 1 else 1):
        scaled = np.where(np.isfinite(best), best * weight, np.inf)
        at = scaled.argmin(axis=1)
        bound = max(bound, float(scaled[rows, at].sum()))
        load = np.bincount(at, best[rows, at], minlength=count)
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
    tail, head = tails(problem), heads(problem)
    with np.errstate(invalid="ignore"):
        through = np.where(np.isfinite(tail), head + tail - problem.cost, np.inf)
    path = float(np.nanmin(through, axis=1).max())
    return max(path, _loaded_window(problem, head, tail))


def _loaded_window(problem: Problem, head: Floats, tail: Floats) -> float:
    """Load of the tasks that start late and end early, plus the least lead-in and lead-out."""
    cost = np.where(np.isfinite(tail) & np.isfinite(head), problem.cost, np.inf)
    with np.errstate(invalid="ignore"):
        ready = np.where(np.isfinite(head), head - problem.cost, np.inf).min(axis=1)
        after = np.where(np.isfinite(tail), tail - problem.cost, np.inf).min(axis=1)
    best = load_bound(cost, problem.resource)
    for lead in _steps(ready):
        for trail in _steps(after):
            inside = (ready >= lead) & (after >= trail)
            if inside.any() and (lead > 0 or trail > 0):
                best = max(best, lead + trail + load_bound(cost[inside], problem.resource))
    return best


def _steps(values: Floats) -> list[float]:
    """A few thresholds over the values' range, zero among them."""
    picks = np.quantile(values, [0.0, 0.1, 0.25], method="lower")
    return sorted({0.0, *picks.tolist()})
