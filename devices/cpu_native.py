"""The compiled loop that runs native steps, and the threads that help it.

``NativeProgram`` is a table of native steps run by one compiled loop that holds no interpreter
lock. With helper threads, a step of several chunks is shared: every thread claims chunks with an
atomic counter, and the leading thread goes on to the next step when all chunks of this one are
complete. A helper that wakes late only leaves more chunks to the others, so nobody waits for a
sleeping thread.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.devices.cpu_llvm import compile_ir
from crossdock.runtime.tensor import Array

CHUNKS_PER_THREAD = 4


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

_DRIVER = """
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)

; The monotonic clock, as seconds and nanoseconds, into pair %i of a table.
define internal void @stamp(ptr %stamps, i64 %i) {
entry:
  %word = mul i64 %i, 2
  %at = getelementptr i64, ptr %stamps, i64 %word
  %ignored = call i32 @clock_gettime(i32 CLOCK, ptr %at)
  ret void
}

define void @xd_serial(ptr noalias %table, i64 %n, ptr %stamps) {
entry:
  STAMP(0)
  %none = icmp sle i64 %n, 0
  br i1 %none, label %done, label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %row = mul i64 %i, 5
  %p0 = getelementptr i64, ptr %table, i64 %row
  %p1 = getelementptr i64, ptr %p0, i64 1
  %p2 = getelementptr i64, ptr %p0, i64 2
  %w0 = load i64, ptr %p0
  %w1 = load i64, ptr %p1
  %extent = load i64, ptr %p2
  %fn = inttoptr i64 %w0 to ptr
  %args = inttoptr i64 %w1 to ptr
  call void %fn(ptr %args, i64 0, i64 %extent)
  %next = add i64 %i, 1
  STAMP(%next)
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}

define internal void @relax(i64 %spins) {
entry:
  %often = and i64 %spins, 127
  %give = icmp eq i64 %often, 127
  br i1 %give, label %yield, label %pause
yield:
  %ignored = call i32 @sched_yield()
  ret void
pause:
  call void asm sideeffect "PAUSE", "~{memory}"()
  ret void
}

; Claim chunks of step %i until there are none left. Counters: claimed, complete.
define internal void @share(ptr %table, ptr %counters, i64 %i) {
entry:
  %row = mul i64 %i, 5
  %p0 = getelementptr i64, ptr %table, i64 %row
  %p1 = getelementptr i64, ptr %p0, i64 1
  %p2 = getelementptr i64, ptr %p0, i64 2
  %p3 = getelementptr i64, ptr %p0, i64 3
  %p4 = getelementptr i64, ptr %p0, i64 4
  %w0 = load i64, ptr %p0
  %w1 = load i64, ptr %p1
  %extent = load i64, ptr %p2
  %size = load i64, ptr %p3
  %chunks = load i64, ptr %p4
  %fn = inttoptr i64 %w0 to ptr
  %args = inttoptr i64 %w1 to ptr
  %pair = mul i64 %i, 2
  %claimed = getelementptr i64, ptr %counters, i64 %pair
  %complete = getelementptr i64, ptr %claimed, i64 1
  br label %claim
claim:
  %c = atomicrmw add ptr %claimed, i64 1 acq_rel
  %mine = icmp slt i64 %c, %chunks
  br i1 %mine, label %run, label %done
run:
  %begin = mul i64 %c, %size
  %far = add i64 %begin, %size
  %over = icmp sgt i64 %far, %extent
  %end = select i1 %over, i64 %extent, i64 %far
  call void %fn(ptr %args, i64 %begin, i64 %end)
  %old = atomicrmw add ptr %complete, i64 1 acq_rel
  br label %claim
done:
  ret void
}

