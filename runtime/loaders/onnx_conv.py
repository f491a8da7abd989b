"""ONNX convolutions over any number of spatial dimensions."""

from __future__ import annotations

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.loaders.onnx_volume import as_image, convolved, convolved_back, from_image
from crossdock.runtime.loaders.onnx_window import Window, explicit_pads, halves, spatial


def _filter(ctx: Context) -> Operand:
    x, weights = ctx.x(0), ctx.x(1)
    if len(weights.shape) != len(x.shape) or len(x.shape) < 3:
        raise ctx.malformed(f"a filter of rank {len(weights.shape)}, an input of {len(x.shape)}")
    return weights


@onnx_op("Conv")
def conv(ctx: Context) -> Operand:
    """Convolution; channels first, filter by output and input channel."""
    return convolution(ctx)


def convolution(ctx: Context) -> Operand:
    """The same by a node's operands and attributes."""
    x, weights = ctx.x(0), _filter(ctx)
    window = spatial(ctx, weights.shape[2:])
    return convolved(ctx, x, weights, ctx.opt(2), window, ctx.node.get_int("group", 1))


@onnx_op("ConvTranspose")
def conv_transpose(ctx: Context) -> Operand:
    """Transposed convolution; the filter by input and output channel."""
    x, weights = ctx.x(0), _filter(ctx)
    given = spatial(ctx, weights.shape[2:])
    count = len(given.kernel)
    extra = list(ctx.node.get_ints("output_padding") or (0,) * count)
    if len(extra) != count or min(extra) < 0:
        raise ctx.malformed(f"output_padding {extra} for {count} spatial dimensions")
    pads = _transposed_pads(ctx, given, extra)
    window = Window(given.kernel, given.strides, given.dilations, pads)
    groups = ctx.node.get_int("group", 1)
    if groups < 1 or weights.shape[0] % groups:
        raise ctx.malformed(f"{weights.shape[0]} channels in {groups} groups")
    if count > 2 or any(e >= s for e, s in zip(extra, given.strides, strict=True)):
        return convolved_back(ctx, x, weights, window, extra, groups)
    out = ctx.b.conv_transpose2d(
        as_image(ctx, x),
        as_image(ctx, weights),
        bias=ctx.opt(2),
        **window.options(),
        output_padding=[0] * (count == 1) + extra,
        groups=groups,
    )
    return from_image(ctx, out, len(x.shape))


def _transposed_pads(ctx: Context, window: Window, extra: list[int]) -> tuple[tuple[int, int], ...]:
    """Padding from the attribute, or from the wanted output; ``extra`` takes what is short."""
    sizes = ctx.x().shape[2:]
    mode = ctx.node.get_str("auto_pad", "NOTSET")
    wanted = ctx.node.get_ints("output_shape")
    if wanted is None and mode not in ("SAME_UPPER", "SAME_LOWER"):
        return ((0, 0),) * len(sizes) if mode == "VALID" else explicit_pads(ctx, len(sizes))
    if wanted is None:
        wanted = tuple(d * s for d, s in zip(sizes, window.strides, strict=True))
    wanted = wanted[-len(sizes) :]
    if len(wanted) != len(sizes):
        raise ctx.malformed(f"output_shape {list(wanted)} for {len(sizes)} spatial dimensions")
    pads = []
    for i, size in enumerate(sizes):
        full = (size - 1) * window.strides[i] + extra[i] + window.reach(i)
        total = full - wanted[i]
        extra[i] += max(0, -total)
        pads.append(halves(max(0, total), upper=mode == "SAME_UPPER"))
    return tuple(pads)
