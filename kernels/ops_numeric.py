"""Determinants and discrete Fourier transforms: numpy's routines, or products and pivots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels import ops_math
from crossdock.kernels.ops_rules import FLOAT, entry, fail, flag, of, reads, size_of, some
from crossdock.kernels.ops_work import traffic
from crossdock.kernels.spec import Attrs, Specs
from crossdock.runtime.errors import UnsupportedOp
from crossdock.runtime.tensor import TensorSpec

# --- det ------------------------------------------------------------------------------------------

LARGEST = 16
"""Matrices up to this size are taken apart into steps, a dozen ops a row."""


def _det_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    spec = some(specs[0])
    rows, columns = (size_of("det", "input", spec, spec.rank - k) for k in (2, 1))
    if rows != columns:
        raise fail("det", f"the last two dimensions of input must be equal; it is {spec}")
    return (spec.with_shape(spec.shape[:-2]),)


def _det_steps(b: Any, x: Any) -> Any:
    """Gaussian elimination with partial pivoting; each pivot row is picked out by a mask."""
    size, batch = x.shape[-1], math.prod(x.shape[:-2])
    if size > LARGEST or not size:
        raise UnsupportedOp(f"det: matrices of {size} rows are not taken apart")
    one, minus = b.constant(1, x.dtype), b.constant(-1, x.dtype)
    rows = b.reshape(x, [batch, size, size])
    result: Any = None
    for n in range(size, 1, -1):
        column = b.slice(rows, [0, 0, 0], [batch, n, 1])
        best = b.arg_max(b.abs(column), 1, keep_dimensions=True)
        places = b.constant(np.arange(n, dtype=np.int32).reshape(1, n, 1))
        chosen = b.cast(b.equal(best, places), x.dtype)
        pivot = b.reduce_sum(b.mul(chosen, rows), axes=[1], keep_dimensions=True)
        first = b.slice(rows, [0, 0, 0], [batch, 1, n])
        # The first row takes the pivot row's place, which leaves the first one free.
        rows = b.add(rows, b.mul(chosen, b.sub(first, pivot)))
        rows = b.slice(rows, [0, 1, 0], [batch, n - 1, n])
        lead = b.slice(pivot, [0, 0, 0], [batch, 1, 1])
        zero = b.equal(lead, b.constant(0, x.dtype))
        factors = b.div(b.slice(rows, [0, 0, 0], [batch, n - 1, 1]), b.where(zero, one, lead))
        rows = b.sub(rows, b.mul(factors, pivot))
        rows = b.slice(rows, [0, 0, 1], [batch, n - 1, n - 1])
        sign = b.where(b.equal(best, b.constant(0, "int32")), one, minus)
        factor = b.mul(lead, sign)
        result = factor if result is None else b.mul(result, factor)
    result = rows if result is None else b.mul(result, rows)
    if size == 1:
        result = b.mul(result, one)
    return b.reshape(result, x.shape[:-2])


def _det_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001
    size = some(specs[0]).dims[-1]
    return traffic(specs, outs, outs[0].size * size**3 * 2 / 3)


entry(
    "det",
    {"input": of(FLOAT, 2)},
    infer=_det_infer,
    run=ops_math.widened(lambda xp, x: xp.asarray(xp.linalg.det(x), dtype=x.dtype)),
    work=_det_work,
    decompose=_det_steps,
    extension=True,
)

# --- dft ------------------------------------------------------------------------------------------

LONGEST = 4096
"""Lines up to this length are transformed by a product with a matrix, of at most 128 MiB."""


def _dft_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    spec = some(specs[0])
    if size_of("dft", "input", spec, spec.rank - 1) not in (1, 2):
        raise fail("dft", f"the last dimension of input must be 1 (real) or 2; it is {spec}")
    return (spec.with_shape((*spec.shape[:-1], 2)),)


def _dft(xp: Any, x: Any, *, inverse: bool) -> Any:
    line = x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]
    out = (xp.fft.ifft if inverse else xp.fft.fft)(line, axis=-1)
    return xp.stack((xp.real(out), xp.imag(out)), axis=-1).astype(x.dtype)


def dft_matrix(size: int, parts: int, *, inverse: bool) -> Any:
    """The transform of ``size`` numbers of ``parts`` parts each as a matrix, in float64."""
    turns = np.outer(np.arange(size), np.arange(size)) % size
    angle = (2 * np.pi / size) * turns * (1 if inverse else -1)
    scale = 1 / size if inverse else 1.0
    matrix = np.empty((size, parts, size, 2))
    matrix[:, 0, :, 0], matrix[:, 0, :, 1] = np.cos(angle) * scale, np.sin(angle) * scale
    if parts == 2:
        matrix[:, 1, :, 0], matrix[:, 1, :, 1] = -np.sin(angle) * scale, np.cos(angle) * scale
    return matrix.reshape(size * parts, size * 2)


def _dft_steps(b: Any, x: Any, *, inverse: bool) -> Any:
    *lead, size, parts = x.shape
    if size > LONGEST or not size:
        raise UnsupportedOp(f"dft: lines of {size} are not made a product")
    matrix = b.constant(dft_matrix(size, parts, inverse=inverse), x.dtype)
    out = b.matmul(b.reshape(x, [math.prod(lead), size * parts]), matrix)
    return b.reshape(out, [*lead, size, 2])


def _dft_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001
    """5 n log2 n operations a line, as is usual for the fast transform."""
    size = some(specs[0]).dims[-2]
    return traffic(specs, outs, 2.5 * outs[0].size * math.log2(max(2, size)))


entry(
    "dft",
    {"input": of(FLOAT, 2)},
    attrs={"inverse": False},
    canon=reads("dft", inverse=flag),
    infer=_dft_infer,
    run=ops_math.widened(_dft),
    work=_dft_work,
    decompose=_dft_steps,
    extension=True,
)
