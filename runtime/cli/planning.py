"""Planning for the command line: for the devices here, or for a saved machine profile."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from crossdock.devices import registry
from crossdock.devices.base import Device
from crossdock.devices.machine import Machine, Status
from crossdock.kernels.precision import Permission
from crossdock.runtime import costing, degrade, explain, fallback, planner, profiles, whatif
from crossdock.runtime.cli.options import Placing, objective, split_link
from crossdock.runtime.config import PREPARING, Config, Progress
from crossdock.runtime.errors import LoadError, PlanError
from crossdock.runtime.flips import batch_of
from crossdock.runtime.graph import Graph
from crossdock.runtime.knowledge import (
    group_capacity,
    measure_missing,
    measure_parts,
    target_here,
)
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.prepare import concerning, simplify
from crossdock.runtime.sites import ON_HOST, Sites
from crossdock.runtime.split_choice import Planned as WithParts
from crossdock.runtime.target import Target
from crossdock.runtime.whatif import Changes, Comparison
from crossdock.scheduler import CostModel


@dataclass(frozen=True)
class Asked:
    """Changes as the command line has them: links by text, which hangs on the devices there are."""

    without: Sequence[str] = ()
    links: Sequence[tuple[str, float]] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    cores: int | None = None

    def resolve(self, ids: Collection[str], threads: int | None) -> Changes:
        """The changes to a target with these devices; GB/s become bytes per second."""
        links: dict[tuple[str, str], float] = {}
        for text, rate in self.links:
            src, dst, both = split_link(text, ids)
            for ends in ((src, dst), (dst, src)) if both else ((src, dst),):
                links[ends] = rate * 1e9
        return Changes(tuple(self.without), links, self.memory, self.cores, threads)


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made from: the graph after the passes, and the target.

    ``comparison`` is with the plan of the target as it is, where changes were asked for and that
    plan exists; ``unplanned`` says why it does not.
    """

    graph: Graph
    plan: Plan
    target: Target
    comparison: Comparison | None = None
    unplanned: str = ""


def plan_model(
    graph: Graph,
    placing: Placing,
    asked: Asked,
    machine: Machine | None = None,
    progress: Progress | None = None,
    *,
    stage: bool = False,
    source: Graph | None = None,
) -> Planned:
    """Plan a static graph; kernels not measured before are measured where the devices are here.

    Of a ``stage`` of a graph, constraints may name ops that are in others, and inputs and outputs
    are on the host. ``source`` is the graph before its symbols were bound.

    Raises:
        PlanError: no plan, or an option names a device that there is not.
        LoadError: the profile has no processor to feed the devices.
        DeviceError: a device cannot be opened.
    """
    constraints = placing.constraints()
    sites = ON_HOST if stage else placing.sites(graph)
    if stage:
        constraints = concerning(graph, constraints)
    passes_of = partial(simplify, constraints=constraints, skip=placing.skip_passes)
    batch = None if source is None else batch_of(source, graph, passes_of)
    graph = passes_of(graph)
    scene = scene_of(graph, placing, machine, progress, sites)
    target = scene.target
    # Without a profile, --threads opens the processor's device with so many: nothing is supposed.
    threads = None if machine is None else placing.threads
    changes = asked.resolve({d.id for d in target.devices}, threads)
    options = options_of(placing, constraints, sites)
    before, unplanned = None, ""
    if changes:
        try:
            before = scene.plan(graph, target, options).plan
        except PlanError as error:
            unplanned = str(error)
    other = whatif.changed(target, changes) if changes else target
    options = replace(options, sites=sites.within({d.id for d in other.devices}))
    made = scene.plan(graph, other, options)
    fallback.check(made.plan, other.asked, placing.fallback, made.split.graph)
    found = None
    if before is not None:
        ops = [n.name for n in graph.nodes]
        found = whatif.compare(before, made.plan, target, changes, ops)
    split, plan = made.split, made.plan
    if not plan.rungs:
        homes = {s.name: s.device for s in plan.launches() if s.name in split.parts}
        plan = explain.attach(plan, split.graph, other, replace(options, homes=homes), batch)
    return Planned(split.graph, plan, other, found, unplanned)


