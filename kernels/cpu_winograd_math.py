"""Minimal filtering F(m, r): its matrices, and the code of a product with one of them.

``y = A' [(G g) * (B' d)]`` gives ``m`` results of a filter ``g`` of ``r`` taps over the ``n = m + r
- 1`` pixels ``d`` with ``n`` multiplications; nested twice it does so for squares. The matrices are
those of Toom and Cook for the points 0, 1, -1, 2, -2 ... and infinity (S. Winograd, Arithmetic
Complexity of Computations, 1980; A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural
Networks, 2016).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.runtime.tensor import Array

POINTS = (0, 1, -1, 2, -2)
Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Filtering:
    """F(m, r) with its three matrices: A' is (m, n), G is (n, r), B' is (n, n)."""

    m: int
    r: int
    result: Matrix
    filter: Matrix
    image: Matrix

    @property
    def n(self) -> int:
        """Pixels of a tile along one axis."""
        return self.m + self.r - 1


@functools.cache
def filtering(m: int, r: int) -> Filtering:
    """The matrices for ``m`` results and ``r`` taps; ``m + r`` is at most 7."""
    n = m + r - 1
    points = [Fraction(p) for p in POINTS[: n - 1]]
    assert len(points) == n - 1, (m, r)
    zero, one = Fraction(0), Fraction(1)
    result = [[p**i for p in points] + [one if i == m - 1 else zero] for i in range(m)]
    filters, image = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = math.prod((p - q for q in others), start=one)
        filters.append([p**i / scale for i in range(r)])
        image.append([*_from_roots(others), zero])
    filters.append([zero] * (r - 1) + [one])
    image.append(_from_roots(points))
    return Filtering(m, r, _frozen(result), _frozen(filters), _frozen(image))


def _from_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest power first."""
    made = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *made]
        made = [s - root * m for s, m in zip(shifted, [*made, Fraction(0)], strict=True)]
    return made


def _frozen(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)


def as_array(matrix: Matrix) -> Array:
    """The matrix as float64."""
    return np.array([[float(x) for x in row] for row in matrix])


def emit_product(v: Vector, matrix: Matrix, values: Sequence[Value]) -> list[Value]:
    """Append ``matrix @ values`` for vectors of float32.

    Neighbouring rows that are a sum and a difference share their parts (B'), and so do neighbouring
    columns that differ in signs alone (A').
    """
    columns = _paired_columns(matrix)
    if columns:
        return _by_columns(v, matrix, values, columns)
    made: list[Value] = []
    while len(made) < len(matrix):
        row = matrix[len(made)]
        after = matrix[len(made) + 1] if len(made) + 1 < len(matrix) else None
        halves = None if after is None else _halves(row, after)
        if halves is None:
            made.append(_combined(v, row, values))
        else:
            made += _sum_and_difference(v, *halves, values)
    return made


def _halves(
    a: Sequence[Fraction], b: Sequence[Fraction]
) -> tuple[list[Fraction], list[Fraction]] | None:
    """Rows e and o with a = e + o, b = e - o that have no column in common, or None."""
    even = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    odd = [(x - y) / 2 for x, y in zip(a, b, strict=True)]
    apart = all(not (x and y) for x, y in zip(even, odd, strict=True))
    return (even, odd) if apart and any(even) and any(odd) else None


def _sum_and_difference(
    v: Vector, even: Sequence[Fraction], odd: Sequence[Fraction], values: Sequence[Value]
) -> list[Value]:
    e, scale = _combined(v, even, values), next(x for x in odd if x)
    o = _combined(v, [x / scale for x in odd], values)
    if abs(scale) == 1:
        pair = [v.arith("+", e, o), v.arith("-", e, o)]
        return pair if scale > 0 else pair[::-1]
    plus, minus = v.const("float32", float(scale)), v.const("float32", -float(scale))
    return [v.fma(o, plus, e), v.fma(o, minus, e)]


def _paired_columns(matrix: Matrix) -> list[int]:
    """Columns that differ from the next one in the signs of some rows alone."""
    found: list[int] = []
    for c in range(1, len(matrix[0]) - 2, 2):
        same = all(abs(row[c]) == abs(row[c + 1]) for row in matrix)
        if same and all(row[c] for row in matrix):
            found.append(c)
    return found


def _by_columns(
    v: Vector, matrix: Matrix, values: Sequence[Value], pairs: Sequence[int]
) -> list[Value]:
    sums = {c: v.arith("+", values[c], values[c + 1]) for c in pairs}
    gaps = {c: v.arith("-", values[c], values[c + 1]) for c in pairs}
    rest = [c for c in range(len(values)) if c not in pairs and c - 1 not in pairs]
    made = []
    for row in matrix:
        used = [values[c] for c in rest] + [
            (sums if row[c] == row[c + 1] else gaps)[c] for c in pairs
        ]
        made.append(_combined(v, [row[c] for c in (*rest, *pairs)], used))
    return made


def _combined(v: Vector, row: Sequence[Fraction], values: Sequence[Value]) -> Value:
    """The sum of values times the factors that are not 0."""
    terms = sorted(
        ((x, value) for x, value in zip(row, values, strict=True) if x),
        key=lambda term: term[0] != 1,
    )
    first, value = terms[0]
    total = value if first == 1 else v.arith("*", value, v.const("float32", float(first)))
    for factor, value in terms[1:]:
        if abs(factor) == 1:
            total = v.arith("+" if factor > 0 else "-", total, value)
        else:
            total = v.fma(value, v.const("float32", float(factor)), total)
    return total
