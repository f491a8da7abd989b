"""Quantised models as onnxruntime's tools make them, of models with random weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import light
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
IMAGES = 2
"""Random images that the ranges of activations are taken from."""


def weighted(name: str) -> Any:
    """A light model of opset 13 with random weights, as onnxruntime's tools take it."""
    model = light.with_weights(name, opset=13)
    known = {tensor.name for tensor in model.graph.initializer}
    for value in [v for v in model.graph.input if v.name in known]:
        model.graph.input.remove(value)  # an initializer that is an input is not constant
    for node in model.graph.node:
        if node.op_type == "Sum" and len(node.input) == 2:
            node.op_type = "Add"  # the tools quantise no Sum
    model.ir_version = 8
    return model


def quantised_static(model: Any, form: str, folder: Path) -> bytes:
    """A float model quantised to uint8 activations and int8 weights, one scale a channel.

    ``form`` is ``qdq`` or ``qoperator``. Batch normalisations are folded first.
    """
    import onnx
    import onnxruntime as ort
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: Iterator[dict[str, Array]]) -> None:
            self._feeds = feeds

        def get_next(self) -> dict[str, Array] | None:
            return next(self._feeds, None)

    ort.set_default_logger_severity(3)
    plain, folded, made = (folder / f"{part}.onnx" for part in ("plain", "folded", "made"))
    onnx.save(model, plain)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    session = ort.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = ({i.name: _drawn(rng, i) for i in session.get_inputs()} for _ in range(IMAGES))
    quantization.quantize_static(
        str(folded),
        str(made),
        Images(feeds),
        quant_format={
            "qdq": quantization.QuantFormat.QDQ,
            "qoperator": quantization.QuantFormat.QOperator,
        }[form],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return made.read_bytes()


def _drawn(rng: np.random.Generator, value: Any) -> Array:
    """Random numbers for an input, or random words."""
    dims = [int(d) for d in value.shape]
    if value.type == "tensor(int64)":
        return rng.integers(0, WORDS, dims)
    return rng.standard_normal(dims, np.float32)


def quantised(name: str, form: str) -> bytes:
    """A light model, quantised; see ``quantised_static``."""
    with tempfile.TemporaryDirectory() as folder:
        return quantised_static(weighted(name), form, Path(folder))


# --- a transformer --------------------------------------------------------------------------------

HIDDEN, HEADS, INNER, WORDS = 384, 12, 1536, 2048
"""The sizes of MiniLM's layers, and a small vocabulary."""


def encoder(layers: int = 6, length: int = 128, batch: int = 1) -> Any:
    """An encoder of MiniLM's shape with random weights, as exporters write it (opset 17)."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    tensors: list[Any] = []

    def tensor(name: str, array: Array) -> str:
        tensors.append(numpy_helper.from_array(array, name))
        return name

    def drawn(name: str, *shape: int) -> str:
        scale = 1 / np.sqrt(shape[0])
        return tensor(name, (rng.standard_normal(shape, np.float32) * scale).astype(np.float32))

    def node(op: str, inputs: list[str], out: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [out], name=out, **attrs))
        return out

    def linear(x: str, name: str, size: int, inner: int) -> str:
        made = node("MatMul", [x, drawn(f"{name}.w", inner, size)], f"{name}.matmul")
        return node("Add", [made, drawn(f"{name}.b", size)], name)

    def norm(x: str, name: str) -> str:
        gain = tensor(f"{name}.g", np.ones(HIDDEN, np.float32))
        return node("LayerNormalization", [x, gain, drawn(f"{name}.b", HIDDEN)], name, axis=-1)

    def split(x: str, name: str, order: list[int]) -> str:
        heads = node("Reshape", [x, "heads"], f"{name}.heads")
        return node("Transpose", [heads], name, perm=order)

    size = HIDDEN // HEADS
    tensor("heads", np.array([batch, length, HEADS, size], np.int64))
    tensor("joined", np.array([batch, length, HIDDEN], np.int64))
    for name, value in (("size", np.sqrt(size)), ("two", np.sqrt(2)), ("one", 1), ("half", 0.5)):
        tensor(name, np.array(value, np.float32))
    x = norm(node("Gather", [drawn("words", WORDS, HIDDEN), "ids"], "embedded"), "first")
    for i in range(layers):
        q, k, v = (linear(x, f"{i}.{part}", HIDDEN, HIDDEN) for part in "qkv")
        q, v = (split(part, f"{part}.split", [0, 2, 1, 3]) for part in (q, v))
        scores = node("MatMul", [q, split(k, f"{k}.split", [0, 2, 3, 1])], f"{i}.scores")
        scores = node("Div", [scores, "size"], f"{i}.scaled")
        seen = node("MatMul", [node("Softmax", [scores], f"{i}.soft", axis=-1), v], f"{i}.seen")
        seen = node("Transpose", [seen], f"{i}.seen.t", perm=[0, 2, 1, 3])
        seen = linear(node("Reshape", [seen, "joined"], f"{i}.joined"), f"{i}.o", HIDDEN, HIDDEN)
        x = norm(node("Add", [seen, x], f"{i}.add"), f"{i}.norm")
        up = linear(x, f"{i}.up", INNER, HIDDEN)
        erf = node("Erf", [node("Div", [up, "two"], f"{i}.div")], f"{i}.erf")
        gate = node("Mul", [up, node("Add", [erf, "one"], f"{i}.plus")], f"{i}.gate")
        down = linear(node("Mul", [gate, "half"], f"{i}.gelu"), f"{i}.down", HIDDEN, INNER)
        x = norm(node("Add", [down, x], f"{i}.add2"), f"{i}.norm2")
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, length])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [batch, length, HIDDEN])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantised_dynamic(model: Any) -> bytes:
    """A float model whose products with weights are quantised at run time, by int8 weights."""
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        plain, made = Path(folder) / "plain.onnx", Path(folder) / "made.onnx"
        onnx.save(model, plain)
        quantization.quantize_dynamic(
            str(plain), str(made), per_channel=True, weight_type=quantization.QuantType.QInt8
        )
        return made.read_bytes()
