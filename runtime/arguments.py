"""What a builder's caller gave: shapes, element types, constants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from crossdock.kernels.ops_rules import integer
from crossdock.runtime.errors import GraphError, ShapeError
from crossdock.runtime.tensor import DTYPES, FLOATS, Array, Dim, from_numpy, to_numpy


def short(value: Any) -> str:
    """A value in a message: its type, and the value where it is brief."""
    text = repr(value)
    kind = type(value).__name__
    return f"{kind} {text}" if len(text) <= 40 else kind


def known_name(op: str, what: str, value: Any) -> str:
    """A name: a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise GraphError(f"{op}: {what} must be a string that is not empty; it is {value!r}")
    return value


def known_dtype(op: str, dtype: Any) -> str:
    """An element type by its name."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ShapeError(f"{op}: dtype must be one of {', '.join(DTYPES)}; it is {dtype!r}")
    return dtype


def known_shape(op: str, name: str, shape: Any) -> tuple[Dim, ...]:
    """A shape: sizes of 0 or more, and symbols."""
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise ShapeError(f"{op}: the shape of {name!r} must be a list of sizes; it is {shape!r}")
    return tuple(
        d if isinstance(d, str) and d else integer(op, f"dimension {i} of {name!r}", d)
        for i, d in enumerate(shape)
    )


def constant_array(value: Any, dtype: str | None) -> Array:
    """The array of a constant: read-only, C-contiguous, of a known element type."""
    if dtype is None and not isinstance(value, np.ndarray | np.generic):
        raise GraphError(
            f"constant: {short(value)} needs an element type; b.constant(value, 'float32')"
        )
    array = _as_array(value, dtype)
    from_numpy(array.dtype)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    if array.flags.writeable:
        if isinstance(value, np.ndarray) and np.may_share_memory(array, value):
            array = array.copy()
        array.flags.writeable = False
    return array


def _as_array(value: Any, dtype: str | None) -> Array:
    if dtype is None:
        return np.asarray(value, order="C")
    target = to_numpy(known_dtype("constant", dtype))
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(value, dtype=target, order="C")
    except (OverflowError, TypeError, ValueError) as error:
        raise GraphError(f"constant: {short(value)} is no {dtype} array: {error}") from None
    if not isinstance(value, np.ndarray | np.generic):
        _check_literal(value, array.dtype.name)
    return array


def _check_literal(value: Any, dtype: str) -> None:
    """Numbers with a fraction do not become integers in silence."""
    if dtype in FLOATS or dtype == "bool":
        return
    plain = np.asarray(value)
    if plain.dtype.kind == "f" and not np.all(np.mod(plain, 1) == 0):
        raise GraphError(f"constant: {short(value)} is no whole number, as {dtype} needs")
