"""Join quantised products with what follows them: ``quantized_conv2d`` and ``quantized_matmul``.

Products of dequantised bytes (QDQ graphs) and products of integers (``conv_integer``,
``matmul_integer``) take in the bias, the scale, bounds, and the quantisation of the result. What a
QDQ graph adds up in float32 is then an exact sum, scaled once: a result differs from
the graph's by at most one step, where the graph's own rounding error moves it across a half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crossdock.kernels.ops_conv import FILTER_AXES
from crossdock.kernels.ops_quantized import CONV, MATMUL, channel_axis
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.graph_edits import fresh
from crossdock.runtime.passes.prune import prune
from crossdock.runtime.passes.quantized_chain import BYTES, Chain, Known, along
from crossdock.runtime.tensor import Array, TensorSpec

WHOLE, NEAR = 1e-3, 2.0**-22
"""How far from a whole number of steps a bias may be that is one, and that for each step of it."""


def fuse_quantized(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with quantised products joined; nodes named in ``keep`` stay as they are."""
    return _Fusion(graph, keep).run()


@dataclass(frozen=True)
class Factors:
    """A product of bytes: its operands' names, the op's attributes, and where it starts."""

    op: str
    a: str
    b: str | Array
    a_zero: str | None
    b_zero: str | Array | None
    attrs: dict[str, Any]


