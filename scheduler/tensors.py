"""What each task reads: producers, tensors and bytes under a link model."""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.problem import Floats, Problem
from crossdock.scheduler.result import Links


def tensor_bytes(problem: Problem) -> Floats:
    """Bytes of every tensor: its largest edge; float64 (tensors,)."""
    count = int(problem.edge_tensor.max()) + 1 if problem.edge_tensor.size else 0
    size = np.zeros(count)
    np.maximum.at(size, problem.edge_tensor, problem.edge_bytes)
    return size


def send_bytes(problem: Problem, links: Links) -> Floats:
    """Bytes to send for every edge, float64 (e,): serial links send the whole tensor."""
    if links == "free":
        return problem.edge_bytes
    return tensor_bytes(problem)[problem.edge_tensor]


def inputs_of(problem: Problem, links: Links) -> list[list[tuple[int, int, float]]]:
    """(producer, tensor, bytes to send) of every task."""
    rows: list[list[tuple[int, int, float]]] = [[] for _ in range(problem.n)]
    for a, b, x, size in zip(
        problem.edge_src.tolist(),
        problem.edge_dst.tolist(),
        problem.edge_tensor.tolist(),
        send_bytes(problem, links).tolist(),
        strict=True,
    ):
        rows[b].append((a, x, size))
    return rows
