"""Ops as plain data, for programs that are kept on disk and for other processes.

An attribute is a number, a text, a sequence, a mapping, an array, a static graph (a branch), or a
dataclass of the kernels that holds such. Anything else has no form, nor has its op. Large arrays
are put aside, for who keeps the data to keep beside it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossdock.kernels.spec import OpCall
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.tensor import Array, TensorSpec, from_numpy, to_numpy

LARGEST = 1024
"""Elements of an array that is written as numbers."""
HOME = "crossdock.kernels."


class NoForm(Exception):
    """A value that is not written as data."""


def plain(call: OpCall, large: list[Array]) -> list[Any] | None:
    """An op without its constants as JSON; None where an attribute has no form.

    Large arrays of attributes are appended to ``large``.
    """
    try:
        attrs = _plain(dict(call.attrs), large)
    except NoForm:
        return None
    ins = [None if s is None else _plain_spec(s) for s in call.inputs]
    return [call.op, attrs, ins, [_plain_spec(s) for s in call.outputs], call.name]


def read(form: list[Any], large: Sequence[Array]) -> OpCall:
    """The op that ``plain`` wrote, with the bytes (uint8) of the large arrays that it put aside."""
    op, attrs, ins, outs, name = form
    inputs = tuple(None if s is None else _spec(s) for s in ins)
    return OpCall(op, _read(attrs, large), inputs, tuple(map(_spec, outs)), name=name)


def _plain_spec(spec: TensorSpec) -> list[Any]:
    return [spec.dtype, *spec.dims]


def _spec(form: list[Any]) -> TensorSpec:
    return TensorSpec(form[0], tuple(form[1:]))


def _plain(value: Any, large: list[Array]) -> Any:
    kind = type(value)
    if kind in (int, float, str, bool) or value is None:
        return value
    if kind in (tuple, list):
        return {kind.__name__: [_plain(v, large) for v in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_plain(k, large), _plain(v, large)] for k, v in value.items()]}
    if isinstance(value, np.ndarray | np.generic):
        return {"array": _plain_array(np.asarray(value), large)}
    if isinstance(value, Graph):
        return {"graph": _plain_graph(value, large)}
    if dataclasses.is_dataclass(kind) and kind.__module__.startswith(HOME):
        fields = [[f.name, _plain(getattr(value, f.name), large)] for f in dataclasses.fields(kind)]
        return {"object": [kind.__module__, kind.__qualname__, fields]}
    raise NoForm(kind.__name__)


def _plain_array(array: Array, large: list[Array]) -> list[Any]:
    dtype, shape = from_numpy(array.dtype), list(array.shape)
    if array.size <= LARGEST:
        return [dtype, shape, array.ravel().tolist()]
    large.append(array)
    return [dtype, shape, len(large) - 1]


def _plain_graph(graph: Graph, large: list[Array]) -> list[Any]:
    if graph.staged is not None or graph.symbols:
        raise NoForm("a graph whose nodes hang on what it is fed")
    values = [
        {name: _plain_spec(spec) for name, spec in graph.inputs.items()},
        dict(graph.outputs),
        {name: _plain_spec(spec) for name, spec in graph.specs.items()},
        [[name, _plain_array(array, large)] for name, array in graph.constants.items()],
        graph.name,
    ]
    nodes = [
        [n.name, n.op, list(n.inputs), list(n.outputs), _plain(dict(n.attrs), large)]
        for n in graph.nodes
    ]
    return [*values, nodes]


def _read(form: Any, large: Sequence[Array]) -> Any:
    if not isinstance(form, dict):
        return form
    ((kind, value),) = form.items()
    if kind == "array":
        return _read_array(value, large)
    if kind == "graph":
        return _read_graph(value, large)
    if kind == "object":
        module, name, fields = value
        made = getattr(importlib.import_module(module), name)
        return made(**{field: _read(v, large) for field, v in fields})
    if kind == "dict":
        return {_read(k, large): _read(v, large) for k, v in value}
    made = [_read(v, large) for v in value]
    return tuple(made) if kind == "tuple" else made


def _read_array(form: list[Any], large: Sequence[Array]) -> Array:
    dtype, shape, items = form
    if isinstance(items, int):
        return large[items].view(to_numpy(dtype)).reshape(shape)
    return np.array(items, to_numpy(dtype)).reshape(shape)


def _read_graph(form: list[Any], large: Sequence[Array]) -> Graph:
    inputs, outputs, specs, constants, name, nodes = form
    return Graph(
        inputs={value: _spec(spec) for value, spec in inputs.items()},
        outputs=outputs,
        nodes=tuple(
            Node(label, op, tuple(ins), tuple(outs), _read(attrs, large))
            for label, op, ins, outs, attrs in nodes
        ),
        specs={value: _spec(spec) for value, spec in specs.items()},
        constants={value: _read_array(array, large) for value, array in constants},
        name=name,
    )