class _Fusion:
    """One run of the pass over a graph."""

    def __init__(self, graph: Graph, keep: frozenset[str]) -> None:
        self.graph = graph
        self.keep = keep
        self.known = Known(graph)
        self.readers = graph.consumers()
        self.makers = graph.producers()
        self.outputs = set(graph.outputs.values())
        self.constants = dict(graph.constants)
        self.specs = dict(graph.specs)
        self.names = {node.name for node in graph.nodes}

    def run(self) -> Graph:
        """All products of the graph, each with what follows it."""
        made: dict[str, list[Node]] = {}  # by the value that a joined node makes
        for node in self.graph.nodes:
            if node.name in self.keep:
                continue
            found = self.start(node)
            if found is None:
                continue
            factors, chain = found
            last = self.follow(node, chain)
            if chain.real:
                made[chain.value] = self.nodes(factors, chain, last)
        if not made:
            return self.graph
        nodes = []
        for node in self.graph.nodes:
            nodes += made.get(node.outputs[0], [node])
        joined = replace(self.graph, nodes=tuple(nodes), constants=self.constants, specs=self.specs)
        return prune(joined)

    def follow(self, node: Node, chain: Chain) -> Node:
        """Take in what follows; the last op that was."""
        while True:
            readers = self.readers.get(chain.value, [])
            alone = chain.value not in self.outputs and len(readers) == 1
            if not alone or readers[0].name in self.keep or not chain.take(readers[0]):
                return node
            node = readers[0]

    # --- where a product starts ---

    def start(self, node: Node) -> tuple[Factors, Chain] | None:
        """A product of bytes and the chain that begins with it, or None."""
        rules = {
            "conv_integer": self.whole, "matmul_integer": self.whole,
            "conv2d": self.conv, "matmul": self.matmul, "gemm": self.gemm,
        }  # fmt: skip
        rule = rules.get(node.op)
        return None if rule is None else rule(node)

    def whole(self, node: Node) -> tuple[Factors, Chain] | None:
        """A product of integers that becomes a float after all."""
        op = CONV if node.op == "conv_integer" else MATMUL
        a, b, a_zero, b_zero = (*node.inputs, None, None)[:4]
        zero = None if a_zero is None else self.specs[a_zero]
        if a is None or b is None or (zero is not None and zero.size != 1):
            return None
        factors = Factors(op, a, b, a_zero, b_zero, dict(node.attrs))
        return factors, Chain(self.known, node.outputs[0], channel_axis(op, node.attrs))

    def conv(self, node: Node) -> tuple[Factors, Chain] | None:
        """A convolution of dequantised bytes."""
        left, right = (self.bytes_of(v) for v in node.inputs[:2])
        if left is None or right is None or self.known(right.value) is None:
            return None
        outputs = FILTER_AXES[node.attrs["filter_layout"]][0]
        axis = channel_axis(CONV, node.attrs)
        scale = along(right.scale, 4, outputs - 4, self.specs[right.value].dims[outputs])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if left.scale.size != 1 or scale is None:
            return None
        factors = Factors(CONV, left.value, right.value, left.zero, right.zero, dict(node.attrs))
        return self.begun(node, factors, axis, left.scale.reshape(()) * scale, bias)

    def matmul(self, node: Node) -> tuple[Factors, Chain] | None:
        """A product of dequantised matrices."""
        left, right = (self.bytes_of(v) for v in node.inputs[:2])
        if left is None or right is None or left.scale.size != 1:
            return None
        if self.known(right.value) is None:
            return None  # products of two activations are quicker in floats
        spec = self.specs[right.value]
        scale = along(right.scale, spec.rank, -1, spec.dims[-1])
        if scale is None:
            return None
        factors = Factors(MATMUL, left.value, right.value, left.zero, right.zero, {})
        return self.begun(node, factors, -1, left.scale.reshape(()) * scale, None)

    def gemm(self, node: Node) -> tuple[Factors, Chain] | None:
        """A general product of dequantised matrices by constant weights."""
        attrs = node.attrs
        left, right = (self.bytes_of(v) for v in node.inputs[:2])
        if left is None or right is None or attrs["a_transpose"] or attrs["beta"] != 1.0:
            return None
        weights, zero = self.known(right.value), self.known(right.zero)
        side = -2 if attrs["b_transpose"] else -1
        scale = along(right.scale, 2, side, self.specs[right.value].dims[side])
        if weights is None or zero is None or scale is None or left.scale.size != 1:
            return None
        if attrs["b_transpose"]:
            weights, zero = weights.T, zero.T
        factors = Factors(MATMUL, left.value, weights, left.zero, zero, {})
        scale = left.scale.reshape(()) * scale * attrs["alpha"]
        addend = node.inputs[2] if len(node.inputs) > 2 else None
        return self.begun(node, factors, -1, scale, addend)

    def begun(
        self, node: Node, factors: Factors, axis: int, scale: Array, bias: str | None
    ) -> tuple[Factors, Chain] | None:
        """The chain of a float product: its scale, and its bias, in steps of it where it is."""
        if not bool((np.isfinite(scale) & (scale > 0)).all()):
            return None
        chain = Chain(self.known, node.outputs[0], axis, real=True, scale=scale)
        if bias is None:
            return factors, chain
        given, size = self.known(bias), self.specs[node.outputs[0]].dims[axis]
        row = None if given is None else along(given, 1 if factors.op == CONV else 2, -1, size)
        if row is None:
            return None
        steps = row.astype(np.float64) / scale
        whole = np.rint(steps)
        close = np.abs(steps - whole) <= WHOLE + NEAR * np.abs(whole)
        if bool((close & (np.abs(whole) < 2**31)).all()):
            chain.bias = np.broadcast_to(whole, steps.shape).astype(np.int32)
        else:
            chain.offset = row.astype(np.float64)
        return factors, chain

    def bytes_of(self, value: str | None) -> _Bytes | None:
        """The bytes that a value is dequantised from with constant scale and zero point."""
        node = None if value is None else self.makers.get(value)
        if node is None or node.op != "dequantize_linear" or node.name in self.keep:
            return None
        source, scale_name, zero = node.inputs[:3]
        scale = self.known(scale_name)
        if source is None or zero is None or scale is None or self.known(zero) is None:
            return None
        good = self.specs[source].dtype in BYTES and self.specs[node.outputs[0]].dtype == "float32"
        return _Bytes(source, scale.astype(np.float64), zero) if good else None

    # --- the joined node ---

    def nodes(self, factors: Factors, chain: Chain, last: Node) -> list[Node]:
        """The node that takes a chain's place, after one that shapes its scale if need be."""
        value, before = chain.value, []
        terms = {n: self.constant(f"{value}.{n}", a) for n, a in chain.terms().items()}
        if chain.runtime is not None:
            spec = self.specs[chain.runtime]
            shape = () if spec.size == 1 else (spec.size,)
            terms["scale"] = chain.runtime
            if spec.dims != shape:
                made = fresh(f"{value}.scale", self.specs)
                self.specs[made] = TensorSpec("float32", shape)
                name = fresh(f"{last.name}.scale", self.names)
                self.names.add(name)
                attrs = {"new_shape": shape}
                before = [Node(name, "reshape", (chain.runtime,), (made,), attrs)]
                terms["scale"] = made
        a_zero, b_zero = self.first_zero(factors.a_zero), self.weights_zero(factors)
        b = factors.b if isinstance(factors.b, str) else self.constant(f"{value}.b", factors.b)
        zero = None if chain.zero is None else self.one(chain.zero)
        inputs = (
            factors.a, b, terms["scale"], a_zero, b_zero, terms.get("bias"), terms.get("offset"),
            zero,
        )  # fmt: skip
        bounds = {
            "min_value": None if chain.low == -math.inf else chain.low,
            "max_value": None if chain.high == math.inf else chain.high,
        }
        return [*before, Node(last.name, factors.op, inputs, (value,), factors.attrs | bounds)]

    def first_zero(self, name: str | None) -> str | None:
        """The first factor's zero point: one element is a scalar."""
        known = self.known(name)
        return name if known is None or name is None else self.one(name)

    def weights_zero(self, factors: Factors) -> str | None:
        """The second factor's zero point, one element or in a shape that broadcasts."""
        zero = factors.b_zero
        if zero is None:
            return None
        array = zero if not isinstance(zero, str) else self.known(zero)
        if array is None:
            return str(zero)
        if not array.any():
            return None
        name = zero if isinstance(zero, str) else f"{factors.a}.zero"
        shaped = array.reshape(()) if array.size == 1 else array
        return self.constant(f"{name}.of", shaped)

    def one(self, name: str) -> str:
        """A constant of one element as a scalar."""
        array = self.known(name)
        assert array is not None
        if self.specs[name].rank == 0:
            return name
        return self.constant(f"{name}.one", array.reshape(()))

    def constant(self, name: str, array: Array) -> str:
        """Add a constant."""
        name = fresh(name, self.specs)
        array = np.ascontiguousarray(array).reshape(array.shape)
        array.flags.writeable = False
        self.constants[name], self.specs[name] = array, TensorSpec.of(array)
        return name


@dataclass(frozen=True)
class _Bytes:
    """Bytes of a dequantisation: the value, scale (float64), and the zero point's name."""

    value: str
    scale: Array
    zero: str
