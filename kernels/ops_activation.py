"""Activation functions, element by element, with the decompositions of the specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crossdock.kernels import ops_math
from crossdock.kernels.ops_elementwise import broadcast_pair
from crossdock.kernels.ops_rules import (
    FLOAT,
    SIGNED,
    entry,
    like,
    number,
    of,
    reads,
    same_as_first,
)
from crossdock.kernels.ops_work import TRANSCENDENTAL, pointwise

SQRT_HALF = 0.7071067811865476


def _activation(
    name: str,
    run: Callable[..., Any],
    expr: str,
    decompose: Callable[..., Any],
    *,
    flops: float = 4.0,
    dtypes: frozenset[str] = FLOAT,
    **attrs: float,
) -> None:
    entry(
        name,
        {"input": of(dtypes)},
        attrs=attrs,
        canon=reads(name, **dict.fromkeys(attrs, number)),
        infer=same_as_first,
        run=ops_math.widened(run),
        work=pointwise(flops),
        expr=expr,
        decompose=decompose,
    )


def _elu(xp: Any, x: Any, *, alpha: float) -> Any:
    return xp.where(x < 0, alpha * xp.expm1(xp.minimum(x, 0)), x)


def _elu_steps(b: Any, x: Any, *, alpha: float) -> Any:
    zero, one = b.constant(0, x.dtype), b.constant(1, x.dtype)
    below = b.sub(b.exp(b.min(x, zero)), one)
    return b.add(b.max(x, zero), b.mul(b.constant(alpha, x.dtype), below))


def _gelu_steps(b: Any, x: Any) -> Any:
    half, one = b.constant(0.5, x.dtype), b.constant(1, x.dtype)
    inner = b.erf(b.mul(x, b.constant(SQRT_HALF, x.dtype)))
    return b.mul(b.mul(half, x), b.add(one, inner))


def _hard_sigmoid(xp: Any, x: Any, *, alpha: float, beta: float) -> Any:
    return xp.maximum(xp.minimum(alpha * x + beta, 1), 0)


def _hard_sigmoid_steps(b: Any, x: Any, *, alpha: float, beta: float) -> Any:
    inner = b.add(b.mul(x, b.constant(alpha, x.dtype)), b.constant(beta, x.dtype))
    return b.max(b.min(inner, b.constant(1, x.dtype)), b.constant(0, x.dtype))


def _hard_swish_steps(b: Any, x: Any) -> Any:
    three, six = b.constant(3, x.dtype), b.constant(6, x.dtype)
    gate = b.max(b.min(b.add(x, three), six), b.constant(0, x.dtype))
    return b.div(b.mul(x, gate), six)


def _leaky_relu_steps(b: Any, x: Any, *, alpha: float) -> Any:
    zero = b.constant(0, x.dtype)
    return b.add(b.max(x, zero), b.mul(b.constant(alpha, x.dtype), b.min(x, zero)))


def _linear(xp: Any, x: Any, *, alpha: float, beta: float) -> Any:  # noqa: ARG001 - run
    return alpha * x + beta


def _linear_steps(b: Any, x: Any, *, alpha: float, beta: float) -> Any:
    return b.add(b.mul(x, b.constant(alpha, x.dtype)), b.constant(beta, x.dtype))


def _relu_steps(b: Any, x: Any) -> Any:
    return b.max(b.constant(0, x.dtype), x)


def _sigmoid_steps(b: Any, x: Any) -> Any:
    one = b.constant(1, x.dtype)
    return b.div(one, b.add(b.exp(b.neg(x)), one))


def _softplus(xp: Any, x: Any) -> Any:
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-abs(x)))


def _softplus_steps(b: Any, x: Any) -> Any:
    below = b.log(b.add(b.constant(1, x.dtype), b.exp(b.neg(b.abs(x)))))
    return b.add(b.max(x, b.constant(0, x.dtype)), below)


def _softsign(xp: Any, x: Any) -> Any:  # noqa: ARG001 - run
    return x / (1 + abs(x))


def _softsign_steps(b: Any, x: Any) -> Any:
    return b.div(x, b.add(b.abs(x), b.constant(1, x.dtype)))


def _tanh_steps(b: Any, x: Any) -> Any:
    """2 sigmoid(2x) - 1, which does not overflow as the quotient of exponentials does."""
    one, two = b.constant(1, x.dtype), b.constant(2, x.dtype)
    return b.sub(b.mul(two, b.sigmoid(b.mul(two, x))), one)


def _gelu(xp: Any, x: Any) -> Any:
    return x * 0.5 * (1 + ops_math.erf(xp, x * SQRT_HALF))


_activation(
    "elu",
    _elu,
    "{0} < 0 ? {alpha} * (exp({0}) - 1) : {0}",
    _elu_steps,
    flops=TRANSCENDENTAL + 2,
    alpha=1.0,
)
_activation(
    "gelu",
    _gelu,
    "{0} * normcdf({0})",
    _gelu_steps,
    flops=2 * TRANSCENDENTAL + 4,
)
_activation(
    "hard_sigmoid",
    _hard_sigmoid,
    "max(min({alpha} * {0} + {beta}, 1), 0)",
    _hard_sigmoid_steps,
    alpha=0.2,
    beta=0.5,
)
_activation(
    "hard_swish",
    lambda xp, x: x * xp.maximum(xp.minimum(x + 3, 6), 0) / 6,
    "{0} * max(min({0} + 3, 6), 0) / 6",
    _hard_swish_steps,
    flops=8.0,
)
_activation(
    "leaky_relu",
    lambda xp, x, alpha: xp.where(x < 0, alpha * x, x),
    "{0} < 0 ? {alpha} * {0} : {0}",
    _leaky_relu_steps,
    flops=2.0,
    alpha=0.01,
)
_activation(
    "linear",
    _linear,
    "{alpha} * {0} + {beta}",
    _linear_steps,
    flops=2.0,
    alpha=1.0,
    beta=0.0,
)
_activation(
    "relu",
    lambda xp, x: xp.maximum(x, 0),
    "max({0}, 0)",
    _relu_steps,
    flops=1.0,
    dtypes=SIGNED,
)
_activation(
    "sigmoid",
    lambda xp, x: 1 / (1 + xp.exp(-x)),
    "1 / (1 + exp(-{0}))",
    _sigmoid_steps,
    flops=TRANSCENDENTAL + 6,
)
_activation(
    "softplus",
    _softplus,
    "max({0}, 0) + log(1 + exp(-abs({0})))",
    _softplus_steps,
    flops=2 * TRANSCENDENTAL + 4,
)
_activation(
    "softsign",
    _softsign,
    "{0} / (1 + abs({0}))",
    _softsign_steps,
    flops=6.0,
)
_activation(
    "tanh",
    lambda xp, x: xp.tanh(x),
    "tanh({0})",
    _tanh_steps,
    flops=2 * TRANSCENDENTAL,
)


def _prelu_steps(b: Any, x: Any, slope: Any) -> Any:
    zero = b.constant(0, x.dtype)
    return b.add(b.max(x, zero), b.mul(slope, b.min(x, zero)))


entry(
    "prelu",
    {"input": of(SIGNED), "slope": like("input")},
    infer=broadcast_pair("prelu", "input", "slope"),
    run=lambda xp, x, slope: xp.where(x < 0, x * slope, x),
    work=pointwise(2.0),
    expr="{0} < 0 ? {0} * {1} : {0}",
    decompose=_prelu_steps,
)
