"""Random valid graphs over every op of the table, from a seed.

Ops come from the cases that ``verify`` has, with sizes and types drawn anew as far as the op's
rules allow, and from ``shapes``. Their operands are values that the graph has already, brought to
the shape, type and range that the case wants by further ops, or new inputs and constants; so
values are shared, graphs branch, and what is computed stays where each op is well conditioned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crossdock.kernels import table
from crossdock.kernels.fused_conv import INTERNAL
from crossdock.kernels.reference import run_op
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.cases.kit import Case, Feed, Given
from crossdock.runtime.cases.table import CASES
from crossdock.runtime.cases.types import type_cases
from crossdock.runtime.differential import to_onnx
from crossdock.runtime.differential.recipe import Leaf, Op, Recipe, call
from crossdock.runtime.differential.shapes import FREE, MOST, SIZES, pick
from crossdock.runtime.errors import Error
from crossdock.runtime.operand import Operand
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec

LARGEST = 8 * MOST
"""Elements of a value that later ops may read."""
TRIES = 4
SIZED = frozenset({"new_shape", "sizes", "output_sizes", "splits", "steps", "hidden_size"})
"""Attributes that hold sizes of dimensions."""
INDEXED = frozenset({"indices"})
SPECIAL_SHARE = 0.05
FREE_SHARE = 0.5
PORTABLE = 0.5
"""Share of the graphs that are of ops and types that ONNX has as well."""
COMMON = {
    "int8": "int32",
    "int16": "int32",
    "uint16": "int32",
    "uint32": "int64",
    "uint64": "int64",
}
REUSED = 0.65
"""How often an operand is a value that there is, rather than a new one."""


def draw(seed: int, most: int = 10) -> Recipe:
    """The random graph of a seed, of up to ``most`` ops and what they need to fit each other."""
    rng = np.random.default_rng(seed)
    made = _Drawing(rng)
    portable = rng.random() < PORTABLE
    for _ in range(rng.integers(1, most + 1)):
        made.add(_portable(rng) if portable else _case(rng))
    return made.recipe(f"graph-{seed}")


def _portable(rng: np.random.Generator) -> Case:
    """A case of an op and types that other runtimes have as well."""
    while True:
        case = _case(rng)
        if case.op not in to_onnx.OPS:
            continue
        feeds: dict[str, Given] = {}
        for name, given in case.feeds.items():
            fresh = [replace(feed, dtype=_common(feed.dtype)) for feed in _listed(given)]
            feeds[name] = fresh[0] if isinstance(given, Feed) else (fresh or None)
        attrs = {k: _common(v) if k == "data_type" else v for k, v in case.attrs.items()}
        case = replace(case, feeds=feeds, attrs=attrs)
        if fits(case):
            return case


def _common(dtype: str) -> str:
    """The nearest of the types that other runtimes compute in."""
    return "float32" if dtype in FLOATS else COMMON.get(dtype, dtype)


_POOL: dict[str, list[Case]] = {}


def _pool() -> dict[str, list[Case]]:
    """The cases by op, without those whose values lie where an op is not defined."""
    if not _POOL:
        for case in (*CASES, *type_cases()):
            _POOL.setdefault(case.op, []).append(case)
    return _POOL


def _case(rng: np.random.Generator) -> Case:
    for _ in range(TRIES if rng.random() < FREE_SHARE else 0):
        made: Case = pick(rng, FREE)(rng)
        if fits(made):
            return made
    pool = _pool()
    case: Case = pick(rng, pool[pick(rng, pool)])
    for _ in range(TRIES):
        resized = _resized(rng, case)
        if resized is not None and fits(resized):
            return resized
    return case


def fits(case: Case) -> bool:
    """Whether the op's rules allow it."""
    b = GraphBuilder(strict=False)
    try:
        operands = {
            name: b.input(name, given.shape, given.dtype)
            if isinstance(given, Feed)
            else [b.input(f"{name}{i}", f.shape, f.dtype) for i, f in enumerate(given)]
            for name, given in case.feeds.items()
            if given is not None
        }
        made = case.call(b, operands)
    except Error:
        return False
    return all(operand.spec.size <= LARGEST for operand in made)


