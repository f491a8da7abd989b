"""An ONNX model as plain data: what the converters read, free of protobuf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.limits import Limits
from crossdock.runtime.tensor import Array, Dim

ONNX_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}
"""TensorProto.DataType to the IR's element types; the rest has no counterpart."""

OTHER_DTYPES = {
    0: "undefined",
    8: "string",
    14: "complex64",
    15: "complex128",
    17: "float8e4m3fn",
    18: "float8e4m3fnuz",
    19: "float8e5m2",
    20: "float8e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4e2m1",
    24: "float8e8m0",
    25: "uint2",
    26: "int2",
    27: "float6e2m3",
    28: "float6e3m2",
}


def dtype_name(number: int) -> str:
    """The name of a TensorProto.DataType, for messages."""
    return ONNX_DTYPES.get(number) or OTHER_DTYPES.get(number) or f"element type {number}"


def dtype_number(name: str) -> int | None:
    """The TensorProto.DataType of a name like FLOAT, as opsets before 6 wrote them."""
    given = {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
    numbers = {known: number for number, known in (ONNX_DTYPES | OTHER_DTYPES).items()}
    return numbers.get(given)


def shown(name: str, *, plain: bool = False) -> str:
    """A name from a model in a message: quoted, on one line, and cut where it is long.

    ``plain`` leaves the quotes out where the name has only letters, digits, dots and the like.
    """
    cut = name if len(name) <= 80 else f"{name[:77]}..."
    if plain and cut and all(c.isalnum() or c in "._-" for c in cut):
        return cut
    return repr(cut)


SMALL_DTYPES = {
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
    27: "float6_e2m3fn",
    28: "float6_e3m2fn",
}
"""TensorProto.DataType to the name in ``ml_dtypes``, for types that only the host holds."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """A tensor that cannot be read; an error only where it is used."""

    what: str


@dataclass(frozen=True, slots=True)
class Reference:
    """An attribute in a function body that stands for the caller's attribute."""

    name: str


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """A declared input or output.

    ``dtype`` is None where the IR has no such type, ``shape`` None where none is declared;
    ``what`` describes the type for messages. Anonymous dimensions are None. ``kind`` is "tensor",
    "sequence", "optional", "map", "sparse_tensor", "opaque" or empty where no type is declared;
    ``element`` is the type inside a sequence or an optional.
    """

    name: str
    dtype: str | None
    shape: tuple[Dim | None, ...] | None
    what: str = "tensor"
    kind: str = "tensor"
    element: OnnxValue | None = None

    def dims(self) -> tuple[Dim, ...]:
        """The shape with a symbol of its own, "name.axis", for each anonymous dimension."""
        return tuple(f"{self.name}.{i}" if d is None else d for i, d in enumerate(self.shape or ()))


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """A node. ``label`` is its name if it is the only one of that name, else made up."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    overload: str = ""

    @property
    def kind(self) -> str:
        """Domain and operator, for messages."""
        op = shown(self.op, plain=True)
        return f"{shown(self.domain, plain=True)}.{op}" if self.domain else op

    def __str__(self) -> str:
        return f"node {shown(self.label)} ({self.kind})"

    def _typed(self, name: str, default: Any, kind: type, what: str) -> Any:
        value = self.attrs.get(name, default)
        if value is default or type(value) is kind:
            return value
        raise MalformedModel(f"{self}: attribute {shown(name)} is no {what}")

    def get_int(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(self._typed(name, default, int, "integer"))

    def get_float(self, name: str, default: float = 0.0) -> float:
        """A float attribute."""
        return float(self._typed(name, default, float, "float"))

    def get_str(self, name: str, default: str = "") -> str:
        """A string attribute."""
        return str(self._typed(name, default, str, "string"))

    def get_choice(self, name: str, *words: str) -> str:
        """A string attribute that is one of some words, the first of which it is by default."""
        found = self.get_str(name, words[0])
        if found not in words:
            raise MalformedModel(f"{self}: {name} {shown(found)} is none of {', '.join(words)}")
        return found

    def _list(self, name: str, kind: type, what: str) -> tuple[Any, ...] | None:
        value = self.attrs.get(name)
        if value is None:
            return None
        if not isinstance(value, tuple) or any(type(v) is not kind for v in value):
            raise MalformedModel(f"{self}: attribute {shown(name)} is no list of {what}s")
        return value

    def get_ints(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, or None where it is absent."""
        return self._list(name, int, "integer")

    def get_floats(self, name: str) -> tuple[float, ...] | None:
        """A list of floats, or None where it is absent."""
        return self._list(name, float, "float")

    def get_strs(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, or None where it is absent."""
        return self._list(name, str, "string")

    def graph(self, name: str) -> OnnxGraph:
        """A subgraph that must be there."""
        value = self.attrs.get(name)
        if not isinstance(value, OnnxGraph):
            raise MalformedModel(f"{self}: subgraph {shown(name)} is missing")
        return value

    def require(self, name: str) -> None:
        """Raise unless the attribute is there."""
        if name not in self.attrs:
            raise MalformedModel(f"{self}: attribute {shown(name)} is missing")

    def subgraphs(self) -> Iterator[OnnxGraph]:
        """The graphs among the attributes."""
        for value in self.attrs.values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, OnnxGraph):
                    yield item


@dataclass(frozen=True)
class OnnxGraph:
    """A graph or subgraph; nodes stand in topological order once checked.

    ``data`` is the serialised GraphProto of a subgraph that ONNX writes into a function's body.
    """

    name: str
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Array | Opaque]
    data: bytes = field(default=b"", repr=False, compare=False)

    @property
    def free_inputs(self) -> tuple[OnnxValue, ...]:
        """Inputs that no initialiser of the same name makes a constant."""
        return tuple(v for v in self.inputs if v.name not in self.constants)


@dataclass(frozen=True)
class OnnxFunction:
    """A function: a node's meaning as other nodes, with its own opsets."""

    name: str
    domain: str
    overload: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    defaults: Mapping[str, Any]
    opsets: Mapping[str, int]


FunctionKey = tuple[str, str, str]
"""Domain, name and overload."""


@dataclass(frozen=True)
class OnnxModel:
    """A parsed model. ``label`` names its source in messages, ``limits`` what it may ask for."""

    label: str
    graph: OnnxGraph
    opsets: Mapping[str, int]
    functions: Mapping[FunctionKey, OnnxFunction] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
