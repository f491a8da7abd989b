"""What the chosen kernels of a plan keep and take on each device, beside the arena.

The kernels are lowered (texts and sizes; nothing is compiled or packed), and counted as ``lower``
and its instances allocate: a weight once a device, unless only packed forms of it are read; packed
forms once an op; scratch once a run, each buffer as large as the largest op needs. Weights that
each run brings lie in the arena.
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
from crossdock.runtime.plan_parts import Key

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
    brought = {(one.device, one.op, one.key) for one in plan.streamed}
    counts = {d.id: _Count() for d in plan.devices}
    roots = costing.alias_roots(graph)
    replayed: dict[int, Lowered] = {}
    for step in plan.launches():
        info = devices[step.device]
        kernel, call = kernel_of(step)
        op = lowered(kernel, call, info, known)
        kept = {
            key: nbytes
            for key, nbytes in weights(step, op, graph, roots).items()
            if (step.device, step.name, key) not in brought
        }
        counts[step.device].add(op, kept)
        if Cap.REPLAY in info.caps:
            replayed[step.index] = op
    return replace(
        plan,
        steps=replays.told(plan.steps, replayed, roots) if replayed else plan.steps,
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


def lowered(kernel: Kernel, call: OpCall, info: DeviceInfo, known: Lowerings) -> Lowered:
    """A kernel lowered for a device, once."""
    mark = (info.fingerprint, kernel.name, call.key())
    if mark not in known:
        known[mark] = kernel.lowered(call, info)
    return known[mark]


def weights(step: Step, op: Lowered, graph: Graph, roots: Mapping[str, str]) -> dict[Key, int]:
    """Bytes of the weights that a step reads, by constant or packed constant."""
    values = (None if v is None else roots[v] for v in step.inputs)
    read = [v for i, v in enumerate(values) if v in graph.constants and i not in op.unused]
    found: dict[Key, int] = {(str(v), None): max(1, graph.constants[str(v)].nbytes) for v in read}
    found |= {(step.name, i): max(1, pack.spec.nbytes) for i, pack in enumerate(op.packs)}
    return found


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

    def __init__(self) -> None:
        self.weights: dict[str, int] = {}
        self.packed = 0
        self.scratch: list[int] = []

    def add(self, op: Lowered, kept: Mapping[Key, int]) -> None:
        """Count an op and the weights of it that stay."""
        for (name, pack), nbytes in kept.items():
            if pack is None:
                self.weights[name] = nbytes
            else:
                self.packed += nbytes
        for i, nbytes in enumerate(op.scratch):
            if i == len(self.scratch):
                self.scratch.append(1)
            self.scratch[i] = max(self.scratch[i], nbytes)

    def resident(self) -> int:
        """Bytes of the weights that are read as they are."""
        return sum(self.weights.values())
