"""The nine models of the onnx wheel, whose weights are fills: at any batch, with random weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

NAMES = (
    "resnet50",
    "squeezenet",
    "densenet121",
    "shufflenet",
    "inception_v1",
    "inception_v2",
    "bvlc_alexnet",
    "zfnet512",
    "vgg19",
)


def path(name: str) -> Path:
    """A light model of the onnx wheel."""
    found = importlib.util.find_spec("onnx")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "backend/test/data/light" / f"light_{name}.onnx"


def model(name: str, batch: int) -> bytes:
    """A light model's file for a batch; the models are for one of 1.

    The batch stands in the inputs and outputs, and first in the constant shapes of ``Reshape``.
    """
    if batch == 1:
        return path(name).read_bytes()
    import onnx
    from onnx import numpy_helper

    loaded = onnx.load(path(name))
    graph = loaded.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims:
            dims[0].dim_value = batch
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in (weights[name] for name in shapes if name in weights):
        shape = numpy_helper.to_array(tensor).copy()
        if shape.size and shape[0] == 1:
            shape[0] = batch
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    del graph.value_info[:]
    return bytes(loaded.SerializeToString())


def with_weights(name: str, opset: int | None = None) -> Any:
    """A model with weights of a sound size (He et al. 2015, equation 10) for its fills.

    In the form of ``opset``, where one is given.
    """
    import onnx
    import onnx.version_converter
    from onnx import numpy_helper

    model = onnx.load(path(name))
    if opset is not None:
        model = onnx.version_converter.convert_version(model, opset)
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
    return model
