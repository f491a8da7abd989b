"""The contracts every device kind fulfils: DeviceInfo, Device, Buffer, Queue, Event.

A device has *queues* (``compute``, and ``upload``/``download`` where transfers have their own).
Driver work is asynchronous: a queue call returns an ``Event`` (or None when it already finished).
Host-side order between queues of different drivers is kept by a ``timeline``.
"""

from __future__ import annotations

import enum
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from crossdock.devices.choice import Choice, Timing
from crossdock.devices.codec import since
from crossdock.devices.gauge import Gauge
from crossdock.devices.program import Step
from crossdock.devices.worker import Worker as Worker
from crossdock.runtime import settings
from crossdock.runtime.errors import DeviceError, DeviceHung, DeviceLost
from crossdock.runtime.tensor import Array, TensorSpec

T = TypeVar("T")


class Cap(enum.StrEnum):
    """What a device can do; capability is data, never a type test."""

    GRID = "grid"  # runs GridLaunch steps
    ARRAY = "array"  # runs ArrayCall steps
    NATIVE = "native"  # runs NativeCall steps
    HOST_MEMORY = "host_memory"  # its buffers are host memory (Buffer.array works)
    MAP = "map"  # buffers can be mapped into host memory without a copy
    EVENTS = "events"  # asynchronous, ordered by driver events
    PROFILING = "profiling"  # events carry device time stamps
    COPY_QUEUES = "copy_queues"  # transfers have queues of their own
    REPLAY = "replay"  # launches that nothing parts are captured once, and replayed as a graph
    REBIND = "rebind"  # commands can be had again with other memory for some of their steps
    FLOAT16 = "float16"  # arithmetic in float16
    FLOAT64 = "float64"  # arithmetic in float64
    VIRTUAL_TIME = "virtual_time"  # simulated: times are on a virtual clock


@dataclass(frozen=True)
class DeviceInfo:
    """Identity, limits and capabilities of a device.

    ``physical_id`` is the same for one card or processor seen through two drivers (PCI address or
    UUID where there is one); ``resource_group`` is the same for devices that share compute, such
    as a CPU and a CPU-backed OpenCL platform. ``fingerprint`` keys measurements: model, driver,
    clock and thread count, never a host name. Sizes in bytes. ``subgroup`` is the number of work
    items that shuffle values among them, where grid kernels can count on one, and 1 elsewhere.
    """

    id: str
    kind: str
    name: str
    vendor: str
    driver: str
    physical_id: str
    resource_group: str
    compute_units: int
    memory_bytes: int
    caps: frozenset[Cap]
    fingerprint: str
    max_allocation: int = 0
    local_memory: int = 0
    max_work_group: int = 0
    alignment: int = 64
    details: Mapping[str, str] = field(default_factory=dict, hash=False)
    subgroup: int = since(1)


@dataclass(frozen=True)
class Probe:
    """What looking for a device kind found: devices, or why there are none and what to install."""

    kind: str
    devices: tuple[DeviceInfo, ...] = ()
    reason: str = ""
    fix: str = ""


class Event(ABC):
    """Completion of driver work."""

    @abstractmethod
    def wait(self) -> None:
        """Block until the work is done; raises DeviceError if it failed."""

    @abstractmethod
    def done(self) -> bool:
        """True when the work is done or failed; never blocks."""

    def pause(self, seconds: float) -> None:
        """Let some time pass between looks at ``done``.

        Where a driver lets threads that wait work, this one works at a part instead, however long
        that takes.
        """
        time.sleep(seconds)

    def span(self) -> tuple[float, float] | None:
        """Start and end on the device's clock in seconds, where it is profiled and done."""
        return None


