"""ONNX models, opset 1 to the newest that the installed package ``onnx`` knows.

A model of fixed shapes becomes its graph at once. One with open dimensions is parsed and checked,
and converted by ``Graph.bind`` for given sizes: then shapes are numbers, and what exporters write
to compute them folds away.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from crossdock.runtime.errors import UnsupportedModel
from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders.onnx_check import check_support, sort_model
from crossdock.runtime.loaders.onnx_convert import convert
from crossdock.runtime.loaders.onnx_model import OnnxModel, OnnxValue, shown
from crossdock.runtime.loaders.onnx_parse import parse, parse_proto
from crossdock.runtime.loaders.onnx_table import support
from crossdock.runtime.loaders.source import Source
from crossdock.runtime.tensor import TensorSpec


def load(source: Source) -> Graph:
    """Load a serialised ModelProto; errors are those of ``crossdock.runtime.loaders.load``."""
    return _graph(parse(source))


def load_proto(proto: Any, folder: str | Path | None = None) -> Graph:
    """Load an ``onnx.ModelProto``; external data is read from ``folder`` only."""
    if folder is None:
        return _graph(parse_proto(proto, Source(b"", "<ModelProto>")))
    here = Path(folder).absolute()
    return _graph(parse_proto(proto, Source(b"", "<ModelProto>", here, (here.resolve(),))))


def _graph(parsed: OnnxModel) -> Graph:
    model = sort_model(parsed)
    check_support(model, support)
    specs = {value.name: _input_spec(model, value) for value in model.graph.free_inputs}
    if all(spec.is_static for spec in specs.values()):
        return convert(model, specs)
    outputs = {value.name: _output_spec(value) for value in model.graph.outputs}
    return Graph(
        inputs=specs,
        outputs={name: name for name in outputs},
        nodes=(),
        specs={**outputs, **specs},
        name=model.graph.name or "graph",
        rebuild=partial(convert, model),
    )


def _input_spec(model: OnnxModel, value: OnnxValue) -> TensorSpec:
    if value.dtype is None:
        raise UnsupportedModel(
            f"{model.label}: input {shown(value.name)} is a {value.what}, which is not supported"
        )
    if value.shape is None:
        raise UnsupportedModel(
            f"{model.label}: input {shown(value.name)} has no declared shape; give it one "
            "of the right rank (onnx.tools.update_model_dims)"
        )
    return TensorSpec(value.dtype, value.dims())


def _output_spec(value: OnnxValue) -> TensorSpec:
    """An output's spec as declared; float32 where its type is not."""
    return TensorSpec(value.dtype or "float32", value.dims())
