"""ONNX operators as opsets 1 to 6 had them, where they meant something else later.

Then broadcasting was one-sided and asked for: with ``broadcast`` the second operand's axes stand
in the first's from ``axis`` on, at the end by default. Shapes and pads were attributes, and
element types were names.
"""

from __future__ import annotations

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_activation import SELU_ALPHA, SELU_GAMMA
from crossdock.runtime.loaders.onnx_elementwise import BINARY, LOGIC, cast_to, method
from crossdock.runtime.loaders.onnx_index import pad_by
from crossdock.runtime.loaders.onnx_model import dtype_number, shown
from crossdock.runtime.loaders.onnx_resize import upsampled
from crossdock.runtime.loaders.onnx_shape import join, reshape_to, reshaped, split_into
from crossdock.runtime.loaders.onnx_table import Context, Value, onnx_op
from crossdock.runtime.tensor import to_numpy

COMPARE = {"Equal": "equal", "Greater": "greater", "Less": "lesser"}


def aligned(ctx: Context) -> Operand:
    """Operand 1 with axes of one after its own, so that numpy's broadcasting does the rest."""
    x, y = ctx.x(0), ctx.x(1)
    if not ctx.node.get_int("broadcast"):
        if x.shape != y.shape:
            raise ctx.malformed(
                f"shapes {list(x.shape)} and {list(y.shape)} differ, and 'broadcast' is not set"
            )
        return y
    rank, own = len(x.shape), len(y.shape)
    if own > rank:
        raise ctx.malformed(f"an operand of rank {own} does not broadcast to rank {rank}")
    axis = rank - own
    if "axis" in ctx.node.attrs and own:
        axis = ctx.axis(ctx.node.get_int("axis"), rank)
    behind = rank - own - axis
    if behind < 0 or any(
        b not in (1, a) for a, b in zip(x.shape[axis : axis + own], y.shape, strict=True)
    ):
        raise ctx.malformed(
            f"{list(y.shape)} does not broadcast to {list(x.shape)} from axis {axis} on"
        )
    return reshaped(ctx, y, [*y.shape, *[1] * behind])


@onnx_op(*BINARY, "Pow")
def arithmetic(ctx: Context) -> Operand:
    """Arithmetic with one-sided broadcasting."""
    name = "pow" if ctx.node.op == "Pow" else BINARY[ctx.node.op]
    return method(ctx, name)(ctx.x(0), aligned(ctx))


@onnx_op(*COMPARE, *LOGIC, boolean=True)
def relation(ctx: Context) -> Operand:
    """Comparison and logic with one-sided broadcasting."""
    return method(ctx, (COMPARE | LOGIC)[ctx.node.op])(ctx.x(0), aligned(ctx))


@onnx_op("PRelu")
def prelu(ctx: Context) -> Operand:
    """The operand, or slope x below zero; one slope, or one a channel."""
    x, slope = ctx.x(0), ctx.x(1)
    count = int(np.prod(slope.shape))
    rank = len(x.shape)
    if count != 1 and (rank < 2 or count != x.shape[1]):
        raise ctx.malformed(f"{count} slopes for an input {list(x.shape)}")
    shape = [1] * rank if count == 1 else [count if i == 1 else 1 for i in range(rank)]
    return ctx.b.prelu(x, reshaped(ctx, slope, shape))


@onnx_op("Selu")
def selu(ctx: Context) -> Operand:
    """Gamma times elu; opset 1 had shorter defaults."""
    x, node = ctx.x(), ctx.node
    first = ctx.opset < 6
    alpha = node.get_float("alpha", 1.6732 if first else SELU_ALPHA)
    gamma = node.get_float("gamma", 1.0507 if first else SELU_GAMMA)
    return ctx.b.mul(ctx.b.elu(x, alpha=alpha), ctx.like(gamma, x))


@onnx_op("Cast")
def cast(ctx: Context) -> Value:
    """Cast to a type given by its name."""
    name = ctx.node.get_str("to")
    number = dtype_number(name)
    if number is None:
        raise ctx.malformed(f"a cast to {shown(name)}, which is no type")
    return cast_to(ctx, number)


@onnx_op("Reshape")
def reshape(ctx: Context) -> Operand:
    """To the shape in an attribute."""
    shape = ctx.node.get_ints("shape")
    if shape is None:
        raise ctx.malformed("attribute 'shape' is missing")
    return reshape_to(ctx, shape)


@onnx_op("Concat")
def concat(ctx: Context) -> Operand:
    """Join, along axis 1 by default."""
    return join(ctx, ctx.node.get_int("axis", 1))


@onnx_op("Split")
def split(ctx: Context) -> list[Operand | None]:
    """Split into sizes from an operand, from an attribute, or equal ones."""
    sizes = ctx.node.get_ints("split") if ctx.opt(1) is None else ctx.ints(1, "a list of sizes")
    return split_into(ctx, sizes)


@onnx_op("Tile")
def tile(ctx: Context) -> Operand:
    """Repeat along one axis."""
    x = ctx.x()
    axis = ctx.axis(int(ctx.scalar(2, "an axis")), len(x.shape))
    count = int(ctx.scalar(1, "a number of repetitions"))
    if count < 0:
        raise ctx.malformed(f"{count} repetitions")
    return ctx.b.tile(x, [count if i == axis else 1 for i in range(len(x.shape))])


@onnx_op("Pad")
def pad(ctx: Context) -> Operand:
    """Pads and value as attributes, the first called paddings."""
    pads = ctx.node.get_ints("paddings")
    if pads is None:
        raise ctx.malformed("attribute 'paddings' is missing")
    return pad_by(ctx, pads, None, ctx.node.get_float("value"))


@onnx_op("Upsample")
def upsample(ctx: Context) -> Operand:
    """An image's height and width, scaled."""
    for name in ("height_scale", "width_scale"):
        ctx.node.require(name)
    height, width = (ctx.node.get_float(f"{side}_scale") for side in ("height", "width"))
    return upsampled(ctx, (1.0, 1.0, height, width))


@onnx_op("Dropout")
def dropout(ctx: Context) -> list[Operand | Value | None]:
    """Nothing in test mode; the mask, where it is asked for, is all ones."""
    x = ctx.x()
    if not ctx.node.get_int("is_test"):
        raise ctx.unsupported("training mode (attribute 'is_test' is not set)")
    return [x, ctx.b.constant(np.ones(x.shape, to_numpy(x.dtype)))] if ctx.wants(1) else [x]
