"""CUDA devices through cupy: a compute stream and one copy stream a direction.

Kernels are the shared texts built by NVRTC; array calls run cupy on the compute stream. All
memory, temporaries of array calls included, comes from one pool a device, whose limit is the
budget. Host memory that is not pinned is staged through two pinned buffers a copy stream.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.devices import cuda_dnn, cuda_versions, topology
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
from crossdock.devices.cuda_blas import LibraryCall, Prepared
from crossdock.devices.cuda_graph import Segment, segments
from crossdock.devices.cuda_memory import CudaBuffer, CudaEvent, Staging, is_pinned, translated
from crossdock.devices.dialect import CUDA_HEADER, assemble, misfit
from crossdock.devices.program import ArrayCall, GridLaunch, Scalar, Step, is_launch
from crossdock.devices.share import Share
from crossdock.runtime.errors import CompileError, DeviceError, Unavailable
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

KIND = "cuda"
FIX = "pip install 'crossdock[cuda]'"
ALIGNMENT = 256
MAX_GRID = (2**31 - 1, 65535, 65535)

_CAPS = frozenset(
    {
        Cap.GRID,
        Cap.ARRAY,
        Cap.EVENTS,
        Cap.PROFILING,
        Cap.COPY_QUEUES,
        Cap.REPLAY,
        Cap.FLOAT16,
        Cap.FLOAT64,
    }
)


def probe() -> Probe:
    """Every card that cupy sees and NVRTC compiles for, or why there is none."""
    if "cupy" not in sys.modules:
        if importlib.util.find_spec("cupy") is None:
            return Probe(KIND, (), "cupy is not installed", FIX)
        if problem := cuda_versions.driver_problem():
            return Probe(KIND, (), *problem)
    try:
        import cupy as cp
    except ImportError as error:
        return Probe(KIND, (), f"cupy cannot be imported ({str(error).strip()})", FIX)
    try:
        return _cards(cp)
    except cp.cuda.runtime.CUDARuntimeError as error:
        return Probe(KIND, (), *cuda_versions.runtime_problem(cp, error))


def _cards(cp: Any) -> Probe:
    runtime = cp.cuda.runtime
    count = runtime.getDeviceCount()
    if count and (problem := cuda_versions.compiler_problem(cp)):
        return Probe(KIND, (), *problem)
    problems = [
        cuda_versions.card_problem(cp, runtime.getDeviceProperties(index)) for index in range(count)
    ]
    found = tuple(_describe(cp, index) for index, why in enumerate(problems) if why is None)
    why = next((problem for problem in problems if problem), ("", ""))
    return Probe(KIND, found, *why)


def _describe(cp: Any, index: int) -> DeviceInfo:
    runtime = cp.cuda.runtime
    facts = runtime.getDeviceProperties(index)
    with cp.cuda.Device(index) as device:
        total = runtime.memGetInfo()[1]
        pci = device.pci_bus_id
    name = facts["name"].decode()
    versions = [
        cuda_versions.text(v()) for v in (runtime.runtimeGetVersion, runtime.driverGetVersion)
    ]
    driver = "CUDA {}, driver for CUDA {}".format(*versions)
    uuid = _uuid(facts)
    dnn = cuda_dnn.facts()
    physical = topology.physical_id(pci, uuid, f"{KIND}:{index}")
    clock = facts.get("clockRate", 0) // 1000
    return DeviceInfo(
        id=f"{KIND}:{index}",
        kind=KIND,
        name=name,
        vendor="NVIDIA",
        driver=driver,
        physical_id=physical,
        resource_group=physical,
        compute_units=facts["multiProcessorCount"],
        memory_bytes=total,
        caps=_CAPS,
        fingerprint=f"{name}|{driver}|cupy {cp.__version__}|{clock} MHz{_told(dnn)}",
        max_allocation=total,
        local_memory=facts["sharedMemPerBlock"],
        max_work_group=facts["maxThreadsPerBlock"],
        alignment=ALIGNMENT,
        details={
            "compute_capability": f"{facts['major']}.{facts['minor']}",
            "nvrtc": cuda_versions.compiler(cp),
            **dnn,
            **({"uuid": uuid.hex()} if uuid else {}),
        },
    )


def _told(dnn: Mapping[str, str]) -> str:
    """What kernels are timed with beside the driver."""
    return f"|cuDNN {dnn['cudnn']}" if "cudnn" in dnn else ""


def _uuid(facts: Mapping[str, Any]) -> bytes:
    """The UUID among a card's properties, or nothing.

    cupy makes bytes of the driver's array as of a C string: one with a zero in it arrives cut, and
    what follows the array may come after one without.
    """
    told = bytes(facts.get("uuid", b""))
    return told[:16] if len(told) >= 16 else b""


def open_device(
    device_id: str, *, threads: int | None = None, limit: int | None = None
) -> CudaDevice:
    """Open a card; ``limit`` is its budget in bytes. Cards are not cut: ``threads`` is unused."""
    del threads
    found = probe()
    info = next((info for info in found.devices if info.id == device_id), None)
    if info is None:
        raise Unavailable(f"no device {device_id!r}: {found.reason or 'no such card'}; {found.fix}")
    import cupy as cp

    return CudaDevice(cp, info, limit)


@dataclass(frozen=True)
class CudaExecutable(Executable):
    """A step, and its kernel where it has one, or a library's call."""

    step: GridLaunch | ArrayCall
    kernel: Any = None


