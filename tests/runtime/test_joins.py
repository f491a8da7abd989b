"""Concatenations whose parts are made in their place."""

from __future__ import annotations

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.costing import alias_roots
from crossdock.runtime.graph import Graph
from crossdock.runtime.joins import places
from crossdock.runtime.tensor import Array


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense(batch: int = 1, growth: int = 16, size: int = 4) -> Graph:
    """Three layers, each of which adds channels to all that there are."""
    b = GraphBuilder("dense")
    x: Operand = b.relu(b.input("x", (batch, 16, size, size)))
    for seed in range(3):
        w = b.constant(drawn(growth, x.shape[1], 1, 1, seed=seed))
        x = b.concat([x, b.conv2d(x, w)], 1)
    return b.build({"y": b.relu(x)})


def found(graph: Graph, session: xd.Session) -> dict[str, tuple[str, int]]:
    made = places(graph, session.plan.steps, "cpu:0", alias_roots(graph), 64)
    return {value: (place.within, place.offset) for value, place in made.items()}


def compiled(graph: Graph) -> xd.Session:
    skip = ("fuse-elementwise", "fuse-epilogue", "fold-affine", "fold-constants")
    return xd.compile(graph, "cpu:0", measure=False, skip_passes=skip)


def test_parts_within_parts_lie_in_the_outermost() -> None:
    graph = dense()
    with compiled(graph) as session:
        made = found(graph, session)
        concats = [n.outputs[0] for n in graph.nodes if n.op == "concat"]
        convs = [n.outputs[0] for n in graph.nodes if n.op == "conv2d"]
        last, piece = concats[-1], 16 * 16 * 4
        assert [made[v] for v in concats[:-1]] == [(last, 0), (last, 0)]
        assert [made[v] for v in convs] == [(last, piece * (i + 1)) for i in range(3)]
        offsets = session.plan.devices[0].offsets
        assert all(offsets[v] == offsets[last] + made[v][1] for v in made)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("growth", "size"), [(16, 4), (3, 5), (5, 4)])
def test_the_answer_is_the_same(batch: int, growth: int, size: int) -> None:
    """Also where parts do not lie in a row, and where they begin between cache lines."""
    graph = dense(batch, growth, size)
    feeds = {"x": drawn(batch, 16, size, size)}
    want = evaluate(graph, feeds)["y"]
    for threads in (1, 2):
        with xd.compile(graph, "cpu:0", measure=False, threads=threads) as session:
            for _ in range(2):
                got = session.run(feeds)["y"]
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_what_must_have_a_place_of_its_own_has_one() -> None:
    b = GraphBuilder("own")
    x = b.input("x", (1, 16, 4, 4))
    shown, twice, once = b.relu(x), b.neg(x), b.abs(x)
    joined = b.concat([shown, twice, twice, once, x], 1)
    graph = b.build({"shown": shown, "y": b.relu(joined)})
    with compiled(graph) as session:
        made = found(graph, session)
        assert list(made) == [once.name] or len(made) == 1
        got = session.run({"x": drawn(1, 16, 4, 4)})
        want = evaluate(graph, {"x": drawn(1, 16, 4, 4)})
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-6)
