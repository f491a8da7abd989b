"""Cases of special values, odd sizes and half precision, made from the op table by one mechanism.

What devices must agree on where C and IEEE 754 leave freedom (the reference does the same):

* NaN spreads through arithmetic, ``min``, ``max``, ``clamp``, reductions and pooling; comparisons
  with NaN are false, but for ``not_equal``; ``relu`` and its like keep it.
* Infinities and the signs of results follow IEEE 754; moving data keeps every bit pattern's value.
* Denormal numbers are kept, or taken for zero where a device says that it flushes them or its
  library does: a result may be what zeros in their place give, and the finding says so.
* Integers wrap; ``a / 0`` and ``a mod 0`` are 0; the least integer over -1 wraps to itself.
* A float becomes an integer by truncation; what is out of range becomes the nearest limit, NaN 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crossdock.kernels import table
from crossdock.kernels.ops_rules import RULES
from crossdock.runtime.cases.kit import Case, Feed, Given, typed, unique
from crossdock.runtime.cases.table import BINARY, CASES, COMPARE, TESTS, UNARY, of_op
from crossdock.runtime.cases.types import governing, typed_case
from crossdock.runtime.errors import Error
from crossdock.runtime.tensor import FLOATS, WEBNN_DTYPES, to_numpy

HALVES = ("float32", "float16")
INTEGERS = tuple(d for d in WEBNN_DTYPES if d not in FLOATS)


def special_values(dtype: str) -> tuple[Any, ...]:
    """The values of a type at which implementations differ, and some plain ones."""
    if dtype in FLOATS:
        info = np.finfo(to_numpy(dtype))
        small, tiny, high = (float(v) for v in (info.smallest_subnormal, info.tiny, info.max))
        half = [0.0, tiny, tiny * 0.75, small, 1.0, 0.5, 2.5, 1 + float(info.eps), high / 32, high]
        return (float("nan"), float("inf"), -float("inf"), *half, *(-v for v in half))
    least, most = int(np.iinfo(to_numpy(dtype)).min), int(np.iinfo(to_numpy(dtype)).max)
    near = {least, least + 1, most // 2 + 1, most - 1, most, 0, 1, 2, 7}
    return tuple(sorted(near | ({-1, -7} if least < 0 else set())))


def _laid_among(dtype: str) -> tuple[Any, ...]:
    """What is laid among plain values: enough to see that it spreads as it should."""
    if dtype in FLOATS:
        return (float("nan"), float("inf"), -float("inf"))
    return (int(np.iinfo(to_numpy(dtype)).max), int(np.iinfo(to_numpy(dtype)).min))


# --- elementwise: every value, or every pair of values --------------------------------------------

SHIFTS = ("shift_left", "shift_right")
OVERFLOWING = frozenset({"hard_swish"})
"""Ops with a product on the way that is greater than their result."""
ULPS = {"pow": 16.0, "tan": 8.0, "gelu": 8.0, "erf": 8.0, "softplus": 8.0, "sigmoid": 8.0}
"""Where results are a library's or are made in several steps: what OpenCL allows for them."""
ABSOLUTE = {"softplus", "gelu", "elu", "tanh", "erf", "sigmoid", "softsign", "hard_sigmoid"}
"""Near 0 their steps cancel: they are as exact as 1 is."""


def _elementwise(op: str, dtype: str, pairs: bool) -> Case | None:
    values = special_values(dtype)
    if op in OVERFLOWING:
        limit = float(np.finfo(to_numpy(dtype)).max) if dtype in FLOATS else 0.0
        values = tuple(v for v in values if abs(v) != limit)
    names = [mark.rstrip("?*") for mark in table.op(op).operands]
    if not pairs:
        feeds = {names[0]: Feed((len(values),), dtype, values=values)}
    else:
        left = tuple(v for v in values for _ in values)
        shape = (len(left),)
        feeds = {
            names[0]: Feed(shape, dtype, values=left),
            names[1]: Feed(shape, dtype, values=values * len(values)),
        }
    case = Case(
        op,
        f"values-{dtype}",
        feeds,
        ulps=ULPS.get(op, 4.0),
        magnitude=1.0 if op in ABSOLUTE else 0.0,
        special=True,
        reason="special values: no error beyond that of the function itself",
    )
    return case if _builds(case) else None


def _builds(case: Case) -> bool:
    try:
        case.build()
    except Error:
        return False
    return True


def _values() -> Iterator[Case]:
    for dtype in (*HALVES, "float64", *INTEGERS):
        for op in (*UNARY, "logical_not"):
            if made := _elementwise(op, dtype, pairs=False):
                yield made
        for op in (*BINARY, *COMPARE, *SHIFTS, "logical_and", "logical_or", "logical_xor"):
            if made := _elementwise(op, dtype, pairs=True):
                yield made


def _casts() -> Iterator[Case]:
    kinds = (*WEBNN_DTYPES, "float64")
    for source in kinds:
        values = special_values(source)
        if source in FLOATS:
            values += tuple(v for v in (-1.5, 200.75, 300.0, -40000.0) if abs(v) < 60000)
        for target in kinds:
            if source != target:
                feeds = {"input": Feed((len(values),), source, values=values)}
                attrs = {"data_type": target}
                yield Case(
                    "cast", f"values-{source}-{target}", feeds, attrs, magnitude=0, special=True
                )


