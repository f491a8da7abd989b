"""GraphBuilder: graphs from calls, checked and inferred at each call.

    b = GraphBuilder()
    x = b.input("x", (1, 3, 224, 224))
    y = b.relu(b.conv2d(x, b.constant(weights), padding=[1, 1, 1, 1]))
    graph = b.build({"y": y})

There is a method for every op of the table: operands first, in the table's order, then the
positional attributes; options are keywords. Dimensions may be symbols (strings), which go through
ops that need no arithmetic on them; the built graph is then bound by replaying the calls.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crossdock.kernels import reference, table
from crossdock.kernels.fused_conv import INTERNAL
from crossdock.kernels.ops_rules import MANY, bare
from crossdock.kernels.spec import REQUIRED, OpSpec
from crossdock.runtime.arguments import (
    constant_array,
    known_dtype,
    known_name,
    known_shape,
    named_arguments,
    short,
    usage,
)
from crossdock.runtime.errors import GraphError, ShapeError, UnsupportedOp
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.operand import Names, Operand
from crossdock.runtime.tensor import Array, Dim, TensorSpec, to_numpy

if TYPE_CHECKING:
    from crossdock.runtime.operators import Operators
else:
    Operators = object

__all__ = ["GraphBuilder", "Operand", "UnknownOperator"]

FOLD_LIMIT = 256 * 2**20
LARGEST = 2**63
"""Bytes that no tensor can have: offsets and sizes are signed 64-bit words."""


class UnknownOperator(UnsupportedOp, AttributeError):
    """No such operator; an AttributeError too, so that ``hasattr`` works on a builder."""


@dataclass
class _Call:
    """One op call: what was given (for replay), and what it became."""

    op: str
    name: str
    given: dict[str, Any]
    attrs: Mapping[str, Any]
    operands: tuple[Operand | None, ...]
    results: tuple[Operand, ...]


class GraphBuilder(Operators):
    """Builds one graph.

    Args:
        name: the graph's name.
        fold: compute ops whose operands are all constants at once, as model loaders want it.
        fold_limit: largest result, in bytes, that folding may make.
        strict: hold to WebNN where formats do not: no empty tensors, no output that is an input
            or a constant. Default: unless folding.

    Not thread-safe; an operand belongs to its builder.
    """

    def __init__(
        self,
        name: str = "graph",
        *,
        fold: bool = False,
        fold_limit: int = FOLD_LIMIT,
        strict: bool | None = None,
    ) -> None:
        self.name = name
        self._fold = fold
        self._fold_limit = fold_limit
        self._strict = not fold if strict is None else strict
        self._inputs: dict[str, Operand] = {}
        self._calls: list[_Call] = []
        self._values = Names()
        self._nodes = Names()
        self._built = False
        self._mark = object()  # of its operands: were it the builder, large constants would stay

    # --- leaves ---

    def input(self, name: str, shape: Sequence[Dim], dtype: str = "float32") -> Operand:
        """Declare an input.

        Args:
            name: unique among the inputs.
            shape: sizes, or symbols as strings.
            dtype: element type.
        """
        self._open()
        known_name("input", "the name", name)
        if name in self._inputs:
            raise GraphError(f"input: there already is an input {name!r}")
        spec = TensorSpec(known_dtype("input", dtype), known_shape("input", name, shape))
        self._check_size("input", spec)
        holder = self._values.used.get(name)
        if holder is not None:
            holder.name = self._values.fresh(name)
            self._values.used[holder.name] = holder
        return self._inputs.setdefault(name, self._operand(name, spec))

    def constant(self, value: Any, dtype: str | None = None) -> Operand:
        """Make a constant from an array, or from a number or nested lists with a ``dtype``.

        A writable array is copied; a read-only one is taken as it is.
        """
        self._open()
        array = constant_array(value, dtype)
        spec = TensorSpec.of(array)
        self._check_size("constant", spec)
        return self._operand(self._values.fresh("constant"), spec, array)

    def value(self, operand: Operand) -> Array | None:
        """The array of an operand that is a constant, else None."""
        return self._own("value", "operand", operand).value

    # --- ops ---

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__") or name not in table.ops():
            close = difflib.get_close_matches(name, table.ops(), n=3, cutoff=0.5)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise UnknownOperator(f"no operator {name!r}{hint}")
        spec = table.op(name)

        def method(*args: Any, **options: Any) -> Any:
            return self._apply(spec, args, options)

        method.__name__ = method.__qualname__ = name
        return method

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(n for n in table.ops() if n not in INTERNAL)})

    def _apply(self, spec: OpSpec, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self._open()
        label = options.pop("label", "")
        if not isinstance(label, str):
            raise GraphError(f"{spec.name}: label must be a string; it is {label!r}")
        try:
            operands, given = self._arguments(spec, args, options)
            specs = [None if o is None else o.spec for o in operands]
            attrs = dict(given)
            if spec.canon is not None:
                attrs = spec.canon(specs, attrs)
            outs = spec.infer(specs, attrs)
            for out in outs:
                self._check_size(spec.name, out)
        except ShapeError as error:
            if not label:
                raise
            raise ShapeError(f"{error} (at {label!r})") from None
        results = self._folded(spec, operands, attrs, outs, label)
        if results is None:
            results = self._record(spec, label, given, attrs, operands, outs)
        return results if spec.name in MANY else results[0]

    def _record(
        self,
        spec: OpSpec,
        label: str,
        given: dict[str, Any],
        attrs: Mapping[str, Any],
        operands: tuple[Operand | None, ...],
        outs: tuple[TensorSpec, ...],
    ) -> tuple[Operand, ...]:
        name = self._nodes.fresh(label or spec.name, plain=bool(label))
        self._nodes.used[name] = None
        many = len(outs) > 1
        results = tuple(
            self._operand(self._values.fresh(f"{name}.{i}" if many else name, plain=True), out)
            for i, out in enumerate(outs)
        )
        self._calls.append(_Call(spec.name, name, given, attrs, operands, results))
        return results

    def _folded(
        self,
        spec: OpSpec,
        operands: tuple[Operand | None, ...],
        attrs: Mapping[str, Any],
        outs: tuple[TensorSpec, ...],
        label: str,
    ) -> tuple[Operand, ...] | None:
        """The results as constants, where folding is on and every operand is one."""
        present = [o for o in operands if o is not None]
        if not self._fold or spec.host or not present or any(o.value is None for o in present):
            return None
        if not all(out.is_static for out in outs):
            return None
        if not self._may_fold(spec, operands, attrs, outs):
            return None
        arrays = [None if o is None else o.value for o in operands]
        results = []
        for array, out in zip(reference.run_op(spec.name, attrs, arrays), outs, strict=True):
            folded = np.asarray(array, dtype=to_numpy(out.dtype), order="C")
            folded.flags.writeable = False
            stem = self._values.fresh(label or "constant", plain=bool(label))
            results.append(self._operand(stem, out, folded))
        return tuple(results)

    def _may_fold(
        self,
        spec: OpSpec,
        operands: tuple[Operand | None, ...],
        attrs: Mapping[str, Any],
        outs: tuple[TensorSpec, ...],
    ) -> bool:
        """Whether constants may be made of constants here, rather than when the graph runs."""
        del spec, operands, attrs
        return sum(out.nbytes for out in outs) <= self._fold_limit

    def _arguments(
        self, spec: OpSpec, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Operand | None, ...], dict[str, Any]]:
        """Sort what was given into operands (flat, in table order) and attributes."""
        given = named_arguments(spec, args, options)
        operands: list[Operand | None] = []
        for mark in spec.operands:
            name = bare(mark)
            value = given.pop(name, None)
            if mark.endswith("*"):
                operands.extend(self._list(spec.name, name, value))
            elif value is None:
                operands.append(None)
            else:
                operands.append(self._own(spec.name, name, value))
        attrs = {**spec.attrs, **given}
        for name, value in attrs.items():
            if value is REQUIRED:
                raise GraphError(f"{spec.name}: {name} is missing; {usage(spec)}")
        return tuple(operands), attrs

    def _list(self, op: str, name: str, value: Any) -> list[Operand | None]:
        if not isinstance(value, list | tuple):
            raise GraphError(f"{op}: {name} must be a list of operands; it is {short(value)}")
        return [self._own(op, f"{name}[{i}]", v) for i, v in enumerate(value)]

    def _own(self, op: str, name: str, value: Any) -> Operand:
        if not isinstance(value, Operand):
            raise GraphError(
                f"{op}: {name} must be an operand; it is {short(value)} "
                "(make it one with b.constant(value, dtype))"
            )
        if value.owner is not self._mark:
            raise GraphError(f"{op}: {name} {value} belongs to another builder")
        return value

    # --- build ---

    def build(self, outputs: Mapping[str, Operand]) -> Graph:
        """Make the graph of everything the outputs need; a builder builds once.

        Raises:
            GraphError: no outputs, an operand of another builder, a second build, or (strict) an
                output that is an input or a constant.
        """
        self._open()
        if not outputs:
            raise GraphError("build: outputs must map at least one name to an operand")
        ends = {}
        for name, operand in outputs.items():
            known_name("build", "an output's name", name)
            ends[name] = self._end(name, self._own("build", f"output {name!r}", operand))
        self._built = True
        calls = self._live(ends.values())
        return self._graph(ends, calls)

    def _end(self, name: str, operand: Operand) -> Operand:
        """The operand an output names; without a node of its own it gets an identity."""
        leaf = operand.value is not None or operand is self._inputs.get(operand.name)
        if not leaf:
            return operand
        if self._strict:
            what = "a constant" if operand.value is not None else f"input {operand.name!r}"
            raise GraphError(f"build: output {name!r} is {what}; an output must be an op's result")
        entry = table.op("identity")
        return self._record(entry, "", {}, {}, (operand,), (operand.spec,))[0]

    def _live(self, ends: Iterable[Operand]) -> list[_Call]:
        """The calls whose results are needed, in order."""
        needed = {id(o) for o in ends}
        live: list[_Call] = []
        for call in reversed(self._calls):
            if any(id(r) in needed for r in call.results):
                live.append(call)
                needed.update(id(o) for o in call.operands if o is not None)
        return live[::-1]

    def _graph(self, ends: Mapping[str, Operand], calls: list[_Call]) -> Graph:
        used = [*self._inputs.values()]
        for call in calls:
            used += [o for o in call.operands if o is not None]
            used += call.results
        specs = {o.name: o.spec for o in used}
        self._check_symbols(used)
        graph = Graph(
            inputs={name: o.spec for name, o in self._inputs.items()},
            outputs={name: o.name for name, o in ends.items()},
            nodes=tuple(_node(call) for call in calls),
            specs=specs,
            constants={o.name: o.value for o in used if o.value is not None},
            name=self.name,
            rebuild=self._rebuilder(ends, calls),
        )
        return graph.check()

    def _check_symbols(self, used: Iterable[Operand]) -> None:
        known = {symbol for o in self._inputs.values() for symbol in o.spec.symbols}
        for operand in used:
            if loose := operand.spec.symbols - known:
                raise GraphError(
                    f"build: {operand.name} {operand.spec} has the dimension "
                    f"{', '.join(sorted(loose))}, which no input has"
                )

    def _rebuilder(
        self, ends: Mapping[str, Operand], calls: list[_Call]
    ) -> Callable[[dict[str, TensorSpec]], Graph] | None:
        inputs = dict(self._inputs)
        if not any(o.spec.symbols for o in inputs.values()):
            return None

        def rebuild(bound: dict[str, TensorSpec]) -> Graph:
            """Replay the calls with the inputs' bound specs."""
            b = GraphBuilder(
                self.name, fold=self._fold, fold_limit=self._fold_limit, strict=self._strict
            )
            sizes: dict[str, Dim] = {}
            known: dict[int, Operand] = {}
            for name, operand in inputs.items():
                spec = bound[name]
                pairs = zip(operand.spec.shape, spec.shape, strict=True)
                sizes.update((old, new) for old, new in pairs if isinstance(old, str))
                known[id(operand)] = b.input(name, spec.shape, spec.dtype)
            for call in calls:
                _replay(b, call, known, sizes)
            return b.build({name: known[id(o)] for name, o in ends.items()})

        return rebuild

    # --- helpers ---

    def _open(self) -> None:
        if self._built:
            raise GraphError("this builder has built its graph; make a new GraphBuilder")

    def _operand(self, name: str, spec: TensorSpec, value: Array | None = None) -> Operand:
        operand = Operand(self._mark, name, spec, value)
        self._values.used[name] = operand
        return operand

    def _check_size(self, op: str, spec: TensorSpec) -> None:
        if self._strict and 0 in spec.shape:
            raise ShapeError(f"{op}: no dimension may be 0; the shape is {spec}")
        if not spec.is_static:
            return
        # Of an empty tensor, too: array libraries refuse what would be too large but for a 0.
        spanned = math.prod(max(1, d) for d in spec.dims) * to_numpy(spec.dtype).itemsize
        if spanned >= LARGEST:
            raise ShapeError(f"{op}: {spec} spans {spanned:,} bytes, beyond 2^63 - 1")


