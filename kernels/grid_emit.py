"""Elementwise expressions and fused bodies as C text in the shared dialect.

Every part of an expression becomes one named constant, so that macros may evaluate their arguments
twice. Literals take the type of what they meet; an integer that meets a float is converted to it;
eight and sixteen bit integers are computed in 32 bits and wrap when a step ends, as numpy's do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crossdock.kernels import grid_math
from crossdock.kernels.expression import BITWISE, Binary, Call, Expr, Num, Ref, Select, Unary
from crossdock.kernels.fused import FusedBody
from crossdock.kernels.grid_common import C_TYPES, COMPUTE, WRAPPING, wrapped

FLOATING = ("f32", "f64")
_ORDER = ("i32", "u32", "i64", "u64", "f32", "f64")
_LIMITS = {"i32": "int32", "u32": "uint32", "i64": "int64", "u64": "uint64"}
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")

_INTEGER_POWER = r"""
DEVICE T_POW int_pow(T_POW base, T_POW power) {
    T_WRAP result = 1, square = (T_WRAP)base;
    if (power < 0) return base == 1 ? 1 : base == (T_POW)-1 ? (power % 2 ? base : 1) : 0;
    for (; power != 0; power >>= 1) {
        if (power & 1) result *= square;
        square *= square;
    }
    return (T_POW)result;
}
"""

_ROUND_HALF = r"""
DEVICE float round_half(float x) {
    const u32 bits = AS_U32(x), sign = bits & 0x80000000u;
    const float a = AS_F32(bits & 0x7fffffffu);
    const float small = (a + 0.5f) - 0.5f;
    const float whole = AS_F32((AS_U32(a) + 0xfffu + ((bits >> 13) & 1u)) & 0xffffe000u);
    const float y = a < 6.103515625e-5f ? small : whole >= 65536.0f ? INFINITY : whole;
    return x != x ? x : AS_F32(AS_U32(y) | sign);
}
"""

_ROUND_BF16 = r"""
DEVICE float round_bf16(float x) { return AS_F32((u32)x_to_bf16(x) << 16); }
"""


@dataclass(frozen=True, slots=True)
class Value:
    """A C expression without side effects, and its type; a literal has no type yet."""

    text: str
    kind: str = ""
    number: float = 0


@dataclass(frozen=True)
class Step:
    """An expression over operands (>= 0) and earlier steps (``-1 - k``), ending as ``dtype``.

    ``rounds`` keeps the value exactly as that type would hold it; otherwise half precision goes on
    in float until it is stored.
    """

    expr: Expr
    args: tuple[int, ...]
    dtype: str
    rounds: bool = False


@dataclass
class Body:
    """The C text of steps: ``lines`` compute ``result``, ``helpers`` go before the kernel."""

    lines: list[str]
    result: Value
    helpers: str


def literal(number: float, kind: str) -> str:
    """A literal of a C type; an infinity becomes an integer type's limit."""
    if kind in FLOATING:
        return _float_literal(float(number), kind)
    limits = np.iinfo(_LIMITS[kind])
    if math.isinf(number):
        number = int(limits.max if number > 0 else limits.min)
    whole = min(max(int(number), int(limits.min)), int(limits.max))
    if whole == np.iinfo(np.int64).min:
        return f"(({kind})(-9223372036854775807 - 1))"
    return f"(({kind}){whole}{'u' if kind.startswith('u') else ''})"


def _float_literal(number: float, kind: str) -> str:
    if math.isnan(number):
        return f"(({kind})NAN)"
    if math.isinf(number):
        return f"(({kind})INFINITY)" if number > 0 else f"(-({kind})INFINITY)"
    if kind == "f64":
        return f"({number!r})"
    with np.errstate(over="ignore"):
        rounded = float(np.float32(number))
    return _float_literal(rounded, kind) if math.isinf(rounded) else f"({rounded!r}f)"


