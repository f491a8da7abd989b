"""Graph passes: each a module with a function from graph to graph, tested alone.

``run`` applies them in the order of ``PASSES``; any can be switched off by name. A graph records
the passes it has been through, and so does its plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from crossdock.devices.program import Work
from crossdock.kernels.reference import graph_work
from crossdock.runtime.errors import GraphError
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.passes.attention import fuse_attention
from crossdock.runtime.passes.batch_norm import expand_batch_norm
from crossdock.runtime.passes.constants import fold_constants
from crossdock.runtime.passes.epilogue import fuse_epilogue
from crossdock.runtime.passes.expand_quantize import expand_quantize
from crossdock.runtime.passes.fuse import fuse_elementwise
from crossdock.runtime.passes.gelu import fuse_gelu
from crossdock.runtime.passes.matmul import fuse_bias, merge_products
from crossdock.runtime.passes.move_quantize import move_quantize
from crossdock.runtime.passes.normalization import fold_affine
from crossdock.runtime.passes.prune import prune
from crossdock.runtime.passes.quantize import fuse_quantized
from crossdock.runtime.passes.subnormals import flush_subnormals

Pass = Callable[[Graph, frozenset[str]], Graph]

PASSES: dict[str, Pass] = {
    "move-quantize": move_quantize,
    "fuse-quantized": fuse_quantized,
    "fold-constants": fold_constants,
    "fold-affine": fold_affine,
    "expand-batch-norm": expand_batch_norm,
    "flush-subnormals": flush_subnormals,
    "fuse-gelu": fuse_gelu,
    "fuse-attention": fuse_attention,
    "fuse-bias": fuse_bias,
    "merge-products": merge_products,
    "expand-quantize": expand_quantize,
    "fuse-elementwise": fuse_elementwise,
    "fuse-epilogue": fuse_epilogue,
    "prune": prune,
}
"""Passes by name, in order. The second argument names nodes that must stay as they are."""


@dataclass(frozen=True)
class Applied:
    """What a pass did: the graph ``after`` it, and the seconds it took."""

    name: str
    before: Graph
    after: Graph
    seconds: float

    @property
    def changed(self) -> int:
        """How many ops of the graph before are gone or other ones; of none, how many are new."""
        gone, new = _others(self.before, self.after), _others(self.after, self.before)
        return len(gone) or len(new)

    @property
    def new(self) -> tuple[Node, ...]:
        """The ops of the graph after that the graph before had not, in order."""
        return _others(self.after, self.before)

    @property
    def work(self) -> Work:
        """Operations, and bytes read and written, of the graph after."""
        return graph_work(self.after)


def _others(graph: Graph, than: Graph) -> tuple[Node, ...]:
    there = {_key(node) for node in than.nodes}
    return tuple(node for node in graph.nodes if _key(node) not in there)


def _key(node: Node) -> tuple[object, ...]:
    """What makes a node the same; attributes that were not touched are the same object."""
    return node.name, node.op, node.inputs, node.outputs, id(node.attrs)


def check(names: Collection[str]) -> None:
    """Raise GraphError, which lists the passes there are, where a name is no pass's."""
    for name in names:
        if name not in PASSES:
            raise GraphError(f"no pass {name!r:.80}; there are {', '.join(PASSES)}")


def run(graph: Graph, *, skip: Collection[str] = (), keep: Collection[str] = ()) -> Graph:
    """Apply the passes but those in ``skip``; nodes named in ``keep`` are left alone.

    Raises:
        GraphError: ``skip`` names no pass.
    """
    for applied in each(graph, skip=skip, keep=keep):
        graph = applied.after
    return graph


def each(
    graph: Graph, *, skip: Collection[str] = (), keep: Collection[str] = ()
) -> Iterator[Applied]:
    """Apply the passes as ``run`` does, and say of each what it did."""
    check(skip)
    kept = frozenset(keep)
    for name, apply in PASSES.items():
        if name in skip:
            continue
        began = time.perf_counter()
        after = replace(apply(graph, kept).check(), passes=(*graph.passes, name))
        yield Applied(name, graph, after, time.perf_counter() - began)
        graph = after
