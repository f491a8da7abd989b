"""Let ops that only move elements move bytes: dequantise after them, quantise before them.

``move(dequantize(x))`` is ``dequantize(move(x))`` for one scale and zero point, and so it is for
a maximum over windows, as the scale is positive. ``quantize(concat(dequantize(x), ...))`` is
``concat(quantize(dequantize(x)), ...)``. Where bytes are dequantised and quantised again with the
same scale and zero point they are what they were: ``x - zero`` has at most 17 bits, and
dividing its product with the scale by the scale again gives a number that rounds to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.graph_edits import fresh
from crossdock.runtime.passes.prune import prune
from crossdock.runtime.passes.quantized_chain import BYTES, Known
from crossdock.runtime.tensor import TensorSpec

MOVES = frozenset({"reshape", "transpose", "slice", "expand", "max_pool2d"})


@dataclass(frozen=True)
class _Scaled:
    """Bytes and what they are dequantised with: names of constants, of one element each."""

    value: str
    scale: str
    zero: str
    key: tuple[float, int, str]


def move_quantize(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with ops on dequantised values on the bytes; ``keep`` names stay."""
    if not any(node.op == "dequantize_linear" for node in graph.nodes):
        return graph
    return prune(_Moving(graph, keep).run())


class _Moving:
    """One run of the pass over a graph."""

    def __init__(self, graph: Graph, keep: frozenset[str]) -> None:
        self.graph = graph
        self.keep = keep
        self.known = Known(graph)
        self.readers = graph.consumers()
        self.outputs = set(graph.outputs.values())
        self.specs = dict(graph.specs)
        self.constants = dict(graph.constants)
        self.names = {node.name for node in graph.nodes}
        self.scaled: dict[str, _Scaled] = {}
        self.instead: dict[str, str] = {}
        self.joins: dict[str, Node] = {}
        self.nodes: list[Node] = []

    def run(self) -> Graph:
        """Each node in order, by the rule that fits it."""
        for node in self.graph.nodes:
            inputs = tuple(None if v is None else self.instead.get(v, v) for v in node.inputs)
            node = replace(node, inputs=inputs)
            if node.name in self.keep or len(node.outputs) != 1:
                self.nodes.append(node)
            elif node.op == "dequantize_linear":
                self.dequantize(node)
            elif node.op == "quantize_linear":
                self.quantize(node)
            elif node.op in MOVES and node.inputs[0] in self.scaled:
                self.move(node, self.scaled[node.inputs[0]])
            else:
                if node.op == "concat" and all(v in self.scaled for v in node.operands):
                    self.joins[node.outputs[0]] = node
                self.nodes.append(node)
        return replace(
            self.graph, nodes=tuple(self.nodes), specs=self.specs, constants=self.constants
        )

    def key(self, node: Node, dtype: str) -> tuple[float, int, str] | None:
        """Scale and zero point of a node with one of each, both constant, and the type."""
        scale, zero = (self.known(v) for v in node.inputs[1:3])
        if scale is None or zero is None or scale.size != 1 or dtype not in BYTES:
            return None
        number = float(scale.reshape(()))
        whole = scale.dtype == "float32" and number > 0
        return (number, int(zero.reshape(())), dtype) if whole else None

    def dequantize(self, node: Node) -> None:
        """Note what the bytes are scaled with."""
        source, value = node.inputs[0], node.outputs[0]
        assert source is not None
        key = self.key(node, self.specs[source].dtype)
        self.nodes.append(node)
        if key is not None:
            self.scaled[value] = self.of(source, node, key)

    def of(self, source: str, node: Node, key: tuple[float, int, str]) -> _Scaled:
        """The bytes with a scale and zero point that are scalars."""
        return _Scaled(source, self.scalar(node.inputs[1]), self.scalar(node.inputs[2]), key)

    def scalar(self, value: str | None) -> str:
        """A constant of one element as a scalar."""
        array = self.known(value)
        assert value is not None
        assert array is not None
        if self.specs[value].rank:
            value = fresh(f"{value}.scalar", self.specs)
            self.constants[value] = array.reshape(())
            self.specs[value] = TensorSpec.of(array.reshape(()))
        return value

    def move(self, node: Node, source: _Scaled) -> None:
        """The op on the bytes, and then the dequantisation."""
        value = node.outputs[0]
        made = fresh(f"{value}.bytes", self.specs)
        self.specs[made] = self.specs[value].with_dtype(source.key[2])
        self.nodes.append(replace(node, inputs=(source.value, *node.inputs[1:]), outputs=(made,)))
        name = fresh(f"{node.name}.dequantize", self.names)
        self.names.add(name)
        inputs = (made, source.scale, source.zero)
        self.nodes.append(Node(name, "dequantize_linear", inputs, (value,), {}))
        self.scaled[value] = replace(source, value=made)

    def quantize(self, node: Node) -> None:
        """Drop it where it undoes a dequantisation; take it in front of a concatenation."""
        source, value = node.inputs[0], node.outputs[0]
        assert source is not None
        key = self.key(node, self.specs[value].dtype)
        found, join = self.scaled.get(source), self.joins.get(source)
        if key is not None and found is not None and found.key == key and self.free(value):
            self.instead[value] = found.value
        elif key is not None and join is not None and self.alone(source):
            parts = tuple(self.part(node, v, key) for v in join.operands)
            self.nodes.append(replace(join, inputs=parts, outputs=(value,), name=node.name))
        else:
            self.nodes.append(node)

    def part(self, node: Node, value: str, key: tuple[float, int, str]) -> str:
        """A part of a concatenation in its scale."""
        found = self.scaled[value]
        if found.key == key:
            return found.value
        made = fresh(f"{value}.again", self.specs)
        self.specs[made] = self.specs[value].with_dtype(key[2])
        name = fresh(f"{node.name}.part", self.names)
        self.names.add(name)
        target = self.of(value, node, key)
        inputs = (value, target.scale, target.zero)
        self.nodes.append(Node(name, "quantize_linear", inputs, (made,), {}))
        return made

    def free(self, value: str) -> bool:
        """Whether another value may stand for it: nobody asked for it by name."""
        return value not in self.outputs

    def alone(self, value: str) -> bool:
        """Whether one node reads it, and nothing else does."""
        return value not in self.outputs and len(self.readers[value]) == 1
