"""GraphBuilder: the W3C WebNN operators in snake_case, with shapes inferred at every call.

Methods come from the op table: operands are positional in the table's order, then the operator's
positional arguments; options, optional operands among them, are keywords. A rule that is broken
raises at the call, naming op, operand and rule.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.kernels import table
from crossdock.kernels.reference import run_op
from crossdock.kernels.spec import REQUIRED, OpSpec
from crossdock.runtime.errors import GraphError, ShapeError, UnsupportedOp
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.tensor import Array, Dim, TensorSpec, to_numpy

TUPLES = frozenset({"split", "gru", "lstm", "lstm_cell", "if_"})
"""Operators that give a tuple however many results there are."""

FOLD_LIMIT = 256 << 20


@dataclass(frozen=True, eq=False)
class Operand:
    """A value of one builder: its spec, and the array where it is a constant."""

    builder: GraphBuilder
    name: str
    spec: TensorSpec

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.spec.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Shape; may hold symbols."""
        return self.spec.shape

    @property
    def value(self) -> Array | None:
        """The array where the operand is a constant, else None."""
        return self.builder.value(self)

    def __repr__(self) -> str:
        return f"Operand({self.name!r}, {self.spec})"


@dataclass(frozen=True)
class _Call:
    """An operator call as it was made, for replaying it with other shapes."""

    entry: OpSpec
    inputs: tuple[str | None, ...]
    attrs: Mapping[str, Any]
    label: str


