"""The table of ONNX converters, by operator and opset, and what a converter gets to see.

A converter is registered with the first opset whose meaning it implements::

    @onnx_op("Softmax", since=13)
    def softmax(ctx: Context) -> Operand: ...

An operator's newest entry not newer than the model's opset is the one used.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.errors import MalformedModel, UnsupportedModel
from crossdock.runtime.loaders.onnx_host import HostValue, find_host
from crossdock.runtime.loaders.onnx_model import OnnxNode
from crossdock.runtime.loaders.onnx_parse import onnx_package
from crossdock.runtime.tensor import FLOATS, Array, to_numpy

if TYPE_CHECKING:
    from crossdock.runtime.loaders.onnx_frame import Frame

OLDEST = 1
"""The oldest opset of the default domain that converters know."""

REVIEWED = 28
"""The newest opset of the default domain whose changes the converters were checked against."""

FAMILIES = (
    "onnx_elementwise",
    "onnx_activation",
    "onnx_constant",
    "onnx_shape",
    "onnx_index",
    "onnx_reduce",
    "onnx_linear",
    "onnx_quantize",
    "onnx_quantized",
    "onnx_contrib_quantized",
    "onnx_attention",
    "onnx_attention_core",
    "onnx_contrib_norm",
    "onnx_contrib_linear",
    "onnx_contrib_attention",
    "onnx_contrib_rotary",
    "onnx_conv",
    "onnx_pool",
    "onnx_norm",
    "onnx_resize",
    "onnx_recurrent",
    "onnx_control",
    "onnx_legacy",
    "onnx_bits",
    "onnx_order",
    "onnx_signal",
    "onnx_vision",
    "onnx_einsum",
    "onnx_training",
    "onnx_gradient",
)
"""Modules of this package that register converters."""


@dataclass(frozen=True, slots=True)
class Value:
    """An ONNX value: its operand, and whether ONNX calls it bool (the IR holds uint8 then)."""

    operand: Operand
    boolean: bool = False


@dataclass(frozen=True, slots=True)
class Foreign:
    """A value of a type that the IR lacks: ``what`` it is, and itself where it is a constant."""

    what: str
    value: HostValue | None = None


class Deferred(Exception):
    """A node cannot be written into this stage's graph; the message says why."""


class Demand(Deferred):
    """A converter needs the values of operands, by their indices, that are no constants."""

    def __init__(self, what: str, *indices: int) -> None:
        super().__init__(what)
        self.indices = indices


Result = Operand | Value | Sequence[Operand | Value | Foreign | None]
Converter = Callable[["Context"], Result]


@dataclass(frozen=True, slots=True)
class Entry:
    """A converter and the first opset it is for.

    ``boolean`` says whether uint8 results are ONNX bools: True or False, or the index of the
    input whose type the results have. A converter that returns a ``Value`` says it itself.
    """

    op: str
    domain: str
    since: int
    convert: Converter
    boolean: bool | int = 0


_TABLE: dict[tuple[str, str], list[Entry]] = {}

_KNOWN = 4096
"""Operators whose support is remembered; a model can name any number of them."""


def onnx_op(
    *names: str, since: int = 1, domain: str = "", boolean: bool | None = None, like: int = 0
) -> Callable[[Converter], Converter]:
    """Decorator: register a converter for operators from opset ``since`` on.

    ``boolean`` fixes whether uint8 results are ONNX bools; without it they are where input
    ``like`` is one.
    """

    def register(convert: Converter) -> Converter:
        for name in names:
            entry = Entry(name, domain, since, convert, like if boolean is None else boolean)
            entries = _TABLE.setdefault((domain, name), [])
            entries.append(entry)
            entries.sort(key=lambda e: -e.since)
        return convert

    return register


@functools.cache
def load_table() -> None:
    """Import every family of converters once."""
    for name in FAMILIES:
        importlib.import_module(f"crossdock.runtime.loaders.{name}")


def find(node: OnnxNode, opset: int) -> Entry | None:
    """The converter for a node's operator at an opset, or None."""
    load_table()
    for entry in _TABLE.get((node.domain, node.op), ()):
        if entry.since <= opset:
            return entry
    return None


def operators() -> dict[tuple[str, str], tuple[int, ...]]:
    """Opsets at which each (domain, operator) has a converter of its own."""
    load_table()
    return {key: tuple(sorted(e.since for e in entries)) for key, entries in _TABLE.items()}


@functools.lru_cache(maxsize=_KNOWN)
def _schema(op: str, domain: str, opset: int) -> Any:
    """The package's schema of an operator at an opset, or None."""
    defs = onnx_package().defs
    try:
        return defs.get_schema(op, opset, domain)
    except defs.SchemaError:
        return None


def schema(node: OnnxNode, opset: int) -> Any:
    """The package's schema of a node's operator at an opset, or None."""
    return _schema(node.op, node.domain, opset)


def support(node: OnnxNode, opset: int | None) -> str | None:
    """None where a node's operator can be converted at an opset, else what is missing."""
    return _support(node.op, node.domain, opset)


