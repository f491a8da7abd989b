"""Set the subnormal weights of products to zero.

Processors multiply subnormal numbers in microcode, at a hundred times the price or more, and
trained models have them where training drove weights towards zero. A product's result moves by less
than 2^-126 times the sum of its other operand's magnitudes, far below what rounding leaves in it,
unless all weights are about as small: then nothing is changed.
"""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np

from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.graph_edits import fresh
from crossdock.runtime.tensor import Array

NAME = "flush-subnormals"
PRODUCTS = ("conv2d", "conv_transpose2d", "gemm", "matmul", "fused_matmul", "lstm", "gru")
SMALLEST = float(np.finfo(np.float32).tiny)
LARGEST = 2.0**-40
"""Magnitude that one of the weights has at least."""
CHUNK = 1 << 20


def flush_subnormals(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with subnormal float32 weights of convolutions and products at zero."""
    constants, specs = dict(graph.constants), dict(graph.specs)
    flushed: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op in PRODUCTS and node.name not in keep:
            for value in node.operands:
                if value in graph.constants and value not in flushed:
                    made = _flushed(graph.constants[value])
                    name = value if made is None else fresh(f"{value}_flushed", specs)
                    flushed[value] = name
                    if made is not None:
                        constants[name], specs[name] = made, specs[value]
            inputs = tuple(v if v is None else flushed.get(v, v) for v in node.inputs)
            node = replace(node, inputs=inputs) if inputs != node.inputs else node
        nodes.append(node)
    if len(constants) == len(graph.constants):
        return graph
    return replace(graph, nodes=tuple(nodes), constants=constants, specs=specs)


_SOUND: dict[int, weakref.ref[Array]] = {}
"""Arrays, by identity, that were found to need nothing: a model is simplified for every shape."""


def _flushed(array: Array) -> Array | None:
    """The array without its subnormal numbers; None where it has none or nothing larger."""
    key = id(array)
    known = _SOUND.get(key)
    if known is not None and known() is array:
        return None
    made = _looked_through(array)
    if made is None:
        _SOUND[key] = weakref.ref(array, lambda _: _SOUND.pop(key, None))
    return made


def _looked_through(array: Array) -> Array | None:
    if array.dtype != np.float32 or array.size == 0:
        return None
    flat = array.reshape(-1)
    parts = [flat[i : i + CHUNK] for i in range(0, flat.size, CHUNK)]
    if not any(_subnormal(part).any() for part in parts):
        return None
    if max(float(np.abs(part).max()) for part in parts) < LARGEST:
        return None
    made = np.where(_subnormal(array), np.float32(0.0), array)
    made.flags.writeable = False
    return made


def _subnormal(array: Array) -> Array:
    found: Array = (np.abs(array) < SMALLEST) & (array != 0)
    return found
