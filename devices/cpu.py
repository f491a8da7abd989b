"""The CPU device: numpy array calls and compiled native steps in host memory.

Buffers are 64-byte aligned host memory. There is one in-order queue for every role; ``execute``
runs in the calling thread and returns when the work is done. A command buffer holds prebuilt
closures: array calls with their views made once, and runs of native steps as one table that a
compiled loop walks without the interpreter lock.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from crossdock.devices import cpu_llvm, dlpack, topology
from crossdock.devices.base import (
    Bound,
    Buffer,
    Cap,
    CommandBuffer,
    Device,
    DeviceInfo,
    Event,
    Executable,
    Probe,
    Queue,
    Span,
    check_copy,
)
from crossdock.devices.cpu_blas import Blas, blas
from crossdock.devices.cpu_crew import HelperPool
from crossdock.devices.cpu_native import NativeProgram, NativeRow
from crossdock.devices.host_memory import ALIGNMENT, Budget, HostBuffer, copy_bytes, is_aligned
from crossdock.devices.pace import Pace
from crossdock.devices.program import (
    Argument,
    ArrayCall,
    Function,
    NativeCall,
    Scalar,
    Slot,
    Step,
)
from crossdock.devices.share import Share
from crossdock.runtime import settings
from crossdock.runtime.errors import CompileError, Unavailable
from crossdock.runtime.tensor import Array, TensorSpec

KIND = "cpu"
_LARGE = 4 << 20
"""Bytes of weights that come from beyond a core's caches, where alignment saves nothing."""


def probe() -> Probe:
    """Describe the host processor; it is always there."""
    return Probe(KIND, (_info(f"{KIND}:0", topology.cpu_count()),))


def open_device(
    device_id: str, *, threads: int | None = None, limit: int | None = None
) -> CpuDevice:
    """Open the host processor.

    ``threads`` is how many threads compute (None: one a core this process may use); ``limit`` is
    a budget in bytes for all buffers together.
    """
    if device_id != f"{KIND}:0":
        raise Unavailable(f"there is no device {device_id!r}: the host processor is cpu:0")
    if threads is not None and threads < 1:
        raise Unavailable(f"{device_id}: threads={threads}; at least one is needed")
    return CpuDevice(_info(device_id, threads or topology.cpu_count()), limit)


@functools.cache
def _blas() -> str:
    config: Any = np.show_config(mode="dicts")
    blas = (config or {}).get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'blas')} {blas.get('version', '')}".strip()


def _info(device_id: str, threads: int) -> DeviceInfo:
    model, memory = topology.cpu_model(), topology.memory_bytes()
    level = settings.cpu_level()
    parts = (model, f"threads {threads}", f"numpy {np.__version__}", _blas(), level)
    return DeviceInfo(
        id=device_id,
        kind=KIND,
        name=model,
        vendor=model.split()[0],
        driver=f"numpy {np.__version__}, {_blas()}",
        physical_id=topology.HOST_CPU,
        resource_group=topology.HOST_CPU,
        compute_units=threads,
        memory_bytes=memory,
        caps=frozenset({Cap.ARRAY, Cap.NATIVE, Cap.HOST_MEMORY, Cap.MAP, Cap.FLOAT16, Cap.FLOAT64}),
        fingerprint="|".join(filter(None, parts)),
        max_allocation=memory,
        alignment=ALIGNMENT,
        details={"threads": str(threads), "blas": _blas(), **({"level": level} if level else {})},
    )


class CpuBuffer(HostBuffer):
    """A window of host memory."""

    def array(self, spec: TensorSpec) -> Array:
        """The memory as an array of ``spec``, without a copy."""
        return self.shaped(spec)


@dataclass(frozen=True)
class ArrayExecutable(Executable):
    """An array call; there is nothing to compile."""

    step: ArrayCall


@dataclass(frozen=True)
class NativeExecutable(Executable):
    """A native call and the address of its machine code."""

    step: NativeCall
    address: int


Call = Callable[[], object]


@dataclass(frozen=True)
class CpuStep:
    """A bound step, ready to run: an array call's closure, or a native row; may call ``blas``."""

    label: str
    work: Call | NativeRow
    blas: bool


@dataclass(frozen=True)
class _Part:
    """Steps that are one call: native steps in a row, or one array call."""

    labels: tuple[str, ...]
    call: Call
    program: NativeProgram | None = None