def _resized(rng: np.random.Generator, case: Case) -> Case | None:
    """The case with every size replaced by another, the same wherever it stands."""
    feeds = [f for given in case.feeds.values() for f in _listed(given)]
    if any(feed.values and feed.dtype not in FLOATS for feed in feeds):
        return None  # indices and the like, written for their sizes
    sizes = {1: 1}
    for feed in feeds:
        for dim in feed.shape:
            sizes.setdefault(dim, dim if rng.random() < 0.3 else int(rng.choice(SIZES)))
    grown = 1.0
    resized: dict[str, Given] = {}
    for name, given in case.feeds.items():
        fresh = [_resize(feed, sizes, indexed=name in INDEXED) for feed in _listed(given)]
        for old, new in zip(_listed(given), fresh, strict=True):
            if math.prod(new.shape) > MOST:
                return None
            grown = max(grown, math.prod(new.shape) / max(1, math.prod(old.shape)))
        resized[name] = fresh[0] if isinstance(given, Feed) else (fresh or None)
    attrs = {k: renamed(v, sizes) if k in SIZED else v for k, v in case.attrs.items()}
    terms = max(1, round(case.terms * grown))
    ulps = case.ulps * grown if case.op in ("reduce_product", "cumulative_product") else case.ulps
    return replace(case, feeds=resized, attrs=attrs, terms=terms, ulps=ulps)


def _listed(given: Given) -> Sequence[Feed]:
    return [given] if isinstance(given, Feed) else (given or ())


def _resize(feed: Feed, sizes: Mapping[int, int], *, indexed: bool) -> Feed:
    shape = tuple(sizes[d] for d in feed.shape)
    if indexed and int(feed.high) in sizes:
        high = sizes[int(feed.high)]
        return replace(feed, shape=shape, high=high, low=-high if feed.low < 0 else 0)
    return replace(feed, shape=shape)


def renamed(value: Any, sizes: Mapping[int, int]) -> Any:
    """An attribute with the sizes that it holds replaced."""
    if isinstance(value, list | tuple):
        return [renamed(v, sizes) for v in value]
    return sizes.get(value, value) if isinstance(value, int) else value


