"""What host functions share: small checks of axes, numbers and sizes, and ONNX's element types."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.runtime.errors import LoadError
from crossdock.runtime.limits import MAX_RANK
from crossdock.runtime.loaders.onnx_host import HostCall
from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, SMALL_DTYPES, dtype_name
from crossdock.runtime.tensor import Array, to_numpy

STRING = 8
"""TensorProto.DataType of strings."""

_COMPLEX = {14: np.complex64, 15: np.complex128}


def small_dtype(name: str) -> np.dtype[Any]:
    """A dtype of ``ml_dtypes``; raises LoadError where it, or the package, is absent."""
    try:
        found: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    except (ImportError, AttributeError) as error:
        raise LoadError(
            f"tensors of {name} need a newer ml_dtypes: pip install -U ml_dtypes"
        ) from error
    return found


def host_dtype(call: HostCall, number: int) -> np.dtype[Any]:
    """The dtype that a TensorProto.DataType has on the host; strings are objects."""
    if number in ONNX_DTYPES:
        return to_numpy(ONNX_DTYPES[number])
    if number in SMALL_DTYPES:
        return small_dtype(SMALL_DTYPES[number])
    if number in _COMPLEX:
        return np.dtype(_COMPLEX[number])
    if number == STRING:
        return np.dtype(object)
    raise call.malformed(f"{dtype_name(number)} is no type of an element")


def is_small(dtype: np.dtype[Any]) -> bool:
    """True for floats of at most 8 bits and integers of at most 4."""
    return dtype.name in SMALL_DTYPES.values()


def is_integer(dtype: np.dtype[Any]) -> bool:
    """True for integers of any width."""
    return dtype.kind in "iu" or dtype.name in ("int2", "uint2", "int4", "uint4")


def is_float(dtype: np.dtype[Any]) -> bool:
    """True for floating-point numbers of any width."""
    return dtype.kind == "f" or dtype.name == "bfloat16" or dtype.name.startswith("float")


def is_string(array: Array) -> bool:
    """True for a tensor of strings."""
    return array.dtype == object


def strings(call: HostCall, index: int = 0) -> Array:
    """Input ``index``, which must be a tensor of strings."""
    array = call.array(index)
    if not is_string(array):
        raise call.malformed(f"input {index} is {array.dtype}, not a tensor of strings")
    return array


def objects(values: Sequence[Any], shape: Sequence[int]) -> Array:
    """Strings as a tensor of the given shape."""
    array: Array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def axis_of(call: HostCall, value: int, rank: int) -> int:
    """An axis counted from the front; raises where it is out of range."""
    if not -rank <= value < rank:
        raise call.malformed(f"axis {value} is out of range for rank {rank}")
    return value % rank


def number(call: HostCall, index: int, what: str) -> Any:
    """Input ``index`` as one number."""
    array = call.array(index)
    if array.size != 1 or is_string(array):
        raise call.malformed(f"{what} is {array.dtype}{list(array.shape)}, not one number")
    return array.reshape(-1)[0].item()


def integer(call: HostCall, index: int, what: str) -> int:
    """Input ``index`` as one integer."""
    value = number(call, index, what)
    if not isinstance(value, int):
        raise call.malformed(f"{what} is {value!r}, not an integer")
    return int(value)


def broadcast(call: HostCall, a: Array, b: Array, dtype: np.dtype[Any]) -> tuple[int, ...]:
    """The shape that two tensors broadcast to; raises where there is none, or too large a one."""
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError as error:
        raise call.malformed(f"shapes {a.shape} and {b.shape} do not broadcast") from error
    return sized(call, shape, dtype)


def wants(call: HostCall, index: int) -> bool:
    """True where the node names output ``index``."""
    return index < len(call.node.outputs) and bool(call.node.outputs[index])


def sized(call: HostCall, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """A shape that a tensor may be made in; raises where it is none, or is over the budget."""
    if len(shape) > MAX_RANK or any(d < 0 for d in shape):
        raise call.malformed(f"{list(shape)[:MAX_RANK]} is no shape of a tensor")
    call.make_room(math.prod(shape) * dtype.itemsize)
    return tuple(shape)
