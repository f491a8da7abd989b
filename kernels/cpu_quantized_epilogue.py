"""What follows a product of bytes, on the sums of a tile: bias, scale, rounding, the store.

``sum - zero * weights + bias`` is the exact int32 sum of products less their zero points; times a
scale, plus an offset, held between two bounds it is the real result; a quantised result is rounded
half to even, and its zero point added. Parameters are one a row (images: rows are channels) or one
a column (matrices).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from crossdock.kernels.cpu_dots import Unit
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_rows import Words
from crossdock.kernels.cpu_vector import LLVM_TYPES, Value, Vector

NONE, ONE, EACH = "none", "one", "each"
LIMITS = {"uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}


@dataclass(frozen=True)
class Terms:
    """Which parameters there are, and what is stored.

    ``bias``, ``scale`` and ``offset`` are none, one for all, or one each. ``shift`` is what was
    added to the elements whose zero point comes off, ``zero`` their type. ``sparse``: a panel's
    columns are not all results. ``bounded``: there are bounds.
    """

    by_row: bool
    zero: str
    shift: int
    bias: str
    scale: str
    offset: str
    output: str
    bounded: bool = False
    sparse: bool = False

    def __str__(self) -> str:
        flags = f"{self.by_row:d}{self.bounded:d}{self.sparse:d}"
        parts = (self.bias, self.scale, self.offset)
        return f"{flags} {self.zero}+{self.shift} {','.join(parts)}->{self.output}"


@dataclass(frozen=True)
class Sums:
    """A panel: its number of vectors, its entry in the table, its first vector, its problem."""

    n: int
    entry: str
    first: str
    problem: str
    group: str


@dataclass(frozen=True)
class Parameters:
    """Vectors to apply: int32 to add, float32 to multiply by and to add."""

    add: str
    scale: Value | None
    offset: Value | None


class Epilogue:
    """Appends the epilogue to a kernel; its bounds are words ``bounds_at`` and the next."""

    def __init__(self, code: Code, unit: Unit, terms: Terms, words: Words, bounds_at: int) -> None:
        self.code = code
        self.unit = unit
        self.terms = terms
        self.w = words
        self.bounds_at = bounds_at
        self.vector = Vector(code, unit.lanes)
        self.bits = f"<{unit.lanes} x i1>"

    # --- parameters ---

    @cached_property
    def zero(self) -> Value:
        """The zero point of the elements, as int32, plus what was added to them."""
        byte = Value(self.code.load("i8", self.w["zero"]), self.terms.zero)
        wide = Vector(self.code, 1).convert(byte, "int32")
        shifted = self.code.let(f"add i32 {wide.name}, {self.terms.shift}")
        return Value(shifted, "int32")

    @cached_property
    def bounds(self) -> tuple[Value, Value]:
        """Bounds of the real result; those of a quantised one are its type's, less its zero."""
        scalar, code = Vector(self.code, 1), self.code
        given = [
            Value(code.let(f"fptrunc double {code.number(at)} to float"), "float32")
            for at in (self.bounds_at, self.bounds_at + 1)
        ]
        if self.terms.output in LIMITS:
            zero = scalar.convert(self.out_zero, "float32")
            ends = [
                scalar.arith("-", scalar.const("float32", end), zero)
                for end in LIMITS[self.terms.output]
            ]
            if self.terms.bounded:
                given = [
                    scalar.extreme("max", given[0], ends[0]),
                    scalar.extreme("min", given[1], ends[1]),
                ]
            else:
                given = ends
        low, high = (self.vector.splat(value) for value in given)
        return low, high

    @cached_property
    def out_zero(self) -> Value:
        """The result's zero point as int32."""
        byte = Value(self.code.load("i8", self.w["out_zero"]), self.terms.output)
        return Vector(self.code, 1).convert(byte, "int32")

    @cached_property
    def out_zeros(self) -> Value:
        """The same in every lane."""
        return self.vector.splat(self.out_zero)

    def settle(self) -> None:
        """Write out, before any branch, what is the same for all tiles."""
        _ = self.zero
        if self.terms.output in LIMITS:
            _ = self.out_zeros
        if self.terms.output in LIMITS or self.terms.bounded:
            _ = self.bounds

    def columns(self, sums: Sums) -> list[Parameters]:
        """The parameters of a panel's columns, none where they belong to rows."""
        if self.terms.by_row:
            return []
        code, lanes = self.code, self.unit.lanes
        count = code.load("i64", code.at(sums.entry, "i64", 4))
        made = []
        for j in range(sums.n):
            at = code.mul(code.add(sums.first, j), lanes)
            keep = self.first_lanes(code.sub(count, j * lanes))
            made.append(self.parameters(at, keep))
        return made

    def parameters(self, at: str, keep: str | None) -> Parameters:
        """Those of lanes from ``at`` on, or (``keep`` None) that of element ``at`` in all lanes."""
        sums = self.array("sums", EACH, "int32", at, keep)
        zero = self.vector.splat(self.zero)
        assert sums is not None
        less = self.code.let(f"mul {self.vector.t('int32')} {sums.name}, {zero.name}")
        bias = self.array("bias", self.terms.bias, "int32", at, keep)
        start = self.vector.const("int32", 0) if bias is None else bias
        add = self.code.let(f"sub {self.vector.t('int32')} {start.name}, {less}")
        return Parameters(
            add,
            self.array("scale", self.terms.scale, "float32", at, keep),
            self.array("offset", self.terms.offset, "float32", at, keep),
        )

    def array(self, name: str, how: str, kind: str, at: str, keep: str | None) -> Value | None:
        """An array's part as a vector."""
        if how == NONE:
            return None
        code, llvm = self.code, LLVM_TYPES[kind]
        if how == ONE or keep is None:
            place = self.w[name] if how == ONE else code.at(self.w[name], llvm, at)
            return self.vector.splat(Value(code.load(llvm, place), kind))
        wide, lanes = self.vector.t(kind), self.unit.lanes
        suffix = self.vector.suffix(llvm)
        fn = code.declare(
            f"llvm.masked.load.{suffix}.p0", f"{wide} @(ptr, i32, {self.bits}, {wide})"
        )
        given = f"ptr {code.at(self.w[name], llvm, at)}, i32 4, <{lanes} x i1> {keep}"
        zero = self.vector.const(kind, 0).name
        return Value(code.let(f"call {wide} {fn}({given}, {wide} {zero})"), kind)

    def first_lanes(self, count: str, lanes: int | None = None) -> str:
        """The first ``count`` lanes as a mask."""
        lanes = self.unit.lanes if lanes is None else lanes
        numbers = Vector(self.code, lanes)
        short = self.code.let(f"trunc i64 {count} to i32")
        limit = numbers.splat(Value(short, "int32")).name
        steps = ", ".join(f"i32 {i}" for i in range(lanes))
        return self.code.let(f"icmp slt <{lanes} x i32> <{steps}>, {limit}")

    # --- values ---

    def rows(self, held: str, sums: Sums, columns: list[Parameters], row: str, valid: str) -> None:
        """Finish and store the rows of a tile whose sums are at ``held``."""
        code, w, n = self.code, self.w, sums.n
        offset, mask, count = (code.load("i64", code.at(sums.entry, "i64", i)) for i in (2, 3, 4))
        out = code.add(code.mul(sums.problem, w["out_size"]), offset)
        channel = code.add(code.mul(sums.group, w["row_count"]), row)
        with code.loop(0, valid) as rows:
            given = columns
            if self.terms.by_row:
                given = [self.parameters(code.add(channel, rows.index), None)] * n
            at = code.at(held, "i32", code.mul(rows.index, n * self.unit.lanes))
            kind = self.vector.t("int32")
            values = []
            for j, parameters in enumerate(given):
                total = code.let(f"load {kind}, ptr {code.at(at, kind, j)}, align 16")
                values.append(self.finished(total, parameters))
            line = code.add(out, code.mul(code.add(row, rows.index), w["out_stride"]))
            self.store(values, self.at(line), mask, count)

    def at(self, index: str) -> str:
        """Address of an element of the result."""
        return self.code.at(self.w["out"], LLVM_TYPES[self.terms.output], index)

    def finished(self, total: str, parameters: Parameters) -> Value:
        """A vector of results in the result's type, a quantised one as int32."""
        v, kind = self.vector, self.vector.t("int32")
        value = Value(self.code.let(f"add {kind} {total}, {parameters.add}"), "int32")
        if self.terms.output == "int32":
            return value
        value = v.convert(value, "float32")
        if parameters.scale is not None:
            value = v.arith("*", value, parameters.scale)
        if parameters.offset is not None:
            value = v.arith("+", value, parameters.offset)
        quantised = self.terms.output in LIMITS
        if quantised or self.terms.bounded:
            low, high = self.bounds
            value = v.select(v.compare(">", value, low), value, low)
            value = v.select(v.compare("<", value, high), value, high)
        if not quantised:
            return value
        real = v.t("float32")
        name = f"llvm.lrint.{v.suffix('i32')}.{v.suffix('float')}"
        fn = self.code.declare(name, f"{kind} @({real})")
        whole = Value(self.code.let(f"call {kind} {fn}({real} {value.name})"), "int32")
        return v.arith("+", whole, self.out_zeros)

    # --- stores ---

    def store(self, values: list[Value], at: str, mask: str, count: str) -> None:
        """Store a row of a panel: quantised results as one vector, others vector by vector."""
        lanes = self.unit.lanes
        if self.terms.output not in LIMITS:
            kind = self.terms.output
            for j, value in enumerate(values):
                if not self.terms.sparse:
                    to = self.code.at(at, LLVM_TYPES[kind], j * lanes)
                    self.put(value.name, kind, lanes, to, self.code.sub(count, j * lanes))
                    continue
                part = self.code.let(f"lshr i64 {mask}, {j * lanes}")
                at = self.pack(value.name, kind, lanes, at, part)
            return
        code, kept = self.code, [v.name for v in values]
        wide = lanes
        while len(kept) > 1:  # vectors beside each other, the last one twice where one lacks
            kept += kept[-1:] * (len(kept) % 2)
            order = ", ".join(f"i32 {i}" for i in range(2 * wide))
            two = f"<{wide} x i32>"
            mix = f"<{2 * wide} x i32> <{order}>"
            kept = [
                code.let(f"shufflevector {two} {a}, {two} {b}, {mix}")
                for a, b in zip(kept[::2], kept[1::2], strict=True)
            ]
            wide *= 2
        small = code.let(f"trunc <{wide} x i32> {kept[0]} to <{wide} x i8>")
        if self.terms.sparse:
            self.pack(small, self.terms.output, wide, at, mask)
        else:
            self.put(small, self.terms.output, wide, at, count)

    def put(self, value: str, dtype: str, lanes: int, at: str, count: str) -> None:
        """Store the first ``count`` lanes of a vector, all where there are more."""
        code, kind = self.code, f"<{lanes} x {LLVM_TYPES[dtype]}>"
        full = code.less(lanes - 1, count)
        with code.when(full):
            code.do(f"store {kind} {value}, ptr {at}, align 1")
        with code.when(code.negate(full)):
            self.masked(value, dtype, lanes, at, self.first_lanes(count, lanes))

    def masked(self, value: str, dtype: str, lanes: int, at: str, mask: str) -> None:
        """Store the lanes of a mask."""
        code, llvm = self.code, LLVM_TYPES[dtype]
        kind, bits = f"<{lanes} x {llvm}>", f"<{lanes} x i1>"
        suffix = Vector(code, lanes).suffix(llvm)
        fn = code.declare(f"llvm.masked.store.{suffix}.p0", f"void @({kind}, ptr, i32, {bits})")
        code.do(f"call void {fn}({kind} {value}, ptr {at}, i32 1, {bits} {mask})")

    def pack(self, value: str, dtype: str, lanes: int, at: str, mask: str) -> str:
        """Store the lanes of a mask (bits of an i64) behind each other; the address after them."""
        code, llvm = self.code, LLVM_TYPES[dtype]
        short = mask if lanes == 64 else code.let(f"trunc i64 {mask} to i{lanes}")
        fn = code.declare(f"llvm.ctpop.i{lanes}", f"i{lanes} @(i{lanes})")
        count = code.let(f"call i{lanes} {fn}(i{lanes} {short})")
        count = count if lanes == 64 else code.let(f"zext i{lanes} {count} to i64")
        kind, bits = f"<{lanes} x {llvm}>", f"<{lanes} x i1>"
        if self.unit.compress:
            chosen = code.let(f"bitcast i{lanes} {short} to {bits}")
            suffix = Vector(code, lanes).suffix(llvm)
            fn = code.declare(
                f"llvm.experimental.vector.compress.{suffix}", f"{kind} @({kind}, {bits}, {kind})"
            )
            given = f"{kind} {value}, {bits} {chosen}, {kind} undef"
            near = code.let(f"call {kind} {fn}({given})")
            self.masked(near, dtype, lanes, at, self.first_lanes(count, lanes))
            return code.at(at, llvm, count)
        return self.one_by_one(value, dtype, lanes, at, mask)

    def one_by_one(self, value: str, dtype: str, lanes: int, at: str, mask: str) -> str:
        """The same, lane by lane."""
        code, llvm = self.code, LLVM_TYPES[dtype]
        for lane in range(lanes):
            one = code.let(f"extractelement <{lanes} x {llvm}> {value}, i32 {lane}")
            bit = code.let(f"and i64 {code.let(f'lshr i64 {mask}, {lane}')}, 1")
            with code.when(code.equal(bit, 1)):
                code.store(llvm, one, at)
            at = code.at(at, llvm, bit)
        return at
