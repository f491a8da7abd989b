"""The outside of graphs that were loaded before: to say what a model takes, it need not be parsed.

What is kept says what goes in and out; a model whose content, limits and loader are the same has
the same. The rest is loaded as ever, where it is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

from crossdock.runtime.graph import Graph
from crossdock.runtime.kept import Folder, key
from crossdock.runtime.lazy_graph import lazy
from crossdock.runtime.loaders.source import ModelFile
from crossdock.runtime.sources import stamp
from crossdock.runtime.tensor import DTYPES, TensorSpec

FOLDER = Folder("graphs", 1 << 20)
ALL = 1 << 24
"""Bytes that all of them may take."""

Load = Callable[[], Graph]
"""Loads a graph; raises LoadError."""


def origin_of(file: ModelFile) -> str:
    """What a graph is made from: a model's content, its limits, and the loader."""
    return key("graph", stamp(), file.digest, repr(file.limits))


def found(origin: str, load: Load) -> Graph | None:
    """The graph of an origin, if its outside is kept; ``load`` gets its inside."""
    content = FOLDER.load(origin)
    if content is None:
        return None
    told = json.loads(content)
    inputs, outputs = _specs(told["inputs"]), _specs(told["output_specs"])
    static = all(spec.is_static for spec in inputs.values())
    whole = load if static else cache(load)
    rebuild = None if static else partial(_rebuilt, origin, whole)
    made = lazy(told["name"], inputs, told["outputs"], outputs, whole, rebuild=rebuild)
    return made.came_from(origin)


def remembered(graph: Graph, origin: str, load: Load) -> Graph:
    """A graph just loaded: its outside is kept, as is that of what it becomes with its sizes.

    ``load`` gets it once more.
    """
    if graph.staged is not None:
        return graph
    told = {
        "name": graph.name,
        "inputs": _plain(graph.inputs),
        "outputs": dict(graph.outputs),
        "output_specs": _plain(graph.output_specs),
    }
    text = json.dumps(told).encode()
    if FOLDER.make_room(len(text), ALL):
        FOLDER.save(origin, text)
    if graph.rebuild is not None:
        made = replace(graph, rebuild=partial(_rebuilt, origin, lambda: graph))
        return made.came_from(origin)
    outputs = graph.output_specs
    lazily = lazy(graph.name, graph.inputs, graph.outputs, outputs, load).filled(graph)
    return lazily.came_from(origin)


def _rebuilt(origin: str, load: Load, specs: dict[str, TensorSpec]) -> Graph:
    """The graph of an origin for given input specs, its inside loaded at need if that is known."""
    bound = key(origin, json.dumps(_plain(specs)))

    def whole() -> Graph:
        rebuild = load().rebuild
        assert rebuild is not None
        return rebuild(specs)

    kept = found(bound, whole)
    return kept if kept is not None else remembered(whole(), bound, whole)


def _plain(specs: Mapping[str, TensorSpec]) -> dict[str, list[Any]]:
    return {name: [spec.dtype, *spec.shape] for name, spec in specs.items()}


def _specs(told: Mapping[str, list[Any]]) -> dict[str, TensorSpec]:
    assert all(form[0] in DTYPES for form in told.values())
    return {name: TensorSpec(form[0], tuple(form[1:])) for name, form in told.items()}
