"""Whether the tasks' parameters can be packed into the devices' memory, and proofs that not.

A depth-first search over the tasks with parameters, largest first (S. Martello, P. Toth, "Knapsack
Problems", Wiley 1990, chapter 8), cheapest device first. It proves that nothing fits when it ends
without a packing before its limit of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.scheduler.problem import Floats, Ints, Problem

NODES = 50_000  # that a search may visit


@dataclass(frozen=True, slots=True)
class Packing:
    """``device`` (n,) of a packing, or None; ``proof``: why there is none, empty if unknown."""

    device: Ints | None
    proof: str = ""


def pack(problem: Problem) -> Packing:
    """Pack the parameters of all tasks, or say why that is impossible where it is provable."""
    needs = own_needs(problem)
    able = np.isfinite(problem.cost)
    fits = able & (needs[:, None] <= problem.mem_bytes)
    stuck = np.flatnonzero(~fits.any(axis=1))
    if stuck.size:
        t = int(stuck[0])
        room = float(problem.mem_bytes[able[t]].max())
        return Packing(
            None,
            f"no placement fits: task {problem.task_names[t]!r} alone needs {needs[t]:.0f} B for "
            f"parameters, inputs and outputs; the largest device it can run on has {room:.0f} B",
        )
    total, room = float(problem.param_bytes.sum()), float(problem.mem_bytes.sum())
    if total > room:
        return Packing(
            None,
            f"no placement fits: the parameters of all tasks take {total:.0f} B and all devices "
            f"together have {room:.0f} B",
        )
    return _search(problem, fits)


def own_needs(problem: Problem) -> Floats:
    """Least bytes on a task's device while it runs, float64 (n,): all of its own, and inputs.

    Only parameters where the task may take no time.
    """
    p = problem
    needs: Floats = p.param_bytes + p.out_bytes + p.scratch_bytes
    size = np.minimum(p.edge_bytes, p.out_bytes[p.edge_src])
    if size.size:
        # a tensor with two edges into a task is one input
        key = p.edge_tensor * p.n + p.edge_dst
        _, first = np.unique(key, return_index=True)
        np.add.at(needs, p.edge_dst[first], size[first])
    lasts = p.cost.min(axis=1, initial=np.inf) > 0.0
    return np.where(lasts, needs, p.param_bytes)


def _search(problem: Problem, fits: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> Packing:
    """Depth-first search; tasks without parameters go where they cost least."""
    cost = np.where(fits, problem.cost, np.inf)
    device: Ints = cost.argmin(axis=1)
    size = problem.param_bytes
    items = [t for t in np.argsort(-size, kind="stable").tolist() if size[t] > 0.0]
    options = [
        [d for d in np.argsort(cost[t], kind="stable").tolist() if fits[t, d]] for t in items
    ]
    room: list[float] = problem.mem_bytes.tolist()
    bytes_of = [float(size[t]) for t in items]
    tried, level = [0] * len(items), 0
    for _ in range(NODES):
        if level == len(items):
            return Packing(device)
        t, need = items[level], bytes_of[level]
        choices = options[level]
        at = tried[level]
        while at < len(choices) and room[choices[at]] < need:
            at += 1
        if at < len(choices):
            tried[level] = at + 1
            device[t] = choices[at]
            room[choices[at]] -= need
            level += 1
            continue
        tried[level] = 0
        level -= 1
        if level < 0:
            return Packing(
                None,
                "no placement fits: every packing of the tasks' parameters into the devices' "
                "memory was tried",
            )
        room[int(device[items[level]])] += bytes_of[level]
    return Packing(None)
