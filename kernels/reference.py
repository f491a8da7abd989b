"""The reference interpreter: evaluate a graph by the op entries' array functions, node by node.

With ``dtype="float64"`` every floating type is computed in float64 (integers keep their types and
wrap as they do): the meaning that all devices are tested against.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels import table
from crossdock.kernels.fused import FusedBody
from crossdock.runtime.errors import FeedError
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec, to_numpy


def evaluate(
    graph: Graph, feeds: Mapping[str, Any], xp: Any = np, dtype: str | None = None
) -> dict[str, Any]:
    """Evaluate a graph.

    Args:
        graph: a graph without symbols.
        feeds: an array for each input, of its shape and type.
        xp: array namespace to compute in (numpy, cupy).
        dtype: "float64" computes all floats in float64; None in the graph's own types.

    Returns:
        The outputs by name, in the graph's order. Those of a staged graph, and what passes between
        its stages, are numpy arrays (or lists, or None) of the model's own types.

    Raises:
        FeedError: an input is missing or has another shape.
    """
    if graph.staged is not None:
        return graph.staged.open().run(graph.staged.checked(feeds), _StageEvaluator(xp, dtype))
    if dtype is not None:
        graph = promoted(graph, dtype)
    values = {name: xp.asarray(array) for name, array in graph.constants.items()}
    values.update((name, _feed(graph, name, feeds, xp)) for name in graph.inputs)
    last = _last_use(graph)
    with np.errstate(all="ignore"):
        for index, node in enumerate(graph.nodes):
            results = run_node(node, [values[i] if i else None for i in node.inputs], xp)
            for name, result in zip(node.outputs, results, strict=True):
                want = graph.specs[name]
                assert result.dtype == to_numpy(want.dtype), (node.op, result.dtype, want)
                assert result.shape == want.dims, (node.op, result.shape, want)
                values[name] = result
            for name in last.get(index, ()):
                del values[name]
    return {name: values[value] for name, value in graph.outputs.items()}


@dataclasses.dataclass(frozen=True)
class _StageEvaluator:
    """Evaluates the stages of a staged graph."""

    xp: Any
    dtype: str | None

    def run(self, key: bytes, graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:  # noqa: ARG002
        specs = graph.output_specs
        outputs = evaluate(graph, feeds, self.xp, self.dtype)
        return {n: _at_home(v).astype(to_numpy(specs[n].dtype)) for n, v in outputs.items()}

    def may(self, name: str, op: str, why: str) -> None:
        """The host runs all."""

    def host(self, name: str, op: str, why: str, seconds: float) -> None:
        """The time of a host op is of no interest here."""

    def check(self) -> None:
        """An evaluation has no deadline."""


def _at_home(array: Any) -> Array:
    """An array of any namespace in host memory."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def run_node(node: Node, arrays: list[Any], xp: Any = np) -> tuple[Any, ...]:
    """Run one node by its entry's array function; always gives a tuple of arrays."""
    return run_op(node.op, node.attrs, arrays, xp)


def run_op(op: str, attrs: Mapping[str, Any], arrays: list[Any], xp: Any = np) -> tuple[Any, ...]:
    """Run one op on arrays with canonical attributes; floating-point warnings are off."""
    quiet = np.errstate(all="ignore") if xp is np else contextlib.nullcontext()
    with quiet:
        out = table.op(op).run(xp, *arrays, **attrs)
    return tuple(xp.asarray(o) for o in (out if isinstance(out, tuple) else (out,)))


def _feed(graph: Graph, name: str, feeds: Mapping[str, Any], xp: Any) -> Any:
    spec = graph.inputs[name]
    if name not in feeds:
        raise FeedError(f"input {name!r} ({spec}) has no value")
    array = xp.asarray(feeds[name])
    if tuple(array.shape) != spec.dims:
        raise FeedError(f"input {name!r} wants {spec}, got shape {list(array.shape)}")
    return array.astype(to_numpy(spec.dtype), copy=False)


def _last_use(graph: Graph) -> dict[int, list[str]]:
    """Values that may be dropped after each node."""
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        last.update((value, index) for value in (*node.operands, *node.outputs))
    kept = set(graph.outputs.values())
    drop: dict[int, list[str]] = {}
    for value, index in last.items():
        if value not in kept:
            drop.setdefault(index, []).append(value)
    return drop


# --- float64 --------------------------------------------------------------------------------------


def promoted(graph: Graph, dtype: str = "float64") -> Graph:
    """The same graph with every floating type replaced by ``dtype``."""

    def widen(spec: TensorSpec) -> TensorSpec:
        return spec.with_dtype(dtype) if spec.dtype in FLOATS else spec

    return dataclasses.replace(
        graph,
        inputs={name: widen(spec) for name, spec in graph.inputs.items()},
        constants={name: _widened(array, dtype) for name, array in graph.constants.items()},
        specs={name: widen(spec) for name, spec in graph.specs.items()},
        nodes=tuple(
            dataclasses.replace(
                node, attrs={key: _attribute(value, dtype) for key, value in node.attrs.items()}
            )
            for node in graph.nodes
        ),
        rebuild=None,
    )


def _widened(array: Array, dtype: str) -> Array:
    return array.astype(to_numpy(dtype)) if TensorSpec.of(array).dtype in FLOATS else array


def _attribute(value: Any, dtype: str) -> Any:
    if isinstance(value, str) and value in FLOATS:
        return dtype
    if isinstance(value, Graph):
        return promoted(value, dtype)
    if isinstance(value, FusedBody):
        return value.retyped(dict.fromkeys(FLOATS, dtype))
    return value


def graph_work(graph: Graph) -> Work:
    """Operations and bytes of all nodes of a graph."""
    total = Work()
    for node in graph.nodes:
        specs = [graph.specs[i] if i else None for i in node.inputs]
        outs = [graph.specs[o] for o in node.outputs]
        total = total + table.op(node.op).work(specs, outs, node.attrs)
    return total
