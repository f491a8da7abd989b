"""Simulated devices: right answers from numpy, times on a virtual clock, faults on demand.

A ``SimSpec`` says how fast a device is, how much memory it has, how it is linked to the host and
what goes wrong when. ``register`` makes it the device ``sim:NAME``. Nothing sleeps: each queue has
a virtual clock that a step advances by its predicted seconds, or by the roofline where none was
predicted. A wait takes the later of two clocks, across simulated devices too: a thread that waited
for an event submits no earlier than that event's end.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    check_copy,
)
from crossdock.devices.host_memory import ALIGNMENT, Budget, HostBuffer, copy_bytes
from crossdock.devices.program import ArrayCall, Step, Work
from crossdock.devices.share import Share
from crossdock.runtime.errors import (
    CompileError,
    DeviceError,
    DeviceLost,
    OutOfMemory,
    Unavailable,
)
from crossdock.runtime.tensor import Array, TensorSpec

KIND = "sim"
CAPS = frozenset(
    {Cap.ARRAY, Cap.EVENTS, Cap.PROFILING, Cap.COPY_QUEUES, Cap.FLOAT16, Cap.FLOAT64}
    | {Cap.REBIND, Cap.VIRTUAL_TIME}
)
FAULTS = ("oom", "launch", "lost", "slow", "hang")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong at the ``step``-th step (from 0) that a device executes after it is opened.

    ``oom`` raises OutOfMemory and ``launch`` DeviceError, both once; ``lost`` raises DeviceLost
    then and ever after; ``slow`` makes this and every later step take ``factor`` times as long;
    ``hang`` gives an event that is done only when the device is closed, and then has failed; so
    do all events of its queue that follow.
    """

    kind: str
    step: int
    factor: float = 10.0

    def __post_init__(self) -> None:
        if self.kind not in FAULTS or self.step < 0 or not self.factor > 0:
            raise DeviceError(
                f"{self} is no fault: kind is one of {', '.join(FAULTS)}, step at least 0, factor "
                "greater than 0"
            )


@dataclass(frozen=True)
class SimSpec:
    """A simulated device.

    ``speed_flops`` operations a second, ``bandwidth`` bytes a second of its memory, ``launch_s``
    seconds before each step; ``link_bandwidth`` bytes a second and ``link_latency`` seconds between
    it and the host, in each direction. ``physical_id`` names the card that it is one way to, whose
    memory and compute it shares with the other ways; empty, it is a card of its own. An empty
    ``resource_group`` is the card's. It copies from the simulated devices named in ``peers`` by
    itself, with ``peer_bandwidth`` after ``peer_latency``.
    """

    name: str
    speed_flops: float = 1e12
    bandwidth: float = 1e11
    memory_bytes: int = 4 << 30
    launch_s: float = 5e-6
    link_bandwidth: float = 1e10
    link_latency: float = 1e-5
    faults: tuple[Fault, ...] = ()
    resource_group: str = ""
    physical_id: str = ""
    peers: tuple[str, ...] = ()
    peer_bandwidth: float = 5e10
    peer_latency: float = 5e-6

    @property
    def id(self) -> str:
        """The device id."""
        return f"{KIND}:{self.name}"

    def seconds(self, work: Work) -> float:
        """The roofline (Williams et al. 2009) plus the launch."""
        return self.launch_s + max(work.flops / self.speed_flops, work.bytes / self.bandwidth)

    def transfer_seconds(self, nbytes: int) -> float:
        """Time of a transfer over the link."""
        return self.link_latency + nbytes / self.link_bandwidth

    def peer_seconds(self, nbytes: int) -> float:
        """Time of a copy from another device's memory."""
        return self.peer_latency + nbytes / self.peer_bandwidth


_SPECS: dict[str, SimSpec] = {}
_ADOPTED: dict[str, Callable[[], Device]] = {}
_ADOPTED_INFO: dict[str, DeviceInfo] = {}


