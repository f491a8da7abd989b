"""Folding and mapping along one axis of an array seen as ``[outer, n, inner]``.

Where ``inner`` is 1 the axis is a row: lanes run along it, and a fold ends with a fold over the
lanes. Else lanes run along ``inner``, and every lane folds a column of its own. An axis kernel is
written once over ``Axis`` and serves both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_vector import LLVM_TYPES, Value, Vector, compute_kind

Element = Callable[[Vector, str], Value]
"""The value at an index of the axis, in as many lanes as the vector has."""

Combine = Callable[[Vector, Value, Value], Value]
CHAINS = 2  # independent partial folds along a row, to hide the latency of an addition


class Axis(ABC):
    """One run along the axis. Results of ``fold`` are used in other calls through ``spread``."""

    def __init__(self, code: Code, dtype: str, n: str) -> None:
        self.code = code
        self.dtype = dtype
        self.kind = compute_kind(dtype)
        self.n = n

    @property
    @abstractmethod
    def single(self) -> Vector:
        """The vector of a fold's result."""

    @abstractmethod
    def address(self, base: str, index: str, dtype: str | None = None) -> str:
        """Address of element ``index`` in memory that is laid out as the input."""

    @abstractmethod
    def fold(self, first: float, element: Element, combine: Combine) -> Value:
        """Combine all elements, beginning with ``first``."""

    @abstractmethod
    def each(self, body: Callable[[Vector, str], None]) -> None:
        """Do something at every index."""

    @abstractmethod
    def spread(self, vector: Vector, value: Value) -> Value:
        """A fold's result in the lanes of ``vector``."""

    def load(self, base: str) -> Element:
        """The elements of memory that is laid out as the input."""
        return lambda vector, index: vector.load(self.address(base, index), self.dtype)

    def count(self) -> Value:
        """The number of elements, as a fold's result."""
        number = self.code.let(f"sitofp i64 {self.n} to {LLVM_TYPES[self.kind]}")
        return self.single.splat(Value(number, self.kind))

    def store(self, value: Value, at: str) -> None:
        """Store a fold's result."""
        self.single.store(value, at, self.dtype)


class Row(Axis):
    """Contiguous elements, ``lanes`` at a time and the rest one by one."""

    def __init__(self, code: Code, dtype: str, n: str, lanes: int) -> None:
        super().__init__(code, dtype, n)
        self.wide = Vector(code, lanes)
        self.one = Vector(code, 1)
        self.whole = code.let(f"and i64 {n}, -{lanes}")
        self.whole_chains = code.let(f"and i64 {n}, -{CHAINS * lanes}")

    @property
    def single(self) -> Vector:
        """One lane."""
        return self.one

    def address(self, base: str, index: str, dtype: str | None = None) -> str:
        """Elements lie side by side."""
        return self.code.at(base, LLVM_TYPES[dtype or self.dtype], index)

    def fold(self, first: float, element: Element, combine: Combine) -> Value:
        """Fold the lanes apart, then with one another, then with the rest."""
        code, lanes, kind = self.code, self.wide.lanes, self.kind
        start = self.wide.const(kind, first).name
        chains = [(self.wide.t(kind), start)] * CHAINS
        with code.loop(0, self.whole_chains, CHAINS * lanes, chains) as main:
            main.next = [
                combine(
                    self.wide,
                    Value(main.values[i], kind),
                    element(self.wide, code.add(main.index, i * lanes)),
                ).name
                for i in range(CHAINS)
            ]
        total = Value(main.values[0], kind)
        for other in main.values[1:]:
            total = combine(self.wide, total, Value(other, kind))
        again = [(self.wide.t(kind), total.name)]
        with code.loop(self.whole_chains, self.whole, lanes, again) as loop:
            total = Value(loop.values[0], kind)
            loop.next = [combine(self.wide, total, element(self.wide, loop.index)).name]
        folded = self.wide.halved(Value(loop.values[0], kind), combine)
        with code.loop(self.whole, self.n, 1, [(self.one.t(kind), folded.name)]) as rest:
            total = Value(rest.values[0], kind)
            rest.next = [combine(self.one, total, element(self.one, rest.index)).name]
        return Value(rest.values[0], kind)

    def each(self, body: Callable[[Vector, str], None]) -> None:
        """Whole vectors, then the rest."""
        with self.code.loop(0, self.whole, self.wide.lanes) as loop:
            body(self.wide, loop.index)
        with self.code.loop(self.whole, self.n) as loop:
            body(self.one, loop.index)

    def spread(self, vector: Vector, value: Value) -> Value:
        """The same in every lane."""
        return vector.splat(value)


class Column(Axis):
    """Elements ``inner`` apart, in as many neighbouring columns as ``vector`` has lanes."""

    def __init__(self, code: Code, dtype: str, n: str, inner: str, vector: Vector) -> None:
        super().__init__(code, dtype, n)
        self.inner = inner
        self.vector = vector

    @property
    def single(self) -> Vector:
        """A lane a column."""
        return self.vector

    def address(self, base: str, index: str, dtype: str | None = None) -> str:
        """Elements lie ``inner`` apart."""
        return self.code.at(base, LLVM_TYPES[dtype or self.dtype], self.code.mul(index, self.inner))

    def fold(self, first: float, element: Element, combine: Combine) -> Value:
        """Fold every column in order."""
        start = self.vector.const(self.kind, first).name
        carried = [(self.vector.t(self.kind), start)]
        with self.code.loop(0, self.n, 1, carried) as loop:
            total = Value(loop.values[0], self.kind)
            loop.next = [combine(self.vector, total, element(self.vector, loop.index)).name]
        return Value(loop.values[0], self.kind)

    def each(self, body: Callable[[Vector, str], None]) -> None:
        """Down the columns."""
        with self.code.loop(0, self.n) as loop:
            body(self.vector, loop.index)

    def spread(self, vector: Vector, value: Value) -> Value:  # noqa: ARG002 - of Axis
        """Lanes are columns already."""
        return value


def lanes_of(dtype: str) -> int:
    """Lanes of a vector of 64 bytes of the compute type; few where the C library is called."""
    kind = compute_kind(dtype)
    return 8 if kind in ("float64", "int64", "uint64") else 16


def write_axes(
    code: Code,
    dtype: str,
    words: tuple[str, str],
    items: tuple[str, str],
    run: Callable[[Axis, str, str], None],
    *,
    rows: bool,
) -> None:
    """Loop over the items [begin, end) and write ``run(axis, outer, column)`` for each.

    ``words`` are n and inner. An item is a row, or ``lanes_of(dtype)`` neighbouring columns.
    """
    n, inner = words
    lanes = lanes_of(dtype)
    with code.loop(*items) as loop:
        if rows:
            run(Row(code, dtype, n, lanes), loop.index, "0")
            return
        blocks = code.div(code.add(inner, lanes - 1), lanes)
        outer = code.div(loop.index, blocks)
        column = code.mul(code.rem(loop.index, blocks), lanes)
        whole = code.let(f"icmp sle i64 {code.add(column, lanes)}, {inner}")
        with code.when(whole):
            run(Column(code, dtype, n, inner, Vector(code, lanes)), outer, column)
        with code.when(code.negate(whole)), code.loop(column, inner) as rest:
            run(Column(code, dtype, n, inner, Vector(code, 1)), outer, rest.index)
