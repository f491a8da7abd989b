"""The queues of an OpenCL device, and what runs on them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossdock.devices import opencl_cores
from crossdock.devices.base import (
    Bound,
    Buffer,
    CommandBuffer,
    Event,
    Executable,
    Queue,
    Span,
    check_copy,
)
from crossdock.devices.choice import Choice
from crossdock.devices.opencl_memory import ClBuffer, ClEvent
from crossdock.devices.opencl_programs import Programs
from crossdock.devices.program import GridLaunch, Scalar
from crossdock.devices.variants import Built
from crossdock.runtime.errors import DeviceError
from crossdock.runtime.tensor import Array

if TYPE_CHECKING:
    from crossdock.devices.opencl import OpenCLDevice


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