class Buffer(ABC):
    """Device memory of ``nbytes`` bytes; freed with the last reference or by ``release``."""

    device: Device
    nbytes: int

    @abstractmethod
    def view(self, offset: int, nbytes: int) -> Buffer:
        """A window into this buffer; ``offset`` is a multiple of ``DeviceInfo.alignment``."""

    @abstractmethod
    def release(self) -> None:
        """Give the memory back now; later use is an error."""

    def place(self) -> int | None:
        """Where the memory begins, on devices whose rebound commands do not keep it alive.

        Commands bound to it are good for whatever lies there later, of as many bytes. None on
        other devices.
        """
        return None

    def array(self, spec: TensorSpec) -> Array:
        """The memory as a host array without a copy (only with Cap.HOST_MEMORY)."""
        raise DeviceError(f"{self.device.info.id} has no host memory to view as {spec}")


@dataclass(frozen=True)
class Borrowed:
    """Memory of another library on a device, C-contiguous; ``ready`` says when it is written.

    The buffer keeps the owner of the memory alive.
    """

    buffer: Buffer
    spec: TensorSpec
    ready: Event | None = None


class Executable:
    """A step compiled for a device; independent of buffers."""

    @property
    def choice(self) -> Choice | None:
        """What it leaves to choose among, where that is in this process."""
        return None

    @property
    def said(self) -> str:
        """By which algorithm it runs, and how that was chosen; "" where there is but one."""
        return "" if self.choice is None else self.choice.said


@dataclass(frozen=True)
class Bound:
    """An executable with a buffer for each slot it names."""

    executable: Executable
    buffers: Mapping[Any, Buffer]  # Slot -> Buffer
    label: str = ""
    seconds: float = 0.0  # predicted; simulated devices take it as the duration


def check_copy(device: Device, target: Buffer, source: Buffer) -> None:
    """Refuse a copy on a device that cannot make it; raises DeviceError."""
    name, other = device.info.id, source.device
    if other is not device and not device.copies_from(other):
        raise DeviceError(f"{name} copies nothing from {other.info.id}: copy through the host")
    if source.nbytes > target.nbytes:
        raise DeviceError(
            f"{name}: cannot copy a buffer of {source.nbytes} bytes to one of {target.nbytes}"
        )


class CommandBuffer(ABC):
    """A sequence of bound steps that a queue replays, without Python between steps if possible."""

    @abstractmethod
    def __len__(self) -> int: ...

    def stop(self, on: bool) -> None:  # noqa: B027 - most devices cannot; a switch
        """Make an execution that nobody waits for end early, where it can, or run whole again."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What executions had to do without, and why: a line each."""
        return ()


@dataclass
class Span:
    """Measured time of one bound step: seconds on the clock of ``time.perf_counter``."""

    label: str
    start: float
    end: float


class Queue(ABC):
    """An in-order queue of a device. Calls are made by one thread at a time (the queue's worker).

    ``waits`` are events of the same driver, waited for on the device without blocking the caller.
    """

    device: Device
    role: str
    feeder: Worker | None = None  # made by Device.worker at need

    @abstractmethod
    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> Event | None:
        """Run a command buffer. With ``spans``, time each step (may synchronise after each)."""

    def prepared(self, commands: CommandBuffer) -> Callable[[], object]:
        """``execute(commands)``, with what it looks up each time looked up beforehand."""
        return partial(self.execute, commands)

    def brief(self, commands: CommandBuffer) -> Callable[[], object] | None:  # noqa: ARG002
        """``prepared`` for commands that take some microseconds; None where there is none better.

        It may keep the interpreter lock: threads that let it go at every step of such work mostly
        wait to get it back.
        """
        return None

    @abstractmethod
    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> Event | None:
        """Copy a C-contiguous host array into a buffer; ``source`` must live until the event."""

    @abstractmethod
    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> Event | None:
        """Copy a buffer into a C-contiguous host array."""

    @abstractmethod
    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> Event | None:
        """Copy all of a buffer into one of this device, past the host.

        On any queue from this device's own memory; on the upload queue from a device that this one
        ``copies_from``, and then ``waits`` may be events of either device.
        """

    @abstractmethod
    def finish(self) -> None:
        """Block until everything submitted is done."""

    def flush(self) -> None:  # noqa: B027 - a queue that submits at once has nothing to do here
        """Hand what was submitted to the device now, so that others may wait for its events."""


