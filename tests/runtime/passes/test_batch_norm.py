"""Batch normalisation by constants as a product and a sum."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.kernels.reference import evaluate
from crossdock.runtime import passes
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes.batch_norm import expand_batch_norm
from crossdock.runtime.tensor import Array


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def normalised(axis: int, *, gain: bool = True, fixed: bool = True) -> Graph:
    b = GraphBuilder("norm")
    x = b.input("x", (2, 5, 4, 6))
    n = (2, 5, 4, 6)[axis]
    mean = b.constant(drawn(n)) if fixed else b.input("mean", (n,))
    more = {"scale": b.constant(drawn(n, seed=2)), "bias": b.constant(drawn(n, seed=3))}
    variance = b.constant(np.abs(drawn(n, seed=1)) + 0.1)
    y = b.batch_normalization(x, mean, variance, axis=axis, epsilon=1e-3, **(more if gain else {}))
    return b.build({"y": b.relu(y)})


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("gain", [False, True])
def test_the_answer_is_the_same(axis: int, gain: bool) -> None:
    graph = normalised(axis, gain=gain)
    made = expand_batch_norm(graph).check()
    assert [n.op for n in made.nodes] == ["mul", "add", "relu"]
    feeds = {"x": drawn(2, 5, 4, 6, seed=9)}
    want, got = evaluate(graph, feeds)["y"], evaluate(made, feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_it_becomes_one_op_with_what_follows() -> None:
    assert [n.op for n in passes.run(normalised(1)).nodes] == ["fused"]
    assert len(passes.run(normalised(1), skip=["expand-batch-norm"]).nodes) == 2


def test_what_is_no_constant_stays() -> None:
    graph = normalised(1, fixed=False)
    assert expand_batch_norm(graph).nodes == graph.nodes
    name = normalised(1).nodes[0].name
    assert expand_batch_norm(normalised(1), frozenset({name})).nodes[0].op == "batch_normalization"
