"""crossdock as an onnx backend: devices by either name, values in and out, single nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.backend.base import Backend, BackendRep

import crossdock as xd
from crossdock import onnx_backend
from crossdock.runtime.errors import (
    Error,
    FeedError,
    LoadError,
    MalformedModel,
    PlanError,
    Unavailable,
)
from crossdock.runtime.onnx_backend import device_id

F = TensorProto.FLOAT
X = np.array([[1, -2], [3, -4]], np.float32)


def model_of(*nodes: Any, inputs: dict[str, Any], outputs: list[str]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, F, shape) for n, shape in inputs.items()]
    ends = [helper.make_tensor_value_info(n, F, None) for n in outputs]
    graph = helper.make_graph(list(nodes), "g", infos, ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


TWO = model_of(
    helper.make_node("Sub", ["a", "b"], ["d"]),
    helper.make_node("Neg", ["a"], ["n"]),
    inputs={"a": ["n", 2], "b": [2]},
    outputs=["n", "d"],
)


def test_it_is_a_backend() -> None:
    assert xd.onnx_backend is onnx_backend
    assert issubclass(onnx_backend, Backend)
    assert isinstance(onnx_backend.prepare(TWO), BackendRep)
    assert "onnx_backend" in dir(xd)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("CPU", "cpu:0"),
        ("CUDA", "cuda:0"),
        ("CUDA:1", "cuda:1"),
        ("cpu:0", "cpu:0"),
        ("opencl", "opencl:0"),
        ("opencl:1", "opencl:1"),
        ("auto", "auto"),
    ],
)
def test_names_of_devices(name: str, ours: str) -> None:
    assert device_id(name) == ours


def test_devices_that_are_not_here() -> None:
    assert onnx_backend.supports_device("CPU")
    assert onnx_backend.supports_device("cpu:0")
    assert not onnx_backend.supports_device("opencl:99")
    assert not onnx_backend.supports_device("NPU")
    with pytest.raises(Unavailable, match="no device is called 'NPU'; use CPU, CUDA"):
        onnx_backend.prepare(TWO, "NPU")


@pytest.mark.parametrize("device", ["CPU", "cpu:0", "opencl:0"])
def test_inputs_in_order_or_by_name(device: str) -> None:
    rep = onnx_backend.prepare(TWO, device)
    b = np.array([1, 2], np.float32)
    for inputs in ([X, b], (X, b), {"b": b, "a": X}):
        outputs = rep.run(inputs)
        assert isinstance(outputs, tuple)
        np.testing.assert_array_equal(outputs[0], -X)
        np.testing.assert_array_equal(outputs[1], X - b)
    np.testing.assert_array_equal(onnx_backend.run_model(TWO, [X[:1], b], device)[1], X[:1] - b)


def test_one_input_needs_no_list() -> None:
    model = model_of(helper.make_node("Neg", ["a"], ["n"]), inputs={"a": [2, 2]}, outputs=["n"])
    np.testing.assert_array_equal(onnx_backend.run_model(model, X)[0], -X)


def test_inputs_that_do_not_fit() -> None:
    rep = onnx_backend.prepare(TWO)
    with pytest.raises(FeedError, match=r"1 inputs for a model of 2 \(a, b\)"):
        rep.run([X])
    with pytest.raises(FeedError, match="run takes no 'threads'"):
        rep.run([X, X[0]], threads=2)
    with pytest.raises(Error):
        onnx_backend.prepare(b"no model at all")


def test_options_of_compile_and_of_tests() -> None:
    rep = onnx_backend.prepare(TWO, "CPU", threads=1, rtol=1e-3, atol=0.0)
    assert rep.session.config.threads == 1
    assert rep.session.config.measure is False
    assert onnx_backend.prepare(TWO, measure=0.5).session.config.measure == 0.5


@pytest.mark.parametrize("model", [None, 3, [TWO], TWO.graph, TWO.graph.node[0]])
def test_what_is_no_model(model: Any) -> None:
    for call in (onnx_backend.prepare, lambda model: onnx_backend.run_model(model, [X])):
        with pytest.raises(LoadError, match=f"cannot load a {type(model).__name__}"):
            call(model)


@pytest.mark.parametrize("name", ["thread", "devices", "graph"])
def test_options_that_there_are_not(name: str) -> None:
    with pytest.raises(PlanError, match=f"there is no option {name}; .*threads"):
        onnx_backend.prepare(TWO, **{name: 1})


@pytest.mark.parametrize("node", ["x", b"x", None, TWO, TWO.graph])
def test_what_is_no_node(node: Any) -> None:
    kind = type(node).__name__
    with pytest.raises(LoadError, match=f"takes an onnx.NodeProto, not {kind};"):
        onnx_backend.run_node(node, [])


@pytest.mark.parametrize("opset", ["a", 13.5, 0, -1, 10**30])
def test_what_is_no_opset(opset: Any) -> None:
    with pytest.raises(LoadError, match=f"opset_version={opset!r}: give a whole number"):
        onnx_backend.run_node(helper.make_node("Neg", ["x"], ["y"]), X, opset_version=opset)


@pytest.mark.parametrize("info", [3, [3], [("float", 3)], [("nosuch", (2,))], [("M8[D]", (2,))]])
def test_what_says_nothing_of_outputs(info: Any) -> None:
    with pytest.raises(LoadError, match="outputs_info takes a dtype and a shape"):
        onnx_backend.run_node(helper.make_node("Neg", ["x"], ["y"]), X, outputs_info=info)


def test_values_that_onnx_has_no_tensors_of() -> None:
    days = np.array(["2026-01-01"], "M8[D]")
    with pytest.raises(FeedError, match=r"input 'x': ONNX has no tensors of datetime64\[D\]"):
        onnx_backend.run_node(helper.make_node("Neg", ["x"], ["y"]), [days])


@pytest.mark.parametrize("opset", [None, 13, 17])
def test_a_node(opset: int | None) -> None:
    softmax = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    options = {} if opset is None else {"opset_version": opset}
    (y,) = onnx_backend.run_node(softmax, [X], **options)
    np.testing.assert_allclose(y, np.exp(X) / np.exp(X).sum(0), rtol=1e-6)


def test_the_opset_of_a_node_counts() -> None:
    """Before opset 13 Softmax took all axes from the given one on together."""
    softmax = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    (y,) = onnx_backend.run_node(softmax, X, opset_version=11)
    np.testing.assert_allclose(y, np.exp(X) / np.exp(X).sum(), rtol=1e-6)


def test_nodes_with_inputs_and_outputs_left_out() -> None:
    clip = helper.make_node("Clip", ["x", "", "top"], ["y"])
    info = [(np.float32, (2, 2))]
    (y,) = onnx_backend.run_node(clip, [X, np.float32(2)], "cpu:0", info)
    np.testing.assert_array_equal(y, np.minimum(X, 2))


def test_a_value_decides_a_shape() -> None:
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    (y,) = onnx_backend.run_node(reshape, [X, np.array([-1])])
    assert y.shape == (4,)
    with pytest.raises(MalformedModel, match="Reshape"):
        onnx_backend.run_node(reshape, [X, np.array([3, -1])])


def test_functions_of_onnx_are_nodes_too() -> None:
    node = helper.make_node("Celu", ["x"], ["y"], alpha=2.0)
    (y,) = onnx_backend.run_node(node, {"x": X})
    np.testing.assert_allclose(y, np.where(X > 0, X, 2 * np.expm1(X / 2)), rtol=1e-5)


def test_a_node_with_too_few_inputs() -> None:
    with pytest.raises(FeedError, match="1 inputs for a node of 2"):
        onnx_backend.run_node(helper.make_node("Add", ["a", "b"], ["c"]), [X])
