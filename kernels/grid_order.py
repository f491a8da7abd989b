"""top_k on a grid: every element finds its own rank in its line."""

from __future__ import annotations

import math

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Out
from crossdock.kernels.grid_common import (
    COMPUTE,
    KINDS,
    Args,
    accessors,
    define,
    i32,
    launch,
    obstacle,
    operand,
)
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_RANK = r"""
DEVICE i32 before(T_C a, T_C b) {
#if FLOATS
    if (a != a || b != b) return LARGEST ? a != a && b == b : a == a && b != b;
#endif
    return LARGEST ? a > b : a < b;
}

KERNEL void top(CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, GLOBAL i64 *RESTRICT places,
                i32 n, i32 length, i32 inner, i32 k) {
    const i32 i = GLOBAL_ID(0);
    if (i < n) {
        const i32 row = i / inner, c = i - row * inner, line = row / length;
        const i32 own = row - line * length, base = line * length * inner + c;
        const T_C value = T_LOAD(x, i);
        i32 rank = 0;
        for (i32 j = 0; j < length && rank < k; ++j) {
            const T_C other = T_LOAD(x, base + j * inner);
            if (before(other, value) || (j < own && !before(value, other))) ++rank;
        }
        if (rank < k) {
            const i32 at = (line * k + rank) * inner + c;
            y[at] = x[i];
            places[at] = own;
        }
    }
}
"""

BLOCK = 64


MOST = 2**32
"""Comparisons at most: beyond, sorting on the host is far cheaper."""


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    spec = operand(call, 0)
    if spec.size * spec.dims[call.attrs["axis"]] > MOST:
        return Refusal(f"lines too long to compare each with each ({spec})", Cause.SIZE)
    return obstacle(call, device)


@kernel("grid.top_k", "top_k", KINDS, when=_fits, rank=20)
def lower_top_k(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - lower
    """One work item an element; it stops looking once k others come before."""
    spec, attrs = operand(call, 0), call.attrs
    axis = attrs["axis"]
    inner = math.prod(spec.dims[axis + 1 :])
    floats = int(COMPUTE[spec.dtype] in ("f32", "f64"))
    defines = (
        *accessors(spec.dtype),
        *define(LARGEST=int(attrs["largest"]), FLOATS=floats),
    )
    args: Args = (In(0), Out(0), Out(1), *i32(spec.size, spec.dims[axis], inner, attrs["k"]))
    return Lowered((launch(_RANK, "top", args, (spec.size,), (BLOCK,), defines),))
