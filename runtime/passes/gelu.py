"""Write the Gaussian error linear unit as one op, where it comes as a chain around ``erf``.

``x * (1 + erf(x / sqrt(2))) / 2`` in any order of its factors (Hendrycks & Gimpel, 2016) becomes
``gelu``, which devices compute without the steps between.
"""

from __future__ import annotations

import math
from dataclasses import replace

from crossdock.kernels.fused_gelu import CLOSE
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.passes.prune import prune
from crossdock.runtime.passes.views import factor_of, number


def fuse_gelu(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with such chains as ``gelu``; nodes named in ``keep`` stay as they are."""
    chains = _Chains(graph, keep)
    found: dict[str, Node] = {}  # by result
    for node in graph.nodes:
        made = chains.gelu(node) if node.op == "erf" else None
        if made is not None:
            found[made.outputs[0]] = made
    if not found:
        return graph
    nodes = tuple(found.get(n.outputs[0], n) for n in graph.nodes)
    return prune(replace(graph, nodes=nodes))


class _Chains:
    def __init__(self, graph: Graph, keep: frozenset[str]) -> None:
        self.graph, self.keep = graph, keep
        self.readers, self.producers = graph.consumers(), graph.producers()
        self.outputs = set(graph.outputs.values())

    def gelu(self, erf: Node) -> Node | None:
        """The op for the chain around an error function."""
        scaled = self.factor(erf.operands[0])
        close = CLOSE.get(self.graph.specs[erf.outputs[0]].dtype, 0.0)
        if scaled is None or not math.isclose(scaled[1], math.sqrt(0.5), rel_tol=close):
            return None
        x, node = scaled[0], self.reader(erf)
        if node is None or node.op != "add" or not self.holds(node, erf.outputs[0], 1.0):
            return None
        last = self.product(x, node)
        if last is None or self.graph.specs[last.outputs[0]] != self.graph.specs[x]:
            return None
        return Node(last.name, "gelu", (x,), last.outputs, {})

    def product(self, x: str, more: Node) -> Node | None:
        """The last of the two products of x, a half and the value that ``more`` makes."""
        first = self.reader(more)
        if first is None or first.op not in ("mul", "div"):
            return None
        value, made = more.outputs[0], first.outputs[0]
        other = self.other(first, value)
        half = self.factor(other) if other is not None and first.op == "mul" else None
        if half is not None and half[0] == x and _is_half(half[1]):
            return first
        last = self.reader(first)
        if last is None:
            return None
        if other == x and first.op == "mul":
            scaled = self.scaled(last)
            return (
                last if scaled is not None and scaled[0] == made and _is_half(scaled[1]) else None
            )
        scaled = self.scaled(first)
        if scaled is None or scaled[0] != value or not _is_half(scaled[1]):
            return None
        return last if last.op == "mul" and self.other(last, made) == x else None

    def reader(self, node: Node) -> Node | None:
        """The node that alone reads a node's result."""
        readers = self.readers.get(node.outputs[0], [])
        if len(readers) != 1 or node.outputs[0] in self.outputs or node.name in self.keep:
            return None
        return None if readers[0].name in self.keep else readers[0]

    def factor(self, value: str) -> tuple[str, float] | None:
        """What a value is a number times of."""
        node = self.producers.get(value)
        return None if node is None or node.name in self.keep else self.scaled(node)

    def scaled(self, node: Node) -> tuple[str, float] | None:
        return factor_of(self.graph, node)

    def holds(self, node: Node, value: str, constant: float) -> bool:
        """Whether a node's other operand is this number."""
        other = self.other(node, value)
        return other is not None and number(self.graph, other) == constant

    def other(self, node: Node, value: str) -> str | None:
        """A node's operand beside ``value``."""
        a, b = node.operands
        return b if a == value else a if b == value else None


def _is_half(found: float) -> bool:
    return found == 0.5
