"""ONNX products of quantised tensors: accumulated in int32, rescaled once in float32."""

from __future__ import annotations

import math

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_linear import as_matrices
from crossdock.runtime.loaders.onnx_quantize import cast, quantized
from crossdock.runtime.loaders.onnx_shape import reshaped
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.loaders.onnx_volume import as_image, convolved, from_image
from crossdock.runtime.loaders.onnx_window import spatial


def along_rows(ctx: Context, part: Operand | None) -> Operand | None:
    """A scale or zero point of a left matrix: one a row, where it is a vector."""
    if part is None or len(part.shape) != 1:
        return part
    return scalar(ctx, part) if part.shape[0] == 1 else ctx.b.reshape(part, [part.shape[0], 1])


def scalar(ctx: Context, part: Operand) -> Operand:
    """A scale or zero point of one element as a scalar; others as they are."""
    return reshaped(ctx, part, []) if math.prod(part.shape) == 1 else part


def matmul(
    ctx: Context, a: Operand, b: Operand, a_zero: Operand | None, b_zero: Operand | None
) -> Operand:
    """Product of 8-bit integers less their zero points, as int32."""
    a_zero = along_rows(ctx, a_zero)
    b_zero = None if b_zero is None else scalar(ctx, b_zero)

    def multiply(left: Operand, right: Operand) -> Operand:
        return ctx.b.matmul_integer(left, right, a_zero_point=a_zero, b_zero_point=b_zero)

    return as_matrices(ctx, a, b, multiply)


def rescaled(ctx: Context, x: Operand, scale: Operand, zero: Operand) -> Operand:
    """An int32 result times a scale, rounded to the zero point's type, halves to even."""
    real = ctx.b.mul(ctx.b.cast(x, "float32"), scale)
    return quantized(ctx, real, ctx.like(1, real), zero)


def ratio(ctx: Context, left: Operand, right: Operand, out: Operand) -> Operand:
    """What an int32 result is to be multiplied by: left right / out, in float32."""
    left, right, out = (cast(ctx, part, "float32") for part in (left, right, out))
    return ctx.b.div(ctx.b.mul(left, right), out)


@onnx_op("MatMulInteger", since=10)
def matmul_integer(ctx: Context) -> Operand:
    """Product of 8-bit integers less their zero points, as int32."""
    return matmul(ctx, ctx.x(0), ctx.x(1), ctx.opt(2), ctx.opt(3))


@onnx_op("QLinearMatMul", since=10)
def qlinear_matmul(ctx: Context) -> Operand:
    """Product of quantised matrices; scales are one for all, a row, or a column."""
    acc = matmul(ctx, ctx.x(0), ctx.x(3), ctx.x(2), ctx.x(5))
    a_scale, y_scale, y_zero = (along_rows(ctx, ctx.x(i)) for i in (1, 6, 7))
    assert a_scale is not None, a_scale
    assert y_scale is not None, y_scale
    assert y_zero is not None, y_zero
    return rescaled(ctx, acc, ratio(ctx, a_scale, scalar(ctx, ctx.x(4)), y_scale), y_zero)


def convolution(
    ctx: Context, x: Operand, w: Operand, x_zero: Operand | None, w_zero: Operand | None
) -> Operand:
    """Convolution of 8-bit integers less their zero points, as int32."""
    b, rank = ctx.b, len(x.shape)
    if len(w.shape) != rank or rank < 3:
        raise ctx.malformed(f"a filter of rank {len(w.shape)}, an input of {rank}")
    groups, window = ctx.node.get_int("group", 1), spatial(ctx, w.shape[2:])
    x_zero = None if x_zero is None else scalar(ctx, x_zero)
    if w_zero is not None and math.prod(w_zero.shape) > 1:
        w_zero = reshaped(ctx, w_zero, [w.shape[0], *[1] * (max(rank, 4) - 1)])
    elif w_zero is not None:
        w_zero = scalar(ctx, w_zero)
    if rank > 4:
        # Beyond two spatial dimensions the zero points come off first, in a float that is exact.
        left, right = _centred(ctx, x, x_zero), _centred(ctx, w, w_zero)
        return b.cast(convolved(ctx, left, right, None, window, groups), "int32")
    out = b.conv_integer(
        as_image(ctx, x),
        as_image(ctx, w),
        input_zero_point=x_zero,
        filter_zero_point=w_zero,
        **window.options(),
        groups=groups,
    )
    return from_image(ctx, out, rank)


def _centred(ctx: Context, x: Operand, zero: Operand | None) -> Operand:
    wide = ctx.b.cast(x, "float64")
    return wide if zero is None else ctx.b.sub(wide, ctx.b.cast(zero, "float64"))


@onnx_op("ConvInteger", since=10)
def conv_integer(ctx: Context) -> Operand:
    """Convolution of 8-bit integers less their zero points, as int32."""
    return convolution(ctx, ctx.x(0), ctx.x(1), ctx.opt(2), ctx.opt(3))


@onnx_op("QLinearConv", since=10)
def qlinear_conv(ctx: Context) -> Operand:
    """Convolution of quantised tensors; the filter's scale is one, or one an output channel."""
    x, w, bias = ctx.x(0), ctx.x(3), ctx.opt(8)
    acc = convolution(ctx, x, w, ctx.x(2), ctx.x(5))
    channels = [w.shape[0], *[1] * (len(x.shape) - 2)]
    if bias is not None:
        acc = ctx.b.add(acc, reshaped(ctx, bias, channels))
    scale = scalar(ctx, ctx.x(4))
    scale = scale if not scale.shape else reshaped(ctx, scale, channels)
    factor = ratio(ctx, scalar(ctx, ctx.x(1)), scale, scalar(ctx, ctx.x(6)))
    return rescaled(ctx, acc, factor, scalar(ctx, ctx.x(7)))
