"""Packing of image patches for the panel convolution: the part that depends on the window.

A panel holds, for each channel of a block and each tap of the window, the pixels that the panel's
outputs read. Outputs are numbered along the whole plane, so a vector of them may cross the end of a
row; then, and at the image's edges, its loads are masked, one row after the other.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from crossdock.devices.cpu_llvm import host_features
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_rows import RowReader, Words, register_lanes
from crossdock.kernels.cpu_vector import Value, Vector

UNROLLED = 7
"""Windows of at most this width are unrolled."""

WORDS = (
    "out", "in", "filter", "bias", "pack", "residual", "channels", "height", "width", "out_width",
    "plane_out", "kh", "kw", "sh", "sw", "dh", "dw", "top", "left", "outputs", "groups",
    "vectors", "panels", "shares", "share", "parts", "part_rows", "block", "blocks", "biased",
)  # fmt: skip
POINTERS = 6
SIGNATURE = "ptr %args, ptr %image, ptr %panel, i64 %pixel, i64 %vectors, i64 %begin, i64 %end"
"""Words of the kernel; the group's image; the panel; its first output and number of vectors; the
channels."""


@dataclass(frozen=True)
class TileShape:
    """A register tile: ``rows`` output channels by ``vectors`` vectors of ``lanes`` pixels.

    ``taps`` is how many a block has: its panel of 24 KiB fits the first-level cache.
    """

    lanes: int
    rows: int
    vectors: int
    taps: int

    @property
    def wide(self) -> int:
        """Pixels of a panel."""
        return self.lanes * self.vectors

    def __str__(self) -> str:
        return f"{self.rows}x{self.vectors}x{self.lanes} {self.taps}"


@functools.cache
def tile_shape() -> TileShape:
    """The tile for this processor: sums, a column and a broadcast weight fill its registers."""
    lanes = register_lanes()
    many = bool(host_features() & {"avx512f", "neon"})  # 32 registers, else 16
    return TileShape(lanes, 8 if many else 4, 3, 2048 // lanes)


class PackWriter:
    """Writes the packing function for a class of stride and a width of the window.

    ``stride`` is 1, 2 or 0 for any; ``width`` is the window's where it is unrolled, else 0;
    ``point`` says that the window is one pixel and every output reads its own.
    """

    def __init__(self, code: Code, shape: TileShape, stride: int, width: int, point: bool) -> None:
        self.code = code
        self.vectors = shape.vectors
        self.lanes = lanes = shape.lanes
        self.wide = shape.wide
        self.width = width
        self.point = point
        self.vector = Vector(code, lanes)
        self.kind = f"<{lanes} x float>"
        self.w = Words(code, WORDS, POINTERS)
        self.reader = RowReader(code, self.vector, self.w["width"], stride, self.w["sw"])
        self.plane = code.mul(self.w["height"], self.w["width"])

    def write(self) -> None:
        """Append the whole function."""
        code = self.code
        if self.point:
            whole = code.equal("%vectors", self.vectors)
            end = code.add("%pixel", self.wide)
            whole = code.both(whole, code.let(f"icmp sle i64 {end}, {self.w['plane_out']}"))
            with code.when(whole):
                self.points()
            with code.when(code.negate(whole)):
                self.each_vector()
            return
        self.each_vector()

    def points(self) -> None:
        """A whole panel of a window of one pixel: rows of all vectors at once."""
        code = self.code
        start = code.add(code.mul("%begin", self.plane), "%pixel")
        first = code.at("%image", "float", start)
        carried = [("ptr", first), ("ptr", "%panel")]
        with code.loop("%begin", "%end", 1, carried) as loop:
            source, target = loop.values
            row = [
                code.let(
                    f"load {self.kind}, ptr {code.at(source, 'float', j * self.lanes)}, align 4"
                )
                for j in range(self.vectors)
            ]
            for j, value in enumerate(row):
                self.put(value, code.at(target, "float", j * self.lanes))
            loop.next = [code.at(source, "float", self.plane), code.at(target, "float", self.wide)]

    def each_vector(self) -> None:
        """Vector by vector: plain loads where all pixels are there, else masked ones."""
        code, w = self.code, self.w
        with code.loop(0, "%vectors") as vectors:
            j = code.mul(vectors.index, self.lanes)
            column = code.at("%panel", "float", j)
            pixel = code.add("%pixel", j)
            y, x = code.div(pixel, w["out_width"]), code.rem(pixel, w["out_width"])
            y0 = code.sub(code.mul(y, w["sh"]), w["top"])
            x0 = code.sub(code.mul(x, w["sw"]), w["left"])
            inside = self.inside(x, y0, x0)
            with code.when(inside):
                self.plain(column, y0, x0)
            with code.when(code.negate(inside)):
                self.crossing(column, pixel, y, x)

    def inside(self, x: str, y0: str, x0: str) -> str:
        """i1: the vector stays in one row of outputs, and its window in the image."""
        code, w = self.code, self.w
        one_row = code.let(f"icmp sle i64 {code.add(x, self.lanes)}, {w['out_width']}")
        far = code.add(x0, code.mul(code.sub(w["kw"], 1), w["dw"]))
        columns = code.both(self.reader.inside(x0), self.reader.inside(far))
        bottom = code.add(y0, code.mul(code.sub(w["kh"], 1), w["dh"]))
        rows = code.both(
            code.let(f"icmp sge i64 {y0}, 0"), code.let(f"icmp slt i64 {bottom}, {w['height']}")
        )
        return code.both(one_row, code.both(columns, rows))

    def plain(self, column: str, y0: str, x0: str) -> None:
        """Load every tap of every channel."""
        code, w = self.code, self.w
        corner = code.add(code.mul(y0, w["width"]), x0)
        start = code.add(code.mul("%begin", self.plane), corner)
        down = code.mul(w["dh"], w["width"])
        taps = code.mul(w["kw"], self.wide)
        carried = [("ptr", code.at("%image", "float", start)), ("ptr", column)]
        with code.loop("%begin", "%end", 1, carried) as channels:
            source, target = channels.values
            again = [("ptr", source), ("ptr", target)]
            with code.loop(0, w["kh"], 1, again) as rows:
                row, to = rows.values
                if self.width:
                    for k in range(self.width):
                        self.copy(row, code.mul(w["dw"], k), code.at(to, "float", k * self.wide))
                else:
                    with code.loop(0, w["kw"]) as loop:
                        at = code.at(to, "float", code.mul(loop.index, self.wide))
                        self.copy(row, code.mul(loop.index, w["dw"]), at)
                rows.next = [code.at(row, "float", down), code.at(to, "float", taps)]
            channels.next = [code.at(source, "float", self.plane), rows.values[1]]

    def copy(self, row: str, first: str, target: str) -> None:
        """Load a vector of a row and store it in the panel."""
        self.put(self.reader.load(row, first).name, target)

    def put(self, value: str, target: str) -> None:
        """Store a vector in the panel."""
        self.code.do(f"store {self.kind} {value}, ptr {target}, align 4")

    def crossing(self, column: str, pixel: str, y: str, x: str) -> None:
        """A vector over several rows of outputs, or at an edge: one pass for each row."""
        code, w = self.code, self.w
        count = code.least(self.lanes, code.sub(w["plane_out"], pixel))
        last = code.add(x, code.sub(count, 1))
        passes = code.add(code.div(last, w["out_width"]), 1)
        with code.loop(0, passes) as rows:
            before = code.mul(rows.index, w["out_width"])
            low = code.sub(before, x)
            high = code.least(code.add(low, w["out_width"]), count)
            y0 = code.sub(code.mul(code.add(y, rows.index), w["sh"]), w["top"])
            x0 = code.sub(code.mul(code.sub(x, before), w["sw"]), w["left"])
            later = code.let(f"icmp ne i64 {rows.index}, 0")
            keep = self.flags(later, self.lanes)
            self.one_row(column, y0, x0, self.reader.lanes_between(low, high), keep)

    def flags(self, flag: str, count: int) -> str:
        """All ones where an i1 holds, as integers of a float's size."""
        word = self.code.let(f"sext i1 {flag} to i32")
        return Vector(self.code, count).splat(Value(word, "int32")).name

    def one_row(self, column: str, y0: str, x0: str, lanes: str, keep: str) -> None:
        """The lanes of one row of outputs, into what earlier rows left in the panel."""
        code, w = self.code, self.w
        bits = f"<{self.reader.reach} x i1>"
        firsts = [code.add(x0, code.mul(w["dw"], k)) for k in range(self.width)]
        masks = [code.let(f"and {bits} {lanes}, {self.reader.mask(ix)}") for ix in firsts]
        with code.loop("%begin", "%end", 1, [("ptr", column)]) as channels:
            image = code.at("%image", "float", code.mul(channels.index, self.plane))
            with code.loop(0, w["kh"], 1, [("ptr", channels.values[0])]) as rows:
                iy = code.add(y0, code.mul(rows.index, w["dh"]))
                row = code.at(image, "float", code.mul(iy, w["width"]))
                there = code.let(f"icmp ult i64 {iy}, {w['height']}")
                valid = Vector(code, self.reader.reach).splat(Value(there, "mask")).name
                to = rows.values[0]
                for k, (ix, mask) in enumerate(zip(firsts, masks, strict=True)):
                    self.merge(row, ix, (mask, valid), keep, code.at(to, "float", k * self.wide))
                if not self.width:
                    with code.loop(0, w["kw"]) as loop:
                        ix = code.add(x0, code.mul(loop.index, w["dw"]))
                        mask = code.let(f"and {bits} {lanes}, {self.reader.mask(ix)}")
                        at = code.at(to, "float", code.mul(loop.index, self.wide))
                        self.merge(row, ix, (mask, valid), keep, at)
                rows.next = [code.at(to, "float", code.mul(w["kw"], self.wide))]
            channels.next = [rows.values[0]]

    def merge(self, row: str, ix: str, masks: tuple[str, str], keep: str, target: str) -> None:
        """Load the masked pixels; lanes outside read 0, and keep what is there in later passes."""
        code, ints = self.code, f"<{self.lanes} x i32>"
        both = code.let(f"and <{self.reader.reach} x i1> {masks[0]}, {masks[1]}")
        value = self.vector.bitcast(self.reader.load_masked(row, ix, both), "int32").name
        held = code.let(f"load {ints}, ptr {target}, align 4")
        kept = code.let(f"and {ints} {held}, {keep}")
        code.do(f"store {ints} {code.let(f'or {ints} {value}, {kept}')}, ptr {target}, align 4")
