"""Images of bytes with four channels beside each other, for products of bytes.

The packed image is, for each problem (image and group) and each quad of channels, one plane a phase
of the stride: rows of 32-bit pixels of four channels, with the zero point around the image.
Outputs that are neighbours read pixels that are neighbours, whatever the stride, so that a window's
tap is an offset. The bytes become unsigned: signed ones get 128 added.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.kernels.cpu_dots import Unit
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_rows import Words
from crossdock.kernels.cpu_vector import Value, Vector

WORDS = (
    "out", "in", "zero", "phases",
    "channels", "quads", "plane_in", "width", "height", "rows", "pitch", "quad_size",
    "problem_size", "stride_y", "stride_x", "phase_count",
)  # fmt: skip
POINTERS = 4
PHASE_WORDS = 4
"""First source row and column, first and last packed column that lie in the image."""


@dataclass(frozen=True)
class PackForm:
    """What is compiled; ``stride`` is 1, 2, or 0 for any other."""

    unit: Unit
    signed: bool
    stride: int

    def __str__(self) -> str:
        return f"{self.unit.lanes}{self.unit.compress:d} {self.signed:d} {self.stride}"


class PackWriter:
    """Writes the kernel: an item is a quad of channels of a problem."""

    def __init__(self, code: Code, form: PackForm) -> None:
        self.code = code
        self.form = form
        self.lanes = form.unit.lanes
        self.vector = Vector(code, self.lanes)
        self.w = Words(code, WORDS, POINTERS)
        byte = Value(code.load("i8", self.w["zero"]), "uint8")
        fill = Vector(code, 1).convert(byte, "int32").name
        fill = code.let(f"mul i32 {fill}, {0x01010101}")
        self.fill = code.let(f"xor i32 {fill}, {-0x7F7F7F80}") if form.signed else fill

    def write(self) -> None:
        """Append the whole function."""
        code, w = self.code, self.w
        with code.loop("%begin", "%end") as items:
            quad, problem = code.rem(items.index, w["quads"]), code.div(items.index, w["quads"])
            out = code.add(code.mul(problem, w["problem_size"]), code.mul(quad, w["quad_size"]))
            out = code.at(w["out"], "i8", out)
            first = code.mul(problem, w["channels"])
            planes = []
            for k in range(4):  # channels that are not there repeat the last: their weights are 0
                channel = code.add(code.mul(quad, 4), k)
                channel = code.least(channel, code.sub(w["channels"], 1))
                at = code.mul(code.add(first, channel), w["plane_in"])
                planes.append(code.at(w["in"], "i8", at))
            with code.loop(0, w["phase_count"]) as phases:
                entry = code.at(w["phases"], "i64", code.mul(phases.index, PHASE_WORDS))
                phase = [code.load("i64", code.at(entry, "i64", i)) for i in range(PHASE_WORDS)]
                with code.loop(0, w["rows"]) as rows:
                    row = code.add(code.mul(phases.index, w["rows"]), rows.index)
                    to = code.at(out, "i32", code.mul(row, w["pitch"]))
                    y = code.add(code.mul(rows.index, w["stride_y"]), phase[0])
                    inside = code.let(f"icmp ult i64 {y}, {w['height']}")
                    with code.when(inside):
                        self.row(to, planes, code.mul(y, w["width"]), phase)
                    with code.when(code.negate(inside)):
                        self.border(to, "0", w["pitch"])

    def border(self, to: str, low: str, high: str) -> None:
        """Pixels of the zero point."""
        with self.code.loop(low, high) as pixels:
            self.code.store("i32", self.fill, self.code.at(to, "i32", pixels.index))

    def row(self, to: str, planes: list[str], line: str, phase: list[str]) -> None:
        """One row: the border on its left, the image, the border on its right."""
        code, (_, x0, low, high) = self.code, phase
        self.border(to, "0", low)
        rows = [code.at(plane, "i8", code.add(line, x0)) for plane in planes]
        rest = low
        if self.form.stride:
            # Every second byte: the last one loaded must not lie beyond the row.
            last = code.sub(high, self.lanes - (2 if self.form.stride == 1 else 1) + 1)
            with code.loop(low, last, self.lanes) as pixels:
                self.put(to, rows, pixels.index, None)
            rest = pixels.index
        if self.form.stride and self.form.unit.compress:
            with code.loop(rest, high, self.lanes) as pixels:
                self.put(to, rows, pixels.index, code.sub(high, pixels.index))
        else:
            with code.loop(rest, high) as pixels:
                self.one(to, rows, pixels.index)
        self.border(to, high, self.w["pitch"])

    def one(self, to: str, rows: list[str], pixel: str) -> None:
        """A single pixel."""
        code = self.code
        x = code.mul(pixel, self.w["stride_x"])
        word = "0"
        for k, row in enumerate(rows):
            byte = code.load("i8", code.at(row, "i8", x))
            wide = code.let(f"shl i32 {code.let(f'zext i8 {byte} to i32')}, {8 * k}")
            word = code.let(f"or i32 {word}, {wide}")
        if self.form.signed:
            word = code.let(f"xor i32 {word}, {-0x7F7F7F80}")
        code.store("i32", word, code.at(to, "i32", pixel))

    def put(self, to: str, rows: list[str], pixel: str, count: str | None) -> None:
        """A vector of pixels, or the first ``count`` of them."""
        code, v, stride = self.code, self.vector, self.form.stride
        kind = v.t("int32")
        x = pixel if stride == 1 else code.mul(pixel, 2)
        word = v.const("int32", 0).name
        for k, row in enumerate(rows):
            bytes_ = self.bytes(code.at(row, "i8", x), count)
            wide = code.let(f"zext {v.type('i8')} {bytes_} to {kind}")
            if k:
                wide = v.integer("shl", wide, 8 * k)
            word = code.let(f"or {kind} {word}, {wide}")
        if self.form.signed:
            word = v.integer("xor", word, -0x7F7F7F80)
        at = code.at(to, "i32", pixel)
        if count is None:
            code.do(f"store {kind} {word}, ptr {at}, align 4")
            return
        bits = f"<{self.lanes} x i1>"
        fn = code.declare(
            f"llvm.masked.store.{v.suffix('i32')}.p0", f"void @({kind}, ptr, i32, {bits})"
        )
        mask = self.mask(count, self.lanes)
        code.do(f"call void {fn}({kind} {word}, ptr {at}, i32 4, {bits} {mask})")

    def bytes(self, at: str, count: str | None) -> str:
        """A byte of each pixel of a vector."""
        code, reach = self.code, self.lanes * self.form.stride
        wide = f"<{reach} x i8>"
        if count is None:
            raw = code.let(f"load {wide}, ptr {at}, align 1")
        else:
            far = count if self.form.stride == 1 else code.sub(code.mul(count, 2), 1)
            bits = f"<{reach} x i1>"
            fn = code.declare(
                f"llvm.masked.load.v{reach}i8.p0", f"{wide} @(ptr, i32, {bits}, {wide})"
            )
            given = f"ptr {at}, i32 1, {bits} {self.mask(far, reach)}, {wide} zeroinitializer"
            raw = code.let(f"call {wide} {fn}({given})")
        if self.form.stride == 1:
            return raw
        even = ", ".join(f"i32 {2 * i}" for i in range(self.lanes))
        return code.let(f"shufflevector {wide} {raw}, {wide} undef, <{self.lanes} x i32> <{even}>")

    def mask(self, count: str, lanes: int) -> str:
        """The first ``count`` lanes."""
        code = self.code
        short = code.let(f"trunc i64 {count} to i32")
        limit = Vector(code, lanes).splat(Value(short, "int32")).name
        numbers = ", ".join(f"i32 {i}" for i in range(lanes))
        return code.let(f"icmp slt <{lanes} x i32> <{numbers}>, {limit}")
