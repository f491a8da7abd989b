"""The IR: a graph of WebNN operators and named extension ops.

Values are named; a value is a graph input, a constant, or the result of exactly one node. Nodes
stand in topological order. The operator rules (shapes, types) live in the op table above this
layer; here are the structural ones: every value defined once and before use, outputs known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np

from crossdock.runtime.errors import FeedError, GraphError
from crossdock.runtime.tensor import Array, Dim, TensorSpec

Attrs = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: ``outputs = op(inputs, **attrs)``.

    ``inputs`` follow the op entry's operand order; an absent optional operand is None. ``name`` is
    unique in its graph and is what plans, receipts and ``explain`` call it. An attribute may hold a
    ``Graph`` (control flow); its free values are passed as operands.
    """

    name: str
    op: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attrs: Attrs = field(default_factory=dict)

    @property
    def operands(self) -> tuple[str, ...]:
        """The inputs that are there."""
        return tuple(i for i in self.inputs if i is not None)


Rebuild = Callable[[dict[str, TensorSpec]], "Graph"]


class StageRunner(Protocol):
    """Who runs the stages of a staged graph: a session, or the reference interpreter."""

    def run(self, key: bytes, graph: Graph, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run a static graph; equal keys come with equal graphs."""

    def may(self, name: str, op: str, why: str) -> None:
        """Called before the host runs an op, and why it is the host; raises where it may not."""

    def host(self, name: str, op: str, why: str, seconds: float) -> None:
        """Take note of an op that the host ran in the time given, and why it was the host."""

    def check(self) -> None:
        """Called between steps; raises to end the run."""


@dataclass(frozen=True)
class StageCall:
    """A stage that a run came to: its graph, if there is anything to compute, and its feeds' names.

    The run goes on to the next call where the values of ``demands`` are these.
    """

    key: bytes
    graph: Graph | None
    feeds: tuple[str, ...]
    demands: Mapping[str, Array]


class Stages(Protocol):
    """A staged graph opened for runs; keeps a bounded number of stages. Thread-safe."""

    def first(self) -> tuple[bytes, Graph] | None:
        """Key and graph of the first stage, where it does not hang on what is fed."""

    def run(self, feeds: Mapping[str, Any], runner: StageRunner) -> dict[str, Any]:
        """Run all stages on values that ``Staged.checked`` gave; the outputs by name, in order."""

    def trail(self) -> tuple[StageCall, ...]:
        """The stages of the last run, where it was they alone that made its outputs; else none."""


class Staged(Protocol):
    """A graph whose shapes hang on values: it is made stage by stage while it runs.

    ``inputs`` describes each input's type by name, in order.
    """

    inputs: Mapping[str, str]

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The feeds as the stages take them; raises FeedError naming the input."""

    def host_ops(self) -> Sequence[tuple[str, str, str]]:
        """Name, op and reason of the ops that the host runs whatever is fed; more may turn up."""

    def open(self) -> Stages:
        """Start with no stage but what is known already."""


@dataclass(frozen=True)
class Graph:
    """An immutable graph.

    ``inputs`` maps input names to specs, in order; ``outputs`` maps output names to values, in
    order; ``specs`` gives every value's spec; ``constants`` holds read-only arrays; ``passes``
    names the graph passes it has been through, in order. While
    ``symbols`` is not empty, ``nodes`` may be provisional: ``bind`` makes the graph anew for given
    sizes through ``rebuild``. A graph with ``staged`` has no nodes: which there are is known only
    once values are, and sessions and ``evaluate`` run it in stages. Its inputs that are no tensors
    of known rank are in ``staged.inputs`` alone.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, str]
    nodes: tuple[Node, ...]
    specs: Mapping[str, TensorSpec]
    constants: Mapping[str, Array] = field(default_factory=dict)
    name: str = "graph"
    passes: tuple[str, ...] = field(default=(), compare=False)
    rebuild: Rebuild | None = field(default=None, repr=False, compare=False)
    staged: Staged | None = field(default=None, repr=False, compare=False)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Unbound dimension names, in order of appearance in the inputs; none if staged."""
        if self.staged is not None:
            return ()
        seen: dict[str, None] = {}
        for spec in self.inputs.values():
            seen.update((d, None) for d in spec.shape if isinstance(d, str))
        return tuple(seen)

    @property
    def fed(self) -> Mapping[str, object]:
        """What it is fed, by name: specs, or what ``staged`` says of each input's type."""
        return self.inputs if self.staged is None else self.staged.inputs

    @property
    def output_specs(self) -> dict[str, TensorSpec]:
        """Spec of each output by output name."""
        return {name: self.specs[value] for name, value in self.outputs.items()}

    def bind(
        self,
        dims: Mapping[str, int] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> Graph:
        """Return the graph with every symbol replaced.

        Args:
            dims: sizes by symbol.
            shapes: whole shapes by input name.

        Raises:
            FeedError: a shape contradicts the graph's, or a symbol stays unbound.
        """
        _check_sizes(dims, shapes)
        if not self.symbols:
            _check_static(self, shapes or {})
            return self
        known = dict(dims or {})
        for name, shape in (shapes or {}).items():
            _match(self, name, shape, known)
        missing = [s for s in self.symbols if s not in known]
        if missing:
            raise FeedError(
                f"graph {self.name!r}: dimension {', '.join(repr(m) for m in missing)} has no "
                "size; give it with dims={...} or shapes={...}, or run with real inputs"
            )
        if self.rebuild is None:
            raise GraphError(f"graph {self.name!r} has symbols but no way to bind them")
        return self.rebuild({name: spec.bind(known) for name, spec in self.inputs.items()})

    def consumers(self) -> dict[str, list[Node]]:
        """Nodes that read each value (a node once, however often it reads it)."""
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.operands):
                table.setdefault(value, []).append(node)
        return table

    def producers(self) -> dict[str, Node]:
        """Node that makes each value."""
        return {value: node for node in self.nodes for value in node.outputs}

    def check(self) -> Graph:
        """Verify the structure and return self; raises GraphError naming the node and value."""
        if self.staged is not None:
            return self
        defined = set(self.inputs) | set(self.constants)
        names: set[str] = set()
        for node in self.nodes:
            if node.name in names:
                raise GraphError(f"graph {self.name!r}: two nodes are named {node.name!r}")
            names.add(node.name)
            for value in node.operands:
                if value not in defined:
                    raise GraphError(
                        f"node {node.name!r} ({node.op}) reads {value!r}, which nothing before it "
                        "makes (undefined value or cycle)"
                    )
            for value in node.outputs:
                if value in defined:
                    raise GraphError(f"node {node.name!r} ({node.op}) makes {value!r} again")
                defined.add(value)
        _check_ends(self, defined)
        return self

    @property
    def origin(self) -> str:
        """What stands for all that the graph was made from; empty where nothing does.

        A graph made of this one by changing it has none.
        """
        return str(self.__dict__.get("_origin", ""))

    def came_from(self, origin: str) -> Self:
        """Note the origin, and return self."""
        self.__dict__["_origin"] = origin
        return self

    def digest(self) -> str:
        """SHA-256 over structure, attributes, specs and constant bytes; names of nodes count."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        h = hashlib.sha256()
        for line in _describe(self):
            h.update(line.encode())
            h.update(b"\n")
        for name, array in self.constants.items():
            h.update(name.encode())
            h.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return h.hexdigest()

    def __str__(self) -> str:
        return "\n".join(_describe(self))


def _check_sizes(dims: object, shapes: object) -> None:
    """Raise FeedError where what should be sizes by name is none."""
    for what, given in (("dims", dims), ("shapes", shapes)):
        if given is not None and not isinstance(given, Mapping):
            raise FeedError(f"{what} maps names to sizes, it is {given!r:.80}")
        for name, value in (given or {}).items():
            if not _is_size(value) if what == "dims" else not _is_shape(value):
                raise FeedError(f"{what} gives {name!r:.80} {value!r:.80}; give whole numbers")


def _is_size(value: object) -> bool:
    return isinstance(value, int | np.integer) and value is not True and int(value) >= 0


def _is_shape(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_size, value))


def _check_static(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> None:
    for name, shape in shapes.items():
        _match(graph, name, shape, {})


def _match(graph: Graph, name: str, shape: Sequence[int], known: dict[str, int]) -> None:
    spec = graph.inputs.get(name)
    if spec is None:
        raise FeedError(
            f"graph {graph.name!r} has no input {name!r}; it has {', '.join(graph.inputs)}"
        )
    want: tuple[Dim, ...] = spec.shape
    fits = len(shape) == len(want)
    for have, dim in zip(shape, want, strict=False):
        fits = (
            fits and known.setdefault(dim, have) == have
            if isinstance(dim, str)
            else (fits and dim == have)
        )
    if not fits:
        raise FeedError(f"input {name!r} wants {spec}, got shape {list(shape)}")


def _check_ends(graph: Graph, defined: set[str]) -> None:
    for name, value in graph.outputs.items():
        if value not in defined:
            raise GraphError(f"output {name!r} is {value!r}, which nothing makes")
    for value in defined:
        if value not in graph.specs:
            raise GraphError(f"value {value!r} has no spec")


def _plain(value: Any) -> Any:
    if isinstance(value, Graph):
        return value.digest()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tolist()]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _describe(graph: Graph) -> Iterator[str]:
    for name, spec in graph.inputs.items():
        yield f"input {name}: {spec}"
    for name, array in graph.constants.items():
        yield f"constant {name}: {TensorSpec.of(array)}"
    for node in graph.nodes:
        attrs = json.dumps(dict(node.attrs), default=_plain, sort_keys=True)
        outs = ", ".join(f"{o}: {graph.specs[o]}" for o in node.outputs)
        yield f"{outs} = {node.op}({', '.join(str(i) for i in node.inputs)}) {attrs} # {node.name}"
    for name, value in graph.outputs.items():
        yield f"output {name} = {value}"
