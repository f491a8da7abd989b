"""How fast the processor is at this moment, by a fixed piece of arithmetic.

Cores change their clock and share arithmetic units with whoever runs beside them (another virtual
machine on the same core halves vector code for seconds). A time that was measured says little
without the pace of that moment.
"""

from __future__ import annotations

import functools

import numpy as np

from crossdock.devices.cpu_llvm import compile_ir
from crossdock.devices.cpu_native import HelperPool, NativeProgram, NativeRow

CHAINS = 12
ITEMS = 6000
ITEM_SECONDS = 7e-9
"""Seconds of one item at pace 1, by definition: a 1.7 GHz core with two 512-bit units has it."""


def _text() -> str:
    """A loop of independent multiply-adds over registers: it touches no memory but at its end."""
    vector = "<16 x float>"
    half = "<" + ", ".join(["float 5.000000e-01"] * 16) + ">"
    phis = [f"%a{k} = phi {vector} [{half}, %entry], [%c{k}, %loop]" for k in range(CHAINS)]
    body = []
    for k in range(CHAINS):
        body += [
            f"%b{k} = fmul {vector} %a{k}, {half}",
            f"%c{k} = fadd {vector} %b{k}, {half}",
        ]
    sums = [f"%s{k} = fadd {vector} %s{k - 1}, %c{k}" for k in range(1, CHAINS)]
    lines = [
        "define void @xd_pace(ptr %args, i64 %begin, i64 %end) {",
        "entry:",
        "  %word = load i64, ptr %args",
        "  %out = inttoptr i64 %word to ptr",
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [%begin, %entry], [%next, %loop]",
        *(f"  {line}" for line in [*phis, *body]),
        "  %next = add i64 %i, 1",
        "  %more = icmp slt i64 %next, %end",
        "  br i1 %more, label %loop, label %done",
        "done:",
        f"  %s0 = fadd {vector} %c0, %c0",
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
        self._items = ITEMS * threads
        self._out = np.zeros(16, np.float32)
        row = NativeRow(_address(), (int(self._out.ctypes.data),), self._items, ITEMS // 8)
        self._program = NativeProgram([row], pool)
        self._threads = threads
        self._program.timed()

    def take(self) -> float:
        """Time a fixed piece of work now (some 50 us): 1 at the reference pace, 2 at half of it."""
        begin, end = self._program.timed().tolist()
        return float(max(end - begin, 1e-9) * self._threads / (self._items * ITEM_SECONDS))


@functools.cache
def core() -> Pace:
    """The pace of the core that the caller is on."""
    return Pace()
