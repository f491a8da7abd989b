"""What a graph's results may be off by: Monte Carlo arithmetic on the float64 reference.

Every op is computed several times in float64, each time on operands that carry the errors of the
ops before it, and each of its results is then moved by as much as the op's own tolerance allows,
up or down at random (Parker, "Monte Carlo Arithmetic", UCLA CSD-970002, 1997). How far the
samples of an output spread says how its ops amplify what they round; a step of an op that has
steps (a comparison, a rounding, an arg_max) is met where a sample crosses it. Samples lie where
the element type has numbers, one of them nearest to the reference: values are as equal there as
they are to a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from crossdock.kernels.reference import promoted, run_node
from crossdock.runtime.cases.kit import Case
from crossdock.runtime.differential.recipe import Op, Recipe
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec, to_numpy

SAMPLES = 5
SAFETY = 2.0
"""Spreads of the samples that an error may be: few samples rarely meet the worst signs."""
MOVES_ONLY = frozenset({
    "identity", "reshape", "transpose", "reverse", "slice", "split", "concat", "expand", "tile",
    "pad", "gather", "gather_elements", "gather_nd", "where", "max", "min", "relu", "abs", "neg",
    "clamp", "top_k", "triangular", "max_pool2d", "reduce_max", "reduce_min", "sign", "ceil",
    "floor", "round_even",
})  # fmt: skip
"""Ops whose results are exact, given their operands."""


@dataclass(frozen=True)
class Bounded:
    """A value's float64 reference, and how far from it each element may be."""

    want: Array
    allowed: Array
    dtype: str


def bounded(recipe: Recipe, samples: int = SAMPLES, seed: int = 0) -> dict[str, Bounded]:
    """Reference and allowance of the recipe's outputs, by value."""
    graph, names = recipe.build()
    ops = {names[op.makes()[0]]: op for op in recipe.ops}
    exact = _evaluate(graph, ops, recipe.feeds(), None)
    rng = np.random.default_rng(seed)
    spread: dict[str, Array] = {}
    signs: list[Callable[[tuple[int, ...]], Array]] = [
        np.ones, lambda shape: -np.ones(shape), np.zeros
    ]  # fmt: skip
    for turn in range(samples):
        draw = signs[turn] if turn < len(signs) else lambda s: rng.choice((-1.0, 1.0), size=s)
        moved = _evaluate(graph, ops, recipe.feeds(), draw)
        for value in graph.outputs.values():
            off = _distance(moved[value], exact[value])
            spread[value] = np.maximum(spread.get(value, 0.0), off)
    makers = {name: op for op in recipe.ops for name in op.makes()}
    found = {}
    for name in recipe.outputs:
        value, want = names[name], exact[names[name]]
        slack = _slack(makers[name], graph, value, want)
        found[name] = Bounded(want, SAFETY * spread[value] + slack, graph.specs[value].dtype)
    return found


def _evaluate(
    graph: Graph,
    ops: Mapping[str, Op],
    feeds: Mapping[str, Array],
    draw: Callable[[tuple[int, ...]], Array] | None,
) -> dict[str, Array]:
    """All values in float64; results moved by their tolerance where ``draw`` gives signs."""
    wide = promoted(graph, "float64")
    values: dict[str, Array] = dict(wide.constants)
    for name, spec in wide.inputs.items():
        values[name] = np.asarray(feeds[name]).astype(to_numpy(spec.dtype))
    with np.errstate(all="ignore"):
        for node in wide.nodes:
            made = run_node(node, [None if i is None else values[i] for i in node.inputs])
            for name, result in zip(node.outputs, made, strict=True):
                value = _fitted(np.asarray(result), graph.specs[name])
                if draw is not None and value.dtype.kind == "f":
                    op = ops[node.outputs[0]]
                    slack = _slack(op, graph, name, value)
                    value = _rounded(value + slack * draw(value.shape), graph.specs[name])
                values[name] = value
    return values


def _rounded(value: Array, spec: TensorSpec) -> Array:
    """The numbers of the type in the graph that are nearest."""
    return value.astype(to_numpy(spec.dtype)).astype(np.float64)


def _fitted(value: Array, spec: TensorSpec) -> Array:
    """Infinite where a value lies beyond the range of its type in the graph."""
    if spec.dtype not in FLOATS or spec.dtype == "float64":
        return value
    narrow = value.astype(to_numpy(spec.dtype)).astype(np.float64)
    return np.where(np.isinf(narrow), narrow, value)


def _slack(op: Op, graph: Graph, value: str, want: Array) -> Array:
    """What an op may be off by on the operands it gets, by its case's tolerance."""
    if op.op in MOVES_ONLY or (op.op == "cast" and graph.specs[value].dtype not in FLOATS):
        return np.zeros(want.shape)
    case = Case(
        op.op, "drawn", {}, ulps=op.ulps, terms=max(1, round(op.terms)), magnitude=op.magnitude,
        steps=op.steps,
    )  # fmt: skip
    rtol, atol = case.tolerance(graph.specs[value].dtype)
    with np.errstate(all="ignore"):
        slack = np.broadcast_to(np.asarray(atol + rtol * np.abs(want), np.float64), want.shape)
    return np.where(np.isfinite(slack), slack, 0.0)


def _distance(value: Array, want: Array) -> Array:
    """How far apart two results are: infinite where just one of them is finite."""
    if want.dtype.kind != "f":
        if np.array_equal(value, want):
            return np.zeros(want.shape)
        # Differences of 64-bit integers do not fit their own type.
        wide = object if want.dtype.itemsize == 8 else np.int64
        return np.asarray(np.abs(value.astype(wide) - want.astype(wide)), np.float64)
    with np.errstate(all="ignore"):
        off = np.abs(value - want)
    same = (value == want) | (np.isnan(value) & np.isnan(want))
    return np.where(same, 0.0, np.where(np.isnan(off), np.inf, off))


def excess(got: Array, value: Bounded) -> Array:
    """Each element's error over what is allowed (1: at the limit)."""
    want = value.want
    if want.dtype.kind == "f":
        narrow = want.astype(got.dtype).astype(np.float64)
        want = np.where(np.isinf(narrow), narrow, want)
        off = _distance(got.astype(np.float64), want)
    else:
        off = _distance(got, want)
    with np.errstate(all="ignore"):
        over = np.where(off == 0, 0.0, off / value.allowed)
    # An allowance without limit takes anything.
    return np.where(np.isinf(value.allowed), 0.0, np.where(np.isnan(over), np.inf, over))
