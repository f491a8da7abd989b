"""The process that a device runs in: it does what the process that started it asks for.

Requests come over one channel and are answered in order; what a queue does comes over a channel of
its own, to a thread of its own, so that one queue that hangs holds up no other. Memory given back
comes over a third kind. When the process that started it is gone, this one ends: the system sends
it a signal then, which also ends a driver that lets no Python run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from crossdock.devices import registry, sim
from crossdock.devices.base import (
    Bound,
    Buffer,
    Cap,
    CommandBuffer,
    Device,
    Event,
    Executable,
    Queue,
    Span,
)
from crossdock.devices.choice import Timing
from crossdock.devices.codec import decode, encode
from crossdock.devices.isolated_channel import Channel, Staging
from crossdock.devices.isolated_forms import error_form, read_slot, read_step
from crossdock.runtime.errors import DeviceError, OutOfMemory

FREED_SECONDS = 1.0
"""How long an allocation waits for memory that was given back and is still in use."""


class Lane:
    """A queue of the device: what it is asked for, in order, on a thread of its own."""

    def __init__(self, server: Server, queue: Queue, channel: Channel, staging: Staging) -> None:
        self._server, self._queue, self._channel = server, queue, channel
        self._slots = staging.slots
        self._reached = 0
        self._failed: dict[int, DeviceError] = {}
        self._changed = threading.Condition()
        self._does: dict[str, Callable[..., Event | None]] = {
            "execute": self._execute,
            "write": self._write,
            "copy": self._copy,
            "read": self._read,
            "wait": lambda _spans: queue.finish(),
        }
        threading.Thread(target=self._serve, name=f"queue {queue.role}", daemon=True).start()

    def wait(self, number: int, seconds: float | None = None) -> bool:
        """Block until a request of this queue is done; raises what it failed with."""
        with self._changed:
            there = self._changed.wait_for(lambda: self._reached >= number, seconds)
        if number in self._failed:
            raise self._failed[number]
        return there

    def _serve(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                number, what, waits, *rest = self._channel.receive()
                self._channel.send([number, *self._done(number, what, waits, rest)])

    def _done(self, number: int, what: str, waits: list[Any], rest: list[Any]) -> list[Any]:
        spans: list[Span] = []
        failed: list[Any] | None = None
        times = None
        try:
            for lane, other in waits:
                self._server.lanes[lane].wait(other)
            event = self._does[what](spans, *rest)
            if event is not None:
                self._queue.flush()
                event.wait()
                times = event.span() if self._server.virtual else None
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told to who asked
            failed = self._server.told(error)
            self._failed[number] = DeviceError(failed[1])
        with self._changed:
            self._reached = number
            self._changed.notify_all()
        return [failed, [[s.label, s.start, s.end] for s in spans], times]

    def _execute(self, spans: list[Span], commands: int, timed: bool) -> Event | None:
        found = self._server.commands[commands]
        return self._queue.execute(found, (), spans if timed else None)

    def _write(
        self, _spans: list[Span], root: int, offset: int, nbytes: int, slot: int
    ) -> Event | None:
        buffer = self._server.window(root, offset, nbytes)
        return self._queue.write(buffer, self._slots[slot][:nbytes])

    def _read(
        self, _spans: list[Span], root: int, offset: int, nbytes: int, slot: int
    ) -> Event | None:
        buffer = self._server.window(root, offset, nbytes)
        return self._queue.read(buffer, self._slots[slot][:nbytes])

    def _copy(self, _spans: list[Span], *ends: int) -> Event | None:
        target, source = self._server.window(*ends[:3]), self._server.window(*ends[3:])
        return self._queue.copy(target, source)


class Server:
    """What this process holds of its device, by numbers that the other one gives."""

    def __init__(self, control: Channel) -> None:
        self.control = control
        self.device: Device
        self.virtual = False
        self.lanes: list[Lane] = []
        self.commands: dict[int, CommandBuffer] = {}
        self._names = ("", "")
        self._queues: list[Queue] = []
        self._buffers: dict[int, Buffer] = {}
        self._windows: dict[int, dict[tuple[int, int], Buffer]] = {}
        self._executables: dict[int, Executable] = {}
        self._freed = 0
        self._freeing = threading.Condition()
        self._does: dict[str, Callable[..., Any]] = {
            "list": self._list,
            "open": self._open,
            "lanes": self._lanes,
            "allocate": self._allocate,
            "compile": self._compile,
            "algorithms": self._algorithms,
            "take": self._take,
            "keep": self._keep,
            "record": self._record,
            "pace": self._pace,
            "close": self._close,
        }

    def serve(self) -> None:
        """Answer requests until the device is closed, or nobody is left to ask."""
        while True:
            number, what, *args = self.control.receive()
            try:
                answer = [number, None, self._does[what](*args)]
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told to who asked
                answer = [number, self.told(error), None]
            self.control.send(answer)
            if what == "close":
                return

    def told(self, error: BaseException) -> list[Any]:
        """An error as data, of the device by the name that the other process has for it."""
        return error_form(error, *self._names)

    def _list(self, kind: str) -> Any:
        return encode(registry.probe_all([kind])[0])

    def _open(self, inner: str, outer: str, options: dict[str, Any], spec: Any) -> Any:
        """Open the device; what it is, and which queue each role has."""
        self._names = (inner, outer)
        if spec is not None:
            sim.register(decode(sim.SimSpec, spec, inner))
        self.device = registry.open_device(inner, **options)
        self.virtual = Cap.VIRTUAL_TIME in self.device.info.caps
        roles = {}
        for role, queue in self.device.queues.items():
            if queue not in self._queues:
                self._queues.append(queue)
            roles[role] = self._queues.index(queue)
        return [encode(self.device.info), roles]

    def _lanes(self) -> None:
        """Take a channel and shared memory for each queue, and one channel for what is freed."""
        given = self.control.descriptors(2 * len(self._queues) + 1)
        frees = Channel(socket.socket(fileno=given.pop()))
        for queue, sock, memory in zip(self._queues, given[::2], given[1::2], strict=True):
            channel = Channel(socket.socket(fileno=sock))
            self.lanes.append(Lane(self, queue, channel, Staging(memory)))
            os.close(memory)
        threading.Thread(target=self._free, args=(frees,), name="free", daemon=True).start()

    def _allocate(self, number: int, nbytes: int, label: str, freed: int) -> None:
        try:
            self._buffers[number] = self.device.allocate(nbytes, label)
        except OutOfMemory:
            with self._freeing:
                self._freeing.wait_for(lambda: self._freed >= freed, FREED_SECONDS)
            self._buffers[number] = self.device.allocate(nbytes, label)

    def window(self, root: int, offset: int, nbytes: int) -> Buffer:
        """A window of a buffer; it is made once."""
        whole = self._buffers[root]
        if offset == 0 and nbytes == whole.nbytes:
            return whole
        known = self._windows.setdefault(root, {})
        found = known.get((offset, nbytes))
        if found is None:
            found = known[offset, nbytes] = whole.view(offset, nbytes)
        return found

    def _compile(self, number: int, form: list[Any]) -> str:
        made = self._executables[number] = self.device.compile(read_step(form))
        return made.said

    def _algorithms(self, number: int) -> int:
        return self.device.algorithms(self._executables[number])

    def _take(self, number: int, index: int) -> None:
        self.device.take_algorithm(self._executables[number], index)

    def _keep(self, number: int, index: int, timings: list[Timing]) -> None:
        self.device.keep_algorithm(self._executables[number], index, timings)

    def _record(self, number: int, bound: list[list[Any]]) -> None:
        self.commands[number] = self.device.record(
            [
                Bound(
                    self._executables[executable],
                    {read_slot(slot): self.window(*where) for slot, where in buffers},
                    label,
                    seconds,
                )
                for executable, buffers, label, seconds in bound
            ]
        )

    def _pace(self) -> float:
        return self.device.pace()

    def _close(self) -> None:
        self.device.close()

    def _free(self, frees: Channel) -> None:
        """Give memory back once the queues have done what they were asked for before."""
        with contextlib.suppress(EOFError):
            while True:
                buffers, commands, executables, fences = frees.receive()
                for lane, number in enumerate(fences):
                    with contextlib.suppress(DeviceError):
                        self.lanes[lane].wait(number)
                for number in commands:
                    self.commands.pop(number, None)
                for number in executables:
                    self._executables.pop(number, None)
                for number in buffers:
                    self._windows.pop(number, None)
                    self._buffers.pop(number).release()
                with self._freeing:
                    self._freed += len(buffers)
                    self._freeing.notify_all()


def main() -> None:
    """Serve the process at the other end of the socket that standard input is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process to answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    control = Channel(socket.socket(fileno=os.dup(0)), takes_descriptors=True)
    try:
        control.receive()
        _end_with(control.descriptors(1)[0])
        Server(control).serve()
    except EOFError:
        pass
    finally:
        sys.stdout.flush()
        os._exit(0)  # without what drivers do at the end, which nobody needs and may crash


def _end_with(pipe: int) -> None:
    """End this process when the last writer of a pipe is gone, whatever its threads are at."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | fcntl.FASYNC)
