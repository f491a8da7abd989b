"""OpenCL devices through pyopencl: every device of every platform, or one part of a processor.

Each device has a context of its own, an in-order compute queue, and an in-order transfer queue a
direction (in one queue, a download that waits for a kernel would hold up the next upload), all
profiled. PoCL makes its machine code at a kernel's first launch with a work-group size: time the
second one.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from crossdock.devices import opencl_cores, topology
from crossdock.devices.base import (
    Bound,
    Buffer,
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
from crossdock.devices.choice import Choice
from crossdock.devices.dialect import misfit, opencl_header
from crossdock.devices.opencl_memory import ClBuffer, ClEvent
from crossdock.devices.opencl_pace import ClPace
from crossdock.devices.opencl_platforms import KIND, found_devices, load
from crossdock.devices.opencl_programs import Programs
from crossdock.devices.program import GridLaunch, Scalar, Step
from crossdock.devices.share import Share
from crossdock.devices.variants import Built
from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime.errors import (
    CompileError,
    DeviceError,
    DeviceLost,
    OutOfMemory,
    Unavailable,
)
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

FIX = "pip install 'crossdock[opencl]'"


def probe() -> Probe:
    """Every OpenCL device there is, or why there is none."""
    try:
        cl = load()
    except ImportError as error:
        return Probe(KIND, (), f"pyopencl cannot be imported ({error})", FIX)
    try:
        found = found_devices()
    except cl.Error as error:
        return Probe(KIND, (), f"no OpenCL driver answers ({error})", FIX)
    if not found:
        fix = f"{FIX}; PoCL also needs a cache folder that can be written (POCL_CACHE_DIR)"
        return Probe(KIND, (), "OpenCL drivers are installed but show no device", fix)
    return Probe(KIND, tuple(_sized(f.info, f.info.compute_units) for f in found))


def open_device(
    device_id: str, *, threads: int | None = None, limit: int | None = None
) -> OpenCLDevice:
    """Open a device.

    ``threads`` confines a processor to that many compute units (device fission); other devices
    are not cut. ``limit`` is a budget in bytes for all buffers together.
    """
    cl = load()
    found = next((f for f in found_devices() if f.info.id == device_id), None)
    if found is None:
        raise Unavailable(
            f"there is no device {device_id!r}; `crossdock probe` lists those there are"
        )
    info, handle = found.info, found.handle
    units = info.compute_units
    try:
        if threads is not None and threads < units and info.details["type"] == "cpu":
            units = max(1, threads)
            handle = handle.create_sub_devices([cl.device_partition_property.EQUALLY, units])[0]
        return OpenCLDevice(cl, _sized(info, units), handle, limit)
    except cl.Error as error:
        raise Unavailable(f"{device_id} cannot be opened with {units} units: {error}") from error


def _sized(info: DeviceInfo, units: int) -> DeviceInfo:
    fingerprint = f"{info.fingerprint}|{units} compute units"
    return replace(info, compute_units=units, fingerprint=fingerprint)


@dataclass(frozen=True)
class ClExecutable(Executable):
    """A launch whose kernel has been built."""

    built: Built[None]

    @property
    def step(self) -> GridLaunch:
        """What is run now: the variant that was taken."""
        return self.built.step

    @property
    def choice(self) -> Choice:
        """Among the variants."""
        return self.built


class _Launch(NamedTuple):
    """A kernel object with its arguments set."""

    kernel: Any
    grid: tuple[int, ...]
    block: tuple[int, ...]
    label: str


class ClCommands(CommandBuffer):
    """Kernels with their arguments set, in order; it keeps their memory alive."""

    def __init__(
        self, programs: Programs, steps: Iterable[_Launch | None] = (), keep: Iterable[Any] = ()
    ) -> None:
        self.steps = list(steps)
        self.roots: set[ClBuffer] = set()
        self._keep = list(keep)
        self._programs = programs
        self._borrowed: list[tuple[GridLaunch, Any]] = []
        self._rebound: dict[frozenset[tuple[int, int]], tuple[ClCommands, dict[int, Any]]] = {}

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def launches(self) -> list[_Launch]:
        """The steps that launch anything."""
        return [step for step in self.steps if step is not None]

    def add(self, item: Bound) -> None:
        """Append a bound step."""
        kernel, memory = self.kernel(item)
        self.steps.append(_launch(kernel, item))
        for buffer in memory.values():
            self._keep.append(buffer.memory)
            self.roots.add(buffer.root)

    def rebound(self, changed: Mapping[int, Bound]) -> ClCommands:
        """The same with other memory for some steps, which is kept alive by who runs them.

        Those that change the same arguments are one, where these are set again each time.
        """
        theirs = {
            (at, i): buffer
            for at, item in changed.items()
            for i, buffer in _memory(item).items()
            if buffer.root not in self.roots
        }
        found = self._rebound.get(frozenset(theirs))
        if found is None:
            made = ClCommands(self._programs, self.steps, self._keep)
            found = made, {at: made.kernel(item)[0] for at, item in changed.items()}
            for at, item in changed.items():
                made.steps[at] = _launch(found[1][at], item)
            self._rebound[frozenset(theirs)] = found
        made, kernels = found
        for (at, i), buffer in theirs.items():
            kernels[at].set_arg(i, buffer.memory)
        made.roots = self.roots
        return made

    def kernel(self, item: Bound) -> tuple[Any, Mapping[int, ClBuffer]]:
        """A kernel object with a step's arguments set, and the memory among these.

        It is the commands' own until they end.
        """
        step, memory = _step(item), _memory(item)
        kernel = self._programs.borrow(step)
        self._borrowed.append((step, kernel))
        for i, arg in enumerate(step.args):
            if isinstance(arg, Scalar):
                kernel.set_arg(i, arg.value.tobytes())  # pyopencl takes twice as long for scalars
            else:
                kernel.set_arg(i, memory[i].memory)
        return kernel, memory

    def __del__(self) -> None:
        for step, kernel in self._borrowed:
            self._programs.give_back(step, kernel)


def _step(item: Bound) -> GridLaunch:
    assert isinstance(item.executable, ClExecutable)
    return item.executable.step


def _launch(kernel: Any, item: Bound) -> _Launch | None:
    """What is launched of a step; an empty grid is not."""
    step = _step(item)
    return _Launch(kernel, step.grid, step.block, item.label) if all(step.grid) else None


def _memory(item: Bound) -> Mapping[int, ClBuffer]:
    """The memory among a step's arguments, by number."""
    found = {}
    for i, arg in enumerate(_step(item).args):
        if not isinstance(arg, Scalar):
            buffer = item.buffers[arg]
            assert isinstance(buffer, ClBuffer)
            found[i] = buffer
    return found


