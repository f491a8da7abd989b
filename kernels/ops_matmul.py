"""Matrix products: matmul and gemm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels import ops_math
from crossdock.kernels.ops_rules import (
    FLOAT,
    Shape,
    broadcast,
    broadcast_to,
    entry,
    fail,
    flag,
    like,
    number,
    of,
    reads,
    some,
)
from crossdock.kernels.ops_work import traffic
from crossdock.kernels.spec import Attrs, Specs
from crossdock.runtime.errors import UnsupportedOp
from crossdock.runtime.tensor import Dim, TensorSpec


def _inner(op: str, a: TensorSpec, b: TensorSpec, x: Dim, y: Dim) -> None:
    if isinstance(x, int) and isinstance(y, int) and x != y:
        raise fail(op, f"the inner sizes of a {a} and b {b} must agree; they are {x} and {y}")


def _matmul_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    a, b = some(specs[0]), some(specs[1])
    _inner("matmul", a, b, a.shape[-1], b.shape[-2])
    batch = broadcast("matmul", {"a": a.shape[:-2], "b": b.shape[:-2]})
    return (a.with_shape((*batch, a.shape[-2], b.shape[-1])),)


def _matmul_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001
    inner = some(specs[0]).dims[-1]
    return traffic(specs, outs, 2.0 * outs[0].size * inner)


MOST = 2**26
"""Products that a product taken apart holds at a time: half a gigabyte in float64."""


def _matmul_steps(b_: Any, a: Any, b: Any) -> Any:
    """Every product, then sums along the inner axis: for types that no product's kernel takes."""
    rank = max(len(a.shape), len(b.shape))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    every = math.prod(batch) * a.shape[-2] * a.shape[-1] * b.shape[-1]
    if every > MOST:
        raise UnsupportedOp(f"matmul: {every:,} products are too many to hold")
    left = b_.reshape(a, [*a.shape, 1])
    right = b_.reshape(b, [*b.shape[:-2], 1, *b.shape[-2:]])
    return b_.reduce_sum(b_.mul(left, right), axes=[rank - 1])


entry(
    "matmul",
    {"a": of(FLOAT, 2), "b": like("a", 2)},
    infer=_matmul_infer,
    run=ops_math.widened(lambda xp, a, b: xp.matmul(a, b)),
    work=_matmul_work,
    decompose=_matmul_steps,
)


def _sides(specs: Specs, attrs: Attrs) -> tuple[Shape, Shape]:
    a, b = some(specs[0]).shape, some(specs[1]).shape
    return (a[::-1] if attrs["a_transpose"] else a, b[::-1] if attrs["b_transpose"] else b)


def _gemm_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    left, right = _sides(specs, attrs)
    a, b = some(specs[0]), some(specs[1])
    _inner("gemm", a, b, left[1], right[0])
    shape = (left[0], right[1])
    c = specs[2] if len(specs) > 2 else None
    if c is not None:
        broadcast_to("gemm", "c", c.shape, shape)
    return (a.with_shape(shape),)


def _gemm_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    inner = some(specs[0]).dims[0 if attrs["a_transpose"] else 1]
    return traffic(specs, outs, outs[0].size * (2.0 * inner + 3.0))


def _gemm(
    xp: Any,
    a: Any,
    b: Any,
    c: Any,
    *,
    alpha: float,
    beta: float,
    a_transpose: bool,
    b_transpose: bool,
) -> Any:
    out = xp.matmul(a.T if a_transpose else a, b.T if b_transpose else b)
    out = out if alpha == 1.0 else out * alpha
    return out if c is None else out + (c if beta == 1.0 else c * beta)


def _gemm_steps(
    b_: Any,
    a: Any,
    b: Any,
    c: Any,
    *,
    alpha: float,
    beta: float,
    a_transpose: bool,
    b_transpose: bool,
) -> Any:
    left = b_.transpose(a) if a_transpose else a
    right = b_.transpose(b) if b_transpose else b
    out = b_.matmul(left, right)
    if alpha != 1.0:
        out = b_.mul(out, b_.constant(alpha, a.dtype))
    if c is None:
        return out
    return b_.add(out, c if beta == 1.0 else b_.mul(c, b_.constant(beta, a.dtype)))


entry(
    "gemm",
    {"a": of(FLOAT, 2, 2), "b": like("a", 2, 2), "c?": like("a", 0, 2)},
    attrs={"alpha": 1.0, "beta": 1.0, "a_transpose": False, "b_transpose": False},
    canon=reads("gemm", alpha=number, beta=number, a_transpose=flag, b_transpose=flag),
    infer=_gemm_infer,
    run=ops_math.widened(_gemm),
    work=_gemm_work,
    decompose=_gemm_steps,
)
