"""ONNX graphs into the IR, for given input shapes: the driver of the converters in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.errors import (
    Error,
    GraphError,
    LimitError,
    MalformedModel,
    ShapeError,
    UnsupportedModel,
    UnsupportedOp,
)
from crossdock.runtime.graph import Graph
from crossdock.runtime.limits import Budget
from crossdock.runtime.loaders.onnx_body import body_of
from crossdock.runtime.loaders.onnx_cut import NO_FORM, Cut, ForHost, pruned
from crossdock.runtime.loaders.onnx_frame import Captures, Frame, Writer
from crossdock.runtime.loaders.onnx_host import (
    HostCall,
    HostEntry,
    HostValue,
    find_host,
    no_body,
    run_entry,
)
from crossdock.runtime.loaders.onnx_model import (
    OnnxFunction,
    OnnxGraph,
    OnnxModel,
    OnnxNode,
    Opaque,
    shown,
)
from crossdock.runtime.loaders.onnx_parse import bind_references
from crossdock.runtime.loaders.onnx_stage import Constant, HostStep, Inner, Kind, Scope, Stage
from crossdock.runtime.loaders.onnx_table import (
    Context,
    Deferred,
    Demand,
    Entry,
    Foreign,
    Result,
    Value,
    find,
    has_body,
    schema,
    support,
)
from crossdock.runtime.tensor import TensorSpec


def convert(
    model: OnnxModel, specs: Mapping[str, TensorSpec], constants: Mapping[str, Constant]
) -> Graph | Stage:
    """Convert a checked model for static input specs, as one graph where that can be.

    Raises:
        UnsupportedModel: naming every node that cannot be converted.
        MalformedModel: a node breaks a rule of its operator in a model of fixed shapes.
        ShapeError: it does so for the shapes that an open model was bound to.
    """
    scope = Scope.of(model.graph, model.opsets)
    converter = Converter(model, specs)
    converter.walk(scope, specs, constants)
    return converter.whole() or converter.stage()


def convert_stage(
    model: OnnxModel, scope: Scope, kinds: Mapping[str, Kind], constants: Mapping[str, Constant]
) -> Stage:
    """Convert what can be of (the rest of) a graph for the values there are; errors as above."""
    converter = Converter(model, {n: k for n, k in kinds.items() if isinstance(k, TensorSpec)})
    converter.walk(scope, kinds, constants)
    return converter.stage()


class Converter:
    """One conversion: its frames share the list of what could not be converted.

    Nodes of the root frame that need values, or the host, are put off; inside functions and
    branches that puts off the whole node at the root.
    """

    def __init__(
        self, model: OnnxModel, specs: Mapping[str, TensorSpec], budget: Budget | None = None
    ) -> None:
        self.model = model
        self.specs = specs
        self.problems: dict[str, None] = {}
        self.budget = Budget(model.limits) if budget is None else budget

    def walk(
        self, scope: Scope, kinds: Mapping[str, Kind], constants: Mapping[str, Constant]
    ) -> None:
        """Convert a scope's nodes, or put them off."""
        self.scope, self.given, self.constants = scope, kinds, constants
        self.cut = Cut(kinds)
        self.budget.brought = _brought(kinds, constants)
        self.root = Frame(self, Writer(self.budget), scope.opsets, prefix=scope.prefix, inner=False)
        for name, kind in kinds.items():
            self.root.declare(name, kind)
        self.root.pending.update(constants)
        for node in scope.nodes:
            self.node(self.root, node)
        if self.problems:
            raise UnsupportedModel(f"{self.model.label}: {'; '.join(self.problems)}")

        self.needed = self.cut.needed(scope.outputs)

    def whole(self) -> Graph | None:
        """The graph of everything, or None where something is for later."""
        frame, names = self.root, self.scope.outputs
        if self.cut.late or any(isinstance(frame.get(name), Foreign) for name in names):
            return None
        outputs = {name: frame.require(name) for name in names}
        return frame.writer.build(outputs, self.scope.name, booleans=True)

    def stage(self) -> Stage:
        """What this conversion settled, and what it left."""
        cut, frame, given = self.cut, self.root, self.given
        if cut.ask:
            return Stage(None, (), cut.ask, self.scope.nodes, given, self.constants)
        known = {name: frame.constant_of(name) for name in self.needed if frame.is_known(name)}
        left = [name for name in self.needed if name not in known]
        outputs = {name: frame.require(name) for name in left if name not in given}
        graph = None
        if outputs:
            graph = pruned(frame.writer.build(outputs, self.scope.name, booleans=True))
        specs = {} if graph is None else graph.output_specs
        kinds = {name: given[name] if name in given else specs[name] for name in left}
        held = {**self.constants, **known}
        return Stage(graph, tuple(cut.hosts), cut.demands, cut.rest, kinds, held)

    def graph(self, frame: Frame, graph: OnnxGraph) -> None:
        """Convert the nodes of a graph whose inputs the frame knows already."""
        frame.pending.update(graph.constants)
        for node in graph.nodes:
            self.node(frame, node)

    def inline(self, frame: Frame, graph: OnnxGraph) -> list[Value | Foreign | None]:
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
        writer = Writer(self.budget)
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
        """Convert a node and bind its outputs, or put it off.

        What is not supported is noted, the rest raised.
        """
        plain = node
        node = replace(node, label=frame.prefix + node.label) if frame.prefix else node
        self.budget.node(self.model.label)
        if any(name and frame.has_failed(name) for name in node.inputs):
            frame.failed.update(node.outputs)
            return
        if not frame.inner and self.cut.is_behind(node):
            self.cut.behind(plain, self.certain_host(frame, node))
            return
        try:
            values = self.outputs(frame, node)
        except (UnsupportedModel, UnsupportedOp) as error:
            self.problems[_at(node, error)] = None
            frame.failed.update(node.outputs)
            return
        except Deferred as why:
            self.put_off(frame, node, plain, why)
            return
        except Error as error:
            raise self.error(node, error) from error.__cause__
        except MemoryError as error:
            raise self.error(node, LimitError("there is not enough memory for it")) from error
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise self.error(node, error) from error
        self.bind(frame, node, values)

    def bind(self, frame: Frame, node: OnnxNode, values: Sequence[Value | Foreign | None]) -> None:
        """Give a node's outputs their values."""
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

    # --- for later stages ---

    def put_off(self, frame: Frame, node: OnnxNode, plain: OnnxNode, why: Deferred) -> None:
        """Leave a node of the root frame to a later stage (as it is) or the host (labelled)."""
        if frame.inner:
            raise Deferred(_at(node, why)) from why
        if isinstance(why, ForHost):
            self.cut.host(HostStep(node, frame.opsets, str(why), entry=why.entry))
        elif isinstance(why, Demand):
            self.cut.demand(plain, why.indices)
        else:
            self.cut.host(HostStep(node, frame.opsets, str(why), inner=self.inner(frame, node)))

    def certain_host(self, frame: Frame, node: OnnxNode) -> HostStep | None:
        """The host step of a node that nothing but the host can run, whatever its inputs are."""
        entry = only_host(self.model, node, frame.opsets)
        return None if entry is None else HostStep(node, frame.opsets, NO_FORM, entry=entry)

    def inner(self, frame: Frame, node: OnnxNode) -> Inner:
        """A call, or a conditional whose branch is known, as a graph to be run on its own."""
        function = self.function(frame, node)
        if function is not None:
            attrs = {**function.defaults, **node.attrs}
            nodes = tuple(bind_references(item, attrs) for item in function.nodes)
            scope = Scope.call(function, nodes, f"{node.label}/")
            return Inner(scope, function.inputs)
        condition = np.asarray(frame.constant_of(node.inputs[0])).reshape(-1)[0]
        graph = node.graph("then_branch" if condition else "else_branch")
        scope = Scope.of(graph, frame.opsets, frame.prefix)
        return Inner(scope, (), graph)

    # --- a node's values ---

    def function(self, frame: Frame, node: OnnxNode) -> OnnxFunction | None:
        """The function that a node calls, or that its operator is defined as, or None."""
        function = self.model.functions.get((node.domain, node.op, node.overload))
        opset = frame.opsets.get(node.domain)
        if function is not None or opset is None or find(node, opset) is not None:
            return function
        if not has_body(schema(node, opset)):
            return None
        inputs = [frame.get(name) if name else None for name in node.inputs]
        body = body_of(node, opset, [_onnx_spec(v) for v in inputs])
        return body and replace(body, opsets={**frame.opsets, **body.opsets})

    def outputs(self, frame: Frame, node: OnnxNode) -> Sequence[Value | Foreign | None]:
        """The values of a node's outputs: converted, written out, or computed by the host."""
        function = self.function(frame, node)
        if function is not None:
            return self.call(frame, node, function)
        opset = frame.opsets.get(node.domain)
        missing = support(node, opset)
        if missing is not None or opset is None:
            raise UnsupportedModel(f"not supported: {missing}")
        entry, host = find(node, opset), find_host(node, opset)
        known = schema(node, opset)
        if known is not None and len(node.inputs) > known.max_input:
            raise MalformedModel(f"{len(node.inputs)} inputs, and it takes {known.max_input}")
        try:
            if entry is None:
                if host is not None:
                    raise UnsupportedModel(NO_FORM)
                raise UnsupportedModel(
                    f"not supported: {node.kind} (opset {opset}) with these inputs"
                )
            return self.apply(frame, entry, node, opset)
        except (UnsupportedModel, UnsupportedOp, Demand) as error:
            foreign = any(isinstance(frame.get(n), Foreign) for n in node.inputs if n)
            if host is None or not host.suits(foreign, isinstance(error, Demand)):
                raise
            return self.folded(frame, node, opset, host, str(error).removeprefix(f"{node}: "))

    def apply(
        self, frame: Frame, entry: Entry, node: OnnxNode, opset: int
    ) -> list[Value | Foreign | None]:
        """Run a converter; what it makes is named after the node."""
        inputs: list[Value | None] = []
        for index, name in enumerate(node.inputs):
            value = frame.get(name) if name else None
            if isinstance(value, Foreign):
                raise UnsupportedModel(f"input {index} is {value.what}, which the IR lacks")
            inputs.append(value)
        b = frame.writer.b
        ctx = Context(b, node, opset, tuple(inputs), frame)
        b.label, b.made = ctx.node.label, []
        try:
            values = _values(entry, entry.convert(ctx), ctx.inputs)
        except (UnsupportedModel, UnsupportedOp) as error:
            if not ctx.missed:
                raise
            raise ctx.demand(str(error).removeprefix(f"{node}: "), *ctx.missed) from error
        b.settle(v.operand for v in values if isinstance(v, Value))
        return values

    def folded(
        self, frame: Frame, node: OnnxNode, opset: int, host: HostEntry, why: str
    ) -> list[Value | Foreign | None]:
        """What the host makes of constants; raises ForHost where something is none."""
        names = [name for name in node.inputs if name]
        fresh = host.draws and "seed" not in node.attrs
        if fresh or any(node.subgraphs()) or not all(frame.is_known(name) for name in names):
            raise ForHost(why, host)
        inputs = tuple(frame.constant_of(name) if name else None for name in node.inputs)
        call = HostCall(node, opset, _readable(inputs), no_body, budget=self.budget)
        results = run_entry(host, call)
        return [frame.held(value) for value in results]

    def call(
        self, frame: Frame, node: OnnxNode, function: OnnxFunction
    ) -> list[Value | Foreign | None]:
        """Write a function's body out in place of a node that calls it."""
        inner = Frame(self, frame.writer, function.opsets, prefix=f"{node.label}/")
        inputs = [frame.get(name) if name else None for name in node.inputs]
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