class CudaCommands(CommandBuffer):
    """Calls ready to be made on a stream, in order; they keep their memory alive."""

    def __init__(self, calls: Sequence[Callable[[], Any]], bound: Sequence[Bound]) -> None:
        self.calls = tuple(calls)
        self.parts = segments(self.calls, [_launches(item) for item in bound])
        self.labels = [item.label for item in bound]
        self.roots = {
            buffer.root
            for item in bound
            for buffer in item.buffers.values()
            if isinstance(buffer, CudaBuffer)
        }

    def __len__(self) -> int:
        return len(self.calls)

    def run(self, cp: Any, stream: Any) -> None:
        """Make every call on the stream, which has to be the current one."""
        for part in self.parts:
            if isinstance(part, Segment):
                part.run(cp, stream)
            else:
                part()

    @property
    def notes(self) -> tuple[str, ...]:
        """Why launches are not replayed as graphs, where the driver refused."""
        return tuple(p.reason for p in self.parts if isinstance(p, Segment) and p.reason)


class CudaQueue(Queue):
    """A stream that no default stream synchronises with."""

    def __init__(self, device: CudaDevice, role: str) -> None:
        self.device: CudaDevice = device
        self.role = role
        self.stream = device.cp.cuda.Stream(non_blocking=True)
        self._staging = Staging(device.cp, self.stream)
        self._pending: deque[CudaEvent] = deque()
        self._forgetting = threading.Lock()

    def _wait_for(self, waits: Sequence[Event]) -> None:
        for event in waits:
            if isinstance(event, CudaEvent):
                self.stream.wait_event(event.event)
            else:
                event.wait()

    def _mark(self, keep: object) -> CudaEvent:
        """An event after everything submitted; it is kept until it is done, with what it uses."""
        device = self.device
        raw = self.stream.record(device.cp.cuda.Event(disable_timing=True))
        event = CudaEvent(device, raw, keep)
        self.forget()
        with self._forgetting:
            self._pending.append(event)
        return event

    def forget(self) -> None:
        """Keep no longer what done work used; any thread."""
        with self._forgetting:
            while self._pending and self._pending[0].done():
                self._pending.popleft()

    def busy(self) -> bool:
        """True while submitted work is not done."""
        with self._forgetting:
            return bool(self._pending) and not self._pending[-1].done()

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> CudaEvent:
        """Submit every call; with ``spans``, time each on the card and wait."""
        assert isinstance(commands, CudaCommands)
        if any(root.released for root in commands.roots):
            raise DeviceError(f"{self.device.info.id}: a buffer of this run has been released")
        cp = self.device.cp
        with translated(self.device):
            self._wait_for(waits)
            with self.stream, cp.cuda.using_allocator(self.device.pool.malloc):
                if spans is None:
                    commands.run(cp, self.stream)
                else:
                    self._timed(commands, spans)
            return self._mark(commands)

    def _timed(self, commands: CudaCommands, spans: list[Span]) -> None:
        self.stream.synchronize()
        start = time.perf_counter()
        marks = [self.stream.record(self.device.cp.cuda.Event())]
        for call in commands.calls:
            call()
            marks.append(self.stream.record(self.device.cp.cuda.Event()))
        marks[-1].synchronize()
        elapsed = self.device.cp.cuda.get_elapsed_time
        times = [start + elapsed(marks[0], mark) * 1e-3 for mark in marks]
        for label, begin, end in zip(commands.labels, times, times[1:], strict=False):
            spans.append(Span(label, begin, end))

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> CudaEvent:
        """Copy a C-contiguous array into a buffer."""
        assert isinstance(target, CudaBuffer)
        data = self._flat(source, target)
        with translated(self.device):
            self._wait_for(waits)
            pointer = target.pointer.ptr
            if is_pinned(self.device.cp, source):
                kind = self.device.cp.cuda.runtime.memcpyHostToDevice
                self._direct(pointer, data.ctypes.data, data.size, kind)
            else:
                self._staging.upload(pointer, data)
            return self._mark((source, target.root))

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> CudaEvent:
        """Copy a buffer into a C-contiguous array; returns when done unless that is pinned."""
        assert isinstance(source, CudaBuffer)
        data = self._flat(target, source)
        with translated(self.device):
            self._wait_for(waits)
            pointer = source.pointer.ptr
            if is_pinned(self.device.cp, target):
                kind = self.device.cp.cuda.runtime.memcpyDeviceToHost
                self._direct(data.ctypes.data, pointer, data.size, kind)
            else:
                self._staging.download(pointer, data)
            return self._mark((target, source.root))

    def _direct(self, target: int, source: int, nbytes: int, kind: int) -> None:
        if nbytes:
            self.device.cp.cuda.runtime.memcpyAsync(target, source, nbytes, kind, self.stream.ptr)

    def _flat(self, array: Array, buffer: CudaBuffer) -> Array:
        if array.nbytes > buffer.nbytes or not array.flags.c_contiguous:
            raise DeviceError(
                f"{self.device.info.id}: cannot copy {array.nbytes} bytes in C order between the "
                f"host and a buffer of {buffer.nbytes}"
            )
        return array.reshape(-1).view(np.uint8)

    def finish(self) -> None:
        """Block until everything submitted is done."""
        with translated(self.device):
            self.stream.synchronize()


