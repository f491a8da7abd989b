"""Every case of the op table: array code, decompositions and expressions against float64."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crossdock.devices.program import Work
from crossdock.kernels import table
from crossdock.kernels.expression import Binary, Call, Expr, Num, Ref, Select, Unary, parse
from crossdock.kernels.fused_conv import INTERNAL
from crossdock.kernels.reference import evaluate, graph_work
from crossdock.runtime.tensor import FLOATS
from tests.cases import CASES, Case

DECOMPOSED = [case for case in CASES if table.op(case.op).decompose is not None]
EXPRESSED = [
    case
    for case in CASES
    if table.op(case.op).expr is not None and case.dtypes <= {"float32", "float64", "uint8"}
]


def test_every_op_has_cases() -> None:
    without = set(table.ops()) - {case.op for case in CASES}
    assert without == INTERNAL | {"if_"}, "these have tests of their own"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_array_code_is_right_in_the_op_s_own_types(case: Case) -> None:
    graph, feeds = case.build()
    case.check(evaluate(graph, feeds))


@pytest.mark.parametrize("case", DECOMPOSED, ids=str)
def test_a_decomposition_means_the_same(case: Case) -> None:
    made = case.build_decomposed()
    assert made is not None
    graph, feeds = made
    assert all(node.op != case.op for node in graph.nodes)
    results = evaluate(graph, feeds)
    case.check({f"y{i}": array for i, array in enumerate(results.values())})


@pytest.mark.parametrize("case", EXPRESSED, ids=str)
def test_an_expression_means_the_same(case: Case) -> None:
    node = case.node()
    text = table.op(case.op).expression(node.attrs)
    assert text is not None
    arrays = [array.astype(np.float64) for array in case.arrays.values()]
    with np.errstate(all="ignore"):
        value = np.asarray(worth(parse(text, node.attrs), arrays))
    spec = case.graph.output_specs["y0"]
    dtype = "float64" if spec.dtype in FLOATS else spec.dtype
    if spec.dtype not in FLOATS:
        # A cast saturates or wraps in the emitter; the values here are in range, but for bytes
        # that were shifted or turned over.
        value = np.trunc(value) % 256 if spec.dtype == "uint8" else np.trunc(value)
    value = np.broadcast_to(value, spec.dims).astype(dtype)
    want = case.reference()["y0"]
    np.testing.assert_allclose(value, want, rtol=1e-12, atol=1e-12)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": np.minimum,
    "max": np.maximum,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "pow": np.power,
    "erf": lambda x: table.op("erf").run(np, x),
    "normcdf": lambda x: (1 + table.op("erf").run(np, x / np.sqrt(x.dtype.type(2)))) / 2,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "bit_and": lambda a, b: a.astype(np.int64) & b.astype(np.int64),
    "bit_or": lambda a, b: a.astype(np.int64) | b.astype(np.int64),
    "bit_xor": lambda a, b: a.astype(np.int64) ^ b.astype(np.int64),
    "bit_not": lambda a: ~a.astype(np.int64),
    "shift_left": lambda a, b: _shifted(a, b, np.left_shift),
    "shift_right": lambda a, b: _shifted(a, b, np.right_shift),
}


def _shifted(a: Any, b: Any, shift: Any) -> Any:
    """A shift of small numbers that are not negative, without numpy's limit at 64 bits."""
    near = b < 32
    return np.where(near, shift(a.astype(np.int64), np.where(near, b, 0).astype(np.int64)), 0)


OPERATORS: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "&&": np.logical_and,
    "||": np.logical_or,
}


def worth(tree: Expr, arrays: list[Any]) -> Any:
    """The value of an expression over float64 arrays."""
    match tree:
        case Num(value):
            return np.float64(value)
        case Ref(index):
            return arrays[index]
        case Call(fn, args):
            function = FUNCTIONS.get(fn) or getattr(np, fn)
            return function(*(worth(a, arrays) for a in args)) * 1.0
        case Unary(op, x):
            inner = worth(x, arrays)
            return -inner if op == "-" else np.logical_not(inner) * 1.0
        case Binary(op, a, b):
            return OPERATORS[op](worth(a, arrays), worth(b, arrays)) * 1.0
        case Select(cond, a, b):
            return np.where(worth(cond, arrays) != 0, worth(a, arrays), worth(b, arrays))
    raise AssertionError(tree)


def test_work_is_counted() -> None:
    for case in CASES:
        spec, graph, node = table.op(case.op), case.graph, case.node()
        specs = [graph.specs[i] if i else None for i in node.inputs]
        work = spec.work(specs, [graph.specs[o] for o in node.outputs], node.attrs)
        if spec.alias:
            assert work == Work(), case
        else:
            assert work.flops >= 0, case
            assert work.bytes_written == sum(graph.specs[o].nbytes for o in node.outputs), case
            assert work.bytes_read > 0, case


def test_the_work_of_a_convolution_is_two_operations_a_weight_and_output() -> None:
    (case,) = (c for c in CASES if str(c) == "conv2d-fed-filter")
    outputs = case.graph.output_specs["y0"].size
    assert graph_work(case.graph).flops == 2 * outputs * 3 * 3 * 3


def test_erf_is_exact_to_float64() -> None:
    x = np.concatenate((np.linspace(-7, 7, 4001), np.geomspace(1e-300, 1, 200)))
    got = table.op("erf").run(np, x)
    want = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(got, want, rtol=1e-15, atol=0)


def test_integers_wrap_and_division_truncates() -> None:
    run = {name: table.op(name).run for name in ("add", "mul", "div", "pow", "neg")}
    a = np.array([127, -128, 100], np.int8)
    assert run["add"](np, a, np.array([1, -1, 100], np.int8)).tolist() == [-128, 127, -56]
    assert run["mul"](np, a, np.array([2, 2, 3], np.int8)).tolist() == [-2, 0, 44]
    assert run["neg"](np, a).tolist() == [-127, -128, -100]
    left, right = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    assert run["div"](np, left, right).tolist() == [3, -3, -3, 3]
    base, exponent = np.array([2, -1, -1, 3, 1], np.int32), np.array([-1, -3, -2, 4, -9], np.int32)
    assert run["pow"](np, base, exponent).tolist() == [0, -1, 1, 81, 1]


def test_nan_goes_through_min_and_max() -> None:
    x = np.array([np.nan, 1.0], np.float32)
    for name in ("min", "max"):
        assert np.isnan(table.op(name).run(np, x, np.zeros(2, np.float32))[0])
    assert np.isnan(table.op("relu").run(np, x)[0])
