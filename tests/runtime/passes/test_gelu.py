"""The Gaussian error linear unit, written out by exporters, as one op."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from crossdock.kernels.reference import evaluate
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes.gelu import fuse_gelu

Builder = GraphBuilder
ROOT = np.float32(np.sqrt(2))


def one(b: Builder, number: float) -> Operand:
    return b.constant(np.float32(number))


def more(b: Builder, x: Operand) -> Operand:
    return b.add(b.erf(b.div(x, one(b, ROOT))), one(b, 1))


WRITTEN: dict[str, Callable[[Builder, Operand], Operand]] = {
    "half last": lambda b, x: b.mul(b.mul(x, more(b, x)), one(b, 0.5)),
    "halved by division": lambda b, x: b.div(b.mul(more(b, x), x), one(b, 2)),
    "half of x": lambda b, x: b.mul(b.mul(x, one(b, 0.5)), more(b, x)),
    "half of the sum": lambda b, x: b.mul(x, b.mul(one(b, 0.5), more(b, x))),
    "root as a factor": lambda b, x: b.mul(
        b.mul(x, one(b, 0.5)), b.add(one(b, 1), b.erf(b.mul(x, one(b, np.sqrt(0.5)))))
    ),
}
OTHERS: dict[str, Callable[[Builder, Operand], Operand]] = {
    "another root": lambda b, x: b.mul(
        b.mul(x, b.add(b.erf(b.div(x, one(b, 1.5))), one(b, 1))), one(b, 0.5)
    ),
    "no half": lambda b, x: b.mul(b.mul(x, more(b, x)), one(b, 0.6)),
    "another factor": lambda b, x: b.mul(b.mul(b.relu(x), more(b, x)), one(b, 0.5)),
    "minus one": lambda b, x: b.mul(
        b.mul(x, b.sub(b.erf(b.div(x, one(b, ROOT))), one(b, 1))), one(b, 0.5)
    ),
    "read twice": lambda b, x: b.add((m := more(b, x)), b.mul(b.mul(x, m), one(b, 0.5))),
}


def built(written: Callable[[Builder, Operand], Operand]) -> Graph:
    b = GraphBuilder("gelu")
    return b.build({"y": written(b, b.input("x", (3, 7)))})


@pytest.mark.parametrize("name", WRITTEN)
def test_every_way_of_writing_it_is_one_op(name: str) -> None:
    graph = built(WRITTEN[name])
    fused = fuse_gelu(graph).check()
    assert [node.op for node in fused.nodes] == ["gelu"]
    feeds = {"x": np.linspace(-8, 8, 21, dtype=np.float32).reshape(3, 7)}
    want = evaluate(graph, feeds)["y"]
    np.testing.assert_allclose(evaluate(fused, feeds)["y"], want, rtol=1e-5, atol=1e-6)
    for node in graph.nodes:
        kept = fuse_gelu(graph, frozenset({node.name})).check()
        assert node.name in {n.name for n in kept.nodes}


@pytest.mark.parametrize("name", OTHERS)
def test_other_chains_stay(name: str) -> None:
    graph = built(OTHERS[name])
    assert fuse_gelu(graph) is graph
