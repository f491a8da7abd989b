"""ONNX linear quantisation: to integers and back, with scales for all, an axis, or blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, dtype_name
from crossdock.runtime.loaders.onnx_shape import reshaped
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.tensor import to_numpy

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators."""


def cast(ctx: Context, x: Operand, dtype: str) -> Operand:
    """An operand in an element type; itself where it has it."""
    return x if x.dtype == dtype else ctx.b.cast(x, dtype)


def granular(ctx: Context, index: int, x: Operand) -> Operand:
    """A scale or zero point in the operand's rank: for all, along an axis, or by blocks."""
    part = ctx.x(index)
    rank = len(x.shape)
    if len(part.shape) == rank and rank != 1:
        return _whole_blocks(ctx, part, x)
    if math.prod(part.shape) == 1:
        return reshaped(ctx, part, [1] * rank)
    if len(part.shape) != 1:
        raise ctx.malformed(f"input {index} has rank {len(part.shape)}, the operand {rank}")
    axis = ctx.axis(ctx.node.get_int("axis", 1), rank)
    if ctx.node.get_int("block_size"):
        return _whole_blocks(ctx, part, x)
    return reshaped(ctx, part, [part.shape[0] if i == axis else 1 for i in range(rank)])


def _whole_blocks(ctx: Context, part: Operand, x: Operand) -> Operand:
    """A scale by blocks; one an element of the axis where the last block is not full."""
    block = ctx.node.get_int("block_size")
    if not block:
        return part
    axis = ctx.axis(ctx.node.get_int("axis", 1), len(x.shape))
    size = x.shape[axis]
    if part.shape[axis] != -(-size // block):
        raise ctx.malformed(f"{part.shape[axis]} blocks of {block} in {size} elements")
    if size == part.shape[axis] * block:
        return part
    places = np.arange(size, dtype=np.int64) // block
    return ctx.b.gather(part, ctx.b.constant(places), axis=axis)


def _zero_point(ctx: Context, x: Operand, dtype: str, shape: Sequence[int]) -> Operand:
    if ctx.opt(2) is None:
        return ctx.b.constant(np.zeros(tuple(shape), to_numpy(dtype)))
    return granular(ctx, 2, x)


@onnx_op("QuantizeLinear", since=10)
@onnx_op("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(ctx: Context) -> Operand:
    """Quantise: saturate(round(x / scale) + zero point), halves to even."""
    b, x = ctx.b, ctx.x()
    scale = granular(ctx, 1, x)
    number = ctx.node.get_int("output_dtype")
    zero = ctx.opt(2)
    dtype = ONNX_DTYPES.get(number) if number else (zero.dtype if zero is not None else "uint8")
    if dtype is None:
        raise ctx.unsupported(f"quantisation to {dtype_name(number)}")
    wide = _precision(ctx, x, scale)
    zero = _zero_point(ctx, x, dtype, scale.shape)
    return b.quantize_linear(cast(ctx, x, wide), cast(ctx, scale, wide), zero)


def _precision(ctx: Context, x: Operand, scale: Operand) -> str:
    """The type to divide in: the attribute's, or the wider of the operands'."""
    number = ctx.node.get_int("precision")
    if number:
        dtype = ONNX_DTYPES.get(number)
        if dtype is None or np.dtype(to_numpy(dtype)).kind not in "fV":
            raise ctx.unsupported(f"quantisation in {dtype_name(number)}")
        return dtype
    return scale.dtype if x.dtype == scale.dtype else "float32"


@onnx_op("DequantizeLinear", since=10)
@onnx_op("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(ctx: Context) -> Operand:
    """(x - zero point) scale."""
    b, x = ctx.b, ctx.x()
    scale = granular(ctx, 1, x)
    out = b.dequantize_linear(x, scale, _zero_point(ctx, x, x.dtype, scale.shape))
    number = ctx.node.get_int("output_dtype")
    dtype = ONNX_DTYPES.get(number) if number else scale.dtype
    if dtype is None:
        raise ctx.unsupported(f"dequantisation to {dtype_name(number)}")
    return cast(ctx, out, dtype)


@onnx_op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(ctx: Context) -> list[Operand | None]:
    """uint8 over the operand's own range, which takes in zero; then its scale and zero point."""
    return list(dynamically(ctx, ctx.x()))


def dynamically(ctx: Context, x: Operand) -> tuple[Operand, Operand, Operand]:
    """An operand as uint8 over its own range, the scale, and the zero point (scalars)."""
    b = ctx.b
    zero, one, top = (b.constant(np.array(v, to_numpy(x.dtype))) for v in (0, 1, 255))
    low = b.min(b.reduce_min(x), zero)
    high = b.max(b.reduce_max(x), zero)
    span = b.sub(high, low)
    scale = b.where(b.equal(span, zero), one, b.div(span, top))
    start = b.sub(zero, b.div(low, scale))
    point = b.cast(b.round_even(b.clamp(start, min_value=0.0, max_value=255.0)), "uint8")
    return quantized(ctx, x, scale, point), scale, point


def quantized(ctx: Context, x: Operand, scale: Operand, zero: Operand) -> Operand:
    """Quantise with a scalar scale and zero point, or ones that broadcast in the operand's rank."""
    scale, zero = (_lifted(ctx, part, x) for part in (scale, zero))
    return ctx.b.quantize_linear(x, scale, zero)


def dequantized(ctx: Context, x: Operand, scale: Operand, zero: Operand | None) -> Operand:
    """The inverse of ``quantized``."""
    scale = _lifted(ctx, scale, x)
    if zero is None:
        zero = ctx.b.constant(np.zeros(tuple(scale.shape), to_numpy(x.dtype)))
    return ctx.b.dequantize_linear(x, scale, _lifted(ctx, zero, x))


def _lifted(ctx: Context, part: Operand, x: Operand) -> Operand:
    if len(part.shape) == len(x.shape):
        return part
    return reshaped(ctx, part, [1] * (len(x.shape) - len(part.shape)) + list(part.shape))
