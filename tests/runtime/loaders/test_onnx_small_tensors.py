"""Constants of types that devices lack: packed in the model, or beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.loaders import load

DTYPES = [
    ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.float4_e2m1fn,
    ml_dtypes.float6_e2m3fn, ml_dtypes.float6_e3m2fn, ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu, np.complex64, np.complex128,
]  # fmt: skip


def concatenated(tensor: Any) -> Any:
    """A model that gives a constant twice, end to end."""
    node = helper.make_node("Concat", ["w", "w"], ["y"], axis=0)
    output = helper.make_tensor_value_info("y", tensor.data_type, None)
    graph = helper.make_graph([node], "g", [], [output], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def values(dtype: Any) -> Any:
    return np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).astype(dtype)


def outside(tensor: Any, path: Path, cut: int = 0) -> Any:
    """The tensor with its data in a file."""
    data = tensor.raw_data
    (path / "w.bin").write_bytes(data[: len(data) - cut])
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (path / "model.onnx").write_bytes(concatenated(tensor).SerializeToString())
    return path / "model.onnx"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_every_small_type_is_read(dtype: Any, tmp_path: Path) -> None:
    x = values(dtype)
    want = np.concatenate([x, x])
    tensor = numpy_helper.from_array(x, "w")
    for source in (concatenated(tensor), outside(tensor, tmp_path)):
        got = evaluate(load(source), {})["y"]
        assert got.dtype == x.dtype
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_data_that_is_cut_short(dtype: Any, tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(values(dtype), "w")
    with pytest.raises(MalformedModel):
        load(outside(tensor, tmp_path, cut=1))
    tensor = numpy_helper.from_array(values(dtype), "w")
    tensor.raw_data = tensor.raw_data[:-1]
    with pytest.raises(MalformedModel, match="cannot be read"):
        load(concatenated(tensor))
