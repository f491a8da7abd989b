"""Graphs that onnxruntime's tools quantise, through sessions, beside onnxruntime's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.reference import evaluate

onnx = pytest.importorskip("onnx", reason="the models are onnx's")
ort = pytest.importorskip("onnxruntime", reason="its tools quantise the models")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after the skip

from tests.kernels.grid_run import opencl_ids, opened  # noqa: E402

SIZE, CLASSES = 20, 10
LAST = 2.0
"""Steps of the last scale between answers: one of the last rounding, one of all before it."""


class Builder:
    """Nodes and tensors of a model with random weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def weights(self, *shape: int) -> str:
        scale = np.sqrt(2 / max(1, int(np.prod(shape[1:]))))
        array = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        name = f"w{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def model(self, output: str, x: list[int], y: list[int]) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, y)],
            self.tensors,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def picture_model() -> Any:
    """Every kind of convolution, a residual, a pool, a concatenation, and a product."""
    b = Builder()
    x = b.add("Conv", "x", b.weights(16, 3, 3, 3), b.weights(16), pads=[1] * 4, strides=[2, 2])
    x = b.add("Relu", x)
    y = b.add("Conv", x, b.weights(16, 1, 3, 3), b.weights(16), pads=[1] * 4, group=16)
    y = b.add("Conv", b.add("Relu", y), b.weights(16, 16, 1, 1), b.weights(16))
    x = b.add("Relu", b.add("Add", x, y))
    x = b.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    left = b.add("Relu", b.add("Conv", x, b.weights(8, 16, 1, 1), b.weights(8)))
    right = b.add("Conv", x, b.weights(8, 8, 3, 3), b.weights(8), pads=[1] * 4, group=2)
    x = b.add("Concat", left, b.add("Relu", right), axis=1)
    x = b.add("Flatten", b.add("GlobalAveragePool", x))
    x = b.add("Gemm", x, b.weights(CLASSES, 16), b.weights(CLASSES), transB=1)
    return b.model(x, [1, 3, SIZE, SIZE], [1, CLASSES])


def rows_model() -> Any:
    """Products of matrices with an addend and a nonlinear function between them."""
    b = Builder()
    x = b.add("Add", b.add("MatMul", "x", b.weights(32, 48)), b.weights(48))
    x = b.add("Mul", x, b.add("Sigmoid", x))
    x = b.add("Add", b.add("MatMul", x, b.weights(48, 24)), b.weights(24))
    return b.model(x, [1, 7, 32], [1, 7, 24])


MODELS = {"picture": picture_model, "rows": rows_model}


def feeds(model: Any, seed: int) -> dict[str, Any]:
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(seed).standard_normal(dims).astype(np.float32)}


def answer(model: bytes, given: dict[str, Any]) -> Any:
    """What onnxruntime makes of the graph as it is written."""
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]


def meaning(model: bytes, given: dict[str, Any]) -> Any:
    """What the graph as it is loaded means, its integers exact."""
    (want,) = evaluate(xd.load(model), given).values()
    return want


def run(model: bytes, given: dict[str, Any], device: str = "cpu:0") -> tuple[Any, set[str]]:
    """The answer and the ops, all of them on one device by kernels of their own."""
    with xd.compile(xd.load(model), device, measure=False) as session:
        (got,) = session.run(given).values()
        steps = session.plan.launches()
        assert {step.device for step in steps} == {device}
        assert "emulated" not in {step.kernel for step in steps}
        return got, {step.op for step in steps}


def static(
    model: Any, folder: Path, form: str, types: tuple[str, str], *, narrow: bool = False
) -> bytes:
    """The quantised graph; its weights have seven bits where ``narrow``."""
    from onnxruntime import quantization as tools

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [feeds(model, seed) for seed in range(2)]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    plain, made = folder / "plain.onnx", folder / "made.onnx"
    onnx.save(model, plain)
    kinds = [tools.QuantType.from_string(name) for name in types]
    tools.quantize_static(
        str(plain), str(made), Reader(), quant_format=tools.QuantFormat.from_string(form),
        per_channel=True, activation_type=kinds[0], weight_type=kinds[1],
        reduce_range=narrow,
    )  # fmt: skip
    return made.read_bytes()


