"""Fusing what follows a convolution into it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes.epilogue import fuse_epilogue
from crossdock.runtime.passes.fuse import fuse_elementwise
from crossdock.runtime.tensor import Array


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def built(after: Callable[[GraphBuilder, Operand, Operand], Operand], *, size: int = 9) -> Graph:
    b = GraphBuilder("after")
    x, r = b.input("x", (2, 8, size, size)), b.input("r", (2, 10, size, size))
    w, bias = b.constant(drawn(10, 8, 3, 3)), b.constant(drawn(10, seed=1))
    conv = b.conv2d(x, w, bias=bias, padding=[1, 1, 1, 1])
    return b.build({"y": after(b, conv, r)})


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def _six(b: GraphBuilder) -> Operand:
    return b.constant(np.full((1, 1, 1), 6, np.float32))


FUSED: dict[str, Callable[[GraphBuilder, Operand, Operand], Operand]] = {
    "relu": lambda b, c, _r: b.relu(c),
    "residual": lambda b, c, r: b.relu(b.add(r, c)),
    "twice": lambda b, c, _r: b.mul(c, b.sigmoid(c)),
    "numbers": lambda b, c, r: b.sub(b.div(b.add(c, b.constant(np.float32(3))), _six(b)), r),
    "reversed": lambda b, c, r: b.sub(r, c),
}


@pytest.mark.parametrize("name", FUSED)
def test_one_node_with_the_same_answer(name: str) -> None:
    graph = built(FUSED[name])
    fused = fuse_epilogue(fuse_elementwise(graph))
    if name != "twice":  # two readers of the convolution
        assert ops(fused) == ["fused_conv2d"]
    feeds = {"x": drawn(2, 8, 9, 9, seed=2), "r": drawn(2, 10, 9, 9, seed=3)}
    feeds = {key: feeds[key] for key in graph.inputs}
    for want, got in zip(
        evaluate(graph, feeds).values(), evaluate(fused, feeds).values(), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_what_must_stay_stays() -> None:
    def both(b: GraphBuilder, c: Operand, r: Operand) -> Operand:
        return b.add(b.relu(c), b.mul(c, r))  # two readers

    def other_shape(b: GraphBuilder, c: Operand, _r: Operand) -> Operand:
        return b.mul(c, b.input("s", (2, 10, 1, 1)))

    for after in (both, other_shape):
        assert "conv2d" in ops(fuse_epilogue(built(after)))
    graph = built(FUSED["relu"])
    for node in graph.nodes:
        assert "conv2d" in ops(fuse_epilogue(graph, frozenset({node.name})))


def test_the_result_of_the_graph_is_kept() -> None:
    b = GraphBuilder("two")
    conv = b.conv2d(b.input("x", (1, 8, 5, 5)), b.constant(drawn(8, 8, 1, 1)))
    graph = b.build({"y": b.relu(conv), "raw": conv})
    assert "conv2d" in ops(fuse_epilogue(graph))


@pytest.mark.parametrize("device", ["cpu:0", "opencl:0"])
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("size", [9, 24])
def test_devices_agree(device: str, name: str, size: int) -> None:
    if device not in {d.id for d in xd.devices()}:
        pytest.skip("no OpenCL device here")
    graph = built(FUSED[name], size=size)
    feeds = {"x": drawn(2, 8, size, size, seed=2), "r": drawn(2, 10, size, size, seed=3)}
    feeds = {key: feeds[key] for key in graph.inputs}
    want = evaluate(graph, feeds)["y"]
    with xd.compile(graph, device, measure=False) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], want, rtol=1e-4, atol=1e-4)