@dataclass
class _Emitter:
    cpu: bool
    lines: list[str] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)
    helpers: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def let(self, text: str, kind: str) -> Value:
        name = f"v{self.count}"
        self.count += 1
        self.lines.append(f"const {kind} {name} = {text};")
        return Value(name, kind)

    def typed(self, value: Value, kind: str) -> str:
        """The text of a value as ``kind``."""
        if not value.kind:
            return literal(value.number, kind)
        return value.text if value.kind == kind else f"(({kind}){value.text})"

    def unified(self, *values: Value, least: str = "i32") -> tuple[str, list[str]]:
        """The type that values meet in, and their texts in it."""
        kinds = [v.kind for v in values if v.kind]
        if not kinds:
            floats = any(isinstance(v.number, float) for v in values)
            kinds = ["f32" if floats else "i32"]
        kind = max(*kinds, least, key=_ORDER.index)
        return kind, [self.typed(v, kind) for v in values]

    def emit(self, tree: Expr, args: Sequence[Value]) -> Value:
        match tree:
            case Num(value):
                return Value("", "", value)
            case Ref(index):
                return args[index]
            case Unary("-", Num(value)):
                return Value("", "", -value)
            case Unary(sign, x):
                return self.unary(sign, self.emit(x, args))
            case Binary(op, a, b):
                return self.binary(op, self.emit(a, args), self.emit(b, args))
            case Select(cond, a, b):
                test = self.truth(self.emit(cond, args))
                kind, (yes, no) = self.unified(self.emit(a, args), self.emit(b, args))
                return self.let(f"{test} ? {yes} : {no}", kind)
            case Call(fn, parts):
                return self.call(fn, [self.emit(p, args) for p in parts])

    def truth(self, value: Value) -> str:
        return f"({self.typed(value, value.kind or 'i32')} != 0)"

    def unary(self, op: str, x: Value) -> Value:
        kind, (text,) = self.unified(x)
        if op == "!":
            return self.let(f"{text} == 0", "i32")
        return self.let(f"-{text}" if kind in FLOATING else f"X_NEG({text})", kind)

    def binary(self, op: str, a: Value, b: Value) -> Value:
        if op in ("&&", "||"):
            return self.let(f"{self.truth(a)} {op} {self.truth(b)}", "i32")
        kind, (x, y) = self.unified(a, b)
        if op in COMPARISONS:
            if x == y and kind not in FLOATING:  # compilers warn of what is known
                return Value("", "", int(op in ("==", "<=", ">=")))
            return self.let(f"{x} {op} {y}", "i32")
        if op == "/" and kind not in FLOATING:
            return self.let(f"X_IDIV({x}, {y})", kind)
        return self.let(wrapped(x, op, y, kind), kind)

    def call(self, fn: str, args: list[Value]) -> Value:
        kind, texts = self.unified(*args)
        if kind not in FLOATING:
            found = self.integer_call(fn, kind, texts)
            if found is not None:
                return found
            kind, texts = self.unified(*args, least="f32")
        if fn == "pow" and not args[1].kind:
            return self.power(kind, texts[0], float(args[1].number))
        joined = ", ".join(texts)
        if fn == "isnan":
            return self.let(f"X_ISNAN({joined})", "i32")
        if fn == "isinf":
            return self.let(f"{joined} == INFINITY || {joined} == -INFINITY", "i32")
        if fn == "fma":
            return self.let(f"FMA({joined})", kind)
        if self.cpu and kind == "f32" and fn in grid_math.INLINE:
            self.functions.add(fn)
            return self.let(f"G_{fn.upper()}({joined})", kind)
        return self.let(f"X_{fn.upper()}({joined})", kind)

    def integer_call(self, fn: str, kind: str, texts: list[str]) -> Value | None:
        """A function of integers that is exact on them; None for the others."""
        joined = ", ".join(texts)
        if fn in ("floor", "ceil", "rint") or (fn == "abs" and kind in ("u32", "u64")):
            return Value(texts[0], kind)
        if fn in ("isnan", "isinf"):
            return self.let("0", "i32")
        if fn == "fma":
            product = wrapped(texts[0], "*", texts[1], kind)
            return self.let(wrapped(product, "+", texts[2], kind), kind)
        if fn == "pow":
            name = f"int_pow_{kind}"
            text = _INTEGER_POWER.replace("T_WRAP", WRAPPING.get(kind, kind))
            self.helpers[name] = text.replace("T_POW", kind).replace("int_pow", name)
            return self.let(f"{name}({joined})", kind)
        if fn in BITWISE:
            return self.let(_on_bits(fn, kind, texts), kind)
        named = {"min": "X_MIN", "max": "X_MAX", "abs": "X_IABS", "sign": "X_SIGN"}
        named["mod"] = "X_IMOD"
        return self.let(f"{named[fn]}({joined})", kind) if fn in named else None

    def power(self, kind: str, base: str, exponent: float) -> Value:
        """A power with a literal exponent; small whole ones are products."""
        if exponent in (1.0, 2.0, 3.0):
            return self.let(" * ".join([base] * int(exponent)), kind)
        if exponent == 0.5:
            return self.call("sqrt", [Value(base, kind)])
        return self.let(f"X_POW({base}, {literal(exponent, kind)})", kind)

    def ended(self, value: Value, dtype: str, *, rounds: bool) -> Value:
        """A step's value as an element of ``dtype``, kept in the type it is computed in."""
        kind = COMPUTE[dtype]
        if dtype == "bool":
            return self.let(self.truth(value), kind)
        if dtype in ("float16", "bfloat16") and rounds:
            helper = "round_half" if dtype == "float16" else "round_bf16"
            self.helpers[helper] = _ROUND_HALF if dtype == "float16" else _ROUND_BF16
            return self.let(f"{helper}({self.typed(value, kind)})", kind)
        if value.kind in FLOATING and kind not in FLOATING:
            return self.let(_truncated(value.text, dtype), kind)
        if dtype in ("int8", "uint8", "int16", "uint16"):
            return self.let(f"({C_TYPES[dtype]}){self.typed(value, kind)}", kind)
        return value if value.kind == kind else self.let(self.typed(value, kind), kind)


