"""The compiled loop that runs native steps, and the threads that help it.

``NativeProgram`` is a table of native steps run by one compiled loop that holds no interpreter
lock. With helper threads, a step of several chunks is shared: every thread claims chunks with
atomic counters, first those of its own part of the step, and the leading thread goes on to the next
step when all chunks of this one are complete. A helper that wakes late only leaves more chunks to
the others, so nobody waits for a sleeping thread.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.devices.cpu_crew import HelperPool
from crossdock.devices.cpu_loop import loops
from crossdock.runtime.tensor import Array

CHUNKS_PER_THREAD = 16


@dataclass(frozen=True)
class NativeRow:
    """One native step: machine code, its argument words, and how many items it has.

    ``keep`` holds what the words point to.
    """

    address: int
    words: tuple[int, ...]
    extent: int
    grain: int
    keep: object = None
    align: int = 1


_ROW = 5  # words in a table row: function, arguments, extent, items a chunk, chunks
_LINE = 8  # words in a cache line
_STOP = 1  # word of the state that ends a run


def _chunks(row: NativeRow, threads: int) -> tuple[int, int]:
    """Items a chunk and number of chunks: a few a thread, none below the grain, all aligned."""
    most = threads * CHUNKS_PER_THREAD
    chunks = min(most, row.extent // max(row.grain, 1)) if threads > 1 else 1
    if chunks <= 1:
        return row.extent, 1
    size = -(-row.extent // chunks // row.align) * row.align
    return size, -(-row.extent // size)


class _Call(ctypes.c_void_p):
    """The address of a program's words, which keeps all that they point to."""

    keep: object


class NativeProgram:
    """A table of native steps; ``run`` executes them in order in the calling thread."""

    def __init__(self, rows: Sequence[NativeRow], pool: HelperPool | None = None) -> None:
        threads = 1 + (pool.helpers if pool else 0)
        self._keep = [row.keep for row in rows]
        self._words = np.array([w for row in rows for w in row.words] or [0], np.int64)
        self._table = np.zeros((len(rows), _ROW), np.int64)
        base, at, shared = int(self._words.ctypes.data), 0, False
        for i, row in enumerate(rows):
            size, chunks = _chunks(row, threads)
            shared = shared or chunks > 1
            self._table[i] = (row.address, base + 8 * at, row.extent, size, chunks)
            at += len(row.words)
        self._threads = threads
        self._pitch = -(-len(rows) // _LINE) * _LINE
        room = np.zeros(3 * _LINE + (threads + 1) * self._pitch, np.int64)
        self._state = room[-(int(room.ctypes.data) // 8) % _LINE :]
        self._state[0] = len(rows)
        self._pool = pool if shared else None
        self._loops = loops(timed=False)
        self._call = self._call_with(None)
        self.run: Callable[[], object] = functools.partial(
            self._loops.serial if self._pool is None else self._loops.lead, self._call
        )
        """Executes all steps in the calling thread."""
        self.brief: Callable[[], object] | None = (
            functools.partial(self._loops.brief, self._call) if self._pool is None else None
        )
        """The same without letting other Python threads run meanwhile."""

    def _call_with(self, stamps: Array | None) -> _Call:
        """What the loops are called with."""
        table, state = (int(part.ctypes.data) for part in (self._table, self._state))
        at = 0 if stamps is None else int(stamps.ctypes.data)
        post = 0 if self._pool is None else self._pool.post
        sizes = self._threads, self._pitch
        words = np.array([table, len(self._table), state, at, post, *sizes], np.int64)
        call = _Call(int(words.ctypes.data))
        call.keep = (words, self._table, self._state, self._words, self._keep, stamps, self._pool)
        return call

    def timed(self) -> Array:
        """Execute all steps; when the first began and when each ended, float64 (steps + 1,).

        Seconds on the clock of ``time.perf_counter``.
        """
        stamps = np.zeros((len(self._table) + 1, 2), np.int64)
        call, run = self._call_with(stamps), loops(timed=True)
        (run.serial if self._pool is None else run.lead)(call)
        seconds: Array = stamps[:, 0] + 1e-9 * stamps[:, 1]
        return seconds

    def stop(self, on: bool) -> None:
        """Make runs end before their next step, or no more; from any thread."""
        self._state[_STOP] = on
