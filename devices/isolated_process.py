"""A worker process: started, asked, watched, ended; and what workers died at.

It is a new interpreter (not a fork, which drivers do not survive). Nothing but this object keeps
it alive: it ends when this process does, by the end of a pipe.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from crossdock.devices.base import TURN
from crossdock.devices.isolated_channel import Channel
from crossdock.devices.isolated_forms import read_error
from crossdock.runtime.errors import DeviceHung, DeviceLost, Unavailable

DEATHS = 3
"""How many workers the same work may end before it is refused."""
START_SECONDS = 60.0
"""How long a worker may take to start and open its device."""
_ENDING = 2.0
"""How long the system may take to tell how a process ended."""
_CODE = (
    "import sys; sys.path[:] = {path!r}; from crossdock.devices.isolated_worker import main; main()"
)


_PROCESSES: weakref.WeakSet[Process] = weakref.WeakSet()


def _forked() -> None:
    """In a child: let go of the workers of its parent, which end with the last who holds on."""
    for process in list(_PROCESSES):
        process.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Deaths:
    """How often workers died at the same work, by device id and work; for the whole process."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def note(self, device: str, works: Iterable[str]) -> None:
        """A worker died while it was at these."""
        with self._lock:
            self._counts.update((device, work) for work in set(works))

    def refused(self, device: str, work: str) -> bool:
        """Whether no worker is given this any more."""
        return self._counts[device, work] >= DEATHS


class Process:
    """A worker of a device. ``ask`` is safe for threads; one request is under way at a time.

    ``ended`` is called, from a thread of its own, when the process has ended.
    """

    def __init__(self, name: str, ended: Callable[[], None] | None = None) -> None:
        """Start a process for the device ``name``; raises Unavailable."""
        self.name = name
        self.control, other = Channel.pair()
        lifeline, holding = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = _spawned(other, name)
            self._status: int | None = None
            self._ended = threading.Event()
            self._asking = threading.Lock()
            self._numbers = itertools.count()
            threading.Thread(
                target=_watch,
                args=(weakref.ref(self), self.pid, self._ended, ended),
                name=f"crossdock {name} watch",
                daemon=True,
            ).start()
            self.let_go = weakref.finalize(self, os.close, holding)
            self.let_go.atexit = False
            _PROCESSES.add(self)
            self.control.send(["begin"], [lifeline])
        except EOFError:
            raise self.death() from None
        finally:
            other.close()
            os.close(lifeline)

    def ask(self, limit: float, what: str, *args: object, descriptors: Sequence[int] = ()) -> Any:
        """The answer to a request.

        Raises:
            DeviceError: what the device raised.
            DeviceLost: the process has ended.
            DeviceHung: there was no answer within ``limit`` seconds, in which this process ran.
        """
        with self._asking:
            number = next(self._numbers)
            try:
                self.control.send([number, what, *args], descriptors)
                failed, value = self._answer(number, limit, what)
            except EOFError:
                raise self.death() from None
        if failed is not None:
            raise read_error(failed, self.name)
        return value

    def _answer(self, number: int, limit: float, what: str) -> tuple[Any, Any]:
        left = limit
        while True:
            answer = self.control.receive(min(TURN, left))
            if answer is not None and answer[0] == number:
                return answer[1], answer[2]
            if answer is not None:
                continue  # whoever asked for that was interrupted
            left -= TURN  # counted in turns: the process may be stopped meanwhile
            if left <= 0:
                self.kill()
                raise DeviceHung(
                    f"{self.name}: its process {self.pid} has not answered {what!r} for "
                    f"{limit:.1f} s; set CROSSDOCK_WATCHDOG where that may take longer",
                    device=self.name,
                )

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return not self._ended.is_set()

    def kill(self) -> None:
        """End the process now, whatever it is at; its memory goes back to the system."""
        if not self._ended.is_set():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has ended, and has just been waited for
                return

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the process; whether it came."""
        return self._ended.wait(seconds)

    def note(self, status: int) -> None:
        """Take note of how the process ended."""
        self._status = status

    def death(self, at: str = "") -> DeviceLost:
        """The error of a process that has ended, or answers no more; ``at`` is what it was at."""
        self._ended.wait(_ENDING)
        status = self._status
        if status is None:
            how = "answers no more"
        elif os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            how = f"was ended by signal {number} ({signal.Signals(number).name})"
        else:
            how = f"ended with status {os.waitstatus_to_exitcode(status)}"
        during = f" while it was at {at}" if at else ""
        return DeviceLost(f"{self.name}: its process {self.pid} {how}{during}", device=self.name)


def _spawned(control: socket.socket, name: str) -> int:
    environment = {k: v for k, v in os.environ.items() if k != "CROSSDOCK_DEVICES"}
    code = _CODE.format(path=[p or os.getcwd() for p in sys.path])
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-W", "ignore", "-c", code],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, control.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, 2, 1),
            ],
        )
    except OSError as error:
        raise Unavailable(
            f"{name}: no process can be started for it ({error}); use the device without one",
            device=name,
        ) from error


def _watch(
    process: weakref.ref[Process],
    pid: int,
    ended: threading.Event,
    tell: Callable[[], None] | None,
) -> None:
    """Wait for the end of a process, so that it is known at once and leaves no zombie."""
    try:
        status = os.waitpid(pid, 0)[1]
    except ChildProcessError:  # somebody else has waited for it
        status = None
    found = process()
    if found is not None and status is not None:
        found.note(status)
    ended.set()
    if tell is not None:
        tell()


DEATHS_AT = Deaths()


def survived(call: Callable[[], Any], name: str, work: str) -> Any:
    """What ``call`` returns; notes it where it ends the process of device ``name``.

    Raises:
        DeviceError: what ``call`` raises.
    """
    try:
        return call()
    except DeviceLost:
        DEATHS_AT.note(name, [work])
        raise
