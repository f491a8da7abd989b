"""Which ops to split over devices, and how: candidates by cost, kept where the whole plan gains.

Every heavy op is grown into the regions it can be cut in; the regions that are predicted to end
sooner in parts, slices, joins and transfers included, are cut, and the graph is planned anew with
each part on its device. What is kept is only what the schedule of the whole graph says is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing, rules
from crossdock.runtime.errors import MemoryBudget, NoPlacement
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST, Plan, Split
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.sites import Sites
from crossdock.runtime.split import Region, SplitGraph, Whole, grow, rewrite
from crossdock.runtime.split_cost import (
    Measure,
    RegionCost,
    Shares,
    computing_devices,
    heaviest,
)
from crossdock.runtime.target import Target

MARGIN = 0.03
"""Share of the time that a split must save: less than that is within what runs differ by."""
SEEDS = 32
TRIALS = 4
"""How many sets of regions are planned with."""
TUNES, TUNED = 8, 0.995
"""How many shifts of shares are planned with, and the part of the time that one must leave."""
MEASURED = 12
"""How many regions are measured in vain before the rest is left whole."""
TOLD = 8
"""How many regions that were not split a plan tells of."""


@dataclass(frozen=True)
class Planned:
    """A plan and the graph it is of."""

    split: SplitGraph
    plan: Plan


def unsplit(graph: Graph, sites: Sites) -> SplitGraph:
    """A graph with no op in parts, and what of it stays whole where some are."""
    return SplitGraph(graph, whole=Whole(frozenset(sites.feeds), frozenset(sites.stays)))


@dataclass(frozen=True)
class _Candidate:
    region: Region
    cost: RegionCost
    shares: Shares

    @property
    def gain(self) -> float:
        """Seconds saved over the best device for the whole region, as if it were alone."""
        return self.cost.whole.seconds - self.shares.seconds

    @property
    def pays(self) -> bool:
        """Whether that is worth it: more than the margin, and than what the costs are off by."""
        whole = self.cost.whole
        spread = math.hypot(whole.spread, self.shares.spread)
        return self.gain > max(MARGIN * whole.seconds, spread)

    def overlaps(self, other: _Candidate) -> bool:
        """Whether both cut the same op."""
        return not set(self.region.nodes).isdisjoint(other.region.nodes)


def plan_split(
    graph: Graph,
    target: Target,
    options: Options,
    measure: Measure | None = None,
    whole: Planned | None = None,
) -> Planned:
    """Plan a graph with ops split over devices where that pays; else as ``make_plan`` does.

    Only for latency, by the policy ``auto``, and where two devices compute at once.
    ``whole`` is what ``make_plan`` gave, where that is known.

    ``measure`` is asked to measure parts before their costs count. A region is cut only if no
    constraint names its ops by name.

    Raises:
        NoPlacement, MemoryBudget, PlanError: as ``make_plan``.
    """
    whole = whole or Planned(unsplit(graph, options.sites), make_plan(graph, target, options))
    devices = computing_devices(target)
    if options.policy != "auto" or len(devices) < 2 or options.constraints.max_share:
        return whole
    paying, rest = _disjoint(_candidates(graph, target, options, measure is None), measure)
    chosen, best = _Search(whole, target, options, measure).best(paying)
    if chosen:
        best = _bounded(best, target, options, measure)
    seeds = {(c.region.seed, c.region.axis) for c in chosen}
    left = [c for c in (*paying, *rest) if (c.region.seed, c.region.axis) not in seeds]
    told = [_said(graph, c, chosen) for c in (*chosen, *left)]
    return replace(best, plan=replace(best.plan, splits=tuple(told[: len(chosen) + TOLD])))


def _candidates(graph: Graph, target: Target, options: Options, modelled: bool) -> list[_Candidate]:
    """Regions around the heaviest ops with the shares to begin with.

    If nothing can be measured, those are ``modelled``; else a guess that is too good if anything.
    """
    keep = rules.named(graph, options.constraints)
    devices = computing_devices(target)
    nodes = {n.name: n for n in graph.nodes}
    seen: set[tuple[str, int]] = set()
    found: list[_Candidate] = []
    for name in heaviest(graph, target, devices, SEEDS):
        node = nodes[name]
        for axis in range(graph.specs[node.outputs[0]].rank):
            region = None if (name, axis) in seen else grow(graph, node, axis, keep)
            if region is None:
                continue
            seen |= {(n, region.axes[nodes[n].outputs[0]]) for n in region.nodes}
            sites = options.sites
            cost = RegionCost(unsplit(graph, sites), region, target, devices, sites)
            if len(cost.devices) > 1:
                found.append(_Candidate(region, cost, cost.best() if modelled else cost.guess()))
    return found


def _disjoint(
    found: Sequence[_Candidate], measure: Measure | None
) -> tuple[list[_Candidate], list[_Candidate]]:
    """The candidates that pay, best first, of those that share an op only the best; and the others.

    The gain of the best one is measured before it counts, and may make another the best.
    """
    open_, picked, others = list(found), list[_Candidate](), list[_Candidate]()
    sure: set[int] = set()
    while open_:
        open_.sort(key=lambda c: -c.gain)
        best = open_.pop(0)
        if not best.pays or any(best.overlaps(c) for c in picked):
            others.append(best)
        elif measure is None or id(best.cost) in sure:
            picked.append(best)
        elif len(sure) - len(picked) >= MEASURED:
            others.append(best)
        else:
            sure.add(id(best.cost))
            open_.append(replace(best, shares=best.cost.best(measure)))
    return picked, others


@dataclass(frozen=True)
class _Search:
    """Looks for the set of candidates, and the shares, with which the whole graph ends soonest."""

    whole: Planned
    target: Target
    options: Options
    measure: Measure | None

    def best(self, paying: Sequence[_Candidate]) -> tuple[list[_Candidate], Planned]:
        """The candidates to split, and the plan with them.

        Tried are all of them, the better half and so on, and where none of that pays they are added
        one by one. A set must save its margin of the time of the plan that it replaces.
        """
        chosen, best = list[_Candidate](), self.whole
        sizes = [len(paying) >> i for i in range(TRIALS) if len(paying) >> i]
        for n in dict.fromkeys(sizes):
            made = self.plan(paying[:n])
            if made is not None and _saves(made, best):
                chosen, best = list(paying[:n]), made
        for candidate in () if chosen else paying[1 : 1 + TRIALS]:
            made = self.plan([*chosen, candidate])
            if made is not None and _saves(made, best):
                chosen, best = [*chosen, candidate], made
        cut = {name for c in chosen for name in c.region.nodes}
        alone = len(chosen) < 2 and len(cut) == len(self.whole.split.graph.nodes)
        return (chosen, best) if alone else self._tuned(chosen, best)

    def plan(self, chosen: Sequence[_Candidate]) -> Planned | None:
        """The plan with candidates split."""
        cuts = [(c.region, c.shares) for c in chosen]
        return plan_parts(self.whole, cuts, self.target, self.options, self.measure)

    def _tuned(self, chosen: list[_Candidate], best: Planned) -> tuple[list[_Candidate], Planned]:
        """Shift shares where that makes the whole end sooner.

        Each region's shares end together as if it were alone; beside others, devices wait.
        """
        looks = TUNES
        for part in (8, 16):
            for at in range(min(len(chosen), looks // 2)):
                for moved in _moved(chosen[at], chosen[at].region.units // part):
                    looks -= 1
                    trial = [*chosen[:at], moved, *chosen[at + 1 :]]
                    made = self.plan(trial)
                    if made is not None and made.plan.predicted < best.plan.predicted * TUNED:
                        chosen, best = trial, made
        return chosen, best


def _moved(candidate: _Candidate, units: int) -> list[_Candidate]:
    """The candidate with so many units moved from either device to the other."""
    shares = candidate.shares
    if len(shares.sizes) != 2 or units < candidate.cost.grain:
        return []
    a, b = shares.sizes
    pairs = [(a + n, b - n) for n in (units, -units)]
    return [
        replace(candidate, shares=replace(shares, sizes=pair)) for pair in pairs if min(pair) > 0
    ]


def _saves(made: Planned, before: Planned) -> bool:
    return made.plan.predicted < before.plan.predicted * (1.0 - MARGIN)


def plan_parts(
    whole: Planned,
    cuts: Sequence[tuple[Region, Shares]],
    target: Target,
    options: Options,
    measure: Measure | None = None,
) -> Planned | None:
    """The graph with regions cut, planned with each part on its device; None if it has no place."""
    split, homes = whole.split, dict[str, str]()
    for region, shares in cuts:
        before = set(split.parts)
        split = rewrite(split, region, shares.sizes)
        for name in split.parts.keys() - before:
            homes[name] = shares.devices[split.parts[name]]
    if measure is not None:
        calls = _placed_calls(split.graph)
        border = calls.keys() - homes.keys() - {n.name for n in whole.split.graph.nodes}
        near = border if not options.sites.plain else set[str]()  # slices and joins on devices
        for device in dict.fromkeys((HOST, *homes.values())):
            own = {n: c for n, c in calls.items() if homes.get(n, HOST) == device or n in near}
            measure(device, own)
    try:
        plan = make_plan(split.graph, target, replace(options, homes=homes))
    except (NoPlacement, MemoryBudget):
        return None
    alone = {d.id: d.single_seconds for d in whole.plan.devices}
    parts = tuple(replace(d, single_seconds=alone[d.id]) for d in plan.devices)
    return Planned(split, replace(plan, graph=whole.plan.graph, devices=parts))


def _bounded(
    made: Planned, target: Target, options: Options, measure: Measure | None = None
) -> Planned:
    """The plan with the lower bound of the graph in parts with every op on any device."""
    graph = made.split.graph
    if measure is not None:
        for info in computing_devices(target):
            measure(info.id, _placed_calls(graph))
    free = make_plan(graph, target, options)
    bound = min(free.lower_bound, made.plan.predicted)
    return replace(made, plan=replace(made.plan, lower_bound=bound))


def _placed_calls(graph: Graph) -> dict[str, OpCall]:
    calls = costing.op_calls(graph)
    return {n.name: calls[n.name] for n in graph.nodes if not costing.is_alias(n)}


def _said(graph: Graph, candidate: _Candidate, chosen: Sequence[_Candidate]) -> Split:
    """What a plan says of a candidate."""
    region, shares = candidate.region, candidate.shares
    node = next(n for n in graph.nodes if n.name == region.seed)
    size = graph.specs[node.outputs[0]].dims[region.axis]
    alone = candidate.cost.whole
    whole = f"{alone.seconds * 1e3:.3f} ms whole on {alone.devices[0]}"
    reason = f"nothing is done sooner than {whole}"
    if len(shares.sizes) > 1:
        parts = f"{shares.seconds * 1e3:.3f} ms in parts (slices, copies and joins included)"
        reason = f"{parts} against {whole}"
    taken = candidate in chosen
    if not taken:
        reason = f"{_why_not(candidate, chosen)}: {reason}"
    return Split(
        seed=region.seed,
        axis=region.axis,
        ops=region.nodes,
        devices=shares.devices,
        sizes=tuple(s * size // region.units for s in shares.sizes),
        gain=candidate.gain,
        taken=taken,
        reason=reason,
    )


def _why_not(candidate: _Candidate, chosen: Sequence[_Candidate]) -> str:
    if not candidate.pays:
        sure = candidate.gain <= MARGIN * candidate.cost.whole.seconds
        return "below break-even" if sure else "the gain is less than the costs may be off by"
    if any(candidate.overlaps(c) for c in chosen):
        return "another split of its ops was taken"
    return "the plan of the whole graph is no better for it"
