"""Elementwise expressions and fused bodies as vector code for the host.

Literals have no type of their own: they take the type of what they meet. An operation on an
integer and a float is done in the float's type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from crossdock.kernels import cpu_math
from crossdock.kernels.cpu_vector import MASK, Value, Vector, bits, is_float, is_signed
from crossdock.kernels.expression import BITWISE, Binary, Call, Expr, Num, Ref, Select, Unary
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.refusal import Cause, Refusal

Operand = Value | float | int
"""A value, or a literal that has no type yet."""

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


def walk(tree: Expr) -> Iterator[Expr]:
    """Every node of a tree."""
    yield tree
    match tree:
        case Call(_, args):
            parts: tuple[Expr, ...] = args
        case Unary(_, x):
            parts = (x,)
        case Binary(_, a, b):
            parts = (a, b)
        case Select(cond, a, b):
            parts = (cond, a, b)
        case _:
            parts = ()
    for part in parts:
        yield from walk(part)


def obstacle(step: FusedStep) -> str | None:
    """Why a step has no native code, or None."""
    floats = any(d in ("float16", "bfloat16", "float32", "float64") for d in step.inputs)
    calls = {node.fn for node in walk(step.expr()) if isinstance(node, Call)}
    if "pow" in calls and not floats:
        return Refusal(f"{step.op}: no native power of integers", Cause.DTYPE)
    return None


def calls_library(step: FusedStep) -> bool:
    """Whether a step calls the C library, one lane at a time."""
    slow = cpu_math.LIBM64 if "float64" in (*step.inputs, step.dtype) else cpu_math.LIBM
    return any(isinstance(n, Call) and n.fn in slow for n in walk(step.expr()))


def emit_body(vector: Vector, body: FusedBody, operands: Sequence[Value]) -> Value:
    """Append a fused body and return its last value, in the compute type of the result."""
    made: list[Value] = []
    for step in body.steps:
        args = [operands[a] if a >= 0 else made[-1 - a] for a in step.args]
        emitter = _Emitter(vector, args)
        kind = "float32" if step.dtype in ("float16", "bfloat16") else step.dtype
        made.append(vector.convert(emitter.value(step.expr(), kind), kind))
    return made[-1]


class _Emitter:
    """Emits one expression over ``args``."""

    def __init__(self, vector: Vector, args: Sequence[Value]) -> None:
        self.v = vector
        self.args = args
        self.known: dict[Expr, Operand] = {}

    def value(self, tree: Expr, kind: str) -> Value:
        """The tree's value; a bare literal becomes ``kind``."""
        got = self.emit(tree)
        return got if isinstance(got, Value) else self.v.const(kind, got)

    def emit(self, tree: Expr) -> Operand:
        if tree not in self.known:
            self.known[tree] = self._emit(tree)
        return self.known[tree]

    def _emit(self, tree: Expr) -> Operand:
        match tree:
            case Num(number):
                return number
            case Ref(index):
                return self.args[index]
            case Unary(op, x):
                return self.unary(op, self.emit(x))
            case Binary(op, a, b):
                return self.binary(op, a, b)
            case Select(cond, a, b):
                mask = self.mask(cond)
                yes, no = self.unify(self.emit(a), self.emit(b))
                return self.v.select(mask, yes, no)
            case Call(fn, args):
                return self.call(fn, [self.emit(a) for a in args])

    def mask(self, tree: Expr) -> Value:
        return self.v.convert(self.value(tree, "int32"), MASK)

    def unary(self, op: str, x: Operand) -> Operand:
        if op == "!":
            zero = self.v.convert(self.typed(x), MASK)
            return self.v.logic("xor", zero, self.v.const(MASK, 1))
        if not isinstance(x, Value):
            return -x
        return self.v.neg(self.number(x))

    def binary(self, op: str, left: Expr, right: Expr) -> Operand:
        if op in ("&&", "||"):
            name = "and" if op == "&&" else "or"
            return self.v.logic(name, self.mask(left), self.mask(right))
        a, b = self.unify(self.emit(left), self.emit(right))
        if op in COMPARISONS:
            return self.v.compare(op, a, b)
        return self.v.arith(op, a, b)

    def call(self, fn: str, args: list[Operand]) -> Operand:
        if fn in ("min", "max"):
            return self.v.extreme(fn, *self.unify(*args))
        if fn == "pow":
            return self.power(args[0], args[1])
        if fn == "bit_not":
            x = self.number(self.typed(args[0]))
            return self.v.on_bits("bit_xor", x, self.v.const(x.kind, -1))
        if fn in BITWISE:
            return self.v.on_bits(fn, *self.unify(*args))
        if fn == "mod":
            return self.v.mod(*self.unify(*args))
        if fn == "fma":
            a, b = self.unify(args[0], args[1])
            a, c = self.unify(a, args[2])
            b, c = self.unify(b, c)
            return self.v.fma(a, b, c)
        return self.function(fn, self.number(self.typed(args[0])))

    def function(self, fn: str, x: Value) -> Value:
        """A function of one argument."""
        v = self.v
        if fn in ("isnan", "isinf") and not is_float(x.kind):
            return v.const(MASK, 0)
        if fn in ("floor", "ceil", "rint") and not is_float(x.kind):
            return x
        direct = {"isnan": v.isnan, "isinf": self.isinf, "abs": v.absolute, "sign": self.sign}
        if fn in direct:
            return direct[fn](x)
        if not is_float(x.kind):
            x = v.convert(x, "float64")
        if fn in ("floor", "ceil", "rint", "sqrt"):
            return v.intrinsic(fn, x)
        own = {
            "exp": cpu_math.exp,
            "log": cpu_math.log,
            "tanh": cpu_math.tanh,
            "erf": cpu_math.erf,
            "normcdf": cpu_math.normcdf,
        }
        return own[fn](v, x) if fn in own else v.libm(fn, x)

    def isinf(self, x: Value) -> Value:
        infinity = self.v.const(x.kind, math.inf)
        return self.v.compare("==", self.v.absolute(x), infinity)

    def sign(self, x: Value) -> Value:
        v = self.v
        zero = v.const(x.kind, 0)
        up = v.convert(v.compare(">", x, zero), x.kind)
        if not is_float(x.kind) and not is_signed(x.kind):
            return up
        got = v.arith("-", up, v.convert(v.compare("<", x, zero), x.kind))
        return v.select(v.isnan(x), x, got) if is_float(x.kind) else got

    def power(self, base: Operand, exponent: Operand) -> Value:
        """Powers by small literal exponents are products; others call the C library."""
        a, b = self.unify(base, exponent)
        if not isinstance(exponent, Value):
            if exponent == 2:
                return self.v.arith("*", a, a)
            if exponent == 3:
                return self.v.arith("*", self.v.arith("*", a, a), a)
            if exponent == 1:
                return a
            if exponent == -1:
                return self.v.arith("/", self.v.const(a.kind, 1), a)
        return self.v.libm("pow", a, b)

    # --- types ---

    def typed(self, x: Operand) -> Value:
        """A literal alone becomes a float32."""
        return x if isinstance(x, Value) else self.v.const("float32", x)

    def number(self, x: Value) -> Value:
        """A mask becomes a number."""
        return self.v.convert(x, "int32") if x.kind == MASK else x

    def unify(self, a: Operand, b: Operand) -> tuple[Value, Value]:
        """Both in one type."""
        if isinstance(a, Value) and isinstance(b, Value):
            kind = _joint(a.kind, b.kind)
            return self.v.convert(a, kind), self.v.convert(b, kind)
        if isinstance(b, Value):
            other, mine = self.unify(b, a)
            return mine, other
        if not isinstance(a, Value):
            return self.typed(a), self.typed(b)
        a = self.number(a)
        if is_float(a.kind):
            return a, self.v.const(a.kind, b)
        if math.isfinite(b) and b != int(b):
            return self.v.convert(a, "float64"), self.v.const("float64", b)
        return a, self.v.const(a.kind, _into(a.kind, b))


def _joint(a: str, b: str) -> str:
    """The type that two types meet in."""
    if a == b:
        return a
    for kind in ("float64", "float32"):
        if kind in (a, b):
            return kind
    if MASK in (a, b):
        return b if a == MASK else a
    return a if bits(a) >= bits(b) else b


def _into(kind: str, number: float) -> int:
    """An integral literal, held to the range of an integer type."""
    width = bits(kind)
    low, high = (
        (-(1 << (width - 1)), (1 << (width - 1)) - 1)
        if is_signed(kind)
        else (
            0,
            (1 << width) - 1,
        )
    )
    if math.isinf(number):
        return high if number > 0 else low
    return max(low, min(high, int(number)))
