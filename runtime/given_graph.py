"""The graph that the steps of a given plan are of: the caller's, changed as the plan says.

A plan may split ops, make a value twice or take a batch image by image, and names what it changed.
The changes are made anew from the graph, one after the other, and those that it does not allow are
refused: whatever a plan says, what is made computes what the caller's graph computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crossdock.kernels.by_image import alone
from crossdock.runtime import images
from crossdock.runtime.errors import GraphError
from crossdock.runtime.graph import Graph
from crossdock.runtime.graph_edits import kept_aside, made_again
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.plan_data import damaged
from crossdock.runtime.plan_parts import Edit, ImageRow
from crossdock.runtime.sites import Sites
from crossdock.runtime.split import SplitGraph, grow, rewrite
from crossdock.runtime.split_choice import unsplit
from crossdock.runtime.target import Target

_AGAIN = {"again": made_again, "aside": kept_aside}


def remade(plan: Plan, graph: Graph, target: Target) -> SplitGraph:
    """The graph with all that a plan changes of it.

    Args:
        plan: of the graph, with whatever changes.
        graph: after the passes.
        target: with the processor, for which ops that take image after image are made.

    Raises:
        PlanError: the graph has not what is to be changed.
    """
    if not graph.outputs.keys() >= set(plan.stays):
        raise damaged(f"it has outputs stay that the graph has not: {list(plan.stays)[:8]}")
    made = SplitGraph(graph)  # within a memory budget parts are windows of the host's memory
    if not plan.edits:
        made = unsplit(graph, Sites(plan.feeds_on, plan.stays))
    try:
        for split in plan.splits:
            if split.taken:
                made = _in_parts(made, split.seed, split.axis, split.ops, split.sizes)
        for edit in plan.edits:
            made = _edited(made, edit)
        for row in plan.rows:
            made = _joined(made, row, target)
    except GraphError as error:  # a name that the caller has given, too
        raise damaged(f"it changes the graph to none ({error})") from error
    return made


def _edited(made: SplitGraph, edit: Edit) -> SplitGraph:
    if edit.kind == "split":
        return _in_parts(made, edit.name, edit.axis, edit.ops, edit.sizes)
    change = _AGAIN.get(edit.kind)
    found = None
    if change is not None and edit.name in made.graph.specs:
        found = change(made.graph, edit.name, edit.ops)
    if found is None:
        raise damaged(f"{edit.name!r:.80} cannot be changed by {edit.kind!r:.80}")
    return replace(made, graph=found[0])


def _joined(made: SplitGraph, row: ImageRow, target: Target) -> SplitGraph:
    found = images.joined(made.graph, row, alone(target.info(HOST)), target.permission)
    if found is None:
        first = next(iter(row.ops), "")
        raise damaged(f"no ops in a row from {first!r:.80} take image after image as it says")
    return replace(made, graph=found)


def _in_parts(
    made: SplitGraph, name: str, axis: int, ops: tuple[str, ...], sizes: Sequence[int]
) -> SplitGraph:
    """The graph with ops in parts, of which ``name`` is the one that the region grows from."""
    seed = next((n for n in made.graph.nodes if n.name == name), None)
    dims = () if seed is None else made.graph.specs[seed.outputs[0]].dims
    if seed is None or axis >= len(dims) or not dims[axis]:
        raise damaged(f"there is no op {name!r:.80} to split along axis {axis}")
    size = dims[axis]
    kept = frozenset(n.name for n in made.graph.nodes if n.name not in ops)
    region = grow(made.graph, seed, axis, kept)
    shares = () if region is None else tuple(n * region.units // size for n in sizes)
    sound = (
        region is not None
        and region.nodes == ops
        and sum(sizes) == size
        and all(s > 0 for s in shares)
        and tuple(s * size // region.units for s in shares) == tuple(sizes)
    )
    if not sound:
        raise damaged(f"{name!r:.80} does not split into {list(sizes)[:8]}")
    assert region is not None
    return rewrite(made, region, shares)
