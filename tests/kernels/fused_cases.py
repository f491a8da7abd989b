"""Ops that graph passes make and no builder offers, as cases: chains, and what follows products.

The graph of a case is what the passes make of the whole; its reference is that of the whole before
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from crossdock.kernels.reference import evaluate
from crossdock.runtime import passes
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.cases.kit import EPS
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import Array
from tests.cases import Case, Feed

Whole = Callable[..., Operand]
"""Of a builder and the operands by name."""


@dataclass(frozen=True)
class Fused(Case):
    """``whole`` in one op; ``between`` are values that are rounded to the type on the way."""

    whole: Whole = lambda b, x: b.identity(x)
    between: float = 0.0

    @cached_property
    def plain(self) -> Graph:
        """The graph before the passes."""
        b = GraphBuilder(str(self))
        return b.build({"y0": self.whole(b, **self._operands(b))})

    def build(self) -> tuple[Graph, dict[str, Array]]:
        """What the passes make of it, which has to be one op of this kind."""
        made = passes.run(self.plain)
        assert [node.op for node in made.nodes] == [self.op], (str(self), made.nodes)
        return made, self.inputs()

    def reference(self) -> dict[str, Array]:
        """The outputs of the whole, with floats computed in float64."""
        return evaluate(self.plain, self.inputs(), dtype="float64")

    def tolerance(self, dtype: str, rounds: str = "") -> tuple[float, float]:
        """Half a spacing at the largest value between more than a plain op's."""
        relative, absolute = super().tolerance(dtype, rounds)
        return relative, absolute + self.between * EPS.get(dtype, 0.0) / 2


def _gelu(b: GraphBuilder, x: Operand, y: Operand) -> Operand:
    return b.gelu(b.add(x, y))


def _swish(b: GraphBuilder, x: Operand, y: Operand) -> Operand:
    return b.add(b.mul(x, b.sigmoid(x)), b.tanh(y))


def _turned(b: GraphBuilder, x: Operand, y: Operand, z: Operand) -> Operand:
    """Operands that are broadcast along other axes each."""
    return b.max(b.sub(x, y), b.mul(b.exp(x), z))


def _integers(b: GraphBuilder, x: Operand, y: Operand) -> Operand:
    return b.where(b.greater(x, y), b.sub(x, y), b.mul(x, y))


def _clamped(b: GraphBuilder, x: Operand, w: Operand, bias: Operand) -> Operand:
    made = b.conv2d(x, w, bias=bias, padding=[1, 1, 1, 1])
    return b.clamp(made, min_value=0.0, max_value=1.0)


def _beside(b: GraphBuilder, x: Operand, w: Operand, bias: Operand, r: Operand) -> Operand:
    return b.relu(b.add(b.conv2d(x, w, bias=bias, padding=[1, 1, 1, 1]), r))


def _dense(b: GraphBuilder, x: Operand, w: Operand, bias: Operand) -> Operand:
    return b.gelu(b.add(b.matmul(x, w), bias))


def _residual(b: GraphBuilder, x: Operand, w: Operand, bias: Operand, r: Operand) -> Operand:
    return b.add(b.add(b.matmul(x, w), bias), r)


FLOATING = ("float32", "float16", "bfloat16")
WEIGHTS = frozenset({"w", "bias"})


def _cases(dtype: str) -> Iterator[Fused]:
    def feeds(**shapes: tuple[int, ...]) -> Mapping[str, Any]:
        return {name: Feed(shape, dtype, -1.0, 1.0) for name, shape in shapes.items()}

    image = feeds(x=(2, 3, 9, 7), w=(8, 3, 3, 3), bias=(8,))
    turned = feeds(x=(4, 3, 5), y=(4, 1, 1), z=(1, 3, 1))
    rows = feeds(x=(5, 24), w=(24, 40), bias=(40,))
    chain: dict[str, Any] = {"between": 4.0}
    summed: dict[str, Any] = {"between": 8.0, "constants": WEIGHTS}
    yield Fused("fused", f"gelu-{dtype}", feeds(x=(5, 33), y=(33,)), whole=_gelu, **chain)
    yield Fused("fused", f"swish-{dtype}", feeds(x=(64,), y=(64,)), whole=_swish, **chain)
    yield Fused("fused", f"turned-{dtype}", turned, whole=_turned, **chain)
    yield Fused("fused_conv2d", f"clamp-{dtype}", image, whole=_clamped, terms=28, **summed)
    beside = {**image, **feeds(r=(2, 8, 9, 7))}
    yield Fused("fused_conv2d", f"residual-{dtype}", beside, whole=_beside, terms=29, **summed)
    yield Fused("fused_matmul", f"gelu-{dtype}", rows, whole=_dense, terms=25, **summed)
    more = {**rows, **feeds(r=(5, 40))}
    yield Fused("fused_matmul", f"residual-{dtype}", more, whole=_residual, terms=26, **summed)


WHOLE = {name: Feed((6, 5), "int32", -9, 9) for name in "xy"}

FUSED: tuple[Fused, ...] = (
    *(case for dtype in FLOATING for case in _cases(dtype)),
    Fused("fused", "where-int32", WHOLE, whole=_integers),
)
