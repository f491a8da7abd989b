"""ONNX pools over any number of spatial dimensions."""

from __future__ import annotations

import math

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_index import padded
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.loaders.onnx_volume import (
    cell_table,
    columns_to_image,
    max_with_indices,
    pooled,
    window_cells,
)
from crossdock.runtime.loaders.onnx_window import Window, explicit_pads, spatial
from crossdock.runtime.tensor import to_numpy


def _sizes(ctx: Context, window: Window) -> list[int]:
    up = bool(ctx.node.get_int("ceil_mode"))
    sizes = []
    for i, size in enumerate(ctx.x().shape[2:]):
        begin, end = window.pads[i]
        room, stride = size + begin + end - window.reach(i), window.strides[i]
        if room < 0:
            raise ctx.malformed(f"a window of {window.reach(i)} in {size + begin + end} cells")
        count = (-(-room // stride) if up else room // stride) + 1
        late = up and (count - 1) * stride >= size + begin
        sizes.append(count - 1 if late else count)
    return sizes


@onnx_op("MaxPool")
def max_pool(ctx: Context) -> list[Operand | None]:
    """Largest element of each window, and on request its place in the flat input."""
    x, over = ctx.x(), spatial(ctx)
    sizes = _sizes(ctx, over)
    if ctx.wants(1):
        order = bool(ctx.node.get_int("storage_order"))
        return list(max_with_indices(ctx, x, over, sizes, column_major=order))
    return [pooled(ctx, x, over, sizes, ctx.b.max_pool2d)]


@onnx_op("MaxUnpool", since=9)
def max_unpool(ctx: Context) -> Operand:
    """The elements at their places in a tensor of zeros; a given output shape adds zeros behind."""
    b, x, places, over = ctx.b, ctx.x(0), ctx.x(1), spatial(ctx)
    if places.shape != x.shape:
        raise ctx.malformed(f"indices {list(places.shape)} for an input {list(x.shape)}")
    dims = list(x.shape[:2])
    for axis, size in enumerate(x.shape[2:]):
        dims.append((size - 1) * over.strides[axis] + over.kernel[axis] - sum(over.pads[axis]))
    flat, count = math.prod(dims), math.prod(x.shape)
    zeros = ctx.frame.filled((flat,), np.zeros((), to_numpy(x.dtype))).operand
    spread = b.scatter_elements(zeros, b.reshape(places, [count]), b.reshape(x, [count]))
    out = b.reshape(spread, dims)
    if ctx.opt(2) is None:
        return out
    wanted = ctx.ints(2, "a shape")
    if len(wanted) != len(dims) or any(w < d for w, d in zip(wanted, dims, strict=True)):
        raise ctx.malformed(f"output shape {list(wanted)}, less than {dims}")
    behind = [w - d for w, d in zip(wanted, dims, strict=True)]
    return padded(ctx, out, [0] * len(dims), behind)


@onnx_op("AveragePool")
def average_pool(ctx: Context) -> Operand:
    """Mean of each window, with or without the padding."""
    return averaged(ctx)


def averaged(ctx: Context) -> Operand:
    """Operand 0 averaged over the node's windows."""
    over = spatial(ctx)
    extra = {"count_include_pad": True} if ctx.node.get_int("count_include_pad") else {}
    return pooled(ctx, ctx.x(), over, _sizes(ctx, over), ctx.b.average_pool2d, **extra)


@onnx_op("LpPool")
def lp_pool(ctx: Context) -> Operand:
    """The p-norm of each window."""
    b, x, p, over = ctx.b, ctx.x(), _order(ctx), spatial(ctx)
    sizes = _sizes(ctx, over)
    if p == 2:
        return pooled(ctx, x, over, sizes, b.l2_pool2d)
    powers = b.pow(b.abs(x), ctx.like(p, x))
    cells = window_cells(ctx, powers, cell_table(ctx, x.shape[2:], over, sizes), 0)
    total = b.reduce_sum(cells, axes=[2])
    return b.reshape(b.pow(total, ctx.like(1 / p, x)), [*x.shape[:2], *sizes])


def _order(ctx: Context) -> float:
    """The norm's order, which opset 1 had as a float."""
    p = ctx.node.get_float("p", 2.0) if ctx.opset < 2 else ctx.node.get_int("p", 2)
    if p <= 0:
        raise ctx.malformed(f"a norm of order {p}")
    return p


@onnx_op("Col2Im", since=18)
def columns(ctx: Context) -> Operand:
    """Columns of window cells added up in an image of a constant shape."""
    node, x = ctx.node, ctx.x()
    image, block = ctx.ints(1, "an image's shape"), ctx.ints(2, "a block's shape")
    count = len(image)
    strides = node.get_ints("strides") or (1,) * count
    dilations = node.get_ints("dilations") or (1,) * count
    lists = (block, strides, dilations)
    if len(x.shape) != 3 or any(len(v) != count or min(v) < 1 for v in lists):
        raise ctx.malformed("image, block, strides and dilations differ in length, or in sign")
    over = Window(block, strides, dilations, explicit_pads(ctx, count))
    outs = []
    for axis, size in enumerate(image):
        outs.append((size + sum(over.pads[axis]) - over.reach(axis)) // strides[axis] + 1)
    cells, windows = math.prod(block), math.prod(outs)
    if min(outs) < 1 or x.shape[1] % cells or x.shape[2] != windows:
        raise ctx.malformed(f"columns {list(x.shape)} for {windows} windows of {cells} cells")
    return columns_to_image(ctx, x, image, over, outs)


@onnx_op("GlobalAveragePool", "GlobalMaxPool")
def global_pool(ctx: Context) -> Operand:
    """Mean or maximum over all spatial axes, kept as ones."""
    x = ctx.x()
    reduce = ctx.b.reduce_mean if ctx.node.op == "GlobalAveragePool" else ctx.b.reduce_max
    return reduce(x, axes=_spatial_axes(ctx), keep_dimensions=True)


@onnx_op("GlobalLpPool")
def global_lp_pool(ctx: Context) -> Operand:
    """The p-norm over all spatial axes, kept as ones."""
    b, x, p = ctx.b, ctx.x(), _order(ctx)
    axes = _spatial_axes(ctx)
    if p == 2:
        return b.reduce_l2(x, axes=axes, keep_dimensions=True)
    total = b.reduce_sum(b.pow(b.abs(x), ctx.like(p, x)), axes=axes, keep_dimensions=True)
    return b.pow(total, ctx.like(1 / p, x))


def _spatial_axes(ctx: Context) -> list[int]:
    rank = len(ctx.x().shape)
    if rank < 3:
        raise ctx.malformed(f"an input of rank {rank} has no spatial dimensions")
    return list(range(2, rank))