class CudaDevice(Device):
    """One card."""

    def __init__(self, cp: Any, info: DeviceInfo, limit: int | None = None) -> None:
        self.cp = cp
        self.info = info
        self.index = int(info.id.partition(":")[2])
        self.budget = info.memory_bytes if limit is None else min(limit, info.memory_bytes)
        self.lost = ""
        self.pool = cp.cuda.MemoryPool()
        self.dropped: deque[Any] = deque()
        self._share = Share(info.id, self.budget, info.memory_bytes, info.physical_id)
        self._share.reclaim = weakref.WeakMethod(self._give_back)
        self.gauge = self._share.gauge
        self._modules: dict[tuple[object, ...], Any] = {}
        self._lock = threading.Lock()
        self._closed = False
        with cp.cuda.Device(self.index):
            self.pool.set_limit(size=self.budget)
            self.queues: Mapping[str, CudaQueue] = {
                role: CudaQueue(self, role) for role in ("compute", "upload", "download")
            }

    def drain(self) -> None:
        """Wait for every stream, so that memory can change hands; does nothing on a lost card."""
        if not self.lost and not self._closed:
            with translated(self):
                for queue in self.queues.values():
                    queue.stream.synchronize()

    def _reclaim(self, wanted: int) -> None:
        """Free what was dropped, waiting for it only where memory is short; any thread."""
        if self.lost or self._closed:
            return
        with translated(self):
            self._count()
            short = wanted > self._share.free
            if short or (self.dropped and not any(q.busy() for q in self.queues.values())):
                self.drain()
                for queue in self.queues.values():
                    queue.forget()
                self.dropped.clear()
                self._count()

    def _give_back(self, wanted: int) -> None:
        """Let the card's other devices have what the pool keeps; any thread."""
        with suppress(DeviceError):  # a card that fails says so where it is used
            self._reclaim(wanted)
            if not self.lost and not self._closed:
                with translated(self):
                    self.pool.free_all_blocks()
                    self._count()

    def _count(self) -> None:
        """Take the pool's word for what is used: it has the temporaries of array calls in it."""
        with self._share.lock:
            used = int(self.pool.used_bytes())
            self.gauge.show(used)
            self._share.cached = int(self.pool.total_bytes()) - used

    def host_array(self, spec: TensorSpec) -> Array:
        """A host array in pinned memory: copies to and from it are not staged."""
        dtype, count = to_numpy(spec.dtype), max(spec.size, 1)
        with translated(self):
            memory = self.cp.cuda.alloc_pinned_memory(count * dtype.itemsize)
        return np.frombuffer(memory, dtype, count)[: spec.size].reshape(spec.dims)

    def allocate(self, nbytes: int, label: str = "") -> CudaBuffer:
        """Allocate from the pool, within the budget."""
        with translated(self):
            self._reclaim(nbytes)
            self._share.make_room(nbytes)
            with self._share.lock:
                self._share.check(nbytes, label)
                made = CudaBuffer(self, self.pool.malloc(max(nbytes, 1)), nbytes)
                self._count()
            return made

    def compile(self, step: Step) -> CudaExecutable:
        """Build a kernel with NVRTC; an array call only needs types that cupy has."""
        if isinstance(step, ArrayCall):
            for spec in (*step.in_specs, *step.out_specs):
                if spec is not None and spec.dtype == "bfloat16":
                    raise CompileError(f"{self.info.id}: cupy has no bfloat16 arrays")
            if isinstance(step.fn, LibraryCall):
                with translated(self):
                    return CudaExecutable(step, step.fn.prepare(self.cp))
            return CudaExecutable(step)
        if not isinstance(step, GridLaunch):
            raise CompileError(
                f"{self.info.id}: runs grid kernels and array calls, not {type(step).__name__}"
            )
        with translated(self):
            return CudaExecutable(step, self._kernel(step))

    def _kernel(self, step: GridLaunch) -> Any:
        cp, where = self.cp, f"{self.info.id}: kernel {step.entry}"
        text = assemble(CUDA_HEADER, step.defines, step.source)
        try:
            with self._lock:
                module = self._modules.get((step.source, step.defines))
                if module is None:
                    module = cp.RawModule(code=text, backend="nvrtc")
                    self._modules[step.source, step.defines] = module
                raw = module.get_function(step.entry)
                function, most = raw.kernel, raw.max_threads_per_block
        except cp.cuda.compiler.CompileException as error:
            log = error.get_message()
            first = next((line for line in log.splitlines() if "error" in line), log[:200])
            raise CompileError(f"{where} does not build: {first}", log=log, source=text) from error
        except cp.cuda.driver.CUDADriverError as error:
            said = f"{where} cannot be loaded: {error}{cuda_versions.mismatch(cp)}"
            raise CompileError(said, source=text) from error
        if why := _misfit(step, most):
            raise CompileError(f"{where}: {why}", source=text)
        return function

    def record(self, bound: Sequence[Bound]) -> CudaCommands:
        """Make every call with its arrays and arguments in place."""
        with translated(self):
            return CudaCommands([self._call(item) for item in bound], bound)

    def _call(self, item: Bound) -> Callable[[], Any]:
        executable = item.executable
        assert isinstance(executable, CudaExecutable)
        step = executable.step
        if isinstance(step, ArrayCall):
            ins = [
                None if slot is None or spec is None else _array(item, slot, spec)
                for slot, spec in zip(step.ins, step.in_specs, strict=True)
            ]
            outs = [
                _array(item, slot, spec)
                for slot, spec in zip(step.outs, step.out_specs, strict=True)
            ]
            if isinstance(executable.kernel, Prepared):
                return executable.kernel.bound(ins, outs)
            return functools.partial(step.fn, self.cp, ins, outs)
        args = tuple(
            arg.value
            if isinstance(arg, Scalar)
            else _array(item, arg, TensorSpec("uint8", (item.buffers[arg].nbytes,)))
            for arg in step.args
        )
        blocks = tuple(g // b for g, b in zip(step.grid, step.block, strict=True))
        if not all(blocks):
            return _nothing
        return functools.partial(executable.kernel, blocks, step.block, args)

    def close(self) -> None:
        """Wait for the streams, end their threads, and give memory back."""
        for queue in self.queues.values():
            if not self.lost:
                queue.finish()
            queue.forget()
            if queue.feeder is not None:
                queue.feeder.stop()
        self._closed = True
        self._modules.clear()
        self.dropped.clear()
        if not self.lost:
            self.pool.free_all_blocks()


def _nothing() -> None:
    """The launch of an empty grid."""


def _launches(item: Bound) -> bool:
    executable = item.executable
    return isinstance(executable, CudaExecutable) and is_launch(executable.step)


def _array(item: Bound, slot: Any, spec: TensorSpec) -> Any:
    buffer = item.buffers[slot]
    assert isinstance(buffer, CudaBuffer)
    return buffer.on_device(spec)


def _misfit(step: GridLaunch, most: int) -> str:
    """Why a launch cannot be made, or nothing."""
    if why := misfit(step.grid, step.block, most):
        return why
    blocks = [g // b for g, b in zip(step.grid, step.block, strict=True)]
    if any(count > top for count, top in zip(blocks, MAX_GRID, strict=False)):
        return f"{blocks} blocks are over the limit of {MAX_GRID}"
    return ""
