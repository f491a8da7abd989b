"""ONNX activation functions, Clip, Softmax and its kin."""

from __future__ import annotations

import math

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_elementwise import method
from crossdock.runtime.loaders.onnx_table import Context, Value, onnx_op
from crossdock.runtime.tensor import FLOATS

PLAIN = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "HardSwish": "hard_swish",
}

SELU_ALPHA = 1.67326319217681884765625
SELU_GAMMA = 1.05070102214813232421875


@onnx_op(*PLAIN)
def plain(ctx: Context) -> Operand:
    """One operand, one builder method of the same meaning."""
    return method(ctx, PLAIN[ctx.node.op])(ctx.x())


@onnx_op("Elu")
def elu(ctx: Context) -> Operand:
    """The operand, or alpha (exp(x) - 1) below zero."""
    return ctx.b.elu(ctx.x(), alpha=ctx.node.get_float("alpha", 1.0))


@onnx_op("LeakyRelu")
def leaky_relu(ctx: Context) -> Operand:
    """The operand, or alpha x below zero."""
    return ctx.b.leaky_relu(ctx.x(), alpha=ctx.node.get_float("alpha", 0.01))


@onnx_op("HardSigmoid")
def hard_sigmoid(ctx: Context) -> Operand:
    """Clipped line: max(0, min(1, alpha x + beta))."""
    alpha, beta = ctx.node.get_float("alpha", 0.2), ctx.node.get_float("beta", 0.5)
    return ctx.b.hard_sigmoid(ctx.x(), alpha=alpha, beta=beta)


@onnx_op("Selu", since=6)
def selu(ctx: Context) -> Operand:
    """Gamma times elu; the defaults are ONNX's."""
    x = ctx.x()
    inner = ctx.b.elu(x, alpha=ctx.node.get_float("alpha", SELU_ALPHA))
    return ctx.b.mul(inner, ctx.like(ctx.node.get_float("gamma", SELU_GAMMA), x))


@onnx_op("Celu", since=12)
def celu(ctx: Context) -> Operand:
    """Continuous elu: max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    b, x = ctx.b, ctx.x()
    alpha = ctx.node.get_float("alpha", 1.0)
    zero = ctx.like(0, x)
    low = b.elu(b.div(b.min(x, zero), ctx.like(alpha, x)), alpha=alpha)
    return b.add(b.relu(x), low)


@onnx_op("ThresholdedRelu", since=10)
def thresholded_relu(ctx: Context) -> Operand:
    """The operand where it is above alpha, else zero."""
    b, x = ctx.b, ctx.x()
    alpha = ctx.like(ctx.node.get_float("alpha", 1.0), x)
    return b.where(b.greater(x, alpha), x, ctx.like(0, x))


@onnx_op("Shrink", since=9)
def shrink(ctx: Context) -> Operand:
    """Soft threshold: x + bias below -lambd, x - bias above lambd, zero between."""
    b, x = ctx.b, ctx.x()
    lambd, bias = ctx.node.get_float("lambd", 0.5), ctx.node.get_float("bias", 0.0)
    zero = ctx.like(0, x)
    high = b.where(b.greater(x, ctx.like(lambd, x)), b.sub(x, ctx.like(bias, x)), zero)
    return b.where(b.lesser(x, ctx.like(-lambd, x)), b.add(x, ctx.like(bias, x)), high)


@onnx_op("Mish", since=18)
def mish(ctx: Context) -> Operand:
    """Self-gated: x tanh(softplus(x))."""
    x = ctx.x()
    return ctx.b.mul(x, ctx.b.tanh(ctx.b.softplus(x)))


@onnx_op("Swish", since=24)
def swish(ctx: Context) -> Operand:
    """Self-gated: x sigmoid(alpha x)."""
    return _swish(ctx, ctx.x())


def _swish(ctx: Context, x: Operand) -> Operand:
    alpha = ctx.node.get_float("alpha", 1.0)
    inner = x if alpha == 1.0 else ctx.b.mul(x, ctx.like(alpha, x))
    return ctx.b.mul(x, ctx.b.sigmoid(inner))


@onnx_op("SwiGLU", since=28)
def swiglu(ctx: Context) -> Operand:
    """Swish of the first operand times the second."""
    return ctx.b.mul(_swish(ctx, ctx.x(0)), ctx.x(1))


@onnx_op("Gelu", since=20)
def gelu(ctx: Context) -> Operand:
    """Gaussian error linear unit, exact or by tanh (Hendrycks & Gimpel 2016)."""
    if ctx.node.get_choice("approximate", "none", "tanh") != "tanh":
        return ctx.b.gelu(ctx.x())
    return gelu_by_tanh(ctx, ctx.x())


def gelu_by_tanh(ctx: Context, x: Operand) -> Operand:
    """The approximation x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    b = ctx.b
    cube = b.mul(b.mul(b.mul(x, x), x), ctx.like(0.044715, x))
    inner = b.mul(b.add(x, cube), ctx.like(math.sqrt(2 / math.pi), x))
    return b.mul(b.mul(x, ctx.like(0.5, x)), b.add(b.tanh(inner), ctx.like(1, x)))


