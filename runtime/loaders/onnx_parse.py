"""ONNX protobuf into plain data (``onnx_model``). The package ``onnx`` is used here alone."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from crossdock.runtime.errors import LimitError, LoadError, MalformedModel
from crossdock.runtime.limits import MAX_RANK, Budget
from crossdock.runtime.loaders.onnx_model import (
    ONNX_DTYPES,
    FunctionKey,
    OnnxFunction,
    OnnxGraph,
    OnnxModel,
    OnnxNode,
    OnnxValue,
    Opaque,
    Reference,
    dtype_name,
    shown,
)
from crossdock.runtime.loaders.onnx_tensor import decode, decode_sparse
from crossdock.runtime.loaders.onnx_wire import scan
from crossdock.runtime.loaders.source import Source
from crossdock.runtime.tensor import Array, Dim

_ANONYMOUS = frozenset({"", "?", "*", "-1", "None"})
"""What exporters write for a dimension that they know nothing of."""

_CONTROL = ("If", "Loop", "Scan", "SequenceMap")
"""Operators whose subgraphs are run as they are: ONNX writes no functions with them."""

MAX_TYPE_DEPTH = 16
"""Sequences and optionals in one another that a declared type may have."""

_FIELD_OF_TYPE = {
    1: "f",
    2: "i",
    3: "s",
    4: "t",
    5: "g",
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    11: "sparse_tensor",
    12: "sparse_tensors",
    13: "tp",
    14: "type_protos",
}


def onnx_package() -> Any:
    """Import the package ``onnx``; raises LoadError naming what to install."""
    try:
        import onnx
    except ImportError as error:
        raise LoadError(
            "ONNX models need the package onnx; run `pip install crossdock[onnx]`"
        ) from error
    return onnx


def text(value: str | bytes) -> str:
    """A string field; protobuf gives bytes where they are no UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def texts(values: Iterable[str | bytes]) -> tuple[str, ...]:
    """A repeated string field."""
    return tuple(text(v) for v in values)


def domain_name(domain: str) -> str:
    """A domain with the default one's long name made short."""
    return "" if domain == "ai.onnx" else domain


def parse(source: Source) -> OnnxModel:
    """Parse a serialised ModelProto."""
    package = onnx_package()
    broken = importlib.import_module("google.protobuf.message").DecodeError
    proto = package.ModelProto()
    scan(source.data, source.label, source.limits)
    try:
        proto.ParseFromString(source.data)
    except (broken, RecursionError) as error:
        raise MalformedModel(
            f"{source.label}: no ONNX model, or a damaged one (truncated?): the protobuf cannot "
            "be decoded"
        ) from error
    return parse_proto(proto, source)


def parse_proto(proto: Any, source: Source) -> OnnxModel:
    """Turn a ModelProto into an OnnxModel; structure is checked later."""
    if not proto.HasField("graph"):
        raise MalformedModel(f"{source.label}: no ONNX model, or a truncated one: it has no graph")
    return _Parser(source).model(proto)


def parse_function(proto: Any, label: str) -> OnnxFunction:
    """Turn a FunctionProto that comes from no file into an OnnxFunction."""
    return _Parser(Source(b"", label)).function(proto)


