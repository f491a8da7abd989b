"""Ops as plain data and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels import call_data
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import TensorSpec

SPEC = TensorSpec("float32", (2, 3))
BODY = FusedBody((FusedStep("relu", {}, (0,), "float32", ("float32",)),))


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 0.1, float("inf"), "text", (1, (2.5, None)), [1, [2]], {"a": (1,), 2: "b"},
        BODY,
    ],
    ids=str,
)  # fmt: skip
def test_attributes_come_back(value: Any) -> None:
    call = OpCall("op", {"value": value}, (SPEC, None), (SPEC,), name="n")
    form = json.loads(json.dumps(call_data.plain(call)))
    assert call_data.read(form) == call


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool", "float64"])
def test_small_arrays_come_back(dtype: str) -> None:
    array = np.array([[1, 0, 3]]).astype(dtype)
    form = call_data.plain(OpCall("op", {"value": array}, (), (SPEC,)))
    found = call_data.read(json.loads(json.dumps(form))).attrs["value"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_what_has_no_form() -> None:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.tanh(b.input("x", (3,)))})
    for value in (graph, np.zeros(2000), object(), {1, 2}):
        assert call_data.plain(OpCall("op", {"value": (value,)}, (), (SPEC,))) is None
