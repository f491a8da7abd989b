"""Graph passes: each a module with a function from graph to graph, tested alone.

``run`` applies them in the order of ``PASSES``; any can be switched off by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from crossdock.runtime.errors import GraphError
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes.attention import fuse_attention
from crossdock.runtime.passes.batch_norm import expand_batch_norm
from crossdock.runtime.passes.constants import fold_constants
from crossdock.runtime.passes.epilogue import fuse_epilogue
from crossdock.runtime.passes.fuse import fuse_elementwise
from crossdock.runtime.passes.matmul import fuse_bias, merge_products
from crossdock.runtime.passes.normalization import fold_affine
from crossdock.runtime.passes.prune import prune

Pass = Callable[[Graph, frozenset[str]], Graph]

PASSES: dict[str, Pass] = {
    "fold-constants": fold_constants,
    "fold-affine": fold_affine,
    "expand-batch-norm": expand_batch_norm,
    "fuse-attention": fuse_attention,
    "fuse-bias": fuse_bias,
    "merge-products": merge_products,
    "fuse-elementwise": fuse_elementwise,
    "fuse-epilogue": fuse_epilogue,
    "prune": prune,
}
"""Passes by name, in order. The second argument names nodes that must stay as they are."""


def run(graph: Graph, *, skip: Collection[str] = (), keep: Collection[str] = ()) -> Graph:
    """Apply the passes but those in ``skip``; nodes named in ``keep`` are left alone.

    Raises:
        GraphError: ``skip`` names no pass.
    """
    for name in skip:
        if name not in PASSES:
            raise GraphError(f"no pass {name!r}; there are {', '.join(PASSES)}")
    kept = frozenset(keep)
    for name, apply in PASSES.items():
        if name not in skip:
            graph = apply(graph, kept).check()
    return graph
