"""ONNX operators whose results are known once shapes are: constants, shapes, ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.limits import MAX_RANK
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, dtype_name, shown
from crossdock.runtime.loaders.onnx_stage import in_ir
from crossdock.runtime.loaders.onnx_table import Context, Value, onnx_op
from crossdock.runtime.tensor import Array, to_numpy, type_name


@onnx_op("Constant")
def constant(ctx: Context) -> Value:
    """A tensor, number or list of numbers in an attribute."""
    node = ctx.node
    if len(node.attrs) != 1:
        raise ctx.malformed("a Constant has exactly one attribute")
    (name,) = node.attrs
    array: Array
    if name in ("value", "sparse_value"):
        if not isinstance(node.attrs[name], np.ndarray):
            raise ctx.malformed(f"attribute {shown(name)} is no tensor")
        array = node.attrs[name]
        if not in_ir(array):
            raise ctx.unsupported(f"a constant of {array.dtype}")
    elif name in ("value_float", "value_floats"):
        value = node.get_float(name) if name == "value_float" else node.get_floats(name)
        array = np.array(value, np.float32)
    elif name in ("value_int", "value_ints"):
        value = node.get_int(name) if name == "value_int" else node.get_ints(name)
        array = np.array(value, np.int64)
    else:
        raise ctx.unsupported(f"a constant given as {shown(name)}")
    return known(ctx, array)


def known(ctx: Context, array: Array) -> Value:
    """An array as a value; bools are held as uint8."""
    return ctx.frame.constant(array)


def checked_size(ctx: Context, shape: Sequence[int], dtype: str) -> tuple[int, ...]:
    """A shape that a constant may be made in; raises where it is none, or is over the budget."""
    if len(shape) > MAX_RANK or any(d < 0 for d in shape):
        raise ctx.malformed(f"{list(shape)[:MAX_RANK]} is no shape of a tensor")
    ctx.frame.converter.budget.tensor(math.prod(shape) * to_numpy(dtype).itemsize, str(ctx.node))
    return tuple(shape)


@onnx_op("ConstantOfShape", since=9)
def constant_of_shape(ctx: Context) -> Value:
    """A filled tensor; equal ones share their memory."""
    fill = ctx.node.attrs.get("value", np.zeros(1, np.float32))
    if not isinstance(fill, np.ndarray) or fill.size != 1:
        raise ctx.malformed("attribute 'value' is no tensor of one element")
    if not in_ir(fill):
        raise ctx.unsupported(f"a tensor of {fill.dtype}")
    shape = checked_size(ctx, ctx.ints(0, "a shape"), type_name(fill.dtype))
    return ctx.frame.filled(shape, fill.reshape(()))


@onnx_op("Shape")
def shape(ctx: Context) -> Value:
    """The operand's shape; since opset 15 a span of it."""
    dims = ctx.x().shape
    rank = len(dims)
    start, end = ctx.node.get_int("start", 0), ctx.node.get_int("end", rank)
    low, high = (min(max(v + rank if v < 0 else v, 0), rank) for v in (start, end))
    return known(ctx, np.array(dims[low:high], np.int64))


@onnx_op("Size")
def size(ctx: Context) -> Value:
    """The operand's number of elements."""
    return known(ctx, np.array(math.prod(ctx.x().shape), np.int64))


@onnx_op("Range", since=11)
def arange(ctx: Context) -> Value:
    """Numbers from start to limit by delta, all three constants."""
    start, limit, delta = (ctx.value(i, "a range").reshape(-1)[0] for i in range(3))
    if delta == 0:
        raise ctx.malformed("a range with a step of zero")
    span = (float(limit) - float(start)) / float(delta)
    if not math.isfinite(span):
        raise ctx.malformed(f"a range of {span} elements")
    count = max(0, math.ceil(span))
    dtype = to_numpy(ctx.x().dtype)
    ctx.make_room(count * 8)
    wide: Any = np.int64
    if dtype.kind not in "iu":
        wide = np.float64 if dtype == np.float64 else np.float32
    first, step = (np.asarray(v).astype(wide) for v in (start, delta))
    steps = first + np.arange(count, dtype=wide) * step
    return known(ctx, steps.astype(dtype))


@onnx_op("EyeLike", since=9)
def eye_like(ctx: Context) -> Value:
    """Ones on a diagonal of a matrix of the operand's shape."""
    x = ctx.x()
    if len(x.shape) != 2:
        raise ctx.malformed(f"input of rank {len(x.shape)}, not 2")
    name = ONNX_DTYPES.get(ctx.node.get_int("dtype")) if "dtype" in ctx.node.attrs else x.dtype
    if name is None:
        raise ctx.unsupported(f"a matrix of {dtype_name(ctx.node.get_int('dtype'))}")
    rows, columns = checked_size(ctx, x.shape, name)
    ctx.make_room(rows * columns * to_numpy(name).itemsize)
    return known(ctx, np.eye(rows, columns, ctx.node.get_int("k"), dtype=to_numpy(name)))


@onnx_op("OneHot", since=9, like=2)
def one_hot(ctx: Context) -> Operand:
    """A new axis of constant depth: on where its place equals the index, else off."""
    b, indices, values = ctx.b, ctx.x(0), ctx.x(2)
    depth = int(ctx.scalar(1, "a depth"))
    rank = len(indices.shape) + 1
    axis = ctx.axis(ctx.node.get_int("axis", -1), rank)
    dims = list(indices.shape)
    dims.insert(axis, 1)
    checked_size(ctx, (depth,), "int64")
    ctx.make_room(depth * 8)
    places = np.arange(depth, dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(rank)])
    whole = indices if indices.dtype == "int64" else b.cast(indices, "int64")
    spread = b.reshape(whole, dims)
    spread = b.where(
        b.lesser(spread, ctx.like(0, spread)), b.add(spread, ctx.like(depth, spread)), spread
    )
    off = b.reshape(b.slice(values, [0], [1]), [1] * rank)
    on = b.reshape(b.slice(values, [1], [1]), [1] * rank)
    return b.where(b.equal(spread, b.constant(places)), on, off)


@onnx_op("NonZero", since=9)
def non_zero(ctx: Context) -> Value:
    """Indices of non-zero elements of a constant, one column an element."""
    held = ctx.value(0, "an input")
    ctx.make_room(held.size * max(held.ndim, 1) * 8)
    found = np.array(np.nonzero(held), np.int64)
    return known(ctx, found.reshape(len(ctx.x().shape), -1))