class _Parser:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.budget = Budget(source.limits)
        self.depth = 0
        self.labels: dict[str, int] = {}
        self.taken: Counter[str] = Counter()

    def fail(self, what: str) -> MalformedModel:
        return MalformedModel(f"{self.source.label}: {what}")

    def model(self, proto: Any) -> OnnxModel:
        for nodes in _node_lists(proto):
            self.taken.update(text(n.name) for n in nodes if n.name)
        functions: dict[FunctionKey, OnnxFunction] = {}
        for item in proto.functions:
            function = self.function(item)
            key = (function.domain, function.name, function.overload)
            if key in functions:
                raise self.fail(f"function {shown(function.name)} is defined twice")
            functions[key] = function
        return OnnxModel(
            self.source.label,
            self.graph(proto.graph),
            self.opsets(proto.opset_import),
            functions,
            self.source.limits,
        )

    def opsets(self, imports: Iterable[Any]) -> dict[str, int]:
        found: dict[str, int] = {}
        for item in imports:
            domain = domain_name(text(item.domain))
            if not 0 <= item.version < 1 << 31:
                raise self.fail(
                    f"it imports version {item.version} of the operator set {shown(domain)}, "
                    "of which there is none"
                )
            if found.setdefault(domain, item.version) != item.version:
                raise self.fail(f"it imports two versions of the operator set {shown(domain)}")
        return found

    def function(self, proto: Any) -> OnnxFunction:
        where = f"function {shown(text(proto.name))}"
        defaults: dict[str, Any] = dict.fromkeys(texts(proto.attribute))
        defaults.update(self.attributes(proto.attribute_proto, where))
        return OnnxFunction(
            text(proto.name),
            domain_name(text(proto.domain)),
            text(proto.overload),
            texts(proto.input),
            texts(proto.output),
            tuple(self.node(n) for n in proto.node),
            defaults,
            self.opsets(proto.opset_import),
        )

    def graph(self, proto: Any) -> OnnxGraph:
        self.depth += 1
        if self.depth > self.source.limits.depth:
            raise LimitError(
                f"{self.source.label}: more than {self.source.limits.depth} graphs in one another, "
                f"at {shown(text(proto.name))}; raise Limits.depth if that is right"
            )
        made = OnnxGraph(
            text(proto.name),
            tuple(self.value(v) for v in proto.input),
            tuple(self.value(v) for v in proto.output),
            tuple(self.node(n) for n in proto.node),
            self.constants(proto),
        )
        self.depth -= 1
        return made

    def constants(self, proto: Any) -> dict[str, Array | Opaque]:
        found: dict[str, Array | Opaque] = {}
        dense = ((text(t.name), decode, t) for t in proto.initializer)
        sparse = ((text(t.values.name), decode_sparse, t) for t in proto.sparse_initializer)
        for name, read, tensor in (*dense, *sparse):
            if not name or name in found:
                raise self.fail(f"initialiser {shown(name)} has no name or stands there twice")
            found[name] = read(
                tensor, self.source, f"{self.source.label}: initialiser {shown(name)}"
            )
        return found

    def value(self, proto: Any) -> OnnxValue:
        return self.typed(text(proto.name), proto.type)

    def typed(self, name: str, proto: Any, depth: int = 0) -> OnnxValue:
        """A name with its TypeProto."""
        kind = str(proto.WhichOneof("value") or "").removesuffix("_type")
        if depth > MAX_TYPE_DEPTH:
            raise self.fail(f"the type of {shown(name)} is nested too deep")
        if kind in ("sequence", "optional"):
            element = self.typed(name, getattr(proto, f"{kind}_type").elem_type, depth + 1)
            what = f"{'seq' if kind == 'sequence' else kind}({element.what})"
            return OnnxValue(name, None, None, what, kind, element)
        if kind != "tensor":
            return OnnxValue(name, None, None, kind or "value without a type", kind)
        tensor = proto.tensor_type
        dtype = ONNX_DTYPES.get(tensor.elem_type)
        what = f"tensor({dtype_name(tensor.elem_type)})"
        if not tensor.HasField("shape"):
            return OnnxValue(name, dtype, None, what)
        shape = tuple(_dim(d) for d in tensor.shape.dim)
        if len(shape) > MAX_RANK:
            raise self.fail(f"{shown(name)} has {len(shape)} dimensions")
        return OnnxValue(name, dtype, shape, what)

    def node(self, proto: Any) -> OnnxNode:
        op = text(proto.op_type)
        label = self.label(text(proto.name), op)
        where = f"node {shown(label)} ({shown(op, plain=True)})"
        self.budget.node(self.source.label)
        attrs = dict(self.attributes(proto.attribute, where))
        for attribute in proto.attribute if op not in _CONTROL else ():
            held = attrs.get(text(attribute.name))
            if isinstance(held, OnnxGraph):
                data = attribute.g.SerializeToString()
                attrs[text(attribute.name)] = replace(held, data=data)
        return OnnxNode(
            op,
            domain_name(text(proto.domain)),
            texts(proto.input),
            texts(proto.output),
            attrs,
            label,
            text(proto.overload),
        )

    def label(self, name: str, op: str) -> str:
        """The node's own name where it is unique, else the op with a number."""
        if name and self.taken[name] == 1:
            return name
        while True:
            count = self.labels.get(op, 0)
            self.labels[op] = count + 1
            made = f"{op or 'node'}_{count}"
            if made not in self.taken:
                return made

    def attributes(self, protos: Iterable[Any], where: str) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for proto in protos:
            name = text(proto.name)
            if not name or name in found:
                raise self.fail(f"{where}: attribute {shown(name)} is nameless or doubled")
            found[name] = self.attribute(proto, f"{where}, attribute {shown(name)}")
        return found

    def attribute(self, proto: Any, where: str) -> Any:
        if proto.ref_attr_name:
            return Reference(text(proto.ref_attr_name))
        field = _FIELD_OF_TYPE.get(proto.type) if proto.type else _guess(proto)
        if field is None:
            raise self.fail(f"{where} has no type known to ONNX")
        value = getattr(proto, field)
        if field in ("f", "i"):
            return value
        if field in ("floats", "ints"):
            return tuple(value)
        if field.endswith("s") and len(field) > 1:
            return tuple(self.item(v, where) for v in value)
        return self.item(value, where)

    def item(self, value: Any, where: str) -> Any:
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        kind = type(value).__name__
        if kind == "GraphProto":
            return self.graph(value)
        if kind == "TensorProto":
            return decode(value, self.source, f"{self.source.label}: {where}")
        if kind == "SparseTensorProto":
            return decode_sparse(value, self.source, f"{self.source.label}: {where}")
        if kind == "TypeProto":
            return self.typed("", value)
        return Opaque(kind)


def _guess(proto: Any) -> str | None:
    """The field that is set, for models from before attributes had a type."""
    for field in ("f", "i", "s", "t", "g"):
        if proto.HasField(field):
            return field
    for field in ("floats", "ints", "strings", "tensors", "graphs"):
        if len(getattr(proto, field)):
            return field
    return None


def _dim(proto: Any) -> Dim | None:
    if proto.WhichOneof("value") == "dim_value":
        return int(proto.dim_value) if proto.dim_value > 0 else None
    name = text(proto.dim_param).strip()
    return None if name in _ANONYMOUS else name


def _node_lists(proto: Any) -> Iterator[Any]:
    """Every list of nodes in a model: its graph's, its functions' and all their subgraphs'."""
    stack = [proto.graph.node, *(f.node for f in proto.functions)]
    while stack:
        nodes = stack.pop()
        yield nodes
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append(attribute.g.node)
                stack.extend(g.node for g in attribute.graphs)


def bind_references(node: OnnxNode, given: Mapping[str, Any]) -> OnnxNode:
    """Replace a function body node's references by the caller's attributes, in subgraphs too."""
    attrs: dict[str, Any] = {}
    for name, value in node.attrs.items():
        if isinstance(value, Reference):
            actual = given.get(value.name)
            if actual is not None:
                attrs[name] = actual
        elif isinstance(value, OnnxGraph):
            nodes = tuple(bind_references(n, given) for n in value.nodes)
            attrs[name] = replace(value, nodes=nodes)
        else:
            attrs[name] = value
    return replace(node, attrs=attrs)
