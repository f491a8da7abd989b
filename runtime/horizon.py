"""Over how many runs a plan pays: what it takes to begin, against what its runs take.

Uploads of weights and builds of kernels are paid once, runs each time. Plans are made for one run,
for as many as are expected and for very many; of these the one with the least for the runs expected
is kept, and it says from how many runs on another would have been.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from crossdock.kernels.spec import OpCall
from crossdock.runtime import builds, costing
from crossdock.runtime.errors import MemoryBudget, NoPlacement
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.plan_parts import Horizon
from crossdock.runtime.planner import Known, Options, Planning
from crossdock.runtime.simulate import simulate
from crossdock.runtime.target import Target

MANY = 1_000_000
"""Runs over which what is paid once is nothing."""
LARGE = 2000
"""Steps from which on planning again takes too long."""
MATTERS = 0.01
"""Share of the expected runs' time that all uploads and builds together come to at least."""


@dataclass(frozen=True)
class Priced:
    """A plan with what it takes once and each run, in seconds."""

    plan: Plan
    uploads: float
    builds: float
    sources: tuple[str, ...]
    run: float

    @property
    def once(self) -> float:
        """Seconds before the first run."""
        return self.uploads + self.builds

    def each(self, runs: int) -> float:
        """Seconds a run, with its part of what is paid once."""
        return self.run + self.once / runs

    @property
    def placement(self) -> tuple[tuple[str, str], ...]:
        """Device of every op."""
        return tuple((s.name, s.device) for s in self.plan.launches())


def price(plan: Plan, graph: Graph, target: Target) -> Priced:
    """What a plan takes once (weights to other devices, kernels) and each run."""
    calls = costing.op_calls(graph)
    host = target.info(HOST)
    uploads = 0.0
    for part in plan.devices:
        if part.id != HOST and part.fixed_bytes:
            uploads += target.link(host, target.info(part.id)).seconds(part.fixed_bytes)
    found = {
        mark: builds.build_of(target.model, mark, target.built) for mark in _marks(plan, calls)
    }
    return Priced(
        plan,
        uploads,
        sum(b.seconds for b in found.values()),
        tuple(sorted({b.source for b in found.values()})),
        simulate(plan, target.capacity).makespan,
    )


def _marks(plan: Plan, calls: Mapping[str, OpCall]) -> set[builds.Mark]:
    """The kernels that a plan builds."""
    prints = {part.id: part.fingerprint for part in plan.devices}
    return {(prints[s.device], s.kernel, calls[s.name].key()) for s in plan.launches()}


def best_over_runs(graph: Graph, target: Target, options: Options, plan: Plan) -> Plan:
    """The plan that takes least over the runs expected, of ``plan`` and others; with its horizon.

    The others pay for uploads and builds with one run, with those expected, and with very many.
    """
    first = price(plan, graph, target)
    if len(target.asked) < 2 or len(plan.steps) > LARGE:
        return _with_horizon(first, None, None)
    known = Known()
    wanted = replace(options, builds=True)
    dearest = _dearest(Planning(graph, target, wanted, known))
    if dearest < MATTERS * options.expected_runs * first.run:
        return _with_horizon(first, None, None)
    found = [first]
    for runs in dict.fromkeys((1, options.expected_runs, MANY)):
        planning = Planning(graph, target, replace(wanted, expected_runs=runs), known)
        try:
            made = planning.draft()
        except (NoPlacement, MemoryBudget):
            continue
        if not planning.rules.over_budget(made):
            made = replace(made, expected_runs=options.expected_runs)
            found.append(price(made, graph, target))
    best = min(found, key=lambda p: p.each(options.expected_runs))
    if best.each(options.expected_runs) >= first.each(options.expected_runs) * (1 - MARGIN):
        best = first
    few = min(found, key=lambda p: p.each(1))
    many = min(found, key=lambda p: p.run)
    return _with_horizon(best, few, many)


def _dearest(planning: Planning) -> float:
    """Uploads and builds where every op has the device on which they take longest."""
    target, total = planning.target, 0.0
    host = target.info(HOST)
    seen: dict[builds.Mark, float] = {}
    for node in planning.placed:
        offers = planning.offered[node.name]
        key, nbytes = offers.call.key(), sum(a.nbytes for a in offers.call.constants.values())
        uploads = 0.0
        for name, offer in offers.best.items():
            info = target.info(name)
            mark = (info.fingerprint, offer.kernel.name, key)
            seen[mark] = builds.build_of(target.model, mark, target.built).seconds
            if name != HOST and nbytes:
                uploads = max(uploads, target.link(host, info).seconds(nbytes))
        total += uploads
    return total + sum(seen.values())


MARGIN = 1e-3
"""Share that another plan must save: replays of the same plan differ by rounding."""


def crossover(few: Priced, many: Priced) -> float | None:
    """Runs from which on ``many`` takes less in all; None where it never does, or always."""
    saved, more = few.run - many.run, many.once - few.once
    if few.placement == many.placement or saved <= 0.0 or more <= 0.0:
        return None
    return more / saved


def _with_horizon(best: Priced, few: Priced | None, many: Priced | None) -> Plan:
    runs = None if few is None or many is None else crossover(few, many)
    horizon = Horizon(best.uploads, best.builds, ", ".join(best.sources))
    if runs is not None and few is not None and many is not None:
        # This plan is one of the two, or lies between them: the other end is what it is held to.
        other = many if best.placement == few.placement else few
        horizon = replace(
            horizon,
            crossover=runs,
            other=_said(other.plan),
            other_once=other.once,
            other_run=other.run,
        )
    assert math.isfinite(horizon.uploads + horizon.builds), "costs of a plan are finite"
    return replace(best.plan, horizon=horizon)


def _said(plan: Plan) -> str:
    """Where a plan has its ops."""
    shares = {device: share for device, share in plan.shares().items() if share > 0}
    if len(shares) == 1:
        return f"all on {next(iter(shares))}"
    return ", ".join(f"{share:.0%} on {device}" for device, share in shares.items())
