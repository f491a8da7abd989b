"""A kernel on buffers of its own, ready to be timed as it runs within a graph.

Several runs make one command buffer, timed step by step on the device's clock, so that neither the
call nor the queue's start counts. Constants lie in memory several times, and each run reads other
copies than the one before: in a graph the weights of an op have left the fast caches by the time
it runs again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from crossdock.devices.base import Bound, Buffer, Cap, CommandBuffer, Device, Queue, Span
from crossdock.devices.program import Lowered
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import builds, costing
from crossdock.runtime.binding import CompiledOp, bind_op, compile_op
from crossdock.runtime.errors import DeviceError, DeviceLost
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec, to_numpy
from crossdock.runtime.tuning import Clock, tune
from crossdock.scheduler import Work

BATCH_SECONDS = 2e-4
MOST_RUNS = 64
LONG_SECONDS = 5e-3
"""Kernels that take longer are run once a command buffer."""
MOST = 8
"""Command buffers run for a sample."""
AGREE = 1.1
"""The two best of them are no further apart where nothing disturbed them."""
LONG = 0.05
"""Seconds after which no more are run."""
COLD_BYTES = 8 << 20
"""Constants that fill this much are out of a core's own caches when they are read again."""
MOST_COPIES = 8


@dataclass
class Trial:
    """A kernel with a command buffer of ``runs`` runs; ``close`` gives the memory back.

    ``samples`` are seconds of a run, each at one of ``paces`` (see ``Device.pace``); ``build`` is
    what the first run took beyond them, compiling included, where it was the first of its kernel in
    this process.
    """

    device: Device
    kernel: Kernel
    call: OpCall
    work: Work
    runs: int
    steps: int
    commands: CommandBuffer
    buffers: list[Buffer]
    seconds: float = math.inf
    samples: list[float] = field(default_factory=list)
    paces: list[float] = field(default_factory=list)
    build: float | None = None

    def shortest(self) -> float:
        """Seconds of a run by the best sample, or by the first runs where there is none yet."""
        return min(self.samples, default=self.seconds)

    def sample(self) -> float:
        """Seconds of one run now: of all in the command buffer after the first, shared out."""
        taken = _samples(self.device, self.commands, self.runs, self.steps)
        self.seconds = min(self.seconds, taken[0])
        return taken[0]

    def keep(self, seconds: float, pace: float) -> None:
        """Note a sample that was taken at this pace."""
        self.samples.append(seconds)
        self.paces.append(pace)

    @property
    def nbytes(self) -> int:
        """Device memory in use."""
        return sum(b.nbytes for b in self.buffers)

    def close(self) -> None:
        """Give the memory back."""
        for buffer in self.buffers:
            buffer.release()
        self.buffers.clear()


def prepare_trial(
    device: Device,
    kernel: Kernel,
    call: OpCall,
    *,
    whole: int = 0,
    lowered: Lowered | None = None,
) -> Trial:
    """Compile a kernel and make it ready to be timed; it has run a few times.

    Where its steps leave a choice, of a library's algorithms or of variants of a kernel, it is
    made.

    Operands that are no constants hold floats in (0.1, 1), or the integer ``whole``. ``lowered`` is
    what the kernel lowers the op to, where that is known.

    Raises:
        Error: it does not compile or run. Drivers raise errors of their own, too.
    """
    held: list[Buffer] = []
    try:
        return _prepare(device, kernel, call, whole, held, lowered)
    except BaseException:
        for buffer in held:
            buffer.release()
        raise


def _prepare(
    device: Device,
    kernel: Kernel,
    call: OpCall,
    whole: int,
    held: list[Buffer],
    lowered: Lowered | None,
) -> Trial:
    mark = (device.info.fingerprint, kernel.name, call.key())
    new = mark not in builds.done() and Cap.VIRTUAL_TIME not in device.info.caps
    began = time.perf_counter()
    op = compile_op(device, kernel, call, lowered)
    built = time.perf_counter() - began
    held += op.packed.values()
    read = [
        (i, spec)
        for i, spec in enumerate(call.inputs)
        if spec is not None and i not in op.lowered.unused
    ]
    inputs: dict[int, Buffer] = {}
    for i, spec in read:
        array = call.constants[i] if i in call.constants else _sample(spec, whole)
        inputs[i] = device.upload(array, "measuring")
        held.append(inputs[i])
    outputs = [_room(device, s.nbytes, held) for s in call.outputs]
    scratch = [_room(device, n, held) for n in op.lowered.scratch]

    def bind(constants: _Constants) -> list[Bound]:
        here = [constants.inputs.get(i, inputs.get(i)) for i in range(len(call.inputs))]
        made = CompiledOp(op.lowered, op.executables, constants.packed)
        return bind_op(made, here, outputs, scratch, kernel.name, 0.0)

    first = _Constants({i: inputs[i] for i in call.constants if i in inputs}, op.packed)
    once = bind(first)
    began = time.perf_counter()
    commands = _first_run(device, op, once)
    built += time.perf_counter() - began
    seconds = min(_run(device, commands, 1, len(once)) for _ in range(2))
    copies = [first, *_more_constants(device, op, call, first, held)]
    runs = len(copies)
    if seconds < LONG_SECONDS:
        runs = max(2, runs, min(MOST_RUNS, round(BATCH_SECONDS / max(seconds, 1e-7))))
    if runs < 2 and _choices(device, op):
        runs = 2  # the first one by another algorithm may make what it needs
    bound = [item for k in range(runs) for item in bind(copies[k % len(copies)])]
    record = partial(device.record, bound)
    clock = Clock(record, lambda commands: _samples(device, commands, runs, len(once)), runs)
    chosen = tune(device, op.executables, clock)
    seconds = min(seconds, chosen)
    if runs > 1:
        commands = record()
    work = costing.cost_work(call)
    trial = Trial(device, kernel, call, work, runs, len(once), commands, list(held), seconds)
    trial.build = max(built - seconds, 0.0) if new else None
    return trial


