"""Threads that wait for runs on behalf of callers who do not."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from crossdock.devices.worker import run_job


class Background:
    """Daemon threads that wait for runs on behalf of ``submit``: started at need, gone when idle.

    Unlike those of ``concurrent.futures``, they do not keep the process from ending.
    """

    IDLE_SECONDS = 5.0

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0
        self._change = threading.Condition()

    def post(self, job: Callable[[], None]) -> None:
        """Hand a job, which must not raise, to the next thread that is free."""
        with self._change:
            self._jobs.append(job)
            if self._idle >= len(self._jobs) or self._threads == self._size:
                self._change.notify()
                return
            self._threads += 1
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            run_job(job)
            del job  # an idle thread keeps nothing alive

    def _next(self) -> Callable[[], None] | None:
        with self._change:
            self._idle += 1
            there = self._change.wait_for(lambda: self._jobs, self.IDLE_SECONDS)
            self._idle -= 1
            if there:
                return self._jobs.popleft()
            self._threads -= 1
            return None