@dataclass
class _Drawing:
    """A graph that grows; every value is known, so that an op gets what it is defined for."""

    rng: np.random.Generator
    b: GraphBuilder = field(default_factory=lambda: GraphBuilder(strict=False))
    leaves: list[Leaf] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    operands: dict[str, Operand] = field(default_factory=dict)

    def recipe(self, name: str) -> Recipe:
        """Ends, and now and then a value in between, are the outputs."""
        read = {value for op in self.ops for value in op.reads()}
        values = [value for op in self.ops for value in op.makes()]
        ends = [v for v in values if v not in read or self.rng.random() < 0.08]
        return Recipe(tuple(self.leaves), tuple(self.ops), tuple(ends), name).pruned()

    def add(self, case: Case) -> None:
        """Add a case's op, on operands that there are."""
        if case.op == "bit_cast" or case.special:
            reuse = 0.0
        else:
            reuse = REUSED
        operands: dict[str, str | list[str]] = {}
        for name, given in case.feeds.items():
            fixed = name in case.constants
            if isinstance(given, Feed):
                operands[name] = self._operand(given, reuse, fixed=fixed)
            elif given is not None:
                operands[name] = [self._operand(feed, reuse, fixed=fixed) for feed in given]
        self._op(case.op, operands, case.attrs, case)

    def _op(
        self,
        name: str,
        operands: Mapping[str, str | list[str]],
        attrs: Mapping[str, Any],
        case: Case | None = None,
    ) -> list[str]:
        case = case or Case(name, "fitting", {})
        op = Op(
            f"n{len(self.ops)}", name, dict(operands), dict(attrs), 1,
            case.ulps, case.terms, case.magnitude, case.steps,
        )  # fmt: skip
        made = call(self.b, op, self.operands)
        op = replace(op, results=len(made))
        graph_call = self.b._calls[-1]  # noqa: SLF001
        arrays = [None if o is None else self._array(o) for o in graph_call.operands]
        results = run_op(name, graph_call.attrs, arrays)
        self.ops.append(op)
        for value, operand, array in zip(op.makes(), made, results, strict=True):
            self.operands[value], self.arrays[value] = operand, np.asarray(array)
        return op.makes()

    def _array(self, operand: Operand) -> Array:
        return next(self.arrays[v] for v, o in self.operands.items() if o is operand)

    def _operand(self, feed: Feed, reuse: float, *, fixed: bool) -> str:
        if fixed or feed.values or feed.dtype == "bool" or self.rng.random() >= reuse:
            return self._leaf(feed, fixed=fixed or self.rng.random() < 0.25)
        usable = [v for v, array in self.arrays.items() if _usable(array)]
        if not usable:
            return self._leaf(feed)
        same = [v for v in usable if self.arrays[v].shape == feed.shape]
        value = pick(self.rng, same if same and self.rng.random() < 0.5 else usable[-12:])
        return self._fitted(value, feed)

    def _leaf(self, feed: Feed, *, fixed: bool = False) -> str:
        name = f"x{len(self.leaves)}"
        if len(feed.shape) and not math.prod(feed.shape):
            fixed = False
        array = feed.draw(self.rng)
        self.leaves.append(Leaf(name, array, fixed))
        spec = TensorSpec.of(array)
        self.operands[name] = (
            self.b.constant(array) if fixed else self.b.input(name, spec.dims, spec.dtype)
        )
        self.arrays[name] = array
        return name

    def _fitted(self, value: str, feed: Feed) -> str:
        """A value brought to an operand's shape, type and range."""
        value = self._shaped(value, feed.shape)
        low, high = feed.low, feed.high
        if feed.dtype not in FLOATS:
            low, high = math.ceil(low), max(math.ceil(low), math.ceil(high) - 1)
        if TensorSpec.of(self.arrays[value]).dtype in FLOATS:
            value = self._ranged(value, low, high)
        if TensorSpec.of(self.arrays[value]).dtype != feed.dtype:
            (value,) = self._op("cast", {"input": value}, {"data_type": feed.dtype})
        return self._ranged(value, low, high)

    def _ranged(self, value: str, low: float, high: float) -> str:
        array = self.arrays[value]
        if not array.size:
            return value
        least, most = array.min(), array.max()
        # Near a limit a value may pass it by what it is rounded.
        room = 0.01 * (high - low) if array.dtype.kind == "f" else 0.0
        if least >= low + room and most <= high - room:
            return value
        attrs = {"min_value": low, "max_value": high}
        return self._op("clamp", {"input": value}, attrs)[0]

    def _shaped(self, value: str, shape: tuple[int, ...]) -> str:
        array = self.arrays[value]
        if array.shape == shape:
            return value
        count, have = math.prod(shape), array.size
        if count != have:
            if have < count and array.ndim and self.rng.random() < 0.5 and _stretches(array, shape):
                return self._op("expand", {"input": value}, {"new_shape": list(shape)})[0]
            (value,) = self._op("reshape", {"input": value}, {"new_shape": [have]})
            if have < count:
                times = -(-count // have)
                (value,) = self._op("tile", {"input": value}, {"repetitions": [times]})
            if self.arrays[value].size != count:
                attrs = {"starts": [0], "sizes": [count]}
                (value,) = self._op("slice", {"input": value}, attrs)
        if self.arrays[value].shape != shape:
            (value,) = self._op("reshape", {"input": value}, {"new_shape": list(shape)})
        return value


def _usable(array: Array) -> bool:
    """Whether another op may read a value: none computes with what is not finite."""
    if not array.size or array.size > LARGEST or array.dtype.kind == "b":
        return False
    return bool(np.isfinite(array.astype(np.float64)).all())


def _stretches(array: Array, shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        return False


OPS_DRAWN = frozenset(table.ops()) - (INTERNAL - {"scalar"}) - {"if_"}
"""Every op but those that hold graphs or only passes make."""