@functools.lru_cache(maxsize=_KNOWN)
def _support(op_type: str, domain: str, opset: int | None) -> str | None:
    node = OnnxNode(op_type, domain, (), ())
    name = node.kind
    if opset is None:
        return f"{name} of an operator set that the model does not import"
    op = f"{name} (opset {opset})"
    if not node.domain:
        newest = int(onnx_package().defs.onnx_opset_version())
        if opset < OLDEST:
            return f"{op}, older than opset {OLDEST} (onnx.version_converter can raise it)"
        if opset > newest:
            return f"{op}, newer than the installed onnx knows ({newest}; upgrade onnx)"
    known = schema(node, opset)
    if known is not None and not node.domain and known.since_version > REVIEWED:
        return f"{op}, whose meaning changed after opset {REVIEWED}"
    if find(node, opset) or has_body(known) or find_host(node, opset):
        return None
    return op if known is not None or node.domain else f"{op}, which ONNX does not have"


def has_body(known: Any) -> bool:
    """True where the schema writes the operator out as a function of others."""
    return known is not None and (known.has_function or known.has_context_dependent_function)


@dataclass(slots=True)
class Context:
    """One node's conversion: its operands, attributes, and the builder to write with."""

    b: GraphBuilder
    node: OnnxNode
    opset: int
    inputs: tuple[Value | None, ...]
    frame: Frame = field(repr=False)
    missed: dict[int, None] = field(default_factory=dict, repr=False)
    """Operands whose values were asked for in vain."""

    def __len__(self) -> int:
        return len(self.inputs)

    def opt(self, index: int) -> Operand | None:
        """Operand ``index``, or None where it is absent."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return None if value is None else value.operand

    def x(self, index: int = 0) -> Operand:
        """Operand ``index``, which must be there."""
        operand = self.opt(index)
        if operand is None:
            raise self.malformed(f"input {index} is missing")
        return operand

    def all(self) -> list[Operand]:
        """Every operand; none may be absent."""
        return [self.x(i) for i in range(len(self.inputs))]

    def boolean(self, index: int) -> bool:
        """True where ONNX calls operand ``index`` bool."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return value is not None and value.boolean

    def known(self, index: int) -> Array | None:
        """The value of operand ``index`` where it is a constant."""
        operand = self.opt(index)
        if operand is not None and operand.value is None:
            self.missed[index] = None
        return None if operand is None else operand.value

    def value(self, index: int, what: str) -> Array:
        """The value of operand ``index``; raises Demand while it is no constant."""
        array = self.known(index)
        if array is None:
            self.x(index)
            raise self.demand(f"{what} that is computed from the inputs' values", index)
        return array

    def ints(self, index: int, what: str) -> tuple[int, ...]:
        """Operand ``index`` as a constant list of integers."""
        array = self.value(index, what)
        if array.dtype.kind not in "iu" or array.ndim > 1:
            raise self.malformed(f"{what} is {array.dtype}{list(array.shape)}, not a list of ints")
        return tuple(int(v) for v in array.reshape(-1))

    def scalar(self, index: int, what: str) -> int | float:
        """Operand ``index`` as one constant number."""
        array = self.value(index, what)
        if array.size != 1:
            raise self.malformed(f"{what} has {array.size} elements, not one")
        number: int | float = array.reshape(-1)[0].item()
        return number

    def like(self, number: float, operand: Operand) -> Operand:
        """A scalar constant of an operand's element type."""
        with np.errstate(invalid="ignore", over="ignore"):
            return self.b.constant(np.array(number).astype(to_numpy(operand.dtype)))

    def make_room(self, nbytes: int) -> None:
        """Raise LimitError unless a constant of ``nbytes`` may be made here, and count it."""
        self.frame.writer.make_room(nbytes)

    def places(self, count: int, dtype: str = "int64") -> Array:
        """The numbers from 0 to ``count - 1``, where the budget allows them."""
        kind = to_numpy(dtype)
        self.make_room(count * kind.itemsize)
        return np.arange(count, dtype=kind)

    def axis(self, value: int, rank: int) -> int:
        """An axis counted from the front; raises where it is out of range."""
        if not -rank <= value < rank:
            raise self.malformed(f"axis {value} is out of range for rank {rank}")
        return value % rank

    def axes(self, values: Sequence[int], rank: int) -> list[int]:
        """Axes counted from the front, none twice."""
        found = [self.axis(v, rank) for v in values]
        if len(set(found)) < len(found):
            raise self.malformed(f"an axis stands twice in {list(values)}")
        return found

    def wants(self, index: int) -> bool:
        """True where the node names output ``index``."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index])

    def is_float(self, index: int = 0) -> bool:
        """True where operand ``index`` has a floating-point type."""
        return self.x(index).dtype in FLOATS

    def demand(self, what: str, *indices: int) -> Demand:
        """What to raise for a node that can be written once operands are constants."""
        return Demand(f"{self.node}: {what}", *indices)

    def unsupported(self, what: str) -> UnsupportedModel:
        """The error for a legal use that crossdock lacks."""
        return UnsupportedModel(f"{self.node}: {what} is not supported")

    def malformed(self, what: str) -> MalformedModel:
        """The error for a use that ONNX does not allow."""
        return MalformedModel(f"{self.node}: {what}")
