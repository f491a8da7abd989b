"""Placement policies: pure functions from a Problem to a Schedule, by name."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from crossdock.runtime.errors import PlanError
from crossdock.scheduler.drafts import Draft, best_of, draft_of, freeze, place_fixed
from crossdock.scheduler.labels import cheapest_labels
from crossdock.scheduler.limits import Limits
from crossdock.scheduler.lists import (
    earliest_finish,
    look_ahead,
    priority_order,
    run_list,
    upward_ranks,
)
from crossdock.scheduler.problem import Floats, Ints, Problem
from crossdock.scheduler.result import Links, Options, Policy, Schedule
from crossdock.scheduler.single import single_drafts, single_placement

COMPILED = "crossdock.scheduler.refine"
PROBES = 30_000  # more (edges times device pairs) take over a second in plain Python

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
    polish_s: float = 0.0,
) -> Schedule:
    """Schedule ``problem`` by a named policy; the other arguments are those of Options.

    Raises:
        PlanError: there is no such policy.
        NoPlacement: some task cannot be placed.
        MemoryBudget: with ``memory``, nothing found fits.
    """
    if policy not in _POLICIES:
        raise PlanError(f"no placement policy {policy!r}; there are {', '.join(policy_names())}")
    if links not in ("free", "serial"):
        raise PlanError(f"no link model {links!r}; there are free, serial")
    options = Options(links, budget_s, seed, iterations, memory, compiled, polish_s)
    return _POLICIES[policy](problem, options)


@policy("best_single")
def best_single(problem: Problem, options: Options) -> Schedule:
    """Everything on one device, the best; tasks it cannot run go where they cost least."""
    singles = single_drafts(problem, options.links, rank_order(problem))
    draft = best_of(problem, options, lambda _limits: list(singles.values()))
    return freeze(problem, options.links, draft, single=spans(singles))


@policy("heft")
def heft(problem: Problem, options: Options) -> Schedule:
    """HEFT with insertion."""
    draft = best_of(problem, options, lambda limits: [heft_draft(problem, options.links, limits)])
    return freeze(problem, options.links, draft)


@policy("lookahead")
def lookahead(problem: Problem, options: Options) -> Schedule:
    """One-level look-ahead HEFT with insertion."""
    draft = best_of(
        problem, options, lambda limits: [lookahead_draft(problem, options.links, limits)]
    )
    return freeze(problem, options.links, draft)


@policy("auto")
def auto(problem: Problem, options: Options) -> Schedule:
    """The best of all seeds, then searched on; never worse than any single device."""
    if use_compiled(options) and problem.n and problem.m > 1:
        from crossdock.scheduler.refine import refine, warm_up

        warm_up()
        return refine(problem, options, time.perf_counter())
    singles = single_drafts(problem, options.links, rank_order(problem))

    def make(limits: Limits) -> list[Draft]:
        others = python_drafts(problem, options.links, limits) if problem.m > 1 else []
        return [*singles.values(), *others]

    draft = best_of(problem, options, make)
    draft = replace(draft, name=f"auto:{draft.name}")
    return freeze(problem, options.links, draft, single=spans(singles))


def use_compiled(options: Options) -> bool:
    """Whether the compiled search is asked for, or loaded already."""
    return COMPILED in sys.modules if options.compiled is None else options.compiled


def warm_up() -> None:
    """Load the compiled search (and compile it once a machine), so that ``auto`` uses it."""
    from crossdock.scheduler.refine import warm_up as load

    load()


def spans(singles: Mapping[str, Draft]) -> dict[str, float]:
    """Predicted makespan of every single-device plan."""
    return {name: draft.makespan for name, draft in singles.items()}


def rank_order(problem: Problem) -> Ints:
    """HEFT's order of the tasks, int64 (n,)."""
    return priority_order(problem, upward_ranks(problem))


def heft_draft(problem: Problem, links: Links, limits: Limits) -> Draft:
    """One HEFT run."""
    state = run_list(problem, links, limits, rank_order(problem), earliest_finish)
    return draft_of(state, "heft")


def lookahead_draft(problem: Problem, links: Links, limits: Limits) -> Draft:
    """One look-ahead run."""
    rank = upward_ranks(problem)
    choose = look_ahead(children_by_rank(problem, rank))
    state = run_list(problem, links, limits, priority_order(problem, rank), choose)
    return draft_of(state, "lookahead")


def python_drafts(problem: Problem, links: Links, limits: Limits) -> list[Draft]:
    """HEFT and, where they are quick enough, look-ahead and the cheapest labelling."""
    drafts = [heft_draft(problem, links, limits)]
    if problem.m * problem.m * max(problem.n, len(problem.edge_src)) > PROBES:
        return drafts
    drafts.append(lookahead_draft(problem, links, limits))
    starts = [single_placement(problem, d) for d in range(problem.m)]
    labels = cheapest_labels(problem, [x.tolist() for x in starts] + [drafts[0].device])
    order = rank_order(problem)
    draft = place_fixed(problem, links, limits, order, np.array(labels, np.int64), "labels")
    return drafts if draft is None else [*drafts, draft]


def children_by_rank(problem: Problem, rank: Floats) -> list[list[int]]:
    """Distinct consumers of every task, largest rank first."""
    ptr, task = problem.succs.ptr.tolist(), problem.succs.task.tolist()
    return [
        sorted(set(task[ptr[t] : ptr[t + 1]]), key=lambda c: (-rank[c], c))
        for t in range(problem.n)
    ]
