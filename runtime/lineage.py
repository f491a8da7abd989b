"""What of a run that failed is still good, and the part of its graph that is to be run again.

A value is good where a device that works still holds it: the step that made it ended, and nothing
was written to its place in the arena since. With the inputs that were fed, these are the roots; the
rest of the graph is cut there. Values pass through the host on their way to where they go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from crossdock.devices.base import SLOWEST, Device, Queue
from crossdock.runtime import settings
from crossdock.runtime.binding import read
from crossdock.runtime.calls import alias_roots
from crossdock.runtime.copies import read_back
from crossdock.runtime.errors import DeviceError
from crossdock.runtime.executor import Run, collected
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.losses import blame
from crossdock.runtime.plan import HOST, Step
from crossdock.runtime.program import Program, buffer_of
from crossdock.runtime.residency import Labels, matches
from crossdock.runtime.tensor import Array


@dataclass
class Lineage:
    """The values of a graph that have been made, as far as they are still good.

    ``program`` is what the first attempt ran, ``fed`` what its caller feeds. ``held`` has the
    values saved so far, in host memory, and ``kept`` where they were. ``crossed`` are the copies
    that were made, ``ended`` the ops whose results are or were there, with device and kernel.
    ``shy`` values may not be on the host.
    """

    program: Program
    fed: Mapping[str, Array]
    shy: frozenset[str] = frozenset()
    held: dict[str, Array] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    crossed: list[Step] = field(default_factory=list)
    ended: dict[str, Step] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The graph of the first attempt."""
        return self.program.graph

    def salvage(self, run: Run) -> None:
        """Save what is needed of what a failed run has made, and is still good."""
        self.note(taken_steps(run))
        if run.program.watched:
            return  # what is not finite is told at the end of a run that looked at all of it
        there = self._good(run)
        while True:
            wanted = [v for v in frontier(self.graph, {*self.held, *there}) if v not in self.held]
            lost = [v for v in wanted if not self._save(run, v, there)]
            if not lost:
                return

    def note(self, steps: Iterable[Step]) -> None:
        """Take note of steps that have ended."""
        for step in steps:
            if step.kind == "copy":
                self.crossed.append(step)
            else:
                self.ended[step.name] = step

    def _good(self, run: Run) -> dict[str, list[str]]:
        """Devices that hold a value that this graph makes, by root; the host first."""
        there: dict[str, list[str]] = {}
        specs, mine = run.program.graph.specs, self.graph.specs
        for value, device in intact(run):
            known = value in mine and mine[value] == specs[value]
            if known and value not in self.shy and value not in self.graph.inputs:
                there.setdefault(value, []).append(device)
        for devices in there.values():
            devices.sort(key=lambda name: name != HOST)
        return there

    def _save(self, run: Run, value: str, there: dict[str, list[str]]) -> bool:
        """Copy a value to the host from the first device that gives it; else it is not there."""
        for name in there.pop(value):
            found = _fetched(run, value, run.program.devices[name])
            if found is not None:
                self.held[value], self.kept[value] = found, name
                return True
        return False

    def rest(self) -> Graph | None:
        """The part of the graph that is still to be run; None where all is there.

        Its inputs are inputs of the graph and values that are held, and its outputs are the roots
        of the graph's, by their own names.
        """
        return cut(self.graph, self.held)

    def feeds(self, graph: Graph) -> dict[str, Array]:
        """The inputs of a rest."""
        return {name: self._input(name) for name in graph.inputs}

    def _input(self, name: str) -> Array:
        if name in self.held:
            return self.held[name]
        window = self.program.windows.inputs.get(name)
        if window is None:
            return self.fed[name]
        return np.ascontiguousarray(window.of(self.fed[window.source]))

    def outputs(self) -> dict[str, Array]:
        """The outputs of the caller's graph, once nothing is left to be run."""
        graph, made = self.graph, {}
        for name, value in graph.outputs.items():
            root = self.program.roots[value]
            known = graph.constants[root] if root in graph.constants else self._input(root)
            made[name] = known.reshape(graph.specs[value].dims)
        return collected(self.program.windows, made)


def taken_steps(run: Run) -> Iterator[Step]:
    """The steps that a failed run's queues took; those of devices lost since included."""
    steps, segments = run.program.plan.steps, run.program.segments
    for index in sorted(run.progress.taken.keys() - run.spared):
        yield from (steps[i] for i in segments[index].steps)


@dataclass(frozen=True)
class _Write:
    """A value that a step puts into an arena, and the bytes there; "" for a weight."""

    value: str
    device: str
    step: int
    start: int
    stop: int
    good: bool


