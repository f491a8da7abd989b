"""Stages of an ONNX graph: what one conversion of it settles, and what it leaves for later.

A graph some of whose shapes hang on values is converted piece by piece. A stage is the IR graph of
all that can be written with what is known, the host ops that are ready behind it, and the names
whose values the next conversion needs as constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders.onnx_host import EMPTY, HostEntry, HostValue
from crossdock.runtime.loaders.onnx_model import OnnxFunction, OnnxGraph, OnnxNode, Opaque
from crossdock.runtime.tensor import DTYPES, Array, TensorSpec

Constant = HostValue | Opaque | None
"""A value known while converting; None stands for an optional input that was left out."""

Kind = TensorSpec | str
"""What is known of a value that is not: its spec, or what it is where the IR lacks its type."""


@dataclass(frozen=True)
class Scope:
    """A graph, subgraph or function body to be converted, or what is left of one."""

    name: str
    nodes: tuple[OnnxNode, ...]
    outputs: tuple[str, ...]
    opsets: Mapping[str, int]
    prefix: str = ""

    @classmethod
    def of(cls, graph: OnnxGraph, opsets: Mapping[str, int], prefix: str = "") -> Scope:
        """All of a graph."""
        outputs = tuple(v.name for v in graph.outputs)
        return cls(graph.name, graph.nodes, outputs, opsets, prefix)

    @classmethod
    def call(cls, function: OnnxFunction, nodes: tuple[OnnxNode, ...], prefix: str) -> Scope:
        """The body of a function, its nodes bound to the caller's attributes."""
        return cls(function.name, nodes, function.outputs, function.opsets, prefix)


@dataclass(frozen=True)
class Inner:
    """A function's body, or a branch (``graph``), that is run as a graph of its own."""

    scope: Scope
    inputs: tuple[str, ...]
    graph: OnnxGraph | None = None


@dataclass(frozen=True)
class HostStep:
    """A node that the host runs: by its entry, or as an inner graph in stages of its own."""

    node: OnnxNode
    opsets: Mapping[str, int]
    why: str
    entry: HostEntry | None = None
    inner: Inner | None = None

    @property
    def opset(self) -> int:
        """The opset of the node's domain."""
        return self.opsets.get(self.node.domain, 0)


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage.

    ``graph`` computes its outputs, called as in ONNX (None: nothing to compute); then ``hosts``
    run in order. ``kinds`` are the values there are before the hosts and needed afterwards,
    ``constants`` those that are the same in every run that comes this way. The next stage is made
    of the nodes in ``rest`` with the values of ``demands`` as constants.
    """

    graph: Graph | None
    hosts: tuple[HostStep, ...]
    demands: tuple[str, ...]
    rest: tuple[OnnxNode, ...]
    kinds: Mapping[str, Kind]
    constants: Mapping[str, Constant]

    @property
    def feeds(self) -> tuple[str, ...]:
        """Inputs of the graph."""
        return () if self.graph is None else tuple(self.graph.inputs)


def in_ir(value: object) -> bool:
    """True for an array of a type that the IR has."""
    return isinstance(value, np.ndarray) and value.dtype.name in DTYPES


def kind_of(value: HostValue) -> Kind:
    """A value's spec, or what it is where the IR lacks its type."""
    if isinstance(value, np.ndarray):
        return TensorSpec.of(value) if in_ir(value) else f"tensor({array_type(value)})"
    return "an empty optional" if value is EMPTY else "a sequence"


def array_type(array: Array) -> str:
    """ONNX's word for an array's element type, near enough for messages."""
    return "string" if array.dtype == object else array.dtype.name
