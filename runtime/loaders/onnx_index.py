"""ONNX operators that choose or place elements: slice, pad, gather, scatter and their kin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_table import Context, onnx_op

PAD_MODES = {"constant": "constant", "reflect": "reflection", "edge": "edge"}


def window(ctx: Context, x: Operand, spans: Sequence[range]) -> Operand:
    """The elements that a range an axis chooses; a negative step reverses its axis."""
    b = ctx.b
    if any(len(span) == 0 for span in spans):
        return ctx.frame.empty(x.dtype, [len(span) for span in spans])
    lows = [min(span[0], span[-1]) for span in spans]
    steps = [abs(span.step) if len(span) > 1 else 1 for span in spans]
    sizes = [abs(span[-1] - span[0]) + 1 for span in spans]
    back = [i for i, span in enumerate(spans) if span.step < 0 and len(span) > 1]
    if any(lows) or sizes != list(x.shape) or any(s != 1 for s in steps):
        strided = any(s != 1 for s in steps)
        x = b.slice(x, lows, sizes, strides=steps) if strided else b.slice(x, lows, sizes)
    return b.reverse(x, axes=back) if back else x


@onnx_op("Slice")
def slice_by_attribute(ctx: Context) -> Operand:
    """Starts, ends and axes as attributes, steps of one."""
    starts, ends = ctx.node.get_ints("starts"), ctx.node.get_ints("ends")
    if starts is None or ends is None:
        raise ctx.malformed("starts or ends are missing")
    return _slice(ctx, starts, ends, ctx.node.get_ints("axes"), None)


@onnx_op("Slice", since=10)
def slice_by_operand(ctx: Context) -> Operand:
    """Starts, ends, axes and steps as constant operands."""
    axes = None if ctx.opt(3) is None else ctx.ints(3, "a list of axes")
    steps = None if ctx.opt(4) is None else ctx.ints(4, "a list of steps")
    return _slice(ctx, ctx.ints(1, "a start"), ctx.ints(2, "an end"), axes, steps)


def _slice(
    ctx: Context,
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...] | None,
    steps: tuple[int, ...] | None,
) -> Operand:
    x = ctx.x()
    rank = len(x.shape)
    places = list(range(len(starts))) if axes is None else list(axes)
    strides = [1] * len(starts) if steps is None else list(steps)
    if not len(starts) == len(ends) == len(places) == len(strides) or 0 in strides:
        raise ctx.malformed("starts, ends, axes and steps differ in length, or a step is zero")
    spans = [range(d) for d in x.shape]
    for axis, start, end, step in zip(ctx.axes(places, rank), starts, ends, strides, strict=True):
        spans[axis] = range(*slice(start, end, step).indices(x.shape[axis]))
    return window(ctx, x, spans)


@onnx_op("Pad", since=2)
def pad_by_attribute(ctx: Context) -> Operand:
    """Pads and value as attributes."""
    pads = ctx.node.get_ints("pads")
    if pads is None:
        raise ctx.malformed("attribute 'pads' is missing")
    return pad_by(ctx, pads, None, ctx.node.get_float("value"))


@onnx_op("Pad", since=11)
def pad_by_operand(ctx: Context) -> Operand:
    """Pads, value and (since opset 18) axes as constant operands."""
    value = 0 if ctx.opt(2) is None else ctx.scalar(2, "a padding value")
    axes = None if ctx.opt(3) is None else ctx.ints(3, "a list of axes")
    return pad_by(ctx, ctx.ints(1, "a padding"), axes, value)


def pad_by(
    ctx: Context, pads: tuple[int, ...], axes: tuple[int, ...] | None, value: float
) -> Operand:
    """Pad operand 0 by all begins, then all ends, on some axes; negative amounts crop."""
    x = ctx.x()
    rank = len(x.shape)
    places = list(range(rank)) if axes is None else ctx.axes(axes, rank)
    if len(pads) != 2 * len(places):
        raise ctx.malformed(f"{len(pads)} pads for {len(places)} axes")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(places):
        before[axis], after[axis] = pads[i], pads[len(places) + i]
    if any(d + lo + hi < 0 for d, lo, hi in zip(x.shape, before, after, strict=True)):
        raise ctx.malformed(f"pads {list(pads)} crop more than there is of {list(x.shape)}")
    mode = ctx.node.get_str("mode", "constant")
    if mode != "constant" and mode != "wrap" and mode not in PAD_MODES:
        raise ctx.malformed(f"padding mode {shown(mode)}")
    if min(*before, *after, 0) < 0:
        x = window(
            ctx,
            x,
            [
                range(max(0, -lo), max(d + min(0, hi), -lo, 0))
                for d, lo, hi in zip(x.shape, before, after, strict=True)
            ],
        )
    return padded(ctx, x, before, after, mode, value)


def padded(
    ctx: Context,
    x: Operand,
    before: Sequence[int],
    after: Sequence[int],
    mode: str = "constant",
    value: float = 0,
) -> Operand:
    """Pad where the amounts are positive."""
    low, high = [max(0, v) for v in before], [max(0, v) for v in after]
    if not any(low) and not any(high):
        return x
    if mode == "wrap":
        return _wrapped(ctx, x, low, high)
    if mode == "constant" and value:
        return ctx.b.pad(x, low, high, value=value)
    return ctx.b.pad(x, low, high, mode=PAD_MODES[mode])


def _wrapped(ctx: Context, x: Operand, low: Sequence[int], high: Sequence[int]) -> Operand:
    """Pad as if the tensor repeated."""
    for axis, (lo, hi) in enumerate(zip(low, high, strict=True)):
        if lo or hi:
            ctx.make_room((lo + x.shape[axis] + hi) * 8)
            places = np.arange(-lo, x.shape[axis] + hi, dtype=np.int64) % x.shape[axis]
            x = ctx.b.gather(x, ctx.b.constant(places), axis=axis)
    return x


def check_range(ctx: Context, sizes: Sequence[int]) -> None:
    """Raise where a constant index is out of range; ``sizes`` are one, or one for each column.

    Kernels clamp indices that are computed; of a constant one the model is known to be broken.
    """
    indices = ctx.known(1)
    if indices is None or not indices.size or len(sizes) not in (1, *indices.shape[-1:]):
        return
    most = np.array(sizes, np.int64)
    wrong = (indices < -most) | (indices >= most)
    if wrong.any():
        index = np.broadcast_to(indices, wrong.shape)[wrong][0]
        raise ctx.malformed(f"index {index} is out of range for {list(sizes)}")


@onnx_op("Gather")
def gather(ctx: Context) -> Operand:
    """Whole slices along an axis by index."""
    x, indices = ctx.x(0), ctx.x(1)
    axis = ctx.axis(ctx.node.get_int("axis"), len(x.shape))
    check_range(ctx, x.shape[axis : axis + 1])
    if 0 in indices.shape:
        return ctx.frame.empty(x.dtype, [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])
    return ctx.b.gather(x, indices, axis=axis)


@onnx_op("GatherElements", since=11)
def gather_elements(ctx: Context) -> Operand:
    """Single elements along an axis by index; indices may cover a corner of the other axes."""
    x, indices = ctx.x(0), ctx.x(1)
    axis = ctx.axis(ctx.node.get_int("axis"), len(x.shape))
    _check_corner(ctx, x, indices, axis)
    check_range(ctx, x.shape[axis : axis + 1])
    spans = [range(d) for d in indices.shape]
    spans[axis] = range(x.shape[axis])
    return ctx.b.gather_elements(window(ctx, x, spans), indices, axis=axis)


def _check_corner(ctx: Context, x: Operand, indices: Operand, axis: int) -> None:
    if len(indices.shape) != len(x.shape) or any(
        i > d for k, (i, d) in enumerate(zip(indices.shape, x.shape, strict=True)) if k != axis
    ):
        raise ctx.malformed(f"indices {list(indices.shape)} for an input {list(x.shape)}")


@onnx_op("GatherND", since=11)
def gather_nd(ctx: Context) -> Operand:
    """Slices by index tuples; batch dimensions are added to the tuples."""
    b, x, indices = ctx.b, ctx.x(0), ctx.x(1)
    batch = ctx.node.get_int("batch_dims")
    if len(indices.shape) and batch >= 0:
        check_range(ctx, x.shape[batch : batch + indices.shape[-1]])
    if not batch:
        return b.gather_nd(x, indices)
    dims = list(indices.shape[:-1])
    if not 0 < batch < min(len(x.shape), len(indices.shape)):
        raise ctx.malformed(f"batch_dims {batch}")
    grids = np.meshgrid(*(np.arange(d) for d in dims), indexing="ij")[:batch]
    own = np.stack(grids, axis=-1).astype(indices.dtype)
    return b.gather_nd(x, b.concat([b.constant(own), indices], len(dims)))


REDUCTIONS = ("none", "add", "mul", "max", "min")


@onnx_op("Scatter", since=9)
@onnx_op("ScatterElements", since=11)
def scatter_elements(ctx: Context) -> Operand:
    """Single elements along an axis, placed by index; in a corner of the other axes, too."""
    b, x, indices = ctx.b, ctx.x(0), ctx.x(1)
    reduction = _reduction(ctx)
    axis = ctx.axis(ctx.node.get_int("axis"), len(x.shape))
    _check_corner(ctx, x, indices, axis)
    check_range(ctx, x.shape[axis : axis + 1])
    if 0 in indices.shape:
        return x
    full = [
        i == axis or d == n for i, (d, n) in enumerate(zip(indices.shape, x.shape, strict=True))
    ]
    if all(full):
        return b.scatter_elements(x, indices, ctx.x(2), axis=axis, reduction=reduction)
    grids = np.meshgrid(*(np.arange(d, dtype=indices.dtype) for d in indices.shape), indexing="ij")
    places = [b.constant(grid[..., None]) for grid in grids]
    places[axis] = b.reshape(indices, [*indices.shape, 1])
    return b.scatter_nd(x, b.concat(places, len(places)), ctx.x(2), reduction=reduction)


@onnx_op("ScatterND", since=11)
def scatter_nd(ctx: Context) -> Operand:
    """Slices, placed by index tuples."""
    indices = ctx.x(1)
    if 0 in indices.shape:
        return ctx.x(0)
    check_range(ctx, ctx.x(0).shape[: indices.shape[-1]])
    return ctx.b.scatter_nd(ctx.x(0), ctx.x(1), ctx.x(2), reduction=_reduction(ctx))


def _reduction(ctx: Context) -> str:
    """What becomes of several updates of one place, and of what was there."""
    reduction = ctx.node.get_str("reduction", "none")
    if reduction not in REDUCTIONS:
        raise ctx.malformed(f"reduction {shown(reduction)}")
    return reduction


@onnx_op("TensorScatter", since=24)
def tensor_scatter(ctx: Context) -> Operand:
    """New entries written into a cache from an index of each batch on, round its end on request."""
    b, past, update = ctx.b, ctx.x(0), ctx.x(1)
    rank = len(past.shape)
    axis = ctx.axis(ctx.node.get_int("axis", -2), rank)
    mode = ctx.node.get_str("mode", "linear")
    if mode not in ("linear", "circular") or axis == 0:
        raise ctx.malformed(f"mode {shown(mode)} along axis {axis}")
    size, count = past.shape[axis], update.shape[axis]
    if len(update.shape) != rank or count > size:
        raise ctx.malformed(f"an update {list(update.shape)} of a cache {list(past.shape)}")
    cells = np.arange(size, dtype=np.int64).reshape([size if i == axis else 1 for i in range(rank)])
    ago = b.constant(cells)
    if ctx.opt(2) is not None:
        start = b.reshape(b.cast(ctx.x(2), "int64"), [past.shape[0], *[1] * (rank - 1)])
        ago = b.sub(ago, start)
    if mode == "circular":
        ago = b.mod(ago, ctx.like(size, ago))
    fresh = b.logical_and(
        b.greater_or_equal(ago, ctx.like(0, ago)), b.lesser(ago, ctx.like(count, ago))
    )
    at = b.expand(b.clamp(ago, min_value=0, max_value=count - 1), list(past.shape))
    return b.where(fresh, b.gather_elements(update, at, axis=axis), past)


@onnx_op("Compress", since=9)
def compress(ctx: Context) -> Operand:
    """Slices along an axis (or of the flat tensor) where a constant condition holds."""
    b, x = ctx.b, ctx.x()
    chosen = np.flatnonzero(ctx.value(1, "a condition"))
    if "axis" in ctx.node.attrs:
        axis = ctx.axis(ctx.node.get_int("axis"), len(x.shape))
    else:
        x, axis = b.reshape(x, [int(np.prod(x.shape))]), 0
    if chosen.size and chosen[-1] >= x.shape[axis]:
        raise ctx.malformed("the condition is longer than its axis")
    if not chosen.size:
        return ctx.frame.empty(x.dtype, [*x.shape[:axis], 0, *x.shape[axis + 1 :]])
    return b.gather(x, b.constant(chosen.astype(np.int64)), axis=axis)


@onnx_op("Trilu", since=14)
def trilu(ctx: Context) -> Operand:
    """The upper or lower triangle of matrices."""
    k = 0 if ctx.opt(1) is None else int(ctx.scalar(1, "a diagonal"))
    return ctx.b.triangular(ctx.x(), upper=bool(ctx.node.get_int("upper", 1)), diagonal=k)


@onnx_op("CenterCropPad", since=18)
def center_crop_pad(ctx: Context) -> Operand:
    """Crop or pad with zeros around the centre, to a constant shape."""
    x = ctx.x()
    rank = len(x.shape)
    given = ctx.node.get_ints("axes")
    axes = list(range(rank)) if given is None else ctx.axes(given, rank)
    target = list(x.shape)
    for axis, dim in zip(axes, ctx.ints(1, "a shape"), strict=True):
        target[axis] = dim
    spans, before, after = [], [], []
    for have, want in zip(x.shape, target, strict=True):
        lost, gained = max(have - want, 0), max(want - have, 0)
        spans.append(range(lost // 2, lost // 2 + min(have, want)))
        before.append(gained // 2)
        after.append(gained - gained // 2)
    return padded(ctx, window(ctx, x, spans), before, after)


@onnx_op("ReverseSequence", since=10)
def reverse_sequence(ctx: Context) -> Operand:
    """Reverse as many leading elements of each row of a batch as an operand says."""
    b, x, lengths = ctx.b, ctx.x(), ctx.x(1)
    rank = len(x.shape)
    batch = ctx.axis(ctx.node.get_int("batch_axis", 1), rank)
    time = ctx.axis(ctx.node.get_int("time_axis", 0), rank)
    steps, rows = x.shape[time], x.shape[batch]
    if {batch, time} != {0, 1} or tuple(lengths.shape) != (rows,):
        raise ctx.malformed("batch and time are axes 0 and 1, with a length for each row")
    given = ctx.known(1)
    if given is not None and any(not 0 <= n <= steps for n in given.tolist()):
        raise ctx.malformed(f"a length is over {steps}")
    at = np.arange(steps, dtype=np.int64).reshape([-1 if i == time else 1 for i in range(rank)])
    place = b.constant(at)
    count = b.reshape(b.cast(lengths, "int64"), [rows if i == batch else 1 for i in range(rank)])
    back = b.sub(b.sub(count, ctx.like(1, count)), place)
    chosen = b.where(b.lesser(place, count), back, place)
    return b.gather_elements(x, b.expand(chosen, list(x.shape)), axis=time)