def _node(call: _Call) -> Node:
    return Node(
        call.name,
        call.op,
        tuple(None if o is None else o.name for o in call.operands),
        tuple(r.name for r in call.results),
        dict(call.attrs),
    )


def _replay(
    b: GraphBuilder, call: _Call, known: dict[int, Operand], sizes: Mapping[str, Dim]
) -> None:
    """Make a recorded call again with another builder."""
    arguments: list[Operand | None] = []
    for operand in call.operands:
        if operand is not None and operand.value is not None and id(operand) not in known:
            known[id(operand)] = b.constant(operand.value)
        arguments.append(None if operand is None else known[id(operand)])
    names = [bare(mark) for mark in table.op(call.op).operands]
    options: dict[str, Any] = {k: _sized(v, sizes) for k, v in call.given.items()}
    if table.op(call.op).operands[-1].endswith("*"):
        fixed = len(names) - 1
        options[names[-1]] = arguments[fixed:]
        arguments = arguments[:fixed]
    options |= dict(zip(names, arguments, strict=False))
    made = getattr(b, call.op)(**options, label=call.name)
    results = made if isinstance(made, tuple) else (made,)
    known.update((id(old), new) for old, new in zip(call.results, results, strict=True))


def _sized(value: Any, sizes: Mapping[str, Dim]) -> Any:
    """An attribute with its symbols replaced by sizes; graphs are bound."""
    if isinstance(value, Graph):
        return value.bind({k: v for k, v in sizes.items() if isinstance(v, int)})
    if isinstance(value, list | tuple):
        return tuple(sizes.get(v, v) if isinstance(v, str) else v for v in value)
    return value
