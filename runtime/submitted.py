"""Runs that are handed in: a bounded number waits, and who hands in more waits, or is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any

from crossdock.runtime.background import Background, Job
from crossdock.runtime.errors import Busy, Timeout
from crossdock.runtime.future import RunFuture
from crossdock.runtime.pool import Deadline

Feeds = Mapping[str, Any]
Do = Callable[[Feeds, Deadline], dict[str, Any]]
"""Does a run; it is held by those that wait or are on, and so is their session."""


class Submissions:
    """The runs of a session that wait for their turn, and the threads that do them."""

    def __init__(self, name: str, at_once: int, waiting: int) -> None:
        """``name`` is what callers know the graph by."""
        self._name, self._waiting = name, waiting
        self._background = Background(at_once, f"crossdock submit {name}", waiting)
        self.post = self._background.post
        self.close = self._background.open  # who waits then is told by ``run`` that it is closed

    def submit(self, run: Do, feeds: Feeds, deadline: Deadline, *, block: bool) -> RunFuture:
        """Hand a run in; raises Busy where there is no room and the caller must not wait."""
        future, job = self._made(run, feeds, deadline)
        background = self._background
        if not block or background.inside():
            if not background.offer(job):
                future.withdraw = None
                raise self._busy()
        elif not background.wait(job, deadline):
            future.withdraw = None
            late = f"no room for run of {self._name!r:.80} after {deadline.seconds} s; "
            late += f"{self._waiting} wait already (waiting={self._waiting})"
            future.set_exception(deadline.error(self._name, late))
        return future

    async def awaited(self, run: Do, feeds: Feeds, deadline: Deadline) -> dict[str, Any]:
        """Do a run while the caller's event loop goes on; a run that has no room waits for it."""
        import asyncio  # takes long to load, and few sessions need it

        future, job = self._made(run, feeds, deadline)
        self._background.join(job)
        try:
            async with asyncio.timeout(deadline.left()):
                return await future
        except TimeoutError as error:
            if isinstance(error, Timeout):
                raise
            raise Timeout(
                f"run of {self._name!r:.80} not done after {deadline.seconds} s; the session stays "
                "usable"
            ) from None

    def _made(self, run: Do, feeds: Feeds, deadline: Deadline) -> tuple[RunFuture, Job]:
        future = RunFuture(deadline)
        job = partial(_fulfil, future, run, feeds, deadline)
        future.withdraw = partial(self._background.withdraw, job)
        return future, job

    def _busy(self) -> Busy:
        return Busy(
            f"run of {self._name!r:.80}: {self._waiting} runs wait already; wait for one of them, "
            f"or compile with more than waiting={self._waiting}"
        )


def _fulfil(future: RunFuture, run: Do, feeds: Feeds, deadline: Deadline) -> None:
    future.withdraw = None  # its reference to this job made a cycle
    if not future.set_running_or_notify_cancel():
        return
    try:
        outputs = run(feeds, deadline)
        with suppress(InvalidStateError):  # given up meanwhile
            future.set_result(outputs)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to the caller
        with suppress(InvalidStateError):
            future.set_exception(error)
    finally:
        del future  # an error's traceback holds this frame: no cycle with the future
