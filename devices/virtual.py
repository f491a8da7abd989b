"""Devices that compute nothing: the queues of a plan on one virtual time, for the real executor.

A queue takes a step for as long as it is said to take, and nothing else happens. Steps of devices
that share compute are started in the order of virtual time, whatever the order in which the host's
threads come by: a thread that wants a share waits until no other queue can want one earlier. That
is conservative discrete-event simulation (Chandy and Misra 1979), with the executor's threads as
its processes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossdock.devices.base import (
    Bound,
    Buffer,
    CommandBuffer,
    Device,
    DeviceInfo,
    Event,
    Executable,
    Queue,
    Span,
)
from crossdock.devices.program import Step
from crossdock.runtime.errors import DeviceError
from crossdock.runtime.tensor import Array

ROLES = ("compute", "upload", "download")


@dataclass(frozen=True)
class Row:
    """A segment: the queue (device/role) it is on, and the segments that it waits for."""

    queue: str
    waits: tuple[int, ...]


@dataclass(frozen=True)
class TimedStep:
    """A step: its index in the plan, its segment's, and its virtual seconds."""

    index: int
    segment: int
    seconds: float


@dataclass
class _Request:
    """A step that wants a share of a group from ``ready`` on."""

    step: TimedStep
    group: str
    ready: float
    granted: threading.Event
    start: float = 0.0


class VirtualTime:
    """The virtual time of one run.

    Args:
        rows: the segments, in an order in which waits are for earlier ones of other queues.
        free: how many steps of a resource group run at once, for the groups in which more could.

    ``start`` and ``finish`` hold virtual seconds by step index once a step has run.
    """

    def __init__(self, rows: Sequence[Row], free: Mapping[str, int]) -> None:
        self.start: dict[int, float] = {}
        self.finish: dict[int, float] = {}
        self._lanes = {group: [0.0] * lanes for group, lanes in free.items()}
        self._lock = threading.Lock()
        self._seen = threading.local()
        self._waiting: dict[str, _Request] = {}
        self._rows = rows
        self._queues: dict[str, list[int]] = {}
        self._readers: list[list[int]] = [[] for _ in rows]
        self._missing = [len(row.waits) for row in rows]
        for i, row in enumerate(rows):
            self._queues.setdefault(row.queue, []).append(i)
            for wait in row.waits:
                self._readers[wait].append(i)
        self._at = dict.fromkeys(self._queues, 0)
        # Queues that may still do something at a virtual time no later than a waiting step's.
        self._active = sum(not self._missing[parts[0]] for parts in self._queues.values())

    @property
    def seen(self) -> float:
        """The latest end that the calling thread has waited for."""
        return float(getattr(self._seen, "end", 0.0))

    def saw(self, end: float) -> None:
        """The calling thread waited for what ends then."""
        self._seen.end = max(self.seen, end)

    def run(self, step: TimedStep, group: str, ready: float) -> float:
        """Run a step that may start at ``ready``; returns its end. Waits for its turn."""
        start = ready if group not in self._lanes else self._share(step, group, ready)
        end = start + step.seconds
        with self._lock:
            self.start[step.index], self.finish[step.index] = start, end
        return end

    def passed(self, segment: int) -> None:
        """A segment has been run; what waits for it may go on."""
        with self._lock:
            queue = self._rows[segment].queue
            for reader in self._readers[segment]:
                self._missing[reader] -= 1
                if not self._missing[reader] and self._head(self._rows[reader].queue) == reader:
                    self._active += 1
            self._at[queue] += 1
            head = self._head(queue)
            if head is None or self._missing[head]:
                self._active -= 1
            self._grant()

    def _head(self, queue: str) -> int | None:
        at, parts = self._at[queue], self._queues[queue]
        return parts[at] if at < len(parts) else None

    def _share(self, step: TimedStep, group: str, ready: float) -> float:
        request = _Request(step, group, ready, threading.Event())
        with self._lock:
            self._waiting[self._rows[step.segment].queue] = request
            self._active -= 1
            self._grant()
        request.granted.wait()
        return request.start

    def _grant(self) -> None:
        """Once every queue waits, start the step that can start first."""
        if self._active or not self._waiting:
            return
        queue, first = min(self._waiting.items(), key=lambda item: self._order(item[1]))
        lanes = self._lanes[first.group]
        lane = min(range(len(lanes)), key=lanes.__getitem__)
        first.start = max(first.ready, lanes[lane])
        lanes[lane] = first.start + first.step.seconds
        del self._waiting[queue]
        self._active += 1
        first.granted.set()

    def _order(self, request: _Request) -> tuple[float, int]:
        return max(request.ready, min(self._lanes[request.group])), request.step.index


