"""How fast the processor is at this moment, by a fixed piece of loads and arithmetic.

Cores change their clock and share arithmetic units with whoever runs beside them (another virtual
machine on the same core halves vector code for seconds). A time that was measured says little
without the pace of that moment.
"""

from __future__ import annotations

import functools

import numpy as np

from crossdock.devices.cpu_crew import HelperPool
from crossdock.devices.cpu_llvm import compile_ir
from crossdock.devices.cpu_native import NativeProgram, NativeRow

LANES = 16
CHAINS = 8
FLOATS = 4096
"""Read by one pass: half of the smallest first-level caches."""
PASSES = 1500
PASS_SECONDS = 1e-7
"""Seconds of one pass at pace 1, by definition: a 2 GHz core with 512-bit units has about it."""
TAKES = 2


def _text() -> str:
    """Passes over a small array, each element squared and added to one of independent sums.

    Most kernels load from the first-level cache while they multiply and add; a neighbour on the
    same core slows the loads more than arithmetic in registers, and kernels as much as these.
    """
    vector = f"<{LANES} x float>"
    each = range(CHAINS)
    body = []
    for k in each:
        body += [
            f"%o{k} = add i64 %j, {k * LANES}",
            f"%p{k} = getelementptr float, ptr %from, i64 %o{k}",
            f"%x{k} = load {vector}, ptr %p{k}, align 64",
            f"%m{k} = fmul contract {vector} %x{k}, %x{k}",
            f"%c{k} = fadd contract {vector} %m{k}, %a{k}",
        ]
    sums = [f"%s{k} = fadd {vector} %s{k - 1}, %c{k}" for k in each[1:]]
    lines = [
        "define void @xd_pace(ptr %args, i64 %begin, i64 %end) {",
        "entry:",
        "  %word = load i64, ptr %args",
        "  %from = inttoptr i64 %word to ptr",
        "  %second = getelementptr i64, ptr %args, i64 1",
        "  %other = load i64, ptr %second",
        "  %out = inttoptr i64 %other to ptr",
        "  br label %pass",
        "pass:",
        "  %i = phi i64 [%begin, %entry], [%next, %over]",
        *(f"  %b{k} = phi {vector} [zeroinitializer, %entry], [%c{k}, %over]" for k in each),
        "  br label %loop",
        "loop:",
        "  %j = phi i64 [0, %pass], [%further, %loop]",
        *(f"  %a{k} = phi {vector} [%b{k}, %pass], [%c{k}, %loop]" for k in each),
        *(f"  {line}" for line in body),
        f"  %further = add i64 %j, {CHAINS * LANES}",
        f"  %inside = icmp slt i64 %further, {FLOATS}",
        "  br i1 %inside, label %loop, label %over",
        "over:",
        "  %next = add i64 %i, 1",
        "  %more = icmp slt i64 %next, %end",
        "  br i1 %more, label %pass, label %done",
        "done:",
        f"  %s0 = fadd {vector} %c0, zeroinitializer",
        *(f"  {line}" for line in sums),
        f"  store {vector} %s{CHAINS - 1}, ptr %out, align 4",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


@functools.cache
def _address() -> int:
    return compile_ir(_text(), ["xd_pace"])[0]


class Pace:
    """Takes the processor's pace with as many threads as ``pool`` has, and the caller."""

    def __init__(self, pool: HelperPool | None = None) -> None:
        threads = 1 + (pool.helpers if pool else 0)
        self._passes = PASSES * threads
        room = np.full(FLOATS + LANES, 0.5, np.float32)
        skip = -(int(room.ctypes.data) // room.itemsize) % LANES
        self._source = room[skip : skip + FLOATS]
        self._out = np.zeros(LANES, np.float32)
        words = (int(self._source.ctypes.data), int(self._out.ctypes.data))
        row = NativeRow(_address(), words, self._passes, PASSES // 8)
        self._program = NativeProgram([row], pool)
        self._threads = threads
        self.take()

    def take(self) -> float:
        """Time a fixed piece of work now (some 0.3 ms): 1 at the reference pace, 2 at half of it.

        The better of two: a helper that wakes up late is not what is asked for.
        """
        seconds = min(self._once() for _ in range(TAKES))
        return seconds * self._threads / (self._passes * PASS_SECONDS)

    def _once(self) -> float:
        begin, end = self._program.timed().tolist()
        return float(max(end - begin, 1e-9))
