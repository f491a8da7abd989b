"""What a case of the op table is: one op instance with its inputs, built, fed and judged.

The reference is the op's own array function in float64. The tolerance of a result comes from its
element type's spacing, the number of terms that are added up and the size of the largest one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from crossdock.kernels import table
from crossdock.kernels.ops_rules import MANY
from crossdock.kernels.precision import FORMATS
from crossdock.kernels.reference import evaluate
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.calls import op_call
from crossdock.runtime.emulation import decomposed
from crossdock.runtime.graph import Graph
from crossdock.runtime.settings import fast_error
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec, to_numpy

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Spacing of the numbers just above 1."""
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
"""The smallest numbers that are not denormal."""


@dataclass(frozen=True)
class Feed:
    """One operand: its spec and what it holds.

    ``values`` are repeated to fill the shape; without them ``kind`` draws: "uniform" between
    ``low`` and ``high``, "distinct" values (so that an arg_max has one answer), or "index" whole
    numbers in [low, high). ``among`` are laid into what is drawn, evenly spread.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = -2.0
    high: float = 2.0
    kind: str = "uniform"
    values: tuple[Any, ...] = ()
    among: tuple[Any, ...] = ()

    def draw(self, rng: np.random.Generator) -> Array:
        """The operand's array."""
        dtype = to_numpy(self.dtype)
        count = math.prod(self.shape)
        if self.values:
            flat = np.resize(np.array(self.values, dtype=dtype), count)
        elif self.kind == "distinct":
            flat = rng.permutation(count) * ((self.high - self.low) / max(count, 1)) + self.low
        elif self.dtype not in FLOATS:
            flat = rng.integers(int(self.low), int(self.high), count)
        else:
            flat = rng.uniform(self.low, self.high, count)
        drawn = np.asarray(flat).astype(dtype)
        if self.among and count:
            # From the middle of the first stride on, so that a single element is met too.
            places = (np.arange(len(self.among)) * count + count // 2) // len(self.among)
            drawn[places] = np.array(self.among, dtype=dtype)
        return drawn.reshape(self.shape)


Given = Feed | Sequence[Feed] | None


@dataclass(frozen=True)
class Case:
    """One op instance.

    Attributes:
        op: the operator.
        id: unique among the op's cases.
        feeds: operands by name, in the op's order; a list for a list operand.
        attrs: attributes, as the builder takes them.
        constants: names of operands that are constants of the graph rather than inputs.
        ulps: relative error allowed, in spacings of the result's type.
        terms: how many products or values a result adds up.
        magnitude: size of the largest term.
        steps: for integers, how far a result may be off (rounding of quantised values).
        special: the operands hold special values: no absolute error is allowed beyond the type's
            smallest numbers, and that of one term where several are added up.
        reason: why the tolerance is what it is, where it is not the default.
    """

    op: str
    id: str
    feeds: Mapping[str, Given]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()
    ulps: float = 4.0
    terms: int = 1
    magnitude: float = 1.0
    steps: int = 0
    reason: str = ""
    special: bool = False

    def __str__(self) -> str:
        return f"{self.op}-{self.id}"

    @property
    def dtypes(self) -> frozenset[str]:
        """Element types of the operands."""
        return frozenset(feed.dtype for _, feed in self._flat())

    def _flat(self) -> Iterator[tuple[str, Feed]]:
        for name, given in self.feeds.items():
            if isinstance(given, Feed):
                yield name, given
            elif given is not None:
                yield from ((f"{name}{i}", feed) for i, feed in enumerate(given))

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """Every operand's array, the same in every run."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        return {name: feed.draw(rng) for name, feed in self._flat()}

    def build(self) -> tuple[Graph, dict[str, Array]]:
        """The graph of this one op, with outputs y0, y1 ..., and its feeds."""
        b = GraphBuilder(str(self))
        made = self.call(b, self._operands(b))
        return b.build({f"y{i}": operand for i, operand in enumerate(made)}), self.inputs()

    def build_decomposed(self) -> tuple[Graph, dict[str, Array]] | None:
        """The same through the op's decomposition into others; None where it has none.

        Outputs are named result.0, result.1 ...
        """
        if table.op(self.op).decompose is None:
            return None
        node = self.node()
        graph, operands = decomposed(op_call(self.graph, node))
        fed = {i: v for i, v in enumerate(node.inputs) if v in self.graph.inputs}
        arrays = self.inputs()
        return graph, {name: arrays[fed[i]] for name, i in operands.items() if i in fed}

    def node(self) -> Any:
        """The op's node, with canonical attributes."""
        (node,) = self.graph.nodes
        return node

    def inputs(self) -> dict[str, Array]:
        """The feeds: every operand that is no constant."""
        fixed = {
            name
            for name, _ in self._flat()
            if name in self.constants or name.rstrip("0123456789") in self.constants
        }
        return {name: array for name, array in self.arrays.items() if name not in fixed}

    @cached_property
    def graph(self) -> Graph:
        """The graph of ``build``."""
        return self.build()[0]

    def _operands(self, b: GraphBuilder) -> dict[str, Any]:
        fed = self.inputs()

        def leaf(name: str) -> Operand:
            array = self.arrays[name]
            if name in fed:
                return b.input(name, array.shape, array.dtype.name)
            return b.constant(array)

        operands: dict[str, Any] = {}
        for name, given in self.feeds.items():
            if isinstance(given, Feed):
                operands[name] = leaf(name)
            elif given is not None:
                operands[name] = [leaf(f"{name}{i}") for i in range(len(given))]
        return operands

    def call(self, b: GraphBuilder, operands: Mapping[str, Any]) -> tuple[Operand, ...]:
        """Call the builder's method."""
        made = getattr(b, self.op)(**operands, **self.attrs)
        return made if self.op in MANY else (made,)

    def reference(self) -> dict[str, Array]:
        """The outputs, with floats computed in float64."""
        return evaluate(self.graph, self.inputs(), dtype="float64")

    def flushed_reference(self) -> dict[str, Array]:
        """The outputs where denormal operands count as zero."""
        fed = {name: flushed(array) for name, array in self.inputs().items()}
        return evaluate(self.graph, fed, dtype="float64")

    def tolerance(self, dtype: str, rounds: str = "") -> tuple[float, float]:
        """(rtol, atol) for a result of this element type.

        A sum of n terms of random sign and size up to m carries an error of about n m eps (the
        probabilistic bound of Higham & Mary, SIAM J. Sci. Comput. 41, 2019); half types are
        summed in float32, and rounded at the end, so that their error is relative but for a small
        part of the largest term, for what an op's steps round on the way. Integers are exact but
        for ``steps``.

        Where a kernel rounds both operands of its products to the format ``rounds``, each term is
        off by as much again as both roundings, and their signs may all agree.
        """
        if dtype not in EPS:
            return 0.0, float(self.steps)
        eps = EPS[dtype]
        if self.special and not self.magnitude:
            # Two of the smallest numbers: what rounding to a multiple of one costs.
            return self.ulps * eps, 2.0 * float(np.finfo(to_numpy(dtype)).smallest_subnormal)
        summed = min(eps, EPS["float32"]) * self.terms
        half = eps / 128 if dtype in ("float16", "bfloat16") else 0.0
        # What goes beyond the last rounding is rounded in float32.
        relative = min(self.ulps, 4.0) * eps + max(self.ulps - 4.0, 0.0) * min(eps, EPS["float32"])
        rounded = self.terms * FORMATS[rounds].error if rounds else 0.0
        return relative, 2.0 * self.magnitude * (summed + half + rounded)

    def check(self, outputs: Mapping[str, Array], *, exact: bool = True, rounds: str = "") -> None:
        """Raise AssertionError where outputs differ from the reference beyond the tolerance.

        A fast algorithm is not ``exact``; ``rounds`` is the format that a kernel rounds operands
        to.
        """
        for name, want in self.reference().items():
            got = np.asarray(outputs[name])
            spec = self.graph.output_specs[name]
            assert got.shape == spec.dims, f"{self} {name}: shape {got.shape}, want {spec}"
            assert got.dtype == to_numpy(spec.dtype), f"{self} {name}: {got.dtype}, want {spec}"
            rtol, atol = self.tolerance(spec.dtype, rounds)
            atol += 0.0 if exact else fast_part(spec.dtype) * largest(want)
            _compare(f"{self} {name}", got, want, rtol, atol)


def fast_part(dtype: str) -> float:
    """What a fast algorithm's results may be off, relative to the largest one.

    Among half types no less than a unit in its last place: they round what they compute with.
    """
    return max(fast_error(), EPS[dtype] if dtype in ("float16", "bfloat16") else 0.0)


def largest(array: Array) -> float:
    """The largest finite magnitude; 0 where there is none."""
    finite = np.abs(array[np.isfinite(array)]) if TensorSpec.of(array).dtype in FLOATS else array
    return float(finite.max(initial=0.0))


def flushed(array: Array) -> Array:
    """The array with zeros in place of its type's denormal numbers."""
    if TensorSpec.of(array).dtype not in FLOATS:
        return array
    tiny = smallest_normal(array.dtype)
    return np.where(np.abs(array) < tiny, np.zeros_like(array), array)


def smallest_normal(dtype: Any) -> float:
    """The smallest number of a floating type that is no denormal."""
    return TINY.get(str(dtype), 0.0)


def _compare(label: str, got: Array, want: Array, rtol: float, atol: float) -> None:
    if want.dtype.kind in "iub":
        off = np.abs(got.astype(object) - want.astype(object))
        worst = max(off.reshape(-1).tolist(), default=0)
        assert worst <= atol, f"{label}: off by {worst}"
        return
    with np.errstate(over="ignore"):
        # A result beyond the type's range is infinite in it.
        bounded = want.astype(got.dtype).astype(np.float64)
    want = np.where(np.isinf(bounded), bounded, want)
    np.testing.assert_allclose(
        got.astype(np.float64), want, rtol=rtol, atol=atol, equal_nan=True, err_msg=label
    )


def typed(case: Case, *dtypes: str) -> Iterator[Case]:
    """The case once for each element type, put on its floating-point operands."""
    for dtype in dtypes:
        feeds = {name: _retyped(given, dtype) for name, given in case.feeds.items()}
        yield replace(case, id=f"{case.id}-{dtype}", feeds=feeds)


def _retyped(given: Given, dtype: str) -> Given:
    if isinstance(given, Feed):
        return replace(given, dtype=dtype) if given.dtype in FLOATS else given
    return given if given is None else [replace(feed, dtype=dtype) for feed in given]


def unique(cases: Iterable[Case]) -> tuple[Case, ...]:
    """The cases, none named twice."""
    found = tuple(cases)
    names = [str(case) for case in found]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, twice
    return found
