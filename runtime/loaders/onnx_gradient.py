"""ONNX Gradient (ai.onnx.preview.training): reverse-mode differentiation of a part of the graph.

The part between the tensors "xs" and "zs" and the tensor "y" is given to the node as a subgraph
when the model is loaded. It is written again with the node's inputs in place of those tensors, and
behind it the chain rule, node by node from the last to the first (Linnainmaa 1970), by the rules of
``onnx_vjp``. A y of more than one element counts as the sum of its elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.loaders.onnx_frame import Frame
from crossdock.runtime.loaders.onnx_model import OnnxGraph, OnnxModel, OnnxNode, OnnxValue, shown
from crossdock.runtime.loaders.onnx_table import Context, Deferred, Value, onnx_op
from crossdock.runtime.loaders.onnx_vjp import Chain, rule_of
from crossdock.runtime.tensor import FLOATS, to_numpy

DOMAIN = "ai.onnx.preview.training"

_BODY = "differentiated"
"""The attribute that holds the subgraph; ONNX has none of that name."""


def is_gradient(node: OnnxNode) -> bool:
    """True for a Gradient node."""
    return node.op == "Gradient" and node.domain == DOMAIN


def attach(model: OnnxModel) -> OnnxModel:
    """The model, its nodes in topological order, with a subgraph in each Gradient node.

    Raises:
        MalformedModel: a node names a tensor that nothing makes.
    """
    nodes = model.graph.nodes
    if not any(map(is_gradient, nodes)):
        return model
    known = {v.name for v in model.graph.inputs} | set(model.graph.constants)
    done: list[OnnxNode] = []
    for node in nodes:
        done.append(_attached(node, done, known) if is_gradient(node) else node)
    return replace(model, graph=replace(model.graph, nodes=tuple(done)))


def _attached(node: OnnxNode, before: Sequence[OnnxNode], known: set[str]) -> OnnxNode:
    """A Gradient node with the nodes that lead from its tensors to y."""
    node.require("xs")
    node.require("y")
    starts = [*(node.get_strs("xs") or ()), *(node.get_strs("zs") or ())]
    y = node.get_str("y")
    if len(starts) != len(node.inputs) or len(set(starts)) < len(starts):
        raise MalformedModel(
            f"{node}: {len(starts)} tensors in xs and zs, {len(node.inputs)} inputs"
        )
    made = {name for item in before for name in item.outputs}
    for name in (*starts, y):
        if name not in made and name not in known:
            raise MalformedModel(f"{node}: {shown(name)} is no tensor that is made before it")
    needed = {y} - set(starts)
    chosen: list[OnnxNode] = []
    for item in reversed(before):
        if needed.intersection(item.outputs):
            chosen.append(item)
            needed.update(name for name in item.inputs if name)
            needed.difference_update(starts)
    inputs = tuple(OnnxValue(name, None, None) for name in starts)
    graph = OnnxGraph(node.label, inputs, (OnnxValue(y, None, None),), tuple(chosen[::-1]), {})
    return replace(node, attrs={**node.attrs, _BODY: graph})


@onnx_op("Gradient", domain=DOMAIN)
def gradient(ctx: Context) -> list[Operand | None]:
    """The derivatives of y by the tensors of xs, at the node's inputs."""
    if _BODY not in ctx.node.attrs:
        raise ctx.unsupported("a Gradient inside a function or a branch")
    graph, frame = ctx.node.graph(_BODY), ctx.frame
    inner = Frame(
        frame.converter, frame.writer, frame.opsets, parent=frame, prefix=f"{ctx.node.label}/"
    )
    inner.values.update(zip((v.name for v in graph.inputs), ctx.inputs, strict=True))
    try:
        frame.converter.graph(inner, graph)
    except Deferred as why:
        raise ctx.unsupported(f"a gradient through what hangs on values ({why})") from why
    # Converting the part ended the naming of what is made after this node.
    frame.writer.b.label, frame.writer.b.made = ctx.node.label, []
    xs = ctx.node.get_strs("xs") or ()
    slopes = _slopes(ctx, inner, graph, xs)
    made: list[Operand | None] = []
    for index, name in enumerate(xs):
        x = ctx.x(index)
        slope = slopes.get(name)
        made.append(_filled(ctx, x, 0) if slope is None else slope)
    return made


def _filled(ctx: Context, like: Operand, fill: float) -> Operand:
    shape = tuple(int(d) for d in like.shape)
    return ctx.frame.filled(shape, np.array(fill, to_numpy(like.dtype))).operand


def _slopes(ctx: Context, inner: Frame, graph: OnnxGraph, xs: Sequence[str]) -> dict[str, Operand]:
    """The derivative of y by every tensor on the way to it from ``xs``."""
    b = ctx.b
    active = set(xs)
    for node in graph.nodes:
        if active.intersection(node.inputs):
            active.update(name for name in node.outputs if name)
    y = graph.outputs[0].name
    end = inner.require(y).operand
    if end.dtype not in FLOATS:
        raise ctx.malformed(f"{shown(y)} is {end.dtype}, which has no derivative")
    slopes = {y: _filled(ctx, end, 1)} if y in active else {}
    for node in reversed(graph.nodes):
        slope = slopes.get(node.outputs[0])
        if slope is None or not active.intersection(node.inputs):
            continue
        rule = rule_of(node)
        if rule is None:
            raise ctx.unsupported(f"a gradient through {node.kind}")
        chain = _chain(ctx, inner, node, slope)
        for name, part in zip(node.inputs, rule(chain), strict=False):
            if part is not None and name in active:
                slopes[name] = b.add(slopes[name], part) if name in slopes else part
    return slopes


def _chain(ctx: Context, inner: Frame, node: OnnxNode, slope: Operand) -> Chain:
    values = [inner.get(name) if name else None for name in node.inputs]
    operands = tuple(v.operand if isinstance(v, Value) else None for v in values)
    result = inner.require(node.outputs[0]).operand
    opset = ctx.frame.opsets.get(node.domain, 0)
    return Chain(ctx.b, node, opset, operands, result, slope)
