"""Iterated greedy: perturb the priorities or device biases of some tasks, schedule again.

After R. Ruiz, T. Stützle, "A simple and effective iterated greedy algorithm for the permutation
flowshop scheduling problem", EJOR 177(3), 2007, with insertion list scheduling as the constructor.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_core import (
    BIG,
    Graph,
    Words,
    below,
    copy_into,
    kernel,
    part,
    uniform,
    zeros,
)
from crossdock.scheduler.compiled_lists import Partial, Placed, insert_all
from crossdock.scheduler.compiled_ranks import fill_order
from crossdock.scheduler.problem import Floats, Ints

SPREAD = 0.05  # of a priority change, relative to the largest priority
SHARE = 0.15  # of the tasks, at most, that one round perturbs
BY_RANK = 0.6  # share of rounds that perturb priorities; the others perturb biases
BIAS = 1.5  # of a bias change, relative to the task's least cost


@part
def normal(rng: Words) -> float:
    """Standard normal number by the polar method."""
    while True:
        x = 2.0 * uniform(rng) - 1.0
        y = 2.0 * uniform(rng) - 1.0
        r = x * x + y * y
        if 0.0 < r < 1.0:
            return x * np.sqrt(-2.0 * np.log(r) / r)


@part
def perturb(cost: Floats, rank: Floats, bias: Floats, scale: float, rng: Words) -> None:
    """Change the priorities (by ``scale`` > 0) or else the biases of a few tasks."""
    n, m = cost.shape
    for _ in range(1 + int(uniform(rng) ** 3 * n * SHARE)):
        t = below(rng, n)
        if scale > 0.0:
            rank[t] += normal(rng) * scale
            continue
        least = BIG
        for d in range(m):
            least = min(least, cost[t, d])
        bias[t, below(rng, m)] += normal(rng) * BIAS * least


class Base(NamedTuple):
    """What iterated greedy perturbs, and what the round at hand uses."""

    rank: Floats  # (n,)
    bias: Floats  # (n, m)
    order: Ints  # (n,)
    new_rank: Floats
    new_bias: Floats
    new_order: Ints
    waits: Ints  # (n,) scratch
    heap: Ints  # (n,) scratch
    best_device: Ints  # (n,)
    best_start: Floats  # (n,)
    best: Floats  # (1,) makespan


def new_base(g: Graph, rank: Floats, bias: Floats) -> Base:
    """Start from priorities and biases."""
    n = len(rank)
    base = Base(
        rank.copy(),
        bias.copy(),
        zeros(n),
        np.zeros(n),
        np.zeros_like(bias),
        zeros(n),
        zeros(n),
        zeros(n),
        zeros(n),
        np.zeros(n),
        np.full(1, BIG),
    )
    fill_order(g.net, base.rank, base.waits, base.heap, base.order)
    return base


@part
def copy_bias(target: Floats, source: Floats) -> None:
    """Copy a bias table."""
    for t in range(len(source)):
        copy_into(target[t], source[t])


@part
def keep(base: Base, placed: Placed, makespan: float) -> None:
    """Move the base to the round at hand, and remember it if it is the best."""
    copy_into(base.rank, base.new_rank)
    copy_bias(base.bias, base.new_bias)
    copy_into(base.order, base.new_order)
    if makespan < base.best[0]:
        base.best[0] = makespan
        copy_into(base.best_device, placed.device)
        copy_into(base.best_start, placed.start)


@kernel
def iterated_greedy(g: Graph, s: Partial, base: Base, rounds: int, rng: Words) -> None:
    """Run ``rounds`` perturbed list schedules; the first call's first round is unperturbed."""
    scale = 0.0
    for t in range(len(base.rank)):
        scale = max(scale, SPREAD * base.rank[t])
    for _ in range(rounds):
        copy_into(base.new_rank, base.rank)
        copy_bias(base.new_bias, base.bias)
        copy_into(base.new_order, base.order)
        if base.best[0] < BIG:
            by_rank = uniform(rng) < BY_RANK
            perturb(g.cost, base.new_rank, base.new_bias, scale if by_rank else 0.0, rng)
            if by_rank:
                fill_order(g.net, base.new_rank, base.waits, base.heap, base.new_order)
        makespan = insert_all(g, s, base.new_order, base.new_bias, 1.0)
        if makespan <= base.best[0] and makespan < BIG:
            keep(base, s.placed, makespan)
