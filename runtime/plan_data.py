"""Dataclasses as canonical JSON, and back from data that nobody vouches for.

What is written is a function of the data alone: keys sorted, floats by ``repr``, no times. What is
read becomes exactly the fields of a dataclass or raises PlanError; nothing in it is ever executed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from crossdock.runtime.errors import PlanError

LARGEST = 1 << 63
"""Integers are below this."""


def damaged(what: str) -> PlanError:
    """The error for a plan that nothing that makes plans has made."""
    return PlanError(f"the plan is damaged: {what}; plan again")


def dump(data: Mapping[str, Any]) -> str:
    """Canonical JSON of plain data; NaN and infinities are refused.

    A line a field, and a line an element of a field that is a list: tools that compare lines see
    what changed.
    """
    encode = json.JSONEncoder(sort_keys=True, allow_nan=False).encode
    lines = []
    for name in sorted(data):
        value = data[name]
        rows = ",\n".join(map(encode, value)) if isinstance(value, list) else ""
        lines.append(f"{encode(name)}: " + (f"[\n{rows}\n]" if rows else encode(value)))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def plain(value: Any) -> Any:
    """A dataclass as plain data: dictionaries of its fields, lists, strings and numbers.

    Fields of ``metadata={"data": False}`` are left out.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is tuple or kind is list:
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return {name: plain(getattr(value, name)) for name in _names(kind)}
    return value


_ATOMS = frozenset({str, int, float, bool, type(None)})


@functools.cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    """The fields of a dataclass that are data."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.metadata.get("data", True))


def parse(text: str | bytes, what: str) -> Any:
    """Plain data of a JSON text; raises PlanError for one that is no JSON, or not only JSON.

    Keys given twice, NaN and infinities are refused, as is nesting that Python cannot follow.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError:
        raise PlanError(f"{what} is nested too deeply to be one") from None
    except ValueError as error:
        raise PlanError(f"{what} is no JSON: {shown(str(error))}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {shown(twice)} is given twice")
    return made


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def read(cls: type[Any], data: object, where: str, nested: Mapping[str, type[Any]]) -> Any:
    """An object of a dataclass from plain data.

    Args:
        cls: the dataclass; its annotations say what each field may be.
        data: a mapping with exactly its fields, those of ``metadata={"data": False}`` left out.
        where: what the data is, for messages.
        nested: the dataclasses that annotations name.

    Raises:
        PlanError: a field is missing, unknown, or of another type; the message says which.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"{where} is damaged: {type(data).__name__} instead of fields; plan again")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.metadata.get("data", True)}
    wrong = sorted(shown(name) for name in set(data) ^ set(fields))
    if wrong:
        raise PlanError(
            f"{where} is damaged: missing or unknown {', '.join(wrong[:5])}; plan again"
        )
    return cls(
        **{n: _value(str(f.type), data[n], f"{where}.{n}", nested) for n, f in fields.items()}
    )


def _value(kind: str, value: object, where: str, nested: Mapping[str, type[Any]]) -> Any:
    if kind.startswith("tuple[") and isinstance(value, list | tuple):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_value(inner, v, f"{where}[{i}]", nested) for i, v in enumerate(value))
    if kind.startswith("Mapping[str, ") and isinstance(value, Mapping):
        inner = kind.removeprefix("Mapping[str, ").removesuffix("]")
        return {
            _value("str", k, where, nested): _value(inner, v, where, nested)
            for k, v in value.items()
        }
    if kind in nested:
        return read(nested[kind], value, where, nested)
    if kind.endswith(" | None") and value is None:
        return None
    as_plain = _PLAIN.get(kind.removesuffix(" | None"))
    made = None if as_plain is None else as_plain(value)
    if made is None:
        raise PlanError(f"{where} is damaged: {shown(value)} is no {kind}; plan again")
    return made


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    sound = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST
    return int(value) if sound else None  # type: ignore[call-overload]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        made = float(value)
    except OverflowError:
        return None
    return made if math.isfinite(made) else None


_PLAIN: dict[str, Callable[[object], Any]] = {
    "str": _text,
    "bool": _flag,
    "int": _whole,
    "float": _number,
}
"""A plain value of a field by its annotation; None where it is none."""


def shown(value: object) -> str:
    """A value's repr, cut: it may be huge, or nested without end."""
    return reprlib.repr(value)