def _brought(kinds: Mapping[str, Kind], constants: Mapping[str, Constant]) -> int:
    """Bytes of the inputs and constants that a conversion starts from."""
    fed = sum(k.nbytes for k in kinds.values() if isinstance(k, TensorSpec) and k.is_static)
    return fed + sum(c.nbytes for c in constants.values() if isinstance(c, np.ndarray))


def _readable(inputs: Sequence[Constant]) -> tuple[HostValue | None, ...]:
    for value in inputs:
        if isinstance(value, Opaque):
            raise UnsupportedModel(f"a constant of type {value.what} is not supported")
    return tuple(value for value in inputs if not isinstance(value, Opaque))


def _at(node: OnnxNode, error: Exception) -> str:
    """An error's text, led by the node's where it does not name it."""
    text = str(error) or type(error).__name__
    return text if text.startswith(str(node)) else f"{node}: {text}"


def _values(
    entry: Entry, result: Result, inputs: Sequence[Value | None]
) -> list[Value | Foreign | None]:
    """A converter's results as values, uint8 ones marked bool where ONNX says so."""
    results = [result] if isinstance(result, Operand | Value | Foreign) else list(result)
    return [_value(entry, r, inputs) if isinstance(r, Operand) else r for r in results]


def _value(entry: Entry, operand: Operand, inputs: Sequence[Value | None]) -> Value:
    if operand.dtype != "uint8":
        return Value(operand)
    if isinstance(entry.boolean, bool):
        return Value(operand, entry.boolean)
    source = inputs[entry.boolean] if entry.boolean < len(inputs) else None
    return Value(operand, source is not None and source.boolean)


def _onnx_spec(value: Value | Foreign | None) -> TensorSpec | None:
    """A value's spec in ONNX's types."""
    if value is None or isinstance(value, Foreign):
        return None
    dtype = "bool" if value.boolean else value.operand.dtype
    return TensorSpec(dtype, tuple(value.operand.shape))


def only_host(model: OnnxModel, node: OnnxNode, opsets: Mapping[str, int]) -> HostEntry | None:
    """The host function of a node that nothing but the host can run, whatever its inputs are."""
    opset = opsets.get(node.domain, 0)
    entry = find_host(node, opset)
    key = (node.domain, node.op, node.overload)
    if entry is None or key in model.functions or find(node, opset) is not None:
        return None
    bodiless = has_body(schema(node, opset)) and not any(node.subgraphs())
    return None if bodiless else entry
