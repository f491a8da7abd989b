"""ONNX models, opset 1 to the newest that the installed package ``onnx`` knows.

A model of fixed shapes becomes its graph at once. One with open dimensions is parsed and checked,
and converted by ``Graph.bind`` for given sizes: then shapes are numbers, and what exporters write
to compute them folds away. Where sizes hang on values, or values are no tensors, the graph is
staged (``onnx_staged``).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from crossdock.runtime.graph import Graph
from crossdock.runtime.limits import Limits, limits_of
from crossdock.runtime.loaders.onnx_check import check_support, sort_model
from crossdock.runtime.loaders.onnx_gradient import attach
from crossdock.runtime.loaders.onnx_model import OnnxModel
from crossdock.runtime.loaders.onnx_parse import parse, parse_proto
from crossdock.runtime.loaders.onnx_staged import graph_of, output_spec, staged_graph
from crossdock.runtime.loaders.onnx_table import support
from crossdock.runtime.loaders.source import Source
from crossdock.runtime.tensor import TensorSpec


def load(source: Source) -> Graph:
    """Load a serialised ModelProto; errors are those of ``crossdock.runtime.loaders.load``."""
    return _graph(parse(source))


def load_proto(proto: Any, folder: str | Path | None = None, limits: Limits | None = None) -> Graph:
    """Load an ``onnx.ModelProto``; external data is read from ``folder`` only."""
    limits = limits_of(limits)
    if folder is None:
        return _graph(parse_proto(proto, Source(b"", "<ModelProto>", limits=limits)))
    here = Path(folder).absolute()
    source = Source(b"", "<ModelProto>", here, (here.resolve(),), limits)
    return _graph(parse_proto(proto, source))


def _graph(parsed: OnnxModel) -> Graph:
    model = attach(sort_model(parsed))
    check_support(model, support)
    inputs = model.graph.free_inputs
    specs = {
        v.name: TensorSpec(v.dtype, v.dims()) for v in inputs if v.dtype and v.shape is not None
    }
    if len(specs) < len(inputs):
        return staged_graph(model)
    if all(spec.is_static for spec in specs.values()):
        return graph_of(model, specs)
    outputs = {value.name: output_spec(value) for value in model.graph.outputs}
    return Graph(
        inputs=specs,
        outputs={name: name for name in outputs},
        nodes=(),
        specs={**outputs, **specs},
        name=model.graph.name or "graph",
        rebuild=partial(graph_of, model),
    )
