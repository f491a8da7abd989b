"""Fuse chains of elementwise ops into one ``fused`` op.

A producer joins its consumer where the consumer is its only reader, both have the same shape, and
the body stays small. The joined node takes the consumer's name and place. What maps bytes to bytes
stays by itself, unless it does so joined as well: it has 256 results, which a device may look up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from crossdock.kernels import table
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.runtime.graph import Graph, Node

MAX_STEPS = 24
MAX_INPUTS = 8


@dataclass
class _Group:
    """Nodes fused so far, in order, the last of which gives the result; and what they read."""

    nodes: list[Node]
    inputs: list[str]

    def behind(self, producer: _Group, value: str) -> _Group:
        """The group with the one in front of it that makes ``value``, which it alone reads."""
        reads = [*producer.inputs, *(v for v in self.inputs if v != value)]
        return _Group(producer.nodes + self.nodes, list(dict.fromkeys(reads)))


def fuse_elementwise(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with elementwise chains fused; nodes named in ``keep`` stay alone."""
    readers = graph.consumers()
    outputs = set(graph.outputs.values())
    groups: dict[str, _Group] = {}  # by the value the group makes
    absorbed: set[str] = set()
    for node in graph.nodes:
        if node.name in keep or not _fusible(graph, node):
            continue
        operands = list(dict.fromkeys(node.operands))
        group = _Group([node], operands)
        for value in operands:
            producer = groups.get(value)
            if producer is None or value in outputs or len(readers[value]) > 1:
                continue
            if graph.specs[value].shape != graph.specs[node.outputs[0]].shape:
                continue
            if len(producer.nodes) + len(group.nodes) > MAX_STEPS:
                continue
            joined = group.behind(producer, value)
            apart = _of_bytes(graph, producer) and not _of_bytes(graph, joined)
            if len(joined.inputs) <= MAX_INPUTS and not apart:
                group = joined
                absorbed.add(value)
        groups[node.outputs[0]] = group
    nodes = []
    for node in graph.nodes:
        value = node.outputs[0]
        if value in absorbed:
            continue
        found = groups.get(value)
        alone = found is None or len(found.nodes) == 1
        nodes.append(node if alone or found is None else _fused(graph, found))
    return replace(graph, nodes=tuple(nodes))


def _of_bytes(graph: Graph, group: _Group) -> bool:
    """Whether a group's results are bytes that hang on one operand of bytes alone."""
    varying = [v for v in group.inputs if v not in graph.constants]
    fixed = [graph.constants[v] for v in group.inputs if v in graph.constants]
    specs = [graph.specs[v] for v in (*varying, group.nodes[-1].outputs[0])]
    bytes_ = len(varying) == 1 and all(s.dtype in ("uint8", "int8") for s in specs)
    return bytes_ and specs[0].dims == specs[1].dims and all(array.size == 1 for array in fixed)


def _fusible(graph: Graph, node: Node) -> bool:
    entry = table.op(node.op)
    return (
        len(node.outputs) == 1
        and len(node.operands) == len(node.inputs)
        and not entry.alias
        and entry.expression(node.attrs) is not None
        and graph.specs[node.outputs[0]].size > 0
    )


def _fused(graph: Graph, group: _Group) -> Node:
    inputs = group.inputs
    index = {value: i for i, value in enumerate(inputs)}
    steps = []
    for k, node in enumerate(group.nodes):
        steps.append(
            FusedStep(
                node.op,
                node.attrs,
                tuple(index[v] for v in node.operands),
                graph.specs[node.outputs[0]].dtype,
                tuple(graph.specs[v].dtype for v in node.operands),
            )
        )
        index[node.outputs[0]] = -1 - k
    last = group.nodes[-1]
    return Node(last.name, "fused", tuple(inputs), last.outputs, {"body": FusedBody(tuple(steps))})
