"""Operators on bits, order along an axis, determinants and combining scatters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.loaders import load
from tests.runtime.loaders.conftest import build_model, run_ours

RNG = np.random.default_rng(0)


def rand(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.uniform(-2, 2, shape).astype(dtype)


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint64"])
@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bitwise(check: Any, op: str, dtype: str) -> None:
    low = 0 if dtype.startswith("u") else -99
    a, b = (RNG.integers(low, 99, s).astype(dtype) for s in ((2, 3, 4), (3, 1)))
    check(op, a, b, opset=18)
    check("BitwiseNot", a, opset=18)


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts(check: Any, direction: str, dtype: str) -> None:
    a, b = RNG.integers(0, 250, (3, 4)).astype(dtype), RNG.integers(0, 7, 4).astype(dtype)
    check("BitShift", a, b, opset=11, direction=direction)


@pytest.mark.parametrize(("source", "to"), [("float32", 6), ("int32", 1), ("uint16", 10)])
def test_bits_as_another_type(source: str, to: int) -> None:
    x = RNG.integers(1, 2**15, (2, 3)).astype(source)
    node = helper.make_node("BitCast", ["x"], ["y"], to=to)
    found = run_ours(load(build_model([node], {"x": x}, ["y"], 26)), {"x": x})["y"]
    want = x.view(helper.tensor_dtype_to_np_dtype(to))
    assert found.dtype == want.dtype
    assert found.tobytes() == want.tobytes()


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_top_k(check: Any, dtype: str, largest: int) -> None:
    x = RNG.integers(0, 5, (3, 8, 4)).astype(dtype)
    for axis in (0, 1, -1):
        k = np.array([2])
        check("TopK", x, k, opset=11, fixed=[1], outputs=2, axis=axis, largest=largest)


def test_top_k_as_older_opsets_had_it(check: Any) -> None:
    x = rand(3, 8)
    check("TopK", x, opset=1, outputs=2, k=3, axis=1)
    check("TopK", x, np.array([3]), opset=10, fixed=[1], outputs=2, axis=0)


def test_top_k_of_none_and_of_too_many() -> None:
    def ours(k: int) -> Any:
        node = helper.make_node("TopK", ["x", "k"], ["v", "i"])
        x = rand(2, 3)
        graph = load(build_model([node], {"x": x}, ["v", "i"], 11, {"k": np.array([k])}))
        return run_ours(graph, {"x": x})

    assert [a.shape for a in ours(0).values()] == [(2, 0), (2, 0)]
    with pytest.raises(MalformedModel, match="k is 4, the axis has 3 elements"):
        ours(4)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_products_and_sums(check: Any, exclusive: int, reverse: int) -> None:
    attrs = {"exclusive": exclusive, "reverse": reverse}
    for axis in (0, 1, -1):
        x, at = rand(3, 4, 5), np.array(axis)
        check("CumSum", x, at, opset=14, fixed=[1], atol=1e-5, **attrs)
        check("CumProd", x, at, opset=26, fixed=[1], atol=1e-5, **attrs)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_the_last_of_equal_elements(check: Any, op: str) -> None:
    x = RNG.integers(0, 3, (4, 6)).astype(np.float32)
    for last in (0, 1):
        check(op, x, opset=13, axis=1, select_last_index=last, keepdims=0)


def test_det(check: Any) -> None:
    for size in (1, 2, 5):
        check("Det", rand(2, 3, size, size), opset=11, rtol=1e-4, atol=1e-5)


# --- scatters that combine ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", ["float32", "int64", "int32"])
def test_combining_scatters(check: Any, reduction: str, dtype: str) -> None:
    x = RNG.integers(1, 5, (4, 5)).astype(dtype)
    repeat = reduction != "none"
    places = np.array([[1, -1, 0], [1, 1, 1], [2, 3, 3]] if repeat else [[1, 0, 2]] * 3)
    updates = RNG.integers(1, 5, (3, 3)).astype(dtype)
    for axis in (0, 1):
        index = places if axis == 1 or repeat else places.T
        check("ScatterElements", x, index, updates, opset=18, axis=axis, reduction=reduction)
    tuples = np.array([[1, 2], [1, 2], [0, 4]] if repeat else [[1, 2], [3, 3], [0, 4]])
    check("ScatterND", x, tuples, updates[0], opset=18, reduction=reduction)
    rows = np.array([[2], [2], [0]] if repeat else [[2], [1], [0]])
    new = RNG.integers(1, 5, (3, 5)).astype(dtype)
    check("ScatterND", x, rows, new, opset=18, reduction=reduction)


def test_scatter_before_it_had_its_name(check: Any) -> None:
    index = np.array([[1, 0, 2, 0, 0]])
    check("Scatter", rand(3, 5), index, rand(1, 5), opset=9, axis=0)


def test_a_reduction_that_is_none() -> None:
    node = helper.make_node("ScatterND", list("xiu"), ["y"], reduction="mean")
    feeds = {"x": rand(3), "i": np.array([[0]]), "u": rand(1)}
    with pytest.raises(MalformedModel, match="reduction 'mean'"):
        load(build_model([node], feeds, ["y"], 18))


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_a_cache_is_written_at_each_batch_s_place(check: Any, mode: str) -> None:
    starts = np.array([1, 3] if mode == "circular" else [1, 2])
    check("TensorScatter", rand(2, 3, 4, 5), rand(2, 3, 2, 5), starts, opset=24, mode=mode,
          oracle="onnx")  # fmt: skip
    check("TensorScatter", rand(2, 4, 5), rand(2, 2, 5), opset=24, axis=1, mode=mode, oracle="onnx")


def test_rows_reversed_by_lengths_of_a_run(check: Any) -> None:
    x, lengths = rand(4, 3, 2), np.array([4, 1, 2])
    check("ReverseSequence", x, lengths, opset=10)
    check("ReverseSequence", x, np.array([3, 1, 2, 0]), opset=10, batch_axis=0, time_axis=1)
