"""ONNX casts from and to types that the IR lacks: strings, small floats, small integers.

Tables of ONNX operators.md, Cast: what ``saturate`` and ``round_mode`` do to each small float.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import (
    host_dtype,
    is_integer,
    is_small,
    is_string,
    objects,
    small_dtype,
)
from crossdock.runtime.loaders.onnx_model import dtype_name
from crossdock.runtime.tensor import Array

_NUMBER = re.compile(
    r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?|nan", re.IGNORECASE | re.ASCII
)
_INTEGER = re.compile(r"[+-]?\d{1,40}", re.ASCII)

_E8M0_BIAS, _E8M0_MAX, _E8M0_NAN = 127, 254, 255
"""float8e8m0: 2**(code - 127), codes up to 254; 255 is no number (OCP MX 1.0, 5.4.1)."""


@host_op("Cast", since=6, when="refused")
def cast(call: HostCall) -> HostValue:
    """The elements as another type."""
    call.node.require("to")
    return _cast(call, call.array(), host_dtype(call, call.node.get_int("to")))


@host_op("CastLike", since=15, when="refused")
def cast_like(call: HostCall) -> HostValue:
    """The elements as the type of the second input."""
    return _cast(call, call.array(0), call.array(1).dtype)


def _cast(call: HostCall, x: Array, dtype: np.dtype[Any]) -> Array:
    if x.dtype.kind == "c" or dtype.kind == "c":
        raise call.malformed("complex numbers are not cast")
    if x.dtype == dtype:
        return x
    if dtype.kind == "O":
        return objects([_text(v) for v in _plain(x).reshape(-1)], x.shape)
    saturate = call.node.get_int("saturate", 1) != 0
    rounding = call.node.get_str("round_mode", "up")
    if rounding not in _ROUNDINGS:
        raise call.malformed(f"round_mode {rounding!r} is none of {', '.join(_ROUNDINGS)}")
    try:
        numbers = _parsed(x, dtype) if is_string(x) else _plain(x)
    except (OverflowError, ValueError) as error:
        raise MalformedModel(f"{call.node}: {error}") from error
    return convert_numbers(numbers, dtype, saturate=saturate, rounding=rounding)


def _plain(x: Array) -> Array:
    """Small numbers in a type of numpy's that holds them all."""
    if not is_small(x.dtype) and x.dtype.name != "bfloat16":
        return x
    return x.astype(np.int8 if is_integer(x.dtype) else np.float32)


def _text(value: Any) -> str:
    """A number in plain notation; the literals of what is no finite one."""
    if isinstance(value, np.floating):
        if np.isnan(value):
            return "NaN"
        if np.isinf(value):
            return "INF" if value > 0 else "-INF"
        return np.format_float_positional(value, unique=True, trim="0")
    return str(int(value))


def _parsed(x: Array, dtype: np.dtype[Any]) -> Array:
    """Strings as numbers wide enough for a type; raises ValueError for what is none."""
    if not is_integer(dtype):
        values = [_real(text) for text in x.reshape(-1)]
        return np.array(values, np.float64).reshape(x.shape)
    wide = np.uint64 if dtype == np.uint64 else np.int64
    return np.array([_whole(text) for text in x.reshape(-1)], wide).reshape(x.shape)


def _real(text: str) -> float:
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"the string {text[:40]!r} is no number")
    return float(text)


def _whole(text: str) -> int:
    return int(text) if _INTEGER.fullmatch(text.strip()) else int(_real(text))


def convert_numbers(
    x: Array, dtype: np.dtype[Any], *, saturate: bool = True, rounding: str = "up"
) -> Array:
    """Numbers as another type of numbers, by ONNX's rules; ``x`` has a type of numpy's own."""
    with np.errstate(all="ignore"):
        if dtype == np.bool_:
            return np.asarray(x != 0)
        if dtype.name == "float8_e8m0fnu":
            return _powers(x, saturate, rounding)
        if dtype.name.startswith("float8"):
            return _float8(x, dtype, saturate)
        if is_integer(dtype) and x.dtype.kind == "f" and dtype != np.uint64:
            # Through int64, so that every width cuts off high bits alike.
            x = x.astype(np.int64)
        if dtype.name in ("int4", "uint4", "int2", "uint2"):
            return _narrow(x.astype(np.int64), dtype)
        return x.astype(dtype)


def _narrow(x: Array, dtype: np.dtype[Any]) -> Array:
    """Integers with their high bits cut off."""
    count = 1 << int(dtype.name[-1])
    low = x & (count - 1)
    if dtype.name.startswith("int"):
        low = np.where(low >= count // 2, low - count, low)
    return low.astype(np.int8).astype(dtype)


def _float8(x: Array, dtype: np.dtype[Any], saturate: bool) -> Array:
    """Round to nearest even; what is too large becomes the largest, or else what overflow is."""
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    y = x.astype(dtype)
    if not saturate:
        return y
    wide = y.astype(np.float32)
    over = ~np.isfinite(wide) & ~np.isnan(x)
    largest = _largest(dtype)
    return np.where(over, np.copysign(largest, x).astype(dtype), y)


def _largest(dtype: np.dtype[Any]) -> float:
    """The largest finite number of a small float."""
    codes = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    return float(np.max(codes[np.isfinite(codes)]))


_ROUNDINGS = {"up": np.nextafter(1.0, 2.0), "nearest": 1.5, "down": 2.0}
"""From which significand (1 to 2) on a number goes to the next power of two."""


def _powers(x: Array, saturate: bool, rounding: str) -> Array:
    """Magnitudes as powers of two; beyond the range the nearest one, or else no number."""
    wide = np.abs(x.astype(np.float64))
    significand, exponent = np.frexp(np.where(np.isfinite(wide), wide, 1.0))
    up = significand * 2 >= _ROUNDINGS[rounding]
    codes = exponent.astype(np.int64) - 1 + up + _E8M0_BIAS
    codes = np.where(wide == 0, -1, np.where(np.isinf(wide), _E8M0_MAX + 1, codes))
    low, high = (0, _E8M0_MAX) if saturate else (_E8M0_NAN, _E8M0_NAN)
    codes = np.where(codes < 0, low, np.where(codes > _E8M0_MAX, high, codes))
    codes = np.where(np.isnan(wide), _E8M0_NAN, codes)
    return codes.astype(np.uint8).view(small_dtype("float8_e8m0fnu"))


@host_op("BitCast", since=26)
def bit_cast(call: HostCall) -> HostValue:
    """The bits of the elements as another type of the same width."""
    x, to = call.array(), call.node.get_int("to")
    dtype = host_dtype(call, to)
    if is_string(x) or dtype.kind == "O":
        raise call.malformed("strings have no bits to cast")
    if _bits(x.dtype) != _bits(dtype):
        raise call.malformed(f"{x.dtype} and {dtype_name(to)} differ in width")
    raw: Array = np.ascontiguousarray(x).reshape(-1)
    if dtype == np.bool_:
        raw = raw.view(np.uint8) != 0
        return raw.reshape(x.shape)
    cast_bits: Array = raw.view(dtype).reshape(x.shape)
    return cast_bits


def _bits(dtype: np.dtype[Any]) -> int:
    """The width of an element in bits."""
    small = re.fullmatch(r"u?int(\d)|float(\d)_\w+", dtype.name)
    if small and is_small(dtype):
        return int(small[1] or small[2])
    return dtype.itemsize * 8
