"""A program: compiled ops, resident weights, and segments of each queue.

An *instance* is one set of arenas with everything bound to it; a run takes one for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from crossdock.devices.base import Bound, Buffer, CommandBuffer, Device
from crossdock.devices.program import Slot as StepSlot
from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime.binding import CompiledOp, bind_op
from crossdock.runtime.ends import Ends, ends
from crossdock.runtime.errors import OutOfMemory
from crossdock.runtime.graph import Graph
from crossdock.runtime.in_place import Users, users
from crossdock.runtime.keeping import Slot
from crossdock.runtime.losses import blaming
from crossdock.runtime.lru import LruCache
from crossdock.runtime.order import step_clocks
from crossdock.runtime.plan import HOST, Plan, Step
from crossdock.runtime.plan_parts import Key, Streamed
from crossdock.runtime.segments import Segment
from crossdock.runtime.tensor import Array, TensorSpec

if TYPE_CHECKING:
    from crossdock.runtime.split import Window

REBOUND = 64
"""Commands over callers' arrays that an instance keeps.

More than the places that the outputs of a loop go round in: a card has memory that other libraries
were lent back only for some tens of arrays together.
"""


@dataclass(frozen=True)
class Windows:
    """Which window of which array of the caller's an input or output of a graph is.

    Those not named are the caller's own. ``specs`` describes the caller's outputs, in order.
    """

    specs: Mapping[str, TensorSpec]
    inputs: Mapping[str, Window] = field(default_factory=dict)
    outputs: Mapping[str, Window] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A plan made ready on opened devices; shared by all runs.

    ``given_up`` are devices that hold nothing for it any more.
    ``streamed`` has the weights that each run brings, by the name of the step that copies them, in
    host memory: contiguous bytes.
    ``may_lie`` says of values, by root, device and the segment that would copy it, whether they may
    lie in a caller's array.
    ``watched``: a launch is a segment of its own, and its results are looked at (``finite``).
    """

    graph: Graph
    plan: Plan
    devices: Mapping[str, Device]
    roots: Mapping[str, str]
    ops: Mapping[int, CompiledOp]
    residents: dict[tuple[str, str], Buffer]
    segments: tuple[Segment, ...]
    windows: Windows
    streamed: Mapping[str, Array] = field(default_factory=dict)
    watched: bool = False
    given_up: set[str] = field(default_factory=set)
    may_lie: dict[tuple[str, str, int | None], bool] = field(default_factory=dict)

    @cached_property
    def offsets(self) -> Mapping[str, Mapping[str, int]]:
        """Where values lie in the arena, by device and root."""
        return {d.id: d.offsets for d in self.plan.devices}

    @cached_property
    def ends(self) -> Ends:
        """The copies that begin and end a run."""
        return ends(self.plan.steps, self.segments, self.roots)

    @cached_property
    def slots(self) -> Mapping[str, Slot]:
        """What the caller's outputs take that stay on the devices that make them, by name."""
        made = {}
        for name, spec in self.windows.specs.items():
            root = self.roots[self.graph.outputs[name]] if name in self.graph.outputs else ""
            where = self.ends.keeps.get(root, self.ends.downs.get(root))
            home = HOST if where is None else self.segments[where].device
            planned = self.plan.device(home).peak_bytes
            made[name] = Slot.of(self.devices[home], spec, name, planned)
        return made

    @cached_property
    def clocks(self) -> Sequence[Mapping[str, int]]:
        """For each step and queue, how many of the queue's steps are surely done when it starts."""
        return step_clocks(self.plan.steps)

    def follows(self, later: int, earlier: int) -> bool:
        """Whether a segment begins when another one is surely done."""
        steps = self.plan.steps
        first, last = self.segments[later].steps[0], self.segments[earlier].steps[-1]
        queue = steps[last].queue
        place = sum(step.queue == queue for step in steps[:last])
        return self.clocks[first].get(queue, 0) > place

    @cached_property
    def users(self) -> Mapping[tuple[str, str], Users]:
        """What uses the inputs and outputs on each device, by root."""
        outputs = (self.roots[value] for value in self.graph.outputs.values())
        ends = frozenset((*self.graph.inputs, *outputs)) - self.graph.constants.keys()
        return users(self.plan.steps, self.segments, self.roots, ends)

    @cached_property
    def places(self) -> Mapping[int, int]:
        """Where the calls of each launch begin in the commands of its segment."""
        made: dict[int, int] = {}
        for part in self.segments:
            at = 0
            for index in part.steps:
                made[index] = at
                at += len(self.ops[index].executables) if index in self.ops else 0
        return made

    @cached_property
    def stays(self) -> Mapping[str, Streamed]:
        """The weights that each run brings, by the name of the step that copies them."""
        return {stay.name: stay for stay in self.plan.streamed}

    @cached_property
    def brought(self) -> Mapping[tuple[str, str], Mapping[Key, Streamed]]:
        """The weights that each run brings, by the device and name of the op that they are for."""
        made: dict[tuple[str, str], dict[Key, Streamed]] = {}
        for stay in self.plan.streamed:
            made.setdefault((stay.device, stay.op), {})[stay.key] = stay
        return made

    @property
    def held(self) -> Mapping[tuple[str, Key], int]:
        """Bytes of the weights that stay on devices, with these."""
        made: dict[tuple[str, Key], int] = {
            (device, (name, None)): buffer.nbytes
            for (name, device), buffer in self.residents.items()
        }
        for index, op in self.ops.items():
            step = self.plan.steps[index]
            made.update(
                ((step.device, (step.name, i)), buffer.nbytes) for i, buffer in op.packed.items()
            )
        return made

    def give_up(self, device: str) -> None:
        """Hold no weights on a device any more: there is too little memory for the program.

        Instances that there are can be run still, and no more are made.
        """
        self.given_up.add(device)
        for key in [key for key in self.residents if key[1] == device]:
            del self.residents[key]
        for index, op in self.ops.items():
            if self.plan.steps[index].device == device:
                op.packed.clear()

    @property
    def host_only(self) -> bool:
        """True where nothing leaves the host's compute queue."""
        return all(s.device == HOST for s in self.segments)