def _first_run(device: Device, op: CompiledOp, once: Sequence[Bound]) -> CommandBuffer:
    """Record a kernel and run it once; where its first choice fails, by another algorithm."""
    commands = device.record(once)
    try:
        _run(device, commands, 1, len(once))
    except DeviceLost:
        raise
    except DeviceError:
        if not _choices(device, op):
            raise
        clock = Clock(
            partial(device.record, once), lambda made: [_run(device, made, 1, len(once))], 1
        )
        tune(device, op.executables, clock)
        commands = device.record(once)
    return commands


def _choices(device: Device, op: CompiledOp) -> bool:
    """Whether a step of a kernel leaves a choice among several algorithms."""
    return any(device.algorithms(executable) > 1 for executable in op.executables)


@dataclass(frozen=True)
class _Constants:
    """One copy of what a kernel reads that never changes."""

    inputs: dict[int, Buffer]
    packed: dict[int, Buffer]

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes for b in (*self.inputs.values(), *self.packed.values()))


def _more_constants(
    device: Device, op: CompiledOp, call: OpCall, first: _Constants, held: list[Buffer]
) -> list[_Constants]:
    """Further copies, until together they do not fit the caches."""
    if first.nbytes < COLD_BYTES // (MOST_COPIES * MOST_COPIES):
        return []
    wanted = min(MOST_COPIES, -(-COLD_BYTES // first.nbytes))
    arrays = [pack.make() for pack in op.lowered.packs] if wanted > 1 else []
    made = []
    for _ in range(wanted - 1):
        inputs = {i: device.upload(call.constants[i], "measuring") for i in first.inputs}
        packed = {i: device.upload(array, "measuring") for i, array in enumerate(arrays)}
        held += [*inputs.values(), *packed.values()]
        made.append(_Constants(inputs, packed))
    return made


def _room(device: Device, nbytes: int, held: list[Buffer]) -> Buffer:
    buffer = device.allocate(max(1, nbytes), "measuring")
    held.append(buffer)
    return buffer


def _samples(device: Device, commands: CommandBuffer, runs: int, steps: int) -> list[float]:
    """Seconds of a run in each of a few command buffers, the shortest first.

    What disturbs makes a run longer, never shorter. The shortest is believed when another takes
    about as long.
    """
    taken: list[float] = []
    while len(taken) < MOST and sum(taken) * runs <= LONG:
        taken.append(_run(device, commands, runs, steps))
        taken.sort()
        if len(taken) > 1 and taken[1] <= AGREE * taken[0]:
            break
    return taken


def _run(device: Device, commands: CommandBuffer, runs: int, steps: int) -> float:
    """Seconds a run, without those of the first where there are more."""
    spans: list[Span] = []

    def execute(queue: Queue) -> None:
        event = queue.execute(commands, (), spans)
        queue.flush()
        if event is not None:
            event.wait()

    device.call("compute", execute)
    if not spans:
        return 1e-9
    if runs > 1 and len(spans) == runs * steps:
        return max((spans[-1].end - spans[steps - 1].end) / (runs - 1), 1e-9)
    return max((spans[-1].end - spans[0].start) / runs, 1e-9)


def _sample(spec: TensorSpec, whole: int) -> Array:
    if spec.dtype not in FLOATS:
        return np.full(spec.dims, whole, to_numpy(spec.dtype))
    values = np.linspace(0.1, 1.0, max(1, min(spec.size, 8191)), dtype=np.float32)
    return np.resize(values, spec.dims).astype(to_numpy(spec.dtype))


def sample_feeds(specs: Sequence[tuple[str, TensorSpec]], whole: int = 0) -> dict[str, Array]:
    """Inputs of a graph with made-up values of the kind that trials use, by name."""
    return {name: _sample(spec, whole) for name, spec in specs}
