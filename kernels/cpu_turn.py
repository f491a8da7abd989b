"""Turning a square of vectors in registers: rows become columns."""

from __future__ import annotations

from collections.abc import Sequence

from crossdock.kernels.cpu_vector import Value, Vector


def turned(v: Vector, rows: Sequence[Value]) -> list[Value]:
    """Lane j of row i becomes lane i of row j; there are as many rows as lanes, a power of 2.

    One exchange of neighbouring blocks for each bit of an index (J. O. Eklundh, A fast computer
    method for matrix transposing, 1972).
    """
    made = list(rows)
    bit = 1
    while bit < v.lanes:
        for i in range(v.lanes):
            if not i & bit:
                a, b = made[i], made[i | bit]
                made[i], made[i | bit] = _picked(v, a, b, bit, 0), _picked(v, a, b, bit, bit)
        bit *= 2
    return made


def _picked(v: Vector, a: Value, b: Value, bit: int, side: int) -> Value:
    """The lanes of both whose bit is ``side``: those of ``a`` in the lower places."""
    picks = []
    for lane in range(v.lanes):
        home = (lane & ~bit) | side
        picks.append(f"i32 {home + v.lanes if lane & bit else home}")
    kind, mask = v.t(a.kind), f"<{v.lanes} x i32> <{', '.join(picks)}>"
    text = f"shufflevector {kind} {a.name}, {kind} {b.name}, {mask}"
    return Value(v.code.let(text), a.kind)