@dataclass(frozen=True, slots=True)
class Over:
    """A call over callers' arrays: its place in the commands, and which slots they fill."""

    place: int
    bound: Bound
    slots: tuple[tuple[StepSlot, tuple[str, str]], ...]


@dataclass
class Instance:
    """Arenas and what is bound to them: one run at a time.

    ``wanted`` are the inputs as (name, dimensions, dtype, array); ``calls`` do all that a program
    of the host alone does, in order, and others have none; ``brief`` does the same for one that
    takes some microseconds, where there is a better way for that. ``rebound`` are commands over
    callers' arrays, and ``over`` the calls in them that are, by segment and values; see
    ``rebinding``.
    """

    arenas: dict[str, Buffer]
    commands: dict[int, CommandBuffer]
    copies: dict[int, tuple[Buffer, Array | Buffer]]  # segment -> device buffer, other end
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    scratch: dict[str, list[Buffer]] = field(default_factory=dict)
    wanted: tuple[tuple[str, tuple[int, ...], np.dtype[Any], Array], ...] = ()
    calls: tuple[Callable[[], object], ...] = ()
    brief: tuple[Callable[[], object], ...] = ()
    rebound: LruCache[tuple[object, ...], CommandBuffer] = field(
        default_factory=lambda: LruCache(REBOUND)
    )
    over: dict[tuple[object, ...], tuple[Over, ...]] = field(default_factory=dict)


def instantiate(program: Program) -> Instance:
    """Allocate arenas and bind everything to them; raises OutOfMemory."""
    for device in program.given_up:
        raise OutOfMemory(
            f"{device} has too little memory for {program.graph.name!r:.80} as it was planned",
            device=device,
        )
    return _Binder(program).instance


def buffer_of(program: Program, instance: Instance, value: str, device: str) -> Buffer:
    """Where a value lies on a device, while it is needed there."""
    root = program.roots[value]
    resident = program.residents.get((root, device))
    if resident is not None:
        return resident
    nbytes = max(1, program.graph.specs[root].nbytes)
    return instance.arenas[device].view(program.offsets[device][root], nbytes)


