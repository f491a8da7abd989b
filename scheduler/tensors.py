"""What each task reads, and how large a tensor's copy on another device is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossdock.scheduler.problem import Floats, Ints, Problem


def tensor_bytes(problem: Problem) -> Floats:
    """Bytes of every tensor: its largest edge; float64 (tensors,)."""
    count = int(problem.edge_tensor.max()) + 1 if problem.edge_tensor.size else 0
    size = np.zeros(count)
    np.maximum.at(size, problem.edge_tensor, problem.edge_bytes)
    return size


def inputs_of(problem: Problem) -> list[list[tuple[int, int, float]]]:
    """(producer, tensor, bytes) of every task's incoming edges."""
    rows: list[list[tuple[int, int, float]]] = [[] for _ in range(problem.n)]
    for a, b, x, size in zip(
        problem.edge_src.tolist(),
        problem.edge_dst.tolist(),
        problem.edge_tensor.tolist(),
        problem.edge_bytes.tolist(),
        strict=True,
    ):
        rows[b].append((a, x, size))
    return rows


def copy_sizes(problem: Problem, device: Sequence[int] | Ints) -> Floats:
    """Bytes that each edge's copy has, float64 (e,): its tensor's largest edge to that device."""
    at = np.asarray(device, np.int64)
    key = problem.edge_tensor * problem.m + at[problem.edge_dst]
    size = np.zeros(int(key.max()) + 1 if key.size else 0)
    np.maximum.at(size, key, problem.edge_bytes)
    largest: Floats = size[key]
    return largest


def hops(problem: Problem, nbytes: Floats, device: Sequence[int] | Ints) -> Floats:
    """Seconds from an edge's producer to its consumer for ``nbytes`` (e,); 0 on one device."""
    at = np.asarray(device, np.int64)
    src, dst = at[problem.edge_src], at[problem.edge_dst]
    takes: Floats = problem.latency[src, dst] + nbytes * problem.inv_bw[src, dst]
    return takes
