"""The product of the convolution of small images: output channels are the lanes of vectors.

See ``cpu_conv_small`` for the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.kernels.cpu_conv_pack import POINTERS, TileShape
from crossdock.kernels.cpu_conv_pack import WORDS as PACK_WORDS
from crossdock.kernels.cpu_epilogue import Epilogue
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_rows import RowReader, Words
from crossdock.kernels.cpu_vector import Value, Vector

WORDS = (*PACK_WORDS, "scratch", "item_floats", "items", "jobs", "tiles", "part_tiles", "taps")
UNROLL = 2
LINE = 16  # elements of a cache line


@dataclass(frozen=True)
class Form:
    """What is compiled.

    ``shape`` says how pixels are packed; a register tile has ``vectors`` vectors of channels by up
    to ``pixels`` pixels; a block has ``taps`` taps.
    """

    shape: TileShape
    vectors: int
    pixels: int
    taps: int
    epilogue: Epilogue

    @property
    def channels(self) -> int:
        """Output channels of a register tile."""
        return self.vectors * self.shape.lanes

    def __str__(self) -> str:
        return f"{self.shape} {self.vectors}x{self.pixels} {self.taps} {self.epilogue}"


@dataclass(frozen=True)
class _Job:
    """Names of a job's operands: images and results of a group, its pixels, its channels."""

    filters: str
    bias: str
    result: str
    pixel: str
    count: str
    low: str
    high: str


