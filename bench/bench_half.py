"""Half-precision models on the processor beside the peers, which are given the same models."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import peers
import pytest
import quantised

import crossdock as xd

THREADS = (1, 2)
LIGHT = ("resnet50", "squeezenet", "densenet121", "inception_v2")


@functools.cache
def halved(name: str) -> bytes:
    """A light model in float16, its inputs and outputs too; weights are rounded."""
    import onnx
    from onnx import TensorProto, numpy_helper

    model = quantised.weighted(name)
    for i, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            model.graph.initializer[i].CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("threads", THREADS, ids=["1t", "2t"])
@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.benchmark(group="half-precision light models")
def test_light(name: str, threads: int, versus: Any) -> None:
    """A light model in float16; how far the outputs lie apart goes into the report."""
    model = halved(name)
    rng = np.random.default_rng(0)
    inputs = xd.load(model).inputs
    feeds = {n: rng.random(s.dims, np.float32).astype(np.float16) for n, s in inputs.items()}
    others = peers.all_peers(model, feeds, threads)
    with xd.compile(xd.load(model), "cpu:0", threads=threads) as session:
        got = next(iter(session.run(feeds).values())).astype(np.float64)
        predicted = session.estimate().seconds
        apart = max(
            (float(np.abs(got - run()[0].astype(np.float64)).max()) for run in others.values()),
            default=0.0,
        )
        versus(
            lambda: session.run(feeds),
            others,
            predicted_ms=round(predicted * 1e3, 3),
            largest_difference=f"{apart:.1e}",
            largest_output=f"{np.abs(got).max():.1e}",
        )