class CpuCommands(CommandBuffer):
    """Closures to call in order; runs of native steps are one closure each."""

    def __init__(
        self, steps: Sequence[CpuStep], program: Callable[[list[NativeRow]], NativeProgram]
    ) -> None:
        self._steps = tuple(steps)
        self.parts = tuple(_parts(self._steps, program))
        self.calls = tuple(part.call for part in self.parts)
        self.quiet = any(part.program is None for part in self.parts)
        self.blas = any(step.blas for step in self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def stop(self, on: bool) -> None:
        """End native steps before the next one."""
        for part in self.parts:
            if part.program is not None:
                part.program.stop(on)


def _parts(
    steps: Sequence[CpuStep], program: Callable[[list[NativeRow]], NativeProgram]
) -> Iterator[_Part]:
    for native, run in itertools.groupby(steps, key=lambda s: isinstance(s.work, NativeRow)):
        found = list(run)
        if not native:
            yield from (_Part((s.label,), s.work) for s in found if callable(s.work))
            continue
        made = program([s.work for s in found if isinstance(s.work, NativeRow)])
        yield _Part(tuple(s.label for s in found), made.run, made)


class CpuQueue(Queue):
    """The in-order queue; work is done when a call returns."""

    def __init__(self, device: CpuDevice) -> None:
        self.device: CpuDevice = device
        self.role = "compute"

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> None:
        """Run a command buffer in the calling thread."""
        assert isinstance(commands, CpuCommands)
        for event in waits:
            event.wait()
        library = self.device.library if commands.blas else None
        if library is not None:
            library.enter()
        try:
            if commands.quiet:
                with np.errstate(all="ignore"):
                    _run(commands, spans)
            else:
                _run(commands, spans)
        finally:
            if library is not None:
                library.leave()

    def prepared(self, commands: CommandBuffer) -> Callable[[], object]:
        """The one call of a native program, where that is all there is to do."""
        part = self._whole(commands)
        if part is None:
            return super().prepared(commands)
        library = self.device.library if self._uses(commands) else None
        return part.call if library is None else functools.partial(_alone, library, part.call)

    def brief(self, commands: CommandBuffer) -> Callable[[], object] | None:
        """The same call with the interpreter lock kept, where no helper takes part."""
        part = None if self._uses(commands) else self._whole(commands)
        return None if part is None or part.program is None else part.program.brief

    def _whole(self, commands: CommandBuffer) -> _Part | None:
        """The one native program that is all there is to do."""
        assert isinstance(commands, CpuCommands)
        return commands.parts[0] if not commands.quiet and len(commands.parts) == 1 else None

    def _uses(self, commands: CommandBuffer) -> bool:
        """Whether a BLAS library takes part that has to be kept to one thread."""
        assert isinstance(commands, CpuCommands)
        return commands.blas and self.device.library is not None

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> None:
        """Copy a C-contiguous array into a buffer."""
        assert isinstance(target, CpuBuffer)
        for event in waits:
            event.wait()
        copy_bytes(target.first(source.nbytes), source)

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> None:
        """Copy a buffer into a C-contiguous array."""
        assert isinstance(source, CpuBuffer)
        for event in waits:
            event.wait()
        copy_bytes(target, source.first(target.nbytes))

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> None:
        """Copy a buffer into another."""
        assert isinstance(target, CpuBuffer)
        assert isinstance(source, CpuBuffer)
        check_copy(self.device, target, source)
        for event in waits:
            event.wait()
        copy_bytes(target.first(source.nbytes), source.bytes())

    def finish(self) -> None:
        """Nothing is ever pending."""


def _alone(library: Blas, call: Call) -> None:
    """Make a call with the library kept to one thread."""
    library.enter()
    try:
        call()
    finally:
        library.leave()


def _run(commands: CpuCommands, spans: list[Span] | None) -> None:
    if spans is None:
        for call in commands.calls:
            call()
        return
    for part in commands.parts:
        if part.program is not None:
            ends = part.program.timed().tolist()
            spans += map(Span, part.labels, ends[:-1], ends[1:])
            continue
        start = perf_counter()
        part.call()
        spans.append(Span(part.labels[0], start, perf_counter()))


class CpuDevice(Device):
    """The host processor.

    ``library`` is numpy's BLAS where it can be kept to one thread: native steps bring their own.
    """

    def __init__(self, info: DeviceInfo, limit: int | None = None) -> None:
        self.info = info
        self.threads = info.compute_units
        queue = CpuQueue(self)
        self.queues = {"compute": queue, "upload": queue, "download": queue}
        capacity = info.memory_bytes
        self._budget = Budget(Share(info.id, limit or capacity, capacity, info.physical_id))
        self.gauge = self._budget.gauge
        self.library = blas()
        self._pool: HelperPool | None = None
        self._pace: Pace | None = None
        self._lock = threading.Lock()

    def allocate(self, nbytes: int, label: str = "") -> CpuBuffer:
        """Allocate host memory."""
        return CpuBuffer(self, self._budget.take(nbytes, label))

    def resident(self, array: Array, label: str = "") -> Buffer:
        """The array's own memory where it is read-only, contiguous and aligned, or large."""
        fits = array.flags.c_contiguous and not array.flags.writeable and array.nbytes > 0
        if fits and (is_aligned(array) or array.nbytes >= _LARGE):
            return CpuBuffer(self, self._budget.adopt(array, label))
        return self.upload(array, label)

    def lend(self, buffer: Buffer, spec: TensorSpec) -> Any:
        """The memory as numpy's array, or as one of bfloat16 over such."""
        made = buffer.array(spec)
        return dlpack.Bfloat16(made.view(np.uint16)) if spec.dtype == "bfloat16" else made

    def compile(self, step: Step) -> Executable:
        """Make a step executable; native code is compiled here."""
        if isinstance(step, ArrayCall):
            return ArrayExecutable(step)
        if isinstance(step, NativeCall):
            return NativeExecutable(step, step.address())
        raise CompileError(
            f"{self.info.id}: runs array and native calls, not {type(step).__name__}"
        )

    def compile_ahead(
        self,
        steps: Iterable[Step],
        until: float = math.inf,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compile the native code of steps on all processors."""
        calls = (step for step in steps if isinstance(step, NativeCall))
        asked = (part for call in calls for part in (call.address, *call.args))
        functions = (part for part in asked if isinstance(part, Function))
        sources = ((f.name, f.source) for f in functions if f.source is not None)
        cpu_llvm.compile_ahead(sources, until, progress)

    def record(self, bound: Sequence[Bound]) -> CpuCommands:
        """Prebuild views, argument words and closures; steps keep their buffers alive."""
        return CpuCommands([_step(item) for item in bound], self._program)

    def pace(self) -> float:
        """The pace of the processor, on as many threads as the device uses."""
        with self._lock:
            if self._pace is None:
                self._pace = Pace(self._helpers())
            return self._pace.take()

    def _program(self, rows: Sequence[NativeRow]) -> NativeProgram:
        with self._lock:
            return NativeProgram(rows, self._helpers())

    def _helpers(self) -> HelperPool | None:
        if self.threads > 1 and self._pool is None:
            self._pool = HelperPool(self.threads - 1, f"crossdock {self.info.id}")
        return self._pool

    def close(self) -> None:
        """End the helper threads."""
        if self._pool is not None:
            self._pool.close()
            self._pool = self._pace = None


def _step(item: Bound) -> CpuStep:
    executable = item.executable
    if isinstance(executable, NativeExecutable):
        return CpuStep(item.label, _row(executable, item), executable.step.blas)
    assert isinstance(executable, ArrayExecutable)
    return CpuStep(item.label, _array_call(executable.step, item), blas=True)


def _host(item: Bound, slot: Slot) -> CpuBuffer:
    buffer = item.buffers[slot]
    assert isinstance(buffer, CpuBuffer)
    return buffer


def _array_call(step: ArrayCall, item: Bound) -> Callable[[], None]:
    ins: list[Array | None] = [
        None if slot is None or spec is None else _host(item, slot).array(spec)
        for slot, spec in zip(step.ins, step.in_specs, strict=True)
    ]
    outs = [
        _host(item, slot).array(spec) for slot, spec in zip(step.outs, step.out_specs, strict=True)
    ]
    return functools.partial(step.fn, np, ins, outs)


def _row(executable: NativeExecutable, item: Bound) -> NativeRow:
    step = executable.step
    words = tuple(_word(item, arg) for arg in step.args)
    keep = tuple(item.buffers.values())
    return NativeRow(executable.address, words, step.extent, step.grain, (step, keep), step.align)


def _word(item: Bound, arg: Argument) -> int:
    if isinstance(arg, Scalar):
        return scalar_word(arg)
    return arg.address() if isinstance(arg, Function) else _host(item, arg).address()


def scalar_word(scalar: Scalar) -> int:
    """What a number becomes as an argument: its integer value, or the bits of a float64."""
    value = np.asarray(scalar.value)
    if value.dtype.kind == "f":
        return int(np.float64(value).view(np.int64))
    return int(value.astype(np.uint64).view(np.int64)) if value.dtype.kind == "u" else int(value)
