"""ONNX operators that read images between their cells: grids, regions, offset convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_sample import (
    Tap,
    axis_taps,
    corners_of,
    positions,
    row_numbers,
    total,
    working_type,
)
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.loaders.onnx_window import spatial
from crossdock.runtime.tensor import Array, to_numpy

SAMPLE_MODES = {
    "bilinear": "linear",
    "bicubic": "cubic",
    "linear": "linear",
    "cubic": "cubic",
    "nearest": "nearest",
}


def _as(ctx: Context, x: Operand, dtype: str) -> Operand:
    return x if x.dtype == dtype else ctx.b.cast(x, dtype)


@onnx_op("GridSample", since=16)
def grid_sample(ctx: Context) -> Operand:
    """The input [n, c, spatial ...] read at the places of a grid [n, results ..., axis]."""
    b, x, grid, node = ctx.b, ctx.x(0), ctx.x(1), ctx.node
    sizes = x.shape[2:]
    mode = SAMPLE_MODES.get(node.get_str("mode", "linear"))
    padding = node.get_str("padding_mode", "zeros")
    if mode is None or padding not in ("zeros", "border", "reflection"):
        raise ctx.malformed(f"mode {shown(node.get_str('mode'))}, padding {shown(padding)}")
    if len(grid.shape) != len(x.shape) or grid.shape[-1] != len(sizes) or not sizes:
        raise ctx.malformed(f"a grid {list(grid.shape)} for an input {list(x.shape)}")
    if grid.shape[0] != x.shape[0]:
        raise ctx.malformed(f"a grid of {grid.shape[0]} rows for an input of {x.shape[0]}")
    corners = bool(node.get_int("align_corners"))
    grid = _as(ctx, grid, working_type(grid.dtype))
    taps = []
    for axis, size in enumerate(sizes):
        own = b.slice(
            grid,
            [0] * (len(grid.shape) - 1) + [len(sizes) - 1 - axis],
            [*grid.shape[:-1], 1],
        )
        at = positions(ctx, b.reshape(own, list(grid.shape[:-1])), size, corners=corners)
        taps.append(axis_taps(ctx, at, size, mode, padding, corners=corners))
    rows = row_numbers(ctx, x.shape[0], len(grid.shape) - 1)
    out = _as(ctx, total(ctx, corners_of(ctx, x, rows, taps)), x.dtype)
    last = len(out.shape) - 1
    return b.transpose(out, permutation=[0, last, *range(1, last)])


@onnx_op("DeformConv", since=19)
def deform_conv(ctx: Context) -> Operand:
    """Convolution whose window cells lie where offsets say (Dai et al. 2017), weighed by a mask."""
    b, x, weights, offset = ctx.b, ctx.x(0), ctx.x(1), ctx.x(2)
    if len(weights.shape) != len(x.shape) or len(x.shape) < 3:
        raise ctx.malformed(f"a filter {list(weights.shape)} for an input {list(x.shape)}")
    over = spatial(ctx, weights.shape[2:])
    count, cells = len(over.kernel), math.prod(over.kernel)
    n, channels, *sizes = x.shape
    outs = list(offset.shape[2:])
    groups, shared = ctx.node.get_int("group", 1), ctx.node.get_int("offset_group", 1)
    if min(groups, shared) < 1 or channels % groups or channels % shared:
        raise ctx.malformed(f"{channels} channels in {groups} groups, {shared} of offsets")
    if offset.shape[1] != shared * cells * count or weights.shape[1] * groups != channels:
        raise ctx.malformed(f"offsets {list(offset.shape)} for a filter {list(weights.shape)}")
    kind = working_type(offset.dtype)
    moved = b.reshape(_as(ctx, offset, kind), [n * shared, cells, count, math.prod(outs)])
    taps = []
    for axis, size in enumerate(sizes):
        own = b.slice(moved, [0, 0, axis, 0], [n * shared, cells, 1, math.prod(outs)])
        own = b.reshape(own, [n * shared, cells, math.prod(outs)])
        base = _window_places(over.kernel, over.dilations, axis)
        base = base + (_window_starts(over.strides, outs, axis) - over.pads[axis][0])
        at = b.add(own, b.constant(base.astype(to_numpy(kind))))
        taps.append(axis_taps(ctx, at, size, "linear", "zeros", corners=True))
    images = b.reshape(x, [n * shared, channels // shared, *sizes])
    read = total(ctx, corners_of(ctx, images, row_numbers(ctx, n * shared, 3), taps))
    if ctx.opt(4) is not None:
        mask = b.reshape(ctx.x(4), [n * shared, cells, math.prod(outs), 1])
        read = b.mul(read, mask)
    columns = b.reshape(
        b.transpose(read, permutation=[0, 3, 1, 2]),
        [n, groups, channels // groups * cells, math.prod(outs)],
    )
    out_channels = weights.shape[0]
    filters = b.reshape(weights, [groups, out_channels // groups, channels // groups * cells])
    y = b.reshape(b.matmul(filters, columns), [n, out_channels, *outs])
    if ctx.opt(3) is None:
        return y
    return b.add(y, b.reshape(ctx.x(3), [out_channels, *[1] * count]))


def _window_places(kernel: Sequence[int], dilations: Sequence[int], axis: int) -> Array:
    """Along an axis, how far each cell of a window [cells, 1] lies from its start."""
    places = np.meshgrid(*(np.arange(k) * d for k, d in zip(kernel, dilations, strict=True)),
                         indexing="ij")  # fmt: skip
    return places[axis].reshape(-1, 1)


def _window_starts(strides: Sequence[int], outs: Sequence[int], axis: int) -> Array:
    """Along an axis, where each window [1, windows] starts in the padded input."""
    starts = np.meshgrid(*(np.arange(o) * s for o, s in zip(outs, strides, strict=True)),
                         indexing="ij")  # fmt: skip
    return starts[axis].reshape(1, -1)


# --- regions --------------------------------------------------------------------------------------


@onnx_op("RoiAlign", since=10)
def roi_align(ctx: Context) -> Operand:
    """Regions cut into bins, each the mean or maximum of points read in it (He et al. 2017)."""
    b, x, rois, node = ctx.b, ctx.x(0), ctx.x(1), ctx.node
    if len(x.shape) != 4 or len(rois.shape) != 2 or rois.shape[1] != 4:
        raise ctx.malformed(f"an input {list(x.shape)} with regions {list(rois.shape)}")
    mode = node.get_str("mode", "avg")
    if mode not in ("avg", "max"):
        raise ctx.malformed(f"mode {shown(mode)}")
    count = rois.shape[0]
    half = ctx.opset >= 16 and (
        node.get_choice("coordinate_transformation_mode", "half_pixel", "output_half_pixel")
        == "half_pixel"
    )
    bins = (node.get_int("output_height", 1), node.get_int("output_width", 1))
    kind = working_type(rois.dtype)
    scale = node.get_float("spatial_scale", 1.0)
    edges = _as(ctx, rois, kind)
    edges = b.linear(edges, alpha=scale, beta=-0.5 if half else 0.0)
    taps, samples, counts = [], [], []
    for axis in range(2):
        low, high = (b.slice(edges, [0, 1 - axis + 2 * k], [count, 1]) for k in range(2))
        extent = b.sub(high, low)
        extent = extent if half else b.max(extent, ctx.like(1, extent))
        size = b.div(extent, ctx.like(bins[axis], extent))
        at, number, live = _bin_points(ctx, low, size, bins[axis])
        points = at.shape[1]
        shape = [count, points, 1] if axis == 0 else [count, 1, points]
        taps.append(_region_taps(ctx, b.reshape(at, shape), x.shape[2 + axis], live, shape))
        samples.append(points // bins[axis])
        counts.append(number)
    rows = b.reshape(_as(ctx, ctx.x(2), "int32"), [count, 1, 1])
    parts = corners_of(ctx, x, rows, taps)
    parts = [
        b.reshape(p, [count, bins[0], samples[0], bins[1], samples[1], x.shape[1]]) for p in parts
    ]
    if mode == "max":
        out = _largest(ctx, parts)
    else:
        out = b.reduce_sum(total(ctx, parts), axes=[2, 4])
        number = np.maximum(counts[0] * counts[1], 1).reshape(-1, 1, 1, 1)
        out = b.div(out, b.constant(number.astype(to_numpy(out.dtype))))
    return b.transpose(out, permutation=[0, 3, 1, 2])


def _largest(ctx: Context, parts: Sequence[Operand]) -> Operand:
    """The largest weighed corner of any point, as ONNX has it (not the largest point)."""
    out = parts[0]
    for part in parts[1:]:
        out = ctx.b.max(out, part)
    return ctx.b.reduce_max(out, axes=[2, 4])


def _bin_points(
    ctx: Context, low: Operand, size: Operand, bins: int
) -> tuple[Operand, Array, Array | None]:
    """Places [regions, bins samples] of points along an axis, and how many a bin has.

    Without a fixed number a bin has one for each cell that it covers, rounded up, which the
    regions' values decide; those with fewer than the most leave points out (``live``).
    """
    b = ctx.b
    ratio = ctx.node.get_int("sampling_ratio")
    regions = low.shape[0]
    if ratio > 0:
        number = np.full(regions, ratio)
        most = ratio
    else:
        extents = size.value
        if extents is None:
            ctx.value(1, "a number of points a bin")
        assert extents is not None
        number = np.maximum(np.ceil(extents.reshape(-1)), 0).astype(np.int64)
        most = int(number.max(initial=1)) or 1
    ctx.make_room(regions * bins * most * 16)
    place = np.arange(bins)[:, None] + (np.arange(most)[None, :] + 0.5) / np.maximum(
        number, 1
    ).reshape(-1, 1, 1)
    live = np.arange(most)[None, None, :] < number.reshape(-1, 1, 1)
    whole = np.broadcast_to(live, place.shape).reshape(regions, bins * most)
    steps = b.constant(place.reshape(regions, bins * most).astype(to_numpy(low.dtype)))
    at = b.add(low, b.mul(size, steps))
    return at, number, None if live.all() else whole


def _region_taps(
    ctx: Context, at: Operand, size: int, live: Array | None, shape: Sequence[int]
) -> list[Tap]:
    """Two cells a place; more than a cell outside there is nothing."""
    b = ctx.b
    inside = b.logical_and(
        b.greater_or_equal(at, ctx.like(-1, at)), b.lesser_or_equal(at, ctx.like(size, at))
    )
    if live is not None:
        inside = b.logical_and(inside, b.constant(live.astype(np.uint8).reshape(tuple(shape))))
    at = b.clamp(at, min_value=0, max_value=size - 1)
    low = b.floor(at)
    part = b.sub(at, low)
    next_ = b.min(b.add(low, ctx.like(1, low)), ctx.like(size - 1, low))
    return [
        Tap(b.cast(low, "int32"), b.sub(ctx.like(1, part), part), inside),
        Tap(b.cast(next_, "int32"), part, inside),
    ]


@onnx_op("MaxRoiPool")
def max_roi_pool(ctx: Context) -> Operand:
    """The largest cell of each bin of a region [row, x1, y1, x2, y2] in whole cells."""
    b, x, rois, node = ctx.b, ctx.x(0), ctx.x(1), ctx.node
    bins = node.get_ints("pooled_shape")
    if bins is None or len(bins) != 2 or len(x.shape) != 4 or len(rois.shape) != 2:
        raise ctx.malformed(f"an input {list(x.shape)} with regions {list(rois.shape)}")
    count = rois.shape[0]
    scale = ctx.node.get_float("spatial_scale", 1.0)
    rows = b.reshape(b.cast(b.slice(rois, [0, 0], [count, 1]), "int32"), [count])
    out = b.gather(x, rows, axis=0)
    lowest = ctx.like(-math.inf, x)
    for axis in (1, 0):
        dims = list(out.shape)
        chosen = _bins(ctx, rois, axis, bins[axis], dims[2 + axis], scale)
        if axis == 1:
            cells = b.reshape(out, [*dims[:3], 1, dims[3]])
            mask = b.reshape(chosen, [count, 1, 1, bins[1], dims[3]])
            out = b.reduce_max(b.where(mask, cells, lowest), axes=[4])
        else:
            cells = b.reshape(out, [*dims[:2], 1, *dims[2:]])
            mask = b.reshape(chosen, [count, 1, bins[0], dims[2], 1])
            out = b.reduce_max(b.where(mask, cells, lowest), axes=[3])
    return b.where(b.equal(out, lowest), ctx.like(0, out), out)


def _bins(ctx: Context, rois: Operand, axis: int, bins: int, size: int, scale: float) -> Operand:
    """Which cells along an axis each bin [regions, bins, size] covers."""
    b, count = ctx.b, rois.shape[0]
    half = ctx.like(0.5, rois)
    low, high = (
        b.floor(
            b.add(
                b.mul(b.slice(rois, [0, 2 - axis + 2 * k], [count, 1]), ctx.like(scale, rois)),
                half,
            )
        )
        for k in range(2)
    )
    extent = b.max(b.add(b.sub(high, low), ctx.like(1, low)), ctx.like(1, low))
    each = b.div(extent, ctx.like(bins, extent))
    dtype = to_numpy(rois.dtype)
    place = np.arange(bins).astype(dtype)
    first = b.add(b.floor(b.mul(each, b.constant(place))), low)
    last = b.add(b.ceil(b.mul(each, b.constant(place + dtype.type(1)))), low)
    cells = b.constant(np.arange(size).astype(dtype))
    starts, ends = (b.reshape(v, [count, bins, 1]) for v in (first, last))
    return b.logical_and(b.greater_or_equal(cells, starts), b.lesser(cells, ends))