class GraphBuilder:
    """Builds one graph.

    Args:
        name: the graph's name.
        fold: compute operators on constants at once, where the result has at most ``fold_limit``
            bytes; outputs may then be inputs or constants too (model loaders need both).

    Raises:
        ShapeError: a shape, rank or type rule is broken, at the call that breaks it.
        UnsupportedOp: no operator of that name.
    """

    def __init__(
        self, name: str = "graph", *, fold: bool = False, fold_limit: int = FOLD_LIMIT
    ) -> None:
        self.name = name
        self._fold = fold
        self._fold_limit = fold_limit
        self._inputs: dict[str, TensorSpec] = {}
        self._constants: dict[str, Array] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._nodes: list[Node] = []
        self._calls: dict[str, _Call] = {}  # by node name
        self._labels: set[str] = set()
        self._count = 0
        self._built = False

    def input(self, name: str, shape: Sequence[Dim], dtype: str = "float32") -> Operand:
        """Declare an input; a dimension may be a symbol, bound when the graph is compiled."""
        self._open()
        if not name or name in self._specs:
            raise GraphError(f"input {name!r}: the name is empty or taken; choose another")
        to_numpy(dtype)
        for dim in shape:
            if not isinstance(dim, str) and int(dim) <= 0:
                raise ShapeError(f"input {name!r}: dimension {dim!r} is no positive size or symbol")
        spec = TensorSpec(dtype, tuple(d if isinstance(d, str) else int(d) for d in shape))
        self._inputs[name] = self._specs[name] = spec
        return Operand(self, name, spec)

    def constant(self, value: Any, dtype: str | None = None) -> Operand:
        """A constant from an array, or from a number and an element type (a scalar)."""
        self._open()
        if dtype is None and not isinstance(value, np.ndarray | np.generic):
            raise GraphError(
                f"constant: {type(value).__name__} has no element type; give an array, or "
                "constant(value, dtype)"
            )
        array = np.asarray(value, None if dtype is None else to_numpy(dtype))
        if array.flags.writeable:
            array = array.copy()
            array.flags.writeable = False
        return self._constant(array)

    def value(self, operand: Operand) -> Array | None:
        """The array of a constant operand, else None."""
        return self._constants.get(operand.name)

    def __getattr__(self, op: str) -> Callable[..., Any]:
        """The method of an operator of the table."""
        if op.startswith("_"):
            raise AttributeError(op)
        known = table.ops()
        if op not in known:
            close = difflib.get_close_matches(op, known, 4)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise UnsupportedOp(f"no operator {op!r}{hint}")
        entry = known[op]

        def method(*args: Any, **options: Any) -> Any:
            return self._apply(entry, args, options)

        method.__name__ = op
        method.__doc__ = f"{op}({', '.join((*entry.operands, *entry.params))})"
        return method

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *table.ops()]

    def build(self, outputs: Mapping[str, Operand]) -> Graph:
        """Make the graph of the given outputs; a builder builds once.

        Raises:
            GraphError: no outputs, an output that is an input or constant, or a second build.
        """
        self._open()
        if not outputs:
            raise GraphError(f"graph {self.name!r}: no outputs given")
        ends: dict[str, str] = {}
        for name, operand in outputs.items():
            self._own("build", name, operand)
            made = operand
            if operand.name in self._inputs or operand.name in self._constants:
                if not self._fold:
                    kind = "input" if operand.name in self._inputs else "constant"
                    raise GraphError(
                        f"output {name!r} is the {kind} {operand.name!r}; use identity on it"
                    )
                made = self._node(table.op("identity"), (operand,), {}, f"{name}/identity")[0]
            ends[name] = made.name
        self._built = True
        nodes = self._live(set(ends.values()))
        used = {v for n in nodes for v in n.operands} | set(ends.values())
        constants = {n: a for n, a in self._constants.items() if n in used}
        keep = {*self._inputs, *constants, *(v for n in nodes for v in n.outputs)}
        return Graph(
            inputs=dict(self._inputs),
            outputs=ends,
            nodes=nodes,
            specs={n: s for n, s in self._specs.items() if n in keep},
            constants=constants,
            name=self.name,
            rebuild=self._rebuilder(nodes, constants, ends),
        ).check()

    def _live(self, wanted: set[str]) -> tuple[Node, ...]:
        kept = []
        for node in reversed(self._nodes):
            if wanted.intersection(node.outputs):
                kept.append(node)
                wanted.update(node.operands)
        return tuple(reversed(kept))

    def _rebuilder(
        self, nodes: Sequence[Node], constants: Mapping[str, Array], ends: Mapping[str, str]
    ) -> Callable[[dict[str, TensorSpec]], Graph] | None:
        if all(spec.is_static for spec in self._inputs.values()):
            return None
        calls = [(node, self._calls[node.name]) for node in nodes]
        declared = dict(self._inputs)

        def rebuild(specs: dict[str, TensorSpec]) -> Graph:
            bound: dict[str, int] = {}
            for name, spec in specs.items():
                pairs = zip(declared[name].shape, spec.dims, strict=True)
                bound.update((d, n) for d, n in pairs if isinstance(d, str))
            b = GraphBuilder(self.name, fold=self._fold, fold_limit=self._fold_limit)
            values = {n: b.input(n, s.shape, s.dtype) for n, s in specs.items()}
            values.update((n, b._constant(a, n)) for n, a in constants.items())
            for node, call in calls:
                operands = [None if i is None else values[i] for i in call.inputs]
                attrs = {k: _substituted(v, bound) for k, v in call.attrs.items()}
                made = b._node(call.entry, operands, attrs, call.label, node.outputs)
                values.update(zip(node.outputs, made, strict=True))
            return b.build({name: values[value] for name, value in ends.items()})

        return rebuild

    def _apply(self, entry: OpSpec, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self._open()
        label = str(options.pop("label", "") or "")
        args = self._named_operands(entry, args, options)
        operands, rest = self._operands(entry, list(args), options)
        attrs = _attributes(entry, rest, options)
        made = self._node(entry, operands, attrs, label)
        return tuple(made) if entry.name in TUPLES or len(made) > 1 else made[0]

    def _named_operands(
        self, entry: OpSpec, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Let required operands be given by name too."""
        needed = [o.rstrip("*") for o in entry.operands if not o.endswith("?")]
        missing = needed[len(args) :]
        return (*args, *(options.pop(name) for name in missing if name in options))

    def _operands(
        self, entry: OpSpec, args: list[Any], options: dict[str, Any]
    ) -> tuple[list[Operand | None], list[Any]]:
        """Split the arguments into operands (in table order) and positional attributes."""
        found: list[Operand | None] = []
        for name in entry.operands:
            bare = name.rstrip("?*")
            if name.endswith("?"):
                given = options.pop(bare, None)
                found.append(None if given is None else self._own(entry.name, bare, given))
                continue
            if not args:
                raise GraphError(f"{entry.name}: operand {bare!r} is missing")
            given = args.pop(0)
            if name.endswith("*"):
                if isinstance(given, Operand) or not isinstance(given, Sequence):
                    raise GraphError(f"{entry.name}: {bare!r} is a list of operands")
                found.extend(self._own(entry.name, f"{bare}[{i}]", x) for i, x in enumerate(given))
            else:
                found.append(self._own(entry.name, bare, given))
        return found, args

    def _own(self, op: str, name: str, given: Any) -> Operand:
        if not isinstance(given, Operand):
            raise GraphError(
                f"{op}: {name!r} must be an operand, not {type(given).__name__}; use constant()"
            )
        if given.builder is not self:
            raise GraphError(f"{op}: {name!r} is an operand of another builder")
        return given

    def _node(
        self,
        entry: OpSpec,
        operands: Sequence[Operand | None],
        attrs: dict[str, Any],
        label: str,
        names: Sequence[str] | None = None,
    ) -> list[Operand]:
        specs = [None if o is None else o.spec for o in operands]
        full: dict[str, Any] = {**entry.attrs, **attrs}
        if entry.canon is not None:
            full = entry.canon(specs, full)
        results = entry.infer(specs, full)
        folded = self._folded(entry, operands, full, results)
        if folded is not None:
            return folded
        node = Node(
            name=self._label(label or entry.name),
            op=entry.name,
            inputs=tuple(None if o is None else o.name for o in operands),
            outputs=tuple(names) if names else tuple(self._fresh() for _ in results),
            attrs=full,
        )
        self._nodes.append(node)
        self._calls[node.name] = _Call(entry, node.inputs, dict(attrs), label)
        self._specs.update(zip(node.outputs, results, strict=True))
        return [Operand(self, v, s) for v, s in zip(node.outputs, results, strict=True)]

    def _folded(
        self,
        entry: OpSpec,
        operands: Sequence[Operand | None],
        attrs: dict[str, Any],
        results: Sequence[TensorSpec],
    ) -> list[Operand] | None:
        if not self._fold or entry.host or not any(operands):
            return None
        arrays = [None if o is None else self._constants.get(o.name) for o in operands]
        known = all(o is None or a is not None for o, a in zip(operands, arrays, strict=True))
        if not known or sum(r.nbytes for r in results) > self._fold_limit:
            return None
        made = []
        for spec, array in zip(results, run_op(entry.name, attrs, arrays), strict=True):
            value = np.ascontiguousarray(array, to_numpy(spec.dtype)).reshape(spec.dims)
            if value.flags.writeable:
                value.flags.writeable = False
            made.append(self._constant(value))
        return made

    def _constant(self, array: Array, name: str | None = None) -> Operand:
        key = name or self._fresh("c")
        spec = TensorSpec.of(array)
        self._constants[key] = array
        self._specs[key] = spec
        return Operand(self, key, spec)

    def _fresh(self, prefix: str = "v") -> str:
        while True:
            self._count += 1
            name = f"{prefix}{self._count}"
            if name not in self._specs:
                return name

    def _label(self, wanted: str) -> str:
        name, n = wanted, 1
        while name in self._labels:
            n += 1
            name = f"{wanted}_{n}"
        self._labels.add(name)
        return name

    def _open(self) -> None:
        if self._built:
            raise GraphError(f"graph {self.name!r} is built already; use a new builder")


def _attributes(entry: OpSpec, rest: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Positional and keyword attributes by name; unknown and missing ones are named."""
    if len(rest) > len(entry.params):
        raise GraphError(
            f"{entry.name}: {len(rest) - len(entry.params)} argument(s) too many; options are "
            "keywords"
        )
    attrs = dict(zip(entry.params, rest, strict=False))
    for key, value in options.items():
        if key not in entry.attrs and key not in entry.params:
            known = sorted({*entry.attrs, *(o.rstrip("?*") for o in entry.operands), "label"})
            raise GraphError(f"{entry.name}: no option {key!r}; there are {', '.join(known)}")
        if key in attrs:
            raise GraphError(f"{entry.name}: {key!r} is given twice")
        attrs[key] = value
    for key in (*entry.params, *entry.attrs):
        if entry.attrs.get(key, REQUIRED) is REQUIRED and key not in attrs:
            raise GraphError(f"{entry.name}: {key!r} is missing")
    return attrs


def _substituted(value: Any, bound: Mapping[str, int]) -> Any:
    """Symbols in a list-valued attribute (a shape, sizes) replaced by their sizes."""
    if isinstance(value, list | tuple):
        return [bound.get(v, v) if isinstance(v, str) else v for v in value]
    return value
