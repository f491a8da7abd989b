"""Threads that do the work of queues, and what they owe a process that ends."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable

from crossdock.runtime.errors import Cancelled, DeviceError, Error, ExecutionError

EXIT_SECONDS = 1.4
"""How long the end of the process waits for jobs: a thread that the interpreter kills inside of a
driver's code takes the process down with it."""


class Jobs:
    """The jobs that run in this process, counted so that its end can wait for them."""

    def __init__(self) -> None:
        self.ending = False
        self.forked = False
        self._running = 0
        self._changed = threading.Condition()

    def run(self, job: Callable[[], None]) -> None:
        """Call a job and count it meanwhile."""
        with self._changed:
            self._running += 1
        try:
            job()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Tell the jobs to end, and wait for them a while."""
        self.ending = True
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0, EXIT_SECONDS)

    def fork(self) -> None:
        """In a child that has none of the threads: end whatever asks, and wait for nobody."""
        self.ending = self.forked = True
        self._running = 0
        self._changed = threading.Condition()


JOBS = Jobs()
atexit.register(JOBS.end)


def no_more(what: str) -> Error:
    """Why nothing runs any more in this process: ``what`` was to."""
    if JOBS.forked:
        return ExecutionError(
            f"{what}: this process was forked from one that had opened devices, and their threads "
            "and drivers did not come along; start it with the method spawn, or fork first"
        )
    return Cancelled(f"{what} was cancelled: the process is ending")


def run_job(job: Callable[[], None]) -> None:
    """Call a job; one that raises is reported, so that its thread goes on with the others."""
    try:
        JOBS.run(job)
    except Exception as error:  # noqa: BLE001 - one bad job must not strand the others
        told = (type(error), error, error.__traceback__, threading.current_thread())
        threading.excepthook(threading.ExceptHookArgs(told))


class Worker:
    """A daemon thread that runs what is posted, in order."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stop = False
        self._retired = False
        self._start()

    def _start(self) -> None:
        self._there = True
        self.thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self.thread.start()

    def post(self, job: Callable[[], None]) -> None:
        """Append a job; it must not raise (jobs hand their errors to their own timeline).

        Raises DeviceError after ``stop``: nothing would ever run the job.
        """
        with self._wake:
            if self._stop:
                raise DeviceError(f"{self._name}: it was closed; open the device again")
            self._jobs.append(job)
            self._wake.notify()
            if not self._there:
                self._start()

    def stop(self) -> None:
        """End the thread after the jobs already posted."""
        with self._wake:
            self._stop = True
            self._wake.notify()

    def retire(self) -> None:
        """End the thread whenever there is no job; one that is posted then gets a new one."""
        with self._wake:
            self._retired = True
            self._wake.notify()

    def leave(self) -> list[Callable[[], None]]:
        """End the thread after the job that it is at; the jobs that it has not begun."""
        with self._wake:
            self._stop = True
            jobs = list(self._jobs)
            self._jobs.clear()
            self._wake.notify()
            return jobs

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._jobs:
                    if self._stop or self._retired:
                        self._there = False
                        return
                    self._wake.wait()
                job = self._jobs.popleft()
            run_job(job)
            del job  # a thread that sleeps keeps nothing alive
