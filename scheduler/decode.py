"""From (topological order, device of every task) to times, in plain Python.

Every task starts as early as its place in the order allows; under serial links a tensor is sent
when its first consumer on a device comes up in the order, behind what that direction already has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Links, Transfer
from crossdock.scheduler.tensors import copy_bytes, inputs_of


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
    where = [int(d) for d in device]
    cost, resource = problem.cost.tolist(), problem.resource.tolist()
    latency, inv_bw = problem.latency.tolist(), problem.inv_bw.tolist()
    inputs = inputs_of(problem)
    size = copy_bytes(problem, where)
    start, finish = [0.0] * problem.n, [0.0] * problem.n
    free = [0.0] * problem.m
    channel: dict[tuple[int, int], float] = {}
    sent: dict[tuple[int, int], Transfer] = {}
    for t in order:
        task = int(t)
        d = where[task]
        begin = free[resource[d]]
        missing: list[tuple[float, int, int]] = []
        for producer, tensor, nbytes in inputs[task]:
            src, at = where[producer], finish[producer]
            if src != d and links == "free":
                at += latency[src][d] + nbytes * inv_bw[src][d]
            elif src != d:
                held = sent.get((tensor, d))
                if held is None:
                    missing.append((at, producer, tensor))
                    continue
                at = held.finish
            begin = max(begin, at)
        for at, producer, tensor in sorted(missing):
            held = sent.get((tensor, d))
            if held is None:
                src, nbytes = where[producer], size[tensor, d]
                go = max(at, channel.get((src, d), 0.0))
                end = go + latency[src][d] + nbytes * inv_bw[src][d]
                held = sent[tensor, d] = Transfer(producer, tensor, src, d, nbytes, go, end)
                channel[src, d] = end
            begin = max(begin, held.finish)
        start[task], finish[task] = begin, begin + cost[task][d]
        free[resource[d]] = finish[task]
    return Timed(start, finish, sent, max(finish, default=0.0))


def free_transfers(problem: Problem, device: Ints, finish: Floats) -> list[Transfer]:
    """One transfer a (tensor, device), as large as its largest edge there, sent at once."""
    producer = dict(zip(problem.edge_tensor.tolist(), problem.edge_src.tolist(), strict=True))
    moves = []
    for (tensor, dst), nbytes in copy_bytes(problem, device.tolist()).items():
        a = producer[tensor]
        src, at = int(device[a]), float(finish[a])
        end = at + problem.transfer_s(nbytes, src, dst)
        moves.append(Transfer(a, tensor, src, dst, nbytes, at, end))
    return moves
