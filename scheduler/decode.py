"""From (topological order, device of every task) to times, in plain Python.

Every task starts as early as its place in the order allows; under serial links a tensor is sent
when its first consumer on a device comes up in the order, behind what that direction already has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.scheduler.bounds import lower_bound
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Links, Schedule, Transfer
from crossdock.scheduler.tensors import inputs_of


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
    inputs = inputs_of(problem, links)
    start, finish = [0.0] * problem.n, [0.0] * problem.n
    free = [0.0] * problem.m
    channel: dict[tuple[int, int], float] = {}
    sent: dict[tuple[int, int], Transfer] = {}
    for t in order:
        task = int(t)
        d = where[task]
        begin = free[resource[d]]
        for producer, tensor, nbytes in inputs[task]:
            src, at = where[producer], finish[producer]
            if src != d and links == "free":
                at += latency[src][d] + nbytes * inv_bw[src][d]
            elif src != d:
                held = sent.get((tensor, d))
                if held is None:
                    go = max(at, channel.get((src, d), 0.0))
                    end = go + latency[src][d] + nbytes * inv_bw[src][d]
                    held = Transfer(producer, tensor, src, d, nbytes, go, end)
                    sent[tensor, d] = held
                    channel[src, d] = end
                at = held.finish
            begin = max(begin, at)
        start[task], finish[task] = begin, begin + cost[task][d]
        free[resource[d]] = finish[task]
    return Timed(start, finish, sent, max(finish, default=0.0))


def make_schedule(
    problem: Problem,
    links: Links,
    device: Sequence[int] | Ints,
    start: Sequence[float] | Floats,
    finish: Sequence[float] | Floats,
    sent: Mapping[tuple[int, int], Transfer],
    policy: str,
    *,
    bound: float | None = None,
    single: Mapping[str, float] | None = None,
    stats: Mapping[str, float] | None = None,
) -> Schedule:
    """Freeze times into a Schedule; free-link transfers are derived here."""
    where = np.array(device, np.int64)
    begin, end = np.array(start, np.float64), np.array(finish, np.float64)
    moves = list(sent.values()) if links == "serial" else free_transfers(problem, where, end)
    makespan = float(end.max()) if problem.n else 0.0
    if math.isinf(makespan):
        raise ValueError("a schedule with an unreachable input is not a schedule")
    least = lower_bound(problem) if bound is None else bound
    for array in (where, begin, end):
        array.flags.writeable = False
    return Schedule(
        problem=problem,
        links=links,
        device=where,
        start=begin,
        finish=end,
        transfers=tuple(sorted(moves, key=lambda x: (x.start, x.finish, x.tensor, x.dst))),
        makespan=makespan,
        lower_bound=min(least, makespan),
        policy=policy,
        single=dict(single or {}),
        stats=dict(stats or {}),
    )


def free_transfers(problem: Problem, device: Ints, finish: Floats) -> list[Transfer]:
    """One transfer a (tensor, device), as large as its largest edge there, sent at once."""
    size: dict[tuple[int, int], float] = {}
    producer: dict[int, int] = {}
    crossing = np.flatnonzero(device[problem.edge_src] != device[problem.edge_dst])
    for e in crossing.tolist():
        tensor = int(problem.edge_tensor[e])
        key = (tensor, int(device[problem.edge_dst[e]]))
        producer[tensor] = int(problem.edge_src[e])
        size[key] = max(size.get(key, 0.0), float(problem.edge_bytes[e]))
    moves = []
    for (tensor, dst), nbytes in size.items():
        a = producer[tensor]
        src, at = int(device[a]), float(finish[a])
        end = at + problem.transfer_s(nbytes, src, dst)
        moves.append(Transfer(a, tensor, src, dst, nbytes, at, end))
    return moves
