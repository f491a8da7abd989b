"""Ops on shapes that are drawn freely: scalars, empty and odd dimensions, up to rank 5.

Each function gives a case of some op, as ``runtime.cases`` has them, with what it allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from crossdock.runtime.cases.kit import Case, Feed
from crossdock.runtime.cases.table import BINARY, COMPARE, INTS, REDUCE, UNARY
from crossdock.runtime.tensor import FLOATS

F = Feed
Rng = np.random.Generator
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33)
MOST = 1536
"""Elements of an operand that is drawn."""
FLOAT = ("float32", "float32", "float32", "float16", "float64", "bfloat16")
ARITHMETIC = ("add", "sub", "mul", "div", "max", "min")
STEEP = {"pow": 16.0}


def shape(rng: Rng, low: int = 0, high: int = 5, *, empty: float = 0.02) -> tuple[int, ...]:
    """Dimensions of a rank from ``low`` to ``high``; now and then one of them is 0."""
    dims = [int(rng.choice(SIZES)) for _ in range(rng.integers(low, high + 1))]
    while math.prod(dims) > MOST:
        dims[int(np.argmax(dims))] //= 2
    if dims and rng.random() < empty:
        dims[rng.integers(len(dims))] = 0
    return tuple(dims)


def pick(rng: Rng, options: Any) -> Any:
    """One of them, as it is."""
    options = list(options)
    return options[rng.integers(len(options))]


def _broadcast(rng: Rng, whole: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to ``whole``."""
    kept = whole[rng.integers(len(whole) + 1) :] if rng.random() < 0.4 else whole
    return tuple(1 if rng.random() < 0.25 else d for d in kept)


def unary(rng: Rng) -> Case:
    """An elementwise op of one operand."""
    op = pick(rng, UNARY)
    low, high = UNARY[op]
    operand = "a" if op.startswith("is_") else "input"
    return Case(op, "drawn", {operand: F(shape(rng), pick(rng, FLOAT), low, high)})


def binary(rng: Rng) -> Case:
    """An elementwise op of two operands, one of which is broadcast."""
    op = pick(rng, BINARY)
    low, high = BINARY[op]
    whole = shape(rng)
    pair = [whole, _broadcast(rng, whole)]
    if op != "prelu" and rng.random() < 0.5:
        pair.reverse()
    dtype = pick(rng, FLOAT)
    if op in ARITHMETIC and rng.random() < 0.3:
        dtype, low, high = pick(rng, INTS), 1, 11
    names = ("input", "slope") if op == "prelu" else ("a", "b")
    feeds = {n: F(s, dtype, low, high) for n, s in zip(names, pair, strict=True)}
    return Case(op, "drawn", feeds, ulps=STEEP.get(op, 4.0))


def compare(rng: Rng) -> Case:
    """A comparison, or a choice by truth values."""
    whole = shape(rng)
    other = _broadcast(rng, whole)
    dtype = pick(rng, (*FLOAT, *INTS))
    low = -3 if dtype in FLOATS else 0
    if rng.random() < 0.5:
        return Case(pick(rng, COMPARE), "drawn",
                    {"a": F(whole, dtype, low, 4), "b": F(other, dtype, low, 4)})  # fmt: skip
    feeds = {
        "condition": F(_broadcast(rng, whole), "uint8", 0, 2),
        "true_value": F(whole, dtype, low, 4),
        "false_value": F(other, dtype, low, 4),
    }
    return Case("where", "drawn", feeds)


def reduction(rng: Rng) -> Case:
    """A reduction over some axes."""
    op = pick(rng, REDUCE)
    low, high = REDUCE[op]
    dims = shape(rng, empty=0.0)
    axes = [i for i in range(len(dims)) if rng.random() < 0.6]
    terms = math.prod(dims[i] for i in axes)
    if op == "reduce_product":
        low, high = 0.95, 1.05
    feed = F(dims, pick(rng, FLOAT), low, high)
    attrs = {"axes": axes, "keep_dimensions": bool(rng.random() < 0.5)}
    ulps = 4.0 + (terms if op == "reduce_product" else 0)
    return Case(op, "drawn", {"input": feed}, attrs, terms=max(terms, 1), ulps=ulps)


