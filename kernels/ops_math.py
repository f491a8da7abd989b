"""Array-namespace helpers of the op families: half precision, erf, integer division."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

HALVES = frozenset({"float16", "bfloat16"})


def is_half(array: Any) -> bool:
    """True for float16 and bfloat16 arrays."""
    return array is not None and array.dtype.name in HALVES


def widen(array: Any) -> Any:
    """A half-precision array as float32; anything else as it is."""
    return array.astype("float32") if is_half(array) else array


def widened(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Compute half-precision operands in float32 and round the result once, to the first's type."""

    @functools.wraps(fn)
    def run(xp: Any, *arrays: Any, **attrs: Any) -> Any:
        if not is_half(arrays[0]):
            return fn(xp, *arrays, **attrs)
        dtype = arrays[0].dtype
        out = fn(xp, *(widen(a) for a in arrays), **attrs)
        return tuple(o.astype(dtype) for o in out) if isinstance(out, tuple) else out.astype(dtype)

    return run


def is_integer(array: Any) -> bool:
    """True for arrays of integers."""
    return str(array.dtype.kind) in "iu"


def float_to_integer(xp: Any, x: Any, dtype: str) -> Any:
    """Truncate toward zero; what is out of range becomes the nearest limit, and NaN 0.

    C and ONNX leave values out of range undefined, and WebNN to the implementation; a result must
    not hang on the device that a cast is placed on.
    """
    x = widen(x)
    limits = np.iinfo(dtype)
    inside = (x > float(limits.min)) & (x < float(limits.max) + 1.0)
    whole = xp.where(inside, x, xp.zeros_like(x)).astype(dtype)
    high, low, none = (xp.asarray(n, dtype=dtype) for n in (limits.max, limits.min, 0))
    held = xp.where(x > 0, high, xp.where(x < 0, low, none))
    return xp.where(inside, whole, held)


def truncated_divide(xp: Any, a: Any, b: Any) -> Any:
    """Integer division that rounds toward zero, as C does; by zero it gives 0."""
    quotient = xp.floor_divide(a, b)
    if a.dtype.kind == "u":
        return quotient
    inexact = (quotient * b != a) & (b != 0)
    return quotient + (inexact & ((a < 0) != (b < 0))).astype(a.dtype)


def integer_power(xp: Any, a: Any, b: Any) -> Any:
    """Integer power that wraps; a negative exponent truncates the true quotient toward zero."""
    if a.dtype.kind == "u":
        return xp.power(a, b)
    one = xp.ones_like(a)
    odd = xp.where(b % 2 == 0, one, -one)
    small = xp.where(a == 1, one, xp.where(a == -1, odd, xp.zeros_like(a)))
    return xp.where(b < 0, small, xp.power(a, xp.where(b < 0, xp.zeros_like(b), b)))


_SMALL = 0.5
_TAIL = (
    0.48699748965933808,
    0.24101444861760663,
    0.039171580198019343,
    0.0028202013162589697,
    -0.00031900258801429846,
    -7.762458294633769e-5,
    3.9047589030667484e-6,
    2.1065010053835601e-6,
    -1.1719156145292981e-7,
    -6.4586129776873038e-8,
    6.5479281189765309e-9,
    2.0176470623078222e-9,
    -3.982401175873017e-10,
    -4.9761436210290494e-11,
    2.2139448391598872e-11,
    -1.7358623528113926e-13,
    -1.0262097876293879e-12,
    1.4448991184132368e-13,
    3.1589800536430022e-14,
    -1.2428959971894012e-14,
    3.0295830930074995e-16,
    6.4222143479098526e-16,
)
"""Chebyshev coefficients of erfc(x) exp(x^2) / t in t = 2 / (2 + x) over t in [0, 0.8]."""


def erf(xp: Any, x: Any) -> Any:
    """The error function, to about 1e-15 in float64; other types are computed in float64.

    Below 0.5 the Maclaurin series; above, 1 - t exp(-x^2) P(t) with t = 2 / (2 + |x|), the form of
    Numerical Recipes (3rd edition, section 6.2.2), with coefficients of our own fit.
    """
    wide = x.astype("float64")
    size = abs(wide)
    square = wide * wide
    term = 2.0 / math.sqrt(math.pi)
    series = xp.zeros_like(wide)
    for n in range(13):
        series = series + term / (2 * n + 1) * xp.minimum(square, 0.25) ** n
        term = -term / (n + 1)
    t = 2.0 / (2.0 + size)
    y = 5.0 * t - 2.0
    d, dd = xp.zeros_like(wide), xp.zeros_like(wide)
    for coefficient in reversed(_TAIL[1:]):
        d, dd = y * d - dd + coefficient, d
    tail = t * xp.exp(-square) * (0.5 * y * d - dd + _TAIL[0])
    return xp.where(size < _SMALL, wide * series, xp.sign(wide) * (1.0 - tail)).astype(x.dtype)
