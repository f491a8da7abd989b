"""What the chosen kernels of a plan keep and take on each device, beside the arena.

The kernels are lowered (texts and sizes; nothing is compiled or packed), and counted as ``lower``
and its instances allocate: a weight once a device, unless only packed forms of it are read; packed
forms once an op; scratch once a run, each buffer as large as the largest op needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from crossdock.devices.base import Cap, DeviceInfo
from crossdock.devices.program import Lowered
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import costing, replays
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan, Step

Lowerings = dict[tuple[str, str, str], Lowered]
"""Lowered kernels by fingerprint, kernel and key: drafts of one graph are much alike."""


def counted(
    plan: Plan,
    graph: Graph,
    kernel_of: Callable[[Step], tuple[Kernel, OpCall]],
    devices: Mapping[str, DeviceInfo],
    known: Lowerings,
) -> Plan:
    """The plan with its resident, packed and scratch bytes, and what of it is replayed."""
    counts = {d.id: _Count(graph, devices[d.id]) for d in plan.devices}
    roots = costing.alias_roots(graph)
    replayed: dict[int, Lowered] = {}
    for step in plan.launches():
        info = devices[step.device]
        kernel, call = kernel_of(step)
        mark = (info.fingerprint, kernel.name, call.key())
        if mark not in known:
            known[mark] = kernel.lowered(call, info)
        values = [None if v is None else roots[v] for v in step.inputs]
        counts[step.device].add(known[mark], values)
        if Cap.REPLAY in info.caps:
            replayed[step.index] = known[mark]
    return replace(
        plan,
        steps=replays.told(plan.steps, replayed) if replayed else plan.steps,
        devices=tuple(
            replace(
                part,
                resident_bytes=counts[part.id].resident(),
                packed_bytes=counts[part.id].packed,
                scratch_bytes=sum(counts[part.id].scratch),
            )
            for part in plan.devices
        ),
    )


def needed(plan: Plan, device: str, need: int) -> str:
    """What a plan needs on a device, and what of it through others that lead to its memory."""
    part = plan.device(device)
    said = (
        f"{device} needs {need} B (arena {part.arena_bytes}, scratch {part.scratch_bytes}, weights "
        f"{part.fixed_bytes}"
    )
    ways = [p for p in plan.devices if p.physical_id == part.physical_id and p is not part]
    others = " and ".join(f"{p.peak_bytes} through {p.id}" for p in ways if p.peak_bytes)
    if need == part.peak_bytes or not others:
        return f"{said})"
    return f"{said}, and {others}, the same memory, {part.physical_id})"


class _Count:
    """Bytes of one device's ops."""

    def __init__(self, graph: Graph, info: DeviceInfo) -> None:
        self.graph, self.info = graph, info
        self.weights: set[str] = set()
        self.packed = 0
        self.scratch: list[int] = []

    def add(self, lowered: Lowered, values: list[str | None]) -> None:
        """Count an op that reads ``values``, aliases resolved."""
        for i, value in enumerate(values):
            if value in self.graph.constants and i not in lowered.unused:
                self.weights.add(str(value))
        self.packed += sum(max(1, pack.spec.nbytes) for pack in lowered.packs)
        for i, nbytes in enumerate(lowered.scratch):
            if i == len(self.scratch):
                self.scratch.append(1)
            self.scratch[i] = max(self.scratch[i], nbytes)

    def resident(self) -> int:
        """Bytes of the weights that are read as they are."""
        return sum(max(1, self.graph.constants[name].nbytes) for name in self.weights)
