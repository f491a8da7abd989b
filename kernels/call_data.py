"""Ops as plain data, for programs that are kept on disk and for other processes.

An attribute is a number, a text, a sequence, a mapping, a small array, or a dataclass of the
kernels that holds such. Anything else (a graph, a large array) has no form, nor has its op.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import TensorSpec, from_numpy, to_numpy

LARGEST = 1024
"""Elements of an array."""
HOME = "crossdock.kernels."


class NoForm(Exception):
    """A value that is not written as data."""


def plain(call: OpCall) -> list[Any] | None:
    """An op without its constants as JSON; None where an attribute has no form."""
    try:
        attrs = _plain(dict(call.attrs))
    except NoForm:
        return None
    ins = [None if s is None else [s.dtype, *s.dims] for s in call.inputs]
    return [call.op, attrs, ins, [[s.dtype, *s.dims] for s in call.outputs], call.name]


def read(form: list[Any]) -> OpCall:
    """The op that ``plain`` wrote."""
    op, attrs, ins, outs, name = form
    inputs = tuple(None if s is None else _spec(s) for s in ins)
    return OpCall(op, _read(attrs), inputs, tuple(map(_spec, outs)), name=name)


def _spec(form: list[Any]) -> TensorSpec:
    return TensorSpec(form[0], tuple(form[1:]))


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in (int, float, str, bool) or value is None:
        return value
    if kind in (tuple, list):
        return {kind.__name__: [_plain(v) for v in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_plain(k), _plain(v)] for k, v in value.items()]}
    if isinstance(value, np.ndarray | np.generic) and value.size <= LARGEST:
        array = np.asarray(value)
        return {"array": [from_numpy(array.dtype), list(array.shape), array.ravel().tolist()]}
    if dataclasses.is_dataclass(kind) and kind.__module__.startswith(HOME):
        fields = [[f.name, _plain(getattr(value, f.name))] for f in dataclasses.fields(kind)]
        return {"object": [kind.__module__, kind.__qualname__, fields]}
    raise NoForm(kind.__name__)


def _read(form: Any) -> Any:
    if not isinstance(form, dict):
        return form
    ((kind, value),) = form.items()
    if kind == "array":
        dtype, shape, items = value
        return np.array(items, to_numpy(dtype)).reshape(shape)
    if kind == "object":
        module, name, fields = value
        made = getattr(importlib.import_module(module), name)
        return made(**{field: _read(v) for field, v in fields})
    if kind == "dict":
        return {_read(k): _read(v) for k, v in value}
    return tuple(map(_read, value)) if kind == "tuple" else list(map(_read, value))