class Device(ABC):
    """An opened device."""

    info: DeviceInfo
    queues: Mapping[str, Queue]  # "compute", "upload", "download"; may be the same object
    gauge: Gauge  # of the device's memory
    gone: str = ""
    """Why the device is lost; from then on nothing of it is called, and its buffers are void."""
    submits_at_once: bool = False
    """Its queues take commands from any thread without waiting for work or copying data."""
    apart: bool = False
    """It works in a process of its own: once lost, nothing of it touches the memory of this one."""

    def copies_from(self, other: Device) -> str:  # noqa: ARG002
        """How the upload queue copies from another device's memory, in a few words.

        Empty where it does not: then values go through the host's arena.
        """
        return ""

    @abstractmethod
    def allocate(self, nbytes: int, label: str = "") -> Buffer:
        """Allocate; raises OutOfMemory naming the bytes wanted and free."""

    def resident(self, array: Array, label: str = "") -> Buffer:
        """Memory with an array's values that nothing writes to; raises OutOfMemory.

        A device may use a read-only array's own memory where that is as good as its own.
        """
        return self.upload(array, label)

    def upload(self, array: Array, label: str = "") -> Buffer:
        """New memory that has an array's values when it returns; raises OutOfMemory."""
        source = np.ascontiguousarray(array)
        buffer = self.allocate(max(1, source.nbytes), label)

        def write(queue: Queue) -> None:
            event = queue.write(buffer, source)
            if event is not None:
                event.wait()

        if source.nbytes:
            self.call("upload", write, settings.watchdog() + source.nbytes / SLOWEST)
        return buffer

    def pinned(self, array: Array) -> Array:
        """The bytes of a uint8[n] in host memory that uploads take fastest, which nobody writes to.

        The array itself where one is as good as any; raises OutOfMemory.
        """
        return array

    def holds(self, value: object) -> bool:  # noqa: ARG002 - most devices share with nobody
        """Whether an array of another library lies in this device's memory."""
        return False

    def borrow(self, value: object) -> Borrowed:
        """The memory of an array that this device ``holds``, without a copy.

        Raises:
            BufferError: it cannot be shared, and why.
        """
        raise BufferError(f"{self.info.id} takes no memory of {type(value).__name__}")

    def lend(self, buffer: Buffer, spec: TensorSpec) -> Any:  # noqa: ARG002
        """An array of another library in this device's memory, which it keeps alive.

        It speaks DLPack, and on a CUDA device the CUDA array interface. What lies in the buffer
        is there already.

        Raises:
            BufferError: the device has no memory that others can use.
        """
        raise BufferError(
            f"memory of {self.info.id} is shared by no protocol; take a copy with numpy(), or feed "
            "the array to a session on the same device"
        )

    @abstractmethod
    def compile(self, step: Step) -> Executable:
        """Compile a step; raises CompileError with the compiler's log. Results are cached."""

    def compile_ahead(  # noqa: B027 - most devices' compilers gain nothing by it
        self,
        steps: Iterable[Step],
        until: float = math.inf,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compile at once what ``compile`` will be asked for, which says what goes wrong.

        As much as there is time for ``until`` then, on the clock of ``time.monotonic``, in the
        order given; ``progress`` is told how many of how many found so far are done.
        """

    def algorithms(self, executable: Executable) -> int:
        """How many algorithms there are to choose among for a step; it runs by the first so far.

        They are a library's, or variants of a kernel of our own. 0 where there is nothing to
        choose, or it was chosen before, by whichever process.
        """
        choice = executable.choice
        return 0 if choice is None else choice.algorithms()

    def take_algorithm(self, executable: Executable, index: int) -> None:
        """Run a step by another of its ``algorithms`` where it is recorded from now on.

        Raises:
            CompileError: it does not build.
        """
        if (choice := executable.choice) is not None:
            choice.take(index)

    def keep_algorithm(self, executable: Executable, index: int, timings: Sequence[Timing]) -> None:
        """Record a step by one of its ``algorithms`` from now on, in every process.

        ``timings`` are those of all of them, that they may be told of.
        """
        if (choice := executable.choice) is not None:
            choice.keep(index, timings)

    @abstractmethod
    def record(self, bound: Sequence[Bound]) -> CommandBuffer:
        """Make a command buffer from bound steps."""

    def rebind(self, commands: CommandBuffer, changed: Mapping[int, Bound]) -> CommandBuffer:
        """Commands of ``record`` with other memory for some of their steps, by place.

        What was made for the other steps is shared, so that one of the two is executed at a time.
        Only on devices with Cap.REBIND.
        """
        raise DeviceError(
            f"{self.info.id} binds no memory anew to {len(changed)} of {len(commands)} steps"
        )

    @abstractmethod
    def close(self) -> None:
        """Wait for the queues and release everything."""

    def abandon(self) -> None:  # noqa: B027 - what a driver is at in this process cannot be ended
        """End what the device is at, where that can be done; called once when it is lost."""

    def pace(self) -> float:
        """How long arithmetic takes now, relative to a fixed reference: 2 is half as fast.

        1 for devices whose speed does not depend on what runs beside them.
        """
        return 1.0

    def worker(self, role: str) -> Worker:
        """The thread that feeds the queue of this role (one a distinct queue), started at need."""
        queue = self.queues[role]
        with _WORKERS_LOCK:
            if queue.feeder is None:
                queue.feeder = Worker(f"crossdock {self.info.id} {role}")
                if self.gone:
                    queue.feeder.retire()
            return queue.feeder

    def retire(self) -> None:
        """Keep no thread for a queue that has nothing to do; called once when it is lost."""
        with _WORKERS_LOCK:
            feeders = {queue.feeder for queue in self.queues.values()}
        for feeder in feeders:
            if feeder is not None:
                feeder.retire()

    def renew(self, role: str) -> None:
        """Give the queue of this role another thread, which does what its own has not begun.

        For a thread that waits for what never comes; it ends when that comes after all.
        """
        queue = self.queues[role]
        with _WORKERS_LOCK:
            stuck, queue.feeder = queue.feeder, None
        if stuck is not None:
            worker = self.worker(role)
            for job in stuck.leave():
                worker.post(job)

    def call(self, role: str, job: Callable[[Queue], T], limit: float = math.inf) -> T:
        """Run ``job`` with the queue of this role on its worker; returns or raises what it does.

        For work beside the runs of a plan, which may use the queue at the same time.

        Raises:
            DeviceHung: it has not ended after ``limit`` seconds.
            DeviceLost: the device was lost meanwhile.
        """
        queue, worker = self.queues[role], self.worker(role)
        if threading.current_thread() is worker.thread:
            return job(queue)
        done = threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(job(queue))
            except BaseException as error:  # noqa: BLE001 - raised where it was asked for
                errors.append(error)
            finally:
                done.set()

        worker.post(run)
        left = limit  # counted in turns: the process may be stopped meanwhile
        while not done.wait(min(TURN, left)):
            name, left = self.info.id, left - TURN
            if self.gone:
                raise DeviceLost(f"{name} was lost ({self.gone})", device=name)
            if left <= 0:
                raise DeviceHung(f"{name}/{role} does nothing for {limit:.1f} s", device=name)
        if errors:
            raise errors.pop()
        return results.pop()


_WORKERS_LOCK = threading.Lock()
TURN = 0.1
"""Seconds that who waits for a device does not look whether it is lost."""
SLOWEST = 1e7
"""Bytes a second that a device takes at the least, or it hangs."""
