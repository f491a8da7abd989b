"""Structure rules of the graph, and binding of symbols."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossdock.runtime.errors import FeedError, GraphError
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.tensor import TensorSpec

F32 = TensorSpec("float32", (2, 3))


def chain(*nodes: Node, outputs: dict[str, str] | None = None) -> Graph:
    """A graph with input x and the given nodes, every value 2 x 3 float32."""
    specs = {"x": F32} | {v: F32 for n in nodes for v in n.outputs}
    ends = outputs or {"y": nodes[-1].outputs[0]}
    return Graph({"x": F32}, ends, nodes, specs)


def test_a_sound_graph_passes() -> None:
    graph = chain(Node("a", "relu", ("x",), ("t",)), Node("b", "tanh", ("t",), ("u",)))
    assert graph.check() is graph
    assert graph.producers()["u"].name == "b"
    assert [n.name for n in graph.consumers()["t"]] == ["b"]


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (chain(Node("a", "relu", ("u",), ("t",)), Node("b", "relu", ("t",), ("u",))), "cycle"),
        (chain(Node("a", "relu", ("x",), ("t",)), Node("a", "relu", ("t",), ("u",))), "named 'a'"),
        (chain(Node("a", "relu", ("x",), ("x",))), "makes 'x' again"),
        (chain(Node("a", "relu", ("x",), ("t",)), outputs={"y": "nope"}), "nothing makes"),
    ],
)
def test_a_broken_graph_is_named(graph: Graph, said: str) -> None:
    with pytest.raises(GraphError, match=said):
        graph.check()


def test_the_digest_sees_structure_attributes_and_constants() -> None:
    graph = chain(Node("a", "elu", ("x",), ("t",), {"alpha": 1.0}))
    other = chain(Node("a", "elu", ("x",), ("t",), {"alpha": 2.0}))
    assert graph.digest() == chain(Node("a", "elu", ("x",), ("t",), {"alpha": 1.0})).digest()
    assert graph.digest() != other.digest()
    specs = dict(graph.specs) | {"c": TensorSpec("float32", (2,))}
    ones = replace(graph, constants={"c": np.ones(2, np.float32)}, specs=specs)
    twos = replace(graph, constants={"c": np.full(2, 2, np.float32)}, specs=specs)
    assert len({graph.digest(), ones.digest(), twos.digest()}) == 3


def symbolic() -> Graph:
    """One input with two symbols, one of them twice."""
    spec = TensorSpec("float32", ("n", "c", "n"))
    bound = {}

    def rebuild(inputs: dict[str, TensorSpec]) -> Graph:
        bound.update(inputs)
        return Graph(inputs, {"y": "x"}, (), inputs)

    return Graph({"x": spec}, {"y": "x"}, (), {"x": spec}, rebuild=rebuild)


def test_symbols_are_bound_by_name_or_by_shape() -> None:
    graph = symbolic()
    assert graph.symbols == ("n", "c")
    assert graph.bind({"n": 2, "c": 5}).inputs["x"].shape == (2, 5, 2)
    assert graph.bind(shapes={"x": (4, 1, 4)}).inputs["x"].shape == (4, 1, 4)


@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 1), (4, 1, 4, 1)])
def test_a_shape_that_contradicts_the_symbols_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FeedError, match="input 'x' wants"):
        symbolic().bind(shapes={"x": shape})


def test_an_unbound_symbol_is_named() -> None:
    with pytest.raises(FeedError, match="'c'"):
        symbolic().bind({"n": 2})
