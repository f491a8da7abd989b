"""ONNX quantization to and from types that the IR lacks, at every granularity.

Also what no device takes of the types it has. Semantics of ONNX operators.md: QuantizeLinear,
DequantizeLinear.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_cast import convert_numbers
from crossdock.runtime.loaders.onnx_host_tools import (
    axis_of,
    host_dtype,
    is_float,
    is_integer,
    is_small,
    is_string,
)
from crossdock.runtime.tensor import Array

_UINT8 = 2


@host_op("QuantizeLinear", since=10, when="refused")
def quantize(call: HostCall) -> HostValue:
    """Quotients x / scale, rounded to nearest even, plus the zero point, within the type's range.

    The quotient has the precision of the scale unless ``precision`` names one.
    """
    x, scale = _numbers(call, 0), _numbers(call, 1)
    dtype = _quantized(call)
    precision = _precision(call, scale.dtype)
    with np.errstate(all="ignore"):
        divisor = _spread(call, scale, x.shape).astype(precision)
        quotient = np.asarray(x.astype(precision) / divisor)
    zero = _zero(call, x.shape)
    if not is_integer(dtype):
        wide = quotient.astype(np.float64 if precision == np.float64 else np.float32)
        shifted = wide if zero is None else wide + zero.astype(np.float32)
        saturate = call.node.get_int("saturate", 1) != 0
        return convert_numbers(shifted, dtype, saturate=saturate)
    whole = np.rint(quotient.astype(np.float64))
    shifted = whole if zero is None else whole + zero.astype(np.float64)
    low, high = _range(dtype)
    clipped = np.clip(np.nan_to_num(shifted, nan=0.0), low, high)
    return convert_numbers(clipped, dtype)


@host_op("DequantizeLinear", since=10, when="refused")
def dequantize(call: HostCall) -> HostValue:
    """(x - zero point) * scale, multiplied in the precision of the result's type."""
    x, scale = _numbers(call, 0), _numbers(call, 1)
    number = call.node.get_int("output_dtype")
    dtype = host_dtype(call, number) if number else scale.dtype
    if not is_float(dtype) or is_small(dtype):
        raise call.malformed(f"a result of {dtype}; output_dtype must name a float type")
    zero = _zero(call, x.shape)
    if zero is not None and zero.dtype != x.dtype:
        raise call.malformed(f"its zero point is {zero.dtype}, its input {x.dtype}")
    wide: Any = np.int64 if is_integer(x.dtype) else np.float32
    difference = x.astype(wide)
    if zero is not None:
        difference = difference - zero.astype(wide)
    with np.errstate(all="ignore"):
        factor = _spread(call, scale, x.shape).astype(dtype)
        return np.asarray(difference.astype(dtype) * factor)


def _numbers(call: HostCall, index: int) -> Array:
    array = call.array(index)
    if is_string(array) or array.dtype.kind in "cb":
        raise call.malformed(f"input {index} is {array.dtype}, not numbers")
    return array


def _quantized(call: HostCall) -> np.dtype[Any]:
    """The type to quantize to: of the zero point, named, or uint8."""
    number = call.node.get_int("output_dtype")
    zero = call.opt(2)
    if zero is None:
        dtype = host_dtype(call, number or _UINT8)
    else:
        dtype = call.array(2).dtype
        if number and host_dtype(call, number) != dtype:
            raise call.malformed(f"output_dtype differs from its zero point's type, {dtype}")
    small = is_small(dtype) and dtype.name != "float8_e8m0fnu"
    if not small and dtype.name not in ("int8", "uint8", "int16", "uint16"):
        raise call.malformed(f"{dtype} is no type to quantize to")
    return dtype


def _precision(call: HostCall, scale: np.dtype[Any]) -> np.dtype[Any]:
    number = call.node.get_int("precision")
    if number:
        dtype = host_dtype(call, number)
        if not is_float(dtype) or is_small(dtype):
            raise call.malformed(f"a precision of {dtype}")
        return dtype
    if is_integer(scale):
        return np.dtype(np.float64)
    return np.dtype(np.float32) if is_small(scale) else scale


def _zero(call: HostCall, shape: tuple[int, ...]) -> Array | None:
    """The zero point, one an element of the input, or None."""
    if call.opt(2) is None:
        return None
    zero, scale = _numbers(call, 2), call.array(1)
    if zero.shape != scale.shape and not zero.size == scale.size == 1:
        raise call.malformed(
            f"a zero point of shape {list(zero.shape)} for a scale of {list(scale.shape)}"
        )
    return _spread(call, zero, shape)


def _spread(call: HostCall, values: Array, shape: tuple[int, ...]) -> Array:
    """Scales or zero points in a shape that broadcasts: for a tensor, an axis, or blocks of one."""
    rank = len(shape)
    block = call.node.get_int("block_size")
    if block < 0:
        raise call.malformed(f"blocks of {block} elements")
    if values.size == 1 and values.ndim <= 1 and not block:
        return values.reshape(())
    given = call.node.get_int("axis", 1)
    axis = 0 if rank == 1 else axis_of(call, given, rank)
    if block:
        return _blocks(call, values, shape, axis, block)
    if values.ndim != 1 or values.size != shape[axis]:
        raise call.malformed(
            f"a scale of shape {list(values.shape)} for {shape[axis]} slices along axis {axis}"
        )
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def _blocks(call: HostCall, values: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    want = list(shape)
    want[axis] = -(-shape[axis] // block)
    if list(values.shape) != want:
        raise call.malformed(
            f"a scale of shape {list(values.shape)}, where blocks of {block} along axis {axis} "
            f"need {want}"
        )
    places = np.arange(shape[axis]) // block
    return np.take(values, places, axis)


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    bits = int(dtype.name.lstrip("uint"))
    if dtype.name.startswith("u"):
        return 0, (1 << bits) - 1
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
