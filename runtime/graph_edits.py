"""Edits of a graph: values made again or kept elsewhere to save memory; names for what is new."""

from __future__ import annotations

from collections.abc import Collection, Container
from dataclasses import replace

from crossdock.runtime.calls import is_alias
from crossdock.runtime.graph import Graph, Node


def made_again(graph: Graph, value: str, readers: Collection[str]) -> tuple[Graph, str] | None:
    """The graph with ``value`` made a second time for the nodes named; and the new node's name.

    None where that cannot be: nothing makes it, its node has other results, or one of the readers
    reads it through a value that shares its bytes.
    """
    maker = graph.producers().get(value)
    if maker is None or len(maker.outputs) != 1 or is_alias(maker):
        return None
    name, result = _fresh(graph, maker.name, "again"), _fresh(graph, value, "again")
    return _inserted(graph, value, readers, replace(maker, name=name, outputs=(result,)))


def kept_aside(graph: Graph, value: str, readers: Collection[str]) -> tuple[Graph, str] | None:
    """The graph with a copy of ``value`` for the nodes named; and the name of the node that copies.

    None for scalars, and where a reader reads the value through one that shares its bytes.
    """
    spec = graph.specs[value]
    if spec.rank == 0:
        return None
    name = _fresh(graph, value, "spilled")
    attrs = {"starts": (0,) * spec.rank, "sizes": spec.dims, "strides": (1,) * spec.rank}
    return _inserted(graph, value, readers, Node(name, "slice", (value,), (name,), attrs))


def _inserted(
    graph: Graph, value: str, readers: Collection[str], node: Node
) -> tuple[Graph, str] | None:
    """The graph with a node before the first of the readers, which read its result instead."""
    (result,) = node.outputs
    wanted = [n for n in graph.nodes if n.name in readers and value in n.operands]
    if not wanted or len(wanted) < len(readers):
        return None
    nodes: list[Node] = []
    for old in graph.nodes:
        if old is wanted[0]:
            nodes.append(node)
        if old in wanted:
            old = replace(old, inputs=tuple(result if v == value else v for v in old.inputs))
        nodes.append(old)
    specs = {**graph.specs, result: graph.specs[value]}
    return replace(graph, nodes=tuple(nodes), specs=specs).check(), node.name


def fresh(name: str, taken: Container[str]) -> str:
    """The name, with a number behind it where it is taken."""
    number, made = 0, name
    while made in taken:
        number += 1
        made = f"{name}_{number}"
    return made


def _fresh(graph: Graph, name: str, how: str) -> str:
    """A name that no value and no node has."""
    taken = {n.name for n in graph.nodes} | set(graph.specs)
    number = 1
    while f"{name}.{how}{number}" in taken:
        number += 1
    return f"{name}.{how}{number}"
