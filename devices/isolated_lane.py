"""What a queue in another process was asked for, and how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from crossdock.devices.base import Event, Span
from crossdock.devices.isolated_channel import Channel, Staging
from crossdock.devices.isolated_forms import read_error
from crossdock.devices.isolated_process import Process
from crossdock.runtime.errors import DeviceError

MOST_UNREAD = 32
"""Requests after which answers are read that nobody waits for, so that they never fill a socket."""


@dataclass(eq=False)
class IsolatedEvent(Event):
    """A request; ``works`` stand for the steps that it executes, ``labels`` are their names."""

    lane: Lane
    number: int
    works: Sequence[str] = ()
    labels: Sequence[str] = ()
    error: DeviceError | None = None
    spans: list[Span] = field(default_factory=list)
    times: tuple[float, float] | None = None

    def wait(self) -> None:
        """Block until the worker has done it; raises what it failed with."""
        self.lane.wait(self.number)
        if self.error is not None:
            raise self.error

    def done(self) -> bool:
        """Whether the worker has done it, or failed; never blocks."""
        return self.lane.done(self.number)

    def span(self) -> tuple[float, float] | None:
        """Start and end on the clock of a device whose time is virtual."""
        return self.times


class Lane:
    """A queue's channel. Whoever waits first reads the answers, for all who wait.

    No thread has to be woken to wake another: that would take longer than most commands do.
    """

    def __init__(
        self,
        process: Process,
        index: int,
        channel: Channel,
        staging: Staging,
        lost: Callable[[], DeviceError],
    ) -> None:
        """``lost`` gives the error of a worker that is gone."""
        self.process, self.index, self.staging = process, index, staging
        self.asked = 0
        self._channel, self._lost = channel, lost
        self._error: DeviceError | None = None
        self._reached = 0
        self._open: dict[int, IsolatedEvent] = {}  # in order
        self._reading = False
        self._changed = threading.Condition()
        self._asking = threading.Lock()

    def ask(
        self,
        what: str,
        waits: Sequence[tuple[int, int]],
        args: Sequence[object],
        *,
        works: Sequence[str] = (),
        labels: Sequence[str] = (),
    ) -> IsolatedEvent:
        """Ask the queue for something, after what it was asked for before and ``waits``."""
        if len(self._open) >= MOST_UNREAD:
            self.poll()
        with self._asking:
            number = self.asked + 1
            event = IsolatedEvent(self, number, works, labels)
            self._open[number] = event
            self.asked = number
            try:
                self._channel.send([number, what, waits, *args])
            except EOFError:
                error = self._fail()
                raise error from None
        return event

    def head(self) -> IsolatedEvent | None:
        """The request that the queue is at, as far as is known."""
        return next(iter(list(self._open.values())), None)

    def wait(self, number: int) -> None:
        """Block until a request is done; raises the error of a worker that is gone."""
        while True:
            with self._changed:
                while self._reached < number and self._error is None and self._reading:
                    self._changed.wait()
                if self._reached >= number:
                    return
                if self._error is not None:
                    raise self._error
                self._reading = True
            self._read(None)

    def done(self, number: int) -> bool:
        """Whether a request is done or never will be."""
        if self._reached < number and self._error is None:
            self.poll()
        return self._reached >= number or self._error is not None

    def poll(self) -> None:
        """Read the answers that are there."""
        while True:
            with self._changed:
                if self._reading or self._error is not None:
                    return
                self._reading = True
            if not self._read(0.0):
                return

    def _read(self, seconds: float | None) -> bool:
        """Read an answer, as the one who reads; whether there was one."""
        try:
            answer = self._channel.receive(seconds)
        except EOFError:
            self._fail()
            return False
        except BaseException:  # the one who waited was interrupted; another one reads on
            self._stop_reading()
            raise
        if answer is None:
            self._stop_reading()
            return False
        number, failed, spans, times = answer
        event = self._open.pop(number)
        if failed is not None:
            event.error = read_error(failed, self.process.name)
        event.spans = [Span(*one) for one in spans]
        event.times = None if times is None else (times[0], times[1])
        with self._changed:
            self._reached, self._reading = number, False
            self._changed.notify_all()
        return True

    def _stop_reading(self) -> None:
        with self._changed:
            self._reading = False
            self._changed.notify_all()

    def _fail(self) -> DeviceError:
        """Tell everybody who waits that the worker is gone."""
        error = self._error or self._lost()
        with self._changed:
            self._error = self._error or error
            self._reading = False
            self._changed.notify_all()
        return self._error

    def end(self) -> None:
        """Wake who waits for a worker that has ended."""
        self._channel.end()
