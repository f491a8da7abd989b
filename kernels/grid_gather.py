"""Gather and scatter on a grid. Elements move as unsigned integers of their size.

Negative indices count from the end, and indices out of range are clamped, as the op table says.
A scatter copies its operand, then writes the updates; which of two updates of one place wins is
open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Lowered, Out
from crossdock.kernels.grid_common import (
    C_TYPES,
    KINDS,
    MAX_ROWS,
    RAW,
    Args,
    Defines,
    define,
    i32,
    item_size,
    launch,
    obstacle,
    on_cpu,
    operand,
    row_major,
)
from crossdock.kernels.grid_move import copy
from crossdock.kernels.grid_pointwise import LONG_ROW, LOOP, row_blocks
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

PLACED = r"""
DEVICE i32 placed(INDEX index, i32 size) {
    const i64 at = (i64)index, from_end = at < 0 ? at + size : at;
    return from_end < 0 ? 0 : from_end >= size ? size - 1 : (i32)from_end;
}
"""

_ROWS = r"""
KERNEL void gather(CONSTANT T *RESTRICT x, CONSTANT INDEX *RESTRICT indices,
                   GLOBAL T *RESTRICT y, i32 rows, i32 count, i32 size, i32 inner) {
    const i32 c = GLOBAL_ID(0), r = GLOBAL_ID(1);
    if (c < inner && r < rows) {
        const i32 outer = r / count, at = placed(indices[r - outer * count], size);
        y[r * inner + c] = x[(outer * size + at) * inner + c];
    }
}
"""

_LOOPS = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void gather(CONSTANT T *RESTRICT x, CONSTANT INDEX *RESTRICT indices, GLOBAL T *RESTRICT y,
            i32 rows, i32 count, i32 size, i32 inner, i32 per) {
    const i32 first = GROUP_ID(0) * per, last = first + per < rows ? first + per : rows;
    for (i32 r = first; r < last; ++r) {
        const i32 outer = r / count, at = placed(indices[r - outer * count], size);
        for (i32 c = 0; c < inner; ++c) y[r * inner + c] = x[(outer * size + at) * inner + c];
    }
}
"""
"""For processors: an item copies some rows."""

_EACH = r"""
KERNEL void gather(CONSTANT T *RESTRICT x, CONSTANT INDEX *RESTRICT indices,
                   GLOBAL T *RESTRICT y, i32 rows, i32 count, i32 size, i32 inner) {
    const i32 i = GLOBAL_ID(0);
    if (i < rows * inner) {
        const i32 r = i / inner, c = i - r * inner;
        const i32 outer = r / count, at = placed(indices[r - outer * count], size);
        y[i] = x[(outer * size + at) * inner + c];
    }
}
"""

_ELEMENTS = r"""
KERNEL void elements(CONSTANT T *RESTRICT x, CONSTANT INDEX *RESTRICT indices,
                     GLOBAL T *RESTRICT y, i32 n, i32 count, i32 size, i32 inner) {
    const i32 i = GLOBAL_ID(0);
    if (i < n) {
        const i32 r = i / inner, outer = r / count;
        const i32 at = (outer * size + placed(indices[i], size)) * inner + i - r * inner;
#if SCATTER
        y[at] = x[i];
#else
        y[i] = x[at];
#endif
    }
}
"""

_POINTS = r"""
KERNEL void points(CONSTANT T *RESTRICT x, CONSTANT INDEX *RESTRICT indices,
                   GLOBAL T *RESTRICT y, i32 n, i32 inner, @PARAMS@) {
    const i32 i = GLOBAL_ID(0);
    if (i < n) {
        const i32 point = i / inner, c = i - point * inner;
#if SCATTER
        y[@AT@ + c] = x[i];
#else
        y[i] = x[@AT@ + c];
#endif
    }
}
"""

BLOCK = 64


def _types(call: OpCall) -> Defines:
    index = C_TYPES[operand(call, 1).dtype]
    return define(T=RAW[item_size(operand(call, 0).dtype)], INDEX=index)


def _one_each(
    call: OpCall, text: str, entry: str, args: Args, n: int, *, scatter: bool
) -> GridLaunch:
    defines = _types(call) + define(SCATTER=int(scatter))
    return launch(PLACED + text, entry, args, (n,), (BLOCK,), defines)


