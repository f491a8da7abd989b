"""Write quantisation and dequantisation as elementwise ops, which fuse with what is around them.

Scales are float32, one for all or in a shape that broadcasts (none by blocks). The steps are those
that the operator is defined by: in float32, halves to even. Every elementwise op gets a
dequantisation of its own: to read bytes again costs less than to store floats.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from crossdock.kernels import table
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.graph_edits import fresh
from crossdock.runtime.passes.prune import prune
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

OPS = frozenset({"quantize_linear", "dequantize_linear"})
BYTES = frozenset({"uint8", "int8"})


def expand_quantize(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with quantisation written out; nodes named in ``keep`` stay as they are."""
    if not any(node.op in OPS for node in graph.nodes):
        return graph
    return _Expansion(graph, keep).run()


def _elementwise(node: Node) -> bool:
    return node.op == "quantize_linear" or table.op(node.op).expression(node.attrs) is not None


class _Expansion:
    """One run of the pass over a graph."""

    def __init__(self, graph: Graph, keep: frozenset[str]) -> None:
        self.graph = graph
        self.keep = keep
        self.constants = dict(graph.constants)
        self.specs = dict(graph.specs)
        self.names = {node.name for node in graph.nodes}
        self.nodes: list[Node] = []
        self.own: dict[str, Node] = {}  # by value: the dequantisation, made again for each reader

    def run(self) -> Graph:
        """Each node in order."""
        for node in self.graph.nodes:
            node = self.reading(node)
            if node.op not in OPS or node.name in self.keep or not self.plain(node):
                self.nodes.append(node)
            elif node.op == "quantize_linear":
                self.quantize(node)
            else:
                self.dequantize(node)
        nodes = tuple(self.nodes)
        return prune(replace(self.graph, nodes=nodes, constants=self.constants, specs=self.specs))

    def reading(self, node: Node) -> Node:
        """The node with dequantised operands of its own, where it is elementwise."""
        mine = [v for v in dict.fromkeys(node.operands) if v in self.own]
        if not mine or node.name in self.keep or not _elementwise(node):
            return node
        instead: dict[str, str] = {}
        for value in mine:
            source = self.own[value]
            made = fresh(f"{value}.again", self.specs)
            self.specs[made] = self.specs[value]
            name = fresh(f"{source.name}.again", self.names)
            self.names.add(name)
            self.dequantize(Node(name, source.op, source.inputs, (made,), {}))
            instead[value] = made
        inputs = tuple(None if v is None else instead.get(v, v) for v in node.inputs)
        return replace(node, inputs=inputs)

    def plain(self, node: Node) -> bool:
        """Whether the scale is float32 and broadcasts, and the integers are bytes."""
        x, scale, zero = (self.specs[v] for v in node.operands)
        bytes_ = zero.dtype in BYTES
        dims = (1,) * (x.rank - scale.rank) + scale.dims
        fits = all(d in (1, n) for d, n in zip(dims, x.dims, strict=True))
        return bytes_ and scale.dtype == "float32" and fits and x.size > 0

    def quantize(self, node: Node) -> None:
        """``clamp(round_even(x / scale) + zero)`` in the zero point's type."""
        x, scale, zero = node.operands
        limits = np.iinfo(to_numpy(self.specs[zero].dtype))
        steps = self.step(node, "div", (x, scale))
        whole = self.step(node, "round_even", (steps,))
        moved = self.step(node, "add", (whole, self.real(node, zero)))
        bounds = {"min_value": float(limits.min), "max_value": float(limits.max)}
        held = self.step(node, "clamp", (moved,), bounds)
        attrs = {"data_type": self.specs[zero].dtype}
        self.nodes.append(Node(node.name, "cast", (held,), node.outputs, attrs))

    def dequantize(self, node: Node) -> None:
        """``(float32(x) - zero) * scale``."""
        x, scale, zero = node.operands
        wide = self.step(node, "cast", (x,), {"data_type": "float32"})
        moved = self.step(node, "sub", (wide, self.real(node, zero)))
        self.nodes.append(Node(node.name, "mul", (moved, scale), node.outputs, {}))
        if x not in self.constants:
            self.own[node.outputs[0]] = node

    def real(self, node: Node, zero: str) -> str:
        """The zero point in float32."""
        array = self.constants.get(zero)
        if array is not None:
            return self.constant(f"{zero}.real", array.astype(np.float32))
        made = fresh(f"{zero}.real", self.specs)
        self.specs[made] = self.specs[zero].with_dtype("float32")
        self.add(node, "cast", (zero,), made, {"data_type": "float32"})
        return made

    def step(self, node: Node, op: str, inputs: tuple[str, ...], attrs: Any = None) -> str:
        """Append an op with a result of the node's shape."""
        made = fresh(f"{node.outputs[0]}.{op}", self.specs)
        self.specs[made] = self.specs[node.outputs[0]].with_dtype("float32")
        self.add(node, op, inputs, made, attrs or {})
        return made

    def add(self, node: Node, op: str, inputs: tuple[str, ...], made: str, attrs: Any) -> None:
        """Append a node of a name of its own."""
        name = fresh(f"{node.name}.{op}", self.names)
        self.names.add(name)
        self.nodes.append(Node(name, op, inputs, (made,), attrs))

    def constant(self, name: str, array: Array) -> str:
        """Add a constant."""
        name = fresh(name, self.specs)
        array.flags.writeable = False
        self.constants[name], self.specs[name] = array, TensorSpec.of(array)
        return name
