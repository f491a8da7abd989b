"""Write attention as one op that reads queries, keys and values where they lie.

Softmax over scaled products of queries and keys, with or without something added to the scores,
times values, becomes ``fused_attention``; so does ``scaled_dot_product_attention``. Reshapes,
transpositions, slices and factors before the operands, and the transposition behind the result,
are read as strides and as part of the scale: nothing is moved. Nodes that nobody needs any more are
dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crossdock.kernels.fused import FUSIBLE
from crossdock.kernels.fused_attention import CORE, NAME, PLAIN, WIDEST, Extents
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.passes.normalization import unused
from crossdock.runtime.passes.prune import prune
from crossdock.runtime.passes.views import View, dense, factor_of, views
from crossdock.runtime.tensor import TensorSpec


def fuse_attention(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with attentions fused; nodes named in ``keep`` stay as they are."""
    return _Fusion(graph, keep).fused()


@dataclass(frozen=True)
class _Place:
    """An operand: the value it lies in, its first column there (None: by head), and a factor."""

    root: str
    offset: int | None
    factor: float


@dataclass(frozen=True)
class _Match:
    """An attention: its operands, attributes of the op, and the value that it makes."""

    extents: Extents
    operands: tuple[_Place, _Place, _Place]
    bias: str | None
    attrs: Mapping[str, Any]
    result: str


@dataclass
class _Scores:
    """What a softmax is taken of: the product's operands, the scale, and what is added."""

    query: str
    key: str
    scale: float = 1.0
    bias: str | None = None


