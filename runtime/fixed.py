"""Graph inputs whose value stays: they become constants, which devices keep from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from crossdock.runtime.errors import FeedError, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import Array, TensorSpec


def fixed(graph: Graph, values: Mapping[str, Any]) -> Graph:
    """The graph without some of its inputs; they have the values given, of which it keeps copies.

    A dimension that only they have is bound with them.

    Raises:
        FeedError: there is no such input, or a value does not fit it.
        PlanError: the graph runs in stages, which take what they are fed.
    """
    if graph.staged is not None:
        raise PlanError(
            f"graph {graph.name!r:.80} runs in stages that hang on the values fed, so that no "
            "input can stay on a device; compile without resident"
        )
    arrays = {name: _copy(graph, name, value) for name, value in values.items()}
    left = {n: s for n, s in graph.inputs.items() if n not in arrays}
    shapes: dict[str, tuple[Any, ...]] = {n: a.shape for n, a in arrays.items()}
    if not graph.symbols:
        return _made_constant(graph.bind(shapes=shapes), arrays)
    if not any(isinstance(d, str) for spec in left.values() for d in spec.shape):
        return _made_constant(graph.bind(shapes=shapes), arrays)

    def rebuild(specs: dict[str, TensorSpec]) -> Graph:
        bound = graph.bind(shapes={**{n: s.dims for n, s in specs.items()}, **shapes})
        return _made_constant(bound, arrays)

    return replace(graph, inputs=left, constants={**graph.constants, **arrays}, rebuild=rebuild)


def _made_constant(graph: Graph, arrays: Mapping[str, Array]) -> Graph:
    left = {n: s for n, s in graph.inputs.items() if n not in arrays}
    return replace(graph, inputs=left, constants={**graph.constants, **arrays}).check()


def _copy(graph: Graph, name: str, value: Any) -> Array:
    spec = graph.inputs.get(name)
    if spec is None:
        raise FeedError(
            f"resident {name!r:.80} is no input of graph {graph.name!r:.80}; it has "
            f"{', '.join(graph.inputs)}"
        )
    array = np.array(value)
    have = TensorSpec.of(array)
    if have.dtype != spec.dtype or have.rank != spec.rank:
        raise FeedError(f"resident {name!r:.80} wants {spec}, got {have}")
    array.flags.writeable = False
    return array
