"""The stages of the Winograd convolution: tiles of the image, products, tiles of the result.

See ``cpu_winograd`` for the algorithm. One item does all stages for a part of the tile rows and of
the output channels, in scratch memory of its own that stays in the second-level cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.kernels.cpu_epilogue import Epilogue
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_rows import RowReader, Words, store_first
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.cpu_winograd_math import Filtering, emit_product

WORDS = (
    "out", "in", "filter", "bias", "residual", "scratch", "channels", "height", "width",
    "out_height", "out_width", "top", "left", "outputs", "groups", "tiles_x", "tiles_y",
    "tile_rows", "units", "parts", "part_rows", "chunk", "items", "jobs",
    "span", "item_floats", "biased",
)  # fmt: skip
POINTERS = 6
UNROLL = 4
LINE = 16  # elements of a cache line


@dataclass(frozen=True)
class Form:
    """What is compiled: lanes, the register tile, the filtering, what follows."""

    lanes: int
    rows: int
    vectors: int
    m: int
    r: int
    epilogue: Epilogue

    def __str__(self) -> str:
        return f"F({self.m},{self.r}) {self.rows}x{self.vectors}x{self.lanes} {self.epilogue}"


@dataclass
class _Job:
    """One part of an item, as SSA names: tile rows [first, last) and a range of channels."""

    group: str
    first: str
    count: str
    vectors: str
    low: str
    high: str


class StagesWriter:
    """Writes the kernel of one form."""

    def __init__(self, code: Code, form: Form, f: Filtering) -> None:
        self.code, self.form, self.f = code, form, f
        self.lanes = form.lanes
        self.vector = Vector(code, form.lanes)
        self.kind = f"<{form.lanes} x float>"
        self.w = w = Words(code, WORDS, POINTERS)
        self.copies = -(-f.n // f.m)
        self.reader = RowReader(code, self.vector, w["width"], 1, "1")
        self.plane = code.mul(w["height"], w["width"])
        self.plane_out = code.mul(w["out_height"], w["out_width"])
        # Sizes of the item's buffers in elements; a line more keeps planes out of one cache set.
        self.pitch = code.add(code.mul(w["span"], f.m), 2 * self.lanes)
        self.image_step = code.add(code.mul(w["channels"], w["span"]), self.lanes)
        self.result_step = code.add(code.mul(w["chunk"], w["span"]), self.lanes)
        tiles = code.div(code.add(w["outputs"], form.rows - 1), form.rows)
        self.ahead = code.mul(w["channels"], form.rows)
        self.padded = code.mul(tiles, form.rows)

    def write(self) -> None:
        """Append the whole function: for each item, each of its jobs."""
        code, w = self.code, self.w
        with code.loop("%begin", "%end") as items:
            self.buffers(code.at(w["scratch"], "float", code.mul(items.index, w["item_floats"])))
            first = code.div(code.mul(items.index, w["jobs"]), w["items"])
            last = code.div(code.mul(code.add(items.index, 1), w["jobs"]), w["items"])
            with code.loop(first, last) as jobs:
                job = self.job(jobs.index)
                self.transform_image(job)
                with code.loop(job.low, job.high, w["chunk"]) as chunks:
                    end = code.least(code.add(chunks.index, w["chunk"]), job.high)
                    self.multiply(job, chunks.index, end)
                    self.transform_result(job, chunks.index, code.least(end, w["outputs"]))

    def buffers(self, memory: str) -> None:
        """Lay out an item's scratch memory."""
        code, n = self.code, self.f.n
        self.lines = memory
        self.image = code.at(memory, "float", code.mul(self.pitch, self.copies * n))
        self.result = code.at(self.image, "float", code.mul(self.image_step, n * n))
        self.pixels = code.at(self.result, "float", code.mul(self.result_step, n * n))

    def job(self, index: str) -> _Job:
        """Tile rows and output channels of a job."""
        code, w = self.code, self.w
        unit, rest = code.rem(index, w["units"]), code.div(index, w["units"])
        part, group = code.rem(rest, w["parts"]), code.div(rest, w["parts"])
        first = code.div(code.mul(unit, w["tile_rows"]), w["units"])
        after = code.div(code.mul(code.add(unit, 1), w["tile_rows"]), w["units"])
        count = code.sub(after, first)
        tiles = code.mul(count, w["tiles_x"])
        vectors = code.div(code.add(tiles, self.lanes - 1), self.lanes)
        low = code.mul(part, w["part_rows"])
        high = code.least(code.add(low, w["part_rows"]), self.padded)
        return _Job(group, first, count, vectors, low, high)

    # --- tiles of the image ---

    def transform_image(self, job: _Job) -> None:
        """B' d B for every channel of the group: along columns, then along rows.

        What fills the last vector of tiles is 0: whatever the memory held before could be numbers
        that are slow to compute with.
        """
        code, w = self.code, self.w
        zero = self.vector.const("float32", 0.0)
        with code.loop(0, code.mul(self.pitch, self.copies * self.f.n), self.lanes) as cells:
            self.vector.store(zero, code.at(self.lines, "float", cells.index), "float32")
        with code.loop(0, w["channels"]) as channels:
            with code.loop(0, job.count) as rows:
                self.down(job, channels.index, rows.index)
            with code.loop(0, job.vectors) as groups:
                self.across(channels.index, groups.index)

    def down(self, job: _Job, channel: str, row: str) -> None:
        """One row of tiles, whole lines of pixels at a time, into the copies of the lines."""
        code, w, f = self.code, self.w, self.f
        at = code.add(job.first, row)
        batch, ty = code.div(at, w["tiles_y"]), code.rem(at, w["tiles_y"])
        plane = code.add(code.mul(code.mul(batch, w["groups"]), w["channels"]), channel)
        plane = code.add(plane, code.mul(job.group, w["channels"]))
        image = code.at(w["in"], "float", code.mul(plane, self.plane))
        y0 = code.sub(code.mul(ty, f.m), w["top"])
        ys = [code.add(y0, i) for i in range(f.n)]
        there = [code.let(f"icmp ult i64 {y}, {w['height']}") for y in ys]
        lines = [code.at(image, "float", code.mul(y, w["width"])) for y in ys]
        tiles = code.mul(code.mul(row, w["tiles_x"]), f.m)
        reach = code.add(code.mul(w["tiles_x"], f.m), f.n - f.m)
        bits = f"<{self.lanes} x i1>"
        with code.loop(0, reach, self.lanes) as columns:
            x0 = code.sub(columns.index, w["left"])
            mask = self.reader.mask(x0)
            pixels = []
            for line, valid in zip(lines, there, strict=True):
                both = code.let(f"select i1 {valid}, {bits} {mask}, {bits} zeroinitializer")
                pixels.append(self.reader.load_masked(line, x0, both))
            made = emit_product(self.vector, f.image, pixels)
            position = code.add(tiles, columns.index)
            for copy in range(self.copies):
                self.keep_lines(made, copy, position, columns.index)

    def keep_lines(self, made: list[Value], copy: int, position: str, column: str) -> None:
        """Store transformed lines, the first pixels of the copy's tiles at multiples of m."""
        code, shift = self.code, copy * self.f.m
        at = code.at(self.lines, "float", code.sub(position, shift))
        at = code.at(at, "float", code.mul(self.pitch, copy * self.f.n))
        mask = self.reader.lanes_between(code.sub(shift, column), self.lanes) if copy else None
        for i, value in enumerate(made):
            line = code.at(at, "float", code.mul(self.pitch, i))
            if mask is None:
                self.vector.store(value, line, "float32")
            else:
                fn = code.declare(
                    f"llvm.masked.store.v{self.lanes}f32.p0",
                    f"void @({self.kind}, ptr, i32, <{self.lanes} x i1>)",
                )
                given = f"{self.kind} {value.name}, ptr {line}, i32 4, <{self.lanes} x i1> {mask}"
                code.do(f"call void {fn}({given})")

    def across(self, channel: str, group: str) -> None:
        """Tiles of one vector: take the lines apart by phase, transform, store by element."""
        code, w, f = self.code, self.w, self.f
        start = code.mul(group, f.m * self.lanes)
        target = code.add(code.mul(channel, w["span"]), code.mul(group, self.lanes))
        target = code.at(self.image, "float", target)
        for i in range(f.n):
            phases: list[Value] = []
            for copy in range(self.copies):
                offset = code.add(code.mul(self.pitch, copy * f.n + i), start)
                line = code.at(self.lines, "float", offset)
                phases += self.taken_apart(line, min(f.m, f.n - copy * f.m))
            for j, value in enumerate(emit_product(self.vector, f.image, phases)):
                step = code.mul(self.image_step, i * f.n + j)
                self.vector.store(value, code.at(target, "float", step), "float32")

    def taken_apart(self, line: str, wanted: int) -> list[Value]:
        """Pixels p, p + m, p + 2 m ... of m vectors, for the first ``wanted`` p."""
        m, lanes = self.f.m, self.lanes
        parts = [
            self.vector.load(self.code.at(line, "float", q * lanes), "float32").name
            for q in range(m)
        ]
        if m == 2:
            picks = [[2 * t + p for t in range(lanes)] for p in range(wanted)]
            return [Value(self.shuffled(parts[0], parts[1], p), "float32") for p in picks]
        half, made = lanes // 2, []
        for p in range(0, wanted, 2):  # two phases of a pair of vectors in the halves of one
            both = [4 * t + p + h for h in (0, 1) for t in range(half)]
            pair = [self.shuffled(parts[q], parts[q + 1], both) for q in (0, 2)]
            for side in (0, half):
                ends = [*range(side, side + half), *range(lanes + side, lanes + side + half)]
                made.append(Value(self.shuffled(pair[0], pair[1], ends), "float32"))
        return made[:wanted]

    def shuffled(self, a: str, b: str, picks: list[int]) -> str:
        """Lanes of two vectors."""
        text = ", ".join(f"i32 {p}" for p in picks)
        return self.code.let(
            f"shufflevector {self.kind} {a}, {self.kind} {b}, <{len(picks)} x i32> <{text}>"
        )

    # --- products ---

    def multiply(self, job: _Job, low: str, high: str) -> None:
        """For every element of a tile: the filter's channels [low, high) times the image's."""
        code, w, rows = self.code, self.w, self.form.rows
        panels = code.div(code.add(job.vectors, self.form.vectors - 1), self.form.vectors)
        n2 = self.f.n * self.f.n
        filters = code.mul(code.add(code.mul(job.group, self.padded), low), w["channels"])
        filters = code.at(w["filter"], "float", code.mul(filters, n2))
        filter_step = code.mul(code.sub(high, low), w["channels"])
        with code.loop(0, n2) as elements:
            image = code.at(self.image, "float", code.mul(elements.index, self.image_step))
            result = code.at(self.result, "float", code.mul(elements.index, self.result_step))
            part = code.at(filters, "float", code.mul(elements.index, filter_step))
            with code.loop(low, high, rows) as tiles, code.loop(0, panels) as panel:
                begin = code.div(code.mul(panel.index, job.vectors), panels)
                end = code.div(code.mul(code.add(panel.index, 1), job.vectors), panels)
                count, column = code.sub(end, begin), code.mul(begin, self.lanes)
                a = code.mul(code.sub(tiles.index, low), w["channels"])
                a = code.at(part, "float", a)
                b = code.at(image, "float", column)
                at = code.add(code.mul(code.sub(tiles.index, low), w["span"]), column)
                c = code.at(result, "float", at)
                for vectors in range(1, self.form.vectors + 1):
                    with code.when(code.equal(count, vectors)):
                        self.tile(a, b, c, vectors)

    def tile(self, a: str, b: str, c: str, vectors: int) -> None:
        """A register tile of the product over all channels."""
        code, w, rows = self.code, self.w, self.form.rows
        zero = self.vector.const("float32", 0.0).name
        far = code.at(a, "float", self.ahead)
        carried = [("ptr", a), ("ptr", b), ("ptr", far)] + [(self.kind, zero)] * (rows * vectors)
        whole = code.sub(w["channels"], UNROLL - 1)
        with code.loop(0, whole, UNROLL, carried) as main:
            main.next = self.advance(main.values, UNROLL, vectors)
        rest = code.let(f"and i64 {w['channels']}, -{UNROLL}")
        again = list(zip([k for k, _ in carried], main.values, strict=True))
        with code.loop(rest, w["channels"], 1, again) as tail:
            tail.next = self.advance(tail.values, 1, vectors)
        for i, total in enumerate(tail.values[3:]):
            line = code.at(c, "float", code.mul(w["span"], i // vectors))
            at = code.at(line, "float", i % vectors * self.lanes)
            self.vector.store(Value(total, "float32"), at, "float32")

    def advance(self, values: tuple[str, ...], steps: int, vectors: int) -> list[str]:
        """``steps`` channels: a rank-one update of the tile for each.

        Meanwhile the filter of the next tile comes closer, in several streams: the processor
        follows each, and so has more of them under way.
        """
        code, v, (a, b, far, *tile) = self.code, self.vector, values
        fetch = code.declare("llvm.prefetch.p0", "void @(ptr, i32, i32, i32)")
        streams = steps * self.form.rows // LINE
        for j in range(streams):
            ahead = code.at(far, "float", code.mul(code.div(self.ahead, streams), j))
            code.do(f"call void {fetch}(ptr {ahead}, i32 0, i32 2, i32 1)")
        for step in range(steps):
            columns = [
                v.load(code.at(b, "float", j * self.lanes), "float32") for j in range(vectors)
            ]
            for r in range(self.form.rows):
                one = code.load("float", code.at(a, "float", step * self.form.rows + r))
                weight = v.splat(Value(one, "float32"))
                for j in range(vectors):
                    at = r * vectors + j
                    tile[at] = v.fma(columns[j], weight, Value(tile[at], "float32")).name
            b = code.at(b, "float", self.w["span"])
        return [code.at(a, "float", steps * self.form.rows), b, code.at(far, "float", LINE), *tile]

    # --- tiles of the result ---

    def transform_result(self, job: _Job, low: str, high: str) -> None:
        """A' m A for the output channels [low, high), then their lines of pixels."""
        code, w = self.code, self.w
        with code.loop(low, high) as outputs:
            channel = code.add(code.mul(job.group, w["outputs"]), outputs.index)
            there = code.equal(w["biased"], 1)
            one = code.load("float", code.at(w["bias"], "float", channel))
            bias = self.vector.splat(Value(code.select(there, one, "0.0", "float"), "float32"))
            line = code.mul(code.sub(outputs.index, low), w["span"])
            with code.loop(0, job.vectors) as groups:
                at = code.add(line, code.mul(groups.index, self.lanes))
                self.result_tiles(code.at(self.result, "float", at), groups.index, bias)
            with code.loop(0, job.count) as rows:
                self.result_lines(job, channel, rows.index)

    def result_tiles(self, source: str, group: str, bias: Value) -> None:
        """One vector of tiles: transform, add the bias, put the pixels in order."""
        code, v, f = self.code, self.vector, self.f
        columns = []
        for j in range(f.n):
            taken = [
                v.load(code.at(source, "float", code.mul(self.result_step, i * f.n + j)), "float32")
                for i in range(f.n)
            ]
            columns.append(emit_product(v, f.result, taken))
        for i in range(f.m):
            made = emit_product(v, f.result, [column[i] for column in columns])
            ordered = self.in_order([v.arith("+", value, bias).name for value in made])
            offset = code.add(code.mul(self.pitch, i), code.mul(group, f.m * self.lanes))
            line = code.at(self.pixels, "float", offset)
            for q, name in enumerate(ordered):
                v.store(Value(name, "float32"), code.at(line, "float", q * self.lanes), "float32")

    def in_order(self, phases: list[str]) -> list[str]:
        """The inverse of ``taken_apart``: pixels of neighbouring tiles one after the other."""
        lanes, half, quarter = self.lanes, self.lanes // 2, self.lanes // 4
        if len(phases) == 2:
            first, second = phases
            ends = [[p * lanes + t for t in range(s, s + half) for p in (0, 1)] for s in (0, half)]
            return [self.shuffled(first, second, picks) for picks in ends]
        halves = [[q * lanes + s + t for q in (0, 1) for t in range(half)] for s in (0, half)]
        sides = [[self.shuffled(phases[p], phases[p + 1], h) for p in (0, 2)] for h in halves]
        ends = [
            [p // 2 * lanes + p % 2 * half + t for t in range(s, s + quarter) for p in range(4)]
            for s in (0, quarter)
        ]
        return [self.shuffled(first, second, picks) for first, second in sides for picks in ends]

    def result_lines(self, job: _Job, channel: str, row: str) -> None:
        """Copy the lines of one row of tiles that are in the result, with what follows."""
        code, w, f = self.code, self.w, self.f
        at = code.add(job.first, row)
        batch, ty = code.div(at, w["tiles_y"]), code.rem(at, w["tiles_y"])
        plane = code.add(code.mul(code.mul(batch, w["groups"]), w["outputs"]), channel)
        start = code.mul(plane, self.plane_out)
        source = code.mul(code.mul(row, w["tiles_x"]), f.m)
        y0 = code.mul(ty, f.m)
        count = code.least(f.m, code.sub(w["out_height"], y0))
        with code.loop(0, count) as lines:
            line = code.add(source, code.mul(self.pitch, lines.index))
            line = code.at(self.pixels, "float", line)
            target = code.add(start, code.mul(code.add(y0, lines.index), w["out_width"]))
            with code.loop(0, w["out_width"], self.lanes) as columns:
                value = self.vector.load(code.at(line, "float", columns.index), "float32")
                left = code.sub(w["out_width"], columns.index)
                self.put(value, code.add(target, columns.index), left)

    def put(self, value: Value, at: str, left: str) -> None:
        """Store up to a vector of pixels at an element of the result."""
        code, w = self.code, self.w
        whole = code.let(f"icmp sge i64 {left}, {self.lanes}")
        address = code.at(w["out"], "float", at)
        other = code.at(w["residual"], "float", at)
        with code.when(whole):
            made = self.form.epilogue.apply(self.vector, value, other, None)
            self.vector.store(made, address, "float32")
        with code.when(code.negate(whole)):
            made = self.form.epilogue.apply(self.vector, value, other, left)
            store_first(code, made, address, left, self.lanes)
