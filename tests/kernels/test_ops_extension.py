"""Properties of the ops beyond WebNN, against plain Python and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossdock.kernels import reference, table
from crossdock.kernels.grid_order import MOST
from crossdock.kernels.reference import run_op
from crossdock.kernels.spec import OpCall
from crossdock.runtime import emulation
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.errors import ShapeError
from crossdock.runtime.tensor import TensorSpec
from tests.kernels.grid_run import call_of, opencl_ids, opened

SMALL = st.integers(-4, 4)
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def run(op: str, *arrays: Any, **attrs: Any) -> tuple[Any, ...]:
    call = call_of(op, list(arrays), attrs)
    return run_op(op, call.attrs, list(arrays))


@given(hnp.arrays("int32", st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=SMALL),
       st.booleans(), st.data())  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_top_k_is_the_head_of_a_stable_sort(x: Any, largest: bool, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, 1))
    k = data.draw(st.integers(1, x.shape[axis]))
    values, places = run("top_k", x, k=k, axis=axis, largest=largest)
    for line, got in zip(
        np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).tolist(),
        np.moveaxis(places, axis, -1).reshape(-1, k).tolist(),
        strict=False,
    ):
        order = sorted(range(len(line)), key=lambda i: (-line[i] if largest else line[i], i))
        assert got == order[:k]
    np.testing.assert_array_equal(values, np.take_along_axis(x, places, axis=axis))


@given(st.sampled_from(DTYPES), st.data())
@settings(max_examples=80, deadline=None)
def test_shifts_are_those_of_whole_numbers(dtype: str, data: st.DataObject) -> None:
    limits = np.iinfo(dtype)
    number = data.draw(st.integers(int(limits.min), int(limits.max)))
    by = data.draw(st.integers(max(int(limits.min), -3), 80))
    a, b = np.array([number], dtype), np.array([by], dtype)
    far = not 0 <= by < limits.bits
    left = 0 if far else (number << by) % 2**limits.bits
    right = (-1 if number < 0 else 0) if far else number >> by
    assert int(run("shift_left", a, b)[0][0]) % 2**limits.bits == left
    assert int(run("shift_right", a, b)[0][0]) == right


FUNCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@given(st.sampled_from(sorted(FUNCTIONS)), st.lists(st.integers(-5, 4), max_size=12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_scatters_combine_as_numpy_does(reduction: str, places: list[int], rows: bool) -> None:
    rng = np.random.default_rng(len(places))
    x = rng.integers(-3, 4, (5, 3))
    index = np.array(places, np.int64)
    if rows:
        updates = rng.integers(-3, 4, (len(places), 3))
        got = run("scatter_nd", x, index.reshape(-1, 1), updates, reduction=reduction)[0]
        want = x.copy()
        FUNCTIONS[reduction].at(want, index, updates)
    else:
        spread = np.repeat(index[:, None], 3, axis=1)
        updates = rng.integers(-3, 4, spread.shape)
        got = run("scatter_elements", x, spread, updates, axis=0, reduction=reduction)[0]
        want = x.copy()
        FUNCTIONS[reduction].at(want, (spread, np.arange(3)[None, :]), updates)
    np.testing.assert_array_equal(got, want)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_transform_and_its_inverse(size: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(2, size, 2))
    there = run("dft", x)[0]
    np.testing.assert_allclose(run("dft", there, inverse=True)[0], x, atol=1e-12)
    energy = (there**2).sum() / size
    np.testing.assert_allclose(energy, (x**2).sum(), rtol=1e-10)


@pytest.mark.parametrize("name", ["cumulative_sum", "cumulative_product"])
def test_running_results_end_in_the_whole(name: str) -> None:
    x = np.random.default_rng(0).integers(-3, 4, (3, 5)).astype(np.int64)
    whole = x.sum(axis=1) if name == "cumulative_sum" else x.prod(axis=1)
    np.testing.assert_array_equal(run(name, x, axis=1)[0][:, -1], whole)
    np.testing.assert_array_equal(run(name, x, axis=1, reversed=True)[0][:, 0], whole)
    first = run(name, x, axis=1, exclusive=True)[0][:, 0]
    assert (first == (0 if name == "cumulative_sum" else 1)).all()


@pytest.mark.parametrize(("source", "target"), [("float32", "int32"), ("int32", "float32")])
def test_bits_keep_their_meaning_where_floats_are_wide(source: str, target: str) -> None:
    x = np.array([1.0, -2.5, 0.0], np.float32).view(source)
    b = GraphBuilder()
    graph = b.build({"y": b.bit_cast(b.input("x", (3,), source), target)})
    plain = reference.evaluate(graph, {"x": x})["y"]
    wide = reference.evaluate(graph, {"x": x}, dtype="float64")["y"]
    np.testing.assert_array_equal(plain, x.view(target))
    np.testing.assert_array_equal(wide, plain.astype(wide.dtype))


BROKEN: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("top_k", [np.ones(3, np.float32)], {"k": 4, "axis": 0}, "k must be at most the size 3"),
    ("top_k", [np.ones(3, np.float32)], {"k": -1, "axis": 0}, "k must be 0 or more"),
    ("det", [np.ones((2, 3), np.float32)], {}, "last two dimensions of input must be equal"),
    ("dft", [np.ones((4, 3), np.float32)], {}, "last dimension of input must be 1"),
    ("bit_cast", [np.ones(3, np.float32)], {"data_type": "int64"}, "as wide as the input's"),
    ("shift_left", [np.ones(3, np.float32)] * 2, {}, "a must be one of"),
    ("cumulative_product", [np.ones(3, np.float32)], {"axis": 1}, "axis must be below"),
]


@pytest.mark.parametrize(("op", "arrays", "attrs", "match"), BROKEN)
def test_rules(op: str, arrays: list[Any], attrs: dict[str, Any], match: str) -> None:
    with pytest.raises(ShapeError, match=match):
        call_of(op, arrays, attrs)


def test_a_reduction_has_a_name() -> None:
    x, i, u = np.ones(3, np.float32), np.zeros((1, 1), np.int32), np.ones(1, np.float32)
    with pytest.raises(ShapeError, match="reduction must be one of none, add"):
        call_of("scatter_nd", [x, i, u], {"reduction": "mean"})


@pytest.mark.parametrize(
    ("op", "shape", "match"),
    [("det", (40, 40), "matrices of 40 rows"), ("dft", (8192, 2), "lines of 8192")],
)
def test_large_ones_are_not_taken_apart(op: str, shape: tuple[int, ...], match: str) -> None:
    info = opened(opencl_ids()[0]).info
    call = call_of(op, [np.ones(shape, np.float32)])
    assert match in str(emulation.parts_of(call, info))
    (small,) = emulation.candidates(call_of(op, [np.ones((2, 2), np.float32)]), info).fitting
    assert not small.native


def test_long_lines_are_not_compared_each_with_each() -> None:
    size = int(MOST**0.5) + 1
    spec = TensorSpec("float32", (size,))
    outs = (TensorSpec("float32", (1,)), TensorSpec("int64", (1,)))
    call = OpCall("top_k", {"k": 1, "axis": 0, "largest": True}, (spec,), outs)
    found = table.candidates(call, opened(opencl_ids()[0]).info)
    assert "lines too long" in found.reason()
