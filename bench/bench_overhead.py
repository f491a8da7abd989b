"""What the runtime itself costs: a node, a run, an import."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import inputs
import numpy as np
import peers
import pytest

import crossdock as xd

NODES = 1000


def add_chain(nodes: int) -> Any:
    """X + c + c + ... on 16 floats."""
    b = xd.GraphBuilder()
    x = b.input("x", (16,))
    c = b.constant(np.ones(16, np.float32))
    for _ in range(nodes):
        x = b.add(x, c)
    return b.build({"y": x})


def onnx_add_chain(nodes: int) -> bytes:
    """The same as an ONNX model."""
    from onnx import TensorProto, helper

    steps = [helper.make_node("Add", [f"v{i}", "c"], [f"v{i + 1}"]) for i in range(nodes)]
    graph = helper.make_graph(
        steps,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [16])],
        [helper.make_tensor_value_info(f"v{nodes}", TensorProto.FLOAT, [16])],
        [helper.make_tensor("c", TensorProto.FLOAT, [16], [1.0] * 16)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.benchmark(group="overhead")
def test_node(versus: Any) -> None:
    """A chain of 1,000 tiny adds, nothing fused; onnxruntime with optimisation off."""
    feed = np.zeros(16, np.float32)
    others = {}
    if peers.installed("onnxruntime"):
        model = onnx_add_chain(NODES)
        others["onnxruntime"] = peers.onnxruntime(model, {"v0": feed}, 1, optimise=False)
    graph = add_chain(NODES)
    with xd.compile(graph, "cpu:0", threads=1, skip_passes=["fuse-elementwise"]) as session:
        assert len(session.plan.launches()) == NODES
        np.testing.assert_array_equal(session.run({"x": feed})["y"], np.full(16, NODES))
        versus(lambda: session.run({"x": feed}), others, rounds=50, nodes=NODES)


@pytest.mark.benchmark(group="overhead")
def test_run(versus: Any) -> None:
    """The fixed cost of a run: one tiny add."""
    feed = np.zeros(16, np.float32)
    others = {}
    if peers.installed("onnxruntime"):
        others["onnxruntime"] = peers.onnxruntime(onnx_add_chain(1), {"v0": feed}, 1)
    with xd.compile(add_chain(1), "cpu:0", threads=1) as session:
        versus(lambda: session.run({"x": feed}), others, rounds=200)


@pytest.mark.benchmark(group="overhead")
def test_receipt(versus: Any) -> None:
    """A run with its receipt read, of 1,000 tiny adds; beside it the run alone, and a profiled one.

    A receipt is there after every run; reading it makes it.
    """
    feed = {"x": np.zeros(16, np.float32)}
    with xd.compile(add_chain(NODES), "cpu:0", threads=1, skip_passes=["fuse-elementwise"]) as s:
        s.run(feed)
        assert len(s.receipt.ops) == NODES

        def with_receipt() -> None:
            s.run(feed)
            assert s.receipt.measured > 0

        others = {"the run alone": lambda: s.run(feed), "profiled": lambda: s.profile(feed)}
        versus(with_receipt, others, rounds=50, nodes=NODES)


@pytest.mark.benchmark(group="overhead")
def test_import(versus: Any) -> None:
    """`import crossdock` in a new process, beside `import numpy` alone."""

    def process(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    start = time.perf_counter()
    process("import numpy")
    assert time.perf_counter() > start
    versus(
        lambda: process("import crossdock"), {"numpy": lambda: process("import numpy")}, rounds=9
    )


@pytest.mark.benchmark(group="overhead")
def test_probe(versus: Any) -> None:
    """A quick probe, measured anew."""
    versus(lambda: xd.probe(quick=True, refresh=True), {}, rounds=2)


@pytest.mark.parametrize("devices", ["cpu:0", "auto"])
@pytest.mark.benchmark(group="overhead")
def test_new_shape(devices: str, versus: Any) -> None:
    """A first run at a new shape of a text recogniser: converted, planned and prepared anew.

    Beside it the same run at a shape that is known, and onnxruntime's at the new one. Kernels were
    measured at the first shape only; costs at the others are fitted.
    """
    path = inputs.model_path("rapidocr-rec")
    widths = iter(range(328, 2000, 8))
    feed = np.random.default_rng(0).random((1, 3, 48, 2000), dtype=np.float32)
    graph = xd.load(path)
    others = {}
    with xd.compile(graph, devices, shapes={"x": (1, 3, 48, 320)}) as session:
        session.run({"x": feed[..., :320]})
        others["a known shape"] = lambda: session.run({"x": feed[..., :320]})
        if peers.installed("onnxruntime"):
            fresh = iter(range(328, 2000, 8))
            run = peers.onnxruntime_any(path, 2)
            others["onnxruntime"] = lambda: run({"x": feed[..., : next(fresh)]})
        versus(
            lambda: session.run({"x": feed[..., : next(widths)]}),
            others,
            rounds=8,
            ops=len(session.plan.launches()),
        )
