"""Scatters that combine updates of one place, on a grid.

A work item owns the places that it writes, and takes the updates of them in their order: the
result does not hang on chance, and needs no atomic operations.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Out
from crossdock.kernels.grid_common import (
    C_TYPES,
    COMPUTE,
    KINDS,
    Args,
    Defines,
    accessors,
    define,
    i32,
    launch,
    obstacle,
    operand,
    wrapped,
)
from crossdock.kernels.grid_gather import PLACED, along, points, sliced, start
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_LINES = r"""
KERNEL void combine(CONSTANT T *RESTRICT updates, CONSTANT INDEX *RESTRICT indices,
                    GLOBAL T *RESTRICT y, i32 lines, i32 count, i32 size, i32 inner) {
    const i32 i = GLOBAL_ID(0);
    if (i < lines) {
        const i32 outer = i / inner, c = i - outer * inner;
        for (i32 k = 0; k < count; ++k) {
            const i32 from = (outer * count + k) * inner + c;
            const i32 at = (outer * size + placed(indices[from], size)) * inner + c;
            const T_C a = T_LOAD(y, at), b = T_LOAD(updates, from);
            T_STORE(y, at, COMBINED);
        }
    }
}
"""

_POINTS = r"""
KERNEL void combine(CONSTANT T *RESTRICT updates, CONSTANT INDEX *RESTRICT indices,
                    GLOBAL T *RESTRICT y, i32 points, i32 inner, @PARAMS@) {
    const i32 c = GLOBAL_ID(0);
    if (c < inner) {
        for (i32 point = 0; point < points; ++point) {
            const i32 at = @AT@ + c;
            const T_C a = T_LOAD(y, at), b = T_LOAD(updates, point * inner + c);
            T_STORE(y, at, COMBINED);
        }
    }
}
"""

COMBINED = {"max": "X_MAX(a, b)", "min": "X_MIN(a, b)"}
SIGNS = {"add": "+", "mul": "*"}

BLOCK = 64


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if call.attrs["reduction"] == "none":
        return "nothing to combine"
    if call.op == "scatter_nd" and not operand(call, 1).dims[-1]:
        return "indices without a coordinate"
    return obstacle(call, device)


def _defines(call: OpCall) -> Defines:
    dtype, reduction = operand(call, 0).dtype, call.attrs["reduction"]
    combined = COMBINED.get(reduction) or wrapped("a", SIGNS[reduction], "b", COMPUTE[dtype])
    return (
        *accessors(dtype),
        *define(INDEX=C_TYPES[operand(call, 1).dtype], COMBINED=combined),
    )


@kernel("grid.scatter_elements.combine", "scatter_elements", KINDS, when=_fits, rank=20)
def lower_scatter_elements(call: OpCall, device: DeviceInfo) -> Lowered:
    """A copy, then one work item a line along the axis."""
    total, count, size, inner = along(call)
    lines = total // count
    args: Args = (In(2), In(1), Out(0), *i32(lines, count, size, inner))
    step = launch(PLACED + _LINES, "combine", args, (lines,), (BLOCK,), _defines(call))
    return Lowered((*start(call, device).steps, step))


@kernel("grid.scatter_nd.combine", "scatter_nd", KINDS, when=_fits, rank=20)
def lower_scatter_nd(call: OpCall, device: DeviceInfo) -> Lowered:
    """A copy, then one work item an element of the slices, over all updates."""
    text, values = points(call, _POINTS)
    count, inner = operand(call, 1).size // operand(call, 1).dims[-1], sliced(call)
    args: Args = (In(2), In(1), Out(0), *i32(count, inner, *values))
    step = launch(PLACED + text, "combine", args, (inner,), (BLOCK,), _defines(call))
    return Lowered((*start(call, device).steps, step))
