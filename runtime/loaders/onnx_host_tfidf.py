"""ONNX TfIdfVectorizer: counts of n-grams, with gaps, as a vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import is_integer, is_string, sized
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.tensor import Array

_MODES: dict[str, Callable[[int, float], float]] = {
    "TF": lambda count, _weight: count,
    "IDF": lambda _count, weight: weight,
    "TFIDF": lambda count, weight: count * weight,
}
"""What a gram that occurs adds, from its count and weight."""

Gram = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Grams:
    """What is counted: n-grams by their number, and which lengths and gaps there may be."""

    numbers: Mapping[Gram, int]
    lengths: range
    most_skips: int


@host_op("TfIdfVectorizer", since=9)
def vectorise(call: HostCall) -> HostValue:
    """Each row's counts of the n-grams in a pool, weighted as the mode says."""
    x = call.array()
    if x.ndim not in (1, 2):
        raise call.malformed(f"an input of rank {x.ndim}, neither 1 nor 2")
    mode = call.node.get_str("mode")
    adds = _MODES.get(mode)
    if adds is None:
        raise call.malformed(f"mode {shown(mode)} is none of {', '.join(_MODES)}")
    grams, count = _grams(call, _pool(call, x))
    columns = call.node.get_ints("ngram_indexes") or ()
    weights = call.node.get_floats("weights")
    if len(columns) != count or (weights is not None and len(weights) != count):
        raise call.malformed(f"ngram_indexes or weights do not fit the {count} n-grams of its pool")
    if any(column < 0 for column in columns):
        raise call.malformed("a negative entry in ngram_indexes")
    width = max(columns, default=-1) + 1
    rows = x.reshape(-1, x.shape[-1]) if x.size else np.empty((*x.shape[:-1], 0), x.dtype)
    rows = rows.reshape(-1 if x.size else int(np.prod(x.shape[:-1])), x.shape[-1])
    made: Array = np.zeros(sized(call, [*x.shape[:-1], width], np.dtype(np.float32)), np.float32)
    for row, out in zip(rows, made.reshape(len(rows), width), strict=True):
        call.check()
        for number, times in _counts(row.tolist(), grams).items():
            out[columns[number]] += adds(times, 1.0 if weights is None else weights[number])
    return made


def _pool(call: HostCall, x: Array) -> Sequence[Any]:
    numbers, words = call.node.get_ints("pool_int64s"), call.node.get_strs("pool_strings")
    if (numbers is None) == (words is None):
        raise call.malformed("exactly one of pool_int64s and pool_strings must be there")
    pool: Sequence[Any] = (numbers if words is None else words) or ()
    if not (is_integer(x.dtype) if words is None else is_string(x)):
        raise call.malformed(f"an input of {x.dtype} does not fit its pool")
    return pool


def _grams(call: HostCall, pool: Sequence[Any]) -> tuple[_Grams, int]:
    """The n-grams of a pool that are to be counted, and how many there are in all."""
    node = call.node
    for name in ("min_gram_length", "max_gram_length", "max_skip_count", "ngram_counts"):
        node.require(name)
    low, high = node.get_int("min_gram_length"), node.get_int("max_gram_length")
    skips, starts = node.get_int("max_skip_count"), node.get_ints("ngram_counts") or ()
    if not 1 <= low <= high or skips < 0 or high > len(starts):
        raise call.malformed(
            f"n-grams of length {low} to {high}, {skips} skips, {len(starts)} ngram_counts"
        )
    numbers: dict[Gram, int] = {}
    count = 0
    for length, (start, end) in enumerate(_spans(starts, len(pool)), 1):
        if not 0 <= start <= end <= len(pool) or (end - start) % length:
            raise call.malformed("ngram_counts do not fit its pool")
        for at in range(start, end, length):
            if low <= length <= high:
                numbers.setdefault(tuple(pool[at : at + length]), count)
            count += 1
    return _Grams(numbers, range(low, high + 1), skips), count


def _spans(starts: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    return zip(starts, [*starts[1:], size], strict=True)


def _counts(row: Sequence[Any], grams: _Grams) -> Counter[int]:
    """How often each n-gram occurs, its items with up to ``most_skips`` others between them."""
    found: Counter[int] = Counter()
    for length in grams.lengths:
        for step in range(1, 2 + (grams.most_skips if length > 1 else 0)):
            span = (length - 1) * step
            if span >= len(row):
                break
            for at in range(len(row) - span):
                number = grams.numbers.get(tuple(row[at : at + span + 1 : step]))
                if number is not None:
                    found[number] += 1
    return found