class ClQueue(Queue):
    """An in-order, profiled command queue."""

    def __init__(self, device: OpenCLDevice, role: str) -> None:
        cl = device.cl
        self.device: OpenCLDevice = device
        self.role = role
        self.handle = cl.CommandQueue(
            device.context, properties=cl.command_queue_properties.PROFILING_ENABLE
        )

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> ClEvent:
        """Enqueue every launch; with ``spans``, wait and read the device's time stamps."""
        assert isinstance(commands, ClCommands)
        if any(root.released for root in commands.roots):
            raise DeviceError(f"{self.device.info.id}: a buffer of this run has been released")
        shared = self.device.home is not None
        events = self._enqueue(commands, waits, spans is not None or shared)
        event = ClEvent(self.device, events[-1], commands, events if shared else ())
        if spans is not None and commands.launches:
            event.wait()
            offset = self._clock_offset()
            begin = events[0].profile.start * 1e-9 + offset
            for launch, done in zip(commands.launches, events, strict=True):
                # The next launch waits in the queue already: what it takes to start counts as its.
                end = max(done.profile.end * 1e-9 + offset, begin)
                spans.append(Span(launch.label, begin, end))
                begin = end
        return event

    def timed(self, commands: ClCommands) -> float:
        """Seconds on the device's clock from the first launch's start to the last one's end."""
        events = self._enqueue(commands, (), every=True)
        events[-1].wait()
        return float(events[-1].profile.end - events[0].profile.start) * 1e-9

    def _enqueue(self, commands: ClCommands, waits: Sequence[Event], every: bool) -> list[Any]:
        enqueue, queue = self.device.cl.enqueue_nd_range_kernel, self.handle
        wait_for = self._wait_for(waits)
        events: list[Any] = []
        event = None
        if self.device.home is not None:
            opencl_cores.settle(self.device.home)
        try:
            for launch in commands.launches:
                event = enqueue(queue, launch.kernel, launch.grid, launch.block, None, wait_for)
                wait_for = None
                if every:
                    events.append(event)
            if event is None:
                event = self.device.cl.enqueue_marker(queue, wait_for)
            queue.flush()
        except self.device.cl.Error as error:
            raise self.device.failure(error) from error
        return events or [event]

    def _wait_for(self, waits: Sequence[Event]) -> list[Any] | None:
        """Events of this context go to the driver; for others the caller waits."""
        events = []
        for event in waits:
            if isinstance(event, ClEvent) and event.device is self.device:
                events.append(event.event)
            else:
                event.wait()
        return events or None

    def _clock_offset(self) -> float:
        """Seconds to add to the device's clock for ``time.perf_counter``: best of three markers."""
        best, offset = math.inf, 0.0
        for _ in range(3):
            before = time.perf_counter()
            marker = self.device.cl.enqueue_marker(self.handle)
            marker.wait()
            after = time.perf_counter()
            if after - before < best:
                best, offset = after - before, (before + after) / 2 - marker.profile.end * 1e-9
        return offset

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> ClEvent:
        """Copy a C-contiguous host array into a buffer."""
        assert isinstance(target, ClBuffer)
        return self._copy(target, source, waits, upload=True)

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> ClEvent:
        """Copy a buffer into a C-contiguous host array."""
        assert isinstance(source, ClBuffer)
        return self._copy(source, target, waits, upload=False)

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> ClEvent:
        """Copy a buffer into another."""
        assert isinstance(target, ClBuffer)
        assert isinstance(source, ClBuffer)
        check_copy(self.device, target, source)
        nbytes = source.nbytes
        cl, wait_for = self.device.cl, self._wait_for(waits)
        try:
            if nbytes:
                event = cl.enqueue_copy(
                    self.handle, target.memory, source.memory, byte_count=nbytes, wait_for=wait_for
                )
            else:
                event = cl.enqueue_marker(self.handle, wait_for)
            self.handle.flush()
        except cl.Error as error:
            raise self.device.failure(error) from error
        return ClEvent(self.device, event, (target, source))

    def _copy(
        self, buffer: ClBuffer, array: Array, waits: Sequence[Event], *, upload: bool
    ) -> ClEvent:
        cl = self.device.cl
        if array.nbytes > buffer.nbytes or not array.flags.c_contiguous:
            raise DeviceError(
                f"{self.device.info.id}: cannot copy {array.nbytes} bytes in C order between the "
                f"host and a buffer of {buffer.nbytes}"
            )
        wait_for = self._wait_for(waits)
        try:
            if array.nbytes == 0:
                event = cl.enqueue_marker(self.handle, wait_for)
            else:
                flat, memory = array.reshape(-1).view(np.uint8), buffer.memory
                ends = (memory, flat) if upload else (flat, memory)
                event = cl.enqueue_copy(self.handle, *ends, is_blocking=False, wait_for=wait_for)
            self.handle.flush()
        except cl.Error as error:
            raise self.device.failure(error) from error
        return ClEvent(self.device, event, (array, buffer))

    def finish(self) -> None:
        """Block until everything submitted is done."""
        try:
            self.handle.finish()
        except self.device.cl.Error as error:
            raise self.device.failure(error) from error

    def flush(self) -> None:
        """Hand what was submitted to the device."""
        self.handle.flush()


