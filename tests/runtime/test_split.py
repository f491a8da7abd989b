"""Cutting regions: the parts of every op that can be cut, put together, are the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crossdock.kernels.reference import evaluate, promoted
from crossdock.runtime.graph import Graph
from crossdock.runtime.split import SplitGraph, grow, rewrite
from tests.cases import CASES, Case

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


def cuttable() -> list[Any]:
    """Cases of the op table whose op can be cut along an axis, one for each op and attributes."""
    found = {}
    for case in CASES:
        graph = case.graph
        node = next((n for n in graph.nodes if n.op == case.op), None)
        if node is None or graph.symbols or graph.staged is not None:
            continue
        rank = graph.specs[node.outputs[0]].rank
        ranks = tuple(graph.specs[v].rank for v in node.operands)
        for axis in range(rank):
            key = (case.op, str(node.attrs), ranks, axis)
            if key not in found and grow(graph, node, axis) is not None:
                found[key] = pytest.param(case, axis, id=f"{case}-{axis}")
    return list(found.values())


@pytest.mark.parametrize(("case", "axis"), cuttable())
def test_parts_are_the_whole(case: Case, axis: int) -> None:
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
