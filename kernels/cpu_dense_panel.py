"""The register-tiled product of rows with a packed matrix, and what follows it.

See ``cpu_dense`` for the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.kernels.cpu_conv_pack import TileShape
from crossdock.kernels.cpu_epilogue import Epilogue
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_rows import RowReader, Words, store_first
from crossdock.kernels.cpu_vector import Value, Vector

UNROLL = 4
LINE = 16
"""float32 values of a cache line."""
WORDS = (
    "out", "a", "b", "bias", "residual", "m", "n", "k", "group_rows", "panels", "vectors",
    "block", "blocks",
)  # fmt: skip
POINTERS = 5


@dataclass(frozen=True)
class Form:
    """What the code depends on beside the tile: lines fetched ahead, blocks, what follows.

    ``ahead`` lines of the packed matrix are asked for in each ``UNROLL`` steps of a pass, until the
    part after this one has been; ``split``: there is more than one block of the inner axis.
    """

    ahead: int
    split: bool
    epilogue: Epilogue

    def __str__(self) -> str:
        return f"{self.ahead} {self.split} {self.epilogue}"


@dataclass(frozen=True)
class Part:
    """The rows [first, stop) of one item with one block of its panel.

    ``start`` and ``taps`` are the block's place along the inner axis; ``column`` the panel's first.
    """

    first: str
    stop: str
    column: str
    count: str
    b: str
    start: str
    taps: str
    leading: str
    last: str


class DenseWriter:
    """Writes the kernel for one shape of tile."""

    def __init__(self, code: Code, shape: TileShape, form: Form) -> None:
        self.code, self.form = code, form
        self.rows, self.vectors, self.lanes = shape.rows, shape.vectors, shape.lanes
        self.vector = Vector(code, shape.lanes)
        self.kind = f"<{shape.lanes} x float>"
        self.w = Words(code, WORDS, POINTERS)
        self.tile = code.stack(self.kind, shape.rows * shape.vectors)

    def write(self) -> None:
        """Append the whole function: for each item, for each block of the inner axis, its rows."""
        code, w = self.code, self.w
        with code.loop("%begin", "%end") as items:
            panel = code.rem(items.index, w["panels"])
            first = code.mul(code.div(items.index, w["panels"]), w["group_rows"])
            stop = code.least(code.add(first, w["group_rows"]), w["m"])
            low = code.div(code.mul(panel, w["vectors"]), w["panels"])
            high = code.div(code.mul(code.add(panel, 1), w["vectors"]), w["panels"])
            count, column = code.sub(high, low), code.mul(low, self.lanes)
            b = code.at(w["b"], "float", code.mul(column, w["k"]))
            with code.loop(0, w["blocks"]) as blocks:
                start = code.mul(blocks.index, w["block"])
                end = code.least(code.add(start, w["block"]), w["k"])
                wide = code.mul(count, self.lanes)
                part = Part(
                    first, stop, column, count, code.at(b, "float", code.mul(start, wide)),
                    start, code.sub(end, start), code.equal(start, 0), code.equal(end, w["k"]),
                )  # fmt: skip
                self.part(part)

    def part(self, part: Part) -> None:
        """Tile after tile of rows; the rows that are left are read in a tile of half as many."""
        code, half = self.code, max(1, self.rows // 2)
        with code.loop(part.first, part.stop, self.rows) as tiles:
            left = code.sub(part.stop, tiles.index)
            few = code.let(f"icmp sle i64 {left}, {half}")
            many = code.negate(few)
            for n in range(1, self.vectors + 1):
                wide = code.equal(part.count, n)
                for rows, fits in ((self.rows, many), (half, few)):
                    with code.when(code.both(wide, fits)):
                        self.multiply(part, tiles.index, rows, n)
            self.finish(part, tiles.index, code.least(left, self.rows))

    def multiply(self, part: Part, row: str, rows: int, n: int) -> None:
        """Multiply a tile and leave it on the stack; rows past the last one read the last one."""
        code, w = self.code, self.w
        last = code.sub(w["m"], 1)
        lines = []
        for r in range(rows):
            at = code.mul(code.least(code.add(row, r), last), w["k"])
            lines.append(code.at(w["a"], "float", code.add(at, part.start)))
        wide = n * self.lanes
        done = code.div(code.sub(row, part.first), self.rows)
        passes = -(-UNROLL * wide // (self.form.ahead * LINE))
        asks = code.less(done, passes)
        step = code.select(asks, self.form.ahead * LINE, 0)
        before = code.mul(code.mul(done, step), code.div(part.taps, UNROLL))
        fetch = code.at(part.b, "float", code.add(code.mul(part.taps, wide), before))
        zero = self.vector.const("float32", 0.0).name
        carried = [("ptr", part.b), ("ptr", fetch)] + [(self.kind, zero)] * (rows * n)
        stop = code.sub(part.taps, UNROLL - 1)
        with code.loop(0, stop, UNROLL, carried) as main:
            b, ahead, *sums = main.values
            self.fetch(ahead)
            for u in range(UNROLL):
                self.advance(sums, lines, code.add(main.index, u), b, u * wide, n)
            ahead = code.at(ahead, "float", step)
            main.next = [code.at(b, "float", UNROLL * wide), ahead, *sums]
        rest = code.let(f"and i64 {part.taps}, -{UNROLL}")
        again = list(zip([k for k, _ in carried], main.values, strict=True))
        with code.loop(rest, part.taps, 1, again) as tail:
            b, ahead, *sums = tail.values
            self.advance(sums, lines, tail.index, b, 0, n)
            tail.next = [code.at(b, "float", wide), ahead, *sums]
        for r in range(rows):
            for j in range(n):
                at = code.at(self.tile, self.kind, r * n + j)
                code.store(self.kind, tail.values[2 + r * n + j], at)

    def fetch(self, at: str) -> None:
        """Ask for the next lines of the packed matrix."""
        code = self.code
        fn = code.declare("llvm.prefetch.p0", "void @(ptr, i32, i32, i32)")
        for i in range(self.form.ahead):
            line = code.at(at, "float", i * LINE)
            code.do(f"call void {fn}(ptr {line}, i32 0, i32 2, i32 1)")

    def advance(
        self, sums: list[str], lines: list[str], k: str, b: str, offset: int, n: int
    ) -> None:
        """One step along the inner axis: a rank-one update of the tile."""
        code, v = self.code, self.vector
        columns = [
            v.load(code.at(b, "float", offset + j * self.lanes), "float32") for j in range(n)
        ]
        for r, line in enumerate(lines):
            one = v.splat(Value(code.load("float", code.at(line, "float", k)), "float32"))
            for j in range(n):
                total = Value(sums[r * n + j], "float32")
                sums[r * n + j] = v.fma(columns[j], one, total).name

    # --- what follows ---

    def finish(self, part: Part, row: str, rows: str) -> None:
        """Add the bias (first block) or what the result holds; what follows, after the last."""
        code, w = self.code, self.w
        end = code.add(part.column, code.mul(part.count, self.lanes))
        full = code.let(f"icmp sle i64 {end}, {w['n']}")
        cut = code.negate(full)
        with code.loop(0, rows) as r:
            at = code.add(code.mul(code.add(row, r.index), w["n"]), part.column)
            line = code.at(w["out"], "float", at)
            bias = code.at(w["bias"], "float", part.column)
            base = code.select(part.leading, bias, line, "ptr") if self.form.split else bias
            beside = code.at(w["residual"], "float", at)
            tile = code.at(self.tile, self.kind, code.mul(r.index, part.count))
            with code.when(full), code.loop(0, part.count) as vectors:
                self.vector_of(part, (tile, base, line, beside), vectors.index, masked=False)
            with code.when(cut), code.loop(0, part.count) as vectors:
                self.vector_of(part, (tile, base, line, beside), vectors.index, masked=True)

    def vector_of(
        self, part: Part, at: tuple[str, str, str, str], index: str, *, masked: bool
    ) -> None:
        """One vector of a row: sum, what follows, store; ``masked``: it may cross the row's end."""
        code, v = self.code, self.vector
        first = code.mul(index, self.lanes)
        tile = code.at(at[0], self.kind, index)
        base, line, beside = (code.at(a, "float", first) for a in at[1:])
        left = code.sub(code.sub(self.w["n"], part.column), first) if masked else None
        total = Value(code.load(self.kind, tile), "float32")
        value = v.arith("+", total, self.load(base, left))

        def store(made: Value) -> None:
            if left is None:
                v.store(made, line, "float32")
            else:
                store_first(code, made, line, left, self.lanes)

        epilogue = self.form.epilogue
        if not (self.form.split and epilogue):
            store(epilogue.apply(v, value, beside, left))
            return
        with code.when(part.last):
            store(epilogue.apply(v, value, beside, left))
        with code.when(code.negate(part.last)):
            store(value)

    def load(self, at: str, left: str | None) -> Value:
        """A vector, or as many of its lanes as are left."""
        if left is None:
            return self.vector.load(at, "float32")
        reader = RowReader(self.code, self.vector, left, 1, "1")
        return reader.load_masked(at, 0, reader.mask(0))