class SmallWriter:
    """Writes the kernel of one form."""

    def __init__(self, code: Code, form: Form) -> None:
        self.code, self.form = code, form
        self.lanes = lanes = form.shape.lanes
        self.wide = form.shape.wide
        self.vector = Vector(code, lanes)
        self.kind = f"<{lanes} x float>"
        self.w = Words(code, WORDS, POINTERS)
        self.panel = code.let(f"inttoptr i64 {self.w['scratch']} to ptr")
        self.plane = code.mul(self.w["height"], self.w["width"])
        self.sums = code.stack("float", (self.wide + lanes) * form.channels)

    def write(self) -> None:
        """Append the whole function: for each job, pack the pixels, then tile by tile."""
        code, w = self.code, self.w
        with code.loop("%begin", "%end") as items:
            panel = code.at(self.panel, "float", code.mul(items.index, w["item_floats"]))
            first = code.div(code.mul(items.index, w["jobs"]), w["items"])
            last = code.div(code.mul(code.add(items.index, 1), w["jobs"]), w["items"])
            with code.loop(first, last) as jobs:
                job = self.job(jobs.index, panel)
                with code.loop(job.low, job.high) as tiles:
                    self.tile(job, panel, tiles.index)

    def job(self, index: str, panel: str) -> _Job:
        """Decode a job and pack its pixels."""
        code, w = self.code, self.w
        part, rest = code.rem(index, w["parts"]), code.div(index, w["parts"])
        share, rest = code.rem(rest, w["panels"]), code.div(rest, w["panels"])
        group = code.rem(rest, w["groups"])
        image = code.at(w["in"], "float", code.mul(code.mul(rest, w["channels"]), self.plane))
        result = code.mul(code.mul(rest, w["outputs"]), w["plane_out"])
        first = code.div(code.mul(share, w["vectors"]), w["panels"])
        after = code.div(code.mul(code.add(share, 1), w["vectors"]), w["panels"])
        vectors, pixel = code.sub(after, first), code.mul(first, self.lanes)
        given = f"ptr %args, ptr {image}, ptr {panel}, i64 {pixel}, i64 {vectors}"
        code.do(f"call void {w['pack']}({given}, i64 0, i64 {w['channels']})")
        size = code.mul(code.mul(w["tiles"], w["taps"]), self.form.channels)
        low = code.mul(part, w["part_tiles"])
        return _Job(
            code.at(w["filter"], "float", code.mul(group, size)),
            code.at(w["bias"], "float", code.mul(group, w["outputs"])),
            code.at(w["out"], "float", result),
            pixel,
            code.least(code.mul(vectors, self.lanes), code.sub(w["plane_out"], pixel)),
            low,
            code.least(code.add(low, w["part_tiles"]), w["tiles"]),
        )

    def tile(self, job: _Job, panel: str, index: str) -> None:
        """All pixels of one tile of channels: block by block of taps, then turned and stored."""
        code, w, form = self.code, self.w, self.form
        filters = code.mul(code.mul(index, w["taps"]), form.channels)
        filters = code.at(job.filters, "float", filters)
        pieces = code.div(code.add(job.count, form.pixels - 1), form.pixels)
        with code.loop(0, w["taps"], form.taps) as blocks:
            stop = code.least(code.add(blocks.index, form.taps), w["taps"])
            with code.loop(0, pieces) as piece:
                begin = code.div(code.mul(piece.index, job.count), pieces)
                end = code.div(code.mul(code.add(piece.index, 1), job.count), pieces)
                count = code.sub(end, begin)
                for n in range(1, form.pixels + 1):
                    with code.when(code.equal(count, n)):
                        self.multiply(filters, panel, (begin, n), (blocks.index, stop), piece.index)
        channel = code.mul(index, form.channels)
        with code.loop(0, job.count, self.lanes) as pixels, code.loop(0, form.vectors) as vectors:
            at = code.add(channel, code.mul(vectors.index, self.lanes))
            self.turn(job, at, vectors.index, pixels.index)

    def multiply(
        self,
        filters: str,
        panel: str,
        pixels: tuple[str, int],
        taps: tuple[str, str],
        piece: str,
    ) -> None:
        """Add a block of taps to the sums of ``n`` pixels from ``begin`` on.

        Meanwhile the weights of the next block come closer: each piece of pixels fetches some.
        """
        code, form, (begin, n), (start, stop) = self.code, self.form, pixels, taps
        sums = code.at(self.sums, "float", code.mul(begin, form.channels))
        a = code.at(filters, "float", code.mul(start, form.channels))
        b = code.at(panel, "float", code.add(code.mul(start, self.wide), begin))
        cells = [code.at(sums, "float", i * self.lanes) for i in range(n * form.vectors)]
        fresh = code.equal(start, 0)
        zero = self.vector.const("float32", 0.0).name
        held = [self.vector.load(cell, "float32").name for cell in cells]
        held = [code.select(fresh, zero, name, self.kind) for name in held]
        ahead = code.add(code.mul(piece, form.taps // UNROLL * LINE), form.taps * form.channels)
        ahead = code.at(a, "float", ahead)
        carried = [("ptr", a), ("ptr", b), ("ptr", ahead)] + [(self.kind, name) for name in held]
        count = code.sub(stop, start)
        with code.loop(0, code.sub(count, UNROLL - 1), UNROLL, carried) as main:
            main.next = self.advance(main.values, UNROLL, n)
        again = list(zip([k for k, _ in carried], main.values, strict=True))
        with code.loop(code.let(f"and i64 {count}, -{UNROLL}"), count, 1, again) as rest:
            rest.next = self.advance(rest.values, 1, n)
        for cell, total in zip(cells, rest.values[3:], strict=True):
            self.vector.store(Value(total, "float32"), cell, "float32")

    def advance(self, values: tuple[str, ...], steps: int, n: int) -> list[str]:
        """``steps`` taps: a rank-one update of the tile for each."""
        code, v, form, (a, b, ahead, *tile) = self.code, self.vector, self.form, values
        fn = code.declare("llvm.prefetch.p0", "void @(ptr, i32, i32, i32)")
        code.do(f"call void {fn}(ptr {ahead}, i32 0, i32 2, i32 1)")
        for step in range(steps):
            weights = [
                v.load(code.at(a, "float", step * form.channels + j * self.lanes), "float32")
                for j in range(form.vectors)
            ]
            for p in range(n):
                one = code.load("float", code.at(b, "float", step * self.wide + p))
                pixel = v.splat(Value(one, "float32"))
                for j in range(form.vectors):
                    at = p * form.vectors + j
                    tile[at] = v.fma(weights[j], pixel, Value(tile[at], "float32")).name
        return [
            code.at(a, "float", steps * form.channels),
            code.at(b, "float", steps * self.wide),
            code.at(ahead, "float", LINE),
            *tile,
        ]

    def turn(self, job: _Job, channel: str, vector: str, pixel: str) -> None:
        """A square of sums: turn it, so that pixels are lanes; bias, what follows, store."""
        code, w, v = self.code, self.w, self.vector
        first = code.add(code.mul(pixel, self.form.channels), code.mul(vector, self.lanes))
        square = code.at(self.sums, "float", first)
        rows = [
            v.load(code.at(square, "float", i * self.form.channels), "float32").name
            for i in range(self.lanes)
        ]
        left = code.sub(job.count, pixel)
        mask = RowReader(code, v, left, 1, "1").mask(0)
        fn = code.declare(
            f"llvm.masked.store.v{self.lanes}f32.p0",
            f"void @({self.kind}, ptr, i32, <{self.lanes} x i1>)",
        )
        start = code.let(f"ptrtoint ptr {w['out']} to i64")
        biased = code.equal(w["biased"], 1)
        for r, name in enumerate(self.turned(rows)):
            row = code.add(channel, r)
            with code.when(code.less(row, w["outputs"])):
                one = code.load("float", code.at(job.bias, "float", row))
                bias = v.splat(Value(code.select(biased, one, "0.0", "float"), "float32"))
                value = v.arith("+", Value(name, "float32"), bias)
                offset = code.add(code.mul(row, w["plane_out"]), code.add(job.pixel, pixel))
                at = code.at(job.result, "float", offset)
                beside = code.sub(code.let(f"ptrtoint ptr {at} to i64"), start)
                other = code.at(w["residual"], "i8", beside)
                made = self.form.epilogue.apply(v, value, other, left)
                given = f"{self.kind} {made.name}, ptr {at}, i32 4, <{self.lanes} x i1> {mask}"
                code.do(f"call void {fn}({given})")

    def turned(self, rows: list[str]) -> list[str]:
        """The transpose of a square: blocks off the diagonal are swapped, ever smaller ones."""
        size = self.lanes // 2
        while size:
            lanes = range(self.lanes)
            upper = [k if not k & size else self.lanes + k - size for k in lanes]
            lower = [k + size if not k & size else self.lanes + k for k in lanes]
            made = list(rows)
            for i in range(self.lanes):
                if not i & size:
                    made[i] = self.picked(rows[i], rows[i + size], upper)
                    made[i + size] = self.picked(rows[i], rows[i + size], lower)
            rows, size = made, size // 2
        return rows

    def picked(self, a: str, b: str, picks: list[int]) -> str:
        """Lanes of two vectors."""
        text = ", ".join(f"i32 {p}" for p in picks)
        return self.code.let(
            f"shufflevector {self.kind} {a}, {self.kind} {b}, <{len(picks)} x i32> <{text}>"
        )
