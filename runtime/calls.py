"""The ops of a graph as kernels see them, and which values are views of others."""

from __future__ import annotations

from crossdock.kernels import table
from crossdock.kernels.spec import OpCall
from crossdock.runtime.graph import Graph, Node


def op_call(graph: Graph, node: Node) -> OpCall:
    """A node of a static graph as kernels see it."""
    return OpCall(
        op=node.op,
        attrs=node.attrs,
        inputs=tuple(None if v is None else graph.specs[v] for v in node.inputs),
        outputs=tuple(graph.specs[v] for v in node.outputs),
        constants={
            i: graph.constants[v] for i, v in enumerate(node.inputs) if v in graph.constants and v
        },
        name=node.name,
    )


def op_calls(graph: Graph) -> dict[str, OpCall]:
    """The ops of a static graph as kernels see them, by node name."""
    return {node.name: op_call(graph, node) for node in graph.nodes}


def is_alias(node: Node) -> bool:
    """True where the node's result is its first operand's bytes."""
    return table.op(node.op).alias


def alias_roots(graph: Graph) -> dict[str, str]:
    """The value whose bytes each value is, following alias ops."""
    roots = {value: value for value in (*graph.inputs, *graph.constants)}
    for node in graph.nodes:
        for value in node.outputs:
            first = node.inputs[0] if node.inputs else None
            roots[value] = roots[first] if is_alias(node) and first is not None else value
    return roots
