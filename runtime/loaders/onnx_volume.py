"""Windows over any number of spatial dimensions, written with those over two.

A pool is done axis by axis but for the last two, whose windows WebNN has. A convolution takes the
window's cells along its leading axes as further channels. Where a window's cells are wanted one by
one, a constant table lists their places.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_index import padded, window
from crossdock.runtime.loaders.onnx_shape import reshaped
from crossdock.runtime.loaders.onnx_table import Context
from crossdock.runtime.loaders.onnx_window import Window
from crossdock.runtime.tensor import Array, to_numpy

Pool = Callable[..., Operand]


def as_image(ctx: Context, x: Operand) -> Operand:
    """A rank-3 operand as an image of height one; rank 4 as it is."""
    if len(x.shape) == 4:
        return x
    n, c, width = x.shape
    return ctx.b.reshape(x, [n, c, 1, width])


def from_image(ctx: Context, y: Operand, rank: int) -> Operand:
    """The inverse of ``as_image`` for an operand of the original rank."""
    if rank == 4:
        return y
    n, c, _, width = y.shape
    return ctx.b.reshape(y, [n, c, width])


def pooled(
    ctx: Context, x: Operand, over: Window, sizes: Sequence[int], pool: Pool, **extra: Any
) -> Operand:
    """Pool ``x`` [n, c, spatial ...] to ``sizes`` by a pool that is separable in its axes."""
    rank, count = len(x.shape), len(sizes)
    inner = min(count, 2)
    last = over.part(count - inner, count)
    options = last.options() | {
        "window_dimensions": [1] * (2 - inner) + list(last.kernel),
        "output_sizes": [1] * (2 - inner) + list(sizes[count - inner :]),
    }
    if count <= 2:
        return from_image(ctx, pool(as_image(ctx, x), **options, **extra), rank)
    dims = [*x.shape[: rank - 2], *sizes[count - 2 :]]
    image = ctx.b.reshape(x, [x.shape[0], math.prod(x.shape[1 : rank - 2]), *x.shape[rank - 2 :]])
    y = pool(image, **options, **extra)
    for axis in range(count - 2):
        along = over.part(axis, axis + 1)
        behind = math.prod(dims[axis + 3 :])
        image = ctx.b.reshape(y, [1, math.prod(dims[: axis + 2]), dims[axis + 2], behind])
        dims[axis + 2] = sizes[axis]
        y = pool(
            image,
            window_dimensions=[along.kernel[0], 1],
            padding=[*along.pads[0], 0, 0],
            strides=[along.strides[0], 1],
            dilations=[along.dilations[0], 1],
            output_sizes=[sizes[axis], behind],
            **extra,
        )
    return ctx.b.reshape(y, dims)


def convolved(
    ctx: Context, x: Operand, weights: Operand, bias: Operand | None, over: Window, groups: int
) -> Operand:
    """Convolve ``x`` [n, c, spatial ...] with ``weights`` [o, c / groups, kernel ...]."""
    b, count = ctx.b, len(over.kernel)
    if count <= 2:
        image, filters = as_image(ctx, x), as_image(ctx, weights)
        out = b.conv2d(image, filters, bias=bias, **over.options(), groups=groups)
        return from_image(ctx, out, len(x.shape))
    lead = count - 2
    lows = [0, 0, *(p[0] for p in over.pads[:lead]), 0, 0]
    highs = [0, 0, *(p[1] for p in over.pads[:lead]), 0, 0]
    x = padded(ctx, x, lows, highs)
    sizes = []
    for axis in range(lead):
        at = 2 + 2 * axis
        size = (x.shape[at] - over.reach(axis)) // over.strides[axis] + 1
        if size < 1:
            raise ctx.malformed(f"a window of {over.reach(axis)} in {x.shape[at]} cells")
        ctx.make_room(size * over.kernel[axis] * 8)
        places = np.arange(size)[:, None] * over.strides[axis]
        places = places + np.arange(over.kernel[axis]) * over.dilations[axis]
        x = b.gather(x, b.constant(places.astype(np.int64)), axis=at)
        sizes.append(size)
    n, c = x.shape[:2]
    plane = x.shape[-2:]
    order = [0, *(2 + 2 * i for i in range(lead)), 1, *(3 + 2 * i for i in range(lead))]
    x = b.transpose(x, permutation=[*order, 2 + 2 * lead, 3 + 2 * lead])
    cells = math.prod(over.kernel[:lead])
    x = b.reshape(x, [n * math.prod(sizes), c * cells, *plane])
    outputs, per_group = weights.shape[:2]
    filters = b.reshape(weights, [outputs, per_group * cells, *over.kernel[lead:]])
    last = over.part(lead, count)
    y = b.conv2d(x, filters, bias=bias, **last.options(), groups=groups)
    y = b.reshape(y, [n, *sizes, outputs, *y.shape[2:]])
    back = [0, lead + 1, *range(1, lead + 1), lead + 2, lead + 3]
    return b.transpose(y, permutation=back)


def convolved_back(
    ctx: Context, x: Operand, weights: Operand, over: Window, extra: Sequence[int], groups: int
) -> Operand:
    """Transposed convolution as a convolution over ``x`` with zeros between its cells.

    ``weights`` are [c, o / groups, kernel ...]; ``extra`` cells stand at the end of each axis.
    """
    b, count = ctx.b, len(over.kernel)
    for axis, stride in enumerate(over.strides):
        x = _spread(ctx, x, 2 + axis, stride)
    lows, highs = [0, 0], [0, 0]
    for axis, (begin, end) in enumerate(over.pads):
        border = over.reach(axis) - 1
        lows.append(border - begin)
        highs.append(border - end + extra[axis])
    spans = [
        range(max(0, -low), max(size + min(0, high), -low, 0))
        for size, low, high in zip(x.shape, lows, highs, strict=True)
    ]
    x = padded(ctx, window(ctx, x, spans), lows, highs)
    c, out, *kernel = weights.shape
    axes = list(range(count))
    filters = b.reshape(weights, [groups, c // groups, out, *kernel])
    filters = b.transpose(filters, permutation=[0, 2, 1, *(3 + a for a in axes)])
    filters = b.reshape(filters, [groups * out, c // groups, *kernel])
    filters = b.reverse(filters, axes=[2 + a for a in axes])
    ones = Window(over.kernel, (1,) * count, over.dilations, ((0, 0),) * count)
    return convolved(ctx, x, filters, ctx.opt(2), ones, groups)


def _spread(ctx: Context, x: Operand, axis: int, stride: int) -> Operand:
    """``x`` with ``stride - 1`` zeros between its cells along an axis."""
    size = x.shape[axis]
    if stride == 1 or size == 1:
        return x
    b, dims = ctx.b, list(x.shape)
    cells = b.reshape(x, [*dims[: axis + 1], 1, *dims[axis + 1 :]])
    high = [stride - 1 if i == axis + 1 else 0 for i in range(len(dims) + 1)]
    cells = b.pad(cells, [0] * len(high), high)
    dims[axis] = size * stride
    flat = b.reshape(cells, dims)
    dims[axis] = (size - 1) * stride + 1
    return b.slice(flat, [0] * len(dims), dims)


def cell_table(ctx: Context, sizes: Sequence[int], over: Window, outs: Sequence[int]) -> Array:
    """The flat places [windows, cells] in an input of ``sizes``; -1 stands for a padded cell."""
    ctx.make_room(math.prod(outs) * math.prod(over.kernel) * 16)
    at = np.zeros((1, 1), np.int64)
    inside = np.ones((1, 1), bool)
    for axis, size in enumerate(sizes):
        starts = np.arange(outs[axis]) * over.strides[axis] - over.pads[axis][0]
        own = starts[:, None] + np.arange(over.kernel[axis]) * over.dilations[axis]
        windows, cells = at.shape
        at = at[:, None, :, None] * size + own[None, :, None, :]
        fits = (own >= 0) & (own < size)
        inside = inside[:, None, :, None] & fits[None, :, None, :]
        shape = (windows * own.shape[0], cells * own.shape[1])
        at, inside = at.reshape(shape), inside.reshape(shape)
    return np.where(inside, at, -1)


def window_cells(ctx: Context, x: Operand, table: Array, fill: float) -> Operand:
    """The cells [n c, windows, cells] of ``x`` [n, c, spatial ...]; padded ones are ``fill``."""
    b = ctx.b
    rows, flat = math.prod(x.shape[:2]), math.prod(x.shape[2:])
    lines = b.reshape(x, [rows, flat])
    if (table < 0).any():
        beyond = b.constant(np.full((rows, 1), fill, to_numpy(x.dtype)))
        lines = b.concat([lines, beyond], 1)
    return b.gather(lines, b.constant(np.where(table < 0, flat, table)), axis=1)


def max_with_indices(
    ctx: Context, x: Operand, over: Window, outs: Sequence[int], *, column_major: bool
) -> tuple[Operand, Operand]:
    """The largest cell of each window, and its place in the flat input (the first, if several)."""
    b, sizes = ctx.b, x.shape[2:]
    table = cell_table(ctx, sizes, over, outs)
    dtype = to_numpy(x.dtype)
    lowest = np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf
    cells = window_cells(ctx, x, table, lowest)
    best = b.arg_max(cells, 2, output_data_type="int64")
    names = np.maximum(table, 0)
    if column_major:
        places = np.unravel_index(names, tuple(sizes))
        names = np.ravel_multi_index(places, tuple(sizes), order="F").astype(np.int64)
    windows, count = table.shape
    rows, flat = math.prod(x.shape[:2]), math.prod(sizes)
    at = b.add(best, b.constant(np.arange(windows, dtype=np.int64) * count))
    indices = b.gather(b.constant(names.reshape(-1)), at)
    indices = b.add(indices, b.constant(np.arange(rows, dtype=np.int64)[:, None] * flat))
    shape = [*x.shape[:2], *outs]
    return b.reshape(b.reduce_max(cells, axes=[2]), shape), b.reshape(indices, shape)


def columns_to_image(
    ctx: Context, x: Operand, image: Sequence[int], over: Window, outs: Sequence[int]
) -> Operand:
    """Add each column of ``x`` [n, c cells, windows] up where its window's cells lie.

    Written from the result's side: a constant table lists what each cell of the image gets.
    """
    b, table = ctx.b, cell_table(ctx, image, over, outs)
    windows, cells = table.shape
    n = x.shape[0]
    c = x.shape[1] // cells
    flat = math.prod(image)
    gives: list[list[int]] = [[] for _ in range(flat)]
    for w, k in itertools.product(range(windows), range(cells)):
        if table[w, k] >= 0:
            gives[table[w, k]].append(k * windows + w)
    most = max(1, *(len(g) for g in gives))
    nothing = cells * windows
    sources = np.array([g + [nothing] * (most - len(g)) for g in gives], np.int64)
    lines = reshaped(ctx, x, [n * c, cells * windows])
    lines = b.concat([lines, b.constant(np.zeros((n * c, 1), to_numpy(x.dtype)))], 1)
    total = b.reduce_sum(b.gather(lines, b.constant(sources), axis=1), axes=[2])
    return b.reshape(total, [n, c, *image])