; State: word 0 the current step, word 8 the helpers inside, words 16... two counters a step.
define void @xd_lead(ptr %table, i64 %n, ptr %state, ptr %stamps) {
entry:
  %inside = getelementptr i64, ptr %state, i64 8
  %counters = getelementptr i64, ptr %state, i64 16
  br label %clear
clear:
  %k = phi i64 [0, %entry], [%knext, %clearing]
  %unclear = icmp slt i64 %k, %n
  br i1 %unclear, label %clearing, label %open
clearing:
  %two = mul i64 %k, 2
  %q0 = getelementptr i64, ptr %counters, i64 %two
  %q1 = getelementptr i64, ptr %q0, i64 1
  store atomic i64 0, ptr %q0 monotonic, align 8
  store atomic i64 0, ptr %q1 monotonic, align 8
  %knext = add i64 %k, 1
  br label %clear
open:
  store atomic i64 0, ptr %state release, align 8
  STAMP(0)
  br label %step
step:
  %i = phi i64 [0, %open], [%next, %advance]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %look, label %close
look:
  %row = mul i64 %i, 5
  %p0 = getelementptr i64, ptr %table, i64 %row
  %p1 = getelementptr i64, ptr %p0, i64 1
  %p2 = getelementptr i64, ptr %p0, i64 2
  %p4 = getelementptr i64, ptr %p0, i64 4
  %chunks = load i64, ptr %p4
  %single = icmp sle i64 %chunks, 1
  br i1 %single, label %alone, label %shared
alone:
  %w0 = load i64, ptr %p0
  %w1 = load i64, ptr %p1
  %extent = load i64, ptr %p2
  %fn = inttoptr i64 %w0 to ptr
  %args = inttoptr i64 %w1 to ptr
  call void %fn(ptr %args, i64 0, i64 %extent)
  br label %advance
shared:
  call void @share(ptr %table, ptr %counters, i64 %i)
  %pair = mul i64 %i, 2
  %pair1 = add i64 %pair, 1
  %complete = getelementptr i64, ptr %counters, i64 %pair1
  br label %wait
wait:
  %spins = phi i64 [0, %shared], [%spins1, %idle]
  %got = load atomic i64, ptr %complete acquire, align 8
  %all = icmp sge i64 %got, %chunks
  br i1 %all, label %advance, label %idle
idle:
  call void @relax(i64 %spins)
  %spins1 = add i64 %spins, 1
  br label %wait
advance:
  %next = add i64 %i, 1
  STAMP(%next)
  store atomic i64 %next, ptr %state release, align 8
  br label %step
close:
  store atomic i64 %n, ptr %state seq_cst, align 8
  br label %leave
leave:
  %spins2 = phi i64 [0, %close], [%spins3, %idle2]
  %left = load atomic i64, ptr %inside seq_cst, align 8
  %empty = icmp eq i64 %left, 0
  br i1 %empty, label %done, label %idle2
idle2:
  call void @relax(i64 %spins2)
  %spins3 = add i64 %spins2, 1
  br label %leave
done:
  ret void
}

