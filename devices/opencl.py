"""OpenCL devices through pyopencl: every device of every platform, or one part of a processor.

Each device has a context of its own, an in-order compute queue, and an in-order transfer queue a
direction (in one queue, a download that waits for a kernel would hold up the next upload), all
profiled. PoCL makes its machine code at a kernel's first launch with a work-group size: time the
second one.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from crossdock.devices import opencl_cores, topology
from crossdock.devices.base import (
    Bound,
    Buffer,
    CommandBuffer,
    Device,
    DeviceInfo,
    Probe,
)
from crossdock.devices.dialect import misfit, opencl_header
from crossdock.devices.opencl_memory import ClBuffer, ClEvent
from crossdock.devices.opencl_pace import ClPace
from crossdock.devices.opencl_platforms import KIND, found_devices, load
from crossdock.devices.opencl_programs import Programs
from crossdock.devices.opencl_queue import ClCommands, ClExecutable, ClQueue
from crossdock.devices.program import GridLaunch, Step
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
