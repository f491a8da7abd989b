"""Placement policies: pure functions from a Problem to a Schedule, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from crossdock.runtime.errors import NoPlacement, PlanError
from crossdock.scheduler.decode import make_schedule
from crossdock.scheduler.lists import (
    ListState,
    earliest_finish,
    fixed,
    look_ahead,
    priority_order,
    run_list,
    upward_ranks,
)
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Links, Options, Policy, Schedule

_POLICIES: dict[str, Policy] = {}


def policy(name: str) -> Callable[[Policy], Policy]:
    """Register a policy under ``name``; a later one of the same name replaces it."""

    def register(function: Policy) -> Policy:
        _POLICIES[name] = function
        return function

    return register


def policy_names() -> tuple[str, ...]:
    """Names of the registered policies, sorted."""
    return tuple(sorted(_POLICIES))


def schedule(
    problem: Problem,
    policy: str = "auto",
    *,
    links: Links = "serial",
    budget_s: float = 0.1,
    seed: int = 0,
    iterations: int | None = None,
    memory: bool = False,
    compiled: bool | None = None,
) -> Schedule:
    """Schedule ``problem`` by a named policy; the other arguments are those of Options.

    Raises:
        PlanError: there is no such policy.
        NoPlacement: some task cannot be placed.
        MemoryBudget: with ``memory``, nothing found fits.
    """
    if policy not in _POLICIES:
        raise PlanError(f"no placement policy {policy!r}; there are {', '.join(policy_names())}")
    options = Options(links, budget_s, seed, iterations, memory, compiled)
    return _POLICIES[policy](problem, options)


@policy("best_single")
def best_single(problem: Problem, options: Options) -> Schedule:
    """Everything on one device, the best; tasks it cannot run go where they cost least."""
    runs = single_device_runs(problem, options.links)
    name = min(runs, key=lambda d: runs[d].makespan())
    return freeze(runs[name], f"best_single:{name}", runs)


@policy("heft")
def heft(problem: Problem, options: Options) -> Schedule:
    """HEFT with insertion."""
    order = priority_order(problem, upward_ranks(problem))
    return freeze(run_list(problem, options.links, order, earliest_finish), "heft")


@policy("lookahead")
def lookahead(problem: Problem, options: Options) -> Schedule:
    """One-level look-ahead HEFT with insertion."""
    rank = upward_ranks(problem)
    order = priority_order(problem, rank)
    choose = look_ahead(children_by_rank(problem, rank))
    return freeze(run_list(problem, options.links, order, choose), "lookahead")


@policy("auto")
def auto(problem: Problem, options: Options) -> Schedule:
    """The best of all seeds; never worse than any single device."""
    runs = single_device_runs(problem, options.links)
    rank = upward_ranks(problem)
    order = priority_order(problem, rank)
    seeds = {f"best_single:{d}": s for d, s in runs.items()}
    for name, choose in (
        ("heft", earliest_finish),
        ("lookahead", look_ahead(children_by_rank(problem, rank))),
    ):
        seeds[name] = run_list(problem, options.links, order, choose)
    name = min(seeds, key=lambda k: seeds[k].makespan())
    return freeze(seeds[name], f"auto:{name}", runs)


def children_by_rank(problem: Problem, rank: Floats) -> list[list[int]]:
    """Distinct consumers of every task, largest rank first."""
    ptr, task = problem.succs.ptr.tolist(), problem.succs.task.tolist()
    return [
        sorted(set(task[ptr[t] : ptr[t + 1]]), key=lambda c: (-rank[c], c))
        for t in range(problem.n)
    ]


def single_device_runs(problem: Problem, links: Links) -> dict[str, ListState]:
    """For every device that can run something: all on it, the rest by least added cost.

    Raises:
        NoPlacement: no single device works, even with the fallback.
    """
    order = priority_order(problem, upward_ranks(problem))
    runs: dict[str, ListState] = {}
    for d in range(problem.m):
        if not np.isfinite(problem.cost[:, d]).any() and problem.n:
            continue
        try:
            state = run_list(problem, links, order, fixed(single_placement(problem, d)))
        except NoPlacement:
            continue
        if math.isfinite(state.makespan()):
            runs[problem.device_ids[d]] = state
    if not runs:
        raise NoPlacement("no single device reaches every task, even with fallback; add links")
    return runs


def single_placement(problem: Problem, device: int) -> Ints:
    """Device of every task, int64 (n,): ``device`` where it can, else the cheapest there.

    A fallback's price is its cost plus the transfers of its edges to and from ``device``.
    """
    where = np.full(problem.n, device, np.int64)
    for t in np.flatnonzero(~np.isfinite(problem.cost[:, device])).tolist():
        price = problem.cost[t].copy()
        for near, back in ((problem.preds, False), (problem.succs, True)):
            for k in range(int(near.ptr[t]), int(near.ptr[t + 1])):
                size = float(problem.edge_bytes[near.edge[k]])
                for d in range(problem.m):
                    pair = (d, device) if back else (device, d)
                    price[d] += problem.transfer_s(size, *pair)
        where[t] = int(price.argmin())
    return where


def freeze(state: ListState, name: str, runs: dict[str, ListState] | None = None) -> Schedule:
    """Schedule of a complete list state."""
    return make_schedule(
        state.problem,
        "serial" if state.serial else "free",
        state.device,
        state.start,
        state.finish,
        state.sent,
        name,
        single={d: s.makespan() for d, s in (runs or {}).items()},
    )
