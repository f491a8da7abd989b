"""Two devices of one core each; for processes of their own.

PoCL reads the number of its threads when it is loaded, and a part of a device made by fission still
runs on all of them: import this first, before numpy, in a process that has loaded no OpenCL.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

os.environ["POCL_MAX_PTHREAD_COUNT"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"


CORES = sorted(os.sched_getaffinity(0))


@contextmanager
def pinned() -> Iterator[None]:
    """Give the caller and the processor's queue the first core, OpenCL's thread the second.

    Left alone, the kernel starts both on the core that woke them and parts them milliseconds later.
    Threads that are made meanwhile inherit the core of who makes them.
    """
    _pin()
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def _pin() -> None:
    first, second, *_ = CORES
    ours = {t.native_id: t.name for t in threading.enumerate()}
    for task in os.listdir("/proc/self/task"):
        name = ours.get(int(task))
        if name is None:
            os.sched_setaffinity(int(task), {second})
        elif name.startswith(("crossdock cpu:0", "crossdock submit", "MainThread")):
            os.sched_setaffinity(int(task), {first})
        else:  # it may have been made by a thread that was pinned
            os.sched_setaffinity(int(task), {first, second})