def intact(run: Run) -> Iterator[tuple[str, str]]:
    """Values that a failed run has made, and devices that hold them now.

    No step that was begun may have written over them: not one that came later in the plan's order,
    which is one that the queues kept.
    """
    writes = list(_writes(run))
    for device in {w.device for w in writes}:
        here = [w for w in writes if w.device == device]
        starts, stops = np.array([w.start for w in here]), np.array([w.stop for w in here])
        steps = np.array([w.step for w in here])
        for write in here:
            over = (starts < write.stop) & (stops > write.start) & (steps > write.step)
            if write.good and not over.any():
                yield write.value, device


def _writes(run: Run) -> Iterator[_Write]:
    program, progress = run.program, run.progress
    for index in sorted(progress.begun):
        part = program.segments[index]
        if index in run.spared and part.role == "download":
            continue  # nothing came to the host
        ended = index in progress.taken
        for number in part.steps:
            step = program.plan.steps[number]
            device = step.dst if step.kind == "copy" else step.device
            ends = {device, part.device, step.src} - {""}
            if step.src == HOST != device:
                ends -= {HOST}  # its memory feeds copies, whatever becomes of its queues
            sound = not any(program.devices[d].gone or d in run.unsettled for d in ends)
            if step.brings_weight:
                stay = program.stays[step.name]
                yield _Write("", device, number, stay.offset, stay.offset + stay.nbytes, False)
            for value in step.outputs:
                root = program.roots[value]
                if root in program.graph.constants:
                    continue
                at = program.offsets[device][root]
                size = program.graph.specs[root].nbytes
                yield _Write(root, device, number, at, at + size, ended and sound)


def _fetched(run: Run, value: str, device: Device) -> Array | None:
    """A copy of a value on the host; None where its device fails, which is lost then."""
    spec = run.program.graph.specs[value]
    transit = run.care.transit
    lying = None if transit is None else transit.lying.get((value, device.info.id))
    buffer = (
        buffer_of(run.program, run.instance, value, device.info.id)
        if lying is None
        else lying.memory()
    )
    if device.info.id == HOST:
        return np.array(buffer.array(spec))
    limit = settings.watchdog() + spec.nbytes / SLOWEST
    checks = run.care.checks

    def fetch(queue: Queue) -> Array:
        if checks is not None and checks.transfers:
            return read_back(queue, buffer, spec, value)
        return read(device, buffer, spec)

    try:
        return device.call("download", fetch, limit)
    except DeviceError as error:
        blame(error, device)
        return None


def frontier(graph: Graph, there: set[str]) -> list[str]:
    """The values of ``there`` that the outputs are to be made from."""
    _, leaves = _walk(graph, there)
    return leaves


def cut(graph: Graph, there: Mapping[str, Array]) -> Graph | None:
    """What is left to be run of a graph where some values are there; None where nothing is."""
    nodes, leaves = _walk(graph, set(there))
    roots = alias_roots(graph)
    ends = {roots[value]: roots[value] for value in graph.outputs.values()}
    made = {value for node in nodes for value in node.outputs}
    ends = {name: value for name, value in ends.items() if value in made}
    if not ends:
        return None
    used = {v for node in nodes for v in node.operands}
    inputs = {v: graph.specs[v] for v in graph.inputs if v in used and v not in leaves}
    inputs |= {v: graph.specs[v] for v in leaves if v in used}
    return replace(
        graph,
        inputs=inputs,
        outputs=ends,
        nodes=tuple(nodes),
        constants={name: array for name, array in graph.constants.items() if name in used},
        rebuild=None,
    ).check()


def _walk(graph: Graph, there: set[str]) -> tuple[list[Node], list[str]]:
    """The nodes to be run for the outputs' roots, in order, and the values they start from."""
    roots = alias_roots(graph)
    wanted = {roots[value] for value in graph.outputs.values()}
    nodes: list[Node] = []
    made: set[str] = set()
    leaves: dict[str, None] = {}
    for node in reversed(graph.nodes):
        need = [v for v in node.outputs if v in wanted]
        if need and not all(v in there for v in need):
            nodes.append(node)
            made.update(node.outputs)
            wanted.update(node.operands)
    for value in wanted:
        if value in there and value not in made:
            leaves[value] = None
    return nodes[::-1], list(leaves)


def shy(graph: Graph, labels: Labels) -> frozenset[str]:
    """The values that a residency keeps off the host."""
    found: set[str] = set()
    for label, given in labels.items():
        if HOST not in ([given] if isinstance(given, str) else given):
            found.update(v for n in graph.nodes if matches(label, n) for v in n.outputs)
    return frozenset(found)
