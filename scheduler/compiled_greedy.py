"""Iterated greedy: perturb the priorities or device biases of some tasks, schedule again.

After R. Ruiz, T. Stützle, "A simple and effective iterated greedy algorithm for the permutation
flowshop scheduling problem", EJOR 177(3), 2007, with insertion list scheduling as the constructor.
"""

from __future__ import annotations

import numpy as np

from crossdock.scheduler.compiled_core import BIG, Graph, below, compiled, kernel, uniform
from crossdock.scheduler.compiled_lists import empty_partial, insert_all, order_by
from crossdock.scheduler.problem import Floats, Ints

SPREAD = 0.05  # of a priority change, relative to the largest priority
SHARE = 0.15  # of the tasks, at most, that one round perturbs


@kernel
def normal(rng: np.ndarray) -> float:
    """Standard normal number by the polar method."""
    while True:
        x = 2.0 * uniform(rng) - 1.0
        y = 2.0 * uniform(rng) - 1.0
        r = x * x + y * y
        if 0.0 < r < 1.0:
            return x * np.sqrt(-2.0 * np.log(r) / r)


@compiled
def iterated_greedy(
    g: Graph, rank: Floats, bias: Floats, rounds: int, rng: np.ndarray
) -> tuple[float, Ints, Floats]:
    """Best of ``rounds`` perturbed list schedules: (makespan, device, start).

    ``rank`` (n,) and ``bias`` (n, m) are moved to the best found.
    """
    n, m = g.cost.shape
    s = empty_partial(g)
    queue = np.zeros(m)
    order = order_by(g, rank)
    best = insert_all(g, s, order, bias, queue)
    device, start = s.device.copy(), s.start.copy()
    scale = SPREAD * rank.max()
    for _ in range(rounds):
        new_rank, new_bias = rank.copy(), bias.copy()
        by_rank = uniform(rng) < 0.6
        for _ in range(1 + int(uniform(rng) ** 3 * n * SHARE)):
            t = below(rng, n)
            if by_rank:
                new_rank[t] += normal(rng) * scale
            else:
                new_bias[t, below(rng, m)] += normal(rng) * 1.5 * g.cost[t].min()
        new_order = order_by(g, new_rank) if by_rank else order
        makespan = insert_all(g, s, new_order, new_bias, queue)
        if makespan <= best and makespan < BIG:
            rank[:], bias[:], order = new_rank, new_bias, new_order
            if makespan < best:
                best = makespan
                device[:], start[:] = s.device, s.start
    return best, device, start
