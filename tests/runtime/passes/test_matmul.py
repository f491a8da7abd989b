"""Biases and what follows, in the products before them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime import passes
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes.matmul import fuse_bias
from crossdock.runtime.tensor import Array

Builder = GraphBuilder


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def built(after: Callable[[Builder, Operand, Operand], Operand]) -> Graph:
    b = GraphBuilder("after")
    x, r = b.input("x", (2, 3, 8)), b.input("r", (2, 3, 10))
    return b.build({"y": after(b, b.matmul(x, b.constant(drawn(8, 10))), r)})


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def bias(b: Builder, *shape: int) -> Operand:
    return b.constant(drawn(*shape, seed=1))


def erf_gelu(b: Builder, x: Operand) -> Operand:
    inner = b.erf(b.div(x, b.constant(np.float32(np.sqrt(2)))))
    more = b.add(inner, b.constant(np.float32(1)))
    return b.mul(b.mul(x, more), b.constant(np.float32(0.5)))


FUSED: dict[str, Callable[[Builder, Operand, Operand], Operand]] = {
    "bias": lambda b, p, _r: b.add(bias(b, 10), p),
    "bias of a batch": lambda b, p, _r: b.add(p, bias(b, 1, 1, 10)),
    "gelu": lambda b, p, _r: erf_gelu(b, b.add(p, bias(b, 10))),
    "residual": lambda b, p, r: b.add(r, b.add(p, bias(b, 10))),
    "residual alone": lambda b, p, r: b.sub(r, p),
    "tanh": lambda b, p, _r: b.tanh(p),
}


@pytest.mark.parametrize("device", ["cpu:0", "opencl:0"])
@pytest.mark.parametrize("name", FUSED)
def test_one_node_with_the_same_answer(name: str, device: str) -> None:
    graph = built(FUSED[name])
    fused = passes.run(graph)
    assert ops(fused) == ["fused_matmul"]
    feeds = {"x": drawn(2, 3, 8, seed=2), "r": drawn(2, 3, 10, seed=3)}
    feeds = {key: feeds[key] for key in graph.inputs}
    want = evaluate(graph, feeds)["y"]
    np.testing.assert_allclose(evaluate(fused, feeds)["y"], want, rtol=1e-5, atol=1e-6)
    if device not in {d.id for d in xd.devices()}:
        pytest.skip("no OpenCL device here")
    with xd.compile(graph, device, measure=False) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], want, rtol=1e-4, atol=1e-5)
        assert not session.receipt.notes


STAYS: dict[str, Callable[[Builder, Operand, Operand], Operand]] = {
    "two readers": lambda b, p, r: b.mul(b.add(p, bias(b, 10)), b.sub(p, r)),
    "a column": lambda b, p, _r: b.add(p, bias(b, 3, 1)),
    "a number": lambda b, p, _r: b.add(p, bias(b)),
    "a larger result": lambda b, p, _r: b.add(p, bias(b, 4, 1, 1, 10)),
    "no constant": lambda b, p, _r: b.add(p, b.input("c", (10,))),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_bias_stays(name: str) -> None:
    graph = built(STAYS[name])
    assert ops(fuse_bias(graph)) == ops(graph)


def test_nodes_and_results_that_must_stay_stay() -> None:
    graph = built(FUSED["bias"])
    for node in graph.nodes:
        assert ops(fuse_bias(graph, frozenset({node.name}))) == ["matmul", "add"]
    b = GraphBuilder("both")
    product = b.matmul(b.input("x", (2, 8)), b.constant(drawn(8, 10)))
    graph = b.build({"y": b.add(product, bias(b, 10)), "raw": product})
    assert ops(fuse_bias(graph)) == ["matmul", "add"]


def test_a_product_without_a_constant_stays() -> None:
    b = GraphBuilder("free")
    product = b.matmul(b.input("x", (2, 8)), b.input("w", (8, 10)))
    graph = b.build({"y": b.add(product, bias(b, 10))})
    assert ops(fuse_bias(graph)) == ["matmul", "add"]
