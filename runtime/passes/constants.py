"""Evaluate nodes whose operands are all constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossdock.kernels import table
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.tensor import to_numpy

LIMIT = 256 << 20
"""Largest constant made, in bytes; above it the op stays in the graph."""


def fold_constants(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with constant subexpressions computed by the op entries' array code."""
    constants = dict(graph.constants)
    nodes: list[Node] = []
    for node in graph.nodes:
        entry = table.op(node.op)
        size = sum(graph.specs[o].nbytes for o in node.outputs)
        known = all(i in constants for i in node.operands)
        if node.name in keep or entry.host or not node.operands or not known or size > LIMIT:
            nodes.append(node)
            continue
        arrays = [None if i is None else constants[i] for i in node.inputs]
        with np.errstate(all="ignore"):
            result = entry.run(np, *arrays, **node.attrs)
        for value, array in zip(
            node.outputs, result if isinstance(result, tuple | list) else (result,), strict=True
        ):
            made = np.ascontiguousarray(array, dtype=to_numpy(graph.specs[value].dtype))
            made = made.reshape(graph.specs[value].dims)
            made.flags.writeable = False
            constants[value] = made
    return replace(graph, nodes=tuple(nodes), constants=constants)
