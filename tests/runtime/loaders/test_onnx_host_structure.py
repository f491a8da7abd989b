"""Moving strings and small numbers: the same results as for any other type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import MalformedModel, UnsafeModel, UnsupportedModel
from crossdock.runtime.loaders import load
from tests.runtime.loaders.onnx_hosts import run_host, words

MOVES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Transpose", [], {"perm": [2, 0, 1]}),
    ("Reshape", [np.array([0, -1])], {}),
    ("Flatten", [], {"axis": 2}),
    ("Unsqueeze", [np.array([-1, 0])], {}),
    ("Slice", [np.array([-1, 2]), np.array([-9, 0]), np.array([1, -1]), np.array([-1, -1])], {}),
    ("Gather", [np.array([[1, 0], [-1, 1]])], {"axis": 1}),
    ("GatherElements", [np.array([[[0, -1, 1]]])], {"axis": 2}),
    ("GatherND", [np.array([[1, -1], [0, 0]])], {}),
    ("Expand", [np.array([2, 2, 1, 1])], {}),
    ("Tile", [np.array([1, 2, 3])], {}),
    ("Trilu", [], {"upper": 0}),
    ("ReverseSequence", [np.array([1, 2])], {"batch_axis": 1, "time_axis": 0}),
    ("Pad", [np.array([0, 1, 0, 1, 0, 2])], {}),
    ("Pad", [np.array([0, 1, 0, 0, 1, 2])], {"mode": "reflect"}),
    ("ScatterElements", [np.array([[[1]]]), None], {"axis": 2}),
]


def on_numbers(op: str, numbers: Any, rest: list[Any], attrs: dict[str, Any]) -> Any:
    """The same operator on int64, by the converters and the reference interpreter."""
    arrays = [numbers, *rest]
    names = [f"x{i}" for i in range(len(arrays))]
    held = [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True)]
    node = helper.make_node(op, names, ["y"], **attrs)
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT64, None)]
    graph = helper.make_graph([node], "g", [], outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return evaluate(load(model), {})["y"]


@pytest.mark.parametrize(("op", "rest", "attrs"), MOVES, ids=lambda v: v if type(v) is str else "")
def test_strings_move_as_numbers_do(op: str, rest: list[Any], attrs: dict[str, Any]) -> None:
    numbers = np.arange(1, 13, dtype=np.int64).reshape(2, 2, 3)
    plain = [np.array([[[99]]]) if r is None else r for r in rest]
    texts = [words("99").reshape(1, 1, 1) if r is None else r for r in rest]
    want = on_numbers(op, numbers, plain, attrs)
    (got,) = run_host(op, numbers.astype(str).astype(object), *texts, opset=18, **attrs)
    assert got.dtype == object
    assert got.shape == want.shape
    named = [str(v) if v else "" for v in want.reshape(-1).tolist()]
    assert got.reshape(-1).tolist() == named


@given(st.permutations(range(3)), st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_any_transposition(perm: list[int], shape: list[int]) -> None:
    x = np.arange(np.prod(shape)).astype(str).astype(object).reshape(shape)
    (got,) = run_host("Transpose", x, perm=list(perm))
    assert got.shape == np.transpose(x, perm).shape
    assert (got == np.transpose(x, perm)).all()


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.int4, ml_dtypes.float8_e5m2, ml_dtypes.float6_e2m3fn, np.complex64]
)
def test_other_types_move_too(dtype: Any) -> None:
    x = np.array([[1, 2, 3]]).astype(dtype)
    (got,) = run_host("Concat", x, x, axis=-1)
    assert got.dtype == dtype
    assert got.tolist() == [[1, 2, 3, 1, 2, 3]]
    (padded,) = run_host("Pad", x, np.array([0, 1, 0, 0]))
    assert padded.tolist() == [[0, 1, 2, 3]]
    (scalar,) = run_host("Reshape", x[:, :1], np.zeros(0, np.int64))
    assert scalar.shape == ()
    assert scalar.dtype == dtype


def test_several_inputs_and_outputs() -> None:
    x = words("a", "b", "c", "d")
    (chosen,) = run_host("Where", np.array([True, False]), words("p", "q"), words("z"))
    assert chosen.tolist() == ["p", "z"]
    first, second = run_host("Split", x, np.array([1, 3]), outputs=2)
    assert (first.tolist(), second.tolist()) == (["a"], ["b", "c", "d"])
    (filled,) = run_host("Pad", x, np.array([1, 0]), words("-"))
    assert filled.tolist() == ["-", "a", "b", "c", "d"]
    (hot,) = run_host("OneHot", np.array([1]), np.array([3]), words("off", "on"))
    assert hot.tolist() == [["off", "on", "off"]]


def test_what_has_no_elements() -> None:
    empty = words()
    assert run_host("Concat", empty, words("a"), axis=0)[0].tolist() == ["a"]
    assert run_host("Reshape", empty, np.array([0, 3]), allowzero=1)[0].shape == (0, 3)


def test_shapes_sizes_and_comparisons() -> None:
    x = words("a", "b").reshape(1, 2)
    assert run_host("Shape", x, start=-1)[0].tolist() == [2]
    assert run_host("Size", x)[0] == 2
    assert run_host("Equal", x, words("b"))[0].tolist() == [[False, True]]
    small = np.array([np.nan, np.inf, -np.inf, 1], np.float32).astype(ml_dtypes.float8_e5m2)
    assert run_host("IsNaN", small)[0].tolist() == [True, False, False, False]
    assert run_host("IsInf", small, detect_negative=0)[0].tolist() == [False, True, False, False]


def test_constants() -> None:
    assert run_host("Constant", value_string="a")[0].shape == ()
    assert run_host("Constant", value_strings=["a", "b"])[0].tolist() == ["a", "b"]
    fill = np.array([3], ml_dtypes.int4)
    (made,) = run_host("ConstantOfShape", np.array([2, 0]), value=fill)
    assert made.shape == (2, 0)
    assert made.dtype == fill.dtype


def test_misuse_is_named() -> None:
    x = words("a", "b", "c")
    with pytest.raises(MalformedModel, match=r"node 'the node' \(Reshape\)"):
        run_host("Reshape", x, np.array([7]))
    with pytest.raises(MalformedModel, match="differ in type"):
        run_host("Concat", x, np.array([1.0]), axis=0)
    with pytest.raises(UnsafeModel, match="over the limit"):
        run_host("Tile", x, np.array([1 << 40]))
    with pytest.raises(UnsafeModel, match="bytes"):
        run_host("ConstantOfShape", np.array([1 << 40]), value=np.array([1], ml_dtypes.int4))
    with pytest.raises(UnsupportedModel, match="reduction"):
        run_host("ScatterElements", x, np.array([0]), words("z"), reduction="max")
    with pytest.raises(MalformedModel, match="compares"):
        run_host("Equal", x, np.array([1.0]))
    with pytest.raises(MalformedModel, match="broadcast"):
        run_host("Equal", x, words("a", "b"))


def test_models_whose_types_devices_lack_load_and_run() -> None:
    node = helper.make_node("Concat", ["x", "w"], ["y"], axis=0)
    info = helper.make_tensor_value_info
    weights = helper.make_tensor("w", TensorProto.STRING, [1], [b"last"])
    outputs = [info("y", TensorProto.STRING, None)]
    inputs = [info("x", TensorProto.STRING, ["n"])]
    graph = helper.make_graph([node], "g", inputs, outputs, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    assert evaluate(load(model), {"x": words("first")})["y"].tolist() == ["first", "last"]


def test_comparing_beyond_the_budget_is_refused() -> None:
    column, row = np.full((70_000, 1), "x", object), np.full((1, 70_000), "y", object)
    with pytest.raises(UnsafeModel, match="39,200,000,000 bytes"):
        run_host("Equal", column, row)


@pytest.mark.parametrize("op", ["IsNaN", "IsInf"])
def test_strings_are_no_floats(op: str) -> None:
    with pytest.raises(MalformedModel, match="input 0 is a tensor of string, not of floats"):
        run_host(op, words("a"))
