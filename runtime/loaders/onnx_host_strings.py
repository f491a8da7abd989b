"""ONNX operators on strings: normalise, join, split, match."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import broadcast, objects, strings
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.loaders.onnx_regex import PatternError, PatternLimit, Regex
from crossdock.runtime.tensor import Array

_CASES: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}

_POINTER = 8
_STRING = 64
"""Bytes of an element of a tensor of strings, and of a short string."""


@host_op("StringNormalizer", since=10)
def normalise(call: HostCall) -> HostValue:
    """Strings of a row without stop words, in one case; nothing left is one empty string.

    Python's rules for upper and lower case are the same for every locale.
    """
    x = strings(call)
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise call.malformed(f"a shape of {list(x.shape)}, neither [C] nor [1, C]")
    action = call.node.get_str("case_change_action", "NONE")
    change = _CASES.get(action)
    if change is None:
        raise call.malformed(f"case_change_action {shown(action)} is none of {', '.join(_CASES)}")
    exact = call.node.get_int("is_case_sensitive") != 0
    same: Callable[[str], str] = str if exact else str.lower
    stop = {same(word) for word in call.node.get_strs("stopwords") or ()}
    kept = [change(word) for word in x.reshape(-1) if same(word) not in stop] or [""]
    return objects(kept, [1] * (x.ndim - 1) + [len(kept)])


@host_op("StringConcat", since=20)
def concat(call: HostCall) -> HostValue:
    """Strings of two tensors end to end, with broadcasting."""
    a, b = strings(call, 0), strings(call, 1)
    shape = broadcast(call, a, b, a.dtype)
    count = math.prod(shape)
    if count:
        letters = sum(_width(x) * count // x.size for x in (a, b))
        call.make_room(count * (_POINTER + _STRING) + letters)
    left, right = np.broadcast_to(a, shape), np.broadcast_to(b, shape)
    joined = [p + q for p, q in zip(left.flat, right.flat, strict=True)]
    return objects(joined, shape)


def _width(x: Array) -> int:
    """Bytes of the letters of a tensor of strings."""
    return sum(len(text) * (1 if text.isascii() else 4) for text in x.flat)


@host_op("StringSplit", since=20)
def split(call: HostCall) -> tuple[HostValue, ...]:
    """The parts of each string along a new last axis, filled up with "", and how many they are."""
    x = strings(call)
    delimiter = call.node.get_str("delimiter") or None
    limit = call.node.get_int("maxsplit") if "maxsplit" in call.node.attrs else -1
    if "maxsplit" in call.node.attrs and limit < 0:
        raise call.malformed(f"a maxsplit of {limit}")
    call.make_room(sum(_most_parts(text, delimiter, limit) for text in x.flat) * _STRING)
    parts = [_parts(text, delimiter, limit) for text in x.reshape(-1)]
    width = max(map(len, parts), default=0)
    call.make_room(x.size * width * _POINTER)
    rows = [word for row in parts for word in row + [""] * (width - len(row))]
    counts = np.array([len(row) for row in parts], np.int64).reshape(x.shape)
    return objects(rows, [*x.shape, width]), counts


def _most_parts(text: str, delimiter: str | None, limit: int) -> int:
    """No fewer than the parts that a string falls into."""
    found = text.count(delimiter) + 1 if delimiter else len(text) // 2 + 1
    return found if limit < 0 else min(found, limit + 1)


def _parts(text: str, delimiter: str | None, limit: int) -> list[str]:
    """The parts of one string; between spaces, those around the last part are dropped too."""
    parts = text.split(delimiter, limit)
    return parts if delimiter else [part.strip() for part in parts]


@host_op("RegexFullMatch", since=20)
def full_match(call: HostCall) -> HostValue:
    """True where a pattern (RE2's syntax) matches a whole string; takes linear time."""
    x = strings(call)
    call.node.require("pattern")
    pattern = call.node.get_str("pattern")
    try:
        regex = Regex(pattern)
    except PatternLimit as error:
        raise call.unsupported(f"pattern {shown(pattern)}: {error}") from error
    except PatternError as error:
        raise call.malformed(f"pattern {shown(pattern)}: {error}") from error
    found = [regex.matches(text, call.check) for text in x.reshape(-1)]
    return np.array(found, np.bool_).reshape(x.shape)