class _Binder:
    def __init__(self, program: Program) -> None:
        self.program = program
        arenas = {
            d.id: self._allocate(d.id, d.arena_bytes, "arena")
            for d in program.plan.devices
            if d.arena_bytes
        }
        self.instance = Instance(arenas, {}, {}, {}, {})
        self.instance.scratch = self._allocate_scratch()
        graph = program.graph
        for name, spec in graph.inputs.items():
            if name not in program.ends.takes:
                self.instance.inputs[name] = self._at(name, HOST).array(spec)
        for name, value in graph.outputs.items():
            if program.roots[value] not in program.ends.keeps:
                self.instance.outputs[name] = self._output(value)
        for part in program.segments:
            self._bind(part)
        self.instance.wanted = tuple(
            (n, a.shape, a.dtype, a) for n, a in self.instance.inputs.items()
        )
        if program.host_only:
            self._call()

    def _call(self) -> None:
        """Look up what a program of the host alone calls."""
        queues = self.program.devices[HOST].queues
        todo = [
            (queues[part.role], self.instance.commands[part.index])
            for part in self.program.segments
        ]
        self.instance.calls = tuple(queue.prepared(commands) for queue, commands in todo)
        brief = [queue.brief(commands) for queue, commands in todo]
        self.instance.brief = tuple(call for call in brief if call is not None)
        if len(self.instance.brief) < len(brief):
            self.instance.brief = ()

    def _allocate_scratch(self) -> dict[str, list[Buffer]]:
        """Scratch of one op at a time on each device: as large as the largest needs."""
        sizes: dict[str, list[int]] = {}
        for index, op in self.program.ops.items():
            want = sizes.setdefault(self.program.plan.steps[index].device, [])
            for i, n in enumerate(op.lowered.scratch):
                if i == len(want):
                    want.append(1)
                want[i] = max(want[i], n)
        return {
            device: [self._allocate(device, n, "scratch") for n in wanted]
            for device, wanted in sizes.items()
        }

    def _allocate(self, device_id: str, nbytes: int, label: str) -> Buffer:
        device = self.program.devices[device_id]
        with blaming(device):
            return device.allocate(nbytes, label)

    def _at(self, value: str, device: str) -> Buffer:
        return buffer_of(self.program, self.instance, value, device)

    def _output(self, value: str) -> Array:
        graph = self.program.graph
        root = self.program.roots[value]
        spec = graph.specs[value]
        if root not in self.program.offsets.get(HOST, {}):
            return graph.constants[root].reshape(spec.dims)
        return self._at(value, HOST).array(spec)

    def _bind(self, part: Segment) -> None:
        program = self.program
        step = program.plan.steps[part.steps[0]]
        if step.brings_weight:
            here = _place(self.instance, program.stays[step.name])
            self.instance.copies[part.index] = here, program.streamed[step.name]
            return
        if step.arrives or step.departs:
            here = self._at(step.name, step.dst)
            self.instance.copies[part.index] = here, here
            return
        if step.kind == "copy":
            here = self._at(step.name, part.device)
            other = step.src if part.device == step.dst else step.dst
            end = self._at(step.name, other)
            if other == HOST:
                host = end.array(program.graph.specs[step.name])
                self.instance.copies[part.index] = here, host.reshape(-1).view(np.uint8)
            else:
                self.instance.copies[part.index] = here, end
            return
        bound: list[Bound] = []
        for index in part.steps:
            if JOBS.ending:  # of thousands it takes a second
                raise no_more(f"run of {program.graph.name!r:.80}")
            bound += bind_launch(program, self.instance, program.plan.steps[index])
        device = program.devices[part.device]
        with blaming(device):
            self.instance.commands[part.index] = device.record(bound)


def bind_launch(program: Program, instance: Instance, step: Step) -> list[Bound]:
    """A launch with the instance's memory."""
    op, roots, device = program.ops[step.index], program.roots, step.device
    stays = program.brought.get((device, step.name), {})
    brought = {key: _place(instance, stay) for key, stay in stays.items()}
    inputs = [
        None
        if v is None or i in op.lowered.unused
        else brought.get((roots[v], None)) or buffer_of(program, instance, v, device)
        for i, v in enumerate(step.inputs)
    ]
    packed = {pack: buffer for (_, pack), buffer in brought.items() if pack is not None}
    outputs = [buffer_of(program, instance, v, device) for v in step.outputs]
    scratch = instance.scratch.get(device, [])[: len(op.lowered.scratch)]
    return bind_op(op, inputs, outputs, scratch, step.name, step.seconds, packed)


def _place(instance: Instance, stay: Streamed) -> Buffer:
    """Where a weight lies that each run brings, while its op needs it."""
    return instance.arenas[stay.device].view(stay.offset, stay.nbytes)