def product(rng: Rng) -> Case:
    """A product of matrices, batched and broadcast, or a gemm."""
    m, n, k = (int(rng.choice((*SIZES, 40, 65))) for _ in range(3))
    dtype = pick(rng, FLOAT)
    if rng.random() < 0.4:
        ta, tb = (bool(rng.random() < 0.5) for _ in range(2))
        a, b = ((k, m) if ta else (m, k)), ((n, k) if tb else (k, n))
        feeds: dict[str, Any] = {"a": F(a, dtype, -1, 1), "b": F(b, dtype, -1, 1)}
        attrs: dict[str, Any] = {"a_transpose": ta, "b_transpose": tb}
        if rng.random() < 0.7:
            feeds["c"] = F(pick(rng, ((), (n,), (m, 1), (m, n), (1, n))), dtype)
            attrs |= {"alpha": 0.5, "beta": -1.5}
        fixed = frozenset({"b"}) if rng.random() < 0.5 else frozenset()
        return Case("gemm", "drawn", feeds, attrs, fixed, terms=k + 1, magnitude=3)
    batch = tuple(int(rng.choice((1, 2, 3))) for _ in range(rng.integers(0, 4)))
    feeds = {
        "a": F((*batch, m, k), dtype, -1, 1),
        "b": F((*_broadcast(rng, batch), k, n), dtype, -1, 1),
    }
    fixed = frozenset({"b"}) if rng.random() < 0.4 else frozenset()
    return Case("matmul", "drawn", feeds, {}, fixed, terms=k)


def movement(rng: Rng) -> Case:
    """An op that only moves elements."""
    dims = shape(rng, 1)
    rank = len(dims)
    feed = F(dims, pick(rng, (*FLOAT, *INTS)), 0, 9)
    axis = int(rng.integers(rank))
    made: dict[str, Callable[[], tuple[dict[str, Any], dict[str, Any]]]] = {
        "transpose": lambda: ({}, {"permutation": [int(i) for i in rng.permutation(rank)]}),
        "reverse": lambda: ({}, {"axes": [axis]}),
        "slice": lambda: ({}, _slice(rng, dims)),
        "expand": lambda: (
            {"input": F(tuple(1 if rng.random() < 0.4 else d for d in dims), feed.dtype, 0, 9)},
            {"new_shape": [2, *dims] if rank < 5 else list(dims)},
        ),
        "tile": lambda: ({}, {"repetitions": [int(rng.integers(1, 3)) for _ in dims]}),
        "reshape": lambda: ({}, {"new_shape": _refolded(rng, math.prod(dims))}),
        "split": lambda: ({}, {"splits": _parts(rng, dims[axis]), "axis": axis}),
        "concat": lambda: (
            {"inputs": _joined(rng, feed, axis)},
            {"axis": axis},
        ),
        "gather": lambda: (
            {"input": feed, "indices": F(shape(rng, 0, 2), "int32", *_reach(dims[axis]))},
            {"axis": axis},
        ),
        "pad": lambda: ({}, {
            "beginning_padding": [int(rng.integers(0, 3)) for _ in dims],
            "ending_padding": [int(rng.integers(0, 3)) for _ in dims], "value": 2,
        }),
    }  # fmt: skip
    op = pick(rng, made)
    feeds, attrs = made[op]()
    return Case(op, "drawn", feeds or {"input": feed}, attrs)


def _joined(rng: Rng, feed: Feed, axis: int) -> list[Feed]:
    """Operands of a concat."""
    before, after = feed.shape[:axis], feed.shape[axis + 1 :]
    sizes = [int(rng.integers(1, 6)) for _ in range(rng.integers(1, 5))]
    return [F((*before, size, *after), feed.dtype, 0, 9) for size in sizes]


def _reach(size: int) -> tuple[int, int]:
    """The indices that a dimension has, negative ones included."""
    return -max(size, 1), max(size, 1)


def _slice(rng: Rng, dims: tuple[int, ...]) -> dict[str, Any]:
    starts = [int(rng.integers(0, d)) if d else 0 for d in dims]
    sizes = [int(rng.integers(1, d - s + 1)) if d else 0 for d, s in zip(dims, starts, strict=True)]
    strides = [int(rng.integers(1, 4)) for _ in dims]
    return {"starts": starts, "sizes": sizes, "strides": strides}


def _refolded(rng: Rng, count: int) -> list[int]:
    dims: list[int] = []
    while count > 1 and len(dims) < 4:
        found = pick(rng, [d for d in range(1, min(count, 40) + 1) if count % d == 0])
        dims.append(found)
        count //= found
    return [*dims, count]


def _parts(rng: Rng, size: int) -> list[int]:
    parts = []
    while size:
        parts.append(int(rng.integers(1, size + 1)))
        size -= parts[-1]
    return parts


