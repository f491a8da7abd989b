"""Quantised operators of onnxruntime's domain (com.microsoft)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_linear import as_matrices
from crossdock.runtime.loaders.onnx_pool import averaged
from crossdock.runtime.loaders.onnx_quantize import (
    MICROSOFT,
    cast,
    dequantized,
    dynamically,
    quantized,
)
from crossdock.runtime.loaders.onnx_quantized import along_rows, matmul, ratio, rescaled, scalar
from crossdock.runtime.loaders.onnx_shape import reshaped
from crossdock.runtime.loaders.onnx_table import Context, Value, onnx_op


def real(ctx: Context, index: int) -> Operand:
    """Operands ``index`` to ``index + 2`` (values, scale, zero point) as float32."""
    scale, zero = ctx.x(index + 1), ctx.opt(index + 2)
    zero = None if zero is None else scalar(ctx, zero)
    return dequantized(ctx, ctx.x(index), scalar(ctx, scale), zero)


def back(ctx: Context, x: Operand, index: int) -> Operand:
    """A float32 result quantised by operands ``index`` (scale) and ``index + 1`` (zero point)."""
    zero = ctx.opt(index + 1)
    if zero is None:
        zero = ctx.like(0, ctx.x())
    return quantized(ctx, x, scalar(ctx, ctx.x(index)), scalar(ctx, zero))


# --- elementwise ----------------------------------------------------------------------------------

PAIRS = {"QLinearAdd": "add", "QLinearMul": "mul"}


@onnx_op(*PAIRS, domain=MICROSOFT)
def pair(ctx: Context) -> Operand:
    """Sum or product of two quantised operands."""
    combine: Callable[[Operand, Operand], Operand] = getattr(ctx.b, PAIRS[ctx.node.op])
    return back(ctx, combine(real(ctx, 0), real(ctx, 3)), 6)


@onnx_op("QLinearSigmoid", domain=MICROSOFT)
def sigmoid(ctx: Context) -> Operand:
    """Sigmoid of a quantised operand."""
    return back(ctx, ctx.b.sigmoid(real(ctx, 0)), 3)


@onnx_op("QLinearLeakyRelu", domain=MICROSOFT)
def leaky_relu(ctx: Context) -> Operand:
    """Leaky relu of a quantised operand."""
    alpha = ctx.node.get_float("alpha", 0.01)
    return back(ctx, ctx.b.leaky_relu(real(ctx, 0), alpha=alpha), 3)


@onnx_op("QLinearSoftmax", domain=MICROSOFT)
def softmax(ctx: Context) -> Operand:
    """Softmax over an axis; before opset 13 over all axes from it on, taken as one."""
    x = real(ctx, 0)
    shape = list(x.shape)
    axis = ctx.axis(ctx.node.get_int("axis", -1), len(shape))
    if ctx.node.get_int("opset", 13) >= 13:
        return back(ctx, ctx.b.softmax(x, axis), 3)
    flat = ctx.b.reshape(x, [math.prod(shape[:axis]), math.prod(shape[axis:])])
    return back(ctx, ctx.b.reshape(ctx.b.softmax(flat, 1), shape), 3)


@onnx_op("QLinearWhere", domain=MICROSOFT)
def where(ctx: Context) -> Operand:
    """One of two quantised operands by a condition."""
    return back(ctx, ctx.b.where(ctx.x(0), real(ctx, 1), real(ctx, 4)), 7)


@onnx_op("QLinearConcat", domain=MICROSOFT, like=2)
def concat(ctx: Context) -> Operand:
    """Quantised operands behind each other, in one scale: operands 0 and 1 are the result's."""
    parts = [real(ctx, index) for index in range(2, len(ctx), 3)]
    axis = ctx.axis(ctx.node.get_int("axis"), len(parts[0].shape))
    return back(ctx, ctx.b.concat(parts, axis), 0)


# --- reductions -----------------------------------------------------------------------------------


@onnx_op("QLinearReduceMean", domain=MICROSOFT)
def reduce_mean(ctx: Context) -> Operand:
    """Mean of a quantised operand over axes, all by default."""
    x = real(ctx, 0)
    rank = len(x.shape)
    axes = ctx.axes(ctx.node.get_ints("axes") or range(rank), rank)
    keep = bool(ctx.node.get_int("keepdims", 1))
    return back(ctx, ctx.b.reduce_mean(x, axes=axes, keep_dimensions=keep), 3)


