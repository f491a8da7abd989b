"""Products with constants: biases taken into them, and those of attention's operands made as one.

``a @ w + b`` with a constant matrix and a constant row becomes one ``fused_matmul``. Where query,
key and value of an attention are such products of one ``a``, they become one product with the
matrices side by side, which the attention reads by columns.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from crossdock.kernels import fused_attention, fused_matmul
from crossdock.kernels.fused import FUSIBLE
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.passes.normalization import unused
from crossdock.runtime.tensor import Array, TensorSpec


def fuse_bias(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with biases in the products before them; ``keep`` names stay alone."""
    readers, outputs = graph.consumers(), set(graph.outputs.values())
    constants, specs = dict(graph.constants), dict(graph.specs)
    products: dict[str, Node] = {}  # by result, those that may take a bias
    fused: dict[str, Node] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        value = node.outputs[0]
        if node.name in keep:
            continue
        if node.op == "matmul":
            if (
                value not in outputs
                and len(readers.get(value, ())) == 1
                and constant_product(graph, node)
            ):
                products[value] = node
        elif node.op == "add":
            product = next((products[v] for v in node.operands if v in products), None)
            bias = None if product is None else _bias(graph, node, product)
            if product is None or bias is None:
                continue
            row = constants[bias].reshape(-1)
            if constants[bias].ndim != 1:
                bias = unused(f"{value}.bias", specs)
                constants[bias], specs[bias] = row, TensorSpec.of(row)
            inputs = (*product.inputs, bias)
            fused[value] = Node(product.name, fused_matmul.NAME, inputs, (value,), {"body": None})
            gone.add(product.outputs[0])
    nodes = [fused.get(n.outputs[0], n) for n in graph.nodes if n.outputs[0] not in gone]
    return replace(graph, nodes=tuple(nodes), constants=constants, specs=specs)


def constant_product(graph: Graph, node: Node) -> bool:
    """A product with a constant matrix, of a type that is fused."""
    right = graph.constants.get(node.operands[1])
    if right is None or node.operands[0] in graph.constants:
        return False
    return math.prod(right.shape[:-2]) == 1 and graph.specs[node.outputs[0]].dtype in FUSIBLE


def _bias(graph: Graph, node: Node, product: Node) -> str | None:
    """What a sum adds to a product: a constant row; None where it is none."""
    value = product.outputs[0]
    if graph.specs[node.outputs[0]] != graph.specs[value]:
        return None
    other = next((v for v in node.operands if v != value), None)
    array = graph.constants.get(other or "")
    columns = graph.specs[value].dims[-1]
    if other is None or array is None or array.ndim == 0:
        return None
    return other if array.shape[-1] == array.size == columns else None


# --- products of one operand ----------------------------------------------------------------------


def merge_products(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with the products of an attention's operands as one, where they share one.

    Nodes named in ``keep`` stay alone.
    """
    readers, outputs = graph.consumers(), set(graph.outputs.values())
    producers = graph.producers()
    constants, specs = dict(graph.constants), dict(graph.specs)
    made: dict[str, Node | None] = {}  # by name of the node they replace; None: it is gone
    for node in graph.nodes:
        if node.op != fused_attention.NAME or node.name in keep:
            continue
        found: dict[str, Node] = {}
        for value, offset in zip(node.operands[:3], node.attrs["offsets"], strict=True):
            maker = producers.get(value)
            alone = (
                len(readers[value]) == 1 and value not in outputs and value not in node.inputs[3:]
            )
            if maker is None or offset is None or not alone or maker.name in keep:
                continue
            if _mergeable(graph, maker) and all(_alike(maker, o) for o in found.values()):
                found[value] = maker
        if len(found) < 2:
            continue
        product = _joined(list(found.values()), constants, specs)
        first = next(n for n in graph.nodes if n in found.values())
        made |= {maker.name: None for maker in found.values()} | {first.name: product}
        made[node.name] = _shifted(graph, node, found, product.outputs[0])
    nodes = [made.get(n.name, n) for n in graph.nodes]
    kept = tuple(n for n in nodes if n is not None)
    return replace(graph, nodes=kept, constants=constants, specs=specs)


def _mergeable(graph: Graph, node: Node) -> bool:
    if node.op == fused_matmul.NAME and node.attrs["body"] is not None:
        return False
    plain = node.op in (fused_matmul.NAME, "matmul") and constant_product(graph, node)
    return plain and graph.constants[node.operands[1]].ndim == 2


def _alike(a: Node, b: Node) -> bool:
    """Products of one operand, with a bias both or neither."""
    return a.inputs[0] == b.inputs[0] and len(a.inputs) == len(b.inputs)


def _joined(
    products: list[Node], constants: dict[str, Array], specs: dict[str, TensorSpec]
) -> Node:
    """One product with the matrices, and the biases, side by side."""
    first = products[0]
    result = unused(f"{first.outputs[0]}.joined", specs)
    inputs = [first.inputs[0]]
    for index in range(1, len(first.inputs)):
        arrays = [constants[n.operands[index]] for n in products]
        array = np.concatenate(arrays, axis=-1)
        array.flags.writeable = False
        name = unused(f"{result}.{index}", specs)
        constants[name], specs[name] = array, TensorSpec.of(array)
        inputs.append(name)
    columns = sum(specs[n.outputs[0]].dims[-1] for n in products)
    spec = specs[first.outputs[0]]
    specs[result] = spec.with_shape((*spec.dims[:-1], columns))
    return Node(first.name, first.op, tuple(inputs), (result,), first.attrs)


def _shifted(graph: Graph, node: Node, found: dict[str, Node], result: str) -> Node:
    """The attention with operands that are columns of one value."""
    starts, at = {}, 0
    for value in found:
        starts[value] = at
        at += graph.specs[value].dims[-1]
    inputs, offsets = list(node.inputs), list(node.attrs["offsets"])
    for i, value in enumerate(node.operands[:3]):
        if value in starts:
            inputs[i] = result
            offsets[i] += starts[value]
    attrs = {**node.attrs, "offsets": tuple(offsets)}
    return replace(node, inputs=tuple(inputs), attrs=attrs)
