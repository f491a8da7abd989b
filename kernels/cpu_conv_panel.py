"""The register-tiled product of the panel convolution, for every window.

See ``cpu_conv`` for the algorithm. Packing is done by the function at the word ``pack``.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.kernels.cpu_conv_pack import POINTERS, WORDS, TileShape
from crossdock.kernels.cpu_epilogue import Epilogue
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_rows import RowReader, Words, store_first
from crossdock.kernels.cpu_vector import Value, Vector

SHARE = 4  # panels that an item may hold at once
UNROLL = 4


@dataclass(frozen=True)
class Ahead:
    """Lines of pixels that are read or written soon, ``step`` elements apart; 0 for none."""

    at: str
    step: str


@dataclass(frozen=True)
class Tile:
    """A register tile: its first output channel, its panel, its number of vectors.

    ``pixel`` is the panel's first output; ``start`` and ``stop`` are the block's taps,
    ``last`` (i1) whether they are the last ones; ``ahead`` is what comes after the tile.
    """

    row: str
    panel: str
    n: int
    pixel: str
    start: str
    stop: str
    last: str
    ahead: Ahead


@dataclass(frozen=True)
class _Block:
    """A group's image and a block of its channels; ``last`` (i1) says that none follows."""

    image: str
    begin: str
    end: str
    last: str


