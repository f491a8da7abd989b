"""ONNX conditionals: folded, written in place behind a guard, or kept as two graphs.

What fits none of these, and what has branches worth compiling, waits until the condition's value is
known: the branch taken is then written in place. Loops are the host's (``onnx_host_control``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from crossdock.kernels.reference import graph_work
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.errors import GraphError, MalformedModel
from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders.onnx_frame import Captures
from crossdock.runtime.loaders.onnx_model import OnnxGraph
from crossdock.runtime.loaders.onnx_table import Context, Deferred, Foreign, Value, onnx_op

Branch = tuple[Graph, list[bool]]
"""A branch's graph, and which of its outputs ONNX calls bool."""

INTERPRETED_NODES, INTERPRETED_FLOPS = 24, 1e6
"""A kept branch is interpreted: some microseconds a node, and no compiled kernels. With more than
this, the 0.1 ms of a stage more costs less."""


@onnx_op("If")
def conditional(ctx: Context) -> Sequence[Value | Foreign | None]:
    """A known condition leaves one branch, written in place; else both become graphs.

    Exporters guard shapes with conditionals, so a branch may fit other sizes than those given.
    Then the other one is written in place, and choosing the first is an error of the run.
    """
    yes, no = ctx.node.graph("then_branch"), ctx.node.graph("else_branch")
    if yes.inputs or no.inputs:
        raise ctx.malformed("a branch has inputs")
    if not len(yes.outputs) == len(no.outputs) == len(ctx.node.outputs):
        raise ctx.malformed("the branches and the node differ in their number of outputs")
    condition = ctx.known(0)
    if condition is not None:
        if condition.size != 1:
            raise ctx.malformed(f"the condition has {condition.size} elements, not one")
        return _inline(ctx, yes if condition.reshape(-1)[0] else no)
    try:
        return _static(ctx, yes, no)
    except Deferred as why:
        raise ctx.demand(f"a condition, for its branch: {why}", 0) from why


def _static(ctx: Context, yes: OnnxGraph, no: OnnxGraph) -> Sequence[Value | Foreign | None]:
    """Both branches for a condition that is not known; raises Deferred where they do not fit."""
    captures = Captures()
    then_branch, else_branch = (_branch(ctx, graph, captures) for graph in (yes, no))
    if isinstance(then_branch, Exception):
        if isinstance(else_branch, Exception):
            raise then_branch
        return _guarded(ctx, no, chosen=False, error=then_branch)
    if isinstance(else_branch, Exception):
        return _guarded(ctx, yes, chosen=True, error=else_branch)
    if any(_worth_compiling(graph) for graph, _ in (then_branch, else_branch)):
        raise Deferred("compiled, it takes less time than another stage")
    return _both(ctx, then_branch, else_branch, captures)


def _worth_compiling(branch: Graph) -> bool:
    return len(branch.nodes) > INTERPRETED_NODES or graph_work(branch).flops > INTERPRETED_FLOPS


def _inline(ctx: Context, graph: OnnxGraph) -> list[Value | Foreign | None]:
    values = ctx.frame.converter.inline(ctx.frame, graph)
    if any(value is None for value in values):
        raise ctx.unsupported("the branch that is taken")
    return values


def _branch(ctx: Context, graph: OnnxGraph, captures: Captures) -> Branch | Exception:
    """A branch as a graph of its own, or why it does not fit the given sizes."""
    try:
        return ctx.frame.converter.branch(ctx.frame, graph, captures)
    except (GraphError, MalformedModel) as error:
        return error


def _guarded(
    ctx: Context, graph: OnnxGraph, *, chosen: bool, error: Exception
) -> list[Value | Foreign | None]:
    """The one branch that fits, in place; its results pass only where the condition takes it."""
    inlined = _inline(ctx, graph)
    values = [value for value in inlined if isinstance(value, Value)]
    if len(values) < len(inlined):
        raise Deferred("the branch gives no tensor")
    through = GraphBuilder(strict=False)
    results = [value.operand for value in values]
    doors = [through.input(f"in.{i}", r.shape, r.dtype) for i, r in enumerate(results)]
    passing = through.build({f"out.{i}": door for i, door in enumerate(doors)})
    reason = f"{ctx.node}: the inputs choose a branch that these sizes do not fit: {error}"
    ctx.frame.writer.b.label = ctx.node.label
    branches: dict[str, Any] = {
        "then_branch": passing if chosen else reason,
        "else_branch": reason if chosen else passing,
    }
    guarded = ctx.b.if_(ctx.x(0), results, **branches)
    return _marked(guarded, [value.boolean for value in values])


def _both(
    ctx: Context, yes: Branch, no: Branch, captures: Captures
) -> list[Value | Foreign | None]:
    (then_graph, marks), (else_graph, others) = yes, no
    first, second = then_graph.output_specs.values(), else_graph.output_specs.values()
    pairs = list(zip(first, second, strict=True))
    if marks != others or any(a.dtype != b.dtype for a, b in pairs):
        raise ctx.malformed("the branches differ in their element types")
    if any(a.shape != b.shape for a, b in pairs):
        shapes = ", ".join(f"{a} or {b}" for a, b in pairs)
        raise Deferred(f"a result's shape hangs on the condition ({shapes})")
    results = ctx.b.if_(
        ctx.x(0),
        list(captures.values.values()),
        then_branch=_with_inputs(then_graph, captures),
        else_branch=_with_inputs(else_graph, captures),
    )
    return _marked(results, marks)


def _marked(results: Sequence[Operand], marks: Sequence[bool]) -> list[Value | Foreign | None]:
    return [Value(r, mark) for r, mark in zip(results, marks, strict=True)]


def _with_inputs(graph: Graph, captures: Captures) -> Graph:
    """A branch with every captured value among its inputs, in one order for all branches."""
    specs = {name: operand.spec for name, operand in captures.values.items()}
    return replace(graph, inputs=specs, specs={**graph.specs, **specs})