@dataclass
class _Fusion:
    graph: Graph
    keep: frozenset[str]
    specs: dict[str, TensorSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.specs = dict(self.graph.specs)
        self.readers = self.graph.consumers()
        self.producers = self.graph.producers()
        self.outputs = set(self.graph.outputs.values())

    def fused(self) -> Graph:
        """The graph with every attention that matches as one op."""
        made: dict[str, list[Node]] = {}  # by the result of the node whose place they take
        for node in self.graph.nodes:
            match = self.match(node)
            if match is not None:
                last, there = self.nodes(match)
                made[last] = there
        if not made:
            return self.graph
        nodes: list[Node] = []
        for node in self.graph.nodes:
            nodes += made.get(node.outputs[0], [node])
        return prune(replace(self.graph, nodes=tuple(nodes), specs=self.specs))

    # --- what matches ---

    def match(self, node: Node) -> _Match | None:
        """The attention that ends in a node's result."""
        if self.specs[node.outputs[0]].dtype not in FUSIBLE or node.name in self.keep:
            return None
        if node.op == PLAIN:
            query, key, value = node.operands[:3]
            bias = node.inputs[3] if len(node.inputs) > 3 else None
            attrs = {name: node.attrs[name] for name in CORE} | {"hidden_zero": True}
            return self.matched((query, key, value), bias, attrs, node.outputs[0], turned=False)
        if node.op != "matmul":
            return None
        softmax = self.alone(node.operands[0])
        if softmax is None or softmax.op != "softmax":
            return None
        scores = softmax.operands[0]
        if softmax.attrs["axis"] != self.specs[scores].rank - 1:
            return None
        found = self.scores(scores)
        if found is None:
            return None
        attrs = {"scale": found.scale, "hidden_zero": False}
        operands = (found.query, found.key, node.operands[1])
        return self.matched(operands, found.bias, attrs, node.outputs[0], turned=True)

    def alone(self, value: str) -> Node | None:
        """The node that makes a value, where one node reads it and nothing else needs it."""
        node = self.producers.get(value)
        if node is None or node.name in self.keep or value in self.outputs:
            return None
        return node if len(self.readers[value]) == 1 else None

    def scores(self, value: str) -> _Scores | None:
        """The product that scores come from: through a sum at first, then through factors."""
        dims, node = self.specs[value].dims, self.alone(value)
        if node is not None and node.op == "add":
            for held, bias in (node.operands, node.operands[::-1]):
                found = self.scaled(held) if self.specs[held].dims == dims else None
                if found is not None and held != bias:
                    found.bias = bias
                    return found
            return None
        return self.scaled(value)

    def scaled(self, value: str) -> _Scores | None:
        """A product times numbers."""
        scale = 1.0
        while (node := self.alone(value)) is not None:
            if node.op == "matmul":
                query, key = node.operands
                return _Scores(query, key, scale)
            factor = factor_of(self.graph, node)
            if factor is None:
                return None
            value, scale = factor[0], scale * factor[1]
        return None

    def matched(
        self,
        operands: tuple[str, str, str],
        bias: str | None,
        attrs: dict[str, Any],
        result: str,
        *,
        turned: bool,
    ) -> _Match | None:
        """Query, key and value as views; ``turned``: the key has features before rows."""
        extents = self.extents(operands, turned=turned)
        if extents is None or max(extents.width, extents.out_width) > WIDEST:
            return None
        found: list[_Place] = []
        for index, value in enumerate(operands):
            place = self.operand(value, extents, index, turned=turned and index == 1)
            if place is None:
                return None
            found.append(place)
        query, key, values = found
        scale = attrs["scale"]
        scale = 1.0 / math.sqrt(extents.width) if scale is None else scale
        attrs["scale"] = scale * query.factor * key.factor
        if values.factor != 1.0 or not math.isfinite(attrs["scale"]):
            return None
        return _Match(extents, (query, key, values), bias, attrs, result)

    def extents(self, operands: tuple[str, str, str], *, turned: bool) -> Extents | None:
        """The sizes; those of three axes are one batch. None where batches broadcast."""
        query, key, value = (self.specs[v].dims for v in operands)
        rank = len(query)
        if rank not in (3, 4) or len(key) != rank or len(value) != rank or 0 in query + key + value:
            return None
        if turned and not query[:-2] == key[:-2] == value[:-2]:
            return None
        batch = query[0] if rank == 4 else 1
        keys = key[-1] if turned else key[-2]
        return Extents(batch, query[-3], key[-3], query[-2], keys, query[-1], value[-1])

    def operand(self, value: str, extents: Extents, index: int, *, turned: bool) -> _Place | None:
        """An operand's farthest root that is by head or by row."""
        for view in views(self.graph, self.producers, value):
            dims, strides = view.dims, view.strides
            if len(dims) == 3:
                dims, strides = (1, *dims), (0, *strides)
            if turned:
                dims, strides = (
                    (*dims[:2], dims[3], dims[2]),
                    (*strides[:2], strides[3], strides[2]),
                )
            size = self.specs[view.root].size
            found = _placed(replace(view, dims=dims, strides=strides), extents, index, size)
            if found is not None:
                return found
        return None

    # --- what it becomes ---

    def nodes(self, match: _Match) -> tuple[str, list[Node]]:
        """The nodes of an attention, and the result of the node whose place they take."""
        extents, (query, key, value) = match.extents, match.operands
        last = match.result
        offsets = tuple(place.offset for place in match.operands)
        by_row = self.turned_back(last)
        if by_row is not None:
            last = by_row.outputs[0]
        final = self.producers[last]
        attrs = {
            "softcap": 0.0, "causal_offset": None, **match.attrs,
            "extents": extents, "offsets": offsets, "by_row": by_row is not None,
        }  # fmt: skip
        inputs = (query.root, key.root, value.root, *((match.bias,) if match.bias else ()))
        if self.specs[last].rank == 4:
            return last, [Node(final.name, NAME, inputs, (last,), attrs)]
        made = unused(f"{last}.heads", self.specs)
        dims = (extents.batch, extents.heads, extents.length, extents.out_width)
        self.specs[made] = self.specs[last].with_shape(dims)
        name = unused(f"{final.name}.heads", {n.name: None for n in self.graph.nodes})
        shape = {"new_shape": self.specs[last].dims}
        return last, [
            Node(final.name, NAME, inputs, (made,), attrs),
            Node(name, "reshape", (made,), (last,), shape),
        ]

    def turned_back(self, value: str) -> Node | None:
        """The transposition that alone reads a result, and gives it by row."""
        readers = self.readers.get(value, [])
        if len(readers) != 1 or value in self.outputs or readers[0].name in self.keep:
            return None
        node = readers[0]
        order = tuple(node.attrs.get("permutation") or ())
        return node if node.op == "transpose" and order == (0, 2, 1, 3) else None


def _placed(view: View, extents: Extents, index: int, size: int) -> _Place | None:
    """A view of a root of so many elements as an operand by head or by row; None: it is neither."""
    dims = extents.operand(index)
    if view.dims != dims:
        return None
    if view.offset == 0 and size == math.prod(dims) and _same(dims, view.strides, dense(dims)):
        return _Place(view.root, None, view.factor)
    batch, heads, rows, width = dims
    columns = size // (batch * rows)
    fits = columns * batch * rows == size and view.offset + heads * width <= columns
    if fits and _same(dims, view.strides, (rows * columns, width, columns, 1)):
        return _Place(view.root, view.offset, view.factor)
    return None


def _same(dims: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(d == 1 or x == y for d, x, y in zip(dims, a, b, strict=True))
