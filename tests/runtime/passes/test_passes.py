"""Passes keep a graph's meaning, and do what they are for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime import passes
from crossdock.runtime.errors import GraphError
from crossdock.runtime.graph import Graph

Array = np.ndarray[Any, np.dtype[Any]]


def feeds_of(graph: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {n: rng.standard_normal(s.dims).astype(np.float32) for n, s in graph.inputs.items()}


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def assert_same(before: Graph, after: Graph) -> None:
    """Equal in float64 up to the rounding of folded float32 weights (about 1e-7 relative)."""
    feeds = feeds_of(before)
    want = evaluate(before, feeds, dtype="float64")
    got = evaluate(after.check(), feeds, dtype="float64")
    assert list(want) == list(got)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=2e-6, atol=2e-6)


def conv_graph(tail: str, layout: str = "nchw") -> Graph:
    """A convolution, and then what the tail says, per channel."""
    rng = np.random.default_rng(1)
    b = xd.GraphBuilder()
    nchw = layout == "nchw"
    x = b.input("x", (1, 3, 6, 6) if nchw else (1, 6, 6, 3))
    w = b.constant(rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    bias = b.constant(rng.standard_normal(4).astype(np.float32))
    y = b.conv2d(x, w, bias=bias, input_layout=layout, label="conv")
    shape = (1, 4, 1, 1) if nchw else (4,)

    def vector() -> Any:
        return b.constant((rng.random(4) + 0.5).astype(np.float32).reshape(shape))

    flat = [b.constant((rng.random(4) + 0.5).astype(np.float32)) for _ in range(4)]
    for step in tail.split():
        if step == "bn":
            mean, variance, scale, shift = flat
            y = b.batch_normalization(
                y, mean, variance, scale=scale, bias=shift, axis=1 if nchw else 3
            )
        elif step == "relu":
            y = b.relu(y)
        elif step == "rsub":
            y = b.sub(vector(), y)
        else:
            y = getattr(b, step)(y, vector())
    return b.build({"y": y})


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("tail", ["bn", "mul", "add", "sub", "mul add", "bn mul add relu"])
def test_per_channel_steps_fold_into_the_convolution(tail: str, layout: str) -> None:
    graph = conv_graph(tail, layout)
    folded = passes.fold_affine(graph, frozenset())
    assert_same(graph, folded)
    assert ops(folded) == ["conv2d"] + ["relu"] * tail.count("relu")


def test_what_is_no_affine_step_of_the_result_stays() -> None:
    for tail in ("rsub", "relu mul", "div"):
        graph = conv_graph(tail)
        folded = passes.fold_affine(graph, frozenset())
        assert_same(graph, folded)
        assert len(folded.nodes) == len(graph.nodes)


def test_a_kept_node_is_left_alone() -> None:
    graph = conv_graph("bn relu")
    assert ops(passes.run(graph, keep=["conv"])) == ["conv2d", "batch_normalization", "relu"]


def test_constants_fold_and_dead_nodes_go() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (2, 2))
    c = b.add(b.constant(np.ones((2, 2), np.float32)), b.constant(np.float32(2)))
    b.tanh(x)
    graph = b.build({"y": b.matmul(x, c)})
    done = passes.run(graph)
    assert ops(done) == ["matmul"]
    assert_same(graph, done)


def test_chains_fuse_and_broadcasts_and_shared_values_end_them() -> None:
    b = xd.GraphBuilder()
    x, row = b.input("x", (4, 5)), b.input("row", (5,))
    shared = b.tanh(b.relu(x))
    left = b.sigmoid(b.mul(shared, b.neg(row)))
    graph = b.build({"y": b.add(left, shared)})
    fused = passes.run(graph)
    assert_same(graph, fused)
    # tanh.relu is read twice; neg(row) is smaller than what reads it
    assert sorted(ops(fused)) == ["fused", "fused", "neg"]
    assert ops(passes.run(graph, skip=["fuse-elementwise"])) == [n.op for n in graph.nodes]


def test_an_unknown_pass_is_named() -> None:
    with pytest.raises(GraphError, match="no pass 'nope'"):
        passes.run(conv_graph("bn"), skip=["nope"])


@st.composite
def elementwise_graphs(draw: st.DrawFn) -> Graph:
    """Random elementwise graphs with broadcasting, comparisons and casts."""
    b = xd.GraphBuilder()
    values = [b.input("a", (2, 3)), b.input("b", (3,)), b.input("c", (2, 1))]
    values.append(b.constant(np.float32(0.5)))
    for _ in range(draw(st.integers(1, 15))):
        op = draw(
            st.sampled_from(["add", "mul", "max", "tanh", "abs", "greater", "where", "clamp"])
        )
        x, y, z = (values[draw(st.integers(0, len(values) - 1))] for _ in range(3))
        if op in ("tanh", "abs"):
            made = getattr(b, op)(x)
        elif op == "clamp":
            made = b.clamp(x, min_value=-1.0, max_value=1.0)
        elif op == "greater":
            made = b.cast(b.greater(x, y), "float32")
        elif op == "where":
            made = b.where(b.lesser(x, y), y, z)
        else:
            made = getattr(b, op)(x, y)
        values.append(made)
    ends = draw(st.lists(st.sampled_from(values[4:]), min_size=1, max_size=3, unique_by=id))
    return b.build({f"y{i}": v for i, v in enumerate(ends)})


@given(elementwise_graphs())
def test_all_passes_keep_the_meaning(graph: Graph) -> None:
    assert_same(graph, passes.run(graph))
