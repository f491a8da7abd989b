"""Values that are made in their place in a larger one: the parts of a concatenation.

Where a concatenation's parts lie one after the other in its result, a part that is computed on the
device of the concatenation may be written there at once. The kernel that copies parts finds that
source and target are the same and copies nothing. Here it is decided which parts that is true of;
nothing depends on it but time and memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.plan import Step


@dataclass(frozen=True)
class Place:
    """A value's place: the value it lies in, and how many bytes from its beginning."""

    within: str
    offset: int


def places(
    graph: Graph, steps: Sequence[Step], device: str, roots: Mapping[str, str], alignment: int
) -> dict[str, Place]:
    """The place of every value that is made inside of another one on a device.

    ``within`` is a value that lies in no other one. Offsets are multiples of ``alignment``.
    """
    here = [s for s in steps if s.kind == "launch" and s.device == device]
    made = {roots[v] for s in here for v in s.outputs}
    free = made - {roots[v] for v in graph.outputs.values()} - graph.constants.keys()
    nodes = {node.name: node for node in graph.nodes}
    found: dict[str, Place] = {}
    for step in reversed(here):
        node = nodes[step.name]
        if step.op != "concat" or not _in_a_row(graph, node):
            continue
        result = roots[node.outputs[0]]
        outer = found.get(result, Place(result, 0))
        offset = outer.offset
        values = [roots[v] for v in node.operands]
        for value, root in zip(node.operands, values, strict=True):
            once = values.count(root) == 1 and root not in found and root != outer.within
            if root in free and once and offset % alignment == 0:
                found[root] = Place(outer.within, offset)
            offset += graph.specs[value].nbytes
    return found


def _in_a_row(graph: Graph, node: Node) -> bool:
    """True where the parts lie one after the other: nothing is outside of their axis."""
    dims = graph.specs[node.outputs[0]].dims
    return math.prod(dims[: node.attrs["axis"]]) == 1
