"""ONNX graphs into the IR, for given input shapes: the driver of the converters in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from crossdock.runtime.builder import Operand
from crossdock.runtime.errors import (
    Error,
    GraphError,
    MalformedModel,
    ShapeError,
    UnsafeModel,
    UnsupportedModel,
    UnsupportedOp,
)
from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders.onnx_body import body_of
from crossdock.runtime.loaders.onnx_frame import Captures, Frame, Writer
from crossdock.runtime.loaders.onnx_model import OnnxFunction, OnnxGraph, OnnxModel, OnnxNode, shown
from crossdock.runtime.loaders.onnx_parse import bind_references
from crossdock.runtime.loaders.onnx_table import Context, Entry, Result, Value, find, support
from crossdock.runtime.tensor import TensorSpec

MAX_CONVERTED = 1_000_000
"""Nodes converted in all, functions and conditionals written out."""


def convert(model: OnnxModel, specs: Mapping[str, TensorSpec]) -> Graph:
    """Convert a checked model for static input specs.

    Raises:
        UnsupportedModel: naming every node that cannot be converted.
        MalformedModel: a node breaks a rule of its operator in a model of fixed shapes.
        ShapeError: it does so for the shapes that an open model was bound to.
    """
    return Converter(model, specs).run()


class Converter:
    """One conversion of a model: its frames share the list of what could not be converted."""

    def __init__(self, model: OnnxModel, specs: Mapping[str, TensorSpec]) -> None:
        self.model = model
        self.specs = specs
        self.problems: dict[str, None] = {}
        self.count = 0

    def run(self) -> Graph:
        """Convert the model's graph."""
        graph = self.model.graph
        writer = Writer()
        frame = Frame(self, writer, self.model.opsets)
        for name, spec in self.specs.items():
            frame.values[name] = writer.input(name, spec)
        self.graph(frame, graph)
        if self.problems:
            raise UnsupportedModel(f"{self.model.label}: {'; '.join(self.problems)}")
        outputs = {v.name: frame.require(v.name) for v in graph.outputs}
        return writer.build(outputs, graph.name, booleans=True)

    def graph(self, frame: Frame, graph: OnnxGraph) -> None:
        """Convert the nodes of a graph whose inputs the frame knows already."""
        frame.pending.update(graph.constants)
        for node in graph.nodes:
            self.node(frame, node)

    def inline(self, frame: Frame, graph: OnnxGraph) -> list[Value | None]:
        """Write a subgraph without inputs into the graph around it; the values of its outputs."""
        inner = Frame(self, frame.writer, frame.opsets, parent=frame, prefix=frame.prefix)
        self.graph(inner, graph)
        return [None if inner.has_failed(v.name) else inner.get(v.name) for v in graph.outputs]

    def branch(
        self, frame: Frame, graph: OnnxGraph, captures: Captures
    ) -> tuple[Graph, list[bool]]:
        """Convert a subgraph without inputs into a graph of its own.

        Returns the graph, whose inputs are what it captures, and which outputs ONNX calls bool.
        """
        writer = Writer()
        inner = Frame(
            self, writer, frame.opsets, parent=frame, captures=captures, prefix=frame.prefix
        )
        self.graph(inner, graph)
        if self.problems:
            raise UnsupportedModel("; ".join(self.problems))
        values = {v.name: inner.require(v.name) for v in graph.outputs}
        built = writer.build(values, graph.name, booleans=False)
        return built, [value.boolean for value in values.values()]

    def node(self, frame: Frame, node: OnnxNode) -> None:
        """Convert a node and bind its outputs; what is not supported is noted, the rest raised."""
        node = replace(node, label=frame.prefix + node.label) if frame.prefix else node
        self.count += 1
        if self.count > MAX_CONVERTED:
            raise UnsafeModel(f"{self.model.label}: unfolds to more than {MAX_CONVERTED:,} nodes")
        if any(name and frame.has_failed(name) for name in node.inputs):
            frame.failed.update(node.outputs)
            return
        try:
            inputs = tuple(frame.get(name) if name else None for name in node.inputs)
            values = self.outputs(frame, node, inputs)
        except (UnsupportedModel, UnsupportedOp) as error:
            self.problems[_at(node, error)] = None
            frame.failed.update(node.outputs)
            return
        except Error as error:
            raise self.error(node, error) from error.__cause__
        except (ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
            raise self.error(node, error) from error
        for name, value in zip(node.outputs, values, strict=False):
            if name:
                frame.values[name] = value
        missing = [name for name in node.outputs[len(values) :] if name]
        frame.failed.update(missing)
        if missing:
            self.problems[f"{node}: output {shown(missing[0])} is not supported"] = None

    def error(self, node: OnnxNode, error: Exception) -> Error:
        """An error at a node, in the words of the model."""
        if isinstance(error, Error) and str(error).startswith(f"{self.model.label}: "):
            return error
        text = f"{self.model.label}: {_at(node, error)}"
        if isinstance(error, Error) and not isinstance(error, GraphError | MalformedModel):
            return type(error)(text)
        open_inputs = [v for v in self.model.graph.free_inputs if v.name in self.specs]
        if any(isinstance(d, str) for v in open_inputs for d in v.dims()):
            given = ", ".join(f"{v.name} {self.specs[v.name]}" for v in open_inputs)
            return ShapeError(f"{text} (with inputs {given})")
        return MalformedModel(text)

    def outputs(
        self, frame: Frame, node: OnnxNode, inputs: tuple[Value | None, ...]
    ) -> list[Value | None]:
        """The values of a node's outputs."""
        function = self.model.functions.get((node.domain, node.op, node.overload))
        if function is not None:
            return self.call(frame, node, function, inputs)
        opset = frame.opsets.get(node.domain)
        missing = support(node, opset)
        if missing is not None or opset is None:
            raise UnsupportedModel(f"not supported: {missing}")
        entry = find(node, opset)
        if entry is not None:
            return self.apply(frame, entry, Context(frame.writer.b, node, opset, inputs, frame))
        body = body_of(node, opset, [_onnx_spec(v) for v in inputs])
        if body is None:
            raise UnsupportedModel(f"not supported: {node.kind} (opset {opset}) with these inputs")
        return self.call(frame, node, body, inputs)

    def apply(self, frame: Frame, entry: Entry, ctx: Context) -> list[Value | None]:
        """Run a converter; what it makes is named after the node."""
        b = frame.writer.b
        b.label, b.made = ctx.node.label, []
        values = _values(entry, entry.convert(ctx), ctx.inputs)
        b.settle(v.operand for v in values if v is not None)
        return values

    def call(
        self,
        frame: Frame,
        node: OnnxNode,
        function: OnnxFunction,
        inputs: tuple[Value | None, ...],
    ) -> list[Value | None]:
        """Write a function's body out in place of a node that calls it."""
        inner = Frame(self, frame.writer, function.opsets, prefix=f"{node.label}/")
        given = [*inputs, *[None] * (len(function.inputs) - len(inputs))]
        if len(given) > len(function.inputs):
            raise MalformedModel(f"{len(given)} inputs for a function of {len(function.inputs)}")
        inner.values.update(zip(function.inputs, given, strict=True))
        attrs = {**function.defaults, **node.attrs}
        for item in function.nodes:
            self.node(inner, bind_references(item, attrs))
        pairs = list(zip(function.outputs, node.outputs, strict=False))
        if any(inner.has_failed(name) for name, used in pairs if used):
            raise UnsupportedModel("its body cannot be converted")
        return [inner.get(name) if used else None for name, used in pairs]


def _at(node: OnnxNode, error: Exception) -> str:
    """An error's text, led by the node's where it does not name it."""
    text = str(error) or type(error).__name__
    return text if text.startswith(str(node)) else f"{node}: {text}"


def _values(entry: Entry, result: Result, inputs: Sequence[Value | None]) -> list[Value | None]:
    """A converter's results as values, uint8 ones marked bool where ONNX says so."""
    results = [result] if isinstance(result, Operand | Value) else list(result)
    return [_value(entry, r, inputs) if isinstance(r, Operand) else r for r in results]


def _value(entry: Entry, operand: Operand, inputs: Sequence[Value | None]) -> Value:
    if operand.dtype != "uint8":
        return Value(operand)
    if isinstance(entry.boolean, bool):
        return Value(operand, entry.boolean)
    source = inputs[entry.boolean] if entry.boolean < len(inputs) else None
    return Value(operand, source is not None and source.boolean)


def _onnx_spec(value: Value | None) -> TensorSpec | None:
    """A value's spec in ONNX's types."""
    if value is None:
        return None
    dtype = "bool" if value.boolean else value.operand.dtype
    return TensorSpec(dtype, tuple(value.operand.shape))
