"""Buffers, recorded steps and queues of a device in a process of its own."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from crossdock.devices.isolated_channel import SLOT, SLOTS
from crossdock.devices.isolated_lane import IsolatedEvent, Lane
from crossdock.runtime.errors import DeviceError
from crossdock.runtime.tensor import Array

if TYPE_CHECKING:
    from crossdock.devices.isolated_device import IsolatedDevice


class IsolatedBuffer(Buffer):
    """Memory of the device, or a window of it, by the number that the worker knows it by."""

    def __init__(
        self,
        device: IsolatedDevice,
        number: int,
        nbytes: int,
        root: IsolatedBuffer | None = None,
        offset: int = 0,
    ) -> None:
        self.device: IsolatedDevice = device
        self.nbytes = nbytes
        self._number = number
        self._root = root
        self._offset = offset
        self.released = False

    @property
    def root(self) -> IsolatedBuffer:
        """The buffer that this one is a window of, or itself."""
        return self if self._root is None else self._root

    def at(self, offset: int = 0, nbytes: int | None = None) -> tuple[int, int, int]:
        """A part of it as the worker knows it: number, offset, bytes."""
        if self.released or self.root.released:
            raise DeviceError(f"{self.device.info.id}: a buffer is used after its release")
        return self._number, self._offset + offset, self.nbytes if nbytes is None else nbytes

    def view(self, offset: int, nbytes: int) -> IsolatedBuffer:
        """A window into this buffer, which keeps the memory alive."""
        info = self.device.info
        self.at()
        if offset < 0 or offset % info.alignment or nbytes < 0 or offset + nbytes > self.nbytes:
            raise DeviceError(
                f"{info.id}: no view of {nbytes} bytes at {offset} in a buffer of {self.nbytes}; "
                f"offsets are multiples of {info.alignment}"
            )
        at = self._offset + offset if nbytes else 0
        return IsolatedBuffer(self.device, self._number, nbytes, self.root, at)

    def release(self) -> None:
        """Give the memory back, once the queues have done what they were asked for."""
        if not self.released:
            self.released = True
            if self._root is None:
                self.device.free(self._number, self.nbytes)

    def __del__(self) -> None:
        self.release()


@dataclass(frozen=True)
class IsolatedExecutable(Executable):
    """A step that the worker has compiled; ``work`` stands for it whichever worker it is."""

    number: int
    work: str
    device: IsolatedDevice
    told: str = ""

    @property
    def said(self) -> str:
        """What the worker said of the algorithm when it had compiled it."""
        return self.told

    def __del__(self) -> None:
        self.device.forget("executable", self.number)


class IsolatedCommands(CommandBuffer):
    """Steps that the worker has recorded; keeps their memory alive."""

    def __init__(self, device: IsolatedDevice, number: int, bound: Sequence[Bound]) -> None:
        self.number = number
        self.works: list[str] = []
        self.labels = [item.label for item in bound]
        self.roots: set[IsolatedBuffer] = set()
        self._device = device
        self._keep = [item.executable for item in bound]
        for item in bound:
            assert isinstance(item.executable, IsolatedExecutable)
            self.works.append(item.executable.work)
            for buffer in item.buffers.values():
                assert isinstance(buffer, IsolatedBuffer)
                self.roots.add(buffer.root)

    def __len__(self) -> int:
        return len(self.labels)

    def __del__(self) -> None:
        self._device.forget("commands", self.number)


class IsolatedQueue(Queue):
    """A queue of the device; what it is asked for is done in order, in the worker."""

    def __init__(self, device: IsolatedDevice, role: str, lane: Lane) -> None:
        self.device: IsolatedDevice = device
        self.role = role
        self.lane = lane
        self._taken = itertools.count()
        self._used = [0] * SLOTS  # the request that a piece of the shared memory went with last

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> IsolatedEvent:
        """Ask for a command buffer; with ``spans``, wait for the times of its steps."""
        assert isinstance(commands, IsolatedCommands)
        if any(root.released for root in commands.roots):
            raise DeviceError(f"{self.device.info.id}: a buffer of this run has been released")
        timed = spans is not None
        event = self.lane.ask(
            "execute",
            self._known(waits),
            (commands.number, timed),
            works=commands.works,
            labels=commands.labels,
        )
        if spans is not None:
            event.wait()
            spans += event.spans
        return event

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> IsolatedEvent:
        """Copy a C-contiguous host array into a buffer; the array is free when it returns."""
        assert isinstance(target, IsolatedBuffer)
        flat, known = self._flat(target, source), self._known(waits)
        event = None
        for begin in range(0, max(flat.size, 1), SLOT):
            part, slot = flat[begin : begin + SLOT], self._slot()
            self.lane.staging.slots[slot][: part.size] = part
            event = self._moved("write", target, begin, part.size, slot, known)
            known = []
        assert event is not None
        return event

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> None:
        """Copy a buffer into a C-contiguous host array; done when it returns."""
        assert isinstance(source, IsolatedBuffer)
        flat, known = self._flat(source, target), self._known(waits)
        coming: deque[tuple[IsolatedEvent, Array, int]] = deque()
        for begin in range(0, max(flat.size, 1), SLOT):
            if len(coming) == SLOTS:
                self._arrived(*coming.popleft())
            part, slot = flat[begin : begin + SLOT], self._slot()
            event = self._moved("read", source, begin, part.size, slot, known)
            coming.append((event, part, slot))
            known = []
        while coming:
            self._arrived(*coming.popleft())

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> IsolatedEvent:
        """Copy a buffer into another, in the worker."""
        assert isinstance(target, IsolatedBuffer)
        assert isinstance(source, IsolatedBuffer)
        check_copy(self.device, target, source)
        ends = (*target.at(), *source.at())
        return self.lane.ask("copy", self._known(waits), ends)

    def _arrived(self, event: IsolatedEvent, part: Array, slot: int) -> None:
        event.wait()
        part[:] = self.lane.staging.slots[slot][: part.size]

    def _flat(self, buffer: IsolatedBuffer, array: Array) -> Array:
        if array.nbytes > buffer.nbytes or not array.flags.c_contiguous:
            raise DeviceError(
                f"{self.device.info.id}: cannot copy {array.nbytes} bytes in C order between the "
                f"host and a buffer of {buffer.nbytes}"
            )
        flat: Array = array.reshape(-1).view("uint8")
        return flat

    def _slot(self) -> int:
        """A piece of the shared memory that nothing is in any more."""
        slot = next(self._taken) % SLOTS
        self.lane.wait(self._used[slot])
        return slot

    def _moved(
        self,
        what: str,
        buffer: IsolatedBuffer,
        begin: int,
        nbytes: int,
        slot: int,
        known: list[Any],
    ) -> IsolatedEvent:
        event = self.lane.ask(what, known, (*buffer.at(begin, nbytes), slot))
        self._used[slot] = event.number
        return event

    def _known(self, waits: Sequence[Event]) -> list[tuple[int, int]]:
        """Events of this device go to the worker; for others the caller waits."""
        known = []
        for event in waits:
            if isinstance(event, IsolatedEvent) and event.lane.process is self.lane.process:
                known.append((event.lane.index, event.number))
            else:
                event.wait()
        return known

    def finish(self) -> None:
        """Block until everything asked for is done."""
        self.lane.ask("wait", [], ()).wait()
