"""ONNX control flow: conditionals, and loops whose number of rounds is known."""

from __future__ import annotations

from dataclasses import replace

from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders.onnx_frame import Captures
from crossdock.runtime.loaders.onnx_table import Context, Value, onnx_op


@onnx_op("If")
def conditional(ctx: Context) -> list[Value | None]:
    """A known condition leaves one branch, written in place; else both become graphs."""
    yes, no = ctx.node.graph("then_branch"), ctx.node.graph("else_branch")
    if yes.inputs or no.inputs:
        raise ctx.malformed("a branch has inputs")
    if not len(yes.outputs) == len(no.outputs) == len(ctx.node.outputs):
        raise ctx.malformed("the branches and the node differ in their number of outputs")
    converter, frame = ctx.frame.converter, ctx.frame
    condition = ctx.known(0)
    if condition is not None:
        values = converter.inline(frame, yes if condition.reshape(-1)[0] else no)
        if any(value is None for value in values):
            raise ctx.unsupported("its branch")
        return values
    captures = Captures()
    (then_graph, marks), (else_graph, others) = (
        converter.branch(frame, graph, captures) for graph in (yes, no)
    )
    if marks != others:
        raise ctx.malformed("the branches differ in their element types")
    results = ctx.b.if_(
        ctx.x(0),
        list(captures.values.values()),
        then_branch=_with_inputs(then_graph, captures),
        else_branch=_with_inputs(else_graph, captures),
    )
    return [Value(r, mark) for r, mark in zip(results, marks, strict=True)]


def _with_inputs(graph: Graph, captures: Captures) -> Graph:
    """A branch with every captured value among its inputs, in one order for all branches."""
    specs = {name: operand.spec for name, operand in captures.values.items()}
    return replace(graph, inputs=specs, specs={**graph.specs, **specs})