class OpenCLDevice(Device):
    """One OpenCL device, or one part of it, with a context of its own."""

    submits_at_once = True

    def __init__(self, cl: Any, info: DeviceInfo, handle: Any, limit: int | None = None) -> None:
        self.cl = cl
        self.info = info
        self.context = opencl_cores.context(cl, handle)
        self.home = opencl_cores.home(handle)
        self.budget = info.memory_bytes if limit is None else min(limit, info.memory_bytes)
        self._handle = handle
        header = opencl_header(info.subgroup)
        self._programs = Programs(cl, self.context, handle, info.id, header)
        self._lock = threading.Lock()
        self._pacing = threading.Lock()
        self._pace: ClPace | None = None
        self._share = Share(info.id, self.budget, info.memory_bytes, info.physical_id)
        self._share.reclaim = weakref.WeakMethod(self._reclaim)
        self.gauge = self._share.gauge
        self.freed: deque[int] = deque()  # sizes; finalizers append, and may run anywhere
        self.queues: Mapping[str, ClQueue] = {
            role: ClQueue(self, role) for role in ("compute", "upload", "download")
        }

    def failure(self, error: Any) -> DeviceError:
        """The error of ours for one of pyopencl's."""
        code, where = self.cl.status_code, self.info.id
        memory = (
            code.MEM_OBJECT_ALLOCATION_FAILURE,
            code.OUT_OF_HOST_MEMORY,
            code.INVALID_BUFFER_SIZE,
        )
        if error.code in memory:
            return OutOfMemory(f"{where}: {error}; use smaller inputs, or another device")
        if error.code in (code.DEVICE_NOT_AVAILABLE, code.INVALID_COMMAND_QUEUE):
            return DeviceLost(f"{where}: {error}")
        return DeviceError(f"{where}: {error}")

    def _reclaim(self, wanted: int) -> None:  # noqa: ARG002 - the driver waits for memory in use
        """Count memory that was freed: finalizers append it, and may take no lock."""
        with suppress(IndexError):
            while True:
                self._share.give(self.freed.popleft())

    def allocate(self, nbytes: int, label: str = "") -> ClBuffer:
        """Allocate device memory within the budget."""
        self._reclaim(nbytes)
        self._share.take(nbytes, label)
        what = f"{nbytes} bytes wanted{f' for {label}' if label else ''}"
        try:
            memory = self.cl.Buffer(self.context, self.cl.mem_flags.READ_WRITE, max(nbytes, 1))
        except self.cl.Error as error:
            self.freed.append(nbytes)
            limit = self.info.max_allocation
            raise OutOfMemory(
                f"{self.info.id}: {what}; one buffer may have {limit}: {error}"
            ) from error
        return ClBuffer(self, memory, nbytes)

    def compile(self, step: Step) -> ClExecutable:
        """Build a kernel and check it against the launch."""
        where = self.info.id
        if not isinstance(step, GridLaunch):
            raise CompileError(f"{where}: runs grid kernels only, not {type(step).__name__}")
        return ClExecutable(Built(step, self.info.fingerprint, self._build))

    def _build(self, step: GridLaunch) -> None:
        """Have a launch's kernel object once, which is lent again when it is recorded."""
        where = self.info.id
        kernel = self._programs.borrow(step)
        if kernel.num_args != len(step.args):
            raise CompileError(
                f"{where}: kernel {step.entry} takes {kernel.num_args} arguments, not "
                f"{len(step.args)}",
                source=step.source,
            )
        self._check_block(step, kernel)
        self._programs.give_back(step, kernel)

    def _check_block(self, step: GridLaunch, kernel: Any) -> None:
        ask = self.cl.kernel_work_group_info
        most = kernel.get_work_group_info(ask.WORK_GROUP_SIZE, self._handle)
        fixed = tuple(kernel.get_work_group_info(ask.COMPILE_WORK_GROUP_SIZE, self._handle))
        block = (*step.block, 1, 1)[:3]
        why = misfit(step.grid, step.block, most)
        if not why and any(fixed) and fixed != block:
            why = f"block {block} is not the {fixed} that its text says"
        if why:
            raise CompileError(f"{self.info.id}: kernel {step.entry}: {why}", source=step.source)

    def record(self, bound: Sequence[Bound]) -> ClCommands:
        """Give each step a kernel object of its own, with its arguments set."""
        commands = ClCommands(self._programs)
        for item in bound:
            if JOBS.ending:  # a kernel object takes up to a millisecond
                raise no_more(f"recording for {self.info.id}")
            try:
                commands.add(item)
            except self.cl.Error as error:
                raise self.failure(error) from error
        return commands

    def rebind(self, commands: CommandBuffer, changed: Mapping[int, Bound]) -> ClCommands:
        """Give some steps other kernel objects, with their arguments set."""
        assert isinstance(commands, ClCommands)
        try:
            return commands.rebound(changed)
        except self.cl.Error as error:
            raise self.failure(error) from error

    def map(self, buffer: Buffer, spec: TensorSpec) -> Array:
        """The buffer as a host array, for reading and writing (no copy with Cap.MAP).

        Blocks until uploads are done; kernels must not use the buffer until ``unmap``.
        """
        assert isinstance(buffer, ClBuffer)
        flags = self.cl.map_flags.READ | self.cl.map_flags.WRITE
        queue = self.queues["upload"].handle
        try:
            array, _ = self.cl.enqueue_map_buffer(
                queue, buffer.memory, flags, 0, spec.dims, to_numpy(spec.dtype)
            )
        except self.cl.Error as error:
            raise self.failure(error) from error
        mapped: Array = array
        return mapped

    def unmap(self, array: Array) -> ClEvent:
        """End a mapping; the device sees what was written once the event is done."""
        base: Any = array.base
        return ClEvent(self, base.release(self.queues["upload"].handle))

    def pace(self) -> float:
        """The pace of the processor, where the device is one."""
        if self.info.resource_group != topology.HOST_CPU:
            return 1.0
        with self._pacing:
            if self._pace is None:
                self._pace = ClPace(self)
            return self._pace.take()

    def close(self) -> None:
        """Wait for the queues, end their threads, and forget programs."""
        for queue in self.queues.values():
            queue.finish()
            if queue.feeder is not None:
                queue.feeder.stop()
        self._pace = None
        self._programs.clear()