def register(spec: SimSpec) -> SimSpec:
    """Make ``sim:NAME`` a device; an earlier one of that name is replaced for later openings."""
    rates = (spec.speed_flops, spec.bandwidth, spec.link_bandwidth, spec.peer_bandwidth)
    if not spec.name or not all(r > 0 and math.isfinite(r) for r in rates):
        raise DeviceError(f"{spec.id}: a simulated device needs a name and rates greater than 0")
    _SPECS[spec.name] = spec
    return spec


def adopt(device: Device, opened: Callable[[], Device] | None = None) -> None:
    """Make an opened device that changes a real one ``sim:NAME``, which is its id already.

    ``opened`` gives the device for each opening, where it is not the same one every time.
    """
    name = device.info.id.removeprefix(f"{KIND}:")
    _ADOPTED[name] = opened or (lambda: device)
    _ADOPTED_INFO[name] = device.info


def unregister(name: str) -> None:
    """Forget ``sim:NAME``; devices already open go on."""
    _SPECS.pop(name, None)
    _ADOPTED.pop(name, None)
    _ADOPTED_INFO.pop(name, None)


def spec_of(device_id: str) -> SimSpec | None:
    """What a registered device is, by its id; None where it changes a real one, or is none."""
    return _SPECS.get(device_id.removeprefix(f"{KIND}:"))


def probe() -> Probe:
    """List the registered devices."""
    infos = (*(_info(spec) for spec in _SPECS.values()), *_ADOPTED_INFO.values())
    if not infos:
        return Probe(
            KIND, (), "no simulated device is registered", "register one: devices.sim.register"
        )
    return Probe(KIND, infos)


def open_device(
    device_id: str,
    *,
    threads: int | None = None,  # noqa: ARG001 - the kinds share one signature
    limit: int | None = None,
) -> Device:
    """Open a registered device; ``threads`` means nothing here, ``limit`` is a budget in bytes."""
    name = device_id.partition(":")[2]
    if name in _ADOPTED:
        return _ADOPTED[name]()
    spec = _SPECS.get(name)
    if spec is None:
        there = ", ".join(info.id for info in probe().devices) or "none"
        raise Unavailable(f"there is no device {device_id!r}; registered are: {there}")
    return SimDevice(spec, limit)


def _info(spec: SimSpec) -> DeviceInfo:
    rates = f"{spec.speed_flops:g} flop/s, {spec.bandwidth:g} B/s, {spec.launch_s:g} s a launch"
    link = f"{spec.link_bandwidth:g} B/s, {spec.link_latency:g} s"
    return DeviceInfo(
        id=spec.id,
        kind=KIND,
        name=f"simulated device {spec.name}",
        vendor="crossdock",
        driver="virtual clock",
        physical_id=spec.physical_id or spec.id,
        resource_group=spec.resource_group or spec.physical_id or spec.id,
        compute_units=1,
        memory_bytes=spec.memory_bytes,
        caps=CAPS,
        fingerprint=f"{spec.id}|{rates}|{link}",
        max_allocation=spec.memory_bytes,
        alignment=ALIGNMENT,
        details={"rates": rates, "link": link},
    )


class _ThreadClock(threading.local):
    """The virtual time that this thread has seen: it submits nothing earlier."""

    seen = 0.0


_THREAD = _ThreadClock()


class SimEvent(Event):
    """Work on a virtual clock; done at once unless it hangs."""

    __slots__ = ("_hang", "device", "end", "start")

    def __init__(
        self, device: SimDevice, start: float, end: float, hang: threading.Event | None = None
    ) -> None:
        self.device = device
        self.start = start
        self.end = end
        self._hang = hang

    def wait(self) -> None:
        """Take the waiting thread to this event's end; raises DeviceLost after a hang."""
        if self._hang is not None:
            self._hang.wait()
            raise DeviceLost(f"{self.device.info.id} hung and was closed")
        _THREAD.seen = max(_THREAD.seen, self.end)

    def done(self) -> bool:
        """True unless it hangs."""
        return self._hang is None or self._hang.is_set()

    def span(self) -> tuple[float, float] | None:
        """Start and end in virtual seconds."""
        return None if self._hang is not None else (self.start, self.end)


