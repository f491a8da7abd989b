"""What the runtime itself costs: a node, a run, an import."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import inputs
import numpy as np
import peers
import pytest

import crossdock as xd

NODES = 1000
ROW = 20
"""Runs one after the other in a round, as in a loop of a program: after another runtime's round
the interpreter's own code has left the caches."""


def in_a_row(run: Any) -> Any:
    """``ROW`` runs as one call."""

    def runs() -> None:
        for _ in range(ROW):
            run()

    return runs


def add_chain(nodes: int) -> Any:
    """X + c + c + ... on 16 floats."""
    b = xd.GraphBuilder()
    x = b.input("x", (16,))
    c = b.constant(np.ones(16, np.float32))
    for _ in range(nodes):
        x = b.add(x, c)
    return b.build({"y": x})


def onnx_chain(nodes: int, op: str, constant: Any) -> bytes:
    """An ONNX model that applies an operator with a constant again and again."""
    from onnx import TensorProto, helper, numpy_helper

    steps = [helper.make_node(op, [f"v{i}", "c"], [f"v{i + 1}"]) for i in range(nodes)]
    graph = helper.make_graph(
        steps,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, constant.shape)],
        [helper.make_tensor_value_info(f"v{nodes}", TensorProto.FLOAT, constant.shape)],
        [numpy_helper.from_array(constant, "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def onnx_add_chain(nodes: int) -> bytes:
    """``add_chain`` as an ONNX model."""
    return onnx_chain(nodes, "Add", np.ones(16, np.float32))


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
        many = {name: in_a_row(run) for name, run in others.items()}
        ours = in_a_row(lambda: session.run({"x": feed}))
        versus(ours, many, rounds=50, nodes=NODES, runs=ROW)


def matmul_chain(nodes: int) -> Any:
    """X @ c @ c @ ... of 4x4 matrices."""
    b = xd.GraphBuilder()
    x = b.input("x", (4, 4))
    c = b.constant(np.eye(4, dtype=np.float32))
    for _ in range(nodes):
        x = b.matmul(x, c)
    return b.build({"y": x})


@pytest.mark.benchmark(group="overhead")
def test_matmul_node(versus: Any) -> None:
    """A chain of 1,000 products of 4x4 matrices; onnxruntime with optimisation off."""
    feed = np.arange(16, dtype=np.float32).reshape(4, 4)
    others = {}
    if peers.installed("onnxruntime"):
        model = onnx_chain(NODES, "MatMul", np.eye(4, dtype=np.float32))
        others["onnxruntime"] = peers.onnxruntime(model, {"v0": feed}, 1, optimise=False)
    with xd.compile(matmul_chain(NODES), "cpu:0", threads=1) as session:
        assert len(session.plan.launches()) == NODES
        np.testing.assert_array_equal(session.run({"x": feed})["y"], feed)
        many = {name: in_a_row(run) for name, run in others.items()}
        ours = in_a_row(lambda: session.run({"x": feed}))
        versus(ours, many, rounds=50, nodes=NODES, runs=ROW)


def product(side: int) -> tuple[Any, bytes, Any]:
    """A product of square matrices, as a graph and as an ONNX model, and what it is fed."""
    rng = np.random.default_rng(0)
    weight, feed = (rng.random((side, side), dtype=np.float32) for _ in range(2))
    b = xd.GraphBuilder()
    graph = b.build({"y": b.matmul(b.input("x", (side, side)), b.constant(weight))})
    return graph, onnx_chain(1, "MatMul", weight), feed


@pytest.mark.parametrize("callers", [1, 2, 4, 16])
@pytest.mark.parametrize(("side", "runs"), [(4, 16000), (192, 1600)], ids=["4x4", "192x192"])
@pytest.mark.benchmark(group="overhead")
def test_callers(side: int, runs: int, callers: int, versus: Any) -> None:
    """Runs of one session, shared by so many threads; onnxruntime's beside it.

    A run is a product of matrices. Callers scale where a run's time in machine code, which holds no
    lock, does; runs of some microseconds go on one after the other, without waiting for each other.
    """
    graph, model, feed = product(side)

    def shared(run: Any) -> None:
        def some(_: int) -> None:
            for _ in range(runs // callers):
                run()

        list(threads.map(some, range(callers)))

    others = {}
    if peers.installed("onnxruntime"):
        peer = peers.onnxruntime(model, {"v0": feed}, 1)
        others["onnxruntime"] = lambda: shared(peer)
    with ThreadPoolExecutor(callers) as threads, xd.compile(graph, "cpu:0", threads=1) as session:
        versus(lambda: shared(lambda: session.run({"x": feed})), others, rounds=5, runs=runs)


@pytest.mark.benchmark(group="overhead")
def test_run(versus: Any) -> None:
    """The fixed cost of a run: one tiny add."""
    feed = np.zeros(16, np.float32)
    others = {}
    if peers.installed("onnxruntime"):
        others["onnxruntime"] = peers.onnxruntime(onnx_add_chain(1), {"v0": feed}, 1)
    with xd.compile(add_chain(1), "cpu:0", threads=1) as session:
        many = {name: in_a_row(run) for name, run in others.items()}
        versus(in_a_row(lambda: session.run({"x": feed})), many, rounds=200, runs=ROW)


@pytest.mark.benchmark(group="overhead")
@pytest.mark.parametrize("device", ["cpu:0", "opencl:0"])
def test_run_that_keeps(device: str, versus: Any) -> None:
    """A run of one tiny add whose output stays and is fed to the next; beside it, host to host.

    With ``donate`` the next output is written to its memory, and nothing is allocated.
    """
    if device not in {info.id for info in xd.devices()}:
        pytest.skip(f"{device} is not here")
    feed, graph = np.zeros(16, np.float32), add_chain(1)
    rules = xd.Constraints(pin={"*": device})
    with (
        xd.compile(graph, ["cpu:0", device], constraints=rules, threads=1) as host,
        xd.compile(
            graph,
            ["cpu:0", device],
            constraints=rules,
            threads=1,
            feeds_on=device,
            outputs="device",
        ) as session,
    ):
        state = [session.run({"x": feed})["y"]]

        def kept(**options: Any) -> None:
            state[0] = session.run({"x": state[0]}, **options)["y"]

        others = {
            "host to host": in_a_row(lambda: host.run({"x": feed})),
            "donated": in_a_row(lambda: kept(donate=("x",))),
        }
        versus(in_a_row(kept), others, rounds=100, runs=ROW)


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
