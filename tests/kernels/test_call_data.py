"""Ops as plain data and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels import call_data
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.reference import evaluate
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import TensorSpec

SPEC = TensorSpec("float32", (2, 3))
BODY = FusedBody((FusedStep("relu", {}, (0,), "float32", ("float32",)),))


def back(value: Any) -> Any:
    """An attribute's value, written and read."""
    large: list[Any] = []
    form = call_data.plain(OpCall("op", {"value": value}, (SPEC, None), (SPEC,), name="n"), large)
    assert form is not None
    found = call_data.read(
        json.loads(json.dumps(form)), [np.frombuffer(a.tobytes(), np.uint8) for a in large]
    )
    assert (found.inputs, found.outputs, found.name) == ((SPEC, None), (SPEC,), "n")
    return found.attrs["value"]


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 0.1, float("inf"), "text", (1, (2.5, None)), [1, [2]], {"a": (1,), 2: "b"},
        BODY,
    ],
    ids=str,
)  # fmt: skip
def test_attributes_come_back(value: Any) -> None:
    assert back(value) == value


@pytest.mark.parametrize("repeats", [1, 2000], ids=["small", "large"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool", "float64"])
def test_arrays_come_back(dtype: str, repeats: int) -> None:
    array = np.array([[1, 0, 3]] * repeats).astype(dtype)
    found = back(array)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_a_branch_comes_back() -> None:
    weight = np.arange(3 * 900, dtype=np.float32).reshape(3, 900)
    b = xd.GraphBuilder()
    x = b.input("x", (2, 3))
    y = b.tanh(b.matmul(x, b.constant(weight)))
    graph = b.build({"y": b.slice(y, [0, 1], [2, 4]), "z": b.add(x, b.constant(np.float32(1)))})
    found = back((graph, "no branch"))[0]
    assert found.digest() == graph.digest()
    feeds = {"x": np.ones((2, 3), np.float32) / 999}
    for name, want in evaluate(graph, feeds).items():
        np.testing.assert_array_equal(evaluate(found, feeds)[name], want)


def test_what_has_no_form() -> None:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.tanh(b.input("x", ("n",)))})
    for value in (graph, object(), {1, 2}):
        assert call_data.plain(OpCall("op", {"value": (value,)}, (), (SPEC,)), []) is None
