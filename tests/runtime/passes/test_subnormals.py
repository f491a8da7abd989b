"""Subnormal weights of products, which processors multiply slowly."""

from __future__ import annotations

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime import passes
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.config import NOT_STRICT
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes.subnormals import flush_subnormals
from crossdock.runtime.tensor import Array

TINY = np.finfo(np.float32).tiny


def weights(*shape: int, scale: float = 1.0) -> Array:
    """Random ones, every third of them subnormal."""
    rng = np.random.default_rng(0)
    made = (rng.standard_normal(shape) * scale).astype(np.float32)
    small = (rng.standard_normal(shape) * 1e-39).astype(np.float32)
    return np.where(rng.random(shape) < 1 / 3, small, made)


def product(given: Array, *, also: bool = False) -> Graph:
    b = GraphBuilder("product")
    x, w = b.input("x", (3, given.shape[0])), b.constant(given)
    made = {"y": b.matmul(x, w)}
    return b.build(made | {"z": b.add(w, w)} if also else made)


def subnormal(graph: Graph, op: str) -> int:
    found = 0
    for node in graph.nodes:
        for value in node.operands if node.op == op else ():
            held = graph.constants.get(value, np.zeros(1, np.float32))
            found += int(((np.abs(held) < TINY) & (held != 0)).sum())
    return found


def test_products_lose_them() -> None:
    given = weights(16, 8)
    graph = product(given)
    assert subnormal(graph, "matmul") > 20
    flushed = flush_subnormals(graph).check()
    assert subnormal(flushed, "matmul") == 0
    held = flushed.constants[next(v for v in flushed.nodes[0].inputs if v in flushed.constants)]
    np.testing.assert_array_equal(held, np.where(np.abs(given) < TINY, 0, given))


def test_convolutions_lose_them() -> None:
    b = GraphBuilder("conv")
    x = b.input("x", (1, 4, 5, 5))
    graph = b.build({"y": b.conv2d(x, b.constant(weights(8, 4, 3, 3)))})
    assert subnormal(flush_subnormals(graph).check(), "conv2d") == 0


def test_what_else_reads_them_keeps_them() -> None:
    flushed = flush_subnormals(product(weights(16, 8), also=True)).check()
    assert subnormal(flushed, "matmul") == 0
    assert subnormal(flushed, "add") > 20


@pytest.mark.parametrize(
    "given",
    [weights(16, 8, scale=1e-38), np.zeros((16, 8), np.float32), np.ones((16, 8), np.float32)],
    ids=["all tiny", "zeros", "none"],
)
def test_others_stay(given: Array) -> None:
    graph = product(given)
    assert flush_subnormals(graph) is graph


def test_a_node_named_keeps_them() -> None:
    graph = product(weights(16, 8))
    assert flush_subnormals(graph, frozenset({graph.nodes[0].name})) is graph


@pytest.mark.parametrize("strict", [False, True])
def test_strict_sessions_keep_them(*, strict: bool) -> None:
    given, x = weights(16, 8), np.full((3, 16), 1e30, np.float32)
    with xd.compile(product(given), "cpu:0", strict=strict, measure=False) as session:
        assert ("flush-subnormals" in session.plan.passes) is not strict
        y = session.run({"x": x})["y"]
    np.testing.assert_allclose(y, x.astype(np.float64) @ given, rtol=1e-5)


def test_skipping_it_by_name_and_strictly_is_no_clash() -> None:
    assert set(NOT_STRICT) <= set(passes.PASSES)
    skip = [*NOT_STRICT, "fuse-bias"]
    with xd.compile(
        product(weights(16, 8)), "cpu:0", strict=True, skip_passes=skip, measure=False
    ) as session:
        assert not set(skip) & set(session.plan.passes)
