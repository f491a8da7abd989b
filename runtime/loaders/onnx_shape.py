"""ONNX operators that move elements without choosing among them: reshape, transpose, concat ..."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_table import Context, onnx_op


def reshaped(ctx: Context, x: Operand, shape: Sequence[int]) -> Operand:
    """Reshape, or the operand itself where nothing changes."""
    return x if tuple(shape) == tuple(x.shape) else ctx.b.reshape(x, list(shape))


@onnx_op("Reshape", since=5)
def reshape(ctx: Context) -> Operand:
    """To a constant shape."""
    return reshape_to(ctx, ctx.ints(1, "a shape"))


def reshape_to(ctx: Context, shape: Sequence[int]) -> Operand:
    """Operand 0 in a shape: 0 keeps a dimension (unless ``allowzero``), -1 takes the rest."""
    x = ctx.x()
    wanted = list(shape)
    if not (ctx.opset >= 14 and ctx.node.get_int("allowzero")):
        for i, dim in enumerate(wanted):
            if dim == 0:
                if i >= len(x.shape):
                    raise ctx.malformed(f"shape {wanted} keeps a dimension that is not there")
                wanted[i] = x.shape[i]
    if wanted.count(-1) == 1:
        rest = math.prod(d for d in wanted if d != -1)
        if not rest or math.prod(x.shape) % rest:
            raise ctx.malformed(f"{list(x.shape)} cannot take the shape {wanted}")
        wanted[wanted.index(-1)] = math.prod(x.shape) // rest
    if math.prod(wanted) != math.prod(x.shape) or any(d < 0 for d in wanted):
        raise ctx.malformed(f"{list(x.shape)} cannot take the shape {wanted}")
    return reshaped(ctx, x, wanted)


@onnx_op("Flatten")
def flatten(ctx: Context) -> Operand:
    """To a matrix: the axes before ``axis``, and the rest."""
    x = ctx.x()
    rank = len(x.shape)
    axis = ctx.node.get_int("axis", 1)
    axis += rank if axis < 0 else 0
    if not 0 <= axis <= rank:
        raise ctx.malformed(f"axis {axis} is out of range for rank {rank}")
    return reshaped(ctx, x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


def axes_argument(ctx: Context, since: int) -> tuple[int, ...] | None:
    """Axes from the attribute, or from opset ``since`` on from operand 1; None where absent."""
    if ctx.opset < since:
        return ctx.node.get_ints("axes")
    return None if ctx.opt(1) is None else ctx.ints(1, "a list of axes")


@onnx_op("Squeeze")
def squeeze(ctx: Context) -> Operand:
    """Drop axes of size one: those named, or all."""
    x = ctx.x()
    given = axes_argument(ctx, 13)
    if given is None:
        return reshaped(ctx, x, [d for d in x.shape if d != 1])
    axes = ctx.axes(given, len(x.shape))
    if any(x.shape[a] != 1 for a in axes):
        raise ctx.malformed(f"cannot squeeze axes {axes} of {list(x.shape)}")
    return reshaped(ctx, x, [d for i, d in enumerate(x.shape) if i not in axes])


@onnx_op("Unsqueeze")
def unsqueeze(ctx: Context) -> Operand:
    """Insert axes of size one; they count in the result."""
    x = ctx.x()
    given = axes_argument(ctx, 13)
    if given is None:
        raise ctx.malformed("the axes are missing")
    rank = len(x.shape) + len(given)
    axes = ctx.axes(given, rank)
    rest = iter(x.shape)
    return reshaped(ctx, x, [1 if i in axes else next(rest) for i in range(rank)])


@onnx_op("Transpose")
def transpose(ctx: Context) -> Operand:
    """Permute the axes; reversed by default."""
    x = ctx.x()
    rank = len(x.shape)
    perm = ctx.node.get_ints("perm")
    order = list(reversed(range(rank))) if perm is None else ctx.axes(perm, rank)
    if len(order) != rank:
        raise ctx.malformed(f"permutation {order} for rank {rank}")
    return x if order == list(range(rank)) else ctx.b.transpose(x, permutation=order)


@onnx_op("Concat", since=4)
def concat(ctx: Context) -> Operand:
    """Join along an axis."""
    ctx.node.require("axis")
    return join(ctx, ctx.node.get_int("axis"))


def join(ctx: Context, axis: int) -> Operand:
    """Every operand along an axis; those without elements fall away."""
    operands = ctx.all()
    if not operands:
        raise ctx.malformed("nothing to join")
    axis = ctx.axis(axis, len(operands[0].shape))
    filled = [x for x in operands if 0 not in x.shape] or operands[:1]
    return filled[0] if len(filled) == 1 else ctx.b.concat(filled, axis)


@onnx_op("Split", since=2)
def split(ctx: Context) -> list[Operand | None]:
    """Sizes as an attribute, from opset 13 on as a constant operand."""
    if ctx.opset < 13:
        return split_into(ctx, ctx.node.get_ints("split"))
    return split_into(ctx, None if ctx.opt(1) is None else ctx.ints(1, "a list of sizes"))


def split_into(ctx: Context, sizes: tuple[int, ...] | None) -> list[Operand | None]:
    """Split along an axis into given or equal sizes, the last one smaller where it must be."""
    x = ctx.x()
    axis = ctx.axis(ctx.node.get_int("axis"), len(x.shape))
    extent, count = x.shape[axis], len(ctx.node.outputs)
    if sizes is None:
        each = math.ceil(extent / max(count, 1))
        sizes = tuple(min(each, extent - i * each) for i in range(count))
    if sum(sizes) != extent or len(sizes) != count or min(sizes, default=0) < 0:
        raise ctx.malformed(f"cannot split {extent} into {list(sizes)} for {count} outputs")
    if count == 1:
        return [x]
    return list(ctx.b.split(x, list(sizes), axis=axis))


@onnx_op("Expand", since=8)
def expand(ctx: Context) -> Operand:
    """Broadcast with a constant shape; both sides may give dimensions."""
    x = ctx.x()
    shape = ctx.ints(1, "a shape")
    rank = max(len(shape), len(x.shape))
    mine = (1,) * (rank - len(x.shape)) + tuple(x.shape)
    wanted = (1,) * (rank - len(shape)) + shape
    if any(a != w and 1 not in (a, w) for a, w in zip(mine, wanted, strict=True)):
        raise ctx.malformed(f"{list(x.shape)} does not broadcast with {list(shape)}")
    full = [w if a == 1 else a for a, w in zip(mine, wanted, strict=True)]
    return x if full == list(x.shape) else ctx.b.expand(x, full)


@onnx_op("Tile", since=6)
def tile(ctx: Context) -> Operand:
    """Repeat along each axis."""
    x = ctx.x()
    counts = ctx.ints(1, "a list of repetitions")
    if len(counts) != len(x.shape) or any(c < 0 for c in counts):
        raise ctx.malformed(f"repetitions {list(counts)} for rank {len(x.shape)}")
    return x if all(c == 1 for c in counts) else ctx.b.tile(x, list(counts))


@onnx_op("DepthToSpace")
def depth_to_space(ctx: Context) -> Operand:
    """Channels into blocks of pixels."""
    b, x, block = ctx.b, ctx.x(), _block(ctx)
    n, c, *space = x.shape
    small = c // block ** len(space)
    blocks, count = [block] * len(space), len(space)
    if c % block**count:
        raise ctx.malformed(f"{c} channels do not fill blocks of {block}")
    if ctx.node.get_choice("mode", "DCR", "CRD") == "CRD":
        parts, channel, first = [n, small, *blocks, *space], 1, 2
    else:
        parts, channel, first = [n, *blocks, small, *space], 1 + count, 1
    order = [0, channel]
    for i in range(count):
        order += [2 + count + i, first + i]
    mixed = b.transpose(b.reshape(x, parts), permutation=order)
    return b.reshape(mixed, [n, small, *(d * block for d in space)])


@onnx_op("SpaceToDepth")
def space_to_depth(ctx: Context) -> Operand:
    """Blocks of pixels into channels."""
    b, x, block = ctx.b, ctx.x(), _block(ctx)
    n, c, *space = x.shape
    count = len(space)
    if any(d % block for d in space):
        raise ctx.malformed(f"{space} does not divide into blocks of {block}")
    parts = [n, c]
    for d in space:
        parts += [d // block, block]
    inner = [3 + 2 * i for i in range(count)]
    outer = [2 + 2 * i for i in range(count)]
    crd = ctx.node.get_choice("mode", "DCR", "CRD") == "CRD"
    order = [0, 1, *inner, *outer] if crd else [0, *inner, 1, *outer]
    mixed = b.transpose(b.reshape(x, parts), permutation=order)
    return b.reshape(mixed, [n, c * block**count, *(d // block for d in space)])


def _block(ctx: Context) -> int:
    ctx.node.require("blocksize")
    block = ctx.node.get_int("blocksize")
    if block < 1 or len(ctx.x().shape) < 3:
        raise ctx.malformed(f"blocks of {block} in an input of rank {len(ctx.x().shape)}")
    return block