def options_of(placing: Placing, constraints: Constraints, sites: Sites) -> planner.Options:
    """The planner's options; raises PlanError for an objective that there is not."""
    wanted, runs = objective(placing.objective), placing.expected_runs
    return planner.Options(placing.policy, constraints, runs, objective=wanted, sites=sites)


@dataclass(frozen=True)
class Scene:
    """Where a graph may run, unchanged, and the devices where they are here."""

    target: Target
    config: Config
    devices: Mapping[str, Device]

    def plan(self, graph: Graph, target: Target, options: planner.Options) -> WithParts:
        """Plan for the scene's target, or for one that a change made of it.

        Parts of ops are measured where the devices are here.
        """
        timing = measure_parts(self.config, self.devices, target.model) if self.devices else None
        with PREPARING:
            return degrade.plan_best(graph, target, options, timing)


def scene_of(
    graph: Graph,
    placing: Placing,
    machine: Machine | None,
    progress: Progress | None,
    sites: Sites = ON_HOST,
) -> Scene:
    """The devices here, their kernels measured; or those of a profile. ``sites`` are planned for.

    Raises:
        PlanError: an option names a device that there is not.
        LoadError: the profile has no processor to feed the devices.
        DeviceError: a device cannot be opened.
    """
    config = Config(
        threads=placing.threads, measure=placing.budget, precision=placing.precision, sites=sites
    )
    if machine is not None:
        target = _profiled(graph, machine, placing, sites)
        return Scene(_as_asked(target.holding(sites.devices), placing), config, {})
    there = [info.id for info in registry.devices()]
    named = (*placing.devices, *sites.devices)
    there += [name for name in named if name not in there and registry.is_there(name)]
    asked = _chosen(there, placing, sites)
    devices = {
        name: registry.open_device(name, threads=placing.threads)
        for name in dict.fromkeys((HOST, *sorted(asked | sites.devices)))
    }
    config = replace(config, devices=tuple(sorted(asked)))
    with PREPARING:
        measure_missing(graph, config, devices, progress)
    target = target_here(devices, asked).holding(sites.devices)
    return Scene(_as_asked(target, placing), config, devices)


def _as_asked(target: Target, placing: Placing) -> Target:
    """The target with an option's watts before those of a profile, and the precision asked for."""
    watts = {**target.watts, **(placing.watts or {})}
    return replace(target, watts=watts, permission=Permission(precision=placing.precision))


def _chosen(ids: Sequence[str], placing: Placing, sites: Sites) -> frozenset[str]:
    """The devices that ops are placed on; those that inputs lie on have to be there as well."""
    for flag, names in (("device", placing.devices), ("feeds-on", sorted(sites.devices))):
        for name in names:
            if name not in ids:
                raise PlanError(
                    f"--{flag} {name}: no such device; there are {', '.join(sorted(ids))}"
                )
    return frozenset(placing.devices or ids)


def _profiled(graph: Graph, machine: Machine, placing: Placing, sites: Sites) -> Target:
    found = {d.id: d.info for d in machine.devices if d.status is Status.PASS and d.info}
    if HOST not in found:
        raise LoadError(f"the profile has no working {HOST}, which feeds the other devices")
    asked = _chosen(list(found), placing, sites)
    used = {HOST} | asked | sites.devices
    infos = tuple(found[name] for name in dict.fromkeys((HOST, *found)) if name in used)
    return Target(
        infos,
        asked,
        profile_costs(machine, _typical_bytes(graph)),
        group_capacity(infos, machine.cores),
        watts={d.id: (d.watts.idle, d.watts.active) for d in machine.passed if d.watts},
        peers=profiles.peers(machine),
    )


def profile_costs(machine: Machine, nbytes: float) -> CostModel:
    """What is measured here, with a profile's rates and links laid over it.

    Measurements are keyed by device fingerprint, so they count where the profile is of a device
    like one here. ``nbytes`` is a typical size of an op's data: bandwidth depends on it.
    """
    model = costing.store().model.merge(CostModel())
    profiles.apply(machine, model, nbytes)
    return model


def _typical_bytes(graph: Graph) -> float:
    calls = costing.op_calls(graph)
    sizes = [costing.op_work(calls[n.name]).bytes for n in graph.nodes if not costing.is_alias(n)]
    return statistics.median(sizes) if sizes else float(1 << 20)
