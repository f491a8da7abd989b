"""The nine models of the onnx wheel with random weights, through sessions, beside onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models import light, real

QUICK = {("squeezenet", "cpu:0"), ("shufflenet", "cpu:0")}


@pytest.mark.parametrize(
    ("name", "where"),
    [
        pytest.param(n, where, marks=() if (n, where) in QUICK else pytest.mark.slow)
        for n in light.NAMES
        for where in ("cpu:0", "opencl:0")
    ],
)
def test_outputs_are_onnxruntimes(name: str, where: str) -> None:
    model = light.with_weights(name)
    graph = real.xd.load(model)
    (entry,) = graph.inputs
    picture = np.random.default_rng(1).uniform(-1, 1, (1, 3, 224, 224)).astype(np.float32)
    want = real.peer(model.SerializeToString(), {entry: picture})
    with real.compiled(graph, where) as session:
        found = session.run({entry: picture})
    for output, (_, relative) in real.errors(found, want).items():
        assert relative < 5e-5, (output, relative)
