"""What this process holds: memory, descriptors, threads, temporary files, bytes of devices."""

from __future__ import annotations

import ctypes
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crossdock.devices.base import Device
from tests.soak.figures import Figure

MB = 1 << 20


@dataclass(frozen=True)
class Usage:
    """Counts at one moment."""

    resident: int
    descriptors: int
    threads: int
    files: int
    device_bytes: int

    @classmethod
    def now(cls, devices: Iterable[Device] = ()) -> Usage:
        """After what is unreachable has been collected, and free memory given back."""
        for _ in range(3):
            gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE"),
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(os.listdir(tempfile.gettempdir())),
            sum(device.gauge.used for device in devices),
        )

    def figures(self, test: str, before: Usage) -> list[Figure]:
        """What has grown since."""
        growth = (self.resident - before.resident) / MB
        counts = ("descriptors", "threads", "device_bytes")
        return [
            Figure(test, "growth of resident memory", round(growth, 3), 1.0, "MB"),
            *(
                Figure(test, f"growth of {n}", getattr(self, n) - getattr(before, n), 0)
                for n in counts
            ),
        ]


@contextmanager
def own_temporary_files() -> Iterator[None]:
    """A folder for the temporary files of this process, since others make theirs, too."""
    with tempfile.TemporaryDirectory() as folder:
        before = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = before[0]
            if before[1] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before[1]


def settled(now: Callable[[], Usage], before: Usage, seconds: float = 10.0) -> Usage:
    """The usage once threads that were idle have gone, or after so long."""
    end = time.monotonic() + seconds
    while (found := now()).threads > before.threads and time.monotonic() < end:
        time.sleep(0.1)
    return found