_BIT_OPERATORS = {"bit_and": "&", "bit_or": "|", "bit_xor": "^"}


def _on_bits(fn: str, kind: str, texts: Sequence[str]) -> str:
    """A function on the bits of integers of one type; shifts too far are kept from C."""
    if fn == "bit_not":
        return f"~{texts[0]}"
    x, y = texts
    if fn in _BIT_OPERATORS:
        return f"{x} {_BIT_OPERATORS[fn]} {y}"
    width = int(kind[1:])
    unsigned = f"u{width}"
    near = f"({unsigned}){y} < {width}u"
    if fn == "shift_left":
        return f"{near} ? ({kind})(({unsigned}){x} << {y}) : 0"
    return f"{near} ? {x} >> {y} : {x} < 0 ? ({kind})-1 : 0"


def _truncated(text: str, dtype: str) -> str:
    """A float as an integer, held to the target's range; NaN is 0. C leaves both undefined."""
    limits, kind = np.iinfo(dtype), COMPUTE[dtype]
    low, high = literal(limits.min, kind), literal(limits.max, kind)
    least, above = f"{float(limits.min)!r}f", f"{float(limits.max + 1)!r}f"
    held = f"{text} >= {above} ? {high} : ({kind}){text}"
    return f"{text} != {text} ? {literal(0, kind)} : {text} <= {least} ? {low} : {held}"


def steps_of(body: FusedBody) -> tuple[Step, ...]:
    """The steps of a fused body."""
    return tuple(Step(s.expr(), s.args, s.dtype, s.op == "cast") for s in body.steps)


def emit(
    steps: Sequence[Step],
    operands: Sequence[Value],
    *,
    cpu: bool,
    scalars: Mapping[int, float] | None = None,
) -> Body:
    """The text that computes ``steps`` over operands that have been read.

    ``scalars`` holds operands whose one value is known: a power by such an exponent is made
    cheaper. The value of other constants stays out of the text, so that it is built once.
    """
    emitter = _Emitter(cpu)
    made: list[Value] = []
    for step in steps:
        args = [operands[a] if a >= 0 else made[-1 - a] for a in step.args]
        match step.expr:
            case Call("pow", (Ref(0), Ref(1))) if step.args[1] in (scalars or {}):
                if args[0].kind in FLOATING:
                    args[1] = Value("", "", float((scalars or {})[step.args[1]]))
            case _:
                pass
        value = emitter.emit(step.expr, args)
        made.append(emitter.ended(value, step.dtype, rounds=step.rounds))
    helpers = grid_math.prelude(emitter.functions, cpu=cpu) + "".join(emitter.helpers.values())
    return Body(emitter.lines, made[-1], helpers)
