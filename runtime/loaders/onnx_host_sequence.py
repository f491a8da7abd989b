"""ONNX sequences and optionals: lists of tensors, and values that may be absent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.runtime.loaders.onnx_host import EMPTY, HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import axis_of, host_dtype, integer
from crossdock.runtime.tensor import Array

_FLOAT = 1


class Held(list[Any]):
    """A sequence that knows how many bytes its tensors have."""

    nbytes: int


def held(call: HostCall, items: Sequence[Any], nbytes: int | None = None) -> Held:
    """A sequence of tensors, which together may take what one tensor may."""
    made = Held(items)
    made.nbytes = sum(i.nbytes for i in items if _is_tensor(i)) if nbytes is None else nbytes
    call.budget.size(made.nbytes, str(call.node), call.nbytes)
    return made


def _is_tensor(item: Any) -> bool:
    return isinstance(item, np.ndarray)


def _place(call: HostCall, index: int, length: int, *, end: bool) -> int:
    """A position in a sequence, counted from the front; ``end``: one past the last is allowed."""
    at = integer(call, index, "a position")
    if not -length <= at < length + end:
        raise call.malformed(f"position {at} is out of range for a sequence of {length}")
    return at + length if at < 0 else at


@host_op("SequenceEmpty", since=11)
def empty(call: HostCall) -> HostValue:
    """A sequence of nothing."""
    host_dtype(call, call.node.get_int("dtype", _FLOAT))
    return []


@host_op("SequenceConstruct", since=11)
def construct(call: HostCall) -> HostValue:
    """The inputs as a sequence."""
    return _alike(call, [call.array(i) for i in range(len(call))])


def _alike(call: HostCall, items: Sequence[Any]) -> Held:
    """The items as a sequence; raises where their types differ."""
    types = {str(item.dtype) for item in items if isinstance(item, np.ndarray)}
    if len(types) > 1:
        raise call.malformed(f"tensors of different types in one sequence: {sorted(types)}")
    return held(call, items)


@host_op("SequenceLength", since=11)
def length(call: HostCall) -> HostValue:
    """How many tensors there are."""
    return np.array(len(call.sequence()), np.int64)


@host_op("SequenceAt", since=11)
def at(call: HostCall) -> HostValue:
    """The tensor at a position."""
    items = call.sequence()
    found: HostValue = items[_place(call, 1, len(items), end=False)]
    return found


@host_op("SequenceInsert", since=11)
def insert(call: HostCall) -> HostValue:
    """The sequence with a tensor put before a position, or at its end."""
    before, item = call.sequence(), call.array(1)
    if before and _is_tensor(before[0]) and before[0].dtype != item.dtype:
        raise call.malformed(f"a tensor of {item.dtype} in a sequence of {before[0].dtype}")
    place = len(before)
    if call.opt(2) is not None:
        place = _place(call, 2, len(before), end=True)
    known = before if isinstance(before, Held) else held(call, before)
    items = held(call, known, known.nbytes + item.nbytes)
    items.insert(place, item)
    return items


@host_op("SequenceErase", since=11)
def erase(call: HostCall) -> HostValue:
    """The sequence without the tensor at a position, or without its last."""
    items = list(call.sequence())
    if not items:
        raise call.malformed("nothing can be erased from an empty sequence")
    place = len(items) - 1 if call.opt(1) is None else _place(call, 1, len(items), end=False)
    del items[place]
    return items


@host_op("SplitToSequence", since=11)
def split(call: HostCall) -> HostValue:
    """Parts of a tensor along an axis: of equal lengths, of given ones, or slices."""
    x = call.array()
    axis = axis_of(call, call.node.get_int("axis"), x.ndim)
    if call.opt(1) is None:
        parts = _parts(x, axis, [1] * x.shape[axis])
        return parts if call.node.get_int("keepdims", 1) else [np.squeeze(p, axis) for p in parts]
    return _parts(x, axis, _lengths(call, x.shape[axis]))


def _lengths(call: HostCall, extent: int) -> list[int]:
    """The lengths of the parts that input 1 asks for."""
    given = call.array(1)
    if given.dtype.kind not in "iu" or given.ndim > 1:
        raise call.malformed(f"split is {given.dtype}{list(given.shape)}, not integers")
    if given.ndim == 1:
        lengths: list[int] = given.tolist()
        if any(n < 0 for n in lengths) or sum(lengths) != extent:
            raise call.malformed(f"parts of lengths that do not add up to {extent}")
        return lengths
    size = int(given)
    if size < 1:
        raise call.malformed(f"parts of {size} elements")
    whole, left = divmod(extent, size)
    return [size] * whole + ([left] if left else [])


def _parts(x: Array, axis: int, lengths: Sequence[int]) -> list[Any]:
    """Copies, so that a part does not keep the whole tensor."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return [part.copy() for part in np.split(x, ends[:-1], axis)] if len(lengths) else []


@host_op("ConcatFromSequence", since=11)
def concat(call: HostCall) -> HostValue:
    """The tensors of a sequence end to end along an axis, or stacked along a new one."""
    items = _alike(call, call.sequence())
    if not items:
        raise call.malformed("an empty sequence cannot be made a tensor")
    call.node.require("axis")
    stacked = call.node.get_int("new_axis") != 0
    axis = axis_of(call, call.node.get_int("axis"), items[0].ndim + stacked)
    try:
        joined: Array = np.stack(items, axis) if stacked else np.concatenate(items, axis)
    except ValueError as error:
        shapes = ", ".join(str(list(item.shape)) for item in items[:8])
        raise call.malformed(f"tensors of shapes {shapes} do not fit along {axis}") from error
    return joined


@host_op("Optional", since=15)
def optional(call: HostCall) -> HostValue:
    """An optional that holds the input, or nothing where there is none."""
    value = call.opt(0)
    if value is None:
        call.node.require("type")
        return EMPTY
    return value


@host_op("OptionalHasElement", since=15)
def has_element(call: HostCall) -> HostValue:
    """True unless the input is absent, or an empty optional."""
    value = call.opt(0)
    if value is None and call.opset < 18:
        raise call.malformed("input 0 is missing")
    return np.array(value is not None and value is not EMPTY)


@host_op("OptionalGetElement", since=15)
def get_element(call: HostCall) -> HostValue:
    """What an optional holds; a tensor or a sequence is itself since opset 18."""
    value = call.x()
    if value is EMPTY:
        raise call.malformed("the optional is empty; ask OptionalHasElement first")
    return value
