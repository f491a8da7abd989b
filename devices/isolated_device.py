"""A device in a process of its own, as this process sees it."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from crossdock.devices import registry
from crossdock.devices.base import Bound, Device, DeviceInfo, Executable
from crossdock.devices.choice import Timing
from crossdock.devices.gauge import Gauge
from crossdock.devices.isolated_channel import Channel, Staging
from crossdock.devices.isolated_forms import digest, slot_form, step_form
from crossdock.devices.isolated_lane import Lane
from crossdock.devices.isolated_process import DEATHS, DEATHS_AT, Process, survived
from crossdock.devices.isolated_queue import (
    IsolatedBuffer,
    IsolatedCommands,
    IsolatedExecutable,
    IsolatedQueue,
)
from crossdock.devices.program import Step
from crossdock.devices.share import Share
from crossdock.runtime import settings
from crossdock.runtime.errors import CompileError, DeviceError, DeviceLost

BUILD = 24.0
"""How many times the watchdog's seconds a kernel may take to build."""
CLOSE_SECONDS = 10.0
"""How long a worker may take to close its device before it is killed."""


class IsolatedDevice(Device):
    """A device in a process of its own."""

    apart = True

    def __init__(self, device_id: str) -> None:
        """Start the process; ``begin`` follows once it has opened its device."""
        self.gauge = Gauge()
        self.name = device_id
        self.lanes: list[Lane] = []
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # a finalizer may run inside of it
        self._frees: Channel | None = None
        self._freed: deque[tuple[str, int]] = deque()  # finalizers append, and may run anywhere
        self._freeing = threading.Lock()
        self._given_back = 0
        self._over = threading.Lock()  # taken once and for all when the worker is not used any more
        self.process = Process(device_id, _teller(weakref.ref(self)))
        weakref.finalize(self, self.process.kill).atexit = False

    def begin(self, info: DeviceInfo, roles: Mapping[str, int]) -> None:
        """Set up the queues: ``roles`` has which of them each role has, by number."""
        sockets: list[socket.socket] = []
        memories: list[int] = []
        try:
            for index in range(len(set(roles.values()))):
                channel, other = Channel.pair()
                sockets.append(other)
                memories.append(Staging.made())
                staging = Staging(memories[-1])
                self.lanes.append(Lane(self.process, index, channel, staging, self._lost))
            self._frees, other = Channel.pair()
            given = [n for s, m in zip(sockets, memories, strict=True) for n in (s.fileno(), m)]
            sockets.append(other)
            self._ask("lanes", descriptors=[*given, other.fileno()])
        finally:
            for sock in sockets:
                sock.close()
            for memory in memories:
                os.close(memory)
        queues: dict[int, IsolatedQueue] = {}
        for role, index in roles.items():
            if index not in queues:
                queues[index] = IsolatedQueue(self, role, self.lanes[index])
        self.queues = {role: queues[index] for role, index in roles.items()}
        self.info = info
        capacity = info.memory_bytes
        self._share = Share(info.id, capacity, capacity, info.physical_id, self.gauge)
        if not self.process.alive:
            raise self.process.death()

    def _ask(self, what: str, *args: object, descriptors: Sequence[int] = ()) -> Any:
        """Ask the worker for what takes no queue; kernels may be built meanwhile."""
        if self.gone:
            raise DeviceLost(f"{self.name} was lost ({self.gone})", device=self.name)
        return self.process.ask(BUILD * settings.watchdog(), what, *args, descriptors=descriptors)

    def allocate(self, nbytes: int, label: str = "") -> IsolatedBuffer:
        """Allocate in the worker, within the device's budget there."""
        self._flush()
        number = next(self._numbers)
        self._share.take(nbytes, label)
        try:
            self._ask("allocate", number, nbytes, label, self._given_back)
        except BaseException:
            self._share.give(nbytes)
            raise
        return IsolatedBuffer(self, number, nbytes)

    def free(self, number: int, nbytes: int) -> None:
        """Give the memory of a buffer back; any thread, finalizers included."""
        self._share.give(nbytes)
        self.forget("buffer", number)

    def forget(self, what: str, number: int) -> None:
        """Let the worker forget a buffer, an executable or commands that nobody holds any more."""
        self._freed.append((what, number))
        self._flush()

    def _flush(self) -> None:
        """Tell the worker what was freed. It waits for nothing: what cannot be told now is later.

        A finalizer may run inside of this very function: what it frees is told by the one outside.
        """
        frees = self._frees
        while self._freed and frees is not None and self._freeing.acquire(blocking=False):
            try:
                if self.gone or self._over.locked() or not frees.writable():
                    return
                told: dict[str, list[int]] = {"buffer": [], "commands": [], "executable": []}
                with suppress(IndexError):
                    while True:
                        what, number = self._freed.popleft()
                        told[what].append(number)
                self._given_back += len(told["buffer"])
                frees.send([*told.values(), [lane.asked for lane in self.lanes]])
            except EOFError:
                return
            finally:
                self._freeing.release()

    def compile(self, step: Step) -> IsolatedExecutable:
        """Compile in the worker; the compiler's log comes back.

        Raises:
            CompileError: also for a step that ended ``DEATHS`` workers.
        """
        form = step_form(step, self.name)
        work = digest(form)
        if DEATHS_AT.refused(self.name, work):
            raise CompileError(
                f"{self.name}: {getattr(step, 'entry', 'an array call')} is refused: {DEATHS} of "
                "the device's processes ended over it; update the driver, or leave the device out",
                device=self.name,
                source=getattr(step, "source", ""),
            )
        number = next(self._numbers)
        said = survived(lambda: self._ask("compile", number, form), self.name, work)
        return IsolatedExecutable(number, work, self, said)

    def algorithms(self, executable: Executable) -> int:
        """Those that the worker's device may choose among."""
        return int(self._ask("algorithms", _number(executable)))

    def take_algorithm(self, executable: Executable, index: int) -> None:
        """Let the worker's device take it."""
        self._ask("take", _number(executable), index)

    def keep_algorithm(self, executable: Executable, index: int, timings: Sequence[Timing]) -> None:
        """Let the worker's device keep it."""
        self._ask("keep", _number(executable), index, list(timings))

    def record(self, bound: Sequence[Bound]) -> IsolatedCommands:
        """Record in the worker."""
        number = next(self._numbers)
        commands = IsolatedCommands(self, number, bound)
        self._ask("record", number, [_bound_form(item) for item in bound])
        return commands

    def pace(self) -> float:
        """The pace of the device inside."""
        return float(self._ask("pace"))

    def _lost(self) -> DeviceError:
        """The error of the worker's end, and what it was at."""
        heads = [head for lane in self.lanes if (head := lane.head()) is not None]
        labels = [label for head in heads for label in head.labels]
        more = f" and {len(labels) - 1} more steps" if len(labels) > 1 else ""
        return self.process.death(f"{labels[0]!r:.80}{more}" if labels else "")

    def ended(self) -> None:
        """The worker has ended: where nobody has ended it, the device is lost at once."""
        if not self._over.acquire(blocking=False):
            return
        self._blame()
        error = self._lost()
        if not self.gone and hasattr(self, "info"):
            registry.lose(self, f"{type(error).__name__}: {error}")

    def abandon(self) -> None:
        """Kill the worker: its memory, the device's included, goes back to the system."""
        if self._over.acquire(blocking=False):
            self._blame()
        self.process.kill()
        for lane in self.lanes:
            lane.end()

    def _blame(self) -> None:
        """Count the worker's end against what its queues were at."""
        for lane in self.lanes:
            lane.poll()
            head = lane.head()
            if head is not None:
                DEATHS_AT.note(self.name, head.works)

    def close(self) -> None:
        """Let the worker close its device, and end."""
        if not self._over.acquire(blocking=False):
            return
        for queue in self.queues.values():
            if queue.feeder is not None:
                queue.feeder.stop()
        try:
            self.process.ask(CLOSE_SECONDS, "close")
        except DeviceError:
            self.process.kill()
        self.process.wait(CLOSE_SECONDS)


def _teller(device: weakref.ref[IsolatedDevice]) -> Callable[[], None]:
    def tell() -> None:
        found = device()
        if found is not None:
            found.ended()

    return tell


def _number(executable: Executable) -> int:
    assert isinstance(executable, IsolatedExecutable)
    return executable.number


def _bound_form(item: Bound) -> list[Any]:
    executable = item.executable
    assert isinstance(executable, IsolatedExecutable)
    buffers = []
    for slot, buffer in item.buffers.items():
        assert isinstance(buffer, IsolatedBuffer)
        buffers.append([slot_form(slot), buffer.at()])
    return [executable.number, buffers, item.label, item.seconds]
