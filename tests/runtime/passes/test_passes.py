"""Passes keep a graph's meaning, and do what they are for."""

from __future__ import annotations

from dataclasses import replace
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
from crossdock.runtime.passes.normalization import fold_affine
from crossdock.runtime.tensor import TensorSpec
from tests.runtime.strategies import exact_graphs, whole_feeds

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
    folded = fold_affine(graph, frozenset())
    assert_same(graph, folded)
    assert ops(folded) == ["conv2d"] + ["relu"] * tail.count("relu")


def test_what_is_no_affine_step_of_the_result_stays() -> None:
    for tail in ("rsub", "relu mul", "div"):
        graph = conv_graph(tail)
        folded = fold_affine(graph, frozenset())
        assert_same(graph, folded)
        assert len(folded.nodes) == len(graph.nodes)


def test_a_kept_node_is_left_alone() -> None:
    graph = conv_graph("bn relu")
    assert ops(passes.run(graph, keep=["conv"])) == ["conv2d", "fused"]


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


@given(exact_graphs(), st.data())
def test_whole_numbers_stay_exact_whatever_is_kept_or_skipped(
    graph: Graph, data: st.DataObject
) -> None:
    names = [n.name for n in graph.nodes]
    keep = data.draw(st.lists(st.sampled_from(names), max_size=6)) if names else []
    skip = data.draw(st.lists(st.sampled_from(sorted(passes.PASSES)), max_size=2))
    done = passes.run(graph, keep=keep, skip=skip)
    feeds = whole_feeds(graph, 5)
    want, got = evaluate(graph, feeds), evaluate(done, feeds)
    assert list(got) == list(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype
    live = {n.name for n in passes.run(graph, skip=set(passes.PASSES) - {"prune"}).nodes}
    assert set(keep) & live <= {n.name for n in done.nodes}, "a kept node that is needed stays"


@given(exact_graphs())
def test_passes_end(graph: Graph) -> None:
    once = passes.run(graph)
    again = passes.run(once)
    assert ops(again) == ops(once)


def test_weights_of_a_model_named_like_folded_ones_are_left_alone() -> None:
    """A model may well call a value ``y`` and a constant ``y.weights``."""
    graph = conv_graph("mul")
    (mul,) = (n for n in graph.nodes if n.op == "mul")
    b = xd.GraphBuilder()
    extra = b.build({"z": b.neg(b.input("v", (2,)))})
    name = f"{mul.outputs[0]}.weights"
    constant = np.array([5.0, 6.0], np.float32)
    node = replace(extra.nodes[0], name="last", inputs=(name,), outputs=("z",))
    both = replace(
        graph,
        nodes=(*graph.nodes, node),
        constants={**graph.constants, name: constant},
        specs={**graph.specs, name: TensorSpec.of(constant), "z": TensorSpec.of(constant)},
        outputs={**graph.outputs, "z": "z"},
    )
    folded = fold_affine(both.check())
    assert_same(both, folded)
    assert ops(folded) == ["conv2d", "neg"]


def test_a_convolution_that_others_see_is_left_alone() -> None:
    rng = np.random.default_rng(1)
    b = xd.GraphBuilder()
    x = b.input("x", (1, 3, 6, 6))
    w = b.constant(rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    scale = b.constant(np.full((1, 4, 1, 1), 2.0, np.float32))
    seen, read = b.conv2d(x, w, label="seen"), b.conv2d(x, w, label="read")
    graph = b.build(
        {"a": seen, "b": b.mul(seen, scale), "c": b.add(b.mul(read, scale), b.tanh(read))}
    )
    folded = fold_affine(graph)
    assert_same(graph, folded)
    assert len(folded.nodes) == len(graph.nodes)


@pytest.mark.parametrize(("layout", "groups"), [("hwio", 1), ("ohwi", 1), ("ihwo", 4), ("oihw", 2)])
def test_scales_fold_into_weights_of_any_layout(layout: str, groups: int) -> None:
    rng = np.random.default_rng(2)
    sizes = {"o": 8, "i": 4 // groups, "h": 3, "w": 3}
    b = xd.GraphBuilder()
    x = b.input("x", (1, 6, 6, 4))
    w = b.constant(rng.standard_normal([sizes[d] for d in layout]).astype(np.float32))
    y = b.conv2d(x, w, groups=groups, input_layout="nhwc", filter_layout=layout)
    graph = b.build({"y": b.mul(b.constant(rng.random(8).astype(np.float32) + 0.5), y)})
    folded = fold_affine(graph)
    assert_same(graph, folded)
    assert ops(folded) == ["conv2d"]