class VirtualEvent(Event):
    """Work that ends at a virtual time; known as soon as it is submitted."""

    __slots__ = ("_time", "end")

    def __init__(self, time: VirtualTime, end: float) -> None:
        self._time, self.end = time, end

    def wait(self) -> None:
        """Take the calling thread to the end."""
        self._time.saw(self.end)

    def done(self) -> bool:
        """Always: virtual time costs none."""
        return True


class VirtualBuffer(Buffer):
    """What a copy copies: no memory, only the step."""

    def __init__(self, device: VirtualDevice, step: TimedStep) -> None:
        self.device: VirtualDevice = device
        self.nbytes = 0
        self.step = step

    def view(self, offset: int, nbytes: int) -> Buffer:
        """Refused: there is no memory."""
        raise DeviceError(f"{self.device.info.id} is virtual: bytes {offset}+{nbytes} hold nothing")

    def release(self) -> None:
        """Nothing to give back."""


class VirtualCommands(CommandBuffer):
    """The steps of one segment."""

    def __init__(self, steps: Sequence[TimedStep]) -> None:
        self.steps = tuple(steps)

    def __len__(self) -> int:
        return len(self.steps)


class VirtualQueue(Queue):
    """An in-order queue on virtual time."""

    def __init__(self, device: VirtualDevice, role: str) -> None:
        self.device: VirtualDevice = device
        self.role = role
        self.clock = 0.0

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> VirtualEvent:
        """Let the steps' seconds pass, one after the other."""
        assert isinstance(commands, VirtualCommands)
        return self._pass(commands.steps, self.device.info.resource_group, waits, spans)

    def write(
        self,
        target: Buffer,
        source: Array,  # noqa: ARG002 - the contract's signature
        waits: Sequence[Event] = (),
    ) -> VirtualEvent:
        """Let the copy's seconds pass."""
        assert isinstance(target, VirtualBuffer)
        return self._pass((target.step,), "", waits, None)

    def read(
        self,
        source: Buffer,
        target: Array,  # noqa: ARG002 - the contract's signature
        waits: Sequence[Event] = (),
    ) -> VirtualEvent:
        """Let the copy's seconds pass."""
        assert isinstance(source, VirtualBuffer)
        return self._pass((source.step,), "", waits, None)

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> VirtualEvent:
        """Let the copy's seconds pass."""
        assert isinstance(target, VirtualBuffer)
        del source
        return self._pass((target.step,), "", waits, None)

    def finish(self) -> None:
        """Take the calling thread to the queue's clock."""
        self.device.time.saw(self.clock)

    def _pass(
        self,
        steps: Sequence[TimedStep],
        group: str,
        waits: Sequence[Event],
        spans: list[Span] | None,
    ) -> VirtualEvent:
        time = self.device.time
        ends = [event.end for event in waits if isinstance(event, VirtualEvent)]
        self.clock = max([self.clock, time.seen, *ends])
        for step in steps:
            self.clock = time.run(step, group, self.clock)
            if spans is not None:
                spans.append(Span(f"#{step.index}", time.start[step.index], self.clock))
        time.passed(steps[-1].segment)
        return VirtualEvent(time, self.clock)


class VirtualDevice(Device):
    """A device of a plan, without the device."""

    def __init__(self, info: DeviceInfo, time: VirtualTime) -> None:
        self.info, self.time = info, time
        self._all = tuple(VirtualQueue(self, role) for role in ROLES)
        self.queues = {queue.role: queue for queue in self._all}

    def allocate(self, nbytes: int, label: str = "") -> Buffer:
        """Refused: there is no memory."""
        raise DeviceError(f"{self.info.id} is virtual: it has no {nbytes} bytes for {label!r}")

    def compile(self, step: Step) -> Executable:
        """Refused: there is nothing to compile for."""
        raise DeviceError(f"{self.info.id} is virtual: it compiles no {type(step).__name__}")

    def record(self, bound: Sequence[Bound]) -> CommandBuffer:
        """Refused: steps have no code here."""
        raise DeviceError(f"{self.info.id} is virtual: it records none of {len(bound)} steps")

    def close(self) -> None:
        """End the queues' threads."""
        for queue in self._all:
            if queue.feeder is not None:
                queue.feeder.stop()
