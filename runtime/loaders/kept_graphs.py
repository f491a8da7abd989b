"""The outside of graphs that were loaded before: to say what a model takes, it need not be parsed.

What is kept says what goes in and out; a model whose content, limits and loader are the same has
the same. The rest is loaded as ever, where it is looked at, and only then errors of the file that
have come since show.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from crossdock.runtime.errors import LoadError
from crossdock.runtime.files import label_of, open_regular
from crossdock.runtime.graph import Graph
from crossdock.runtime.kept import Folder, key
from crossdock.runtime.lazy_graph import lazy
from crossdock.runtime.limits import Limits, limits_of
from crossdock.runtime.sources import stamp
from crossdock.runtime.tensor import DTYPES, TensorSpec

FOLDER = Folder("graphs", 1 << 20)
_PIECE = 1 << 20

Load = Callable[[], Graph]
"""Loads a graph; raises LoadError."""


def origin_of(digest: str, limits: Limits | None) -> str:
    """What a graph is made from: a model's content, its limits, and the loader."""
    return key("graph", stamp(), digest, repr(limits_of(limits)))


def digest_of_file(path: Path, limits: Limits | None) -> str | None:
    """SHA-256 of a model file within the limits; None for one that the loader will complain of."""
    try:
        descriptor = open_regular(path, label_of(path))
    except LoadError:
        return None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not 0 < os.fstat(descriptor).st_size <= limits_of(limits).file_bytes:
            return None
        return hashlib.file_digest(file, "sha256").hexdigest()


def found(origin: str, load: Load) -> Graph | None:
    """The graph of an origin, if its outside is kept; ``load`` gets its inside."""
    content = FOLDER.load(origin)
    if content is None:
        return None
    told = json.loads(content)
    whole = cache(load)
    inputs = _specs(told["inputs"])
    static = all(spec.is_static for spec in inputs.values())
    made = lazy(
        told["name"],
        inputs,
        told["outputs"],
        _specs(told["output_specs"]),
        whole,
        rebuild=None if static else partial(_rebuilt, origin, whole),
    )
    return made.came_from(origin)


def remembered(graph: Graph, origin: str) -> Graph:
    """A graph just loaded: its outside is kept, as is that of what it becomes with its sizes."""
    if graph.staged is not None:
        return graph
    told = {
        "name": graph.name,
        "inputs": _plain(graph.inputs),
        "outputs": dict(graph.outputs),
        "output_specs": _plain(graph.output_specs),
    }
    FOLDER.save(origin, json.dumps(told).encode())
    if graph.rebuild is None:
        return graph.came_from(origin)
    made = replace(graph, rebuild=partial(_rebuilt, origin, lambda: graph))
    return made.came_from(origin)


def _rebuilt(origin: str, load: Load, specs: dict[str, TensorSpec]) -> Graph:
    """The graph of an origin for given input specs, its inside loaded at need if that is known."""
    bound = key(origin, json.dumps(_plain(specs)))

    def whole() -> Graph:
        rebuild = load().rebuild
        assert rebuild is not None
        return rebuild(specs)

    kept = found(bound, whole)
    return kept if kept is not None else remembered(whole(), bound)


def _plain(specs: Mapping[str, TensorSpec]) -> dict[str, list[Any]]:
    return {name: [spec.dtype, *spec.shape] for name, spec in specs.items()}


def _specs(told: Mapping[str, list[Any]]) -> dict[str, TensorSpec]:
    assert all(form[0] in DTYPES for form in told.values())
    return {name: TensorSpec(form[0], tuple(form[1:])) for name, form in told.items()}
