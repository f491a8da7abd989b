"""Queues with faults, and what they run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from crossdock.devices.base import Buffer, CommandBuffer, Event, Queue, Span
from crossdock.devices.fault_plan import Fault
from crossdock.runtime.tensor import Array

if TYPE_CHECKING:
    from crossdock.devices.faults import FaultDevice


class FaultEvent(Event):
    """Work that hangs: done at ``due`` on the clock of ``time.monotonic``, or when given up."""

    def __init__(self, device: FaultDevice, due: float, then: Event | None) -> None:
        self.device, self.due, self.then = device, due, then

    def wait(self) -> None:
        """Block until the time is over; raises DeviceLost where the device was given up."""
        self.device.sleep(self.due - time.monotonic())
        if self.then is not None:
            self.then.wait()

    def done(self) -> bool:
        """Whether the time is over, or the device was given up."""
        over = time.monotonic() >= self.due and (self.then is None or self.then.done())
        return over or self.device.released


class FaultCommands(CommandBuffer):
    """A command buffer for each step, so that a fault can come between two."""

    def __init__(self, parts: Sequence[CommandBuffer]) -> None:
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def stop(self, on: bool) -> None:
        """Stop each step's."""
        for part in self.parts:
            part.stop(on)


class FaultQueue(Queue):
    """A queue of the device inside, with faults."""

    def __init__(self, device: FaultDevice, queue: Queue) -> None:
        self.device: FaultDevice = device
        self.role = queue.role
        self._queue = queue
        self._factor = 1.0
        self._hung = 0.0  # when what hangs here ends, on the clock of time.monotonic
        self._late: list[tuple[float, Callable[[], object]]] = []  # said to be done, and was not

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> Event | None:
        """Run the steps one by one; each may fail."""
        assert isinstance(commands, FaultCommands)
        event: Event | None = None
        waits = self._inner(waits)
        for part in commands.parts:

            def step(part: CommandBuffer = part, waits: Sequence[Event] = waits) -> Event | None:
                return self._queue.execute(part, waits, spans)

            event = self._do("execute", step)
            waits = ()
        return event

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> Event | None:
        """Copy an array into a buffer, whole and right unless a fault is due."""
        waits = self._inner(waits)

        def copy(fault: Fault | None = None) -> Event | None:
            if fault is None:
                return self._queue.write(target, source, waits)
            if fault.kind == "short":
                return self._queue.write(target, _half(source), waits)
            return self._queue.write(target, _flipped(source.copy(), fault.bit), waits)

        return self._copy(copy)

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> Event | None:
        """Copy a buffer into an array, whole and right unless a fault is due."""
        waits = self._inner(waits)

        def copy(fault: Fault | None = None) -> Event | None:
            if fault is None:
                return self._queue.read(source, target, waits)
            if fault.kind == "short":
                return self._queue.read(source, _half(target), waits)
            event = self._queue.read(source, target, waits)
            self._await(event)
            _flipped(target, fault.bit)
            return event

        return self._copy(copy)

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> Event | None:
        """Copy from another device's memory, whole and right unless a fault is due."""
        waits = self._inner(waits)

        def copy(fault: Fault | None = None) -> Event | None:
            if fault is None:
                return self._queue.copy(target, source, waits)
            if fault.kind == "short":
                return self._queue.copy(target, source.view(0, source.nbytes // 2), waits)
            self._await(self._queue.copy(target, source, waits))
            arrived = np.empty(source.nbytes, np.uint8)
            self._await(self._queue.read(target, arrived))
            return self._queue.write(target, _flipped(arrived, fault.bit))

        return self._copy(copy)

    def _await(self, event: Event | None) -> None:
        if event is not None:
            self._queue.flush()
            event.wait()

    def _copy(self, copy: Callable[[Fault | None], Event | None]) -> Event | None:
        return self._do("copy", lambda: copy(None), copy)

    def finish(self) -> None:
        """Block until everything submitted is done, and what was said to be, too."""
        self.device.touch()
        self._catch_up(ended=True)
        self.device.sleep(self._hung - time.monotonic())
        self._queue.finish()

    def flush(self) -> None:
        """Hand what was submitted to the device."""
        self.device.touch()
        self._queue.flush()

    def _inner(self, waits: Sequence[Event]) -> list[Event]:
        """The events that the device inside knows; for others the caller waits."""
        for event in waits:
            if isinstance(event, FaultEvent):
                event.wait()
        return [event for event in waits if not isinstance(event, FaultEvent)]

    def _do(
        self,
        call: str,
        work: Callable[[], Event | None],
        damaged: Callable[[Fault], Event | None] | None = None,
    ) -> Event | None:
        self.device.touch()
        self._catch_up()
        for fault in self.device.faults.due(call, self.role):
            if fault.kind == "slow":
                self._factor = fault.factor
            elif fault.kind == "hang":
                self._hung = max(self._hung, time.monotonic() + fault.seconds)
                self.device.hang()
            elif fault.kind == "early":
                self._late.append((time.monotonic() + fault.seconds, work))
                return None
            elif damaged is not None and fault.kind in ("corrupt", "short"):
                work = _with(damaged, fault)
            else:
                self.device.happen(fault)
        return self._timed(work)

    def _timed(self, work: Callable[[], Event | None]) -> Event | None:
        """Do the work as slowly as the queue is now, and not before what hangs ends."""
        if self._hung > time.monotonic() and not self.device.submits:
            self.device.sleep(self._hung - time.monotonic())
        began = time.perf_counter()
        event = work()
        if self._factor > 1.0:
            self._await(event)
            self.device.sleep((self._factor - 1.0) * (time.perf_counter() - began))
        hangs = self._hung > time.monotonic()
        return FaultEvent(self.device, self._hung, event) if hangs else event

    def _catch_up(self, *, ended: bool = False) -> None:
        """Do what was said to be done long ago."""
        now = time.monotonic()
        ready = [work for due, work in self._late if due <= now or (ended and due < math.inf)]
        self._late = [(due, work) for due, work in self._late if work not in ready]
        for work in ready:
            work()


def _with(damaged: Callable[[Fault], Event | None], fault: Fault) -> Callable[[], Event | None]:
    return lambda: damaged(fault)


def _half(array: Array) -> Array:
    half: Array = array.reshape(-1).view(np.uint8)[: array.nbytes // 2]
    return half


def _flipped(array: Array, bit: int) -> Array:
    """The same array, with one bit of its bytes flipped; ``bit`` is taken modulo their number."""
    flat = array.reshape(-1).view(np.uint8)
    if flat.size:
        at = bit % (8 * flat.size)
        flat[at // 8] ^= np.uint8(1 << at % 8)
    return array
