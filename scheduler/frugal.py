"""Orders of a placed graph's tasks that keep few bytes alive at once.

Depth first from the outputs, where of a task's inputs the one whose own subtree exceeds its result
by most comes first: optimal for trees (J. W. H. Liu, "An application of generalized tree pebbling
to sparse matrix factorization", 1987, section 3, for orders that finish one subtree before the
next), a heuristic for graphs. And greedily: of the tasks that are ready, the one that adds least.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from crossdock.scheduler.problem import Ints, Problem


def frugal_orders(problem: Problem, device: Ints) -> Iterator[tuple[str, Ints]]:
    """Topological orders, int64 (n,), with a name each; ``device`` is that of every task."""
    yield "depth-first", depth_first(problem)
    yield "least-added", least_added(problem, device)


def depth_first(problem: Problem) -> Ints:
    """Subtrees one after the other, those with the largest peak over their result first."""
    ptr, near = problem.preds.ptr.tolist(), problem.preds.task.tolist()
    size = problem.out_bytes.tolist()
    peak = [0.0] * problem.n
    children: list[list[int]] = [[] for _ in range(problem.n)]
    for t in problem.topo.tolist():
        below = sorted(set(near[ptr[t] : ptr[t + 1]]), key=lambda c: (size[c] - peak[c], c))
        held = most = 0.0
        for c in below:
            most = max(most, held + peak[c])
            held += size[c]
        peak[t] = max(most, held + size[t])
        children[t] = below
    done = [False] * problem.n
    order: list[int] = []
    ends = [t for t in problem.topo.tolist() if problem.succs.ptr[t] == problem.succs.ptr[t + 1]]
    for end in sorted(ends, key=lambda t: size[t] - peak[t]):
        stack = [(end, 0)]
        while stack:
            t, at = stack.pop()
            if done[t]:
                continue
            while at < len(children[t]) and done[children[t][at]]:
                at += 1
            if at < len(children[t]):
                stack += [(t, at + 1), (children[t][at], 0)]
            else:
                done[t] = True
                order.append(t)
    return np.array(order, np.int64)


def least_added(problem: Problem, device: Ints) -> Ints:
    """Of the ready tasks the one that adds fewest bytes less what it frees on its own device."""
    preds, succs = problem.preds, problem.succs
    readers = np.diff(succs.ptr).tolist()
    missing = np.diff(preds.ptr).tolist()
    where, size = device.tolist(), problem.out_bytes.tolist()

    def inputs(t: int) -> list[int]:
        return [int(c) for c in preds.task[preds.ptr[t] : preds.ptr[t + 1]]]

    def added(t: int) -> float:
        last = {c for c in inputs(t) if readers[c] == 1 and where[c] == where[t]}
        return float(size[t] - sum(size[c] for c in last))

    ready = [(added(t), t) for t in range(problem.n) if missing[t] == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        known, t = heapq.heappop(ready)
        now = added(t)
        if now < known or (now > known and ready and now > ready[0][0]):
            heapq.heappush(ready, (now, t))  # what it frees has changed since
            continue
        order.append(t)
        for c in inputs(t):
            readers[c] -= 1
        for s in succs.task[succs.ptr[t] : succs.ptr[t + 1]].tolist():
            missing[s] -= 1
            if missing[s] == 0:
                heapq.heappush(ready, (added(s), s))
    return np.array(order, np.int64)
