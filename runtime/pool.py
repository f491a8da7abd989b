"""Instances of a program for the runs that want one, and how long a caller waits for anything."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime.errors import Cancelled, Error, OutOfMemory, Timeout
from crossdock.runtime.program import Instance

TURN = 0.1
"""Seconds that a caller waits before it looks at signals again."""


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def free_caches() -> None:
    """Free the instances that sessions keep for runs to come, for a device without memory."""
    for pool in list(_POOLS):
        pool.drain()
    gc.collect()


class Deadline:
    """When the caller's patience ends; ``seconds`` None is never, but for ``cancel``."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.cancelled = False
        self.wake: Callable[[], None] | None = None  # ends the wait that is on
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds left, never below 0."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def cancel(self) -> None:
        """Give up now; from any thread."""
        self.cancelled = True
        if self.wake is not None:
            self.wake()

    def over(self) -> bool:
        """Whether the caller waits no more."""
        return self.cancelled or JOBS.ending or self.left() == 0.0

    def error(self, run: str, late: str) -> Error:
        """What ends a run that is over: it was cancelled, or ``late`` says what was not done."""
        if JOBS.ending:
            return no_more(f"run of {run!r:.80}")
        return Cancelled(f"run of {run!r:.80} was cancelled") if self.cancelled else Timeout(late)

    def wait(self, done: Callable[[float], bool]) -> bool:
        """Call ``done(seconds)``, which waits that long, until it is true or the deadline is over.

        It waits in short turns: compilers inside drivers (NVRTC's is one) set a handler for Ctrl-C
        that restarts a wait, and Python then sees the signal only where the wait returns.
        """
        while True:
            left = self.left()
            if done(TURN if left is None else min(TURN, left)):
                return True
            if self.cancelled or JOBS.ending or (left is not None and left <= TURN):
                return done(0.0)


class Pool:
    """Instances of a program: made at need up to ``limit``, then runs wait for a free one.

    Who cannot wait pops one off ``free``, and hands it back as everybody does; no lock is taken.
    """

    def __init__(self, make: Callable[[], Instance], limit: int, name: str = "") -> None:
        """``name`` is what a caller knows the program by."""
        self._make, self.limit, self._name = make, limit, name
        self.look: Callable[[], None] | None = None
        """Called now and then by who waits: what is waited for may never come."""
        self.free: deque[Instance] = deque()
        self._made = 0
        _POOLS.add(self)
        self._change = threading.Condition()
        self.waiting = 0

    def take(self, deadline: Deadline) -> Instance:
        """A free instance.

        Raises:
            Timeout: none was free before the deadline.
            Cancelled: the caller waits no more.
            OutOfMemory: there is no room for the first one; with others about, their end is
                waited for instead.
        """
        full = False
        while True:
            instance = self._reuse(deadline, full)
            if instance is not None:
                return instance
            try:
                return self._make()
            except OutOfMemory:
                if not self._unmake():
                    raise
                full = True
            except BaseException:
                self._unmake()
                raise

    def _reuse(self, deadline: Deadline, full: bool) -> Instance | None:
        """A free instance, or None where the caller is to make one (it is counted already)."""

        def may_make() -> bool:
            return self._made == 0 or (self._made < self.limit and not full)

        instance: Instance | None = None

        def found() -> bool:
            nonlocal instance
            with suppress(IndexError):
                instance = self.free.pop()
            return instance is not None or may_make()

        with self._change:
            self.waiting += 1  # from here on, who gives one back tells of it
            try:
                there = deadline.wait(partial(self._turn, found))
            except BaseException:
                if instance is not None:
                    self.free.append(instance)
                raise
            finally:
                self.waiting -= 1
            if not there:
                late = f"no free slot for a run after {deadline.seconds} s; {self._made} are in use"
                raise deadline.error(self._name, late)
            if instance is None:
                self._made += 1
            return instance

    def _turn(self, found: Callable[[], bool], seconds: float) -> bool:
        if self._change.wait_for(found, seconds):
            return True
        if self.look is not None:
            self.look()
        return found()

    def drain(self) -> bool:
        """Free the instances that no run is on; whether there were any."""
        drained = False
        with suppress(IndexError):
            while True:
                self.free.pop()
                self._unmake()
                drained = True
        return drained

    def _unmake(self) -> int:
        """Uncount an instance that could not be made; returns how many there are."""
        with self._change:
            self._made -= 1
            self._change.notify_all()
            return self._made

    def give(self, instance: Instance) -> None:
        """Put an instance back; takes the lock only where somebody waits for one."""
        self.free.append(instance)
        if self.waiting:
            self.tell()

    def discard(self) -> None:
        """Count an instance as gone for good; another may be made in its place."""
        self._unmake()

    def tell(self) -> None:
        """Wake one who waits: there is something free."""
        with self._change:
            self._change.notify()
