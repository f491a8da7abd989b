"""quantize_linear and dequantize_linear, with block-wise scales and zero points.

WebNN gives scale and zero point the input's rank. Those of a lower rank are taken too, aligned to
the last axes as in broadcasting.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crossdock.kernels import ops_math
from crossdock.kernels.ops_rules import FLOAT, QUANTIZED, entry, fail, like, of, some
from crossdock.kernels.ops_work import pointwise
from crossdock.kernels.spec import Attrs, Specs
from crossdock.runtime.tensor import TensorSpec


def _check_blocks(op: str, specs: Specs) -> None:
    spec, scale, zero = (some(s) for s in specs)
    if zero.shape != scale.shape:
        raise fail(op, f"zero_point must have the shape of scale {scale}; it is {zero}")
    if scale.rank > spec.rank:
        raise fail(op, f"scale must have at most the rank of input {spec}; it is {scale}")
    blocks_of = (1,) * (spec.rank - scale.rank) + scale.shape
    for axis, (size, blocks) in enumerate(zip(spec.shape, blocks_of, strict=True)):
        symbolic = isinstance(size, str) or isinstance(blocks, str)
        if size != blocks and blocks != 1 and (symbolic or int(size) % int(blocks)):
            raise fail(
                op,
                f"each dimension of scale must divide the input's; axis {axis} of {scale} does "
                f"not divide {spec}",
            )


def _blown(xp: Any, array: Any, shape: tuple[int, ...]) -> Any:
    """Repeat each element over its block; dimensions of 1 broadcast by themselves."""
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    for axis, size in enumerate(shape):
        if array.shape[axis] not in (1, size):
            array = xp.repeat(array, size // array.shape[axis], axis=axis)
    return array


def _blown_steps(b: Any, x: Any, shape: tuple[int, ...]) -> Any:
    if x.rank < len(shape):
        x = b.reshape(x, [*[1] * (len(shape) - x.rank), *x.shape])
    for axis, size in enumerate(shape):
        blocks = x.shape[axis]
        if blocks not in (1, size):
            before, after = list(x.shape[:axis]), list(x.shape[axis + 1 :])
            split = b.reshape(x, [*before, blocks, 1, *after])
            wide = b.expand(split, [*before, blocks, size // blocks, *after])
            x = b.reshape(wide, [*before, size, *after])
    return x


# --- quantize -------------------------------------------------------------------------------------


def _quantize_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    _check_blocks("quantize_linear", specs)
    return (some(specs[0]).with_dtype(some(specs[2]).dtype),)


def _quantize(xp: Any, x: Any, scale: Any, zero_point: Any) -> Any:
    limits = np.iinfo(zero_point.dtype)
    scale, zero = _blown(xp, scale, x.shape), _blown(xp, zero_point, x.shape)
    steps = xp.rint(ops_math.widen(x) / ops_math.widen(scale)).astype("float64")
    return xp.clip(steps + zero, limits.min, limits.max).astype(zero_point.dtype)


def _quantize_steps(b: Any, x: Any, scale: Any, zero_point: Any) -> Any:
    limits = np.iinfo(zero_point.dtype)
    scale = _blown_steps(b, scale, x.shape)
    zero = b.cast(_blown_steps(b, zero_point, x.shape), x.dtype)
    steps = b.add(b.round_even(b.div(x, scale)), zero)
    bounded = b.clamp(steps, min_value=int(limits.min), max_value=int(limits.max))
    return b.cast(bounded, zero_point.dtype)


entry(
    "quantize_linear",
    {"input": of(FLOAT), "scale": like("input"), "zero_point": of(QUANTIZED)},
    infer=_quantize_infer,
    run=_quantize,
    work=pointwise(8.0),
    decompose=_quantize_steps,
)

# --- dequantize -----------------------------------------------------------------------------------


def _dequantize_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    _check_blocks("dequantize_linear", specs)
    return (some(specs[0]).with_dtype(some(specs[1]).dtype),)


def _dequantize(xp: Any, x: Any, scale: Any, zero_point: Any) -> Any:
    factor, zero = _blown(xp, scale, x.shape), _blown(xp, zero_point, x.shape)
    steps = x.astype("int64") - zero.astype("int64")
    wide = ops_math.widen(factor)
    return (steps.astype(wide.dtype) * wide).astype(scale.dtype)


def _dequantize_steps(b: Any, x: Any, scale: Any, zero_point: Any) -> Any:
    factor = _blown_steps(b, scale, x.shape)
    zero = b.cast(_blown_steps(b, zero_point, x.shape), scale.dtype)
    return b.mul(b.sub(b.cast(x, scale.dtype), zero), factor)


entry(
    "dequantize_linear",
    {"input": of(QUANTIZED), "scale": of(FLOAT), "zero_point": like("input")},
    infer=_dequantize_infer,
    run=_dequantize,
    work=pointwise(3.0),
    decompose=_dequantize_steps,
)
