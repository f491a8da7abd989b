"""The cheapest placement in total on two devices: a minimum cut.

The total is every task's time plus every tensor's transfer, once to a device (H. S. Stone,
"Multiprocessor scheduling with the aid of network flow algorithms", IEEE Transactions on Software
Engineering 3(1), 1977). It is the makespan where nothing overlaps, as on a chain of tasks; it is
what is paid for where seconds cost money or energy; and elsewhere the makespan is at most that, so
that it is a good start where transfers are dear.
"""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.problem import Ints, Problem
from crossdock.scheduler.tensors import tensor_bytes

BIG = 1e300
ROUNDING = 1e-12  # of the largest finite capacity: a residual below is none


class Network:
    """Capacities between nodes, both directions of an arc side by side."""

    def __init__(self, nodes: int) -> None:
        self.arcs: list[list[int]] = [[] for _ in range(nodes)]
        self.head: list[int] = []
        self.left: list[float] = []

    def connect(self, a: int, b: int, capacity: float) -> None:
        """Add an arc from ``a`` to ``b``."""
        self.arcs[a].append(len(self.head))
        self.arcs[b].append(len(self.head) + 1)
        self.head += [b, a]
        self.left += [capacity, 0.0]

    def cut(self, source: int, sink: int) -> list[bool]:
        """Whether each node is on the source's side of a minimum cut.

        Blocking flows on shortest ways (E. A. Dinic, Soviet Mathematics Doklady 11, 1970).
        """
        finite = [x for x in self.left if x < BIG]
        self.least = ROUNDING * max(finite, default=0.0)
        while True:
            level = self._levels(source)
            if level[sink] < 0:
                return [x >= 0 for x in level]
            self._block(source, sink, level)

    def _levels(self, source: int) -> list[int]:
        level = [-1] * len(self.arcs)
        level[source] = 0
        queue = [source]
        for u in queue:
            for e in self.arcs[u]:
                if self.left[e] > self.least and level[self.head[e]] < 0:
                    level[self.head[e]] = level[u] + 1
                    queue.append(self.head[e])
        return level

    def _block(self, source: int, sink: int, level: list[int]) -> None:
        """Send flow along level by level until no way is left."""
        at = [0] * len(self.arcs)
        way: list[int] = []
        u = source
        while True:
            if u == sink:
                flow = min(self.left[e] for e in way)
                for e in way:
                    self.left[e] -= flow
                    self.left[e ^ 1] += flow
                way, u = [], source
            while at[u] < len(self.arcs[u]):
                e = self.arcs[u][at[u]]
                if self.left[e] > self.least and level[self.head[e]] == level[u] + 1:
                    break
                at[u] += 1
            if at[u] < len(self.arcs[u]):
                way.append(e)
                u = self.head[e]
                continue
            if not way:
                return
            u = self.head[way.pop() ^ 1]
            at[u] += 1


def cheapest_pair_labels(problem: Problem) -> Ints:
    """Device of every task, int64 (n,), of the least total on the two devices of ``problem``.

    A tensor counts as large as its largest edge.
    """
    n, size = problem.n, tensor_bytes(problem).tolist()
    source, sink = n, n + 1
    net = Network(n + 2 + 2 * len(size))
    for t, (first, second) in enumerate(np.minimum(problem.cost, BIG).tolist()):
        net.connect(source, t, second)  # paid on the second device: the sink's side
        net.connect(t, sink, first)
    there = [problem.transfer_s(x, 0, 1) for x in size]
    back = [problem.transfer_s(x, 1, 0) for x in size]
    sent = [False] * len(size)
    rows = zip(
        problem.edge_src.tolist(),
        problem.edge_dst.tolist(),
        problem.edge_tensor.tolist(),
        strict=True,
    )
    for a, b, x in rows:
        forth, home = n + 2 + 2 * x, n + 3 + 2 * x
        if not sent[x]:
            sent[x] = True
            net.connect(a, forth, min(there[x], BIG))
            net.connect(home, a, min(back[x], BIG))
        net.connect(forth, b, BIG)
        net.connect(b, home, BIG)
    side = net.cut(source, sink)
    return np.array([0 if side[t] else 1 for t in range(n)], np.int64)
