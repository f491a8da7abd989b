"""Planning for the command line: for the devices here, or for a saved machine profile."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.devices.machine import Machine, Status
from crossdock.runtime import costing, explain, fallback, planner, profiles
from crossdock.runtime.cli.options import Placing, split_link
from crossdock.runtime.errors import LoadError, PlanError
from crossdock.runtime.flips import batch_of
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.prepare import (
    PREPARING,
    Config,
    Progress,
    concerning,
    group_capacity,
    measure_missing,
    simplify,
)
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel, LinkModel


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made from: the graph after the passes, and the target."""

    graph: Graph
    plan: Plan
    target: Target


@dataclass(frozen=True)
class Changes:
    """What to plan with that is not so: devices gone, links (GB/s) and memory of another size."""

    without: Sequence[str] = ()
    links: Sequence[tuple[str, float]] = ()
    memory: Mapping[str, int] | None = None


def plan_model(
    graph: Graph,
    placing: Placing,
    changes: Changes,
    machine: Machine | None = None,
    progress: Progress | None = None,
    *,
    stage: bool = False,
    source: Graph | None = None,
) -> Planned:
    """Plan a static graph; kernels not measured before are measured where the devices are here.

    Of a ``stage`` of a graph, constraints may name ops that are in others. ``source`` is the graph
    before its symbols were bound.

    Raises:
        PlanError: no plan, or an option names a device that there is not.
        LoadError: the profile has no processor to feed the devices.
        DeviceError: a device cannot be opened.
    """
    constraints = placing.constraints(changes.memory)
    if stage:
        constraints = concerning(graph, constraints)
    passes_of = partial(simplify, constraints=constraints)
    simple = passes_of(graph)
    if machine is None:
        target = _here(simple, placing, changes.without, progress)
    else:
        target = _profiled(simple, machine, placing, changes.without)
    ids = {d.id for d in target.devices}
    for name in changes.memory or {}:
        _known(name, ids, "--memory")
    target = replace(target, model=_relinked(target, changes.links))
    options = planner.Options(placing.policy, constraints, placing.expected_runs)
    plan = planner.make_plan(simple, target, options)
    fallback.check(plan, target.asked, placing.fallback, simple)
    batch = None if source is None else batch_of(source, graph, passes_of)
    return Planned(simple, explain.attach(plan, simple, target, options, batch), target)


def _known(name: str, ids: set[str], flag: str) -> None:
    if name not in ids:
        raise PlanError(f"{flag} {name}: no such device; there are {', '.join(sorted(ids))}")


def _asked(all_ids: Sequence[str], placing: Placing, without: Sequence[str]) -> frozenset[str]:
    """The devices that ops are placed on."""
    ids = set(all_ids)
    for name in without:
        _known(name, ids, "--without")
    for name in placing.devices:
        _known(name, ids, "--device")
    asked = frozenset(placing.devices or all_ids) - set(without)
    if not asked:
        raise PlanError("--without leaves no device to plan for; leave one out of it")
    return asked


def _here(
    graph: Graph, placing: Placing, without: Sequence[str], progress: Progress | None
) -> Target:
    asked = _asked([info.id for info in registry.devices()], placing, without)
    devices = {
        name: registry.open_device(name, threads=placing.threads)
        for name in dict.fromkeys((HOST, *sorted(asked)))
    }
    config = Config(threads=placing.threads, measure=placing.budget)
    with PREPARING:
        measure_missing(graph, config, devices, progress)
    infos = tuple(device.info for device in devices.values())
    return Target(infos, asked, costing.store().model, group_capacity(infos))


def _profiled(graph: Graph, machine: Machine, placing: Placing, without: Sequence[str]) -> Target:
    found = {d.id: d.info for d in machine.devices if d.status is Status.PASS and d.info}
    if HOST not in found:
        raise LoadError(f"the profile has no working {HOST}, which feeds the other devices")
    asked = _asked(list(found), placing, without)
    infos = tuple(found[name] for name in dict.fromkeys((HOST, *found)) if name in asked | {HOST})
    return Target(
        infos,
        asked,
        profile_costs(machine, _typical_bytes(graph)),
        group_capacity(infos, machine.cores),
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


def _relinked(target: Target, links: Sequence[tuple[str, float]]) -> CostModel:
    """The target's costs with the bandwidth of links replaced; latencies stay."""
    if not links:
        return target.model
    model = target.model.merge(CostModel())
    ids = {d.id for d in target.devices}
    for text, bandwidth in links:
        src, dst, both = split_link(text, ids)
        for a, b in ((src, dst), (dst, src)) if both else ((src, dst),):
            if HOST not in (a, b):
                raise PlanError(
                    f"--link {text}: transfers pass through {HOST}; give the links {a}:{HOST} and "
                    f"{HOST}:{b}"
                )
            ends: tuple[DeviceInfo, DeviceInfo] = (target.info(a), target.info(b))
            latency = target.link(*ends).latency_s
            made = LinkModel(latency, ((1.0, bandwidth * 1e9),))
            model.set_link(ends[0].fingerprint, ends[1].fingerprint, made)
    return model