def last_step(model: bytes) -> float:
    """The scale of what is dequantised last."""
    graph = onnx.load_from_string(model).graph
    found = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    last = [n for n in graph.node if n.op_type == "DequantizeLinear"][-1]
    return float(found[last.input[1]].reshape(-1)[0])


TYPES = [("QUInt8", "QInt8"), ("QUInt8", "QUInt8"), ("QInt8", "QInt8")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("name", MODELS)
def test_static(name: str, form: str, types: tuple[str, str], tmp_path: Path) -> None:
    """onnxruntime's sums of unsigned times signed bytes saturate on processors without VNNI.

    So it is asked where weights have seven bits; what all graphs mean is asked of the reference.
    """
    model = MODELS[name]()
    given = feeds(model, 5)
    expected = (
        {"quantized_conv2d", "quantized_matmul"} if name == "picture" else {"quantized_matmul"}
    )
    mixed = types == ("QUInt8", "QInt8")
    for narrow in (False, True) if mixed else (False,):
        quantised = static(model, tmp_path, form, types, narrow=narrow)
        got, ops = run(quantised, given)
        wanted = [meaning(quantised, given)]
        wanted += [answer(quantised, given)] if narrow or not mixed else []
        for want in wanted:
            assert np.abs(got - want).max() <= LAST * last_step(quantised) * (1 + 1e-5)
            assert np.abs(want).max() > 20 * last_step(quantised)
        assert expected <= ops


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("device", opencl_ids())
def test_static_on_opencl(device: str, form: str, tmp_path: Path) -> None:
    opened(device)
    model = picture_model()
    given = feeds(model, 5)
    quantised = static(model, tmp_path, form, TYPES[0])
    got, ops = run(quantised, given, device)
    assert {"quantized_conv2d", "quantized_matmul"} <= ops
    np.testing.assert_array_equal(got, run(quantised, given)[0])
    assert np.abs(got).max() > 20 * last_step(quantised)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", opencl_ids())
def test_dynamic_on_opencl(device: str, tmp_path: Path) -> None:
    from onnxruntime import quantization as tools

    opened(device)
    model = rows_model()
    plain, made = tmp_path / "plain.onnx", tmp_path / "made.onnx"
    onnx.save(model, plain)
    tools.quantize_dynamic(str(plain), str(made), weight_type=tools.QuantType.QInt8)
    given, quantised = feeds(model, 5), made.read_bytes()
    got, ops = run(quantised, given, device)
    assert "quantized_matmul" in ops
    want = meaning(quantised, given)
    error = np.abs(want - answer(model.SerializeToString(), given)).max()
    assert np.abs(got - want).max() <= 0.1 * error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["QInt8", "QUInt8"])
def test_dynamic(weights: str, tmp_path: Path) -> None:
    from onnxruntime import quantization as tools

    model = rows_model()
    plain, made = tmp_path / "plain.onnx", tmp_path / "made.onnx"
    onnx.save(model, plain)
    given = feeds(model, 5)
    real = answer(model.SerializeToString(), given)
    kind = tools.QuantType.from_string(weights)
    for narrow in (False, True) if weights == "QInt8" else (False,):  # as in test_static
        tools.quantize_dynamic(str(plain), str(made), weight_type=kind, reduce_range=narrow)
        quantised = made.read_bytes()
        got, ops = run(quantised, given)
        wanted = [meaning(quantised, given)]
        wanted += [answer(quantised, given)] if narrow or weights != "QInt8" else []
        assert "quantized_matmul" in ops
        for want in wanted:
            error = np.abs(want - real).max()
            assert np.abs(got - want).max() <= 0.1 * error
            assert np.abs(got - real).max() <= 1.1 * error
