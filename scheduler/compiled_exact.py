"""Branch and bound over schedules under free links, for small problems.

Tasks are appended in the order of their starts, each as early as its inputs and lane allow: every
semi-active schedule, hence an optimal one, is built that way. A branch is cut where a task cannot
end in time, from the least ways before and after it, or where the work that is left does not fit.
The search keeps its stack between calls, so that it can be run in slices. Without contention
nothing takes longer, so that its bound holds for serial links too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_core import BIG, NONE, Graph, Net, Wires, hop, kernel, leaf, zeros
from crossdock.scheduler.problem import Floats, Ints

DEPTH, DONE, FOUND = range(3)  # entries of Tree.counts
SLACK = 1.0 + 1e-9  # a schedule has to be better by more than rounding


class Tree(NamedTuple):
    """The branch at hand and the open choices along it."""

    task: Ints  # (n + 1, n * m) choices at a depth, best first
    device: Ints
    key: Floats  # their end plus the least way after it
    size: Ints  # (n + 1,) number of choices
    at: Ints  # (n + 1,) next choice
    chosen: Ints  # (n + 1,) task appended at a depth
    lane_free: Floats  # (n + 1, lanes) before a depth
    since: Floats  # (n + 1,) start of the task before
    work: Floats  # (n + 1,) weighted work that is left
    where: Ints  # (n,) device, -1 while open
    finish: Floats  # (n,)
    waits: Ints  # (n,) producers that are open
    head: Floats  # (n, m) least start
    weight: Floats  # (lanes,) of the load bound
    least: Floats  # (n,) least weighted cost
    limit: Floats  # (1,) makespan to beat
    best_device: Ints  # (n,)
    best_order: Ints  # (n,)
    counts: Ints  # (3,) depth, whether it is done, better schedules found


def new_tree(g: Graph, head: Floats, weight: Floats, limit: float) -> Tree:
    """The root of a search for a makespan below ``limit``."""
    n, m = g.cost.shape
    least: Floats = (g.cost * weight[g.lane]).min(axis=1)
    tree = Tree(
        zeros(n + 1, n * m),
        zeros(n + 1, n * m),
        np.zeros((n + 1, n * m)),
        zeros(n + 1),
        zeros(n + 1),
        zeros(n + 1),
        np.zeros((n + 1, g.lanes)),
        np.zeros(n + 1),
        np.zeros(n + 1),
        np.full(n, -1, np.int64),
        np.zeros(n),
        np.diff(g.net.pred_ptr),
        head,
        weight.copy(),
        least,
        np.full(1, limit),
        zeros(n),
        zeros(n),
        zeros(3),
    )
    tree.work[0] = least.sum()
    expand(g, tree)
    return tree


@leaf
def start_on(net: Net, wires: Wires, tree: Tree, t: int, d: int) -> float:
    """Earliest start of ``t`` on ``d`` from its placed producers and the least ways."""
    ready: float = tree.head[t, d]
    for k in range(net.pred_ptr[t], net.pred_ptr[t + 1]):
        p = net.pred[k]
        a = tree.where[p]
        if a < 0:
            continue
        at = tree.finish[p]
        if a != d:
            at += hop(wires, net.pred_bytes[k], a, d)
        ready = max(ready, at)
    return ready


@leaf
def insert_choice(tree: Tree, depth: int, count: int, t: int, d: int, key: float) -> None:
    """Insert a choice among the ``count`` of its depth, sorted by key."""
    i = count
    while i > 0 and tree.key[depth, i - 1] > key:
        tree.task[depth, i] = tree.task[depth, i - 1]
        tree.device[depth, i] = tree.device[depth, i - 1]
        tree.key[depth, i] = tree.key[depth, i - 1]
        i -= 1
    tree.task[depth, i], tree.device[depth, i], tree.key[depth, i] = t, d, key


@leaf
def enough_room(tree: Tree, depth: int) -> bool:
    """Whether the work that is left fits before the limit, by the weights of the load bound."""
    total, since = tree.work[depth], tree.since[depth]
    for r in range(len(tree.weight)):
        total += tree.weight[r] * max(since, tree.lane_free[depth, r])
    return bool(total * SLACK < tree.limit[0])


@kernel
def expand(g: Graph, tree: Tree) -> None:
    """List the choices at the current depth; none where the branch cannot beat the limit."""
    depth, count = tree.counts[DEPTH], NONE
    since = tree.since[depth]
    tree.at[depth], tree.size[depth] = 0, 0
    if not enough_room(tree, depth):
        return
    for t in range(len(tree.where)):
        if tree.where[t] >= 0:
            continue
        possible = False
        for d in range(len(g.lane)):
            if g.cost[t, d] >= BIG or g.tail[t, d] >= BIG:
                continue
            begin = max(since, tree.lane_free[depth, g.lane[d]])
            ready = start_on(g.net, g.wires, tree, t, d)
            key = max(begin, ready) + g.cost[t, d] + g.tail[t, d]
            if key * SLACK >= tree.limit[0]:
                continue
            possible = True
            # an earlier start than that of the last task was another branch
            late = max(tree.lane_free[depth, g.lane[d]], ready) >= since
            if tree.waits[t] == 0 and late:
                insert_choice(tree, depth, count, t, d, key)
                count += 1
        if not possible:
            return
    tree.size[depth] = count


@leaf
def descend(g: Graph, tree: Tree, t: int, d: int) -> None:
    """Append ``t`` on ``d``."""
    depth = tree.counts[DEPTH]
    ready = start_on(g.net, g.wires, tree, t, d)
    begin = max(tree.lane_free[depth, g.lane[d]], ready)
    for r in range(g.lanes):
        tree.lane_free[depth + 1, r] = tree.lane_free[depth, r]
    tree.where[t] = d
    tree.finish[t] = tree.lane_free[depth + 1, g.lane[d]] = begin + g.cost[t, d]
    tree.since[depth + 1] = begin
    tree.work[depth + 1] = tree.work[depth] - tree.least[t]
    tree.chosen[depth] = t
    for k in range(g.net.succ_ptr[t], g.net.succ_ptr[t + 1]):
        tree.waits[g.net.succ[k]] -= 1
    tree.counts[DEPTH] = depth + 1


@leaf
def ascend(g: Graph, tree: Tree) -> None:
    """Take the last task back."""
    depth = tree.counts[DEPTH] - 1
    t = tree.chosen[depth]
    tree.where[t] = -1
    for k in range(g.net.succ_ptr[t], g.net.succ_ptr[t + 1]):
        tree.waits[g.net.succ[k]] += 1
    tree.counts[DEPTH] = depth


@leaf
def keep(tree: Tree) -> None:
    """Remember a complete schedule, which is better than the limit."""
    makespan = 0.0
    for t in range(len(tree.where)):
        makespan = max(makespan, tree.finish[t])
        tree.best_device[t] = tree.where[t]
        tree.best_order[t] = tree.chosen[t]
    if makespan < tree.limit[0]:
        tree.limit[0] = makespan
        tree.counts[FOUND] += 1


@kernel
def branch(g: Graph, tree: Tree, nodes: int) -> int:
    """Search on for ``nodes`` nodes or to the end; returns those visited, see also Tree.counts."""
    n = len(tree.where)
    for visited in range(nodes):
        depth = tree.counts[DEPTH]
        i = tree.at[depth]
        if i >= tree.size[depth] or tree.key[depth, i] * SLACK >= tree.limit[0]:
            if depth == 0:
                tree.counts[DONE] = 1
                return visited
            ascend(g, tree)
            continue
        tree.at[depth] = i + 1
        descend(g, tree, tree.task[depth, i], tree.device[depth, i])
        if depth + 1 == n:
            keep(tree)
            ascend(g, tree)
        else:
            expand(g, tree)
    return nodes
