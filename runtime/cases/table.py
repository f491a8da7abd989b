"""The one op table of test cases: for each op several instances, used by every device's tests.

``CASES`` holds them all; ``of_op`` those of one op. Each case knows how to ``build`` its graph and
feeds, its float64 ``reference``, its ``tolerance`` and how to ``check`` outputs (see kit).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from crossdock.runtime.cases.attention import attention_cases
from crossdock.runtime.cases.extension import extension_cases
from crossdock.runtime.cases.integer import integer_cases
from crossdock.runtime.cases.kit import Case, Feed, typed, unique
from crossdock.runtime.cases.nn import nn_cases
from crossdock.runtime.cases.quantized import quantized_cases

F = Feed
WIDE = ("float32", "float16")
INTS = ("int32", "uint32", "int64", "uint64", "int8", "uint8")
NAN, INF = float("nan"), float("inf")

# Operand ranges where an op is defined, and away from where its error is unbounded.
UNARY: dict[str, tuple[float, float]] = {
    "abs": (-4, 4), "ceil": (-4, 4), "cos": (-6, 6), "erf": (-4, 4), "exp": (-5, 5),
    "floor": (-4, 4), "log": (0.01, 9), "neg": (-4, 4), "reciprocal": (0.2, 5),
    "round_even": (-4, 4), "sign": (-2, 2), "sin": (-6, 6), "sqrt": (0, 9), "tan": (-1.4, 1.4),
    "identity": (-4, 4), "elu": (-5, 5), "gelu": (-5, 5), "hard_sigmoid": (-4, 4),
    "hard_swish": (-5, 5), "leaky_relu": (-4, 4), "linear": (-4, 4), "relu": (-4, 4),
    "sigmoid": (-9, 9), "softplus": (-9, 9), "softsign": (-9, 9), "tanh": (-5, 5),
    "clamp": (-4, 4), "is_nan": (-1, 1), "is_infinite": (-1, 1),
}  # fmt: skip
MAGNITUDE = {"gelu": 1.25}
"""Half the operand times a sum of one and what cancels it, with half an ulp of one in each."""
SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (), "line": (37,), "plane": (5, 9), "image": (2, 3, 4, 5), "block": (2, 1, 3, 2, 7),
}  # fmt: skip
OPTIONS: dict[str, dict[str, dict[str, float]]] = {
    "elu": {"alpha": {"alpha": 0.3}},
    "leaky_relu": {"alpha": {"alpha": 0.2}},
    "linear": {"both": {"alpha": -1.5, "beta": 0.75}},
    "hard_sigmoid": {"both": {"alpha": 0.4, "beta": 0.1}},
    "clamp": {
        "both": {"min_value": -1.25, "max_value": 2.5},
        "low": {"min_value": 0.5},
        "high": {"max_value": 0.5},
    },
}
SPECIAL = (NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5)
TESTS = ("is_nan", "is_infinite")


def _unary_cases() -> Iterator[Case]:
    for op, (low, high) in UNARY.items():
        operand = "a" if op in TESTS else "input"
        for name, shape in SHAPES.items():
            feeds = {operand: F(shape, low=low, high=high)}
            case = Case(op, name, feeds, magnitude=MAGNITUDE.get(op, 1.0))
            yield from typed(case, *(WIDE if name in ("line", "image") else WIDE[:1]))
        for name, attrs in OPTIONS.get(op, {}).items():
            yield Case(op, name, {operand: F((4, 33), low=low, high=high)}, attrs)
    for op in ("relu", "abs", "neg", "sign", "sigmoid", "tanh", "exp", "clamp", *TESTS):
        yield from typed(
            Case(op, "special", {"a" if op in TESTS else "input": F((9,), values=SPECIAL)}), *WIDE
        )
    for op in ("abs", "neg", "sign", "relu"):
        for dtype in ("int32", "int64", "int8"):
            yield Case(op, dtype, {"input": F((3, 11), dtype, -100, 100)})
    for dtype in INTS:
        yield Case(
            "clamp", dtype, {"input": F((40,), dtype, 0, 100)}, {"min_value": 20, "max_value": 60}
        )


PAIRS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "same": ((3, 4, 5), (3, 4, 5)), "scalar": ((3, 7), ()), "row": ((4, 9), (9,)),
    "column": ((4, 9), (4, 1)), "both": ((2, 1, 5), (3, 1)),
    "deep": ((2, 3, 1, 4, 1), (3, 2, 1, 6)),
}  # fmt: skip
BINARY = {
    "add": (-3, 3), "sub": (-3, 3), "mul": (-3, 3), "div": (0.5, 4), "max": (-3, 3),
    "min": (-3, 3), "pow": (0.2, 3), "prelu": (-3, 3), "mod": (0.5, 4),
}  # fmt: skip
COMPARE = ("equal", "not_equal", "greater", "greater_or_equal", "lesser", "lesser_or_equal")


def _names(op: str) -> tuple[str, str]:
    return ("input", "slope") if op == "prelu" else ("a", "b")


def _binary_cases() -> Iterator[Case]:
    for op, (low, high) in BINARY.items():
        a, b = _names(op)
        for name, (left, right) in PAIRS.items():
            feeds = {a: F(left, low=low, high=high), b: F(right, low=low, high=high)}
            case = Case(op, name, feeds, ulps=16 if op == "pow" else 4)
            yield from typed(case, *(WIDE if name in ("same", "row") else WIDE[:1]))
        yield Case(
            op, "constant", {a: F((6, 8), low=low, high=high), b: F((8,), low=low, high=high)},
            constants=frozenset({b}), ulps=16 if op == "pow" else 4,
        )  # fmt: skip
    for op in ("add", "sub", "mul", "div", "max", "min"):
        for dtype in INTS:
            low = 0 if dtype.startswith("u") else -120
            yield Case(op, dtype, {"a": F((5, 6), dtype, low, 120), "b": F((6,), dtype, 1, 11)})
    for op in ("mod", "pow", "prelu"):
        a, b = _names(op)
        yield Case(op, "int32", {a: F((5, 6), "int32", -20, 20), b: F((6,), "int32", 1, 5)})
    yield Case(
        "mod",
        "fmod",
        {"a": F((40,), low=-9, high=9), "b": F((40,), low=1, high=3)},
        {"fmod": True},
        magnitude=4,
        reason="the remainder of a rounded quotient",
    )
    yield Case(
        "pow",
        "square",
        {"a": F((30,), low=-3, high=3), "b": F((), values=(2.0,))},
        constants=frozenset({"b"}),
    )
    for op in ("max", "min", "add"):
        feeds = {"a": F((9,), values=SPECIAL), "b": F((), values=(1.0,))}
        yield from typed(Case(op, "special", feeds), *WIDE)


def _logic_cases() -> Iterator[Case]:
    for op in COMPARE:
        for name in ("same", "both", "scalar"):
            left, right = PAIRS[name]
            feeds = {s: F(d, values=(1, 2, 0, 3, -1)) for s, d in (("a", left), ("b", right))}
            yield from typed(Case(op, name, feeds), *(WIDE if name == "same" else WIDE[:1]))
        for dtype in ("int32", "uint8", "int64"):
            yield Case(op, dtype, {"a": F((4, 6), dtype, 0, 4), "b": F((6,), dtype, 0, 4)})
        yield Case(op, "special", {"a": F((9,), values=SPECIAL), "b": F((), values=(0.0,))})
    for op in ("logical_and", "logical_or", "logical_xor"):
        for name in ("same", "both"):
            left, right = PAIRS[name]
            yield Case(op, name, {"a": F(left, "uint8", 0, 3), "b": F(right, "uint8", 0, 3)})
    yield Case("logical_not", "plane", {"a": F((5, 7), "uint8", 0, 3)})
    shapes = {
        "same": ((4, 5),) * 3,
        "mixed": ((4, 1), (5,), ()),
        "masks": ((3, 1, 7), (2, 1), (7,)),
    }
    for name, (c, t, f) in shapes.items():
        feeds = {"condition": F(c, "uint8", 0, 3), "true_value": F(t), "false_value": F(f)}
        yield from typed(Case("where", name, feeds), *WIDE)
    feeds = {
        "condition": F((4, 5), "uint8", 0, 2),
        "true_value": F((4, 5), "int64", -9, 9),
        "false_value": F((5,), "int64", -9, 9),
    }
    yield Case("where", "int64", feeds)


def _cast_cases() -> Iterator[Case]:
    for source in (*WIDE, *INTS):
        for target in (*WIDE, *INTS):
            low = 0 if "u" in (source[0], target[0]) else -100
            feed = F((3, 13), source, low, 100)
            yield Case("cast", f"{source}-{target}", {"input": feed}, {"data_type": target}, ulps=1)


MATRICES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "small": ((3, 4), (4, 5)), "square": ((64, 64), (64, 64)), "odd": ((37, 53), (53, 29)),
    "row": ((1, 100), (100, 17)), "column": ((33, 20), (20, 1)), "tall": ((130, 16), (16, 70)),
    "batch": ((3, 5, 8), (3, 8, 6)), "spread": ((2, 3, 4, 5), (5, 6)),
    "crossed": ((2, 1, 4, 9), (3, 9, 5)), "long": ((4, 700), (700, 8)),
}  # fmt: skip


def _matrix_cases() -> Iterator[Case]:
    for name, (a, b) in MATRICES.items():
        case = Case(
            "matmul", name, {"a": F(a, low=-1, high=1), "b": F(b, low=-1, high=1)}, terms=a[-1]
        )
        yield from typed(case, *(WIDE if name in ("odd", "batch", "square") else WIDE[:1]))
    feeds = {"a": F((20, 40), low=-1, high=1), "b": F((40, 24), low=-1, high=1)}
    yield Case("matmul", "constant", feeds, constants=frozenset({"b"}), terms=40)
    for ta in (False, True):
        for tb in (False, True):
            a, b = ((24, 17) if ta else (17, 24)), ((31, 24) if tb else (24, 31))
            feeds = {"a": F(a, low=-1, high=1), "b": F(b, low=-1, high=1)}
            attrs = {"a_transpose": ta, "b_transpose": tb}
            yield Case("gemm", f"plain-{ta:d}{tb:d}", feeds, attrs, terms=24)
            for c in ((31,), (17, 1), (), (17, 31)):
                name = f"c{len(c)}{'x'.join(map(str, c))}-{ta:d}{tb:d}"
                scaled = {**attrs, "alpha": 0.5, "beta": -1.5}
                yield Case("gemm", name, {**feeds, "c": F(c)}, scaled, terms=24, magnitude=3)
    feeds = {"a": F((9, 30), low=-1, high=1), "b": F((12, 30), low=-1, high=1), "c": F((12,))}
    fixed = frozenset({"b", "c"})
    case = Case("gemm", "dense", feeds, {"b_transpose": True}, fixed, terms=30, magnitude=2)
    yield from typed(case, *WIDE)
    for n in (6, 40):  # a column has as many elements as a row, and few rows and many go by kernels
        feeds = {"a": F((n, 30), low=-1, high=1), "b": F((n, 30), low=-1, high=1), "c": F((n, 1))}
        for name, held in (("column", frozenset[str]()), ("column-constant", fixed)):
            attrs = {"b_transpose": True}
            yield Case("gemm", f"{name}-{n}", feeds, attrs, held, terms=30, magnitude=2)


def _shape_cases() -> Iterator[Case]:
    x = F((2, 3, 4, 5))

    def one(op: str, name: str, feed: Feed, **attrs: object) -> Iterator[Case]:
        yield Case(op, name, {"input": feed}, attrs)

    for name, shape in {"flat": [120], "split": [6, 2, 10], "same": [2, 3, 4, 5]}.items():
        yield from one("reshape", name, x, new_shape=shape)
    yield from one("reshape", "scalar", F((1, 1)), new_shape=[])
    for order in ([0, 2, 3, 1], [0, 3, 1, 2], [1, 0, 2, 3], [3, 2, 1, 0], [0, 1, 3, 2]):
        yield from one("transpose", "".join(map(str, order)), x, permutation=order)
    yield from one("transpose", "default", F((33, 65)))
    yield from typed(Case("transpose", "matrix", {"input": F((70, 41))}), *WIDE, "float64")
    yield from one("transpose", "uint8", F((7, 5, 3), "uint8", 0, 200), permutation=[2, 0, 1])
    yield from one("transpose", "int64", F((7, 5), "int64", 0, 200))
    yield from one("slice", "middle", x, starts=[0, 1, 1, 2], sizes=[2, 2, 2, 3])
    yield from one(
        "slice", "strided", x, starts=[0, 0, 1, 0], sizes=[2, 3, 3, 5], strides=[1, 2, 2, 3]
    )
    yield from one("slice", "int32", F((9, 8), "int32", 0, 99), starts=[2, 3], sizes=[5, 4])
    yield from one("split", "even", x, splits=2, axis=0)
    yield from one("split", "list", x, splits=[1, 3, 1], axis=3)
    yield from one("split", "middle", F((4, 6, 5)), splits=3, axis=1)
    for axis in range(3):
        sizes = [[3, 4, 5] for _ in range(3)]
        for i, part in enumerate(sizes):
            part[axis] = 2 + 2 * i
        feeds = {"inputs": [F(tuple(s)) for s in sizes]}
        yield from typed(Case("concat", f"axis{axis}", feeds, {"axis": axis}), *WIDE)
    yield Case("concat", "one", {"inputs": [F((3, 4))]}, {"axis": 1})
    pair = [F((2, 3), "int64", 0, 9), F((1, 3), "int64", 0, 9)]
    yield Case("concat", "int64", {"inputs": pair}, {"axis": 0})
    yield from one("expand", "rows", F((5,)), new_shape=[3, 4, 5])
    yield from one("expand", "ones", F((2, 1, 4)), new_shape=[2, 3, 4])
    yield from one("expand", "scalar", F(()), new_shape=[3, 7])
    yield from one("tile", "all", F((2, 3, 4)), repetitions=[2, 1, 3])
    yield from one("reverse", "all", x)
    yield from one("reverse", "two", x, axes=[1, 3])
    for mode in ("constant", "edge", "reflection"):
        for name, feed in (("image", x), ("half", F((4, 6), "float16"))):
            begin, end = ([0, 0, 1, 2], [0, 1, 2, 1]) if feed is x else ([1, 2], [2, 3])
            yield from one(
                "pad",
                f"{mode}-{name}",
                feed,
                beginning_padding=begin,
                ending_padding=end,
                mode=mode,
            )
    yield from one(
        "pad", "value", F((3, 4)), beginning_padding=[1, 0], ending_padding=[0, 2], value=1.5
    )
    yield from one(
        "pad",
        "int32",
        F((3, 4), "int32", 0, 9),
        beginning_padding=[1, 1],
        ending_padding=[1, 1],
        value=-7,
    )
    for upper in (True, False):
        for diagonal in (0, 1, -2, 9):
            yield from one(
                "triangular", f"{upper:d}{diagonal}", F((2, 5, 6)), upper=upper, diagonal=diagonal
            )


def _along(shape: tuple[int, ...], axis: int, values: tuple[int, ...]) -> Feed:
    """The same indices along every line of an axis."""
    lines = np.broadcast_to(values, (*np.delete(shape, axis), len(values)))
    return F(shape, "int32", values=tuple(np.moveaxis(lines, -1, axis).ravel().tolist()))


def _gather_cases() -> Iterator[Case]:
    x = F((5, 6, 7))
    for axis in range(3):
        n = x.shape[axis]
        shape: tuple[int, ...]
        for name, shape in (("scalar", ()), ("line", (4,)), ("plane", (3, 2))):
            index = F(shape, "int64" if name == "plane" else "int32", -n, n)
            feeds = {"input": x, "indices": index}
            yield Case("gather", f"{name}{axis}", feeds, {"axis": axis})
        index = F((3, 8), "int32", -n - 3, n + 3)
        yield Case("gather", f"clamped{axis}", {"input": x, "indices": index}, {"axis": axis})
        shape = tuple(4 if i == axis else d for i, d in enumerate(x.shape))
        feeds = {"input": x, "indices": F(shape, "int32", -n, n)}
        yield Case("gather_elements", f"axis{axis}", feeds, {"axis": axis})
        feeds = {"input": x, "indices": F(shape, "int32", -n - 3, n + 3)}
        yield Case("gather_elements", f"clamped{axis}", feeds, {"axis": axis})
        shape = tuple(3 if i == axis else d for i, d in enumerate(x.shape))
        for name, three in (("axis", (n - 1, 0, 2)), ("clamped", (2**31 - 1, -(2**31), 2))):
            index = _along(shape, axis, three)
            feeds = {"input": x, "indices": index, "updates": F(shape)}
            yield Case("scatter_elements", f"{name}{axis}", feeds, {"axis": axis})
    half, index = F((5, 6), "float16"), F((9,), "uint32", 0, 5)
    yield Case("gather", "half", {"input": half, "indices": index})
    ints = F((50, 8), "int64", 0, 99)
    yield Case("gather", "int64", {"input": ints, "indices": F((2, 9), "int64", 0, 50)})
    for depth in (1, 2, 3):
        index = F((2, 4, depth), "int32", -5, 5)
        yield Case("gather_nd", f"depth{depth}", {"input": x, "indices": index})
        index = F((2, 4, depth), "int64", -9, 10)
        yield Case("gather_nd", f"clamped{depth}", {"input": x, "indices": index})
        values = ((0, 1, 2, 3, 4, 0), (4, 1, 0, 2), (1, 2, 3, 4, 0, 5))[depth - 1]
        rows = {1: 5, 2: 2, 3: 2}[depth]
        feeds = {
            "input": x,
            "indices": F((rows, depth), "int32", values=values),
            "updates": F((rows, *x.shape[depth:])),
        }
        yield Case("scatter_nd", f"depth{depth}", feeds)
        index = F((2, depth), "int32", values=(-(2**31),) * depth + (2**31 - 1,) * depth)
        feeds = {"input": x, "indices": index, "updates": F((2, *x.shape[depth:]))}
        yield Case("scatter_nd", f"clamped{depth}", feeds)


REDUCE = {
    "reduce_l1": (-1, 1), "reduce_l2": (-1, 1), "reduce_log_sum": (0.5, 2),
    "reduce_log_sum_exp": (-4, 4), "reduce_max": (-9, 9), "reduce_mean": (-1, 1),
    "reduce_min": (-9, 9), "reduce_product": (0.7, 1.4), "reduce_sum": (-1, 1),
    "reduce_sum_square": (-1, 1),
}  # fmt: skip
AXES: dict[str, dict[str, object]] = {
    "all": {}, "last": {"axes": [3]}, "first": {"axes": [0], "keep_dimensions": True},
    "inner": {"axes": [2, 3], "keep_dimensions": True}, "outer": {"axes": [0, 2]},
    "none": {"axes": []},
}  # fmt: skip


def _reduce_cases() -> Iterator[Case]:
    for op, (low, high) in REDUCE.items():
        for name, attrs in AXES.items():
            feed = F((3, 4, 5, 6), low=low, high=high)
            terms = {"all": 360, "last": 6, "first": 3, "inner": 30, "outer": 15}.get(name, 1)
            ulps = 4 + (terms if op == "reduce_product" else 0)
            case = Case(
                op,
                name,
                {"input": feed},
                attrs,
                terms=terms,
                ulps=ulps,
                reason="a product rounds once a factor",
            )
            yield from typed(case, *(WIDE if name in ("inner", "last") else WIDE[:1]))
        wide = F((2, 3000), low=low, high=high)
        if op != "reduce_product":
            mean = 1 / 3000 if op == "reduce_mean" else 1.0
            yield Case(op, "wide", {"input": wide}, {"axes": [1]}, terms=3000, magnitude=mean)
        yield Case(op, "scalar", {"input": F((), low=low, high=high)})
    for op in ("reduce_sum", "reduce_max", "reduce_min", "reduce_product", "reduce_l1",
               "reduce_sum_square"):  # fmt: skip
        yield Case(op, "int32", {"input": F((4, 9), "int32", -5, 6)}, {"axes": [1]})
    for op in ("reduce_max", "reduce_min"):
        yield Case(op, "uint8", {"input": F((4, 9), "uint8", 0, 250)}, {"axes": [0]})


def _along_cases() -> Iterator[Case]:
    for op in ("arg_max", "arg_min"):
        for axis in range(3):
            for keep in (False, True):
                feed = F((4, 7, 9), low=-5, high=5, kind="distinct")
                attrs = {"axis": axis, "keep_dimensions": keep}
                yield Case(op, f"{axis}{keep:d}", {"input": feed}, attrs)
        feed = F((70,), "float16", -5, 5, "distinct")
        yield Case(op, "half", {"input": feed}, {"axis": 0, "output_data_type": "int64"})
    for axis in range(3):
        for exclusive in (False, True):
            for back in (False, True):
                attrs = {"axis": axis, "exclusive": exclusive, "reversed": back}
                feed = F((3, 5, 8), low=-1, high=1)
                name = f"{axis}{exclusive:d}{back:d}"
                yield Case("cumulative_sum", name, {"input": feed}, attrs, terms=8)
    feed = F((60,), "int32", -9, 9)
    yield Case("cumulative_sum", "int32", {"input": feed}, {"axis": 0})


CASES: tuple[Case, ...] = unique(
    case
    for family in (
        _unary_cases, _binary_cases, _logic_cases, _cast_cases, _matrix_cases, _shape_cases,
        _gather_cases, _reduce_cases, _along_cases, nn_cases,
        extension_cases, integer_cases, quantized_cases, attention_cases,
    )
    for case in family()
)  # fmt: skip
"""Every case of the op table."""


def of_op(op: str) -> tuple[Case, ...]:
    """The cases of one op."""
    return tuple(case for case in CASES if case.op == op)
