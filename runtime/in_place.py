"""Arrays that stay on a device and are read or written where they lie, without a copy of them.

An input that lies on a device is read there by the ops themselves, and an output that stays is
written there, where nothing but launches of that device use it. Others pass through the arena.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from crossdock.devices.base import Cap, DeviceInfo
from crossdock.devices.program import In, Lowered, Out, Slot, slots
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Step
from crossdock.runtime.segments import Segment, segment
from crossdock.scheduler import LinkModel

IN_PLACE = "in place"
"""What a plan says of a step that copies nothing."""


@dataclass
class Users:
    """What uses a value in a device's memory.

    ``launches`` are the steps that read or write it, by segment in order, and ``copies`` the
    segments that copy it from there, but for the one that takes an input from where it lies.
    """

    launches: dict[int, list[int]] = field(default_factory=dict)
    copies: set[int] = field(default_factory=set)

    @property
    def count(self) -> int:
        """Launches."""
        return sum(map(len, self.launches.values()))


def users(
    steps: Sequence[Step],
    parts: Sequence[Segment],
    roots: Mapping[str, str],
    values: Collection[str],
) -> dict[tuple[str, str], Users]:
    """What uses these values, by root and device; a plan is cut into ``parts``."""
    made: dict[tuple[str, str], Users] = {}
    for part in parts:
        for step in (steps[i] for i in part.steps):
            here = step.src if step.kind == "copy" else step.device
            ends = step.inputs if step.kind == "copy" else (*step.inputs, *step.outputs)
            for root in dict.fromkeys(roots[v] for v in ends if v is not None and v in roots):
                if root not in values:
                    continue
                found = made.setdefault((root, here), Users())
                if step.kind == "copy":
                    found.copies.add(part.index)
                else:
                    found.launches.setdefault(part.index, []).append(step.index)
    return made


def worth(info: DeviceInfo, link: LinkModel | None, nbytes: int, launches: int) -> bool:
    """Whether to leave an array where it lies on a device, of which ``link`` copies within.

    A launch that is bound to another's memory is no part of a replayed graph, and then costs what
    any call does, as a copy of nothing. Where copies were not measured only one launch may.
    """
    if not (nbytes and launches and Cap.REBIND in info.caps):
        return False
    if launches == 1 or Cap.REPLAY not in info.caps:
        return True
    return link is not None and link.seconds(nbytes) >= (launches - 1) * link.seconds(0)


def made_once(graph: Graph, roots: Mapping[str, str], root: str) -> bool:
    """Whether a value is made by an op, and is one output alone."""
    outputs = [name for name, value in graph.outputs.items() if roots[value] == root]
    return len(outputs) == 1 and root not in graph.inputs


def planned(
    graph: Graph,
    steps: Sequence[Step],
    roots: Mapping[str, str],
    devices: Mapping[str, DeviceInfo],
    link: Callable[[DeviceInfo, DeviceInfo], LinkModel],
) -> list[Step]:
    """The steps, of which those take no time that need not copy within a device."""
    within = [s for s in steps if s.kind == "copy" and s.src == s.dst]
    if not within:
        return list(steps)
    parts = segment(steps)
    home = {index: part.index for part in parts for index in part.steps}
    found = users(steps, parts, roots, {roots[step.name] for step in within})
    made = list(steps)
    for step in within:
        root, info = roots[step.name], devices[step.src]
        mine = found.get((root, step.src), Users())
        alone = not mine.copies - {home[step.index]}
        fit = alone and (step.arrives or made_once(graph, roots, root))
        if fit and worth(info, link(info, info), step.nbytes, mine.count):
            made[step.index] = replace(step, seconds=0.0, low=0.0, high=0.0, detail=IN_PLACE)
    return made


def named_slots(step: Step, roots: Mapping[str, str], values: Collection[str]) -> dict[Slot, str]:
    """The operands and results of an op that are among some values, with these."""
    named: dict[Slot, str] = {In(i): roots[v] for i, v in enumerate(step.inputs) if v is not None}
    named.update((Out(i), roots[v]) for i, v in enumerate(step.outputs))
    return {slot: root for slot, root in named.items() if root in values}


def apart(
    steps: Sequence[Step], lowered: Mapping[int, Lowered], roots: Mapping[str, str]
) -> frozenset[tuple[int, int]]:
    """The calls that a plan has over callers' arrays, as (index of the launch, number)."""
    lying: dict[str, set[str]] = {}
    for step in steps:
        if step.detail == IN_PLACE:
            lying.setdefault(step.device, set()).add(roots[step.name])
    if not lying:
        return frozenset()
    found: set[tuple[int, int]] = set()
    for index, op in lowered.items():
        named = named_slots(steps[index], roots, lying.get(steps[index].device, ()))
        found.update((index, i) for i, call in enumerate(op.steps) if slots(call) & named.keys())
    return frozenset(found)
