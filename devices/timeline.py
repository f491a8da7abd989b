"""Order on the host between queues of different drivers: points of timelines.

A point may be waited on before its work is submitted; a failure is permanent, carries its first
cause to every waiter, and nobody hangs.
"""

from __future__ import annotations

import bisect
import copy
import threading
import time
from dataclasses import dataclass

from crossdock.devices.base import Event
from crossdock.runtime.errors import DeviceError, Error, Timeout


class Timeline:
    """A monotonic timeline: values are reached in order, or it fails once and for good."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reached = 0
        self._next = 0
        self._values: list[int] = []  # values advanced to, increasing, and their events
        self._events: list[Event | None] = []
        self._error: BaseException | None = None

    def record(self) -> Point:
        """A new point after all earlier ones; its work need not be submitted yet."""
        with self._changed:
            self._next += 1
            return Point(self, self._next)

    def advance(self, value: int, event: Event | None = None) -> None:
        """All points up to ``value`` are submitted, done when ``event`` is (None: done now)."""
        with self._changed:
            if self._error is None and value > self._reached:
                self._values.append(value)
                self._events.append(event)
                self._reached = value
                self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Fail every point not reached yet; the first error stays."""
        with self._changed:
            if self._error is None:
                self._error = error
                self._changed.notify_all()

    @property
    def error(self) -> BaseException | None:
        """The first failure, or None."""
        return self._error

    def submitted(self, value: int, timeout: float | None) -> Event | None:
        """Block until ``value`` is submitted; the driver event of its work, if one is pending."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._reached >= value or self._error is not None, timeout
            ):
                raise Timeout(f"waited {timeout} s for step {value} to be submitted")
            if self._reached < value:
                raise _carried(self._error)
            return self._events[bisect.bisect_left(self._values, value)]


def _carried(error: BaseException | None) -> Error:
    """The error a waiter gets: same type where it is ours, with the first failure as cause."""
    if isinstance(error, Error):
        carried = copy.copy(error)
    else:
        carried = DeviceError(f"a step failed: {type(error).__name__}: {error}")
    carried.__cause__ = error
    return carried


@dataclass(frozen=True, slots=True)
class Point:
    """A value on a timeline."""

    timeline: Timeline
    value: int

    def event(self, timeout: float | None = None) -> Event | None:
        """Block until submitted; return the driver event, or None where the work is done."""
        return self.timeline.submitted(self.value, timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Block until reached; raises the first failure (as ``__cause__``) or Timeout."""
        event = self.event(timeout)
        if event is None:
            return
        if timeout is None:
            event.wait()
            return
        deadline = time.monotonic() + timeout
        while not event.done():
            if time.monotonic() > deadline:
                raise Timeout(f"waited {timeout} s for step {self.value} to finish")
            time.sleep(0.0002)
        event.wait()

    def signal(self, event: Event | None = None) -> None:
        """Mark this point as submitted, done when ``event`` is."""
        self.timeline.advance(self.value, event)
