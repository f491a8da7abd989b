"""Graph passes: each a module with a function from graph to graph, tested alone.

``run`` applies them in the order of ``PASSES``; any can be switched off by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from crossdock.runtime.errors import GraphError
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes.batch_norm import expand_batch_norm
from crossdock.runtime.passes.constants import fold_constants
from crossdock.runtime.passes.epilogue import fuse_epilogue
from crossdock.runtime.passes.expand_quantize import expand_quantize
from crossdock.runtime.passes.fuse import fuse_elementwise
from crossdock.runtime.passes.move_quantize import move_quantize
from crossdock.runtime.passes.normalization import fold_affine
from crossdock.runtime.passes.prune import prune
from crossdock.runtime.passes.quantize import fuse_quantized

Pass = Callable[[Graph, frozenset[str]], Graph]

PASSES: dict[str, Pass] = {
    "move-quantize": move_quantize,
    "fuse-quantized": fuse_quantized,
    "fold-constants": fold_constants,
    "fold-affine": fold_affine,
    "expand-batch-norm": expand_batch_norm,
    "expand-quantize": expand_quantize,
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
