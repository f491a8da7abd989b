"""What a session leaves behind: no cycle of references keeps weights until they are collected."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime.graph import Graph


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is collected but what nothing refers to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def built(_: Path) -> Graph:
    b = xd.GraphBuilder()
    w = np.ones((8, 8), np.float32)
    w.flags.writeable = False
    return b.build({"y": b.relu(b.matmul(b.input("x", (4, 8)), b.constant(w)))})


def loaded(folder: Path) -> Graph:
    onnx = pytest.importorskip("onnx", reason="the model is made with it")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    w = onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    nodes = [make.make_node("MatMul", ["x", "w"], ["h"]), make.make_node("Relu", ["h"], ["y"])]
    x, y = (make.make_tensor_value_info(name, kind, [4, 8]) for name in "xy")
    path = folder / "model.onnx"
    onnx.save(make.make_model(make.make_graph(nodes, "m", [x], [y], [w])), path)
    graph = xd.load(path)
    assert isinstance(graph, Graph)
    return graph


@pytest.mark.parametrize("make", [built, loaded])
@pytest.mark.parametrize("submitted", [False, True])
def test_weights_go_with_the_session(
    make: Callable[[Path], Graph], submitted: bool, tmp_path: Path, no_collector: None
) -> None:
    graph = make(tmp_path)
    weights = [weakref.ref(array) for array in graph.constants.values()]
    assert weights
    with xd.compile(graph, "cpu:0", measure=False) as session:
        fed = {"x": np.ones((4, 8), np.float32)}
        made = session.submit(fed).result(60) if submitted else session.run(fed)
        assert made["y"][0, 0] == 8
    left = weakref.ref(session)
    del graph, session
    assert left() is None
    assert [array for array in weights if array() is not None] == []
