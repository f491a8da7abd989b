"""On which cores the threads of OpenCL drivers for processors run.

Threads that are free wake on the core of the one that wakes them, and share it until the system
balances them: a kernel that is alone runs at half the speed for long. Drivers can pin their
threads. Intel's runtime lets the thread that waits work, too, and leaves a core to it: callers are
brought there, and stay free to leave.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

_PINNING = {"POCL_AFFINITY": "1", "DPCPP_CPU_PLACES": "cores", "DPCPP_CPU_CU_AFFINITY": "spread"}
"""What makes PoCL, and Intel's runtime, give each of their threads a core."""

_HOMES: dict[str, frozenset[int]] = {}
"""By platform, the processors that it wants callers to work on."""

Cores = frozenset[int]


def give_threads_cores() -> None:
    """Let drivers for processors give each of their threads a core.

    They count cores from the first: a process that may not run on all of them is left as it is.
    """
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == os.cpu_count():
        for name, value in _PINNING.items():
            os.environ.setdefault(name, value)


def context(cl: Any, handle: Any) -> Any:
    """A context of one device; the calling thread stays free to run where it could.

    With its first context Intel's runtime pins the caller, as if it were one of its threads.
    """
    if not hasattr(os, "sched_getaffinity"):
        return cl.Context([handle])
    mine = os.sched_getaffinity(0)
    try:
        made = cl.Context([handle])
        if (now := os.sched_getaffinity(0)) != mine:
            _HOMES[handle.platform.name] = frozenset(now)
    finally:
        os.sched_setaffinity(0, mine)
    return made


def home(handle: Any) -> Cores | None:
    """Where callers of a device are to work, if its driver says so and they can be brought there.

    Asked once there is a context of it.
    """
    return _HOMES.get(handle.platform.name) if _here is not None else None


def settle(cores: Cores) -> None:
    """Bring the calling thread to some processors, where it may run on them; it may leave."""
    if _here is None or _here() in cores:
        return
    mine = os.sched_getaffinity(0)
    if cores <= mine:
        os.sched_setaffinity(0, cores)
        os.sched_setaffinity(0, mine)


_here = getattr(ctypes.CDLL(None), "sched_getcpu", None) if os.name == "posix" else None
"""The processor that the calling thread is on; Linux tells without a system call."""
