"""A finding's input made small: parts taken out as long as the same finding comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz import mutate_onnx

Fails = Callable[[bytes], bool]

TRIES = 3_000


def shrunk(data: bytes, fails: Fails, tries: int = TRIES) -> bytes:
    """The smallest input found, in at most so many tries, of which ``fails`` is true."""
    left = [tries]

    def still(candidate: bytes) -> bool:
        left[0] -= 1
        return left[0] >= 0 and len(candidate) < len(data) and fails(candidate)

    for candidates in (_fields, _values, _spans):
        again = True
        while again and left[0] > 0:
            found = next((c for c in candidates(data) if still(c)), None)
            again = found is not None
            data = data if found is None else found
    return data


def _fields(data: bytes) -> Iterator[bytes]:
    """A message without one of its fields, or without an item of one; large ones first."""
    count = _count(data)
    for index in range(count):
        proto = mutate_onnx.parsed(data)
        slots = _slots(proto)
        if index >= len(slots):
            return
        at, field, item = slots[index]
        if item is None:
            at.ClearField(field.name)
        else:
            del getattr(at, field.name)[item]
        yield bytes(proto.SerializeToString())


def _count(data: bytes) -> int:
    proto = mutate_onnx.parsed(data)
    if proto is None or not proto.ListFields():
        return 0
    return len(_slots(proto))


def _slots(proto: Any) -> list[tuple[Any, Any, int | None]]:
    """Places in the message that can be taken out: outer ones before inner ones."""
    found: list[tuple[Any, Any, int | None]] = []
    level = [proto]
    while level:
        inner: list[Any] = []
        for at in level:
            for field, value in at.ListFields():
                found.append((at, field, None))
                if isinstance(value, int | float | str | bytes):
                    continue
                if hasattr(value, "ListFields"):
                    inner.append(value)
                    continue
                found += [(at, field, i) for i in range(min(len(value), 64))]
                if field.message_type is not None:
                    inner += list(value)
        level = inner
    return found


def _values(data: bytes) -> Iterator[bytes]:
    """JSON without one of its values."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    for path in _paths(value):
        made = json.loads(data)
        at = made
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]
        yield json.dumps(made).encode()


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from _paths(value[key], (*path, key))


def _spans(data: bytes) -> Iterator[bytes]:
    """Bytes without a span of them: halves, quarters, down to single ones."""
    size = len(data) // 2
    while size:
        for at in range(0, len(data), size):
            yield data[:at] + data[at + size :]
        size //= 2
