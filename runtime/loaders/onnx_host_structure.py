"""ONNX operators that only move elements, for types that the IR lacks.

Such an operator does not look at the elements: it is converted and run on their *numbers* in place
of them, by the converter that serves every other type, and the elements are then picked by number.
Number 0 is what an operator fills with: an empty string, or zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crossdock.kernels.reference import evaluate
from crossdock.runtime.loaders.onnx_convert import Converter
from crossdock.runtime.loaders.onnx_frame import Frame, Writer
from crossdock.runtime.loaders.onnx_host import EMPTY, HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import (
    axis_of,
    broadcast,
    is_float,
    is_string,
    objects,
    sized,
)
from crossdock.runtime.loaders.onnx_model import OnnxGraph, OnnxModel, shown
from crossdock.runtime.loaders.onnx_stage import array_type
from crossdock.runtime.loaders.onnx_table import Value, find
from crossdock.runtime.tensor import Array

_ALL = ()
"""Every input holds elements."""

_DATA: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), (0,)),
    **dict.fromkeys(("Slice", "Split", "Gather", "GatherElements", "GatherND"), (0,)),
    **dict.fromkeys(("Expand", "Tile", "Trilu", "ReverseSequence"), (0,)),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth", "CenterCropPad"), (0,)),
    **dict.fromkeys(("Scatter", "ScatterElements", "ScatterND", "Pad"), (0, 2)),
    "TensorScatter": (0, 1),
    "Where": (1, 2),
    "OneHot": (2,),
    "Concat": _ALL,
}
"""Operators that move elements, and the inputs that hold them; the others are indices and such."""


@host_op(*_DATA, when="foreign")
def move(call: HostCall) -> tuple[HostValue, ...]:
    """Run an operator on the numbers of the elements, and pick them.

    Elements are numbered through all inputs that hold some, from 1 on.
    """
    if call.node.attrs.get("reduction", "none") != "none":
        raise call.unsupported(f"reduction of tensors of {_data(call)[0].dtype}")
    if call.node.op in _INDEXED:
        _check_indices(call)
    data = _data(call)
    pool = np.concatenate([_fill(data[0]), *(array.reshape(-1) for array in data)])
    places = iter(np.cumsum([1, *(array.size for array in data)]).tolist())
    numbers: list[HostValue | None] = list(call.inputs)
    for index in _data_inputs(call):
        array = call.array(index)
        start = next(places)
        numbers[index] = np.arange(start, start + array.size, dtype=np.int64).reshape(array.shape)
    made = run_converted(call, numbers)
    return tuple(pool[picked.reshape(-1)].reshape(picked.shape) for picked in made)


_INDEXED = ("Gather", "GatherElements", "GatherND")


def _check_indices(call: HostCall) -> None:
    """Raise where an index is out of range: kernels clamp, and ONNX says that it is an error."""
    x, indices = call.array(0), call.array(1)
    if indices.dtype.kind not in "iu":
        raise call.malformed(f"indices are {indices.dtype}, not integers")
    if call.node.op == "GatherND":
        at = call.node.get_int("batch_dims")
        width = indices.shape[-1] if indices.ndim else 0
        sizes = np.array(x.shape[at : at + width], np.int64)
        if at < 0 or not indices.ndim or len(sizes) != width:
            raise call.malformed(f"indices {list(indices.shape)} for {list(x.shape)}")
    else:
        sizes = np.array(x.shape[axis_of(call, call.node.get_int("axis"), x.ndim)], np.int64)
    wrong = np.asarray((indices < -sizes) | (indices >= sizes))
    if wrong.any():
        index = np.broadcast_to(indices, wrong.shape)[wrong][0]
        raise call.malformed(f"index {index} is out of range for a shape of {list(x.shape)}")


def _data_inputs(call: HostCall) -> list[int]:
    given = _DATA[call.node.op] or range(len(call))
    return [index for index in given if call.opt(index) is not None]


def _data(call: HostCall) -> list[Array]:
    data = [call.array(index) for index in _data_inputs(call)]
    if not data:
        raise call.malformed("input 0 is missing")
    if any(array.dtype != data[0].dtype for array in data):
        raise call.malformed(f"its inputs differ in type: {sorted({str(a.dtype) for a in data})}")
    return data


def _fill(like: Array) -> Array:
    """What an operator puts where no element goes, as one element."""
    return objects([""], [1]) if is_string(like) else np.zeros(1, like.dtype)


def run_converted(call: HostCall, inputs: Sequence[HostValue | None]) -> list[Array]:
    """The outputs of a call's node on constants, by its converter and the reference interpreter.

    Raises:
        Error: what the converter raised, and UnsupportedModel where there is none.
    """
    names = tuple("" if value is None else f"in{i}" for i, value in enumerate(inputs))
    node = replace(call.node, inputs=names)
    entry = find(node, call.opset)
    if entry is None:
        raise call.unsupported("this operator on values of types that devices lack")
    opsets = {node.domain: call.opset}
    model = OnnxModel("", OnnxGraph("", (), (), (node,), {}), opsets)
    converter = Converter(model, {}, call.budget)
    frame = Frame(converter, Writer(call.budget), opsets)
    frame.pending.update(zip(names, inputs, strict=True))
    try:
        values = converter.apply(frame, entry, node, call.opset)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise call.malformed(str(error)) from error
    made = {f"out{i}": v for i, v in enumerate(values) if isinstance(v, Value)}
    graph = frame.writer.build(made, "", booleans=True)
    call.make_room(max((spec.nbytes for spec in graph.specs.values()), default=0))
    return [np.asarray(value) for value in evaluate(graph, {}).values()]


@host_op("Identity", when="foreign")
def identity(call: HostCall) -> HostValue:
    """The value itself, of whatever type."""
    value = call.opt(0)
    return EMPTY if value is None else value


@host_op("Shape", when="foreign")
def shape(call: HostCall) -> HostValue:
    """The tensor's shape; since opset 15 a span of it."""
    (dims,) = run_converted(call, [np.zeros(call.array().shape, np.int8)])
    return dims


