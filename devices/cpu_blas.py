"""The BLAS library that numpy brought along: its threads, and its routines' addresses.

Only OpenBLAS is looked for, under the names that numpy's wheels and distributions give it. Where
there is none (Accelerate, MKL), ``blas()`` is None and callers go through numpy.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from crossdock.devices.program import Function

# Prefix and suffix of the symbols, and whether integers have 64 bits.
_NAMES = (("scipy_", "64_", True), ("", "64_", True), ("scipy_", "", False), ("", "", False))


@dataclass(frozen=True)
class Blas:
    """OpenBLAS: addresses of the C routines ``cblas_?gemm`` and ``cblas_?gemv``.

    ``wide`` tells whether their integers have 64 bits, else 32.
    """

    sgemm: int
    dgemm: int
    sgemv: int
    dgemv: int
    wide: bool
    get_threads: Callable[[], int]
    set_threads: Callable[[int], None]

    def enter(self) -> None:
        """Keep the library to one thread until as many calls of ``leave`` as of this.

        Only the first to come takes a lock. A call of the library that begins in the microseconds
        in which another thread is the last to leave may still use its threads.
        """
        _INSIDE.append(None)
        if self.get_threads() != 1:
            with _TURN:
                self._take()

    def leave(self) -> None:
        """Give back the count of threads, where nobody else is inside.

        Only the last to leave takes a lock. Who comes meanwhile finds the count at one, and no
        reason to wait: so it is looked afterwards who has come.
        """
        _INSIDE.pop()
        if not _INSIDE:
            with _TURN:
                if _TAKEN and not _INSIDE:
                    self.set_threads(_TAKEN.pop())
                    if _INSIDE:
                        self._take()

    def _take(self) -> None:
        found = self.get_threads()
        if found != 1:
            _TAKEN[:] = [found]
            self.set_threads(1)


_INSIDE: list[None] = []
"""One for each caller inside; it is appended to and popped from, which is atomic."""
_TAKEN: list[int] = []
"""The count of threads to be given back, where one was taken away."""
_TURN = threading.Lock()
"""Held while the count is changed."""


@functools.cache
def blas() -> Blas | None:
    """Find numpy's OpenBLAS in this process."""
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix, suffix, wide in _NAMES:
            found = _bind(library, prefix, suffix, wide)
            if found is not None:
                return found
    return None


ROUTINES = ("sgemm", "dgemm", "sgemv", "dgemv")


def routine(name: str) -> Function:
    """One of ``ROUTINES`` of the library that there must be."""
    return Function(f"blas.{name}", partial(_routine, name))


def _routine(name: str) -> int:
    library = blas()
    assert library is not None
    return int(getattr(library, name))


def _libraries() -> Iterator[str]:
    np.dot(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        lines = []
    mapped = {line.split(None, 5)[-1] for line in lines if "blas" in line}
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        mapped |= {str(p) for p in folder.glob("*openblas*")}
    yield from sorted(mapped, key=lambda p: ("numpy" not in p, p))


def _bind(library: ctypes.CDLL, prefix: str, suffix: str, wide: bool) -> Blas | None:
    try:
        sgemm, dgemm, sgemv, dgemv = (
            _address(getattr(library, f"{prefix}cblas_{name}{suffix}")) for name in ROUTINES
        )
        get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
        put = getattr(library, f"{prefix}openblas_set_num_threads{suffix}")
    except AttributeError:
        return None
    # They take no time: to let the interpreter lock go, and wait for it, would.
    told = ctypes.PYFUNCTYPE(ctypes.c_int)(_address(get))
    tell = ctypes.PYFUNCTYPE(None, ctypes.c_int)(_address(put))
    return Blas(sgemm, dgemm, sgemv, dgemv, wide, told, tell)


def _address(function: object) -> int:
    value = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert value
    return value
