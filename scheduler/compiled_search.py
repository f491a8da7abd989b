"""Simulated annealing over (topological order, device vector), compiled."""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.compiled_core import (
    BIG,
    NOWHERE,
    Graph,
    Net,
    Wires,
    Words,
    copy_into,
    hop,
    kernel,
    leaf,
    uniform,
)
from crossdock.scheduler.compiled_evaluate import (
    begin_trial,
    commit,
    evaluate,
    reject,
    touch_all,
    touch_copy,
)
from crossdock.scheduler.compiled_moves import (
    Changes,
    Moves,
    propose,
    pull,
    shift,
    undo_devices,
)
from crossdock.scheduler.compiled_reinsert import refresh, way_through
from crossdock.scheduler.compiled_state import (
    BEST,
    CURRENT,
    FIRST,
    LAST,
    NEW_TOTAL,
    NUMBER,
    TOTAL,
    Copies,
    Plan,
    State,
)
from crossdock.scheduler.problem import Ints

BLUR = 0.1  # weight of the mean finish beside the makespan, for a slope on plateaus
BLUR_KEPT = 0.8  # share of the mean finish that a trial is taken to keep while it is pruned
PATIENCE = 32  # the critical path is traced anew after at least n / PATIENCE moves


@leaf
def arrival(net: Net, wires: Wires, plan: Plan, c: Copies, k: int, d: int) -> float:
    """Arrival of predecessor edge ``k`` on device ``d`` in the current solution."""
    p = net.pred[k]
    a = plan.device[p]
    if a == d:
        return plan.finish[p]
    if len(c.sent) > 0:
        return c.sent[net.pred_tensor[k], d]
    return plan.finish[p] + hop(wires, net.pred_bytes[k], a, d)


@leaf
def trace_path(
    net: Net, wires: Wires, plan: Plan, c: Copies, lane: Ints, v: Changes, rng: Words
) -> None:
    """Fill ``v.path`` with a chain of tasks that wait for one another up to the makespan."""
    n = len(plan.order)
    for r in range(len(v.last)):
        v.last[r] = -1
    t = plan.order[0]
    for q in range(n):
        u = plan.order[q]
        r = lane[plan.device[u]]
        v.before[u] = v.last[r]
        v.last[r] = u
        if plan.finish[u] > plan.finish[t]:
            t = u
    count, eps = 0, 1e-9 * plan.finish[t]
    while t >= 0 and count < n:
        v.path[count] = t
        count += 1
        begin = plan.start[t]
        by_lane, by_input = v.before[t], NOWHERE
        if by_lane >= 0 and plan.finish[by_lane] < begin - eps:
            by_lane = -1
        for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
            if arrival(net, wires, plan, c, k, plan.device[t]) >= begin - eps:
                by_input = net.pred[k]
                break
        if by_lane < 0 or (by_input >= 0 and uniform(rng) < 0.5):
            by_lane = by_input
        t = by_lane if begin > 0.0 else NOWHERE
    v.length[0] = count


@leaf
def change_window(
    g: Graph, s: State, v: Changes, count: int, first: int, last: int
) -> tuple[int, int, int]:
    """(first position, last changed position, last position touched) of the device changes.

    ``first`` and ``last`` are those of the changes in the order. Marks the tasks reached.
    """
    net, plan, trial, copies = g.net, s.plan, s.trial, s.copies
    lo, settled, reach = first, last, 0
    for i in range(count):
        u = v.task[i]
        lo = min(lo, plan.position[u])
        settled = max(settled, plan.position[u])
        reach = max(reach, plan.position[u], plan.last_use[u])
        trial.dirty[u] = trial.counts[NUMBER]
        touch_all(net, trial, u)
        if not g.serial:
            continue
        d, e = plan.device[u], trial.device[u]
        for k in range(net.pred_ptr[u], net.pred_ptr[u + 1]):
            p, x = net.pred[k], net.pred_tensor[k]
            reach = max(reach, plan.last_use[p])
            touch_copy(net, trial, p, x, d)
            touch_copy(net, trial, p, x, e)
            if net.mixed[x]:
                lo = min(lo, copies.sent_at[x, d], copies.sent_at[x, e])
    return lo, settled, reach


@leaf
def try_move(g: Graph, s: State, v: Moves, heat: float) -> bool:
    """Propose, evaluate and accept or reject one move at relative temperature ``heat``."""
    plan, trial, value, changes = s.plan, s.trial, s.value, v.changes
    if s.back.stale[LAST] >= 0:
        refresh(g.net, g.wires, g.cost, g.lane, plan, s.back)
    count, t, target, family, way = propose(g, s, v, heat)
    here, n = plan.position[t], len(plan.order)
    if count == 0 and target == here:
        return False
    blur = BLUR / n
    limit = value[CURRENT] * (1.0 - heat * np.log(1.0 - uniform(v.rng))) + blur * value[TOTAL]
    floor = limit - BLUR_KEPT * blur * value[TOTAL]
    if count == 1 and not family:
        d = trial.device[t]
        way = max(way, way_through(g.net, g.wires, g.cost, plan, s.back.rest, t, d))
    if way > floor:
        undo_devices(g.held, s.room, trial.device, changes, count)
        return False
    begin_trial(trial)
    first, last, lo = here, -1, n
    if target != here:
        first, last = min(here, target), max(here, target)
        lo = first
        if family:
            pull(g.net, plan, trial, changes, t, target)
        else:
            shift(plan, trial, t, target)
    lo, settled, reach = change_window(g, s, changes, count, lo, last)
    stop, makespan = evaluate(g, s, lo, last, settled, reach, floor)
    if makespan >= BIG or makespan + blur * value[NEW_TOTAL] > limit:
        reject(plan, trial, first, last)
        undo_devices(g.held, s.room, trial.device, changes, count)
        return False
    commit(g, s, lo, stop, first, last)
    s.back.stale[LAST] = max(s.back.stale[LAST], settled)
    s.back.stale[FIRST] = min(s.back.stale[FIRST], lo)
    if makespan < value[BEST] * (1.0 - 1e-12):
        value[BEST] = makespan
        copy_into(s.best_order, plan.order)
        copy_into(s.best_device, plan.device)
    return True


@kernel
def anneal(g: Graph, s: State, v: Moves, steps: int, hot: float, cold: float) -> int:
    """``steps`` moves with relative temperature falling from ``hot`` to ``cold``.

    Improves ``s`` in place; returns the number of accepted moves.
    """
    factor = (cold / hot) ** (1.0 / max(1, steps))
    heat, stale, accepted, since = hot, True, 0, 0
    patience = len(s.plan.order) // PATIENCE
    for _ in range(steps):
        heat *= factor
        since += 1
        if stale and since > patience:
            trace_path(g.net, g.wires, s.plan, s.copies, g.lane, v.changes, v.rng)
            stale, since = False, 0
        if try_move(g, s, v, heat):
            stale = True
            accepted += 1
    return accepted
