"""ONNX matrix products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

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
    """Matrix product as numpy's."""
    if a.dtype in FLOATS:
        return as_matrices(ctx, a, b, ctx.b.matmul)
    return as_matrices(ctx, a, b, lambda left, right: _whole_product(ctx, left, right))


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
    return general_product(ctx)


def general_product(ctx: Context) -> Operand:
    """The same by a node's operands and attributes."""
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
