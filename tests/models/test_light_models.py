"""The nine models of the onnx wheel with random weights, through sessions, beside onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.models import real

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
NAMES = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet",
    "squeezenet", "vgg19", "zfnet512",
)  # fmt: skip
QUICK = {("squeezenet", "cpu:0"), ("shufflenet", "cpu:0")}


def with_weights(name: str) -> Any:
    """The model with weights of a sound size (He et al. 2015, equation 10) for its fills."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
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


@pytest.mark.parametrize(
    ("name", "where"),
    [
        pytest.param(n, where, marks=() if (n, where) in QUICK else pytest.mark.slow)
        for n in NAMES
        for where in ("cpu:0", "opencl:0")
    ],
)
def test_outputs_are_onnxruntimes(name: str, where: str) -> None:
    model = with_weights(name)
    graph = real.xd.load(model)
    (entry,) = graph.inputs
    picture = np.random.default_rng(1).uniform(-1, 1, (1, 3, 224, 224)).astype(np.float32)
    want = real.peer(model.SerializeToString(), {entry: picture})
    with real.compiled(graph, where) as session:
        found = session.run({entry: picture})
    for output, (_, relative) in real.errors(found, want).items():
        assert relative < 5e-5, (output, relative)