@onnx_op("PRelu", since=7)
def prelu(ctx: Context) -> Operand:
    """The operand, or slope x below zero; the slope broadcasts to x."""
    b, x, slope = ctx.b, ctx.x(0), ctx.x(1)
    if x.dtype.startswith("uint"):
        return x
    return b.prelu(x, slope)


@onnx_op("Clip")
def clip_by_attribute(ctx: Context) -> Operand:
    """Bounds as attributes."""
    low = ctx.node.attrs.get("min")
    high = ctx.node.attrs.get("max")
    return clip_between(ctx, low, high)


@onnx_op("Clip", since=11)
def clip(ctx: Context) -> Operand:
    """Bounds as optional scalar operands; a lower bound above the upper one gives the upper."""
    b, x = ctx.b, ctx.x()
    low, high = ctx.opt(1), ctx.opt(2)
    bounds = [ctx.known(1), ctx.known(2)]
    fixed = (low is None or bounds[0] is not None) and (high is None or bounds[1] is not None)
    if fixed:
        return clip_between(ctx, *(None if v is None else v.reshape(-1)[0].item() for v in bounds))
    x = x if low is None else b.max(x, low)
    return x if high is None else b.min(x, high)


def clip_between(ctx: Context, low: float | None, high: float | None) -> Operand:
    """Clip operand 0 between constants, each of which may be absent."""
    b, x = ctx.b, ctx.x()
    if low is not None and high is not None and low > high:
        return b.min(b.max(x, ctx.like(low, x)), ctx.like(high, x))
    if low is None and high is None:
        return x
    return b.clamp(x, min_value=low, max_value=high)


@onnx_op("Softmax", "LogSoftmax", "Hardmax")
def flat_softmax(ctx: Context) -> Operand:
    """Before opset 13: over all axes from ``axis`` on, taken as one."""
    b, x = ctx.b, ctx.x()
    axis = ctx.node.get_int("axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    if not 0 <= axis <= len(x.shape):
        raise ctx.malformed(f"axis {axis} is out of range for rank {len(x.shape)}")
    if axis == len(x.shape) - 1:
        return softmax_over(ctx, x, axis)
    rows = math.prod(x.shape[:axis])
    flat = b.reshape(x, [rows, math.prod(x.shape[axis:])])
    return b.reshape(softmax_over(ctx, flat, 1), list(x.shape))


@onnx_op("Softmax", "LogSoftmax", "Hardmax", since=13)
def softmax(ctx: Context) -> Operand:
    """Over one axis, the last by default."""
    x = ctx.x()
    return softmax_over(ctx, x, ctx.axis(ctx.node.get_int("axis", -1), len(x.shape)))


def softmax_over(ctx: Context, x: Operand, axis: int) -> Operand:
    """Softmax, LogSoftmax or Hardmax of ``x`` over an axis."""
    b = ctx.b
    if ctx.node.op == "Softmax":
        return b.softmax(x, axis)
    if ctx.node.op == "Hardmax":
        best = b.arg_max(x, axis, keep_dimensions=True)
        shape = [1] * len(x.shape)
        shape[axis] = x.shape[axis]
        places = b.constant(np.arange(x.shape[axis], dtype=np.int32).reshape(shape))
        return b.cast(b.equal(best, places), x.dtype)
    low = b.sub(x, b.reduce_max(x, axes=[axis], keep_dimensions=True))
    total = b.reduce_sum(b.exp(low), axes=[axis], keep_dimensions=True)
    return b.sub(low, b.log(total))


@onnx_op("Dropout", since=7)
def dropout(ctx: Context) -> list[Operand | Value | None]:
    """Nothing at inference; the mask, where it is asked for, is all ones."""
    x = ctx.x()
    training = ctx.known(2) if ctx.opset >= 12 else None
    if ctx.opset >= 12 and ctx.opt(2) is not None and (training is None or training.any()):
        raise ctx.unsupported("training mode")
    if not ctx.wants(1):
        return [x]
    ones = ctx.b.constant(np.ones(x.shape, np.uint8))
    if ctx.opset >= 10:
        return [x, Value(ones, True)]
    return [x, ctx.b.cast(ones, x.dtype) if x.dtype in FLOATS else ones]
