"""ONNX operators on the bits of integers, and casts that keep the bits."""

from __future__ import annotations

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_elementwise import cast_to, method
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, dtype_name, shown
from crossdock.runtime.loaders.onnx_table import Context, Value, onnx_op
from crossdock.runtime.tensor import to_numpy

BINARY = {"BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor"}


@onnx_op(*BINARY, since=18)
def binary(ctx: Context) -> Operand:
    """And, or, exclusive or of integers."""
    return method(ctx, BINARY[ctx.node.op])(ctx.x(0), ctx.x(1))


@onnx_op("BitwiseNot", since=18)
def complement(ctx: Context) -> Operand:
    """Every bit turned over."""
    return ctx.b.bitwise_not(ctx.x())


@onnx_op("BitShift", since=11)
def shift(ctx: Context) -> Operand:
    """Unsigned integers shifted."""
    direction = ctx.node.get_str("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise ctx.malformed(f"direction {shown(direction)}")
    return method(ctx, f"shift_{direction.lower()}")(ctx.x(0), ctx.x(1))


@onnx_op("BitCast", since=26)
def bit_cast(ctx: Context) -> Value:
    """The same bytes as another type of the same width."""
    x, number = ctx.x(), ctx.node.get_int("to")
    dtype = ONNX_DTYPES.get(number)
    if dtype is None:
        raise ctx.unsupported(f"a cast to {dtype_name(number)}")
    width = to_numpy(x.dtype).itemsize
    if to_numpy(dtype).itemsize != width:
        raise ctx.malformed("the types differ in width")
    if dtype == "bool" or x.dtype == dtype:
        return cast_to(ctx, number)
    return Value(ctx.b.bit_cast(x, dtype))
