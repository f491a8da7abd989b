"""Drop nodes and constants that no output needs."""

from __future__ import annotations

from dataclasses import replace

from crossdock.runtime.graph import Graph


def prune(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph without dead nodes and constants; inputs stay, used or not."""
    del keep  # a dead node cannot be pinned to anything
    live = set(graph.outputs.values())
    nodes = []
    for node in reversed(graph.nodes):
        if live.intersection(node.outputs):
            nodes.append(node)
            live.update(node.operands)
    constants = {name: array for name, array in graph.constants.items() if name in live}
    made = {value for node in nodes for value in node.outputs}
    known = made | set(constants) | set(graph.inputs)
    specs = {name: spec for name, spec in graph.specs.items() if name in known}
    return replace(graph, nodes=tuple(reversed(nodes)), constants=constants, specs=specs)
