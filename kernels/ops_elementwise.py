"""Arithmetic, element by element: binary arithmetic, unary mathematics, cast, clamp."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from crossdock.kernels import ops_math
from crossdock.kernels.ops_rules import (
    ANY,
    FLOAT,
    NUMERIC,
    SIGNED,
    broadcast,
    cast_number,
    choice,
    entry,
    fail,
    like,
    number,
    of,
    reads,
    same_as_first,
    some,
)
from crossdock.kernels.ops_work import TRANSCENDENTAL, pointwise
from crossdock.kernels.spec import REQUIRED, Attrs, Infer, Specs
from crossdock.runtime.tensor import DTYPES, TensorSpec, to_numpy

Run = Callable[..., Any]


def broadcast_pair(name: str, first: str = "a", second: str = "b") -> Infer:
    """The result of a binary op: the first operand's type, both operands' shape."""

    def infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
        a, b = some(specs[0]), some(specs[1])
        return (a.with_shape(broadcast(name, {first: a.shape, second: b.shape})),)

    return infer


def _binary(
    name: str, run: Run, expr: str, dtypes: frozenset[str] = NUMERIC, flops: float = 1.0
) -> None:
    entry(
        name,
        {"a": of(dtypes), "b": like("a")},
        infer=broadcast_pair(name),
        run=run,
        work=pointwise(flops),
        expr=expr,
    )


def _divide(xp: Any, a: Any, b: Any) -> Any:
    return ops_math.truncated_divide(xp, a, b) if ops_math.is_integer(a) else a / b


def _power(xp: Any, a: Any, b: Any) -> Any:
    return ops_math.integer_power(xp, a, b) if ops_math.is_integer(a) else xp.power(a, b)


_binary("add", lambda xp, a, b: xp.add(a, b), "{0} + {1}")
_binary("sub", lambda xp, a, b: xp.subtract(a, b), "{0} - {1}")
_binary("mul", lambda xp, a, b: xp.multiply(a, b), "{0} * {1}")
_binary("div", _divide, "{0} / {1}")
_binary("max", lambda xp, a, b: xp.maximum(a, b), "max({0}, {1})", ANY)
_binary("min", lambda xp, a, b: xp.minimum(a, b), "min({0}, {1})", ANY)
_binary("pow", _power, "pow({0}, {1})", flops=2 * TRANSCENDENTAL)


def _unary(
    name: str,
    run: Run,
    expr: str,
    dtypes: frozenset[str] = FLOAT,
    flops: float = 1.0,
    decompose: Callable[..., Any] | None = None,
    *,
    extension: bool = False,
) -> None:
    entry(
        name,
        {"input": of(dtypes)},
        infer=same_as_first,
        run=run,
        work=pointwise(flops),
        expr=expr,
        decompose=decompose,
        extension=extension,
    )


def _sign(b: Any, x: Any) -> Any:
    zero = b.constant(0, x.dtype)
    one, minus = b.constant(1, x.dtype), b.constant(-1, x.dtype)
    return b.where(b.greater(x, zero), one, b.where(b.lesser(x, zero), minus, x))


_unary("abs", lambda xp, x: xp.abs(x), "abs({0})", SIGNED)
_unary("ceil", lambda xp, x: xp.ceil(x), "ceil({0})")
_unary("cos", lambda xp, x: xp.cos(x), "cos({0})", flops=TRANSCENDENTAL)
_unary("erf", ops_math.erf, "erf({0})", flops=2 * TRANSCENDENTAL)
_unary("exp", lambda xp, x: xp.exp(x), "exp({0})", flops=TRANSCENDENTAL)
_unary("floor", lambda xp, x: xp.floor(x), "floor({0})")
_unary("log", lambda xp, x: xp.log(x), "log({0})", flops=TRANSCENDENTAL)
_unary("neg", lambda xp, x: xp.negative(x), "-{0}", SIGNED)
_unary("reciprocal", lambda xp, x: xp.ones_like(x) / x, "1 / {0}", flops=4.0)
_unary("round_even", lambda xp, x: xp.rint(x), "rint({0})")
_unary("sign", lambda xp, x: xp.sign(x), "sign({0})", SIGNED, decompose=_sign)
_unary("sin", lambda xp, x: xp.sin(x), "sin({0})", flops=TRANSCENDENTAL)
_unary("sqrt", lambda xp, x: xp.sqrt(x), "sqrt({0})", flops=4.0)
_unary("tan", lambda xp, x: xp.tan(x), "tan({0})", flops=2 * TRANSCENDENTAL)

for _name in ("acos", "asin", "atan"):
    _unary(
        _name,
        lambda xp, x, _f=f"arc{_name[1:]}": getattr(xp, _f)(x),
        f"{_name}({{0}})",
        flops=2 * TRANSCENDENTAL,
        extension=True,
    )


def _cast_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    return (some(specs[0]).with_dtype(attrs["data_type"]),)


def _cast(xp: Any, x: Any, *, data_type: str) -> Any:
    if data_type == "bool":
        return x != 0
    if x.dtype.kind not in "iub" and to_numpy(data_type).kind in "iu":
        return ops_math.float_to_integer(xp, x, data_type)
    return x.astype(to_numpy(data_type))


entry(
    "cast",
    {"input": of(ANY)},
    params=("data_type",),
    attrs={"data_type": REQUIRED},
    canon=reads("cast", data_type=lambda op, name, v: choice(op, name, v, DTYPES)),
    infer=_cast_infer,
    run=_cast,
    work=pointwise(),
    expr=lambda attrs: "{0} != 0" if attrs["data_type"] == "bool" else "{0}",
)


def _clamp_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    dtype = some(specs[0]).dtype
    low = _bound("min_value", attrs["min_value"], -math.inf)
    high = _bound("max_value", attrs["max_value"], math.inf)
    if low > high:
        raise fail("clamp", f"min_value must not be above max_value; they are {low} and {high}")
    return attrs | {
        "min_value": low if low == -math.inf else cast_number(low, dtype),
        "max_value": high if high == math.inf else cast_number(high, dtype),
    }


def _bound(name: str, value: Any, absent: float) -> int | float:
    if value is None:
        return absent
    as_float = number("clamp", name, value)
    if math.isnan(as_float):
        return absent
    return int(value) if as_float.is_integer() and not isinstance(value, float) else as_float


def _clamp_expr(attrs: Attrs) -> str:
    inner = "{0}" if attrs["min_value"] == -math.inf else "max({0}, {min_value})"
    return inner if attrs["max_value"] == math.inf else f"min({inner}, {{max_value}})"


def _clamp(xp: Any, x: Any, *, min_value: float, max_value: float) -> Any:
    if min_value != -math.inf:
        x = xp.maximum(x, xp.asarray(min_value, dtype=x.dtype))
    if max_value != math.inf:
        x = xp.minimum(x, xp.asarray(max_value, dtype=x.dtype))
    return x


def _clamp_steps(b: Any, x: Any, *, min_value: float, max_value: float) -> Any:
    if min_value != -math.inf:
        x = b.max(x, b.constant(min_value, x.dtype))
    if max_value != math.inf:
        x = b.min(x, b.constant(max_value, x.dtype))
    return b.identity(x) if min_value == -math.inf and max_value == math.inf else x


entry(
    "clamp",
    {"input": of(ANY)},
    attrs={"min_value": None, "max_value": None},
    canon=_clamp_canon,
    infer=same_as_first,
    run=_clamp,
    work=pointwise(2.0),
    expr=_clamp_expr,
    decompose=_clamp_steps,
)
