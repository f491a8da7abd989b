"""Compressed adjacency and orders of a task graph, in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdock.runtime.errors import GraphError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Csr:
    """Neighbours of task t are ``task[ptr[t]:ptr[t+1]]`` over edges ``edge[ptr[t]:ptr[t+1]]``.

    All arrays are int64: ``ptr`` (n + 1,), ``task`` (e,), ``edge`` (e,).
    """

    ptr: Ints
    task: Ints
    edge: Ints


def _compress(n: int, key: Ints, other: Ints) -> Csr:
    edge = np.lexsort((other, key)).astype(np.int64)
    ptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(key, minlength=n), out=ptr[1:])
    return Csr(ptr, other[edge], edge)


def predecessors(n: int, src: Ints, dst: Ints) -> Csr:
    """Producers of every task."""
    return _compress(n, dst, src)


def successors(n: int, src: Ints, dst: Ints) -> Csr:
    """Consumers of every task."""
    return _compress(n, src, dst)


def topological_order(n: int, src: Ints, dst: Ints, names: Sequence[str]) -> Ints:
    """Kahn's order, first in first out, so that it is stable in the task index.

    Raises:
        GraphError: naming one task on a cycle.
    """
    succ: list[list[int]] = [[] for _ in range(n)]
    degree = [0] * n
    for a, b in zip(src.tolist(), dst.tolist(), strict=True):
        succ[a].append(b)
        degree[b] += 1
    order = [t for t in range(n) if degree[t] == 0]
    for t in order:
        for child in succ[t]:
            degree[child] -= 1
            if degree[child] == 0:
                order.append(child)
    if len(order) < n:
        on_cycle = next(t for t in range(n) if degree[t] > 0)
        raise GraphError(f"task {names[on_cycle]!r} is on a cycle; a task graph has none")
    return np.array(order, np.int64)
