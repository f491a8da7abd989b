"""ONNX matrix products and linear quantisation."""

from __future__ import annotations

import itertools
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
    """Matrix product as numpy's."""
    left_vector, right_vector = len(a.shape) == 1, len(b.shape) == 1
    a = ctx.b.reshape(a, [1, *a.shape]) if left_vector else a
    b = ctx.b.reshape(b, [*b.shape, 1]) if right_vector else b
    out = ctx.b.matmul(a, b) if a.dtype in FLOATS else _whole_product(ctx, a, b)
    shape = list(out.shape)
    if right_vector:
        del shape[-1]
    if left_vector:
        del shape[-1 if right_vector else -2]
    return reshaped(ctx, out, shape)


MOST = 2**28
"""Products of integers that are held at a time."""


def _whole_product(ctx: Context, a: Operand, b: Operand) -> Operand:
    """Matrix product of integers, which wraps as they do: every product, then sums."""
    if a.shape[-1] != b.shape[-2]:
        raise ctx.malformed(f"a product of {list(a.shape)} and {list(b.shape)}")
    left = ctx.b.reshape(a, [*a.shape, 1])
    right = ctx.b.reshape(b, [*b.shape[:-2], 1, *b.shape[-2:]])
    rank = max(len(left.shape), len(right.shape))
    every = math.prod(
        max(d) for d in itertools.zip_longest(left.shape[::-1], right.shape[::-1], fillvalue=1)
    )
    if every > MOST:
        raise ctx.unsupported(f"a matrix product of {a.dtype} with {every:,} terms")
    return ctx.b.reduce_sum(ctx.b.mul(left, right), axes=[rank - 2])


@onnx_op("Gemm")
def gemm(ctx: Context) -> Operand:
    """General product alpha A B + beta C, each of A and B transposed on request."""
    node = ctx.node
    if not ctx.is_float():
        return _whole_gemm(ctx)
    return ctx.b.gemm(
        ctx.x(0),
        ctx.x(1),
        c=ctx.opt(2),
        alpha=node.get_float("alpha", 1.0),
        beta=node.get_float("beta", 1.0),
        a_transpose=bool(node.get_int("transA")),
        b_transpose=bool(node.get_int("transB")),
    )


def _whole_gemm(ctx: Context) -> Operand:
    """The same of integers; the factors are whole numbers, too."""
    b, node = ctx.b, ctx.node
    factors = [node.get_float(name, 1.0) for name in ("alpha", "beta")]
    if any(f != int(f) for f in factors):
        raise ctx.unsupported(f"a product of {ctx.x().dtype} by {factors[0]} and {factors[1]}")
    sides = [
        b.transpose(ctx.x(i), permutation=[1, 0]) if node.get_int(name) else ctx.x(i)
        for i, name in enumerate(("transA", "transB"))
    ]
    out = product(ctx, *sides)
    out = out if factors[0] == 1 else b.mul(out, ctx.like(factors[0], out))
    if ctx.opt(2) is None:
        return out
    return b.add(out, ctx.x(2) if factors[1] == 1 else b.mul(ctx.x(2), ctx.like(factors[1], out)))


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
