"""What each task reads, and how large a tensor's copy on another device is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossdock.scheduler.problem import Floats, Problem


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


def copy_bytes(problem: Problem, device: Sequence[int]) -> dict[tuple[int, int], float]:
    """Bytes of every (tensor, device) that is sent: the tensor's largest edge to that device."""
    size: dict[tuple[int, int], float] = {}
    for a, b, x, nbytes in zip(
        problem.edge_src.tolist(),
        problem.edge_dst.tolist(),
        problem.edge_tensor.tolist(),
        problem.edge_bytes.tolist(),
        strict=True,
    ):
        if device[a] != device[b]:
            key = (x, device[b])
            size[key] = max(size.get(key, 0.0), nbytes)
    return size
