"""ONNX pools over one and two spatial dimensions, and global ones over any number."""

from __future__ import annotations

import math
from typing import Any

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.loaders.onnx_window import Window, as_image, from_image, spatial


def _options(ctx: Context, window: Window) -> dict[str, Any]:
    """The builder's options; rounding up never makes a window that starts beyond the input."""
    flat = len(window.kernel) == 1
    return window.options() | {
        "window_dimensions": [1] * flat + list(window.kernel),
        "output_sizes": [1] * flat + _sizes(ctx, window),
    }


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
def max_pool(ctx: Context) -> Operand:
    """Largest element of each window."""
    if ctx.wants(1):
        raise ctx.unsupported("the output Indices")
    x = ctx.x()
    out = ctx.b.max_pool2d(as_image(ctx, x), **_options(ctx, spatial(ctx)))
    return from_image(ctx, out, len(x.shape))


@onnx_op("AveragePool", since=7)
def average_pool(ctx: Context) -> Operand:
    """Mean of each window, with or without the padding."""
    x = ctx.x()
    options = _options(ctx, spatial(ctx))
    if ctx.node.get_int("count_include_pad"):
        options["count_include_pad"] = True
    return from_image(ctx, ctx.b.average_pool2d(as_image(ctx, x), **options), len(x.shape))


@onnx_op("LpPool", since=2)
def lp_pool(ctx: Context) -> Operand:
    """The p-norm of each window."""
    b, x, p = ctx.b, ctx.x(), ctx.node.get_int("p", 2)
    window = spatial(ctx)
    options = _options(ctx, window)
    if p == 2:
        return from_image(ctx, b.l2_pool2d(as_image(ctx, x), **options), len(x.shape))
    if ctx.node.get_int("ceil_mode"):
        raise ctx.unsupported(f"rounding up with a norm of order {p}")
    powers = as_image(ctx, b.pow(b.abs(x), ctx.like(p, x)))
    mean = b.average_pool2d(powers, **options, count_include_pad=True)
    total = b.mul(mean, ctx.like(math.prod(window.kernel), x))
    return from_image(ctx, b.pow(total, ctx.like(1 / p, x)), len(x.shape))


@onnx_op("GlobalAveragePool", "GlobalMaxPool")
def global_pool(ctx: Context) -> Operand:
    """Mean or maximum over all spatial axes, kept as ones."""
    x = ctx.x()
    reduce = ctx.b.reduce_mean if ctx.node.op == "GlobalAveragePool" else ctx.b.reduce_max
    return reduce(x, axes=_spatial_axes(ctx), keep_dimensions=True)


@onnx_op("GlobalLpPool", since=2)
def global_lp_pool(ctx: Context) -> Operand:
    """The p-norm over all spatial axes, kept as ones."""
    b, x, p = ctx.b, ctx.x(), ctx.node.get_int("p", 2)
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
