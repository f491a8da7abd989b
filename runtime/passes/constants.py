"""Evaluate nodes whose operands are all constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossdock.kernels import table
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.limits import FOLD_FLOPS, Budget, Limits
from crossdock.runtime.tensor import to_numpy

LIMIT = 256 << 20
"""Largest constant made, in bytes; above it the op stays in the graph. What all of them may take
together is in ``Limits``."""


def _may_fold(graph: Graph, node: Node, budget: Budget) -> bool:
    """Whether a node of constants is one that may be computed here."""
    entry = table.op(node.op)
    outs = [graph.specs[o] for o in node.outputs]
    size = sum(out.nbytes for out in outs)
    if entry.host or size > LIMIT:
        return False
    ins = [None if i is None else graph.specs[i] for i in node.inputs]
    return entry.work(ins, outs, node.attrs).flops <= FOLD_FLOPS and budget.folds(size)


def fold_constants(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with constant subexpressions computed by the op entries' array code."""
    constants = dict(graph.constants)
    budget = Budget(Limits(), sum(array.nbytes for array in constants.values()))
    nodes: list[Node] = []
    for node in graph.nodes:
        known = bool(node.operands) and all(i in constants for i in node.operands)
        if node.name in keep or not known or not _may_fold(graph, node, budget):
            nodes.append(node)
            continue
        entry = table.op(node.op)
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
