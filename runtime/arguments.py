"""What a builder's caller gave: arguments by name, shapes, element types, constants."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np

from crossdock.kernels.ops_rules import bare, integer
from crossdock.kernels.spec import OpSpec
from crossdock.runtime.errors import GraphError, ShapeError
from crossdock.runtime.tensor import DTYPES, FLOATS, Array, Dim, from_numpy, to_numpy


def named_arguments(spec: OpSpec, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Positional and keyword arguments by name; raises GraphError for what does not fit."""
    positional = [bare(m) for m in spec.operands if not m.endswith("?")] + list(spec.params)
    known = {bare(m) for m in spec.operands} | spec.attrs.keys()
    if len(args) > len(positional):
        raise GraphError(
            f"{spec.name}: takes {len(positional)} positional arguments; {len(args)} were given; "
            f"{usage(spec)}"
        )
    given = dict(zip(positional, args, strict=False))
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; {usage(spec)}"
            raise GraphError(f"{spec.name}: no option {name!r}{hint}")
        if name in given:
            raise GraphError(f"{spec.name}: {name} was given twice")
        given[name] = value
    for name in positional:
        if name not in given and name not in spec.attrs:
            raise GraphError(f"{spec.name}: {name} is missing; {usage(spec)}")
    return given


def usage(spec: OpSpec) -> str:
    """How to call an op."""
    needed = [bare(m) for m in spec.operands if not m.endswith("?")] + list(spec.params)
    options = [f"{bare(m)}=" for m in spec.operands if m.endswith("?")]
    options += [f"{name}=" for name in spec.attrs if name not in spec.params]
    return f"call {spec.name}({', '.join(needed + options)})"


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
