"""The CPU device: numpy array calls and compiled native steps in host memory.

Buffers are 64-byte aligned host memory. There is one in-order queue for every role; ``execute``
runs in the calling thread and returns when the work is done. A command buffer holds prebuilt
closures: array calls with their views made once, and runs of native steps as one table that a
compiled loop walks without the interpreter lock.
"""

from __future__ import annotations

import functools
import os
import platform
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

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
)
from crossdock.devices.cpu_blas import blas
from crossdock.devices.cpu_native import HelperPool, NativeProgram, NativeRow
from crossdock.devices.program import ArrayCall, NativeCall, Scalar, Slot, Step
from crossdock.runtime.errors import CompileError, DeviceError, OutOfMemory, Unavailable
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

KIND = "cpu"
ALIGNMENT = 64


def probe() -> Probe:
    """Describe the host processor; it is always there."""
    return Probe(KIND, (_info(f"{KIND}:0", cpu_count()),))


def open_device(id: str, *, threads: int | None = None) -> Device:  # noqa: A002 - the contract's name
    """Open the host processor with ``threads`` threads (None: one a core this process may use)."""
    if id != f"{KIND}:0":
        raise Unavailable(f"there is no device {id!r}: the host processor is cpu:0")
    if threads is not None and threads < 1:
        raise Unavailable(f"{id}: threads={threads}, at least one is needed")
    return CpuDevice(_info(id, threads or cpu_count()))


def cpu_count() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_model() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "cpu"


@functools.cache
def host_memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or its cgroup's limit."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        total = 4 << 30
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


@functools.cache
def _blas() -> str:
    config: Any = np.show_config(mode="dicts")
    blas = (config or {}).get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'blas')} {blas.get('version', '')}".strip()


def _info(id: str, threads: int) -> DeviceInfo:  # noqa: A002 - as above
    model = cpu_model()
    return DeviceInfo(
        id=id,
        kind=KIND,
        name=model,
        vendor=model.split()[0],
        driver=f"numpy {np.__version__}, {_blas()}",
        physical_id=f"cpu {model}",
        resource_group="host-cpu",
        compute_units=threads,
        memory_bytes=host_memory(),
        caps=frozenset({Cap.ARRAY, Cap.NATIVE, Cap.HOST_MEMORY, Cap.MAP, Cap.FLOAT16, Cap.FLOAT64}),
        fingerprint=f"{model}|threads {threads}|numpy {np.__version__}|{_blas()}",
        max_allocation=host_memory(),
        alignment=ALIGNMENT,
        details={"threads": str(threads), "blas": _blas()},
    )


class HostBuffer(Buffer):
    """A window of host memory; ``release`` gives up this window's hold on it."""

    def __init__(self, device: CpuDevice, memory: Array, nbytes: int) -> None:
        self.device = device
        self.nbytes = nbytes
        self._memory: Array | None = memory

    def bytes(self) -> Array:
        """The memory as uint8[nbytes]."""
        if self._memory is None:
            raise DeviceError(f"{self.device.info.id}: a buffer is used after its release")
        return self._memory

    def address(self) -> int:
        """Where the memory begins."""
        return int(self.bytes().ctypes.data)

    def view(self, offset: int, nbytes: int) -> HostBuffer:
        """A window into this buffer, which keeps the memory alive."""
        if offset % ALIGNMENT or offset < 0 or offset + nbytes > self.nbytes:
            raise DeviceError(
                f"{self.device.info.id}: no view of {nbytes} bytes at {offset} in a buffer of "
                f"{self.nbytes}; offsets are multiples of {ALIGNMENT}"
            )
        assert isinstance(self.device, CpuDevice)
        return HostBuffer(self.device, self.bytes()[offset : offset + nbytes], nbytes)

    def release(self) -> None:
        """Drop the memory; it is freed when no view or command buffer holds it."""
        self._memory = None

    def array(self, spec: TensorSpec) -> Array:
        """The memory as an array of ``spec``, without a copy."""
        return np.ndarray(spec.dims, to_numpy(spec.dtype), self.bytes()[: spec.nbytes])


