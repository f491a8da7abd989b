"""Cutting regions: the parts of every op that can be cut, put together, are the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.kernels.reference import evaluate, promoted
from crossdock.runtime import passes
from crossdock.runtime.graph import Graph
from crossdock.runtime.split import SplitGraph, grow, rewrite
from tests.cases import CASES, Case, by_op, naming
from tests.runtime.strategies import exact_graphs, whole_feeds

Arrays = Mapping[str, Any]


def run_parts(whole: Graph, made: SplitGraph, feeds: Arrays) -> dict[str, Any]:
    """Evaluate a graph in parts on the feeds of the whole, as the executor does."""
    parts = {
        name: made.inputs[name].of(feeds[made.inputs[name].source])
        if name in made.inputs
        else feeds[name]
        for name in made.graph.inputs
    }
    got = evaluate(made.graph, parts)
    results = {n: np.empty(s.dims, got_type(got, made, n)) for n, s in whole.output_specs.items()}
    for name, value in got.items():
        window = made.outputs.get(name)
        if window is None:
            results[name] = value
        else:
            window.of(results[window.source])[...] = value
    return results


def got_type(got: Arrays, made: SplitGraph, output: str) -> Any:
    """The type of an output, whole or in parts."""
    names = [n for n, w in made.outputs.items() if w.source == output]
    return got[names[0] if names else output].dtype


def cuttable(cases: list[Case]) -> list[tuple[Case, int]]:
    """Cases of an op that can be cut, with an axis, one for each of its attributes and ranks."""
    found: dict[object, tuple[Case, int]] = {}
    for case in cases:
        graph = case.graph
        node = next((n for n in graph.nodes if n.op == case.op), None)
        if node is None or graph.symbols or graph.staged is not None:
            continue
        rank = graph.specs[node.outputs[0]].rank
        ranks = tuple(graph.specs[v].rank for v in node.operands)
        for axis in range(rank):
            key = (str(node.attrs), ranks, axis)
            if key not in found and grow(graph, node, axis) is not None:
                found[key] = case, axis
    return list(found.values())


WHOLE = {
    "bit_cast", "conv_integer", "cumulative_product", "dequantize_linear", "det", "dft",
    "gather", "gather_elements", "gather_nd", "gru", "gru_cell", "lrn", "lstm", "lstm_cell",
    "matmul_integer", "quantize_linear", "quantized_conv2d", "quantized_matmul", "resize",
    "scatter_elements", "scatter_nd", "tile", "top_k", "triangular",
}  # fmt: skip
"""Ops of which no case can be cut."""


@pytest.mark.parametrize("cases", by_op(CASES))
def test_parts_are_the_whole(cases: list[Case]) -> None:
    found = cuttable(cases)
    assert bool(found) == (cases[0].op not in WHOLE)
    for case, axis in found:
        with naming(f"{case}, axis {axis}"):
            check_parts(case, axis)


def check_parts(case: Case, axis: int) -> None:
    node = next(n for n in case.graph.nodes if n.op == case.op)
    region = grow(case.graph, node, axis)
    assert region is not None
    feeds = case.inputs()
    want = evaluate(case.graph, feeds, dtype="float64")
    for sizes in ((1, region.units - 1), (region.units - 1, 1)):
        made = rewrite(SplitGraph(case.graph), region, sizes)
        wide = replace(made, graph=promoted(made.graph))
        got = run_parts(case.graph, wide, feeds)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-9)


def attention(by_row: bool) -> Graph:
    """Two heads over a batch of three, with a bias a head; read and written by row or by head."""
    b = xd.GraphBuilder()
    operands = []
    for name in "qkv":
        x = b.input(name, (3, 4, 8) if by_row else (3, 2, 4, 4))
        if by_row:
            x = b.transpose(b.reshape(x, (3, 4, 2, 4)), permutation=(0, 2, 1, 3))
        operands.append(x)
    q, k, v = operands
    scores = b.matmul(q, b.transpose(k, permutation=(0, 1, 3, 2)))
    scores = b.add(b.mul(scores, b.constant(np.float32(0.5))), b.input("mask", (1, 2, 4, 4)))
    y = b.matmul(b.softmax(scores, axis=3), v)
    if by_row:
        y = b.reshape(b.transpose(y, permutation=(0, 2, 1, 3)), (3, 4, 8))
    return b.build({"y": y})


def product() -> Graph:
    """A product with bias, activation and residual."""
    rng = np.random.default_rng(3)
    w, c = (b_.astype(np.float32) for b_ in (rng.random((8, 6)), rng.random(6)))
    b = xd.GraphBuilder()
    y = b.tanh(b.add(b.matmul(b.input("x", (2, 4, 8)), b.constant(w)), b.constant(c)))
    return b.build({"y": b.add(y, b.input("r", (2, 4, 6)))})


@pytest.mark.parametrize(
    ("graph", "op", "axes"),
    [
        (attention(by_row=True), "fused_attention", {0, 2}),
        (attention(by_row=False), "fused_attention", {0, 1}),
        (product(), "fused_matmul", {0, 1, 2}),
    ],
    ids=["attention by row", "attention by head", "product"],
)
def test_parts_of_ops_that_passes_fuse_are_the_whole(graph: Graph, op: str, axes: set[int]) -> None:
    fused = passes.run(graph)
    node = next(n for n in fused.nodes if n.op == op)
    feeds = {n: np.random.default_rng(1).random(s.dims) for n, s in graph.inputs.items()}
    want = evaluate(graph, feeds, dtype="float64")["y"]
    done = set()
    for axis in range(fused.specs[node.outputs[0]].rank):
        region = grow(fused, node, axis)
        if region is None:
            continue
        done.add(axis)
        made = rewrite(SplitGraph(fused), region, (1, region.units - 1))
        got = run_parts(fused, replace(made, graph=promoted(made.graph)), feeds)["y"]
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    assert done == axes


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(exact_graphs(), st.data())
def test_regions_of_any_graph(graph: Graph, data: st.DataObject) -> None:
    """Regions after one another, with borders inside of the graph, at its ends and at each other.

    A concat that joins what an earlier region made may be in a later one.
    """
    made = SplitGraph(graph)
    for _ in range(3):
        whole = [node for node in made.graph.nodes if node.name not in made.parts]
        if not whole:
            break
        node = data.draw(st.sampled_from(whole))
        axis = data.draw(st.integers(0, max(0, made.graph.specs[node.outputs[0]].rank - 1)))
        region = grow(made.graph, node, axis, frozenset(made.parts))
        if region is None:
            continue
        first = data.draw(st.integers(1, region.units - 1))
        made = rewrite(made, region, (first, region.units - first))
    feeds = whole_feeds(graph, 0)
    got = run_parts(graph, made, feeds)
    for name, value in evaluate(graph, feeds).items():
        np.testing.assert_array_equal(got[name], value)


def test_a_batch_is_cut_from_input_to_output() -> None:
    """No op is added where a region's borders are the graph's, and constants are sliced ahead."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder()
    x = b.input("x", (8, 16))
    w = b.constant(rng.standard_normal((16, 32)).astype(np.float32))
    y = b.relu(b.matmul(x, w, label="mm"))
    graph = b.build({"y": b.softmax(y, axis=1)})
    rows = grow(graph, graph.nodes[0], 0)
    assert rows is not None
    assert (rows.nodes, rows.units) == (tuple(n.name for n in graph.nodes), 8)
    made = rewrite(SplitGraph(graph), rows, (5, 3))
    assert len(made.graph.nodes) == 2 * len(graph.nodes)
    assert sorted(w.stop - w.start for w in made.inputs.values()) == [3, 5]
    assert set(made.graph.constants) == set(graph.constants)

    columns = grow(graph, graph.nodes[0], 1)
    assert columns is not None
    assert len(columns.nodes) == 2  # the softmax needs all of a row
    made = rewrite(SplitGraph(graph), columns, (8, 24))
    assert [n.op for n in made.graph.nodes if n.name not in made.parts] == ["concat", "softmax"]
    assert sorted(a.shape for a in made.graph.constants.values()) == [(16, 8), (16, 24)]


def test_named_nodes_stay_whole() -> None:
    b = xd.GraphBuilder()
    y = b.exp(b.tanh(b.input("x", (8, 16)), label="t"), label="e")
    graph = b.build({"y": y})
    region = grow(graph, graph.nodes[0], 0, frozenset({"e"}))
    assert region is not None
    assert region.nodes == ("t",)
    assert grow(graph, graph.nodes[1], 0, frozenset({"e"})) is None
