"""Exact schedules of graphs that fall apart at single tasks: chains, and chains of small blocks.

A cut is a task that all others come before or after, and that no edge passes by. Under free links
what follows a cut depends on what precedes it through the cut's device and finish alone, so that
dynamic programming over the devices of the cuts is exact (R. Bellman, "Dynamic Programming",
Princeton 1957); the blocks between them are solved by branch and bound. Without contention nothing
takes longer, so that the value bounds serial links too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from crossdock.scheduler.compiled_bounds import fill_heads
from crossdock.scheduler.compiled_core import BIG, Graph, compile_graph, fill_tails
from crossdock.scheduler.compiled_exact import DONE, FOUND, branch, new_tree
from crossdock.scheduler.limits import Limits
from crossdock.scheduler.problem import Floats, Ints, Problem

BLOCK = 14  # tasks of a block that branch and bound is tried on
CALL = 40  # nodes that the start of a branch and bound costs as much as
NODES = 2048  # between looks at the budget
Spend = Callable[[int], bool]  # counts nodes; whether there is budget for more


class Exact(NamedTuple):
    """An optimal placement under free links; (n,) each."""

    makespan: float
    device: Ints
    order: Ints


class Part(NamedTuple):
    """A solved block: its length, and the devices and order of its tasks after the cut."""

    length: float
    device: Ints
    order: Ints


def cuts(problem: Problem) -> Ints:
    """Positions in ``problem.topo`` of the cuts, ascending."""
    n = problem.n
    position = np.empty(n, np.int64)
    position[problem.topo] = np.arange(n)
    change = np.zeros(n + 2, np.int64)
    np.add.at(change, position[problem.edge_src] + 1, 1)
    np.add.at(change, position[problem.edge_dst], -1)
    passing = np.cumsum(change)[:n]
    sources = position[np.diff(problem.preds.ptr) == 0]
    sinks = position[np.diff(problem.succs.ptr) == 0]
    at = np.arange(n)
    good = (passing == 0) & (at >= sources.max(initial=0)) & (at <= sinks.min(initial=n))
    return np.flatnonzero(good)


def blocks(problem: Problem) -> list[Ints]:
    """Tasks between the cuts, each block up to and with its cut; empty if one is too large."""
    ends = cuts(problem).tolist()
    if not ends:
        return []
    bounds = [0, *(e + 1 for e in ends)] + ([problem.n] if ends[-1] + 1 < problem.n else [])
    parts = [problem.topo[a:b] for a, b in pairwise(bounds)]
    return parts if max(len(x) for x in parts) <= BLOCK else []


def solve_blocks(problem: Problem, spend: Spend, nodes: float = np.inf) -> Exact | None:
    """An optimal placement under free links; None if the graph has no cuts or budget runs out.

    Args:
        problem: what to place; memory is not minded.
        spend: counts nodes and says whether there is budget for more.
        nodes: that the budget is good for; nothing is tried where that cannot be enough.
    """
    parts = blocks(problem)
    if not parts or len(parts) * problem.m**2 * CALL > nodes:
        return None
    m, ahead, choices = problem.m, {-1: 0.0}, []
    alike: dict[bytes, Block] = {}
    for i, tasks in enumerate(parts):
        last = i + 1 == len(parts)
        before = -1 if i == 0 else int(parts[i - 1][-1])
        solver = Block(problem, before, tasks, spend)
        solver = alike.setdefault(solver.key, solver)
        reached: dict[int, float] = {}
        chosen: dict[int, tuple[int, Part]] = {}
        for d in [-1] if last else range(m):
            for e, begin in ahead.items():
                part = solver.solve(e, d)
                if part is None:
                    return None
                if begin + part.length < reached.get(d, BIG):
                    reached[d] = begin + part.length
                    chosen[d] = (e, part)
        if not reached:
            return None
        ahead = reached
        choices.append(chosen)
    return _assemble(problem, ahead[-1], choices, parts)


def _assemble(
    problem: Problem, makespan: float, choices: list[dict[int, tuple[int, Part]]], parts: list[Ints]
) -> Exact:
    device = np.zeros(problem.n, np.int64)
    orders: list[Ints] = []
    at = -1
    for chosen, tasks in zip(reversed(choices), reversed(parts), strict=True):
        at, part = chosen[at]
        device[tasks] = part.device
        orders.append(tasks[part.order])
    return Exact(makespan, device, np.concatenate(orders[::-1]))


class Block:
    """The tasks after one cut up to the next, solved for given devices of both."""

    def __init__(self, problem: Problem, before: int, tasks: Ints, spend: Spend) -> None:
        self.tasks = tasks
        self.spend = spend
        self.first = 0 if before < 0 else 1  # the cut itself is the first task, at no cost
        rows = tasks if before < 0 else np.concatenate([[before], tasks])
        index = np.full(problem.n, -1, np.int64)
        index[rows] = np.arange(len(rows))
        inside = (index[problem.edge_src] >= 0) & (index[problem.edge_dst] >= self.first)
        cost = problem.cost[rows]
        cost[: self.first] = 0.0
        zero = np.zeros(len(rows))
        part = replace(
            problem,
            task_names=tuple(problem.task_names[t] for t in rows.tolist()),
            task_ids=tuple(rows.tolist()),
            cost=cost,
            out_bytes=zero,
            param_bytes=zero,
            scratch_bytes=zero,
            edge_src=index[problem.edge_src[inside]],
            edge_dst=index[problem.edge_dst[inside]],
            edge_bytes=problem.edge_bytes[inside],
            edge_tensor=np.unique(problem.edge_tensor[inside], return_inverse=True)[1],
        )
        arrays = (cost, part.edge_src, part.edge_dst, part.edge_bytes)
        self.key = b"".join(x.tobytes() for x in arrays) + bytes([len(rows), self.first])
        self.problem = part
        self.solved: dict[tuple[int, int], Part] = {}

    @cached_property
    def graph(self) -> Graph:
        """Flat arrays of the block; ``solve`` changes costs and tails."""
        return compile_graph(self.problem, "free", Limits.none(self.problem))

    @cached_property
    def cost(self) -> Floats:
        """Costs with free cuts."""
        return self.graph.cost.copy()

    def solve(self, before: int, last: int) -> Part | None:
        """The shortest schedule with the cuts on these devices (-1: free); None: no budget."""
        found = self.solved.get((before, last)) or self._branch(before, last)
        if found is not None:
            self.solved[before, last] = found
        return found

    def _branch(self, before: int, last: int) -> Part | None:
        g = self.graph
        g.cost[:] = self.cost
        if before >= 0:
            g.cost[0, np.arange(g.cost.shape[1]) != before] = BIG
        if last >= 0:
            g.cost[-1, np.arange(g.cost.shape[1]) != last] = BIG
        if (g.cost.min(axis=1) >= BIG).any():
            return Part(BIG, self.tasks, self.tasks)
        head = np.zeros_like(g.cost)
        fill_heads(g.net, g.wires, g.cost, g.topo, head)
        fill_tails(g.net, g.wires, g.cost, g.topo, g.tail)
        self.spend(CALL)
        tree = new_tree(g, head, np.full(g.lanes, 1.0 / g.lanes), BIG)
        while not tree.counts[DONE]:
            if not self.spend(branch(g, tree, NODES)):
                return None
        if not tree.counts[FOUND]:
            return Part(BIG, self.tasks, self.tasks)
        order = tree.best_order
        order = order[order >= self.first] - self.first
        return Part(float(tree.limit[0]), tree.best_device[self.first :], order)
