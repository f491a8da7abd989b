"""Typed vector operations in LLVM IR: memory, conversions, arithmetic, comparisons.

A ``Value`` is a scalar (lanes 1) or a vector of a compute type, or a *mask* of i1. float16 and
bfloat16 are storage only: they are computed in float32.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

from crossdock.kernels.cpu_ir import Code

MASK = "mask"

LLVM_TYPES = {
    "float16": "half", "bfloat16": "i16", "float32": "float", "float64": "double",
    "int8": "i8", "uint8": "i8", "bool": "i8", "int16": "i16", "uint16": "i16",
    "int32": "i32", "uint32": "i32", "int64": "i64", "uint64": "i64", MASK: "i1",
}  # fmt: skip


class Value(NamedTuple):
    """An SSA name and its compute type (a dtype's name, or ``mask``).

    ``plain`` marks a constant that is not NaN.
    """

    name: str
    kind: str
    plain: bool = False


def is_float(kind: str) -> bool:
    """Whether a compute type is floating."""
    return kind in ("float32", "float64")


def is_signed(kind: str) -> bool:
    """Whether an integer type is signed."""
    return kind.startswith("int")


def bits(kind: str) -> int:
    """Width of a type in bits."""
    return {"half": 16, "float": 32, "double": 64}.get(LLVM_TYPES[kind]) or int(
        LLVM_TYPES[kind][1:]
    )


def compute_kind(dtype: str) -> str:
    """The type that elements of a dtype are computed in."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


class Vector:
    """Operations on values of ``lanes`` lanes, appended to a function."""

    def __init__(self, code: Code, lanes: int) -> None:
        self.code = code
        self.lanes = lanes

    # --- types, constants, memory ---

    def type(self, llvm: str) -> str:
        """The LLVM type of this many lanes."""
        return llvm if self.lanes == 1 else f"<{self.lanes} x {llvm}>"

    def t(self, kind: str) -> str:
        """The LLVM type of a value of this kind."""
        return self.type(LLVM_TYPES[kind])

    def suffix(self, llvm: str) -> str:
        """The overload suffix of intrinsics."""
        short = {"float": "f32", "double": "f64", "half": "f16"}.get(llvm, llvm)
        return short if self.lanes == 1 else f"v{self.lanes}{short}"

    def const(self, kind: str, number: float) -> Value:
        """The same number in every lane."""
        text = _literal(kind, number)
        if self.lanes > 1:
            element = f"{LLVM_TYPES[kind]} {text}"
            text = "<" + ", ".join([element] * self.lanes) + ">"
        return Value(text, kind, plain=number == number)

    def splat(self, scalar: Value) -> Value:
        """A scalar in every lane."""
        if self.lanes == 1:
            return scalar
        kind, wide = LLVM_TYPES[scalar.kind], self.t(scalar.kind)
        first = self.code.let(f"insertelement {wide} undef, {kind} {scalar.name}, i32 0")
        return Value(
            self.code.let(
                f"shufflevector {wide} {first}, {wide} undef, <{self.lanes} x i32> zeroinitializer"
            ),
            scalar.kind,
        )

    def load(self, address: str, dtype: str) -> Value:
        """Load consecutive elements and widen storage-only types."""
        llvm = LLVM_TYPES[dtype]
        raw = self.code.let(
            f"load {self.type(llvm)}, ptr {address}, align {max(bits(dtype) // 8, 1)}"
        )
        if dtype == "float16":
            return Value(
                self.code.let(f"fpext {self.type('half')} {raw} to {self.type('float')}"), "float32"
            )
        if dtype == "bfloat16":
            wide = self.code.let(f"zext {self.type('i16')} {raw} to {self.type('i32')}")
            high = self.integer("shl", wide, 16)
            return self.bitcast(Value(high, "int32"), "float32")
        return Value(raw, dtype)

    def store(self, value: Value, address: str, dtype: str) -> None:
        """Convert to the dtype and store consecutive elements."""
        if dtype == "float16":
            f = self.convert(value, "float32")
            name = self.code.let(f"fptrunc {self.t('float32')} {f.name} to {self.type('half')}")
        elif dtype == "bfloat16":
            name = self._to_bfloat16(self.convert(value, "float32"))
        else:
            name = self.convert(value, dtype).name
        self.code.do(
            f"store {self.type(LLVM_TYPES[dtype])} {name}, ptr {address}, "
            f"align {max(bits(dtype) // 8, 1)}"
        )

    def _to_bfloat16(self, f: Value) -> str:
        raw = self.bitcast(f, "int32").name
        odd = self.integer("and", self.integer("lshr", raw, 16), 1)
        near = self.code.let(f"add {self.t('int32')} {raw}, {self.integer('add', odd, 0x7FFF)}")
        quiet = self.integer("or", raw, 0x400000)
        kept = self.select(self.isnan(f), Value(quiet, "int32"), Value(near, "int32"))
        high = self.integer("lshr", kept.name, 16)
        return self.code.let(f"trunc {self.t('int32')} {high} to {self.type('i16')}")

    def integer(self, op: str, name: str, number: int, kind: str = "int32") -> str:
        """An integer instruction with a constant on its right."""
        return self.code.let(f"{op} {self.t(kind)} {name}, {self.const(kind, number).name}")

    def bitcast(self, value: Value, kind: str) -> Value:
        """The same bits as another type of the same width."""
        text = f"bitcast {self.t(value.kind)} {value.name} to {self.t(kind)}"
        return Value(self.code.let(text), kind)

    # --- conversion ---

    def convert(self, value: Value, kind: str) -> Value:
        """Convert between compute types: integers wrap, float to integer saturates (NaN is 0)."""
        if value.kind == kind:
            return value
        if kind == MASK:
            return self.compare("!=", value, self.const(value.kind, 0))
        if kind == "bool":
            return self.cast("zext", self.convert(value, MASK), kind)
        if value.kind == MASK:
            return self.cast("uitofp" if is_float(kind) else "zext", value, kind)
        if is_float(value.kind):
            return self._from_float(value, kind)
        if is_float(kind):
            return self.cast("sitofp" if is_signed(value.kind) else "uitofp", value, kind)
        if bits(kind) == bits(value.kind):
            return Value(value.name, kind)
        if bits(kind) < bits(value.kind):
            return self.cast("trunc", value, kind)
        return self.cast("sext" if is_signed(value.kind) else "zext", value, kind)

    def cast(self, op: str, value: Value, kind: str) -> Value:
        """A conversion instruction."""
        text = f"{op} {self.t(value.kind)} {value.name} to {self.t(kind)}"
        return Value(self.code.let(text), kind)

    def _from_float(self, value: Value, kind: str) -> Value:
        if is_float(kind):
            return self.cast("fpext" if kind == "float64" else "fptrunc", value, kind)
        if bits(kind) < 32:
            return self._narrowed(value, kind)
        to, source = LLVM_TYPES[kind], LLVM_TYPES[value.kind]
        stem = "fptosi" if is_signed(kind) else "fptoui"
        fn = self.code.declare(
            f"llvm.{stem}.sat.{self.suffix(to)}.{self.suffix(source)}",
            f"{self.type(to)} @({self.type(source)})",
        )
        text = f"call {self.type(to)} {fn}({self.type(source)} {value.name})"
        return Value(self.code.let(text), kind)

    def _narrowed(self, value: Value, kind: str) -> Value:
        """A float as an integer of less than 32 bits, by way of one of 32, which is quick."""
        width, signed = bits(kind), is_signed(kind)
        ends = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)
        low, high = (self.const(value.kind, end) for end in ends)
        held = self.select(self.compare(">", value, low), value, low)
        if signed:  # what does not compare became the lowest number
            held = self.select(self.isnan(value), self.const(value.kind, 0), held)
        held = self.select(self.compare("<", held, high), held, high)
        return self.convert(self.cast("fptosi", held, "int32"), kind)

    # --- arithmetic ---

    def arith(self, op: str, a: Value, b: Value) -> Value:
        """``+ - * /`` on two values of one kind; integer division truncates, by zero gives 0."""
        if is_float(a.kind):
            name = {"+": "fadd", "-": "fsub", "*": "fmul", "/": "fdiv"}[op]
        elif op == "/":
            return self._divide(a, b, "div")
        else:
            name = {"+": "add", "-": "sub", "*": "mul"}[op]
        return Value(self.code.let(f"{name} {self.t(a.kind)} {a.name}, {b.name}"), a.kind)

    def on_bits(self, fn: str, a: Value, b: Value) -> Value:
        """And, or, exclusive or, and shifts of integers of one kind; see ``expression``."""
        names = {"bit_and": "and", "bit_or": "or", "bit_xor": "xor", "shift_left": "shl"}
        kind, signed = a.kind, is_signed(a.kind)
        name = names.get(fn, "ashr" if signed else "lshr")
        if not fn.startswith("shift"):
            return Value(self.code.let(f"{name} {self.t(kind)} {a.name}, {b.name}"), kind)
        zero, most = self.const(kind, 0), self.const(kind, bits(kind) - 1)
        near = self.compare("<=", b, most)
        if signed:
            near = self.logic("and", near, self.compare(">=", b, zero))
        by = self.select(near, b, zero)
        shifted = Value(self.code.let(f"{name} {self.t(kind)} {a.name}, {by.name}"), kind)
        beyond = zero
        if signed and fn == "shift_right":
            beyond = self.select(self.compare("<", a, zero), self.const(kind, -1), zero)
        return self.select(near, shifted, beyond)

    def _divide(self, a: Value, b: Value, op: str) -> Value:
        zero = self.compare("==", b, self.const(b.kind, 0))
        bad = zero
        if is_signed(a.kind):
            lowest = self.compare("==", a, self.const(a.kind, -(1 << (bits(a.kind) - 1))))
            minus = self.compare("==", b, self.const(b.kind, -1))
            bad = self.logic("or", zero, self.logic("and", lowest, minus))
        safe = self.select(bad, self.const(b.kind, 1), b)
        name = ("s" if is_signed(a.kind) else "u") + op
        got = Value(self.code.let(f"{name} {self.t(a.kind)} {a.name}, {safe.name}"), a.kind)
        return self.select(zero, self.const(a.kind, 0), got)

    def mod(self, a: Value, b: Value) -> Value:
        """The remainder with the divisor's sign."""
        zero = self.const(a.kind, 0)
        if is_float(a.kind):
            rest = self.libm("fmod", a, b)
        else:
            rest = self._divide(a, b, "rem")
            if not is_signed(a.kind):
                return rest
        other = self.logic("xor", self.compare("<", rest, zero), self.compare("<", b, zero))
        fix = self.logic("and", other, self.compare("!=", rest, zero))
        return self.select(fix, self.arith("+", rest, b), rest)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """``a * b + c``, rounded once where the processor can."""
        return self.intrinsic("fmuladd", a, b, c)

    def compare(self, op: str, a: Value, b: Value) -> Value:
        """A mask; every comparison with NaN is false but ``!=``."""
        if is_float(a.kind):
            name = {"<": "olt", "<=": "ole", ">": "ogt", ">=": "oge", "==": "oeq", "!=": "une"}[op]
            text = f"fcmp {name} {self.t(a.kind)} {a.name}, {b.name}"
        else:
            sign = "s" if is_signed(a.kind) else "u"
            name = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}.get(op, "")
            name = sign + name if name else {"==": "eq", "!=": "ne"}[op]
            text = f"icmp {name} {self.t(a.kind)} {a.name}, {b.name}"
        return Value(self.code.let(text), MASK)

    def logic(self, op: str, a: Value, b: Value) -> Value:
        """``and``, ``or``, ``xor`` of two masks."""
        return Value(self.code.let(f"{op} {self.t(MASK)} {a.name}, {b.name}"), MASK)

    def select(self, mask: Value, a: Value, b: Value) -> Value:
        """``mask ? a : b`` lane by lane."""
        kind = self.t(a.kind)
        text = f"select {self.t(MASK)} {mask.name}, {kind} {a.name}, {kind} {b.name}"
        return Value(self.code.let(text), a.kind)

    def neg(self, a: Value) -> Value:
        """``-a``."""
        if is_float(a.kind):
            return Value(self.code.let(f"fneg {self.t(a.kind)} {a.name}"), a.kind)
        return self.arith("-", self.const(a.kind, 0), a)

    def isnan(self, a: Value) -> Value:
        """A mask of the lanes that are NaN."""
        return Value(self.code.let(f"fcmp uno {self.t(a.kind)} {a.name}, {a.name}"), MASK)

    def extreme(self, op: str, a: Value, b: Value) -> Value:
        """``min`` or ``max``; NaN in either operand gives NaN.

        The first select keeps ``b`` where the two do not compare, so only a NaN in ``a`` is left.
        """
        order = "<" if op == "min" else ">"
        got = self.select(self.compare(order, a, b), a, b)
        if not is_float(a.kind) or a.plain:
            return got
        if b.plain:
            return self.select(self.compare(order, b, a), b, a)
        return self.select(self.isnan(a), a, got)

    def intrinsic(self, name: str, *args: Value) -> Value:
        """``llvm.<name>`` on values of one kind."""
        kind = args[0].kind
        llvm = self.t(kind)
        fn = self.code.declare(
            f"llvm.{name}.{self.suffix(LLVM_TYPES[kind])}",
            f"{llvm} @({', '.join([llvm] * len(args))})",
        )
        given = ", ".join(f"{llvm} {a.name}" for a in args)
        return Value(self.code.let(f"call {llvm} {fn}({given})"), kind)

    def absolute(self, a: Value) -> Value:
        """``|a|``; the lowest integer stays itself."""
        if is_float(a.kind):
            return self.intrinsic("fabs", a)
        if not is_signed(a.kind):
            return a
        return self.select(self.compare("<", a, self.const(a.kind, 0)), self.neg(a), a)

    def halved(self, value: Value, combine: Callable[[Vector, Value, Value], Value]) -> Value:
        """All lanes combined: halves of the vector with one another, down to one lane."""
        if self.lanes == 1:
            return value
        half = Vector(self.code, self.lanes // 2)
        wide = self.t(value.kind)
        parts = []
        for start in (0, half.lanes):
            picks = ", ".join(f"i32 {start + i}" for i in range(half.lanes))
            if half.lanes == 1:
                text = f"extractelement {wide} {value.name}, i32 {start}"
            else:
                mask = f"<{half.lanes} x i32> <{picks}>"
                text = f"shufflevector {wide} {value.name}, {wide} undef, {mask}"
            parts.append(Value(self.code.let(text), value.kind))
        return half.halved(combine(half, *parts), combine)

    def libm(self, name: str, *args: Value) -> Value:
        """The C library's function, one call a lane."""
        kind = args[0].kind
        llvm = LLVM_TYPES[kind]
        symbol = name + ("f" if kind == "float32" else "")
        fn = self.code.declare(symbol, f"{llvm} @({', '.join([llvm] * len(args))})")
        if self.lanes == 1:
            given = ", ".join(f"{llvm} {a.name}" for a in args)
            return Value(self.code.let(f"call {llvm} {fn}({given})"), kind)
        result, wide = "undef", self.t(kind)
        for lane in range(self.lanes):
            parts = [self.code.let(f"extractelement {wide} {a.name}, i32 {lane}") for a in args]
            given = ", ".join(f"{llvm} {p}" for p in parts)
            one = self.code.let(f"call {llvm} {fn}({given})")
            result = self.code.let(f"insertelement {wide} {result}, {llvm} {one}, i32 {lane}")
        return Value(result, kind)


def _literal(kind: str, number: float) -> str:
    if kind == MASK:
        return "true" if number else "false"
    if not is_float(kind):
        return str(int(number))
    value = float(number)
    if kind == "float32":
        try:
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        except OverflowError:
            value = math.copysign(math.inf, value)
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
