"""Operators of ai.onnx.ml on labels and features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_host_tools import is_string, objects
from crossdock.runtime.loaders.onnx_model import OnnxNode
from crossdock.runtime.tensor import Array

_ML = "ai.onnx.ml"

_LISTS = {"strings": np.object_, "int64s": np.int64, "floats": np.float32}
"""Attributes keys_* and values_*, and the types that they hold."""


@host_op("LabelEncoder", domain=_ML)
def label_encoder_1(call: HostCall) -> HostValue:
    """Strings to their places in a list, or places to strings."""
    x, node = call.array(), call.node
    classes = node.get_strs("classes_strings") or ()
    if is_string(x):
        places = {word: place for place, word in reversed(list(enumerate(classes)))}
        default = node.get_int("default_int64", -1)
        found = [places.get(word, default) for word in x.reshape(-1)]
        return np.array(found, np.int64).reshape(x.shape)
    if x.dtype != np.int64:
        raise call.malformed(f"labels of {x.dtype}, neither strings nor int64")
    unknown = node.get_str("default_string", "_Unused")
    words = [classes[i] if 0 <= i < len(classes) else unknown for i in x.reshape(-1).tolist()]
    return objects(words, x.shape)


@host_op("LabelEncoder", since=2, domain=_ML)
def label_encoder(call: HostCall) -> HostValue:
    """Each element mapped by a table; the last of equal keys counts; NaNs are equal."""
    x = call.array()
    keys, values = _listed(call, "keys"), _listed(call, "values")
    if keys.size != values.size:
        raise call.malformed(f"{keys.size} keys for {values.size} values")
    if keys.dtype != x.dtype:
        raise call.malformed(f"labels of {x.dtype}, where its keys are {keys.dtype}")
    table = dict(zip(map(_key, keys.tolist()), values.tolist(), strict=True))
    default = _default(call, values)
    found = [table.get(_key(label), default) for label in x.reshape(-1).tolist()]
    if is_string(values):
        return objects(found, x.shape)
    return np.array(found, values.dtype).reshape(x.shape)


def _key(label: Any) -> Any:
    return None if isinstance(label, float) and math.isnan(label) else label


def _listed(call: HostCall, what: str) -> Array:
    """The keys or the values, from whichever attribute has them."""
    node = call.node
    given = [name for name in (*_LISTS, "tensor") if f"{what}_{name}" in node.attrs]
    if len(given) != 1:
        raise call.malformed(f"exactly one attribute {what}_* must be there")
    (name,) = given
    if name == "tensor":
        return _tensor(node, call, f"{what}_tensor").reshape(-1)
    getters = {"strings": node.get_strs, "int64s": node.get_ints, "floats": node.get_floats}
    held: Any = getters[name](f"{what}_{name}")
    return objects(held, [len(held)]) if name == "strings" else np.array(held, _LISTS[name])


def _tensor(node: OnnxNode, call: HostCall, name: str) -> Array:
    value = node.attrs[name]
    if not isinstance(value, np.ndarray):
        raise call.malformed(f"attribute {name!r} is no tensor")
    return value


def _default(call: HostCall, values: Array) -> Any:
    """What an unknown label becomes."""
    node = call.node
    if "default_tensor" in node.attrs:
        tensor = _tensor(node, call, "default_tensor")
        if tensor.size != 1 or tensor.dtype != values.dtype:
            raise call.malformed(f"default_tensor is not one element of {values.dtype}")
        return tensor.reshape(-1)[0].item() if not is_string(tensor) else tensor.reshape(-1)[0]
    if is_string(values):
        return node.get_str("default_string", "_Unused")
    if values.dtype.kind == "f":
        return node.get_float("default_float", -0.0)
    return node.get_int("default_int64", -1)


@host_op("ArrayFeatureExtractor", domain=_ML)
def extract(call: HostCall) -> HostValue:
    """Elements of the last axis at given places; a vector is a matrix of one row."""
    x, places = call.array(0), call.array(1)
    if x.ndim == 0 or places.dtype.kind not in "iu" or places.size == 0:
        raise call.malformed(f"places of {places.dtype}{list(places.shape)} in a rank {x.ndim}")
    flat = places.reshape(-1)
    if flat.min() < 0 or flat.max() >= x.shape[-1]:
        raise call.malformed(f"a place out of range for {x.shape[-1]} features")
    taken = np.take(x, flat, -1)
    return taken.reshape(1, -1) if x.ndim == 1 else taken


@host_op("Binarizer", domain=_ML)
def binarise(call: HostCall) -> HostValue:
    """One where an element exceeds the threshold, else zero."""
    x = call.array()
    if x.dtype.kind not in "fiu":
        raise call.malformed(f"features of {x.dtype}")
    return (x > call.node.get_float("threshold")).astype(x.dtype)
