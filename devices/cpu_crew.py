"""The threads that help to run native programs.

They live as long as their pool, and so from run to run and from session to session. Each is one
call of compiled code (``cpu_loop``) that holds no interpreter lock: after a run a helper looks for
the next for some microseconds, then it sleeps. They run on any processor that the process had when
it began: a caller that pins itself does not pin them, too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress

import numpy as np

from crossdock.devices import topology
from crossdock.devices.cpu_loop import loops
from crossdock.runtime.errors import Unavailable

LOOKS = 1000
"""Looks for another program before a helper sleeps: about 50 us. Runs one after the other come
sooner, and to wake a thread takes as long."""
_WORDS = 48
_ASLEEP, _CLOSED, _FILES, _ONE = 24, 32, 40, 43
"""Words of a post; see ``cpu_loop``."""
_TOKEN = (1).to_bytes(8, sys.byteorder)


class HelperPool:
    """Threads that sleep until a program is led and then take part in it."""

    def __init__(self, helpers: int, name: str) -> None:
        self.helpers = helpers
        self._files = _counter(name)
        self._words = np.zeros(_WORDS + 8, np.int64)
        skip = -(int(self._words.ctypes.data) // 8) % 8
        self._state = self._words[skip : skip + _WORDS]
        self._state[_FILES : _ONE + 1] = (*self._files, LOOKS, 1)
        self.post = int(self._state.ctypes.data)
        """The address where a leader puts its program."""
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} helper {i}", daemon=True)
            for i in range(helpers)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads."""
        self._state[_CLOSED] = 1
        for _ in self._threads:
            os.write(self._files[1], _TOKEN)
        for thread in self._threads:
            thread.join()
        self._state[_ASLEEP] = 0  # a program that is led now wakes nobody
        self._state[_FILES : _FILES + 2] = -1
        for file in set(self._files):
            os.close(file)

    def _work(self) -> None:
        if hasattr(os, "sched_setaffinity"):
            with suppress(OSError):  # the system may have taken some away
                os.sched_setaffinity(0, topology.processors())
        if hasattr(signal, "pthread_sigmask"):  # a signal would end the sleep, and so the helper
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        loops(timed=False).crew(ctypes.c_void_p(self.post))


def _counter(name: str) -> tuple[int, int]:
    """Files to read and to write: a read of 8 bytes waits for a write of as many, and undoes it."""
    try:
        if hasattr(os, "eventfd"):
            file = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
            return file, file
        return os.pipe()
    except OSError as error:
        raise Unavailable(
            f"{name}: the system has no file to wake threads by ({error.strerror}); close some, or "
            "use threads=1"
        ) from error
