"""Names to values while an ONNX graph is converted: frames, constants, captures of branches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from crossdock.kernels.spec import OpSpec
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.errors import LimitError, MalformedModel, UnsupportedModel
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.limits import FOLD_FLOPS, Budget
from crossdock.runtime.loaders.onnx_host import HostValue
from crossdock.runtime.loaders.onnx_model import Opaque, shown
from crossdock.runtime.loaders.onnx_stage import Constant, Kind, in_ir, kind_of
from crossdock.runtime.loaders.onnx_table import Deferred, Foreign, Value
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

if TYPE_CHECKING:
    from crossdock.runtime.loaders.onnx_convert import Converter


@dataclass
class Captures:
    """What the branches of one conditional take from outside, in one order for all of them."""

    values: dict[str, Operand] = field(default_factory=dict)

    def name(self, operand: Operand) -> str:
        """The branch input that stands for an outer operand."""
        for name, known in self.values.items():
            if known is operand:
                return name
        name = f"captured.{len(self.values)}"
        self.values[name] = operand
        return name


OPS_A_NODE = 64
"""Ops that a node of the model may become; each further one counts as a node of its own."""


class LabellingBuilder(GraphBuilder):
    """A builder that names every node it makes after the ONNX node being converted.

    All are called "<label>/<op>"; ``settle`` says which of them is the ONNX node itself. What the
    ops make, and what is folded, must be within a budget.
    """

    def __init__(self, budget: Budget) -> None:
        super().__init__(fold=True)
        self.budget = budget
        self._fitting: set[TensorSpec] = set()
        self.label = ""
        self.made: list[Operand] = []
        self.mains: dict[str, str] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = super().__getattr__(name)

        def labelled(*args: Any, **options: Any) -> Any:
            if self.label:
                options.setdefault("label", f"{self.label}/{name}")
            results = method(*args, **options)
            self.made.extend(results if isinstance(results, tuple) else (results,))
            if len(self.made) > OPS_A_NODE:
                self.budget.node(name)
            return results

        return labelled

    def _check_size(self, op: str, spec: TensorSpec) -> None:
        if spec in self._fitting:
            return
        super()._check_size(op, spec)
        if spec.is_static and op != "input":
            self.budget.size(spec.nbytes, op)
            self._fitting.add(spec)

    def _may_fold(
        self,
        spec: OpSpec,
        operands: tuple[Operand | None, ...],
        attrs: Mapping[str, Any],
        outs: tuple[TensorSpec, ...],
    ) -> bool:
        if not super()._may_fold(spec, operands, attrs, outs):
            return False
        if spec.name == "dequantize_linear" and outs[0].rank > 1:
            return False  # quantised weights: products of bytes may take them as they are
        work = spec.work([None if o is None else o.spec for o in operands], outs, attrs)
        return work.flops <= FOLD_FLOPS and self.budget.folds(sum(out.nbytes for out in outs))

    def settle(self, results: Iterable[Operand]) -> None:
        """Give the label to the node that made the first of ``results``, or else to the last."""
        chosen = next((r for r in results if any(r is m for m in self.made)), None)
        if chosen is None and self.made:
            chosen = self.made[-1]
        if chosen is not None and self.label:
            self.mains.setdefault(chosen.name, self.label)
        self.made = []
        self.label = ""


class Writer:
    """One builder, and the constants it has been given, so that none is held twice."""

    def __init__(self, budget: Budget) -> None:
        self.b = LabellingBuilder(budget)
        self._constants: dict[int, tuple[Array, Value]] = {}
        self._filled: dict[tuple[str, tuple[int, ...], bytes], Array] = {}
        self._captured: dict[str, Operand] = {}

    def input(self, name: str, spec: TensorSpec) -> Value:
        """Declare a graph input; bools are bytes from there on."""
        operand = self.b.input(name, spec.shape, spec.dtype)
        if spec.dtype != "bool":
            return Value(operand)
        return Value(self.b.cast(operand, "uint8"), True)

    def captured(self, name: str, outer: Operand) -> Operand:
        """Declare an input that stands for an operand of the graph around."""
        if name not in self._captured:
            self._captured[name] = self.b.input(name, outer.shape, outer.dtype)
        return self._captured[name]

    def constant(self, array: Array) -> Value:
        """An array as a value; ONNX bools are held as uint8."""
        found = self._constants.get(id(array))
        if found is None:
            boolean = array.dtype == np.bool_
            operand = self.b.constant(array.view(np.uint8) if boolean else array)
            found = self._constants[id(array)] = (array, Value(operand, boolean))
        return found[1]

    def filled(self, shape: tuple[int, ...], fill: Array) -> Value:
        """A constant of one repeated element, the same for the same shape and element."""
        key = (fill.dtype.name, shape, fill.tobytes())
        array = self._filled.get(key)
        if array is None:
            self.make_room(math.prod(shape) * fill.dtype.itemsize)
            array = np.zeros(shape, dtype=fill.dtype)
            if fill.tobytes().strip(b"\0"):
                array[...] = fill
            array.flags.writeable = False
            self._filled[key] = array
        return self.constant(array)

    def make_room(self, nbytes: int) -> None:
        """Raise LimitError unless a constant of ``nbytes`` may be made, and count it."""
        budget = self.b.budget
        budget.tensor(nbytes, "a constant")
        if not budget.folds(nbytes):
            raise LimitError(
                f"the constants that the model makes take over {budget.folded:,} bytes; raise "
                "Limits.tensor_bytes if that is right"
            )

    def build(self, outputs: Mapping[str, Value], name: str, *, booleans: bool) -> Graph:
        """Build the graph, its nodes named as the ONNX nodes; ``booleans``: bools leave as such."""
        b = self.b
        ends = {
            key: b.cast(value.operand, "bool") if value.boolean and booleans else value.operand
            for key, value in outputs.items()
        }
        b.name, b.label = name or "graph", ""
        graph = b.build(ends)
        taken = {node.name for node in graph.nodes}
        return replace(graph, nodes=tuple(_renamed(n, b.mains, taken) for n in graph.nodes))


def _renamed(node: Node, mains: Mapping[str, str], taken: set[str]) -> Node:
    label = next((mains[v] for v in node.outputs if v in mains), None)
    if label is None or label in taken:
        return node
    taken.add(label)
    return replace(node, name=label)


class Frame:
    """The names of one graph or function body.

    A frame with a parent sees the parent's names; where the parent writes with another builder,
    an outer constant is given to this one too, and anything else becomes a captured input.
    """

    def __init__(
        self,
        converter: Converter,
        writer: Writer,
        opsets: Mapping[str, int],
        *,
        parent: Frame | None = None,
        captures: Captures | None = None,
        prefix: str = "",
        inner: bool = True,
    ) -> None:
        self._converter = ref(converter)  # which has the frame
        self.writer = writer
        self.opsets = opsets
        self.parent = parent
        self.captures = captures
        self.prefix = prefix
        self.inner = inner
        self.values: dict[str, Value | Foreign | None] = {}
        self.pending: dict[str, Constant] = {}
        self.failed: set[str] = set()

    @property
    def converter(self) -> Converter:
        """The conversion that it is part of, while that is on."""
        found = self._converter()
        assert found is not None
        return found

    def declare(self, name: str, kind: Kind) -> None:
        """Make a name stand for a value that is fed."""
        fed = Foreign(kind) if isinstance(kind, str) else self.writer.input(name, kind)
        self.values[name] = fed

    def get(self, name: str) -> Value | Foreign | None:
        """The value of a name; None where a function's optional input was left out."""
        if name in self.values:
            return self.values[name]
        if name in self.pending:
            value: Value | Foreign | None = self._initialiser(name)
        elif self.parent is None:
            raise MalformedModel(f"{shown(name)} is read, but nothing makes it")
        else:
            value = self._outer(self.parent, name)
        self.values[name] = value
        return value

    def has_failed(self, name: str) -> bool:
        """True for a value of a node that could not be converted, here or outside."""
        if name in self.failed:
            return True
        known = name in self.values or name in self.pending
        return not known and self.parent is not None and self.parent.has_failed(name)

    def constant_of(self, name: str) -> Constant:
        """A name's value as an array (or what the host has), which must be known."""
        if name not in self.values and name in self.pending:
            return self.pending[name]
        value = self.get(name)
        if value is None or isinstance(value, Foreign):
            return None if value is None else value.value
        array = value.operand.value
        return array.view(np.bool_) if value.boolean and array is not None else array

    def is_known(self, name: str) -> bool:
        """True where a name's value is a constant, or left out."""
        if name not in self.values and name in self.pending:
            return True
        value = self.get(name)
        if value is None:
            return True
        known = value.value if isinstance(value, Foreign) else value.operand.value
        return known is not None

    def _initialiser(self, name: str) -> Value | Foreign | None:
        held = self.pending[name]
        if isinstance(held, Opaque):
            raise UnsupportedModel(
                f"initialiser {shown(name)} of type {held.what} is not supported"
            )
        return self.held(held)

    def held(self, value: HostValue | None) -> Value | Foreign | None:
        """A value at hand as a constant."""
        if value is None:
            return None
        if isinstance(value, np.ndarray) and in_ir(value):
            return self.writer.constant(value)
        return Foreign(str(kind_of(value)), value)

    def _outer(self, parent: Frame, name: str) -> Value | Foreign | None:
        value = parent.get(name)
        if value is None or isinstance(value, Foreign):
            return value
        if parent.writer is self.writer or self.captures is None:
            return value
        known = value.operand.value
        if known is not None:
            return Value(self.writer.constant(known).operand, value.boolean)
        operand = value.operand
        inner = self.captures.name(operand)
        return Value(self.writer.captured(inner, operand), value.boolean)

    def require(self, name: str) -> Value:
        """The tensor of a name that must have a value; raises Deferred if the IR lacks it."""
        value = self.get(name)
        if value is None:
            raise MalformedModel(f"{shown(name)} has no value")
        if isinstance(value, Foreign):
            raise Deferred(f"{shown(name)} is {value.what}")
        return value

    def constant(self, array: Array) -> Value:
        """An array as a value of this frame's builder."""
        return self.writer.constant(array)

    def filled(self, shape: Sequence[int], fill: Array) -> Value:
        """A constant of one repeated element."""
        return self.writer.filled(tuple(shape), fill)

    def empty(self, dtype: str, shape: Sequence[int]) -> Operand:
        """A tensor without elements."""
        assert math.prod(shape) == 0, shape
        return self.writer.b.constant(np.zeros(tuple(shape), to_numpy(dtype)))