def aligned(nbytes: int) -> Array:
    """Uninitialised uint8[nbytes] that begins on a cache line."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -int(raw.ctypes.data) % ALIGNMENT
    return raw[start : start + nbytes]


@dataclass(frozen=True)
class ArrayExecutable(Executable):
    """An array call; there is nothing to compile."""

    step: ArrayCall


@dataclass(frozen=True)
class NativeExecutable(Executable):
    """A native call and the address of its machine code."""

    step: NativeCall
    address: int


class CpuCommands(CommandBuffer):
    """Closures to call in order; ``single`` has one a step, for timing."""

    def __init__(
        self, calls: Iterable[Callable[[], None]], single: Iterable[tuple[str, Callable[[], None]]]
    ) -> None:
        self.calls = tuple(calls)
        self.single = tuple(single)

    def __len__(self) -> int:
        return len(self.single)


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
        with np.errstate(all="ignore"), self.device.blas_threads():
            if spans is None:
                for call in commands.calls:
                    call()
                return
            for label, call in commands.single:
                start = perf_counter()
                call()
                spans.append(Span(label, start, perf_counter()))

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> None:
        """Copy a C-contiguous array into a buffer."""
        assert isinstance(target, HostBuffer)
        for event in waits:
            event.wait()
        data = source.reshape(-1).view(np.uint8)
        np.copyto(target.bytes()[: data.size], data)

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> None:
        """Copy a buffer into a C-contiguous array."""
        assert isinstance(source, HostBuffer)
        for event in waits:
            event.wait()
        data = target.reshape(-1).view(np.uint8)
        np.copyto(data, source.bytes()[: data.size])

    def finish(self) -> None:
        """Nothing is ever pending."""


class CpuDevice(Device):
    """The host processor."""

    def __init__(self, info: DeviceInfo) -> None:
        self.info = info
        self.threads = info.compute_units
        queue = CpuQueue(self)
        self.queues = {"compute": queue, "upload": queue, "download": queue}
        self._pool: HelperPool | None = None
        self._lock = threading.Lock()
        self._in_use = 0

    def blas_threads(self) -> AbstractContextManager[None]:
        """Hold BLAS to this device's threads during array calls."""
        library = blas()
        return nullcontext() if library is None else library.threads(self.threads)

    def allocate(self, nbytes: int, label: str = "") -> HostBuffer:
        """Allocate host memory; it is the system that commits pages, on first use."""
        free = self.info.memory_bytes - self._in_use
        try:
            if nbytes > free:
                raise MemoryError
            memory = aligned(nbytes)
        except MemoryError:
            raise OutOfMemory(
                f"{self.info.id}: {nbytes} bytes wanted{f' for {label}' if label else ''}, {free} "
                "free; use smaller inputs, or move ops to another device"
            ) from None
        self._account(nbytes)
        owner = memory.base
        weakref.finalize(owner, self._account, -nbytes).atexit = False
        return HostBuffer(self, memory, nbytes)

    def _account(self, nbytes: int) -> None:
        with self._lock:
            self._in_use += nbytes

    def compile(self, step: Step) -> Executable:
        """Make a step executable; native code is compiled here."""
        if isinstance(step, ArrayCall):
            return ArrayExecutable(step)
        if isinstance(step, NativeCall):
            return NativeExecutable(step, step.address())
        raise CompileError(
            f"{self.info.id}: runs array and native calls, not {type(step).__name__}"
        )

    def record(self, bound: Sequence[Bound]) -> CpuCommands:
        """Prebuild views, argument words and closures; steps keep their buffers alive."""
        calls: list[Callable[[], None]] = []
        single: list[tuple[str, Callable[[], None]]] = []
        rows: list[NativeRow] = []
        for item in bound:
            executable = item.executable
            if isinstance(executable, NativeExecutable):
                row = _row(executable, item)
                rows.append(row)
                single.append((item.label, self._program([row])))
                continue
            assert isinstance(executable, ArrayExecutable)
            if rows:
                calls.append(self._program(rows))
                rows = []
            calls.append(_array_call(executable.step, item))
            single.append((item.label, calls[-1]))
        if rows:
            calls.append(self._program(rows))
        return CpuCommands(calls, single)

    def _program(self, rows: Sequence[NativeRow]) -> Callable[[], None]:
        if self.threads > 1 and self._pool is None:
            self._pool = HelperPool(self.threads - 1, f"crossdock {self.info.id}")
        return NativeProgram(rows, self._pool).run

    def close(self) -> None:
        """End the helper threads."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _host(item: Bound, slot: Slot) -> HostBuffer:
    buffer = item.buffers[slot]
    assert isinstance(buffer, HostBuffer)
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
    words = tuple(
        _scalar_word(arg) if isinstance(arg, Scalar) else _host(item, arg).address()
        for arg in step.args
    )
    keep = tuple(item.buffers.values())
    return NativeRow(executable.address, words, step.extent, step.grain, (step, keep))


def _scalar_word(scalar: Scalar) -> int:
    value = np.asarray(scalar.value)
    if value.dtype.kind == "f":
        return int(np.float64(value).view(np.int64))
    return int(value.astype(np.uint64).view(np.int64)) if value.dtype.kind == "u" else int(value)
