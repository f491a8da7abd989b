"""Waits for drivers that can be left: a thread of their own sits them out.

Nothing takes a thread out of a driver that does not return, nor tells it of Ctrl-C there. To be
woken by another thread takes some 20 us longer than by the driver, so that what takes no longer
than waking is looked for first.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from crossdock.devices.base import Event
from crossdock.devices.worker import JOBS

SOON = 5e-5
"""Seconds in which an event is looked at before it is waited for."""
Wait = Callable[[], None]


class _Sitting:
    """One wait: what it ended with, and a lock that is held until then."""

    __slots__ = ("error", "over", "wait")

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.error: BaseException | None = None
        self.over = threading.Lock()
        self.over.acquire()


_IDLE: deque[SimpleQueue[_Sitting]] = deque()
"""What threads without work listen to. There are as many as waits were on at once."""


def _serve(mine: SimpleQueue[_Sitting]) -> None:
    while True:
        sitting = mine.get()
        try:
            JOBS.run(sitting.wait)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to who waits
            sitting.error = error
        _IDLE.append(mine)
        sitting.over.release()
        del sitting  # a thread that sleeps keeps nothing alive


def _yield() -> None:
    time.sleep(0)


_others_first: Callable[[], None] = getattr(os, "sched_yield", _yield)


def await_event(event: Event, look: Callable[[], None], every: float) -> None:
    """Wait for an event as ``attend`` does; raises what it failed with, or what ``look`` raises."""
    end = time.perf_counter() + SOON
    while not event.done():
        if time.perf_counter() > end:
            attend(event.wait, look, every)
            return
        _others_first()
    event.wait()  # raises where it failed


def attend(wait: Wait, look: Callable[[], None], every: float) -> None:
    """Have ``wait`` called, and return when it does; raises what it raises.

    ``look`` is called ``every`` so many seconds meanwhile. What it raises leaves the wait to its
    thread, for as long as it takes.
    """
    try:
        idle = _IDLE.pop()
    except IndexError:
        idle = SimpleQueue()
        threading.Thread(target=_serve, args=(idle,), name="crossdock wait", daemon=True).start()
    sitting = _Sitting(wait)
    idle.put(sitting)
    while not sitting.over.acquire(timeout=every):
        look()
    if sitting.error is not None:
        error, sitting.error = sitting.error, None
        raise error
