"""The register-tiled kernel of convolution on the host: packing of patches and products.

See ``cpu_conv`` for the algorithm and the meaning of the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_rows import RowReader, Words, store_first
from crossdock.kernels.cpu_vector import Value, Vector

ROWS = 4
VECTORS = 3
TAPS = 256  # taps in a block: a panel of 24 KiB with vectors of 32 bytes
SHARE = 4  # panels that an item may hold at once
UNROLL = 4

WORDS = (
    "out", "in", "filter", "bias", "channels", "height", "width", "out_width", "plane_out",
    "kw", "taps", "sh", "sw", "dh", "dw", "top", "left", "outputs", "groups", "row_vectors",
    "vectors", "panels", "shares", "share", "parts", "part_rows", "block", "blocks",
)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """Addresses: packed patches, where each vector's pixels go in a plane, how many they are."""

    data: str
    places: str
    counts: str


@dataclass(frozen=True)
class Tile:
    """A register tile: its first output channel, its panel, its number of vectors."""

    row: str
    panel: Panel
    n: int


class PanelWriter:
    """Writes the kernel for one vector width, class of stride, with or without a bias."""

    def __init__(self, code: Code, lanes: int, stride: int, bias: bool) -> None:
        self.code = code
        self.lanes = lanes
        self.stride = stride
        self.bias = bias
        self.wide = lanes * VECTORS
        self.vector = Vector(code, lanes)
        self.kind = f"<{lanes} x float>"
        self.w = Words(code, WORDS, 4)
        self.reader = RowReader(code, self.vector, self.w["width"], stride, self.w["sw"])
        self.plane = code.mul(self.w["height"], self.w["width"])
        tiles = code.div(code.add(self.w["outputs"], ROWS - 1), ROWS)
        self.padded = code.mul(tiles, ROWS)
        self.panels = code.stack("float", SHARE * TAPS * self.wide)
        self.places = code.stack("i64", SHARE * VECTORS)
        self.counts = code.stack("i64", SHARE * VECTORS)
        self.tile = code.stack(self.kind, ROWS * VECTORS)

    def write(self) -> None:
        """Append the whole function: for each item, for each block of taps, pack and multiply."""
        code, w = self.code, self.w
        with code.loop("%begin", "%end") as items:
            part, rest = code.rem(items.index, w["parts"]), code.div(items.index, w["parts"])
            share, rest = code.rem(rest, w["shares"]), code.div(rest, w["shares"])
            group = code.rem(rest, w["groups"])
            first = code.mul(share, w["share"])
            last = code.least(code.add(first, w["share"]), w["panels"])
            image = code.at(w["in"], "float", code.mul(code.mul(rest, w["channels"]), self.plane))
            out = code.mul(code.mul(rest, w["outputs"]), w["plane_out"])
            result = code.at(w["out"], "float", out)
            taps = code.mul(w["taps"], w["channels"])
            size = code.mul(self.padded, taps)
            filters = code.at(w["filter"], "float", code.mul(group, size))
            bias = code.at(w["bias"], "float", code.mul(group, w["outputs"]))
            low = code.mul(part, w["part_rows"])
            high = code.least(code.add(low, w["part_rows"]), w["outputs"])
            with code.loop(0, w["blocks"]) as blocks:
                start = code.mul(blocks.index, w["block"])
                stop = code.least(code.add(start, w["block"]), taps)
                with code.loop(first, last) as panels:
                    self.pack_panel(image, panels.index, first, start, stop)
                with (
                    code.loop(low, high, ROWS) as rows,
                    code.loop(first, last) as panels,
                ):
                    place = self.panel_at(panels.index, first)
                    count = code.sub(*reversed(self.span(panels.index)))
                    for n in range(1, VECTORS + 1):
                        with code.when(code.equal(count, n)):
                            tile = Tile(rows.index, place, n)
                            self.multiply(filters, bias, result, tile, start, stop)

    def span(self, panel: str) -> tuple[str, str]:
        """The vectors of a panel: all panels have nearly the same number."""
        code, w = self.code, self.w
        low = code.div(code.mul(panel, w["vectors"]), w["panels"])
        return low, code.div(code.mul(code.add(panel, 1), w["vectors"]), w["panels"])

    def panel_at(self, panel: str, first: str) -> Panel:
        """The memory of a panel, of the item whose first panel is ``first``."""
        code = self.code
        number = code.sub(panel, first)
        size = code.mul(number, VECTORS)
        return Panel(
            code.at(self.panels, "float", code.mul(number, TAPS * self.wide)),
            code.at(self.places, "i64", size),
            code.at(self.counts, "i64", size),
        )

    def pack_panel(self, image: str, panel: str, first: str, start: str, stop: str) -> None:
        """Pack every vector of a panel over one block of taps."""
        low, high = self.span(panel)
        place = self.panel_at(panel, first)
        with self.code.loop(low, high) as numbers:
            j = self.code.sub(numbers.index, low)
            self.pack(image, numbers.index, j, place, start, stop)

    # --- packing ---

    def pack(self, image: str, number: str, j: str, panel: Panel, start: str, stop: str) -> None:
        """Write vector ``number`` of the image's patches into column ``j`` of the panel."""
        code, w = self.code, self.w
        y, x = code.div(number, w["row_vectors"]), code.rem(number, w["row_vectors"])
        x = code.mul(x, self.lanes)
        code.store("i64", code.add(code.mul(y, w["out_width"]), x), self.slot(panel.places, j))
        left = code.least(self.lanes, code.sub(w["out_width"], x))
        code.store("i64", left, self.slot(panel.counts, j))
        y0 = code.sub(code.mul(y, w["sh"]), w["top"])
        x0 = code.sub(code.mul(x, w["sw"]), w["left"])
        channels = w["channels"]
        tap0 = code.div(start, channels)
        tap1 = code.div(code.add(stop, code.sub(channels, 1)), channels)
        ky0, kx0 = code.div(tap0, w["kw"]), code.rem(tap0, w["kw"])
        column = code.at(panel.data, "float", code.mul(j, self.lanes))
        carried = [("i64", ky0), ("i64", kx0)]
        with code.loop(tap0, tap1, carried=carried) as taps:
            ky, kx = taps.values
            iy = code.add(y0, code.mul(ky, w["dh"]))
            ix = code.add(x0, code.mul(kx, w["dw"]))
            base = code.mul(taps.index, channels)
            c0 = code.greatest(code.sub(start, base), 0)
            c1 = code.least(code.sub(stop, base), channels)
            target = code.at(
                column, "float", code.mul(code.sub(code.add(base, c0), start), self.wide)
            )
            self.pack_tap(image, iy, ix, c0, c1, target)
            over = code.add(kx, 1)
            full = code.equal(over, w["kw"])
            up = code.let(f"zext i1 {full} to i64")
            taps.next = [code.add(ky, up), code.select(full, 0, over)]

    def pack_tap(self, image: str, iy: str, ix: str, c0: str, c1: str, target: str) -> None:
        """One tap: its vector of pixels in channels ``c0`` to ``c1``."""
        code, w = self.code, self.w
        valid = code.let(f"icmp ult i64 {iy}, {w['height']}")
        inside = code.both(valid, self.reader.inside(ix))
        edge = code.both(valid, code.negate(inside))
        offset = code.add(code.mul(c0, self.plane), code.mul(iy, w["width"]))
        row = code.at(image, "float", offset)
        count = code.sub(c1, c0)
        with code.when(inside):
            self.pack_rows(row, count, target, lambda at: self.reader.load(at, ix))
        with code.when(edge):
            mask = self.reader.mask(ix)
            self.pack_rows(row, count, target, lambda at: self.reader.load_masked(at, ix, mask))
        with code.when(code.negate(valid)):
            zero = self.vector.const("float32", 0.0)
            self.pack_rows(row, count, target, lambda _: zero)

    def pack_rows(self, row: str, count: str, target: str, load: Any) -> None:
        """Load a vector from each of ``count`` planes and store it in the panel."""
        code = self.code
        with code.loop(0, count, carried=[("ptr", row), ("ptr", target)]) as loop:
            source, to = loop.values
            code.do(f"store {self.kind} {load(source).name}, ptr {to}, align 4")
            loop.next = [code.at(source, "float", self.plane), code.at(to, "float", self.wide)]

    def slot(self, array: str, j: str | int) -> str:
        """Address of an entry of ``places`` or ``counts``."""
        return self.code.at(array, "i64", j)

    # --- the register tile ---

    def multiply(
        self, filters: str, bias: str, result: str, tile: Tile, start: str, stop: str
    ) -> None:
        """Multiply a tile of ROWS outputs and ``n`` vectors over one block of taps."""
        code = self.code
        count = code.sub(stop, start)
        a = code.at(filters, "float", code.mul(start, self.padded))
        a = code.at(a, "float", code.mul(tile.row, count))
        zero = self.vector.const("float32", 0.0).name
        carried = [("ptr", a), ("ptr", tile.panel.data)] + [(self.kind, zero)] * (ROWS * tile.n)
        whole = code.sub(count, UNROLL - 1)
        with code.loop(0, whole, UNROLL, carried) as main:
            main.next = self.advance(main.values, UNROLL, tile.n)
        rest = code.let(f"and i64 {count}, -{UNROLL}")
        again = list(zip([k for k, _ in carried], main.values, strict=True))
        with code.loop(rest, count, 1, again) as tail:
            tail.next = self.advance(tail.values, 1, tile.n)
        self.finish(bias, result, tile, start, tail.values[2:])

    def advance(self, values: tuple[str, ...], steps: int, n: int) -> list[str]:
        """``steps`` taps: a rank-one update of the tile for each."""
        code, (a, b, *tile) = self.code, values
        for step in range(steps):
            columns = [
                Value(
                    code.let(
                        f"load {self.kind}, ptr "
                        f"{code.at(b, 'float', step * self.wide + j * self.lanes)}, align 4"
                    ),
                    "float32",
                )
                for j in range(n)
            ]
            for r in range(ROWS):
                one = code.let(f"load float, ptr {code.at(a, 'float', step * ROWS + r)}, align 4")
                weight = self.vector.splat(Value(one, "float32"))
                for j in range(n):
                    at = r * n + j
                    tile[at] = self.vector.fma(columns[j], weight, Value(tile[at], "float32")).name
        return [
            code.at(a, "float", steps * ROWS),
            code.at(b, "float", steps * self.wide),
            *tile,
        ]

    def finish(self, bias: str, result: str, tile: Tile, start: str, sums: tuple[str, ...]) -> None:
        """Add the tile to the bias (first block) or to what the result holds (later ones)."""
        code, w = self.code, self.w
        first = code.equal(start, 0)
        rows = code.least(ROWS, code.sub(w["outputs"], tile.row))
        full = code.equal(rows, ROWS)
        for j in range(tile.n):
            count = code.load("i64", self.slot(tile.panel.counts, j))
            full = code.both(full, code.equal(count, self.lanes))
        quick = code.both(first, full)
        with code.when(quick):
            self.store_full(bias, result, tile, sums)
        with code.when(code.negate(quick)):
            for i, total in enumerate(sums):
                code.store(self.kind, total, code.at(self.tile, self.kind, i))
            with code.loop(0, rows) as r, code.loop(0, tile.n) as column:
                at = code.add(code.mul(r.index, tile.n), column.index)
                value = code.load(self.kind, code.at(self.tile, self.kind, at))
                channel = code.add(tile.row, r.index)
                self.store_part(bias, result, channel, tile.panel, column.index, value, first)

    def offset_of(self, bias: str, row: str) -> Value:
        """The bias of an output channel in every lane."""
        if not self.bias:
            return self.vector.const("float32", 0.0)
        one = self.code.load("float", self.code.at(bias, "float", row))
        return self.vector.splat(Value(one, "float32"))

    def store_full(self, bias: str, result: str, tile: Tile, sums: tuple[str, ...]) -> None:
        """A whole tile of whole vectors, in the first block of taps."""
        code, n = self.code, tile.n
        places = [code.load("i64", self.slot(tile.panel.places, j)) for j in range(n)]
        for r in range(ROWS):
            channel = code.add(tile.row, r)
            base = self.offset_of(bias, channel)
            line = code.at(result, "float", code.mul(channel, self.w["plane_out"]))
            for j in range(n):
                value = Value(sums[r * n + j], "float32")
                if self.bias:
                    value = self.vector.arith("+", value, base)
                self.vector.store(value, code.at(line, "float", places[j]), "float32")

    def store_part(
        self, bias: str, result: str, channel: str, panel: Panel, j: str, sums: str, first: str
    ) -> None:
        """Any vector of the tile, with as many lanes as there are pixels."""
        code = self.code
        line = code.at(result, "float", code.mul(channel, self.w["plane_out"]))
        at = code.at(line, "float", code.load("i64", self.slot(panel.places, j)))
        count = code.load("i64", self.slot(panel.counts, j))
        whole = code.equal(count, self.lanes)
        value = Value(sums, "float32")
        with code.when(first):
            fresh = self.vector.arith("+", value, self.offset_of(bias, channel))
            self.put(fresh, at, count, whole)
        with code.when(code.negate(first)):
            with code.when(whole):
                held = self.vector.load(at, "float32")
                self.vector.store(self.vector.arith("+", value, held), at, "float32")
            with code.when(code.negate(whole)):
                held = self.reader_of_result(at, count)
                store_first(code, self.vector.arith("+", value, held), at, count, self.lanes)

    def reader_of_result(self, at: str, count: str) -> Value:
        """What the result holds, in the first ``count`` lanes."""
        reader = RowReader(self.code, self.vector, count, 1, "1")
        return reader.load_masked(at, 0, reader.mask(0))

    def put(self, value: Value, at: str, count: str, whole: str) -> None:
        """Store a vector, or its first ``count`` lanes."""
        with self.code.when(whole):
            self.vector.store(value, at, "float32")
        with self.code.when(self.code.negate(whole)):
            store_first(self.code, value, at, count, self.lanes)