@host_op("Size", when="foreign")
def size(call: HostCall) -> HostValue:
    """The tensor's number of elements."""
    return np.array(call.array().size, np.int64)


@host_op("Constant", when="refused")
def constant(call: HostCall) -> HostValue:
    """A tensor, string or list of strings in an attribute."""
    node = call.node
    if len(node.attrs) != 1:
        raise call.malformed("a Constant has exactly one attribute")
    (name,) = node.attrs
    if name == "value_string":
        return objects([node.get_str(name)], [])
    if name == "value_strings":
        words = node.get_strs(name) or ()
        return objects(words, [len(words)])
    value = node.attrs[name]
    if not isinstance(value, np.ndarray):
        raise call.unsupported(f"a constant given as {shown(name)}")
    return value


@host_op("ConstantOfShape", since=9, when="refused")
def constant_of_shape(call: HostCall) -> HostValue:
    """A tensor filled with a value of a type that the IR lacks."""
    fill = call.node.attrs.get("value", np.zeros(1, np.float32))
    if not isinstance(fill, np.ndarray) or fill.size != 1:
        raise call.malformed("attribute 'value' is no tensor of one element")
    dims = call.array()
    if dims.dtype != np.int64 or dims.ndim != 1:
        raise call.malformed(f"its shape is {dims.dtype}{list(dims.shape)}, not a list of int64")
    return np.full(sized(call, dims.tolist(), fill.dtype), fill.reshape(-1)[0], fill.dtype)


@host_op("Equal", since=7, when="foreign")
def equal(call: HostCall) -> HostValue:
    """True where two tensors of strings are equal, with broadcasting."""
    a, b = call.array(0), call.array(1)
    if is_string(a) != is_string(b):
        raise call.malformed(f"it compares {a.dtype} with {b.dtype}")

    broadcast(call, a, b, a.dtype)
    return np.asarray(a == b, dtype=np.bool_)


def _floats(call: HostCall) -> Array:
    """Input 0, which must be floats of any width, as float32."""
    x = call.array()
    if not is_float(x.dtype):
        raise call.malformed(f"input 0 is a tensor of {array_type(x)}, not of floats")
    return x.astype(np.float32)


@host_op("IsNaN", since=20, when="foreign")
def is_nan(call: HostCall) -> HostValue:
    """True where a small float is no number."""
    return np.isnan(_floats(call))


@host_op("IsInf", since=20, when="foreign")
def is_inf(call: HostCall) -> HostValue:
    """True where a small float is infinite, of a sign that is looked for."""
    x = _floats(call)
    up = call.node.get_int("detect_positive", 1) != 0
    down = call.node.get_int("detect_negative", 1) != 0
    return (np.isposinf(x) & up) | (np.isneginf(x) & down)