@onnx_op("QLinearGlobalAveragePool", domain=MICROSOFT)
def global_average_pool(ctx: Context) -> Operand:
    """Mean of a quantised operand over its spatial axes."""
    x = real(ctx, 0)
    rank = len(x.shape)
    axes = range(1, rank - 1) if ctx.node.get_int("channels_last") else range(2, rank)
    return back(ctx, ctx.b.reduce_mean(x, axes=list(axes), keep_dimensions=True), 3)


@onnx_op("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(ctx: Context) -> Operand:
    """Average over windows of a quantised operand, channels first or last."""
    x = real(ctx, 0)
    rank = len(x.shape)
    last = bool(ctx.node.get_int("channels_last"))
    if last:
        x = ctx.b.transpose(x, permutation=[0, rank - 1, *range(1, rank - 1)])
    y = averaged(replace(ctx, inputs=(Value(x),)))
    if last:
        y = ctx.b.transpose(y, permutation=[0, *range(2, rank), 1])
    return back(ctx, y, 3)


# --- products -------------------------------------------------------------------------------------


def scaled(ctx: Context, acc: Operand, scale: Operand, bias: Operand | None) -> Operand:
    """An int32 product as a float: times a scale, plus a bias."""
    out = ctx.b.mul(ctx.b.cast(acc, scale.dtype), scale)
    return out if bias is None else ctx.b.add(out, bias)


@onnx_op("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(ctx: Context) -> Operand:
    """Product of quantised matrices, given as a float."""
    acc = matmul(ctx, ctx.x(0), ctx.x(1), ctx.opt(4), ctx.opt(5))
    left = along_rows(ctx, ctx.x(2))
    assert left is not None
    return scaled(ctx, acc, ctx.b.mul(left, scalar(ctx, ctx.x(3))), ctx.opt(6))


@onnx_op("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(ctx: Context) -> Operand:
    """The left matrix quantised over its own range, times a quantised one, as a float."""
    a, scale, zero = dynamically(ctx, ctx.x(0))
    acc = matmul(ctx, a, ctx.x(1), zero, ctx.opt(3))
    return scaled(ctx, acc, ctx.b.mul(scale, scalar(ctx, ctx.x(2))), ctx.opt(4))


@onnx_op("QGemm", domain=MICROSOFT)
def qgemm(ctx: Context) -> Operand:
    """General product of quantised matrices plus an int32 bias; a float without a result scale."""
    node, b = ctx.node, ctx.b
    a, w = ctx.x(0), ctx.x(3)
    a = b.transpose(a) if node.get_int("transA") else a
    w = b.transpose(w) if node.get_int("transB") else w
    acc = _gemm_sum(ctx, a, w)
    alpha = node.get_float("alpha", 1.0)
    factor = b.mul(scalar(ctx, ctx.x(1)), scalar(ctx, ctx.x(4)))
    factor = factor if alpha == 1.0 else b.mul(factor, ctx.like(alpha, factor))
    if ctx.opt(7) is None:
        return scaled(ctx, acc, factor, None)
    one = ctx.like(1, factor)
    zero = ctx.opt(8)
    zero = ctx.like(0, ctx.x(0)) if zero is None else scalar(ctx, zero)
    return rescaled(ctx, acc, ratio(ctx, factor, one, scalar(ctx, ctx.x(7))), zero)


def _gemm_sum(ctx: Context, a: Operand, w: Operand) -> Operand:
    """The int32 sum; its zero points are scalars, or one a column."""
    zero = ctx.opt(2)
    zero = None if zero is None else scalar(ctx, zero)
    w_zero = ctx.opt(5)
    w_zero = None if w_zero is None else scalar(ctx, w_zero)

    def multiply(left: Operand, right: Operand) -> Operand:
        return ctx.b.matmul_integer(left, right, a_zero_point=zero, b_zero_point=w_zero)

    acc = as_matrices(ctx, a, w, multiply)
    bias = ctx.opt(6)
    return acc if bias is None else ctx.b.add(acc, cast(ctx, bias, "int32"))


@onnx_op("MulInteger", domain=MICROSOFT)
def mul_integer(ctx: Context) -> Operand:
    """Product of 8-bit integers, element by element, less their zero points, as int32."""
    sides = []
    for index in (0, 2):
        x = ctx.b.cast(ctx.x(index), "int32")
        zero = ctx.opt(index + 1)
        if zero is not None:
            x = ctx.b.sub(x, ctx.b.cast(reshaped(ctx, scalar(ctx, zero), []), "int32"))
        sides.append(x)
    return ctx.b.mul(*sides)