define void @xd_help(ptr %table, i64 %n, ptr %state) {
entry:
  %inside = getelementptr i64, ptr %state, i64 8
  %counters = getelementptr i64, ptr %state, i64 16
  %before = atomicrmw add ptr %inside, i64 1 seq_cst
  br label %look
look:
  %spins = phi i64 [0, %entry], [0, %shared], [%spins1, %idle]
  %last = phi i64 [-1, %entry], [%i, %shared], [%last, %idle]
  %i = load atomic i64, ptr %state seq_cst, align 8
  %open = icmp slt i64 %i, %n
  br i1 %open, label %step, label %done
step:
  %row = mul i64 %i, 5
  %row4 = add i64 %row, 4
  %p4 = getelementptr i64, ptr %table, i64 %row4
  %chunks = load i64, ptr %p4
  %several = icmp sgt i64 %chunks, 1
  %fresh = icmp ne i64 %i, %last
  %join = and i1 %several, %fresh
  br i1 %join, label %shared, label %idle
shared:
  call void @share(ptr %table, ptr %counters, i64 %i)
  br label %look
idle:
  call void @relax(i64 %spins)
  %spins1 = add i64 %spins, 1
  br label %look
done:
  %after = atomicrmw sub ptr %inside, i64 1 seq_cst
  ret void
}
"""

_PAUSE = {"x86_64": "pause", "amd64": "pause", "aarch64": "yield", "arm64": "yield"}


@dataclass(frozen=True)
class _Driver:
    """The compiled loops; those that lead a run take a table of time stamps last."""

    serial: Any
    lead: Any
    help: Any


@functools.cache
def _driver(timed: bool) -> _Driver:
    """The loops; the ``timed`` ones note the clock before the first step and after each."""
    text = _DRIVER.replace("PAUSE", _PAUSE.get(platform.machine().lower(), "nop"))
    text = text.replace("CLOCK", str(time.CLOCK_MONOTONIC))
    stamp = r"call void @stamp(ptr %stamps, i64 \1)" if timed else ""
    text = re.sub(r"STAMP\((\S+)\)", stamp, text)
    names = [f"xd_{what}{'_timed' * timed}" for what in ("serial", "lead", "help")]
    for name in names:
        text = text.replace(f"@{name.removesuffix('_timed')}(", f"@{name}(")
    serial, lead, help_ = compile_ir(text, names)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    return _Driver(
        ctypes.CFUNCTYPE(None, pointer, number, pointer)(serial),
        ctypes.CFUNCTYPE(None, pointer, number, pointer, pointer)(lead),
        ctypes.CFUNCTYPE(None, pointer, number, pointer)(help_),
    )


def _chunks(row: NativeRow, threads: int) -> tuple[int, int]:
    """Items a chunk and number of chunks: a few a thread, none below the grain, all aligned."""
    most = threads * CHUNKS_PER_THREAD
    chunks = min(most, row.extent // max(row.grain, 1)) if threads > 1 else 1
    if chunks <= 1:
        return row.extent, 1
    size = -(-row.extent // chunks // row.align) * row.align
    return size, -(-row.extent // size)


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
        self._state = np.zeros(2 * _LINE + 2 * len(rows), np.int64)
        self._state[0] = len(rows)
        self._pool = pool if shared else None
        self._driver = _driver(timed=False)
        self._at = ctypes.c_void_p(int(self._table.ctypes.data))
        self._n = ctypes.c_int64(len(rows))
        self._state_at = ctypes.c_void_p(int(self._state.ctypes.data))

    def run(self) -> None:
        """Execute all steps."""
        self._run(self._driver, None)

    def timed(self) -> Array:
        """Execute all steps; when the first began and when each ended, float64 (steps + 1,).

        Seconds on the clock of ``time.perf_counter``.
        """
        stamps = np.zeros((int(self._n.value) + 1, 2), np.int64)
        self._run(_driver(timed=True), ctypes.c_void_p(int(stamps.ctypes.data)))
        seconds: Array = stamps[:, 0] + 1e-9 * stamps[:, 1]
        return seconds

    def _run(self, driver: _Driver, stamps: ctypes.c_void_p | None) -> None:
        if self._pool is None:
            driver.serial(self._at, self._n, stamps)
        else:
            self._pool.wake(self)
            driver.lead(self._at, self._n, self._state_at, stamps)

    def help(self) -> None:
        """Take part in a run that another thread leads; returns at once when none is on."""
        self._driver.help(self._at, self._n, self._state_at)


class HelperPool:
    """Threads that sleep until a program is run and then take part in it."""

    def __init__(self, helpers: int, name: str) -> None:
        self.helpers = helpers
        self._wake = threading.Condition()
        self._program: NativeProgram | None = None
        self._turn = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} helper {i}", daemon=True)
            for i in range(helpers)
        ]
        for thread in self._threads:
            thread.start()

    def wake(self, program: NativeProgram) -> None:
        """Call the helpers to a program that is about to run."""
        with self._wake:
            self._program = program
            self._turn += 1
            self._wake.notify_all()

    def close(self) -> None:
        """End the threads."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        seen = 0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._turn != seen)  # noqa: B023
                if self._closed:
                    return
                seen, program = self._turn, self._program
            assert program is not None
            program.help()