class SimBuffer(HostBuffer):
    """Memory of a simulated device; the host reaches it through transfers alone."""

    device: SimDevice


@dataclass(frozen=True)
class SimExecutable(Executable):
    """An array call and its seconds by the roofline."""

    step: ArrayCall
    seconds: float


@dataclass(frozen=True)
class _Timed:
    """A recorded step with its arrays and its virtual duration."""

    step: ArrayCall
    ins: list[Any]
    outs: list[Any]
    label: str
    seconds: float

    def run(self) -> None:
        self.step.fn(np, self.ins, self.outs)


class SimCommands(CommandBuffer):
    """Recorded steps."""

    def __init__(self, steps: Sequence[_Timed]) -> None:
        self.steps = tuple(steps)

    def __len__(self) -> int:
        return len(self.steps)


class SimQueue(Queue):
    """An in-order queue with a virtual clock."""

    def __init__(self, device: SimDevice, role: str) -> None:
        self.device: SimDevice = device
        self.role = role
        self.clock = 0.0
        self._stuck: threading.Event | None = None  # what hangs here holds up all that follows

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> SimEvent:
        """Compute the steps now and account their virtual time."""
        assert isinstance(commands, SimCommands)
        begin = self._begin(waits)
        with np.errstate(all="ignore"):
            for timed in commands.steps:
                factor, hung = self.device.next_step()
                self._stuck = self._stuck or hung
                timed.run()
                start, self.clock = self.clock, self.clock + factor * timed.seconds
                if spans is not None:
                    spans.append(Span(timed.label, start, self.clock))
        return SimEvent(self.device, begin, self.clock, self._stuck)

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> SimEvent:
        """Copy a C-contiguous array over the link."""
        assert isinstance(target, SimBuffer)
        begin = self._begin(waits)
        copy_bytes(target.first(source.nbytes), source)
        return self._moved(begin, self.device.spec.transfer_seconds(source.nbytes))

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> SimEvent:
        """Copy at the speed of the memory, or over a peer's link; raises DeviceLost."""
        assert isinstance(target, SimBuffer)
        assert isinstance(source, SimBuffer)
        check_copy(self.device, target, source)
        begin = self._begin(waits)
        source.device.check()
        copy_bytes(target.first(source.nbytes), source.bytes())
        spec, nbytes = self.device.spec, source.nbytes
        own = source.device is self.device
        moved = Work(0.0, float(nbytes), float(nbytes))
        return self._moved(begin, spec.seconds(moved) if own else spec.peer_seconds(nbytes))

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> SimEvent:
        """Copy a buffer over the link into a C-contiguous array."""
        assert isinstance(source, SimBuffer)
        begin = self._begin(waits)
        copy_bytes(target, source.first(target.nbytes))
        return self._moved(begin, self.device.spec.transfer_seconds(target.nbytes))

    def finish(self) -> None:
        """Take the calling thread to this queue's clock; raises DeviceLost after a hang."""
        self.device.check()
        if self._stuck is not None:
            SimEvent(self.device, self.clock, self.clock, self._stuck).wait()
        _THREAD.seen = max(_THREAD.seen, self.clock)

    def _begin(self, waits: Sequence[Event]) -> float:
        self.device.check()
        ends = [event.end for event in waits if isinstance(event, SimEvent)]
        for event in waits:
            if not isinstance(event, SimEvent) or event.span() is None:
                event.wait()
        self.clock = max([self.clock, _THREAD.seen, *ends])
        return self.clock

    def _moved(self, begin: float, seconds: float) -> SimEvent:
        self.clock = begin + seconds
        return SimEvent(self.device, begin, self.clock, self._stuck)


