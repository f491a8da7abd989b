"""ONNX elementwise arithmetic, comparison and logic."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, dtype_name
from crossdock.runtime.loaders.onnx_table import Context, Value, onnx_op
from crossdock.runtime.tensor import FLOATS

UNARY = {
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Reciprocal": "reciprocal",
    "Sin": "sin",
    "Cos": "cos",
    "Tan": "tan",
    "Acos": "acos",
    "Asin": "asin",
    "Atan": "atan",
    "Erf": "erf",
    "Neg": "neg",
}
BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
COMPARE = {
    "Equal": "equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_or_equal",
    "Less": "lesser",
    "LessOrEqual": "lesser_or_equal",
}
LOGIC = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}


def method(ctx: Context, name: str) -> Callable[..., Operand]:
    """A method of the builder, by name."""
    found: Callable[..., Operand] = getattr(ctx.b, name)
    return found


@onnx_op(*UNARY)
def unary(ctx: Context) -> Operand:
    """One operand, one builder method of the same meaning."""
    return method(ctx, UNARY[ctx.node.op])(ctx.x())


@onnx_op("Ceil", "Floor", "Round")
def rounding(ctx: Context) -> Operand:
    """Rounding; ONNX Round takes halves to even."""
    name = {"Ceil": "ceil", "Floor": "floor", "Round": "round_even"}[ctx.node.op]
    return method(ctx, name)(ctx.x())


@onnx_op("Abs", "Sign")
def magnitude(ctx: Context) -> Operand:
    """Abs and Sign, which ONNX also has for unsigned integers."""
    x = ctx.x()
    if not x.dtype.startswith("uint"):
        return method(ctx, ctx.node.op.lower())(x)
    return x if ctx.node.op == "Abs" else ctx.b.min(x, ctx.like(1, x))


@onnx_op("Sinh", "Cosh")
def hyperbolic(ctx: Context) -> Operand:
    """Half of exp(x) less or plus exp(-x)."""
    b, x = ctx.b, ctx.x()
    combine = b.sub if ctx.node.op == "Sinh" else b.add
    return b.mul(combine(b.exp(x), b.exp(b.neg(x))), ctx.like(0.5, x))


@onnx_op("Asinh", "Acosh", "Atanh")
def inverse_hyperbolic(ctx: Context) -> Operand:
    """The logarithmic forms; asinh on |x|, so that nothing cancels."""
    b, x, op = ctx.b, ctx.x(), ctx.node.op
    one = ctx.like(1, x)
    if op == "Atanh":
        return b.mul(b.log(b.div(b.add(one, x), b.sub(one, x))), ctx.like(0.5, x))
    square = b.mul(x, x)
    if op == "Acosh":
        return b.log(b.add(x, b.sqrt(b.sub(square, one))))
    size = b.abs(x)
    return b.mul(b.sign(x), b.log(b.add(size, b.sqrt(b.add(square, one)))))


@onnx_op("Identity")
def identity(ctx: Context) -> Operand:
    """The operand itself; no node is made."""
    return ctx.x()


@onnx_op(*BINARY, since=7)
def binary(ctx: Context) -> Operand:
    """Arithmetic with numpy broadcasting; integer division truncates in both."""
    return method(ctx, BINARY[ctx.node.op])(ctx.x(0), ctx.x(1))


@onnx_op("Pow", since=7)
def power(ctx: Context) -> Operand:
    """Power; since opset 12 the exponent may have a type of its own, the result has the base's."""
    b, x, y = ctx.b, ctx.x(0), ctx.x(1)
    if x.dtype == y.dtype:
        return b.pow(x, y)
    if x.dtype not in FLOATS and y.dtype in FLOATS:
        return b.cast(b.pow(b.cast(x, y.dtype), y), x.dtype)
    return b.pow(x, b.cast(y, x.dtype))


@onnx_op("Max", "Min", "Sum")
def variadic(ctx: Context) -> Operand:
    """A chain over any number of operands."""
    name = {"Max": "max", "Min": "min", "Sum": "add"}[ctx.node.op]
    first, *rest = ctx.all() or [ctx.x()]
    return functools.reduce(method(ctx, name), rest, first)


@onnx_op("Mean")
def mean(ctx: Context) -> Operand:
    """Sum over the number of operands."""
    first, *rest = ctx.all() or [ctx.x()]
    if not rest:
        return first
    total = functools.reduce(ctx.b.add, rest, first)
    return ctx.b.div(total, ctx.like(len(rest) + 1, total))


@onnx_op("Mod", since=10)
def modulo(ctx: Context) -> Operand:
    """Remainder with the divisor's sign, or with ``fmod`` the dividend's."""
    return ctx.b.mod(ctx.x(0), ctx.x(1), fmod=bool(ctx.node.get_int("fmod")))


@onnx_op(*COMPARE, since=7, boolean=True)
def compare(ctx: Context) -> Operand:
    """Comparisons; the IR holds their result as uint8."""
    return method(ctx, COMPARE[ctx.node.op])(ctx.x(0), ctx.x(1))


@onnx_op(*LOGIC, since=7, boolean=True)
def logic(ctx: Context) -> Operand:
    """Logic on bools."""
    return method(ctx, LOGIC[ctx.node.op])(ctx.x(0), ctx.x(1))


@onnx_op("Not", boolean=True)
def negation(ctx: Context) -> Operand:
    """Logical not."""
    return ctx.b.logical_not(ctx.x())


@onnx_op("IsNaN", since=9, boolean=True)
def is_nan(ctx: Context) -> Operand:
    """True where the element is not a number."""
    return ctx.b.is_nan(ctx.x())


@onnx_op("IsInf", since=10, boolean=True)
def is_infinite(ctx: Context) -> Operand:
    """True at infinities, of one sign where the other is switched off."""
    b, x = ctx.b, ctx.x()
    negative = ctx.node.get_int("detect_negative", 1)
    positive = ctx.node.get_int("detect_positive", 1)
    if negative and positive:
        return b.is_infinite(x)
    if not negative and not positive:
        return b.lesser(x, ctx.like(-math.inf, x))
    return b.equal(x, ctx.like(math.inf if positive else -math.inf, x))


@onnx_op("Where", since=9, like=1)
def where(ctx: Context) -> Operand:
    """Choose by condition."""
    return ctx.b.where(ctx.x(0), ctx.x(1), ctx.x(2))


@onnx_op("Cast", since=6)
def cast(ctx: Context) -> Value:
    """Cast to a type; float8 and narrower, and strings, are not there."""
    ctx.node.require("to")
    return cast_to(ctx, ctx.node.get_int("to"))


def cast_to(ctx: Context, number: int) -> Value:
    """Cast operand 0 to a TensorProto.DataType; bool is uint8 holding 0 and 1."""
    b, x = ctx.b, ctx.x()
    dtype = ONNX_DTYPES.get(number)
    if dtype is None:
        raise ctx.unsupported(f"a cast to {dtype_name(number)}")
    if dtype == "bool":
        return Value(x if ctx.boolean(0) else b.not_equal(x, ctx.like(0, x)), True)
    return Value(x if x.dtype == dtype else b.cast(x, dtype))


@onnx_op("CastLike", since=15)
def cast_like(ctx: Context) -> Value:
    """Cast to the type of the second operand."""
    numbers = {name: number for number, name in ONNX_DTYPES.items()}
    return cast_to(ctx, numbers["bool" if ctx.boolean(1) else ctx.x(1).dtype])
