"""Model and tensor files into graphs and arrays; one module a format.

``load`` tells the format from the content. To add a format, write its module with a function
``load(source: Source) -> Graph`` and give it a row in ``FORMATS``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crossdock.runtime.errors import LimitError, MalformedModel, UnsupportedModel
from crossdock.runtime.graph import Graph
from crossdock.runtime.limits import Limits
from crossdock.runtime.loaders import kept_graphs
from crossdock.runtime.loaders.content import HEAD, SOUND, describe
from crossdock.runtime.loaders.source import ModelFile, Source, Sourced, read

__all__ = ["FORMATS", "Format", "load"]


@dataclass(frozen=True)
class Format:
    """A model format: a test on a file's first bytes, and the module that loads it."""

    name: str
    matches: Callable[[bytes], bool]
    module: str


def _is_onnx(head: bytes) -> bool:
    """True where the bytes may start a protobuf ModelProto: a key of one of its fields.

    The format has no magic number; the loader proves the rest.
    """
    return bool(head) and head[0] in _MODEL_KEYS


# Field number and wire type of ModelProto's fields that fit one byte: numbers (ir_version 1,
# model_version 5) and lengths (producer 2 and 3, domain 4, doc 6, graph 7, opset_import 8,
# metadata 14).
_MODEL_KEYS = frozenset({1 << 3, 5 << 3} | {n << 3 | 2 for n in (2, 3, 4, 6, 7, 8, 14)})

FORMATS: tuple[Format, ...] = (Format("ONNX", _is_onnx, "crossdock.runtime.loaders.onnx"),)
"""Formats in the order they are tried."""


def load(source: Sourced | Any, *, limits: Limits | None = None) -> Graph:
    """Load a model; the format is told from its content, not from a suffix.

    Args:
        source: a path, bytes, a file object in binary mode, or an ``onnx.ModelProto``. External
            data is found beside a path only.
        limits: what the model may ask for, while it is loaded and when it runs (default: those
            of ``Limits()``).

    Returns:
        The graph. Where the model leaves dimensions open, they are symbols, and ``Graph.bind``
        makes the nodes for given sizes.

    Raises:
        MalformedModel: the file, or the graph in it, is broken.
        UnsupportedModel: it needs something crossdock lacks; everything missing is named.
        UnsafeModel: it reaches outside its folder.
        LimitError: it asks for more than ``limits`` allow.
        LoadError: it cannot be read, or a package to read it is missing.
    """
    if type(source).__name__ == "ModelProto":
        from crossdock.runtime.loaders import onnx

        return onnx.load_proto(source, limits=limits)
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(os.fspath(source)), limits)
    return load_source(read(source, limits))


def _from_path(path: Path, limits: Limits | None) -> Graph:
    """The graph of a file: its outside where that is kept, the whole of it where it is not."""
    file = ModelFile(path, limits)
    origin, inside = kept_graphs.origin_of(file), partial(_inside, file)
    kept = kept_graphs.found(origin, inside)
    if kept is not None:
        return kept
    source = file.source()
    graph = load_source(source)
    if source.taken:  # weights beside the file, which its digest says nothing of
        return graph
    return kept_graphs.remembered(graph, origin, inside)


def _inside(file: ModelFile) -> Graph:
    return load_source(file.source())


def load_source(source: Source) -> Graph:
    """Load a model whose bytes are at hand; see ``load``."""
    if not source.data:
        raise MalformedModel(f"{source.label}: the file is empty")
    head = source.data[:HEAD]
    known = describe(head)
    if known is not None:
        what, fix = known
        error = UnsupportedModel if what in SOUND else MalformedModel
        raise error(f"{source.label}: this is {what}; {fix}")
    for form in FORMATS:
        if form.matches(head):
            return _loaded(form, source)
    names = ", ".join(form.name for form in FORMATS)
    raise MalformedModel(
        f"{source.label}: this is no model format crossdock knows ({names}); it starts with "
        f"{head[:8].hex(' ')}"
    )


def _loaded(form: Format, source: Source) -> Graph:
    try:
        graph: Graph = importlib.import_module(form.module).load(source)
    except MemoryError as error:
        raise LimitError(f"{source.label}: there is not enough memory to load it") from error
    except RecursionError as error:
        raise LimitError(f"{source.label}: its graphs are nested too deep to be read") from error
    return graph
