"""Recipes: small graphs as data, which can be built, fed, cut, shrunk and kept in a file.

A recipe lists its leaves (inputs and constants, with their values) and its ops in order. Values
are named: a leaf's own name, or ``op name.index`` for a result.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from crossdock.kernels.ops_rules import MANY
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.errors import FeedError
from crossdock.runtime.graph import Graph
from crossdock.runtime.operand import Operand
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

SCHEMA = "crossdock-differential/1"

Given = str | list[str]
"""An operand: a value's name, or the names of a list operand."""


@dataclass(frozen=True)
class Leaf:
    """An input or a constant of a recipe; ``array`` is what it holds."""

    name: str
    array: Array
    constant: bool = False


@dataclass(frozen=True)
class Op:
    """One op: operands by name, attributes as the builder takes them.

    ``ulps``, ``terms`` and ``magnitude`` are what a case of the op allows (``cases.Case``).
    """

    name: str
    op: str
    operands: Mapping[str, Given]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    results: int = 1
    ulps: float = 4.0
    terms: float = 1.0
    magnitude: float = 1.0
    steps: int = 0

    def reads(self) -> Iterator[str]:
        """The values that it reads."""
        for given in self.operands.values():
            yield from [given] if isinstance(given, str) else given

    def makes(self) -> list[str]:
        """The values that it makes."""
        return [f"{self.name}.{i}" for i in range(self.results)]


@dataclass(frozen=True)
class Recipe:
    """A graph as data; ``outputs`` are values that ops make."""

    leaves: tuple[Leaf, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    name: str = "recipe"

    def build(self) -> tuple[Graph, dict[str, str]]:
        """The graph, with outputs y0, y1 ..., and the graph's name for each of the values.

        Raises:
            GraphError: an op's rule is broken.
        """
        b = GraphBuilder(self.name, strict=False)
        values: dict[str, Operand] = {}
        for leaf in self.leaves:
            spec = TensorSpec.of(leaf.array)
            values[leaf.name] = (
                b.constant(leaf.array)
                if leaf.constant
                else b.input(leaf.name, spec.dims, spec.dtype)
            )
        for op in self.ops:
            values.update(zip(op.makes(), call(b, op, values), strict=True))
        graph = b.build({f"y{i}": values[name] for i, name in enumerate(self.outputs)})
        return graph, {name: operand.name for name, operand in values.items()}

    def feeds(self) -> dict[str, Array]:
        """The inputs' arrays."""
        return {leaf.name: leaf.array for leaf in self.leaves if not leaf.constant}

    def pruned(self) -> Recipe:
        """Without the ops and leaves that no output needs."""
        needed = set(self.outputs)
        kept: list[Op] = []
        for op in reversed(self.ops):
            if needed & set(op.makes()):
                kept.append(op)
                needed.update(op.reads())
        leaves = tuple(leaf for leaf in self.leaves if leaf.name in needed)
        return replace(self, leaves=leaves, ops=tuple(reversed(kept)))

    def save(self, path: Path, **said: Any) -> None:
        """Write it as JSON, with what is said about it."""
        data = {
            "schema": SCHEMA,
            **said,
            "name": self.name,
            "leaves": [_leaf_data(leaf) for leaf in self.leaves],
            "ops": [_op_data(op) for op in self.ops],
            "outputs": list(self.outputs),
        }
        path.write_text(json.dumps(data, indent=1, default=_plain) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote; raises FeedError where the file is none."""
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise FeedError(f"{path} is no recipe of {SCHEMA}; write one with `verify --graphs`")
        return cls(
            tuple(_leaf(found) for found in data["leaves"]),
            tuple(Op(**found) for found in data["ops"]),
            tuple(data["outputs"]),
            data["name"],
        )


def call(b: GraphBuilder, op: Op, values: Mapping[str, Operand]) -> tuple[Operand, ...]:
    """Add an op to a builder."""
    operands = {
        name: values[given] if isinstance(given, str) else [values[v] for v in given]
        for name, given in op.operands.items()
    }
    made = getattr(b, op.op)(**operands, **op.attrs)
    return tuple(made) if op.op in MANY else (made,)


def _leaf_data(leaf: Leaf) -> dict[str, Any]:
    spec = TensorSpec.of(leaf.array)
    raw = base64.b64encode(np.ascontiguousarray(leaf.array).tobytes()).decode()
    shape = list(leaf.array.shape)
    return {
        "name": leaf.name, "dtype": spec.dtype, "shape": shape, "constant": leaf.constant,
        "data": raw,
    }  # fmt: skip


def _leaf(data: Mapping[str, Any]) -> Leaf:
    flat = np.frombuffer(base64.b64decode(data["data"]), to_numpy(data["dtype"]))
    return Leaf(data["name"], flat.reshape(data["shape"]), data["constant"])


def _op_data(op: Op) -> dict[str, Any]:
    return {k: v for k, v in op.__dict__.items() if v != Op.__dataclass_fields__[k].default}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else list(value)
