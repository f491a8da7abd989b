"""Write a batch normalisation by constants as elementwise ops, which fuse with what follows.

``(x - mean) / sqrt(variance + epsilon) * gain + bias`` is ``(x - mean) * s + bias`` with a constant
``s`` along one axis, taken in float64 and rounded once. As ``x * s + t`` it would lose what is left
where a mean is large. Runs after the pass that folds normalisations into a convolution.
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
        parts = None if node.name in keep else _parts(node, constants, specs)
        if parts is None:
            nodes.append(node)
            continue
        value, taken = node.inputs[0], {n.name for n in (*graph.nodes, *nodes)}
        for op, array in parts[:-1]:
            made = unused(f"{node.outputs[0]}.{op}", specs)
            specs[made] = specs[node.outputs[0]]
            name = unused(f"{node.name}.{op}", dict.fromkeys(taken))
            operand = _constant(f"{made}.by", array, constants, specs)
            nodes.append(Node(name, op, (value, operand), (made,), {}))
            value = made
        op, array = parts[-1]
        operand = _constant(f"{node.outputs[0]}.{op}.by", array, constants, specs)
        nodes.append(Node(node.name, op, (value, operand), node.outputs, {}))
    return replace(graph, nodes=tuple(nodes), constants=constants, specs=specs)


def _constant(
    name: str, array: Array, constants: dict[str, Array], specs: dict[str, TensorSpec]
) -> str:
    name = unused(name, specs)
    constants[name], specs[name] = array, TensorSpec.of(array)
    return name


def _parts(
    node: Node, constants: dict[str, Array], specs: dict[str, TensorSpec]
) -> list[tuple[str, Array]] | None:
    """Ops and their second operands, in order, where all of them are constant.

    The operands have the type of the result and are shaped to broadcast.
    """
    if node.op != "batch_normalization" or node.inputs[0] in constants:
        return None
    spec, axis = specs[node.outputs[0]], node.attrs["axis"]
    if spec.dtype not in WIDE:
        return None
    found = scale_and_shift(node, constants, spec.dims[axis])
    if found is None:
        return None
    mean, bias = node.inputs[1], node.inputs[4] if len(node.inputs) > 4 else None
    assert mean is not None
    shape = [1] * (spec.rank - axis)
    shape[0] = -1

    def part(array: Array) -> Array:
        made = np.ascontiguousarray(array.astype(spec.dtype).reshape(shape))
        made.flags.writeable = False
        return made

    parts = [("sub", part(constants[mean])), ("mul", part(found[0]))]
    return parts if bias is None else [*parts, ("add", part(constants[bias]))]
