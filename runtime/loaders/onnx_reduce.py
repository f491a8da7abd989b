"""ONNX reductions: sums and their kin, index of extremes, determinants, norms."""

from __future__ import annotations

import math

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_elementwise import method
from crossdock.runtime.loaders.onnx_shape import axes_argument
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.tensor import to_numpy

REDUCE = {
    "ReduceL1": "reduce_l1",
    "ReduceL2": "reduce_l2",
    "ReduceLogSum": "reduce_log_sum",
    "ReduceLogSumExp": "reduce_log_sum_exp",
    "ReduceMax": "reduce_max",
    "ReduceMean": "reduce_mean",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_product",
    "ReduceSum": "reduce_sum",
    "ReduceSumSquare": "reduce_sum_square",
}


WHOLE = ("ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp")
"""Reductions that ONNX has for integers and WebNN has not."""


@onnx_op(*REDUCE)
def reduce_with_attribute(ctx: Context) -> Operand:
    """Axes as an attribute."""
    return _reduce(ctx, ctx.node.get_ints("axes"))


@onnx_op("ReduceSum", since=13)
@onnx_op(*(name for name in REDUCE if name != "ReduceSum"), since=18)
def reduce_with_operand(ctx: Context) -> Operand:
    """Axes as an optional constant operand; without any, all or (by attribute) none."""
    none = bool(ctx.node.get_int("noop_with_empty_axes"))
    return _reduce(ctx, axes_argument(ctx, 1), none=none)


def _reduce(ctx: Context, axes: tuple[int, ...] | None, *, none: bool = False) -> Operand:
    """Reduce over axes; where there are none, over all, or with ``none`` over none at all."""
    x = ctx.x()
    rank = len(x.shape)
    chosen = ctx.axes(axes, rank) if axes else [] if none else list(range(rank))
    keep = bool(ctx.node.get_int("keepdims", 1))
    if 0 in x.shape:
        return _of_nothing(ctx, x, chosen, keep)
    if ctx.node.op in WHOLE and not ctx.is_float():
        return _integer(ctx, x, chosen, keep)
    return method(ctx, REDUCE[ctx.node.op])(x, axes=chosen, keep_dimensions=keep)


def _of_nothing(ctx: Context, x: Operand, axes: list[int], keep: bool) -> Operand:
    """A reduction of a tensor without elements: each result is the reduction's neutral element."""
    op, dtype = ctx.node.op, to_numpy(x.dtype)
    shape = [1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes]
    if 0 in shape:
        return ctx.frame.empty(x.dtype, shape)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (limits.min, limits.max) if limits else (-np.inf, np.inf)
    if ctx.boolean(0):
        low, high = 0, 1
    lowest = low if limits is None or op == "ReduceMax" else 0
    fill = {
        "ReduceMax": low,
        "ReduceMin": high,
        "ReduceProd": 1,
        "ReduceLogSum": lowest,
        "ReduceLogSumExp": lowest,
        "ReduceMean": 0 if limits else np.nan,
    }.get(op, 0)
    return ctx.frame.filled(tuple(shape), np.array(fill, dtype)).operand


def _integer(ctx: Context, x: Operand, axes: list[int], keep: bool) -> Operand:
    """Means, roots and logarithms of integers, which WebNN does not have."""
    b = ctx.b
    if ctx.node.op == "ReduceMean":
        total = b.reduce_sum(x, axes=axes, keep_dimensions=keep)
        return b.div(total, ctx.like(math.prod(x.shape[a] for a in axes), total))
    wide = b.cast(x, "float64" if x.dtype.endswith("64") else "float32")
    reduce = method(ctx, REDUCE[ctx.node.op])
    return b.cast(reduce(wide, axes=axes, keep_dimensions=keep), x.dtype)


@onnx_op("ArgMax", "ArgMin", boolean=False)
def arg_extreme(ctx: Context) -> Operand:
    """Index of the first (or last) extreme along an axis, as int64."""
    b, x = ctx.b, ctx.x()
    axis = ctx.axis(ctx.node.get_int("axis"), len(x.shape))
    keep = bool(ctx.node.get_int("keepdims", 1))
    find = b.arg_max if ctx.node.op == "ArgMax" else b.arg_min
    last = bool(ctx.node.get_int("select_last_index"))
    source = b.reverse(x, axes=[axis]) if last else x
    found = find(source, axis, keep_dimensions=keep, output_data_type="int64")
    return b.sub(ctx.like(x.shape[axis] - 1, found), found) if last else found


@onnx_op("Det", since=11)
def determinant(ctx: Context) -> Operand:
    """Determinants of the matrices in the last two axes."""
    return ctx.b.det(ctx.x())


@onnx_op("LpNormalization")
def lp_normalization(ctx: Context) -> Operand:
    """Divide by the norm along an axis; where that is zero, so is the result."""
    b, x = ctx.b, ctx.x()
    axis = ctx.axis(ctx.node.get_int("axis", -1), len(x.shape))
    p = ctx.node.get_int("p", 2)
    if p not in (1, 2):
        raise ctx.malformed(f"norm of order {p}")
    reduce = b.reduce_l1 if p == 1 else b.reduce_l2
    norm = reduce(x, axes=[axis], keep_dimensions=True)
    return b.div(x, b.where(b.equal(norm, ctx.like(0, norm)), ctx.like(1, norm), norm))