# --- every other op: special values among plain ones ----------------------------------------------


MIXING = ("dft",)
"""Ops in which infinities meet in every result: which become NaN hangs on the algorithm."""


def _among() -> Iterator[Case]:
    each = {*UNARY, *BINARY, *COMPARE, "cast", "logical_not", *TESTS}
    for op in dict.fromkeys(case.op for case in CASES):
        if op in each or op in MIXING or op.startswith("logical") or table.op(op).host:
            continue
        for dtype in (*HALVES, *INTEGERS):
            case = typed_case(op, dtype)
            if not isinstance(case, Case):
                continue
            leader = governing(op)
            given = _laid(case.feeds[leader], dtype)
            yield replace(case, id=f"among-{dtype}", feeds={**case.feeds, leader: given})


def _laid(given: Given, dtype: str) -> Given:
    if isinstance(given, Feed):
        return replace(given, among=_laid_among(dtype))
    return [_laid_feed(feed, dtype) for feed in given or ()]


def _laid_feed(feed: Feed, dtype: str) -> Feed:
    return replace(feed, among=_laid_among(dtype))


# --- odd sizes ------------------------------------------------------------------------------------

LINES: tuple[tuple[int, ...], ...] = ((1,), (1, 1, 1), (7,), (31,), (127,), (1031,), (67, 129))
"""One element; primes about the widths of vectors and work groups; a plane of no round size."""
PLANES: tuple[tuple[int, int], ...] = ((1, 1), (1, 257), (257, 1), (31, 67), (3, 4099))
PRODUCTS = ((1, 1, 1), (1, 17, 1), (7, 13, 31), (67, 1, 3), (33, 129, 65), (1, 1031, 5))


def _sizes() -> Iterator[Case]:
    for op in ("add", "max", "greater", "exp", "relu", "tanh"):
        for shape in LINES:
            yield from _sized(op, shape, {})
    for op in dict.fromkeys(case.op for case in CASES if case.op.startswith("reduce_")):
        for shape in PLANES:
            for axis in (0, 1):
                yield from _sized(op, shape, {"axes": [axis]}, terms=shape[axis])
    for op in ("softmax", "arg_max", "cumulative_sum"):
        for shape in PLANES:
            for axis in (0, 1):
                kind = "distinct" if op == "arg_max" else "uniform"
                yield from _sized(op, shape, {"axis": axis}, terms=shape[axis], kind=kind)
    for shape in PLANES:
        yield from _sized("transpose", shape, {})
        yield from _sized("reverse", shape, {})
    yield from _products()


def _products() -> Iterator[Case]:
    for m, k, n in PRODUCTS:
        name = f"size-{m}x{k}x{n}"
        for op in ("matmul", "gemm"):
            feeds = {"a": Feed((m, k), low=-1, high=1), "b": Feed((k, n), low=-1, high=1)}
            yield from typed(Case(op, name, feeds, terms=k), *HALVES)


def _sized(
    op: str,
    shape: Sequence[int],
    attrs: Mapping[str, Any],
    terms: int = 1,
    kind: str = "uniform",
) -> Iterator[Case]:
    """The op on one size, in the range that its own cases draw from, in both precisions."""
    first = of_op(op)[0]
    ranges = {name: feed for name, feed in first.feeds.items() if isinstance(feed, Feed)}
    feeds = {
        name: Feed(tuple(shape), low=feed.low, high=feed.high, kind=kind)
        for name, feed in ranges.items()
    }
    size = "x".join(map(str, shape))
    along = "".join(f"-{value}" for value in np.ravel([*attrs.values()]))
    if op == "reduce_product":
        feeds = {"input": replace(feeds["input"], low=0.999, high=1.001)}
    case = Case(
        op,
        f"size-{size}{along}",
        feeds,
        attrs,
        terms=1 if op == "reduce_product" else terms,
        ulps=4.0 + (terms if op == "reduce_product" else 0),
        # A mean's terms, and those of a softmax, are smaller the more there are.
        magnitude=1.0 / terms if op in ("reduce_mean", "softmax") else _magnitude(op),
    )
    yield from typed(case, *(HALVES if RULES[op] else HALVES[:1]))


def _magnitude(op: str) -> float:
    """Sums of squares and of logarithms are of terms up to this size."""
    return {"exp": 0.0, "reduce_log_sum_exp": 1.0}.get(op, 1.0)


# --- half precision -------------------------------------------------------------------------------


def _halves() -> Iterator[Case]:
    """Every case in float32 alone, once more in float16."""
    there = {str(case) for case in CASES}
    for case in CASES:
        stem = case.id.removesuffix("-float32")
        if "float32" not in case.dtypes or f"{case.op}-{stem}-float16" in there:
            continue
        (made,) = typed(replace(case, id=f"{stem}-half"), "float16")
        if table.op(case.op).host or not _builds(made):
            continue
        yield replace(made, id=f"{stem}-half")


SPECIAL: tuple[Case, ...] = unique(
    case for family in (_values, _casts, _among, _sizes, _halves) for case in family()
)
"""Every case of special values, odd sizes and half precision."""


def is_of_values(case: Case) -> bool:
    """True for a case of special values, rather than of sizes or half precision."""
    return case.id.startswith(("values-", "among-"))
