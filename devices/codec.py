"""Dataclasses of plain data to JSON and back, strictly.

The fields' types are the schema: nested dataclasses, enums of strings, ``str``, ``bool``, ``int``,
``float``, ``tuple[X, ...]``, ``frozenset[X]``, ``Mapping[str, X]`` and ``X | None``. Every number
is finite and not negative; one marked ``Positive`` is also not zero. A form with a field missing,
unknown or of another type is refused with the field's path; a field made with ``since`` is one that
older forms of the schema lack.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from crossdock.runtime.errors import LoadError

POSITIVE = "greater than zero"
Positive = Annotated[float, POSITIVE]
"""A finite float greater than zero."""
PositiveInt = Annotated[int, POSITIVE]
"""An int greater than zero."""


def since(default: Any) -> Any:
    """A field that came to a schema later: forms without it have ``default``."""
    return dataclasses.field(default=default, metadata={"since": True})


def encode(value: Any) -> Any:
    """Return the JSON form of a dataclass, or of a value that a field may have."""
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, frozenset):
        return sorted(encode(v) for v in value)
    if isinstance(value, tuple | list):
        return [encode(v) for v in value]
    return value


def decode(kind: Any, form: Any, path: str) -> Any:
    """Read a value of type ``kind`` from its JSON form.

    Args:
        kind: a dataclass, or any type that a field may have.
        form: what ``json.loads`` gave.
        path: what the form is called in errors.

    Raises:
        LoadError: the form does not fit; names the field, what was wanted and what was found.
    """
    if dataclasses.is_dataclass(kind):
        return _record(kind, form, path)
    origin = typing.get_origin(kind)
    if origin is not None:
        return _GENERIC[origin](kind, form, path)
    if issubclass(kind, enum.Enum):
        return _member(kind, form, path)
    return _SCALAR[kind](form, path)


def refuse(path: str, want: str, found: Any = None) -> LoadError:
    """The error for a form that does not fit."""
    got = "" if found is None else f", got {_short(found)}"
    return LoadError(
        f"{path}: must be {want}{got}; correct it, or make the profile anew with "
        "`crossdock probe --json FILE`"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _record(kind: Any, form: Any, path: str) -> Any:
    if not isinstance(form, dict):
        raise refuse(path, "an object", form)
    hints = _hints(kind)
    extra = [key for key in form if key not in hints]
    if extra:
        raise LoadError(f"{path}: has no field {_short(extra[0])}; fields: {', '.join(hints)}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name not in form and _may_miss(field, hints[field.name]):
            continue
        if field.name not in form:
            if field.metadata.get("since"):
                continue
            raise LoadError(f"{path}.{field.name}: is missing; add it or make the profile anew")
        values[field.name] = decode(hints[field.name], form[field.name], f"{path}.{field.name}")
    return kind(**values)


def _may_miss(field: dataclasses.Field[Any], kind: Any) -> bool:
    """An optional field that files written before there was such a field do not have."""
    return bool(field.metadata.get("later")) and type(None) in typing.get_args(kind)


def _member(kind: type[enum.Enum], form: Any, path: str) -> Any:
    for member in kind:
        if member.value == form:
            return member
    raise refuse(path, f"one of {', '.join(str(m.value) for m in kind)}", form)


def _items(form: Any, path: str, kind: Any) -> list[Any]:
    if not isinstance(form, list):
        raise refuse(path, "a list", form)
    return [decode(kind, item, f"{path}[{i}]") for i, item in enumerate(form)]


def _tuple(kind: Any, form: Any, path: str) -> Any:
    return tuple(_items(form, path, typing.get_args(kind)[0]))


def _set(kind: Any, form: Any, path: str) -> Any:
    return frozenset(_items(form, path, typing.get_args(kind)[0]))


def _mapping(kind: Any, form: Any, path: str) -> Any:
    if not isinstance(form, dict):
        raise refuse(path, "an object", form)
    inner = typing.get_args(kind)[1]
    return {str(k): decode(inner, v, f"{path}[{k!r}]") for k, v in form.items()}


def _optional(kind: Any, form: Any, path: str) -> Any:
    inner = next(k for k in typing.get_args(kind) if k is not type(None))
    return None if form is None else decode(inner, form, path)


def _positive(kind: Any, form: Any, path: str) -> Any:
    value = decode(typing.get_args(kind)[0], form, path)
    if value <= 0:
        raise refuse(path, POSITIVE, form)
    return value


def _text(form: Any, path: str) -> str:
    if not isinstance(form, str):
        raise refuse(path, "a string", form)
    return form


def _flag(form: Any, path: str) -> bool:
    if not isinstance(form, bool):
        raise refuse(path, "true or false", form)
    return form


def _whole(form: Any, path: str) -> int:
    if isinstance(form, bool) or not isinstance(form, int) or form < 0:
        raise refuse(path, "a whole number, not negative", form)
    return form


def _number(form: Any, path: str) -> float:
    want = "a finite number, not negative"
    if isinstance(form, bool) or not isinstance(form, int | float):
        raise refuse(path, want, form)
    try:
        value = float(form)
    except OverflowError:
        raise refuse(path, want, form) from None
    if not math.isfinite(value) or value < 0:
        raise refuse(path, want, form)
    return value


_SCALAR: dict[Any, Callable[[Any, str], Any]] = {
    str: _text,
    bool: _flag,
    int: _whole,
    float: _number,
}
_GENERIC: dict[Any, Callable[[Any, Any, str], Any]] = {
    tuple: _tuple,
    frozenset: _set,
    Mapping: _mapping,
    types.UnionType: _optional,
    typing.Union: _optional,
    Annotated: _positive,
}
