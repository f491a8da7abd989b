"""Which Gaussian error linear unit a body of fused steps computes, if it computes one.

There are two (Hendrycks & Gimpel, 2016): x Phi(x), which is the op ``gelu``, and its approximation
x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which comes as a chain of steps in an order of
each exporter's own. So the steps are not matched but multiplied out: sums and products of x,
numbers and one tanh are a polynomial in x and that tanh, and the chain is the approximation if its
polynomial is. The two are no further apart than 1.8e-4 |x|, and than 4.8e-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from crossdock.kernels.fused import FusedBody, FusedStep

EXACT, BY_TANH = "exact", "tanh"
CLOSE = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 4e-3}
"""Relative error of a chain's constants, which are in its type."""
LARGEST = 4
"""Degree that a polynomial may have; the cube of x is the highest power in a GELU."""

Polynomial = Mapping[tuple[int, int], float]
"""Factors of the powers of x and of the tanh, by these two powers."""
X: Polynomial = {(1, 0): 1.0}
TANH: Polynomial = {(0, 1): 1.0}
WANTED: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
WITHIN: Polynomial = {(1, 0): math.sqrt(2 / math.pi), (3, 0): 0.044715 * math.sqrt(2 / math.pi)}


class _Unlike(Exception):
    """The steps compute something else."""


def gelu_of(body: FusedBody, beside: bool) -> str | None:
    """``EXACT`` or ``BY_TANH`` where a body is a GELU of operand 0, or None.

    With ``beside``, it is one of the sum of the operands 0 and 1.
    """
    try:
        return _Chain(body, beside).found()
    except _Unlike:
        return None


class _Chain:
    def __init__(self, body: FusedBody, beside: bool) -> None:
        self.body, self.beside = body, beside
        self.within: Polynomial | None = None  # what the tanh is of
        self.values: list[Polynomial | None] = []  # None: the result of an op ``gelu``
        self.added = False

    def found(self) -> str | None:
        for step in self.body.steps:
            self.values.append(self.value(step))
        close = CLOSE.get(self.body.dtype)
        last = self.values[-1] if self.values else {}
        if last is None:
            return EXACT
        alike = close is not None and self.within is not None and _alike(last, WANTED, close)
        return BY_TANH if alike and _alike(self.within or {}, WITHIN, close or 0.0) else None

    def value(self, step: FusedStep) -> Polynomial | None:
        if step.op == "scalar":
            return {(0, 0): float(step.attrs["value"])}
        if self.beside and step.op == "add" and sorted(step.args) == [0, 1]:
            self.added = True
            return X
        args = [self.operand(at) for at in step.args]
        if step.op == "gelu":
            return None if args == [X] and step is self.body.steps[-1] else _fail()
        made = OPS.get(step.op, _fail)
        return self.tanh(*args) if step.op == "tanh" else made(step, *args)

    def operand(self, at: int) -> Polynomial:
        if at >= 0:
            return X if at == 0 and not self.beside else _fail()
        found = self.values[-1 - at]
        return _fail() if found is None else found

    def tanh(self, x: Polynomial) -> Polynomial:
        if self.within not in (None, x) or any(t for _, t in x):
            _fail()
        self.within = x
        return TANH


def _fail(*_: object) -> Polynomial:
    raise _Unlike


def _alike(a: Polynomial, b: Polynomial, close: float) -> bool:
    found = {k: v for k, v in a.items() if v}
    return found.keys() == b.keys() and all(math.isclose(found[k], b[k], rel_tol=close) for k in b)


def _add(_: FusedStep, a: Polynomial, b: Polynomial) -> Polynomial:
    return {k: a.get(k, 0.0) + b.get(k, 0.0) for k in a.keys() | b.keys()}


def _times(_: FusedStep, a: Polynomial, b: Polynomial) -> Polynomial:
    made: dict[tuple[int, int], float] = {}
    for (i, j), u in a.items():
        for (k, n), v in b.items():
            made[i + k, j + n] = made.get((i + k, j + n), 0.0) + u * v
    return made if max(map(sum, made), default=0) <= LARGEST else _fail()


def _number(x: Polynomial) -> float:
    if x.keys() != {(0, 0)}:
        _fail()
    return x[0, 0]


def _over(step: FusedStep, a: Polynomial, b: Polynomial) -> Polynomial:
    by = _number(b)
    return _times(step, a, {(0, 0): 1 / by}) if by else _fail()


def _power(step: FusedStep, a: Polynomial, b: Polynomial) -> Polynomial:
    count = _number(b)
    if count not in (1.0, 2.0, 3.0):
        _fail()
    made = a
    for _ in range(int(count) - 1):
        made = _times(step, made, a)
    return made


def _linear(step: FusedStep, a: Polynomial) -> Polynomial:
    scaled = _times(step, a, {(0, 0): float(step.attrs["alpha"])})
    return _add(step, scaled, {(0, 0): float(step.attrs["beta"])})


OPS: Mapping[str, Callable[..., Polynomial]] = {
    "add": _add,
    "sub": lambda step, a, b: _add(step, a, _times(step, b, {(0, 0): -1.0})),
    "mul": _times,
    "div": _over,
    "pow": _power,
    "linear": _linear,
    "identity": lambda _step, a: a,
}
