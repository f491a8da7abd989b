"""Fold per-channel scales and shifts into the weights of the convolution before them.

``batch_normalization(conv2d(x, w, b))`` and ``conv2d(x, w, b) * s`` or ``+ t`` with constant
per-channel ``s``, ``t`` are convolutions with other weights and bias: w' = s w, b' = s b + t.
Products are taken in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.tensor import Array, TensorSpec

_OUT_AXIS = {"oihw": 0, "ohwi": 0, "hwio": 3, "ihwo": 3}


@dataclass(frozen=True)
class _Affine:
    scale: Array  # float64 [channels]
    shift: Array


def fold_affine(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with constant per-channel affine ops folded into convolutions."""
    readers = graph.consumers()
    outputs = set(graph.outputs.values())
    constants, specs = dict(graph.constants), dict(graph.specs)
    nodes: dict[str, Node] = {}  # by first output
    for node in graph.nodes:
        value = next((v for v in node.operands if _open(nodes.get(v), constants)), None)
        free = value is not None and value not in outputs and len(readers[value]) == 1
        if free and value is not None and node.name not in keep:
            conv = nodes[value]
            affine = None if conv.name in keep else _affine(node, value, conv, constants, specs)
            if affine is not None:
                del nodes[value]
                nodes[node.outputs[0]] = _folded(conv, node, affine, constants, specs)
                continue
        nodes[node.outputs[0]] = node
    return replace(graph, nodes=tuple(nodes.values()), constants=constants, specs=specs)


def _open(node: Node | None, constants: dict[str, Array]) -> bool:
    """True for a convolution whose weights (and bias, where there) are constants."""
    if node is None or node.op != "conv2d":
        return False
    return all(v in constants for v in node.inputs[1:] if v is not None)


def _affine(
    node: Node, value: str, conv: Node, constants: dict[str, Array], specs: dict[str, TensorSpec]
) -> _Affine | None:
    axis = 1 if conv.attrs["input_layout"] == "nchw" else 3
    channels = specs[value].dims[axis]
    if node.op == "batch_normalization" and node.attrs["axis"] == axis:
        return _batch_norm(node, value, constants, channels)
    if node.op not in ("mul", "add", "sub") or specs[node.outputs[0]] != specs[value]:
        return None
    if node.op == "sub" and node.inputs[0] != value:
        return None
    other = next((v for v in node.operands if v != value), None)
    vector = None if other is None else _per_channel(constants.get(other), axis, channels)
    if vector is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == "mul":
        return _Affine(vector, zero)
    return _Affine(one, vector if node.op == "add" else -vector)


def _batch_norm(
    node: Node, value: str, constants: dict[str, Array], channels: int
) -> _Affine | None:
    found = scale_and_shift(node, constants, channels) if node.inputs[0] == value else None
    return None if found is None else _Affine(*found)


def scale_and_shift(
    node: Node, constants: Mapping[str, Array], channels: int
) -> tuple[Array, Array] | None:
    """What a batch normalisation multiplies by and adds, float64 [channels]; None: no constants."""
    if any(v not in constants for v in node.operands[1:]):
        return None
    arrays = [None if v is None else constants[v].astype(np.float64) for v in node.inputs[1:]]
    arrays += [None] * (4 - len(arrays))
    mean, variance, gain, bias = arrays
    assert mean is not None
    assert variance is not None
    scale = 1.0 / np.sqrt(variance + float(node.attrs["epsilon"]))
    scale = scale if gain is None else gain * scale
    shift = (np.zeros(channels) if bias is None else bias) - mean * scale
    return scale, shift


def _per_channel(array: Array | None, axis: int, channels: int) -> Array | None:
    """A constant as a float64 vector over channels, where it varies over no other axis."""
    if array is None or array.ndim > 4:
        return None
    shape = (1,) * (4 - array.ndim) + array.shape
    if any(d != 1 for i, d in enumerate(shape) if i != axis):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def _folded(
    conv: Node,
    node: Node,
    affine: _Affine,
    constants: dict[str, Array],
    specs: dict[str, TensorSpec],
) -> Node:
    x, w = conv.inputs[0], conv.inputs[1]
    b = conv.inputs[2] if len(conv.inputs) > 2 else None
    assert w is not None
    weights = constants[w]
    shape = [1, 1, 1, 1]
    shape[_OUT_AXIS[conv.attrs["filter_layout"]]] = -1
    bias = affine.shift + (0.0 if b is None else constants[b].astype(np.float64) * affine.scale)
    names = [unused(f"{node.outputs[0]}.{part}", specs) for part in ("weights", "bias")]
    scaled = np.empty(weights.shape, weights.dtype)  # rounded a few values at a time: no copy
    np.multiply(weights, affine.scale.reshape(shape), scaled, dtype="f8", casting="unsafe")
    for name, made in zip(names, (scaled, bias.astype(weights.dtype)), strict=True):
        made.flags.writeable = False
        constants[name] = made
        specs[name] = TensorSpec.of(made)
    return Node(conv.name, "conv2d", (x, *names), node.outputs, conv.attrs)


def unused(name: str, specs: Mapping[str, object]) -> str:
    """The name, or one like it that no value of the graph has."""
    while name in specs:
        name += "_"
    return name
