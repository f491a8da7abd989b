"""Happens-before among a plan's steps: which waits are needed, and who may share memory.

Queues run in order and a wait orders across queues; a vector clock a step says, for each queue, how
many of its steps are surely done when the step starts (Fidge 1988, Mattern 1989).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from crossdock.devices.base import DeviceInfo
from crossdock.runtime.graph import Graph
from crossdock.runtime.joins import places
from crossdock.runtime.memory import Arena, Tenant, plan_arena
from crossdock.runtime.plan import HOST, Plan, Step
from crossdock.runtime.plan_parts import Streamed


def with_waits(steps: Sequence[Step]) -> list[Step]:
    """Keep only the waits that queue order and earlier waits do not already imply.

    A vector clock a step: for each queue, how many of its steps are surely done before this one.
    """
    clocks = step_clocks(steps)
    position = positions(steps)
    result: list[Step] = []
    known: dict[str, dict[str, int]] = {}
    for step in steps:
        have = dict(known.get(step.queue, {}))
        keep: list[int] = []
        for w in sorted(step.waits, reverse=True):
            other = steps[w].queue
            if other == step.queue or have.get(other, 0) > position[w]:
                continue
            keep.append(w)
            for queue, n in clocks[w].items():
                have[queue] = max(have.get(queue, 0), n)
            have[other] = max(have.get(other, 0), position[w] + 1)
        known[step.queue] = have
        result.append(replace(step, waits=tuple(sorted(keep))))
    return result


def positions(steps: Sequence[Step]) -> list[int]:
    """Each step's position in its queue."""
    count: dict[str, int] = {}
    result = []
    for step in steps:
        result.append(count.get(step.queue, 0))
        count[step.queue] = result[-1] + 1
    return result


def step_clocks(steps: Sequence[Step]) -> list[dict[str, int]]:
    """For each step and queue, the number of that queue's steps surely done when it starts."""
    position = positions(steps)
    last: dict[str, dict[str, int]] = {}
    clocks: list[dict[str, int]] = []
    for i, step in enumerate(steps):
        clock = dict(last.get(step.queue, {}))
        for w in step.waits:
            for queue, n in clocks[w].items():
                clock[queue] = max(clock.get(queue, 0), n)
            clock[steps[w].queue] = max(clock.get(steps[w].queue, 0), position[w] + 1)
        clock[step.queue] = position[i]
        clocks.append(clock)
        last[step.queue] = clock
    return clocks


_FEEDING = ""
"""A queue of its own for feeding the inputs, one after the other, which is done before any step."""


class _Lives:
    """When each value on each device is first written and last touched."""

    def __init__(
        self,
        graph: Graph,
        steps: Sequence[Step],
        roots: Mapping[str, str],
        streamed: Sequence[Streamed] = (),
    ) -> None:
        self.graph, self.roots = graph, roots
        self.queues = [_FEEDING, *sorted({s.queue for s in steps})]
        self.clocks, self.position = step_clocks(steps), positions(steps)
        self.born: dict[tuple[str, str], tuple[float, ...]] = {}
        self.last: dict[tuple[str, str], list[float]] = {}
        sited = {step.name for step in steps if step.arrives}
        for name in graph.inputs.keys() - sited:
            self.born[name, HOST] = (0.0,) * len(self.queues)
            self.last[name, HOST] = [1.0] + [0.0] * (len(self.queues) - 1)
        for step in steps:
            reads, writes = (
                (step.src, step.dst) if step.kind == "copy" else (step.device, step.device)
            )
            for value in step.inputs:
                if value is not None:
                    self._touch(value, reads, step, write=False)
            for value in step.outputs:
                self._touch(value, writes, step, write=True)
        self._bring(steps, streamed)
        for value in graph.outputs.values():
            if (roots[value], HOST) in self.last:
                self.last[roots[value], HOST] = [math.inf] * len(self.queues)

    def _bring(self, steps: Sequence[Step], streamed: Sequence[Streamed]) -> None:
        """Note the weights that steps bring, and the ops that these are for."""
        brought: dict[tuple[str, str], list[str]] = {}
        for stay in streamed:
            brought.setdefault((stay.device, stay.op), []).append(stay.name)
        for step in steps:
            if step.brings_weight:
                self._hold((step.name, step.dst), step, write=True)
            reader = (step.device, step.name) if step.kind == "launch" else ("", "")
            for name in brought.get(reader, ()):  # a value may have an op's name
                self._hold((name, step.device), step, write=False)

    def _touch(self, value: str, device: str, step: Step, *, write: bool) -> None:
        root = self.roots[value]
        if root in self.graph.constants:
            return
        self._hold((root, device), step, write=write)

    def _hold(self, key: tuple[str, str], step: Step, *, write: bool) -> None:
        """Note that a step needs what lies somewhere."""
        i = step.index
        if write and key not in self.born:
            known = self.clocks[i] | {_FEEDING: 1}
            self.born[key] = tuple(float(known.get(q, 0)) for q in self.queues)
        ends = self.last.setdefault(key, [0.0] * len(self.queues))
        at = self.queues.index(step.queue)
        ends[at] = max(ends[at], float(self.position[i] + 1))


