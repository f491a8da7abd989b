"""Fuse elementwise ops into the convolution or product before them: its result is written once.

``relu(conv2d(x, w, b))`` and ``relu(conv2d(x, w, b) + r)`` with ``r`` of the result's shape become
one ``fused_conv2d``, and so products with constants one ``fused_matmul``; constants of one element
become numbers in its body. The joined node takes the elementwise op's name and place.
"""

from __future__ import annotations

import math
from dataclasses import replace

from crossdock.kernels import fused_conv, fused_matmul
from crossdock.kernels.fused import FUSIBLE, FusedBody, FusedStep, body_of
from crossdock.runtime.calls import op_call
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.passes.matmul import constant_product


def fuse_epilogue(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
    """Return the graph with elementwise ops fused into producers; ``keep`` names stay alone."""
    readers = graph.consumers()
    outputs = set(graph.outputs.values())
    convs: dict[str, Node] = {}  # by result, those that may take in what reads it
    fused: dict[str, Node] = {}  # by result
    gone: set[str] = set()  # results that are not stored any more
    for node in graph.nodes:
        value = node.outputs[0]
        if node.name in keep:
            continue
        if node.op in FUSED:
            if value not in outputs and len(readers[value]) == 1 and _plain(graph, node):
                convs[value] = node
            continue
        before = next((v for v in reversed(node.operands) if v in convs), None)
        joined = None if before is None else _joined(graph, node, convs[before])
        if before is not None and joined is not None:
            fused[value] = joined
            gone.add(before)
    nodes = [fused.get(n.outputs[0], n) for n in graph.nodes if n.outputs[0] not in gone]
    return replace(graph, nodes=tuple(nodes))


FUSED = {
    "conv2d": fused_conv.NAME,
    "matmul": fused_matmul.NAME,
    fused_matmul.NAME: fused_matmul.NAME,
}
"""Ops that take in what follows, and what they become."""


def _plain(graph: Graph, node: Node) -> bool:
    """A convolution in the layouts that kernels with an epilogue have, or a product."""
    attrs = node.attrs
    if node.op != "conv2d":
        return attrs.get("body") is None and constant_product(graph, node)
    layouts = attrs["input_layout"] == "nchw" and attrs["filter_layout"] == "oihw"
    return layouts and graph.specs[node.outputs[0]].dtype in FUSIBLE


def _joined(graph: Graph, node: Node, conv: Node) -> Node | None:
    """The convolution with the elementwise op, or None where the op is not of its kind."""
    value = conv.outputs[0]
    body = _body(graph, node)
    if body is None or graph.specs[node.outputs[0]] != graph.specs[value]:
        return None
    others = list(dict.fromkeys(v for v in node.operands if v != value))
    numbers = {v: n for v in others if (n := _number(graph, v)) is not None}
    beside = [v for v in others if v not in numbers]
    if len(beside) > 1 or any(graph.specs[v] != graph.specs[value] for v in beside):
        return None
    place = {value: 0, **dict.fromkeys(beside, 1)}
    place |= {v: -1 - i for i, v in enumerate(numbers)}
    at = [place[v] for v in node.operands]
    dtype = graph.specs[value].dtype
    first = tuple(
        FusedStep(fused_conv.SCALAR, {"value": n}, (), dtype, ()) for n in numbers.values()
    )
    steps = first + tuple(
        replace(step, args=tuple(at[a] if a >= 0 else a - len(first) for a in step.args))
        for step in body.steps
    )
    others = beside
    inputs = (*conv.inputs, *(None for _ in range(3 - len(conv.inputs))), *others)
    attrs = {**conv.attrs, "body": FusedBody(steps)}
    return Node(node.name, FUSED[conv.op], inputs, node.outputs, attrs)


def _number(graph: Graph, value: str) -> float | None:
    """The number that a constant of one element is; it broadcasts to any shape."""
    array = graph.constants.get(value)
    if array is None or array.size != 1 or array.ndim > 4:
        return None
    number = float(array.reshape(-1)[0])
    return number if math.isfinite(number) else None


def _body(graph: Graph, node: Node) -> FusedBody | None:
    """The steps of an elementwise op, of the result's type alone."""
    if len(node.operands) != len(node.inputs) or len(node.outputs) != 1:
        return None
    body = body_of(op_call(graph, node))
    if body is None:
        return None
    steps: tuple[FusedStep, ...] = body.steps
    whole = graph.specs[node.outputs[0]].dtype
    plain = all(dtype == whole for s in steps for dtype in (*s.inputs, s.dtype))
    return body if plain else None
