"""ONNX matrix products and linear quantisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, dtype_name
from crossdock.runtime.loaders.onnx_shape import reshaped
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.tensor import FLOATS, to_numpy


@onnx_op("MatMul")
def matmul(ctx: Context) -> Operand:
    """Matrix product as numpy's: vectors lend themselves an axis."""
    a, b = ctx.x(0), ctx.x(1)
    if not a.shape or not b.shape:
        raise ctx.malformed("an operand is a scalar")
    return product(ctx, a, b)


def product(ctx: Context, a: Operand, b: Operand) -> Operand:
    """Matrix product as numpy's, of floats; of integers where both are constants."""
    if a.dtype not in FLOATS:
        left, right = a.value, b.value
        if left is None or right is None:
            raise ctx.unsupported(f"a matrix product of {a.dtype}")
        return ctx.b.constant(np.asarray(np.matmul(left, right), dtype=left.dtype))
    left_vector, right_vector = len(a.shape) == 1, len(b.shape) == 1
    a = ctx.b.reshape(a, [1, *a.shape]) if left_vector else a
    b = ctx.b.reshape(b, [*b.shape, 1]) if right_vector else b
    out = ctx.b.matmul(a, b)
    shape = list(out.shape)
    if right_vector:
        del shape[-1]
    if left_vector:
        del shape[-1 if right_vector else -2]
    return reshaped(ctx, out, shape)


@onnx_op("Gemm")
def gemm(ctx: Context) -> Operand:
    """General product alpha A B + beta C, each of A and B transposed on request."""
    node = ctx.node
    return ctx.b.gemm(
        ctx.x(0),
        ctx.x(1),
        c=ctx.opt(2),
        alpha=node.get_float("alpha", 1.0),
        beta=node.get_float("beta", 1.0),
        a_transpose=bool(node.get_int("transA")),
        b_transpose=bool(node.get_int("transB")),
    )


def granular(ctx: Context, index: int, x: Operand) -> Operand:
    """A scale or zero point in the operand's rank: for all, along an axis, or by blocks."""
    part = ctx.x(index)
    rank = len(x.shape)
    if len(part.shape) == rank and rank != 1:
        return part
    if math.prod(part.shape) == 1:
        return reshaped(ctx, part, [1] * rank)
    if len(part.shape) != 1:
        raise ctx.malformed(f"input {index} has rank {len(part.shape)}, the operand {rank}")
    axis = ctx.axis(ctx.node.get_int("axis", 1), rank)
    return reshaped(ctx, part, [part.shape[0] if i == axis else 1 for i in range(rank)])


def _zero_point(ctx: Context, x: Operand, dtype: str, shape: Sequence[int]) -> Operand:
    if ctx.opt(2) is None:
        return ctx.b.constant(np.zeros(tuple(shape), to_numpy(dtype)))
    return granular(ctx, 2, x)


@onnx_op("QuantizeLinear", since=10)
def quantize_linear(ctx: Context) -> Operand:
    """Quantise: saturate(round(x / scale) + zero point), halves to even."""
    b, x = ctx.b, ctx.x()
    scale = granular(ctx, 1, x)
    number = ctx.node.get_int("output_dtype")
    zero = ctx.opt(2)
    dtype = ONNX_DTYPES.get(number) if number else (zero.dtype if zero is not None else "uint8")
    if dtype is None:
        raise ctx.unsupported(f"quantisation to {dtype_name(number)}")
    _no_precision(ctx)
    x = b.cast(x, scale.dtype) if x.dtype != scale.dtype else x
    return b.quantize_linear(x, scale, _zero_point(ctx, x, dtype, scale.shape))


@onnx_op("DequantizeLinear", since=10)
def dequantize_linear(ctx: Context) -> Operand:
    """(x - zero point) scale."""
    b, x = ctx.b, ctx.x()
    scale = granular(ctx, 1, x)
    out = b.dequantize_linear(x, scale, _zero_point(ctx, x, x.dtype, scale.shape))
    number = ctx.node.get_int("output_dtype")
    dtype = ONNX_DTYPES.get(number) if number else scale.dtype
    if dtype is None:
        raise ctx.unsupported(f"dequantisation to {dtype_name(number)}")
    return b.cast(out, dtype) if dtype != out.dtype else out


def _no_precision(ctx: Context) -> None:
    number = ctx.node.get_int("precision")
    if number and ONNX_DTYPES.get(number) != ctx.x(1).dtype:
        raise ctx.unsupported(f"quantisation in {dtype_name(number)}")


@onnx_op("MatMulInteger", since=10)
def matmul_integer(ctx: Context) -> Operand:
    """Product of 8-bit integers less their zero points, exact in float64 and given as int32."""
    b = ctx.b
    sides = []
    for index in (0, 1):
        x = b.cast(ctx.x(index), "float64")
        if ctx.opt(index + 2) is not None:
            zero = ctx.x(index + 2)
            if index == 0 and len(zero.shape) == 1 and zero.shape[0] > 1:
                zero = b.reshape(zero, [zero.shape[0], 1])
            x = b.sub(x, b.cast(zero, "float64"))
        sides.append(x)
    return b.cast(product(ctx, *sides), "int32")