@kernel("grid.gather", "gather", KINDS, when=obstacle, rank=20)
def lower_gather(call: OpCall, device: DeviceInfo) -> Lowered:
    """Rows of the inner dimensions, one for each index in each outer place."""
    dims, axis = operand(call, 0).dims, call.attrs["axis"]
    count, inner = operand(call, 1).size, math.prod(dims[axis + 1 :])
    rows = math.prod(dims[:axis]) * count
    args: Args = (In(0), In(1), Out(0), *i32(rows, count, dims[axis], inner))
    if on_cpu(device):
        per = max(1, min(LOOP // inner, rows // (4 * max(1, device.compute_units))))
        looped = (*args, *i32(per))
        step = launch(PLACED + _LOOPS, "gather", looped, (-(-rows // per),), (1,), _types(call))
    elif inner >= LONG_ROW and rows <= MAX_ROWS:
        items, block = row_blocks(inner, rows)
        step = launch(PLACED + _ROWS, "gather", args, items, block, _types(call))
    else:
        step = launch(PLACED + _EACH, "gather", args, (rows * inner,), (BLOCK,), _types(call))
    return Lowered((step,))


def along(call: OpCall) -> tuple[int, int, int, int]:
    """Indices in all, indices along the axis, the operand's size there, and what lies inside."""
    dims, axis = operand(call, 0).dims, call.attrs["axis"]
    indices = operand(call, 1)
    return indices.size, indices.dims[axis], dims[axis], math.prod(dims[axis + 1 :])


@kernel("grid.gather_elements", "gather_elements", KINDS, when=obstacle, rank=20)
def lower_gather_elements(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - lower
    """One work item an index."""
    sizes = along(call)
    args: Args = (In(0), In(1), Out(0), *i32(*sizes))
    return Lowered((_one_each(call, _ELEMENTS, "elements", args, sizes[0], scatter=False),))


def start(call: OpCall, device: DeviceInfo) -> Lowered:
    """A copy of operand 0 to the result."""
    spec = operand(call, 0)
    flat = (spec.size,)
    return Lowered((copy(spec.dtype, flat, device, source=In(0), strides=(1,)),))


def _replaces(call: OpCall, device: DeviceInfo) -> str | None:
    return "combines updates" if call.attrs["reduction"] != "none" else obstacle(call, device)


@kernel("grid.scatter_elements", "scatter_elements", KINDS, when=_replaces, rank=20)
def lower_scatter_elements(call: OpCall, device: DeviceInfo) -> Lowered:
    """A copy, then one work item an update."""
    sizes = along(call)
    args: Args = (In(2), In(1), Out(0), *i32(*sizes))
    step = _one_each(call, _ELEMENTS, "elements", args, sizes[0], scatter=True)
    return Lowered((*start(call, device).steps, step))


def points(call: OpCall, text: str) -> tuple[str, list[int]]:
    """A text for indices of this depth, and the sizes and strides that it takes.

    @PARAMS@ becomes parameters for these, and @AT@ the offset of the slice that ``point`` names.
    """
    dims, depth = operand(call, 0).dims, operand(call, 1).dims[-1]
    names = [n for k in range(depth) for n in (f"n{k}", f"s{k}")]
    strides = row_major(dims)
    values = [v for k in range(depth) for v in (dims[k], strides[k])]
    terms = [f"placed(indices[point * {depth} + {k}], n{k}) * s{k}" for k in range(depth)]
    text = text.replace("@PARAMS@", ", ".join(f"i32 {n}" for n in names))
    return text.replace("@AT@", " + ".join(terms)), values


def _fits_points(call: OpCall, device: DeviceInfo) -> str | None:
    if call.attrs.get("reduction", "none") != "none":
        return "combines updates"
    if (why := obstacle(call, device)) is not None:
        return why
    return None if operand(call, 1).dims[-1] else "indices without a coordinate"


def sliced(call: OpCall) -> int:
    """Elements of the slice that a point names."""
    dims: Sequence[int] = operand(call, 0).dims
    return math.prod(dims[operand(call, 1).dims[-1] :])


@kernel("grid.gather_nd", "gather_nd", KINDS, when=_fits_points, rank=20)
def lower_gather_nd(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - lower
    """One work item a result."""
    text, values = points(call, _POINTS)
    n = call.outputs[0].size
    args: Args = (In(0), In(1), Out(0), *i32(n, sliced(call), *values))
    return Lowered((_one_each(call, text, "points", args, n, scatter=False),))


@kernel("grid.scatter_nd", "scatter_nd", KINDS, when=_fits_points, rank=20)
def lower_scatter_nd(call: OpCall, device: DeviceInfo) -> Lowered:
    """A copy, then one work item an update."""
    text, values = points(call, _POINTS)
    n = operand(call, 2).size
    args: Args = (In(2), In(1), Out(0), *i32(n, sliced(call), *values))
    step = _one_each(call, text, "points", args, n, scatter=True)
    return Lowered((*start(call, device).steps, step))