class PanelWriter:
    """Writes the kernel for one shape of tile and one epilogue; ``point`` as for packing."""

    def __init__(self, code: Code, shape: TileShape, epilogue: Epilogue, point: bool) -> None:
        self.code = code
        self.point = point
        self.epilogue = epilogue
        self.rows = shape.rows
        self.vectors = shape.vectors
        self.lanes = lanes = shape.lanes
        self.wide = shape.wide
        self.vector = Vector(code, lanes)
        self.kind = f"<{lanes} x float>"
        self.w = Words(code, WORDS, POINTERS)
        self.plane = code.mul(self.w["height"], self.w["width"])
        tiles = code.div(code.add(self.w["outputs"], self.rows - 1), self.rows)
        self.padded = code.mul(tiles, self.rows)
        self.panels = code.stack("float", SHARE * shape.taps * self.wide)
        self.tile = code.stack(self.kind, shape.rows * shape.vectors)

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
            window = code.mul(w["kh"], w["kw"])
            taps = code.mul(window, w["channels"])
            size = code.mul(self.padded, taps)
            filters = code.at(w["filter"], "float", code.mul(group, size))
            bias = code.at(w["bias"], "float", code.mul(group, w["outputs"]))
            low = code.mul(part, w["part_rows"])
            high = code.least(code.add(low, w["part_rows"]), w["outputs"])
            with code.loop(0, w["blocks"]) as blocks:
                begin = code.mul(blocks.index, w["block"])
                end = code.least(code.add(begin, w["block"]), w["channels"])
                last_block = code.equal(end, w["channels"])
                start, stop = code.mul(begin, window), code.mul(end, window)
                capacity = code.mul(code.sub(stop, start), self.wide)
                with code.loop(first, last) as panels:
                    panel = self.panel_at(panels.index, first, capacity)
                    low_vector, high_vector = self.span(panels.index)
                    pixel = code.mul(low_vector, self.lanes)
                    count = code.sub(high_vector, low_vector)
                    given = f"ptr %args, ptr {image}, ptr {panel}, i64 {pixel}, i64 {count}"
                    code.do(f"call void {w['pack']}({given}, i64 {begin}, i64 {end})")
                block = _Block(image, begin, end, last_block)
                with (
                    code.loop(low, high, self.rows) as rows,
                    code.loop(first, last) as panels,
                ):
                    turn = code.div(code.sub(rows.index, low), self.rows)
                    ahead = self.ahead(block, panels.index, turn)
                    panel = self.panel_at(panels.index, first, capacity)
                    low_vector, high_vector = self.span(panels.index)
                    pixel = code.mul(low_vector, self.lanes)
                    count = code.sub(high_vector, low_vector)
                    for n in range(1, self.vectors + 1):
                        with code.when(code.equal(count, n)):
                            tile = Tile(rows.index, panel, n, pixel, start, stop, last_block, ahead)
                            self.multiply(filters, bias, result, tile)

    def ahead(self, block: _Block, panel: str, turn: str) -> Ahead:
        """The channels of the panel packed after this one that are the tile's turn to fetch.

        Packing walks over as many pages as there are channels, too many for the processor to see
        where it goes.
        """
        code, w = self.code, self.w
        if not self.point:
            return Ahead(block.image, "0")
        begin = code.select(block.last, 0, block.end)
        end = code.least(code.add(begin, w["block"]), w["channels"])
        number = code.add(panel, code.select(block.last, w["share"], 0))
        each = code.div(code.sub(block.end, block.begin), UNROLL)
        channel = code.add(begin, code.mul(turn, each))
        there = code.both(code.less(channel, end), code.less(number, w["panels"]))
        pixel = code.mul(self.span(number)[0], self.lanes)
        at = code.at(block.image, "float", code.add(code.mul(channel, self.plane), pixel))
        at = code.select(there, at, block.image, "ptr")
        return Ahead(at, code.select(there, self.plane, 0))

    def span(self, panel: str) -> tuple[str, str]:
        """The vectors of a panel: all panels have nearly the same number."""
        code, w = self.code, self.w
        low = code.div(code.mul(panel, w["vectors"]), w["panels"])
        return low, code.div(code.mul(code.add(panel, 1), w["vectors"]), w["panels"])

    def panel_at(self, panel: str, first: str, capacity: str) -> str:
        """The memory of a panel, of the item whose first panel is ``first``."""
        number = self.code.sub(panel, first)
        return self.code.at(self.panels, "float", self.code.mul(number, capacity))

    # --- the register tile ---

    def multiply(self, filters: str, bias: str, result: str, tile: Tile) -> None:
        """Multiply a tile of outputs and ``n`` vectors over one block of taps."""
        code = self.code
        count = code.sub(tile.stop, tile.start)
        a = code.at(filters, "float", code.mul(tile.start, self.padded))
        a = code.at(a, "float", code.mul(tile.row, count))
        zero = self.vector.const("float32", 0.0).name
        soon = self.line(result, tile.row, tile.pixel)
        if self.epilogue.reads:
            soon = self.beside(soon)
        carried = [("ptr", a), ("ptr", tile.panel)] + [(self.kind, zero)] * (self.rows * tile.n)
        lines = [("ptr", soon), ("i64", self.w["plane_out"])]
        whole = code.sub(count, UNROLL - 1)
        with code.loop(0, whole, UNROLL, lines + carried) as main:
            at, step, *values = main.values
            self.fetch(at, tile.n)
            all_rows = code.equal(main.index, (self.rows - 1) * UNROLL)
            then = code.select(all_rows, tile.ahead.at, code.at(at, "float", step), "ptr")
            main.next = [
                then,
                code.select(all_rows, tile.ahead.step, step),
                *self.advance(tuple(values), UNROLL, tile.n),
            ]
        rest = code.let(f"and i64 {count}, -{UNROLL}")
        again = list(zip([k for k, _ in carried], main.values[2:], strict=True))
        with code.loop(rest, count, 1, again) as tail:
            tail.next = self.advance(tail.values, 1, tile.n)
        self.finish(bias, result, tile, tail.values[2:])

    def fetch(self, at: str, n: int) -> None:
        """Bring a line of a tile closer: what is added to the result, or what it overwrites."""
        code = self.code
        fn = code.declare("llvm.prefetch.p0", "void @(ptr, i32, i32, i32)")
        for j in range(n):
            there = code.at(at, "float", j * self.lanes)
            code.do(f"call void {fn}(ptr {there}, i32 0, i32 3, i32 1)")

    def advance(self, values: tuple[str, ...], steps: int, n: int) -> list[str]:
        """``steps`` taps: a rank-one update of the tile for each."""
        code, (a, b, *tile) = self.code, values
        for step in range(steps):
            columns = [
                self.vector.load(code.at(b, "float", step * self.wide + j * self.lanes), "float32")
                for j in range(n)
            ]
            for r in range(self.rows):
                one = code.load("float", code.at(a, "float", step * self.rows + r))
                weight = self.vector.splat(Value(one, "float32"))
                for j in range(n):
                    at = r * n + j
                    tile[at] = self.vector.fma(columns[j], weight, Value(tile[at], "float32")).name
        return [
            code.at(a, "float", steps * self.rows),
            code.at(b, "float", steps * self.wide),
            *tile,
        ]

    def finish(self, bias: str, result: str, tile: Tile, sums: tuple[str, ...]) -> None:
        """Add the tile to the bias (first block) or to what the result holds (later ones)."""
        code, w = self.code, self.w
        first = code.equal(tile.start, 0)
        rows = code.least(self.rows, code.sub(w["outputs"], tile.row))
        end = code.add(tile.pixel, tile.n * self.lanes)
        inside = code.let(f"icmp sle i64 {end}, {w['plane_out']}")
        full = code.both(inside, code.equal(rows, self.rows))
        only = code.both(full, code.both(first, tile.last)) if self.epilogue else None
        if only is not None:  # one block: what follows is done before anything is stored
            with code.when(only):
                self.store_full(bias, result, tile, sums, first=True, whole=True)
            full_first = code.both(code.both(full, first), code.negate(tile.last))
        else:
            full_first = code.both(full, first)
        with code.when(full_first):
            self.store_full(bias, result, tile, sums, first=True)
        more = code.both(full, code.negate(first))
        with code.when(more):
            self.store_full(bias, result, tile, sums, first=False)
        with code.when(code.negate(full)):
            for i, total in enumerate(sums):
                code.store(self.kind, total, code.at(self.tile, self.kind, i))
            with code.loop(0, rows) as r, code.loop(0, tile.n) as column:
                at = code.add(code.mul(r.index, tile.n), column.index)
                value = code.load(self.kind, code.at(self.tile, self.kind, at))
                channel = code.add(tile.row, r.index)
                pixel = code.add(tile.pixel, code.mul(column.index, self.lanes))
                self.store_part(bias, result, channel, pixel, value, first)
        if only is not None:
            with code.when(code.both(tile.last, code.negate(only))):
                self.follow(result, tile, rows)

    def follow(self, result: str, tile: Tile, rows: str) -> None:
        """What follows the convolution, on a tile that is stored."""
        code, w = self.code, self.w
        with code.loop(0, rows) as r, code.loop(0, tile.n) as column:
            pixel = code.add(tile.pixel, code.mul(column.index, self.lanes))
            at = self.line(result, code.add(tile.row, r.index), pixel)
            left = code.sub(w["plane_out"], pixel)
            reader = RowReader(code, self.vector, left, 1, "1")
            value = reader.load_masked(at, 0, reader.mask(0))
            made = self.epilogue.apply(self.vector, value, self.beside(at), left)
            store_first(code, made, at, left, self.lanes)

    def beside(self, at: str) -> str:
        """Where the residual of the result at an address lies."""
        code = self.code
        begin = code.let(f"ptrtoint ptr {self.w['out']} to i64")
        offset = code.sub(code.let(f"ptrtoint ptr {at} to i64"), begin)
        return code.at(self.w["residual"], "i8", offset)

    def bias_of(self, bias: str, row: str) -> Value:
        """The bias of an output channel in every lane."""
        one = self.code.load("float", self.code.at(bias, "float", row))
        there = self.code.equal(self.w["biased"], 1)
        given = self.code.select(there, one, "0.0", "float")
        return self.vector.splat(Value(given, "float32"))

    def line(self, result: str, channel: str, pixel: str) -> str:
        """Address of a pixel of an output channel."""
        at = self.code.add(self.code.mul(channel, self.w["plane_out"]), pixel)
        return self.code.at(result, "float", at)

    def store_full(
        self,
        bias: str,
        result: str,
        tile: Tile,
        sums: tuple[str, ...],
        *,
        first: bool,
        whole: bool = False,
    ) -> None:
        """A whole tile of whole vectors; ``whole``: of all taps, with what follows."""
        code = self.code
        for r in range(self.rows):
            channel = code.add(tile.row, r)
            base = self.bias_of(bias, channel) if first else None
            line = self.line(result, channel, tile.pixel)
            for j in range(tile.n):
                at = code.at(line, "float", j * self.lanes)
                held = base or self.vector.load(at, "float32")
                value = self.vector.arith("+", Value(sums[r * tile.n + j], "float32"), held)
                if whole:
                    value = self.epilogue.apply(self.vector, value, self.beside(at), None)
                self.vector.store(value, at, "float32")

    def store_part(
        self, bias: str, result: str, channel: str, pixel: str, sums: str, first: str
    ) -> None:
        """Any vector of the tile, with as many lanes as there are pixels."""
        code = self.code
        at = self.line(result, channel, pixel)
        count = code.sub(self.w["plane_out"], pixel)
        reader = RowReader(code, self.vector, count, 1, "1")
        held = reader.load_masked(at, 0, reader.mask(0))
        start = code.select(first, self.bias_of(bias, channel).name, held.name, self.kind)
        value = self.vector.arith("+", Value(sums, "float32"), Value(start, "float32"))
        store_first(code, value, at, count, self.lanes)