class SimDevice(Device):
    """A simulated device."""

    def __init__(self, spec: SimSpec, limit: int | None = None) -> None:
        self.spec = spec
        self.info = _info(spec)
        self._all = tuple(SimQueue(self, role) for role in ("compute", "upload", "download"))
        self.queues = {queue.role: queue for queue in self._all}
        capacity = spec.memory_bytes
        share = Share(spec.id, min(limit or capacity, capacity), capacity, spec.physical_id)
        self._budget = Budget(share)
        self.gauge = self._budget.gauge
        self._lock = threading.Lock()
        self._steps = 0
        self._factor = 1.0
        self._lost = ""
        self._hangs: weakref.WeakSet[threading.Event] = weakref.WeakSet()

    @property
    def now(self) -> float:
        """Virtual seconds: the latest clock of the queues."""
        return max(queue.clock for queue in self._all)

    def check(self) -> None:
        """Raise DeviceLost where the device was lost."""
        if self._lost:
            raise DeviceLost(self._lost, device=self.info.id)

    def copies_from(self, other: Device) -> str:
        """Directly, from the simulated devices that the spec names."""
        return (
            "direct" if isinstance(other, SimDevice) and other.spec.name in self.spec.peers else ""
        )

    def next_step(self) -> tuple[float, threading.Event | None]:
        """Count a step and let the fault that is due happen.

        Returns how many times longer steps take now, and what a hanging step waits for.
        """
        with self._lock:
            number = self._steps
            self._steps += 1
            hang = None
            for fault in self.spec.faults:
                if fault.step == number:
                    hang = self._happen(fault) or hang
            return self._factor, hang

    def _happen(self, fault: Fault) -> threading.Event | None:
        where = f"{self.info.id}: step {fault.step}"
        if fault.kind == "oom":
            raise OutOfMemory(f"{where} ran out of memory, as its fault plan says")
        if fault.kind == "launch":
            raise DeviceError(f"{where} failed to launch, as its fault plan says")
        if fault.kind == "lost":
            self._lost = f"{self.info.id} was lost at step {fault.step}, as its fault plan says"
            raise DeviceLost(self._lost)
        if fault.kind == "slow":
            self._factor = fault.factor
            return None
        hang = threading.Event()
        self._hangs.add(hang)
        return hang

    def allocate(self, nbytes: int, label: str = "") -> SimBuffer:
        """Allocate within the device's memory; raises OutOfMemory."""
        self.check()
        return SimBuffer(self, self._budget.take(nbytes, label))

    def compile(self, step: Step) -> SimExecutable:
        """Array calls alone; their roofline is that of the bytes they touch."""
        self.check()
        if not isinstance(step, ArrayCall):
            raise CompileError(f"{self.info.id}: runs array calls, not {type(step).__name__}")
        read = sum(spec.nbytes for spec in step.in_specs if spec is not None)
        written = sum(spec.nbytes for spec in step.out_specs)
        flops = sum(spec.size for spec in step.out_specs)
        work = Work(float(flops), float(read), float(written))
        return SimExecutable(step, self.spec.seconds(work))

    def record(self, bound: Sequence[Bound]) -> SimCommands:
        """Make views once; a step takes its predicted seconds where it has them."""
        return SimCommands([self._timed(item) for item in bound])

    def rebind(self, commands: CommandBuffer, changed: Mapping[int, Bound]) -> SimCommands:
        """Make other views for some steps."""
        assert isinstance(commands, SimCommands)
        steps = enumerate(commands.steps)
        return SimCommands([self._timed(changed[i]) if i in changed else old for i, old in steps])

    def _timed(self, item: Bound) -> _Timed:
        executable = item.executable
        assert isinstance(executable, SimExecutable)
        step = executable.step
        ins = [
            None if slot is None or spec is None else self._array(item, slot, spec)
            for slot, spec in zip(step.ins, step.in_specs, strict=True)
        ]
        outs = [
            self._array(item, slot, spec)
            for slot, spec in zip(step.outs, step.out_specs, strict=True)
        ]
        return _Timed(step, ins, outs, item.label, item.seconds or executable.seconds)

    def _array(self, item: Bound, slot: Any, spec: TensorSpec) -> Array:
        buffer = item.buffers[slot]
        assert isinstance(buffer, SimBuffer)
        return buffer.shaped(spec)

    def close(self) -> None:
        """Fail what hangs."""
        for hang in list(self._hangs):
            hang.set()
