"""Operators that ONNX itself defines by others: their bodies, as functions to write out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crossdock.runtime.loaders.onnx_model import ONNX_DTYPES, OnnxFunction, OnnxGraph, OnnxNode
from crossdock.runtime.loaders.onnx_parse import onnx_package, parse_function
from crossdock.runtime.loaders.onnx_table import schema
from crossdock.runtime.tensor import TensorSpec

_NUMBERS = {name: number for number, name in ONNX_DTYPES.items()}


def body_of(node: OnnxNode, opset: int, inputs: Sequence[TensorSpec | None]) -> OnnxFunction | None:
    """The function body of a node's operator at an opset for these inputs, or None.

    ``inputs`` have ONNX's element types (bool where ONNX says so); an absent one is None.
    """
    known = schema(node, opset)
    if known is None:
        return None
    data: bytes | None = None
    if known.has_function:
        data = known.get_function_with_opset_version(opset)
    if not data and known.has_context_dependent_function and all(g.data for g in node.subgraphs()):
        data = known.get_context_dependent_function_with_opset_version(
            opset, _proto(node).SerializeToString(), [_type(spec) for spec in inputs]
        )
    if not data:
        return None
    proto = onnx_package().FunctionProto()
    proto.ParseFromString(data)
    function = parse_function(proto, f"operator {node.op}")
    given = {name: value for name, value in function.defaults.items() if value is not None}
    opsets = dict(function.opsets)
    opsets.setdefault(node.domain, opset)
    return replace(function, defaults={**_defaults(known), **given}, opsets=opsets)


def _type(spec: TensorSpec | None) -> bytes:
    package = onnx_package()
    if spec is None:
        return bytes(package.TypeProto().SerializeToString())
    made = package.helper.make_tensor_type_proto(_NUMBERS[spec.dtype], list(spec.shape))
    return bytes(made.SerializeToString())


def _proto(node: OnnxNode) -> Any:
    package = onnx_package()
    made = package.helper.make_node(
        node.op, list(node.inputs), list(node.outputs), domain=node.domain
    )
    for name, value in node.attrs.items():
        if isinstance(value, np.ndarray):
            value = package.numpy_helper.from_array(value)
        if isinstance(value, OnnxGraph):
            value = package.GraphProto.FromString(value.data)
        if isinstance(value, tuple) and not value:
            continue
        made.attribute.append(package.helper.make_attribute(name, value))
    return made


def _defaults(known: Any) -> dict[str, Any]:
    """The defaults of an operator's attributes, which its body refers to."""
    found: dict[str, Any] = {}
    for name, attribute in known.attributes.items():
        value = attribute.default_value
        if value.type in (1, 2):
            found[name] = value.f if value.type == 1 else value.i
        elif value.type == 3:
            found[name] = value.s.decode()
        elif value.type in (6, 7):
            found[name] = tuple(value.floats if value.type == 6 else value.ints)
    return found
