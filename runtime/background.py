"""Threads that wait for runs on behalf of callers who do not, and the line before them."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable

from crossdock.devices.worker import run_job
from crossdock.runtime.errors import ExecutionError
from crossdock.runtime.pool import Deadline

Job = Callable[[], None]
_HERE = threading.local()


class Background:
    """Daemon threads that wait for runs on behalf of ``submit``: started at need, gone when idle.

    Unlike those of ``concurrent.futures``, they do not keep the process from ending. ``size`` jobs
    are done at once and ``waiting`` more are taken; who comes then stands in line, first come first
    served. One of these threads, of any session, never stands in line: it might wait for itself.
    It may instead hand in ``size`` jobs more than others may, so that every job that ends can be
    followed by another.
    """

    IDLE_SECONDS = 5.0

    def __init__(self, size: int, name: str, waiting: float = math.inf) -> None:
        self._size, self._name, self._most = size, name, size + waiting
        self._jobs: deque[Job] = deque()
        self._line: deque[Job] = deque()
        self._threads = 0
        self._idle = 0
        self._busy = 0
        lock = threading.Lock()
        self._change = threading.Condition(lock)
        self._admitted = threading.Condition(lock)

    def post(self, job: Job) -> None:
        """Hand a job, which must not raise, to the next thread that is free, room or not."""
        with self._change:
            start = self._take(job)
        if start:
            self._start(job)

    def offer(self, job: Job) -> bool:
        """``post`` if there is room; whether there was."""
        with self._change:
            if self._full():
                return False
            start = self._take(job)
        if start:
            self._start(job)
        return True

    def join(self, job: Job) -> None:
        """``post`` as soon as there is room, without waiting for it."""
        with self._change:
            if self._full():
                self._line.append(job)
                return
            start = self._take(job)
        if start:
            self._start(job)

    def wait(self, job: Job, deadline: Deadline) -> bool:
        """``post`` as soon as there is room; False where the deadline was over before."""
        if self.offer(job):
            return True
        if self.inside():
            return False
        self.join(job)
        with self._admitted:
            try:
                there = deadline.wait(
                    lambda s: self._admitted.wait_for(lambda: job not in self._line, s)
                )
            except BaseException:
                self._drop(job)
                raise
            return there or not self._drop(job)

    def withdraw(self, job: Job) -> None:
        """Take a job back that has not begun, if so."""
        with self._change:
            self._drop(job)

    def open(self) -> None:
        """Let in all who stand in line or ever come."""
        with self._change:
            self._most = math.inf
            self._admit()

    @staticmethod
    def inside() -> bool:
        """Whether the calling thread is one of a ``Background``."""
        return getattr(_HERE, "inside", False)

    def _full(self) -> bool:
        most = self._most + (self._size if self.inside() else 0)
        return len(self._jobs) + self._busy >= most

    def _drop(self, job: Job) -> bool:
        for jobs in (self._line, self._jobs):
            if job in jobs:
                jobs.remove(job)
                self._admit()
                return True
        return False

    def _admit(self) -> None:
        """Fill the room there is with those who stand in line; all threads are about then."""
        while self._line and len(self._jobs) + self._busy < self._most:
            self._jobs.append(self._line.popleft())
            self._change.notify()
            self._admitted.notify_all()

    def _take(self, job: Job) -> bool:
        """Append a job; whether a thread has to be started for it, which is counted already."""
        self._jobs.append(job)
        if self._idle >= len(self._jobs) or self._threads == self._size:
            self._change.notify()
            return False
        self._threads += 1
        return True

    def _start(self, job: Job) -> None:
        """Start a thread; where there can be none, the job is for those that there are.

        Raises:
            ExecutionError: there are none; the job is taken back.
        """
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError as error:
            with self._change:
                self._threads -= 1
                stranded = self._threads == 0 and self._drop(job)
                self._change.notify()
            if stranded:
                raise ExecutionError(
                    f"{self._name}: no thread can be started to wait for the run ({error}); end "
                    "others, raise the limit of processes, or call run"
                ) from error

    def _work(self) -> None:
        _HERE.inside = True
        ended = 0
        while (job := self._next(ended)) is not None:
            run_job(job)
            del job  # an idle thread keeps nothing alive
            ended = 1

    def _next(self, ended: int) -> Job | None:
        with self._change:
            self._busy -= ended
            self._admit()
            self._idle += 1
            there = self._change.wait_for(lambda: self._jobs, self.IDLE_SECONDS)
            self._idle -= 1
            if there:
                self._busy += 1
                return self._jobs.popleft()
            self._threads -= 1
            return None
