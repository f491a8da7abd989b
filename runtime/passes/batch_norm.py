"""Write a batch normalisation by constants as a product and a sum, which fuse with what follows.

``(x - mean) / sqrt(variance + epsilon) * gain + bias`` is ``x * s + t`` with constant ``s`` and
``t`` along one axis. They are taken in float64 and rounded once. Runs after the pass that folds
them into a convolution.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.passes.normalization import scale_and_shift, unused
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec

WIDE = frozenset(FLOATS) & {"float32", "float64"}


def expand_batch_norm(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with normalisations by constants written out; ``keep`` names stay."""
    constants, specs = dict(graph.constants), dict(graph.specs)
    nodes: list[Node] = []
    for node in graph.nodes:
        pair = None if node.name in keep else _pair(node, constants, specs)
        if pair is None:
            nodes.append(node)
            continue
        names = []
        for part, array in zip(("scale", "shift"), pair, strict=True):
            name = unused(f"{node.outputs[0]}.{part}", specs)
            constants[name], specs[name] = array, TensorSpec.of(array)
            names.append(name)
        scaled = unused(f"{node.outputs[0]}.scaled", specs)
        specs[scaled] = specs[node.outputs[0]]
        first = unused(f"{node.name}.scaled", {n.name: None for n in graph.nodes})
        nodes.append(Node(first, "mul", (node.inputs[0], names[0]), (scaled,), {}))
        nodes.append(Node(node.name, "add", (scaled, names[1]), node.outputs, {}))
    return replace(graph, nodes=tuple(nodes), constants=constants, specs=specs)


def _pair(
    node: Node, constants: dict[str, Array], specs: dict[str, TensorSpec]
) -> tuple[Array, Array] | None:
    """Scale and shift in the operand's type, shaped to broadcast, where all is constant."""
    if node.op != "batch_normalization" or node.inputs[0] in constants:
        return None
    spec, axis = specs[node.outputs[0]], node.attrs["axis"]
    if spec.dtype not in WIDE:
        return None
    found = scale_and_shift(node, constants, spec.dims[axis])
    if found is None:
        return None
    shape = [1] * (spec.rank - axis)
    shape[0] = -1
    made = []
    for array in found:
        part = np.ascontiguousarray(array.astype(spec.dtype).reshape(shape))
        part.flags.writeable = False
        made.append(part)
    return made[0], made[1]
