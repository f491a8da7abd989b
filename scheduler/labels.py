"""Placements that are cheapest in total: execution plus every transfer, one after the other.

Where all devices share one resource group and the graph is a chain, that total is the makespan, so
that the cheapest labelling is the best plan; elsewhere it is a good start for comm-bound graphs.
A sweep takes the tasks path by path and relabels each path exactly (the others held) by dynamic
programming (A. Viterbi, IEEE Transactions on Information Theory 13(2), 1967): exact on chains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crossdock.scheduler.problem import Problem

SWEEPS = 8
BIG = 1e300


class Labels:
    """A labelling under improvement; ``device`` (n,) is the current one.

    A tensor is sent to a device once, so that the second consumer there costs nothing.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.cost: list[list[float]] = np.minimum(problem.cost, BIG).tolist()
        latency = np.minimum(problem.latency, BIG).tolist()
        inv_bw = problem.inv_bw.tolist()
        self.latency: list[list[float]] = latency
        self.inv_bw: list[list[float]] = inv_bw
        self.device: list[int] = [0] * problem.n
        self.inputs: list[list[tuple[int, int]]] = [[] for _ in range(problem.n)]
        count = int(problem.edge_tensor.max()) + 1 if problem.edge_tensor.size else 0
        self.nbytes = [0.0] * count
        self.consumers: list[list[int]] = [[] for _ in range(count)]
        self.outputs: list[list[int]] = [[] for _ in range(problem.n)]
        self._fill()
        self.paths = paths(problem)

    def _fill(self) -> None:
        p = self.problem
        rows = zip(
            p.edge_src.tolist(),
            p.edge_dst.tolist(),
            p.edge_tensor.tolist(),
            p.edge_bytes.tolist(),
            strict=True,
        )
        for a, b, x, size in rows:
            self.inputs[b].append((a, x))
            self.nbytes[x] = max(self.nbytes[x], size)
            if not self.consumers[x]:
                self.outputs[a].append(x)
            self.consumers[x].append(b)

    def send(self, tensor: int, a: int, b: int) -> float:
        """Seconds to send a tensor from device ``a`` to ``b``."""
        return 0.0 if a == b else self.latency[a][b] + self.nbytes[tensor] * self.inv_bw[a][b]

    def total(self) -> float:
        """Execution plus transfers of the current labelling."""
        at = self.device
        run = sum(self.cost[t][d] for t, d in enumerate(at))
        for a, outputs in enumerate(self.outputs):
            for x in outputs:
                for e in {at[c] for c in self.consumers[x]}:
                    run += self.send(x, at[a], e)
        return run

    def improve(self, start: Sequence[int]) -> float:
        """Relabel from ``start`` until a sweep gains nothing; returns the total."""
        self.device = list(start)
        best = self.total()
        for _ in range(SWEEPS):
            for path in self.paths:
                self._relabel(path)
            now = self.total()
            if now >= best * (1.0 - 1e-9):
                return min(now, best)
            best = now
        return best

    def _relabel(self, path: list[int]) -> None:
        """Give the tasks of a path the labels that are best with all others as they are."""
        m = self.problem.m
        way: list[float] = []
        back: list[list[int]] = []
        for i, t in enumerate(path):
            own = self._own(t, path[i - 1] if i else -1, path[i + 1] if i + 1 < len(path) else -1)
            if i == 0:
                way = own
                continue
            step = self._step(path[i - 1], t)
            picks = [min(range(m), key=lambda a, b=b: way[a] + step[a][b]) for b in range(m)]  # type: ignore[misc]
            way = [way[a] + step[a][b] + own[b] for b, a in enumerate(picks)]
            back.append(picks)
        label = min(range(m), key=way.__getitem__)
        for i in range(len(path) - 1, -1, -1):
            self.device[path[i]] = label
            if i:
                label = back[i - 1][label]

    def _own(self, t: int, before: int, after: int) -> list[float]:
        """Cost of ``t`` on every device with its neighbours off the path."""
        at, own = self.device, list(self.cost[t])
        for p, x in self.inputs[t]:
            if p == before:
                continue
            there = {at[c] for c in self.consumers[x] if c != t} | {at[p]}
            for d in range(len(own)):
                if d not in there:
                    own[d] += self.send(x, at[p], d)
        for x in self.outputs[t]:
            for e in {at[c] for c in self.consumers[x] if c != after}:
                for d in range(len(own)):
                    own[d] += self.send(x, d, e)
        return own

    def _step(self, a: int, b: int) -> list[list[float]]:
        """Transfers from path task ``a`` to the next one ``b``, by their devices."""
        m = self.problem.m
        step = [[0.0] * m for _ in range(m)]
        for p, x in self.inputs[b]:
            if p != a:
                continue
            there = {self.device[c] for c in self.consumers[x] if c != b}
            for d in range(m):
                for e in range(m):
                    if e not in there:
                        step[d][e] += self.send(x, d, e)
        return step


def paths(problem: Problem) -> list[list[int]]:
    """Disjoint paths that cover the graph, each the longest that is left (in least cost)."""
    length = np.where(np.isfinite(problem.cost), problem.cost, math.inf).min(axis=1).tolist()
    succ = problem.succs
    ptr, child = succ.ptr.tolist(), succ.task.tolist()
    topo = problem.topo.tolist()
    reach = [0.0] * problem.n
    follow = [-1] * problem.n
    for t in reversed(topo):
        for c in child[ptr[t] : ptr[t + 1]]:
            if follow[t] < 0 or reach[c] > reach[follow[t]]:
                follow[t] = c
        reach[t] = length[t] + (reach[follow[t]] if follow[t] >= 0 else 0.0)
    taken = [False] * problem.n
    found: list[list[int]] = []
    for t in sorted(range(problem.n), key=lambda u: (-reach[u], u)):
        path: list[int] = []
        while t >= 0 and not taken[t]:
            taken[t] = True
            path.append(t)
            open_children = [c for c in child[ptr[t] : ptr[t + 1]] if not taken[c]]
            t = max(open_children, key=lambda c: (reach[c], -c), default=-1)
        if path:
            found.append(path)
    return found


def cheapest_labels(problem: Problem, starts: Sequence[Sequence[int]]) -> list[int]:
    """Device of every task: the cheapest total reached from any of ``starts``."""
    labels = Labels(problem)
    best, kept = math.inf, list(starts[0])
    for start in starts:
        total = labels.improve(start)
        if total < best:
            best, kept = total, list(labels.device)
    return kept
