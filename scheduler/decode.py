"""From (topological order, device of every task) to times, in plain Python.

Every task starts as early as its place in the order allows; under serial links a tensor is sent
when its first consumer on a device comes up in the order, behind what that direction already has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Links, Transfer
from crossdock.scheduler.tensors import copy_sizes, hops


@dataclass(frozen=True, slots=True)
class Timed:
    """Times of a decoded placement; ``makespan`` is inf if some input cannot arrive."""

    start: list[float]
    finish: list[float]
    sent: dict[tuple[int, int], Transfer]
    makespan: float


def decode(
    problem: Problem, order: Sequence[int] | Ints, device: Sequence[int] | Ints, links: Links
) -> Timed:
    """Times of ``device`` (n,) with tasks taken in ``order`` (a topological order)."""
    where = np.asarray(device, np.int64)
    queue = np.asarray(order, np.int64).tolist()
    cost = problem.cost[np.arange(problem.n), where].tolist()
    lane = problem.resource[where].tolist()
    if links == "serial":
        return _decode_serial(problem, queue, where, cost, lane)
    takes = hops(problem, problem.edge_bytes, where)[problem.preds.edge].tolist()
    ptr, producer = problem.preds.ptr.tolist(), problem.preds.task.tolist()
    start, finish = [0.0] * problem.n, [0.0] * problem.n
    free = [0.0] * problem.m
    for t in queue:
        begin = free[lane[t]]
        for k in range(ptr[t], ptr[t + 1]):
            at = finish[producer[k]] + takes[k]
            if at > begin:
                begin = at
        start[t] = begin
        finish[t] = free[lane[t]] = begin + cost[t]
    return Timed(start, finish, {}, max(finish, default=0.0))


def _decode_serial(
    problem: Problem, queue: list[int], where: Ints, cost: list[float], lane: list[int]
) -> Timed:
    """Decoding with one transfer at a time on each direction of a link."""
    size = copy_sizes(problem, where)
    takes = hops(problem, size, where)[problem.preds.edge].tolist()
    nbytes = size[problem.preds.edge].tolist()
    tensor = problem.edge_tensor[problem.preds.edge].tolist()
    ptr, producer = problem.preds.ptr.tolist(), problem.preds.task.tolist()
    device: list[int] = where.tolist()
    start, finish = [0.0] * problem.n, [0.0] * problem.n
    free = [0.0] * problem.m
    channel: dict[tuple[int, int], float] = {}
    sent: dict[tuple[int, int], Transfer] = {}
    for t in queue:
        d = device[t]
        begin = free[lane[t]]
        missing: list[tuple[float, int, int, int]] = []
        for k in range(ptr[t], ptr[t + 1]):
            p = producer[k]
            held = sent.get((tensor[k], d))
            if device[p] == d:
                begin = max(begin, finish[p])
            elif held is None:
                missing.append((finish[p], p, tensor[k], k))
            else:
                begin = max(begin, held.finish)
        for at, p, x, k in sorted(missing):
            held = sent.get((x, d))
            if held is None:
                go = max(at, channel.get((device[p], d), 0.0))
                end = channel[device[p], d] = go + takes[k]
                held = sent[x, d] = Transfer(p, x, device[p], d, nbytes[k], go, end)
            begin = max(begin, held.finish)
        start[t] = begin
        finish[t] = free[lane[t]] = begin + cost[t]
    return Timed(start, finish, sent, max(finish, default=0.0))


def free_transfers(problem: Problem, device: Ints, finish: Floats) -> list[Transfer]:
    """One transfer a (tensor, device), as large as its largest edge there, sent at once."""
    size = copy_sizes(problem, device)
    src, dst = device[problem.edge_src], device[problem.edge_dst]
    begin = finish[problem.edge_src]
    end = begin + hops(problem, size, device)
    moved = np.flatnonzero(src != dst)
    key = problem.edge_tensor[moved] * problem.m + dst[moved]
    once = moved[np.unique(key, return_index=True)[1]]
    columns = (problem.edge_src, problem.edge_tensor, src, dst, size, begin, end)
    return [Transfer(*row) for row in zip(*(c[once].tolist() for c in columns), strict=True)]
