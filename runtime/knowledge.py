"""What is known of the devices that are here, and learning what is not: plans are made with it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from crossdock.devices import topology
from crossdock.devices.base import Cap, Device, DeviceInfo
from crossdock.devices.machine import DeviceProfile, Status
from crossdock.devices.probe import probe
from crossdock.kernels.spec import OpCall
from crossdock.runtime import builds, costing, measure, profiles
from crossdock.runtime.config import Config, Progress
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST
from crossdock.runtime.split_cost import Measure
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel

_PROBED: dict[str, str] = {}
"""Why a device failed its probe in this process, by fingerprint; empty where it passed."""


def target_of(config: Config, devices: Mapping[str, Device], asked: frozenset[str]) -> Target:
    """Opened devices and those that are lost, with what is known of their costs.

    Copies that are to be looked at go through the host, which reads both ends back.
    """
    here = target_here(devices, asked)
    made = replace(
        here,
        devices=(*here.devices, *config.lost),
        broken={**here.broken, **config.broken},
        watts=config.watts,
        permission=config.permission,
        peers={} if config.checks and config.checks.transfers else here.peers,
    )
    if config.deterministic:  # nothing that was measured or built meanwhile counts
        made = replace(
            made,
            model=CostModel(),
            broken=dict(config.broken),
            built=frozenset(),
            permission=replace(config.permission, same_bits=config.strict),
        )
    return made.holding(config.sites.devices)


def target_here(devices: Mapping[str, Device], asked: frozenset[str]) -> Target:
    """Opened devices, the host first, with what is known of their costs."""
    infos = tuple(d.info for d in devices.values())
    broken = {i.id: why for i in infos if (why := _PROBED.get(i.fingerprint)) and i.id != HOST}
    model = costing.store().model
    return Target(
        infos,
        asked,
        model,
        group_capacity(infos),
        broken,
        built=builds.done(),
        peers=peers_of(devices.values()),
    )


def peers_of(devices: Collection[Device]) -> dict[tuple[str, str], str]:
    """How opened devices copy from each other without the host, by (source, target) ids."""
    pairs = [(a, b) for a in devices for b in devices if a is not b]
    return {(a.info.id, b.info.id): how for a, b in pairs if (how := b.copies_from(a))}


def group_capacity(infos: Sequence[DeviceInfo], cores: int | None = None) -> dict[str, int]:
    """How many devices of each shared resource group may compute at once.

    Devices of one processor run side by side as long as their threads fit its ``cores`` (None:
    those of this machine).
    """
    result: dict[str, int] = {}
    for group in {d.resource_group for d in infos}:
        members = sorted(d.compute_units for d in infos if d.resource_group == group)
        room = members[-1] if group != "host-cpu" else cores or topology.cpu_count()
        fit, used = 0, 0
        for units in members:
            used += units
            fit += used <= room
        result[group] = max(1, fit)
    return result


def measure_missing(
    graph: Graph,
    config: Config,
    devices: Mapping[str, Device],
    progress: Progress | None,
    *,
    again: bool = False,
) -> None:
    """Probe and measure what the process's cost model lacks for a graph, and keep it on disk.

    ``again``: a cost that can be fitted is not lacking.
    """
    if config.measure is False:
        return
    costs = costing.store()
    before = costs.model.version
    real = [d.info for d in devices.values() if Cap.VIRTUAL_TIME not in d.info.caps]
    unknown = [i for i in real if costs.model.rates(i.fingerprint) is None]
    if any(info.fingerprint not in _PROBED for info in unknown):
        ids = [info.id for info in real]
        machine = probe(quick=True, devices=ids, threads=config.threads)
        profiles.apply(machine, costs.model)
        _PROBED.update((i.fingerprint, _failure(machine.device(i.id))) for i in real)
    sound = [d for d in devices.values() if not _PROBED.get(d.info.fingerprint)]
    _measure_links(devices[HOST], sound, costs.model, within=not config.sites.plain)
    asked = devices if config.devices is None else (HOST, *config.devices)
    measure.measure_ops(
        costing.op_calls(graph),
        [device for device in sound if device.info.id in asked],
        costs.model,
        budget_s=config.budget,
        progress=progress,
        fits=again,
        permission=config.permission,
    )
    if costs.model.version != before:
        costs.save()


def measure_parts(
    config: Config, devices: Mapping[str, Device], model: CostModel, *, fits: bool = False
) -> Measure | None:
    """What measures the parts of ops on opened devices into a cost model; None if not wanted."""
    if not config.measure:
        return None
    deadline = time.monotonic() + config.budget

    def measured(device: str, calls: Mapping[str, OpCall]) -> None:
        left = deadline - time.monotonic()
        measure.measure_ops(
            calls,
            [devices[device]],
            model,
            budget_s=left,
            fits=fits,
            permission=config.permission,
        )

    return measured


def _measure_links(
    host: Device, devices: Sequence[Device], model: CostModel, *, within: bool
) -> None:
    """Measure the links that are not known; and the copies ``within`` a device's memory."""
    for device in devices:
        if device is not host:
            measure.measure_link(host, device, model)
            measure.measure_pinned(host, device, model)
    for a in devices:
        for b in devices:
            if (a is not b and b.copies_from(a)) or (within and a is b is not host):
                measure.measure_peer(a, b, model)


def _failure(profile: DeviceProfile | None) -> str:
    if profile is None or profile.status is Status.PASS:
        return ""
    return f"failed its probe: {profile.reason}"
