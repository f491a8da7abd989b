"""The queues of a card: a stream each, and what runs on them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

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
from crossdock.devices.cuda_blas import Prepared
from crossdock.devices.cuda_graph import Call, Segment, segments
from crossdock.devices.cuda_memory import CudaBuffer, CudaEvent, Staging, is_pinned, translated
from crossdock.devices.cuda_peer import Bridge
from crossdock.devices.program import ArrayCall, GridLaunch, is_launch
from crossdock.devices.variants import Built
from crossdock.runtime.errors import DeviceError
from crossdock.runtime.tensor import Array

if TYPE_CHECKING:
    from crossdock.devices.cuda import CudaDevice


@dataclass(frozen=True)
class CudaExecutable(Executable):
    """A launch with its kernel, or an array call; ``library`` is what calls a library."""

    made: Built[Any] | ArrayCall
    library: Prepared | None = None

    @property
    def step(self) -> GridLaunch | ArrayCall:
        """What is run now: of a launch, the variant that was taken."""
        return self.made if isinstance(self.made, ArrayCall) else self.made.step

    @property
    def kernel(self) -> Any:
        """Of the launch's variant that was taken; None of an array call."""
        return None if isinstance(self.made, ArrayCall) else self.made.kernel

    @property
    def choice(self) -> Choice | None:
        """Among a library's algorithms, or a launch's variants."""
        return self.library if isinstance(self.made, ArrayCall) else self.made


class CudaCommands(CommandBuffer):
    """Calls ready to be made on a stream, in order; they keep their memory alive."""

    def __init__(self, calls: Sequence[Call], bound: Sequence[Bound]) -> None:
        self.calls: Sequence[Call] = tuple(calls)
        self.labels = [item.label for item in bound]
        self.roots = {
            buffer.root
            for item in bound
            for buffer in item.buffers.values()
            if isinstance(buffer, CudaBuffer)
        }
        self._launches = tuple(_launches(item) for item in bound)
        self._parted: dict[frozenset[int], Sequence[Segment | Call | int]] = {}

    @cached_property
    def parts(self) -> list[Segment | Call]:
        """What is replayed as a graph, and the calls between."""
        return segments(self.calls, self._launches)

    def __len__(self) -> int:
        return len(self.calls)

    def rebound(self, calls: Mapping[int, Call]) -> CudaCommands:
        """The same with other calls at some places, which part the graphs.

        The graphs between them are made once for all that have the same places. What these calls
        use is kept alive by who runs them.
        """
        places = frozenset(calls)
        if places not in self._parted:
            self._parted[places] = self._between(places)
        made = copy(self)
        made.calls = _Changed(self.calls, calls)
        made.parts = [calls[p] if isinstance(p, int) else p for p in self._parted[places]]
        return made

    def unowned(self, item: Bound) -> Bound:
        """The same step over memory that it does not keep alive, unless these commands do."""
        buffers = {
            slot: buffer.unowned()
            if isinstance(buffer, CudaBuffer) and buffer.root not in self.roots
            else buffer
            for slot, buffer in item.buffers.items()
        }
        return replace(item, buffers=buffers)

    def _between(self, places: frozenset[int]) -> Sequence[Segment | Call | int]:
        """What is replayed, with the places where other calls come in."""
        launches = [kept and i not in places for i, kept in enumerate(self._launches)]
        marked: list[Any] = [i if i in places else call for i, call in enumerate(self.calls)]
        return segments(marked, launches)

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


@dataclass(frozen=True)
class _Changed(Sequence[Call]):
    """Calls with others in some places."""

    calls: Sequence[Call]
    others: Mapping[int, Call]

    def __len__(self) -> int:
        return len(self.calls)

    def __getitem__(self, at: Any) -> Any:
        return self.others.get(at) or self.calls[at]


class CudaQueue(Queue):
    """A stream that no default stream synchronises with."""

    def __init__(self, device: CudaDevice, role: str) -> None:
        self.device: CudaDevice = device
        self.role = role
        self.stream = device.cp.cuda.Stream(non_blocking=True)
        self._staging = Staging(device.cp, self.stream)
        self._pending: deque[CudaEvent] = deque()
        self._forgetting = threading.Lock()
        self._bridges: dict[int, Bridge] = {}  # by the other card's index

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
        with self._forgetting:
            self._forget()
            event = CudaEvent(device, raw, keep, self._pending[-1] if self._pending else None)
            self._pending.append(event)
        return event

    def forget(self) -> None:
        """Keep no longer what done work used; any thread."""
        with self._forgetting:
            self._forget()

    def _forget(self) -> None:
        while self._pending and self._pending[0].done():
            self._pending.popleft().let_go()

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

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> CudaEvent:
        """Copy on the card, or from another: by peer access, or staged part by part."""
        assert isinstance(target, CudaBuffer)
        assert isinstance(source, CudaBuffer)
        check_copy(self.device, target, source)
        if source.device is not self.device:
            return self._across(target, source, waits)
        with translated(self.device):
            self._wait_for(waits)
            kind = self.device.cp.cuda.runtime.memcpyDeviceToDevice
            self._direct(target.pointer.ptr, source.pointer.ptr, source.nbytes, kind)
            return self._mark(_kept(target, source))

    def _across(self, target: CudaBuffer, source: CudaBuffer, waits: Sequence[Event]) -> CudaEvent:
        device, other, nbytes = self.device, source.device, source.nbytes
        other.read_by(self)
        with translated(other), translated(device):
            self._wait_for(waits)
            ends = target.pointer.ptr, source.pointer.ptr
            if nbytes and not device.unreachable(other):
                self._peer(*ends, other.index, nbytes)
            elif nbytes:
                if other.index not in self._bridges:
                    self._bridges[other.index] = Bridge(device, other, self.stream)
                self._bridges[other.index].copy(*ends, nbytes, waits)
            return self._mark(_kept(target, source))

    def _peer(self, target: int, source: int, home: int, nbytes: int) -> None:
        self.device.cp.cuda.runtime.memcpyPeerAsync(
            target, self.device.index, source, home, nbytes, self.stream.ptr
        )

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


def _launches(item: Bound) -> bool:
    executable = item.executable
    return isinstance(executable, CudaExecutable) and is_launch(executable.step)


def _kept(target: CudaBuffer, source: CudaBuffer) -> tuple[CudaBuffer, ...]:
    """What a copy keeps alive: memory of other libraries is kept by the run that reads it."""
    return (target.root,) if source.foreign else (target.root, source.root)
