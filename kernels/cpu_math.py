"""Exponentials, logarithm, hyperbolic tangent and error function as vector code.

In float32 they are accurate to about 2 units in the last place; in float64 they are the C
library's, one lane at a time. The polynomials are minimax fits (Lawson's iteratively reweighted
least squares) on the reduced ranges that each one names; ranges are reduced as in J.-M. Muller,
Elementary Functions, chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.normal import NORMAL, NORMAL_END

LIBM = frozenset({"sin", "cos", "tan", "acos", "asin", "atan", "pow", "mod"})
"""Functions that call the C library in every precision; float64 calls it for ``LIBM64`` too."""

LIBM64 = LIBM | {"exp", "log", "tanh", "erf", "normcdf"}

# (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2
_EXP = (0.5, 0.1666666716337204, 0.041666269302368164, 0.008333264850080013,
        0.001394613296724856, 0.00019917894678656012)  # fmt: skip
# 2^r for |r| <= 1/2
_EXP2 = (1.0, 0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957,
         0.001326472731307149)  # fmt: skip
# (log(1 + f) - f + f^2/2) / f^3 for sqrt(1/2) <= 1 + f <= sqrt(2)
_LOG = (0.3333331346511841, -0.25000008940696716, 0.2000211924314499, -0.1666799634695053,
        0.14219550788402557, -0.12405591458082199, 0.11888174712657928, -0.11675640940666199,
        0.06746601313352585)  # fmt: skip
# (tanh(x)/x - 1) / x^2 as a polynomial of x^2 for |x| <= 0.625
_TANH = (-0.3333333134651184, 0.13333210349082947, -0.05394720286130905, 0.021702967584133148,
         -0.008182673715054989, 0.0021475369576364756)  # fmt: skip
# erf(x)/x - 1 as a polynomial of x^2 for |x| <= 1
_ERF = (0.12837916612625122, -0.3761262595653534, 0.11283600330352783, -0.026854444295167923,
        0.005189535208046436, -0.0008020841050893068, 7.889119297033176e-05)  # fmt: skip
# -log(erfc(x)) for 1 <= x <= 4
_ERFC = (0.00032056443160399795, 1.1271716356277466, 0.638012170791626, 0.10321826487779617,
         -0.02188967354595661, 0.0029601221904158592, -0.00018760564853437245)  # fmt: skip


def _f(v: Vector, number: float) -> Value:
    """A float32 constant."""
    return v.const("float32", number)


def _horner(v: Vector, x: Value, coefficients: Sequence[float]) -> Value:
    """The polynomial with these coefficients, lowest first."""
    acc = _f(v, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        acc = v.fma(acc, x, _f(v, c))
    return acc


def exp(v: Vector, x: Value) -> Value:
    """The exponential, 2^n times that of |r| <= ln(2)/2; scaled in two steps for subnormals."""
    if x.kind != "float32":
        return v.libm("exp", x)
    high = v.select(v.compare(">", x, _f(v, 89.0)), _f(v, 89.0), x)
    low = v.select(v.compare("<", high, _f(v, -104.0)), _f(v, -104.0), high)
    shifted = v.fma(low, _f(v, 1 / math.log(2)), _f(v, 12582912.0))  # 1.5 * 2^23 rounds
    n = v.arith("-", shifted, _f(v, 12582912.0))
    r = v.fma(n, _f(v, -0.693359375), low)
    r = v.fma(n, _f(v, 0.693359375 - math.log(2)), r)
    p = v.fma(_horner(v, r, _EXP), v.arith("*", r, r), r)
    p = v.arith("+", p, _f(v, 1.0))
    whole = v.integer("sub", v.bitcast(shifted, "int32").name, 0x4B400000)
    half = v.integer("ashr", whole, 1)
    rest = v.code.let(f"sub {v.t('int32')} {whole}, {half}")
    return v.arith("*", v.arith("*", p, _power2(v, half)), _power2(v, rest))


def exp2_falling(v: Vector, x: Value) -> Value:
    """2 to the power of a float32 that is not above 0; below -126, as of -126 (about 1e-38)."""
    near = v.select(v.compare("<", x, _f(v, -126.0)), _f(v, -126.0), x)
    magic = 12582912.0 + 127.0  # 1.5 * 2^23 rounds; the lowest bits are an exponent's
    shifted = v.arith("+", near, _f(v, magic))
    r = v.arith("-", near, v.arith("-", shifted, _f(v, magic)))
    power = Value(v.integer("shl", v.bitcast(shifted, "int32").name, 23), "int32")
    return v.arith("*", _horner(v, r, _EXP2), v.bitcast(power, "float32"))


def _power2(v: Vector, n: str) -> Value:
    biased = v.integer("add", n, 127)
    return v.bitcast(Value(v.integer("shl", biased, 23), "int32"), "float32")


def log(v: Vector, x: Value) -> Value:
    """The natural logarithm, from the exponent and a mantissa in [sqrt(1/2), sqrt(2)]."""
    if x.kind != "float32":
        return v.libm("log", x)
    tiny = v.compare("<", x, _f(v, 1.17549435e-38))
    scaled = v.select(tiny, v.arith("*", x, _f(v, 8388608.0)), x)
    raw = v.integer("sub", v.bitcast(scaled, "int32").name, 0x3F3504F3)  # sqrt(1/2)
    e = v.cast("sitofp", Value(v.integer("ashr", raw, 23), "int32"), "float32")
    e = v.arith("-", e, v.select(tiny, _f(v, 23.0), _f(v, 0.0)))
    kept = v.integer("add", v.integer("and", raw, 0x7FFFFF), 0x3F3504F3)
    f = v.arith("-", v.bitcast(Value(kept, "int32"), "float32"), _f(v, 1.0))
    square = v.arith("*", f, f)
    tail = v.arith("*", v.arith("*", square, f), _horner(v, f, _LOG))
    tail = v.fma(e, _f(v, math.log(2) - 0.693359375), tail)
    tail = v.fma(square, _f(v, -0.5), tail)
    y = v.fma(e, _f(v, 0.693359375), v.arith("+", f, tail))
    y = v.select(v.compare("==", x, _f(v, math.inf)), x, y)
    y = v.select(v.compare("==", x, _f(v, 0.0)), _f(v, -math.inf), y)
    bad = v.logic("or", v.compare("<", x, _f(v, 0.0)), v.isnan(x))
    return v.select(bad, _f(v, math.nan), y)


def tanh(v: Vector, x: Value) -> Value:
    """The hyperbolic tangent: a polynomial near 0, else 1 - 2 / (exp(2 |x|) + 1)."""
    if x.kind != "float32":
        return v.libm("tanh", x)
    a = v.absolute(x)
    square = v.arith("*", x, x)
    cubic = v.arith("*", square, x)
    small = v.fma(_horner(v, square, _TANH), cubic, x)
    grown = v.arith("+", exp(v, v.arith("+", a, a)), _f(v, 1.0))
    large = v.arith("-", _f(v, 1.0), v.arith("/", _f(v, 2.0), grown))
    signed = v.intrinsic("copysign", large, x)
    return v.select(v.compare("<", a, _f(v, 0.625)), small, signed)


def erf(v: Vector, x: Value) -> Value:
    """The error function: a polynomial below 1, else 1 - exp(-q(|x|))."""
    if x.kind != "float32":
        return v.libm("erf", x)
    a = v.absolute(x)
    small = v.fma(_horner(v, v.arith("*", x, x), _ERF), x, x)
    capped = v.select(v.compare(">", a, _f(v, 4.0)), _f(v, 4.0), a)
    q = v.neg(_horner(v, capped, _ERFC))
    large = v.arith("-", _f(v, 1.0), exp(v, q))
    signed = v.intrinsic("copysign", large, x)
    return v.select(v.compare("<", a, _f(v, 1.0)), small, signed)


def normcdf(v: Vector, x: Value) -> Value:
    """The distribution function of the normal law: a polynomial where it is neither 0 nor 1."""
    if x.kind != "float32":
        inner = v.libm("erf", v.arith("*", x, v.const(x.kind, math.sqrt(0.5))))
        half = v.const(x.kind, 0.5)
        return v.fma(half, inner, half)
    shifted = v.fma(v.arith("*", x, x), _f(v, 2 / NORMAL_END**2), _f(v, -1.0))
    share = v.fma(_horner(v, shifted, NORMAL), x, _f(v, 0.5))
    share = v.select(v.compare(">", x, _f(v, NORMAL_END)), _f(v, 1.0), share)
    return v.select(v.compare("<", x, _f(v, -NORMAL_END)), _f(v, 0.0), share)