def along(rng: Rng) -> Case:
    """An op along one axis."""
    dims = shape(rng, 1, empty=0.0)
    axis = int(rng.integers(len(dims)))
    op = pick(
        rng, ("softmax", "cumulative_sum", "arg_max", "arg_min", "top_k", "layer_normalization")
    )
    dtype = pick(rng, FLOAT)
    feed = F(dims, dtype, -2, 2)
    if op == "softmax":
        return Case(op, "drawn", {"input": feed}, {"axis": axis}, ulps=16)
    if op == "cumulative_sum":
        attrs = {
            "axis": axis,
            "exclusive": bool(rng.random() < 0.5),
            "reversed": bool(rng.random() < 0.5),
        }
        return Case(op, "drawn", {"input": feed}, attrs, terms=dims[axis], magnitude=2)
    if op == "top_k":
        attrs = {
            "k": int(rng.integers(1, dims[axis] + 1)),
            "axis": axis,
            "largest": bool(rng.random() < 0.5),
        }
        return Case(op, "drawn", {"input": feed}, attrs)
    if op == "layer_normalization":
        axes = list(range(axis, len(dims)))
        # Rows whose variance is near epsilon amplify what the subtraction rounds.
        return Case(op, "drawn", {"input": feed}, {"axes": axes, "epsilon": 0.1},
                    terms=math.prod(dims[axis:]), magnitude=4)  # fmt: skip
    return Case(
        op, "drawn", {"input": feed}, {"axis": axis, "keep_dimensions": bool(rng.random() < 0.5)}
    )


def convolution(rng: Rng) -> Case:
    """A convolution of two dimensions: groups, strides, dilations, uneven padding, layouts."""
    groups = pick(rng, (1, 1, 2, 3, 4))
    depth = pick(rng, (1, 2, 3, 4, 8, 11))
    out = groups * pick(rng, (1, 2, 5, 8, 16))
    kh, kw = (pick(rng, (1, 3, 3, 2, 5)) for _ in range(2))
    if rng.random() < 0.5:
        kw = kh
    h, w = (pick(rng, (5, 7, 8, 12, 17)) for _ in range(2))
    attrs: dict[str, Any] = {
        "groups": groups,
        "padding": [int(rng.integers(0, 3)) for _ in range(4)],
        "strides": [pick(rng, (1, 1, 2, 3)) for _ in range(2)],
        "dilations": [1, 1] if rng.random() < 0.8 else [2, 1],
        "input_layout": pick(rng, ("nchw", "nchw", "nhwc")),
    }
    n, c = pick(rng, (1, 1, 2)), groups * depth
    dims = (n, c, h, w) if attrs["input_layout"] == "nchw" else (n, h, w, c)
    dtype = pick(rng, ("float32", "float32", "float16", "float64"))
    feeds = {"input": F(dims, dtype, -1, 1), "filter": F((out, depth, kh, kw), dtype, -1, 1)}
    if rng.random() < 0.5:
        feeds["bias"] = F((out,), dtype, -1, 1)
    fixed = frozenset(feeds) - {"input"} if rng.random() < 0.8 else frozenset()
    return Case("conv2d", "drawn", feeds, attrs, fixed, terms=depth * kh * kw + 1)


def pooling(rng: Rng) -> Case:
    """A pooling of two dimensions."""
    layout = pick(rng, ("nchw", "nhwc"))
    dims = (pick(rng, (1, 2)), pick(rng, (3, 7, 8)), pick(rng, (6, 9, 12)), pick(rng, (5, 8)))
    attrs = {
        "window_dimensions": [pick(rng, (1, 2, 3)) for _ in range(2)],
        "strides": [pick(rng, (1, 2, 3)) for _ in range(2)],
        "padding": [0, 0, 0, 0] if rng.random() < 0.6 else [0, 1, 0, 1],
        "layout": layout,
        "output_shape_rounding": pick(rng, ("floor", "ceil")),
    }
    op = pick(rng, ("average_pool2d", "l2_pool2d", "max_pool2d"))
    return Case(op, "drawn", {"input": F(dims, pick(rng, FLOAT))}, attrs, terms=9)


def conversion(rng: Rng) -> Case:
    """A cast."""
    source, target = pick(rng, (*FLOAT, *INTS)), pick(rng, (*FLOAT, *INTS))
    return Case(
        "cast", "drawn", {"input": F(shape(rng), source, 0, 100)}, {"data_type": target}, ulps=1
    )


FREE = (
    unary, unary, binary, binary, binary, compare, reduction, product, movement, movement, movement,
    along, convolution, pooling, conversion,
)  # fmt: skip
"""What is drawn from; some more often."""
