"""Quantised models as onnxruntime's tools make them, of models with random weights."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
IMAGES = 2
"""Random images that the ranges of activations are taken from."""


def light_path(name: str) -> Path:
    """A light model of the onnx wheel."""
    found = importlib.util.find_spec("onnx")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "backend/test/data/light" / f"light_{name}.onnx"


def weighted(name: str) -> Any:
    """A light model, opset 13, with weights of a sound size (He et al. 2015, equation 10)."""
    import onnx
    import onnx.version_converter
    from onnx import numpy_helper

    model = onnx.version_converter.convert_version(onnx.load(light_path(name)), 13)
    rng = np.random.default_rng(0)
    shapes = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(d) for d in shapes[node.input[0]])
        if len(shape) < 2:
            array = rng.uniform(0.5, 1.5, shape)
        else:
            array = rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
        tensor = numpy_helper.from_array(array.astype(np.float32), node.output[0])
        model.graph.initializer.append(tensor)
    del model.graph.node[:]
    model.graph.node.extend(kept)
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
    inputs = {i.name: [int(d) for d in i.shape] for i in session.get_inputs()}
    rng = np.random.default_rng(1)
    feeds = (
        {name: rng.standard_normal(dims, np.float32) for name, dims in inputs.items()}
        for _ in range(IMAGES)
    )
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


def quantised(name: str, form: str) -> bytes:
    """A light model, quantised; see ``quantised_static``."""
    with tempfile.TemporaryDirectory() as folder:
        return quantised_static(weighted(name), form, Path(folder))
