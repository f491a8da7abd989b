"""ONNX matrix products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_shape import reshaped
from crossdock.runtime.loaders.onnx_table import Context, onnx_op
from crossdock.runtime.tensor import FLOATS


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
    return as_matrices(ctx, a, b, ctx.b.matmul)


def as_matrices(
    ctx: Context, a: Operand, b: Operand, multiply: Callable[[Operand, Operand], Operand]
) -> Operand:
    """A product of matrices for operands that may be vectors, which lend themselves an axis."""
    left_vector, right_vector = len(a.shape) == 1, len(b.shape) == 1
    a = ctx.b.reshape(a, [1, *a.shape]) if left_vector else a
    b = ctx.b.reshape(b, [*b.shape, 1]) if right_vector else b
    out = multiply(a, b)
    shape = list(out.shape)
    if right_vector:
        del shape[-1]
    if left_vector:
        del shape[-1 if right_vector else -2]
    return reshaped(ctx, out, shape)


@onnx_op("Gemm")
def gemm(ctx: Context) -> Operand:
    """General product alpha A B + beta C, each of A and B transposed on request."""
    return general_product(ctx)


def general_product(ctx: Context) -> Operand:
    """The same by a node's operands and attributes."""
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