def plan_arenas(
    graph: Graph,
    steps: Sequence[Step],
    devices: Sequence[DeviceInfo],
    roots: Mapping[str, str],
    streamed: Sequence[Streamed] = (),
) -> dict[str, Arena]:
    """One arena a device over the values that live there (aliases through ``roots``).

    Weights that steps bring are among them, by the names of these. On the host the parts of a
    concatenation are made in their place in it where that can be.
    """
    lives = _Lives(graph, steps, roots, streamed)
    sizes = {stay.name: stay.nbytes for stay in streamed}
    result = {}
    for info in devices:
        alignment = max(64, info.alignment)
        inner = places(graph, steps, HOST, roots, alignment) if info.id == HOST else {}
        tenants: dict[str, Tenant] = {}
        for (value, device), born in lives.born.items():
            if device != info.id:
                continue
            last = tuple(lives.last[value, device])
            name = inner[value].within if value in inner else value
            size = sizes[name] if name in sizes else graph.specs[name].nbytes
            tenants[name] = _together(tenants.get(name), Tenant(name, size, born, last))
        arena = plan_arena(list(tenants.values()), alignment)
        offsets = {v: arena.offsets[p.within] + p.offset for v, p in inner.items()}
        result[info.id] = replace(arena, offsets={**arena.offsets, **offsets})
    return result


def placed(
    plan: Plan, graph: Graph, devices: Sequence[DeviceInfo], roots: Mapping[str, str]
) -> Plan:
    """The plan with values, and weights that steps bring, where ``plan_arenas`` has them."""
    arenas = plan_arenas(graph, plan.steps, devices, roots, plan.streamed)
    names = {stay.name for stay in plan.streamed}
    parts = tuple(
        replace(
            part,
            arena_bytes=arenas[part.id].nbytes,
            offsets={v: at for v, at in arenas[part.id].offsets.items() if v not in names},
        )
        for part in plan.devices
    )
    stays = (replace(s, offset=arenas[s.device].offsets[s.name]) for s in plan.streamed)
    return replace(plan, devices=parts, streamed=tuple(stays))


def most_brought(
    graph: Graph,
    steps: Sequence[Step],
    devices: Sequence[DeviceInfo],
    roots: Mapping[str, str],
    streamed: Sequence[Streamed],
) -> dict[str, int]:
    """Bytes of the weights that steps bring, of which most are there at once, by device."""
    lives = _Lives(graph, steps, roots, streamed)
    result = {}
    for info in devices:
        keys = [(stay, (stay.name, stay.device)) for stay in streamed if stay.device == info.id]
        tenants = [Tenant(s.name, s.nbytes, lives.born[k], tuple(lives.last[k])) for s, k in keys]
        result[info.id] = plan_arena(tenants, max(64, info.alignment)).live_bytes
    return result


def _together(a: Tenant | None, b: Tenant) -> Tenant:
    """A tenant that is alive while either of two is."""
    if a is None:
        return b
    born, last = zip(a.born, b.born, strict=True), zip(a.last, b.last, strict=True)
    return replace(a, born=tuple(map(min, born)), last=tuple(map(max, last)))
