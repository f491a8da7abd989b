"""ONNX Resize and Upsample: resample2d where that takes the very same cells, else resize."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from crossdock.kernels.ops_pool import taps_of
from crossdock.kernels.ops_resample import Taps
from crossdock.kernels.ops_resize import POSITIONS, resize_taps
from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_table import Context, onnx_op

MAX_SIZE = 1 << 24
"""The largest extent of a result, far beyond any image."""


@onnx_op("Upsample", since=7)
def upsample(ctx: Context) -> Operand:
    """Scales as an attribute, from opset 9 on as a constant operand."""
    scales = ctx.node.get_floats("scales") if ctx.opset < 9 else _floats(ctx, 1)
    scales = scales and _decimal(scales)
    if scales is None:
        raise ctx.malformed("the scales are missing")
    return upsampled(ctx, scales)


@onnx_op("Resize", since=10)
def resize_by_scales(ctx: Context) -> Operand:
    """Opset 10: scales only, output cells counted from the corner."""
    scales = _floats(ctx, 1)
    if scales is None:
        raise ctx.malformed("the scales are missing")
    return upsampled(ctx, scales)


def upsampled(ctx: Context, scales: Sequence[float]) -> Operand:
    """Operand 0 scaled, a cell's place in the input taken at its lower corner."""
    options: dict[str, Any] = {
        "mode": ctx.node.get_str("mode", "nearest"),
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    axes = list(range(len(ctx.x().shape)))
    return _resized(ctx, axes, None, scales, options)


def _floats(ctx: Context, index: int) -> tuple[float, ...] | None:
    """A constant operand as numbers; None where it is absent or empty."""
    if ctx.opt(index) is None:
        return None
    values = ctx.value(index, "a scale or region").reshape(-1)
    return _decimal(values) or None


def _decimal(values: Iterable[Any]) -> tuple[float, ...]:
    """Single-precision numbers as the decimals they were written as.

    A scale of 0.6 is a little more than that as a float32. Positions computed from it in double
    precision would fall just short of a cell's edge where runtimes, in single precision, reach it.
    """
    return tuple(float(str(np.float32(v))) for v in values)


@onnx_op("Resize", since=11)
def resize(ctx: Context) -> Operand:
    """Sizes or scales, any coordinate mode; since opset 18 on some axes, with aspect policies."""
    node, rank = ctx.node, len(ctx.x().shape)
    given = node.get_ints("axes")
    axes = list(range(rank)) if given is None else ctx.axes(given, rank)
    roi, scales = _floats(ctx, 1), _floats(ctx, 2)
    sizes = None if ctx.opt(3) is None else (ctx.ints(3, "a size") or None)
    if (sizes is None) == (scales is None):
        raise ctx.malformed("either scales or sizes must be given")
    if sizes is not None:
        sizes, scales = _aspect(ctx, axes, sizes)
    mode = node.get_str("coordinate_transformation_mode", "half_pixel")
    if mode not in POSITIONS or (mode == "tf_half_pixel_for_nn" and ctx.opset >= 13):
        raise ctx.malformed(f"coordinate mode {shown(mode)}")
    options = {
        "mode": node.get_str("mode", "nearest"),
        "coordinate_transformation_mode": mode,
        "nearest_mode": node.get_str("nearest_mode", "round_prefer_floor"),
        "cubic_coeff_a": node.get_float("cubic_coeff_a", -0.75),
        "exclude_outside": bool(node.get_int("exclude_outside")),
        "extrapolation_value": node.get_float("extrapolation_value"),
        "antialias": bool(node.get_int("antialias")),
    }
    if mode == "tf_crop_and_resize" and roi is not None:
        options["roi"] = list(roi)
    return _resized(ctx, axes, sizes, scales, options)


def _aspect(
    ctx: Context, axes: Sequence[int], sizes: Sequence[int]
) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    """Sizes under ``keep_aspect_ratio_policy``, and the common scale where one is kept."""
    policy = ctx.node.get_str("keep_aspect_ratio_policy", "stretch")
    if len(sizes) != len(axes):
        raise ctx.malformed(f"{len(sizes)} sizes for {len(axes)} axes")
    if policy == "stretch":
        return tuple(sizes), None
    dims = [ctx.x().shape[a] for a in axes]
    ratios = [s / d for s, d in zip(sizes, dims, strict=True)]
    if policy not in ("not_larger", "not_smaller"):
        raise ctx.malformed(f"keep_aspect_ratio_policy {shown(policy)}")
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return tuple(math.floor(d * scale + 0.5) for d in dims), (scale,) * len(axes)


def _resized(
    ctx: Context,
    axes: Sequence[int],
    sizes: Sequence[int] | None,
    scales: Sequence[float] | None,
    options: dict[str, Any],
) -> Operand:
    x = ctx.x()
    if options["mode"] not in ("nearest", "linear", "cubic"):
        raise ctx.malformed(f"mode {shown(options['mode'])}")
    dims = [x.shape[a] for a in axes]
    if scales is not None and (len(scales) != len(axes) or min(scales) <= 0):
        raise ctx.malformed(f"scales {list(scales)} for {len(axes)} axes")
    if sizes is None and scales is not None and "roi" not in options:
        sizes = [math.floor(d * s + 1e-6) for d, s in zip(dims, scales, strict=True)]
    if sizes is not None:
        kept = [i for i, s in enumerate(sizes) if s != dims[i] or (scales and scales[i] != 1)]
        if not kept and "roi" not in options:
            return x
        plain = _resample2d(
            ctx,
            x,
            [axes[i] for i in kept],
            [sizes[i] for i in kept],
            None if scales is None else [scales[i] for i in kept],
            options,
        )
        if plain is not None:
            return plain
    return ctx.b.resize(
        x,
        axes=list(axes),
        sizes=None if sizes is None else list(sizes),
        scales=None if scales is None else list(scales),
        **options,
    )


def _resample2d(
    ctx: Context,
    x: Operand,
    axes: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[float] | None,
    options: dict[str, Any],
) -> Operand | None:
    """The same as WebNN's resample2d, where its taps are the same on every axis."""
    pair = _two_axes(axes)
    if len(x.shape) != 4 or pair is None or x.dtype not in ("float32", "float16"):
        return None
    if options["mode"] == "cubic" or "roi" in options or options.get("antialias"):
        return None
    if max(sizes) > MAX_SIZE:
        raise ctx.unsupported(f"a size of {max(sizes):,}")
    mode = "linear" if options["mode"] == "linear" else "nearest-neighbor"
    target = [sizes[list(axes).index(a)] if a in axes else x.shape[a] for a in pair]
    for i, axis in enumerate(axes):
        size, out = x.shape[axis], sizes[i]
        scale = out / size if scales is None else scales[i]
        attrs = {**_DEFAULTS, **options, "axes": (axis,), "sizes": (out,), "scales": (scale,)}
        ours, _ = resize_taps(size, 0, attrs)
        theirs = taps_of(size, out, mode)
        if not _same(ours, theirs, size):
            return None
    return ctx.b.resample2d(x, mode=mode, sizes=target, axes=list(pair))


_DEFAULTS: dict[str, Any] = {
    "roi": (0.0, 1.0),
    "cubic_coeff_a": -0.75,
    "exclude_outside": False,
    "antialias": False,
}


def _two_axes(axes: Sequence[int]) -> tuple[int, int] | None:
    """The neighbouring pair of axes of rank 4 that holds all of ``axes``, or None."""
    for pair in ((2, 3), (1, 2)):
        if set(axes) <= set(pair):
            return pair
    return None


def _same(ours: Taps, theirs: Taps, size: int) -> bool:
    """True where two sets of taps of at most two cells take the same mean of cells everywhere.

    Two maps of neighbouring cells are one where they agree on the cells' places and the squares.
    """
    places = np.arange(size) / size
    return all(
        np.allclose(
            (values[ours.cells] * ours.weights).sum(axis=1),
            (values[theirs.cells] * theirs.weights).sum(axis=1),
            rtol=0,
            atol=1e-12,
        )
        for values in (places, places**2)
    )
