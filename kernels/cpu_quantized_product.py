"""Products of bytes with an epilogue, as register tiles of rows by vectors of columns.

``out[r, c] = epilogue(sum over k of rows[r, k] * vectors[k, c])`` where four consecutive ``k`` are
the bytes of a 32-bit lane. Rows are read as they lie (``row_stride`` bytes apart), vectors in
groups of four ``k`` (``group_stride`` apart). The sum over ``k`` goes in steps of at most 64 bytes;
a table gives where each step begins in rows and in vectors, so that one kernel serves matrices and
windows of images. Columns are cut into panels of a few vectors, whose table says where
their results go and which of them are results at all. Tiles are those of vector registers or, with
AMX, of tile registers (Intel 64 and IA-32 Architectures Software Developer's Manual, chapter 18).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.kernels.cpu_dots import TILES, Dots, Unit
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_quantized_epilogue import Epilogue, Sums, Terms
from crossdock.kernels.cpu_rows import Words
from crossdock.runtime.tensor import Array

WORDS = (
    "out", "rows", "vectors", "steps", "panels", "config", "zero", "sums", "bias", "scale",
    "offset", "out_zero", "low", "high",
    "step_count", "groups", "row_stride", "row_step", "group_stride", "vector_stride",
    "rows_size", "vectors_size", "out_size", "out_stride", "row_count", "last_row",
    "parts", "part_rows", "panel_count", "problem_groups",
)  # fmt: skip
POINTERS = 12
AHEAD = 8 << 10
"""Bytes of weights from what is read to what is asked for."""
NOTHING, ROWS, COLUMNS = "nothing", "rows", "columns"
PANEL_WORDS = 5
"""First vector, number of vectors, where results go, mask and number of the columns kept."""


@dataclass(frozen=True)
class Form:
    """What is compiled.

    ``rows_signed``: the rows' bytes are; the vectors' are the other kind unless ``both_signed``.
    ``flip``: rows are signed where they should not be, and get 128 added as they are loaded.
    ``ahead`` is which of the two is asked for before it is read: weights that no cache holds.
    """

    unit: Unit
    rows_signed: bool
    flip: bool
    both_signed: bool
    terms: Terms
    ahead: str = NOTHING

    def __str__(self) -> str:
        flags = f"{self.rows_signed:d}{self.flip:d}{self.both_signed:d}"
        u = self.unit
        return f"{u} {u.rows}x{u.vectors} {flags} {self.terms} {self.ahead}"


def tile_config(rows: int, groups: int) -> Array:
    """The 64 bytes of LDTILECFG: four sums, one tile of rows, three of vectors."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    widths = config[16:32].view(np.uint16)
    widths[:] = 64
    widths[4] = 4 * groups
    config[48:53] = rows
    config[53:56] = groups
    return config


@dataclass(frozen=True)
class Place:
    """A tile: its first row, its panel's address, and where its rows and vectors begin."""

    row: str
    count: int
    rows: str
    vectors: str


class ProductWriter:
    """Writes the kernel of one form."""

    def __init__(self, code: Code, form: Form) -> None:
        self.code = code
        self.form = form
        self.unit = form.unit
        self.dots = Dots(code, form.unit)
        self.w = Words(code, WORDS, POINTERS)
        self.kind = self.dots.kind
        self.sums = code.stack("i32", form.unit.rows * form.unit.vectors * form.unit.lanes)
        self.epilogue = Epilogue(code, form.unit, form.terms, self.w, WORDS.index("low"))

    def write(self) -> None:
        """Append the function: an item is a panel of a problem and a part of the rows."""
        code, w = self.code, self.w
        self.epilogue.settle()
        if self.unit.name == TILES:
            self.tile("ldtilecfg", f"ptr {w['config']}")
        with code.loop("%begin", "%end") as items:
            panel = code.rem(items.index, w["panel_count"])
            rest = code.div(items.index, w["panel_count"])
            part, problem = code.rem(rest, w["parts"]), code.div(rest, w["parts"])
            group = code.rem(problem, w["problem_groups"])
            entry = code.at(w["panels"], "i64", code.mul(panel, PANEL_WORDS))
            first, count = (code.load("i64", code.at(entry, "i64", i)) for i in (0, 1))
            vectors = code.at(w["vectors"], "i8", code.mul(problem, w["vectors_size"]))
            vectors = code.at(vectors, "i8", code.mul(first, w["vector_stride"]))
            rows = code.at(w["rows"], "i8", code.mul(group, w["rows_size"]))
            low = code.mul(part, w["part_rows"])
            high = code.least(code.add(low, w["part_rows"]), w["row_count"])
            for n in range(1, self.unit.vectors + 1):
                with code.when(code.equal(count, n)):
                    sums = Sums(n, entry, first, problem, group)
                    self.panel(sums, rows, vectors, (low, high))
        if self.unit.name == TILES:
            self.tile("tilerelease", "")

    def panel(self, sums: Sums, rows: str, vectors: str, span: tuple[str, str]) -> None:
        """All tiles of a panel with ``n`` vectors."""
        code, w = self.code, self.w
        columns = self.epilogue.columns(sums)
        with code.loop(*span, self.unit.rows) as tiles:
            row = code.least(tiles.index, w["last_row"])
            place = Place(row, sums.n, code.at(rows, "i8", code.mul(row, w["row_step"])), vectors)
            if self.unit.name == TILES:
                self.with_tiles(place)
            else:
                self.with_vectors(place)
            valid = code.least(self.unit.rows, code.sub(w["row_count"], row))
            self.epilogue.rows(self.sums, sums, columns, row, valid)

    def step(self, index: str, place: Place) -> tuple[str, str]:
        """Where a step's rows and vectors begin."""
        code = self.code
        entry = code.at(self.w["steps"], "i64", code.mul(index, 2))
        offsets = [code.load("i64", code.at(entry, "i64", i)) for i in (0, 1)]
        return code.at(place.rows, "i8", offsets[0]), code.at(place.vectors, "i8", offsets[1])

    # --- vector registers ---

    def with_vectors(self, place: Place) -> None:
        """The sums of a tile in vector registers, left on the stack."""
        code, w, n = self.code, self.w, place.count
        zero = self.dots.vector.const("int32", 0).name
        first = [(self.kind, zero)] * (self.unit.rows * n)
        with code.loop(0, w["step_count"], 1, first) as steps:
            row, vector = self.step(steps.index, place)
            carried = list(zip([self.kind] * len(first), steps.values, strict=True))
            begin = [("ptr", row), ("ptr", vector), *carried]
            with code.loop(0, w["groups"], 1, begin) as groups:
                groups.next = self.advance(groups.values, n)
            steps.next = groups.values[2:]
        for i, total in enumerate(steps.values):
            code.do(f"store {self.kind} {total}, ptr {code.at(self.sums, self.kind, i)}, align 64")

    def advance(self, values: tuple[str, ...], n: int) -> list[str]:
        """One group of four: every row's bytes with every vector."""
        code, (row, vector, *sums) = self.code, values
        columns = []
        for j in range(n):
            at = code.at(vector, "i8", code.mul(self.w["vector_stride"], j)) if j else vector
            columns.append(self.dots.load(at))
        for r in range(self.unit.rows):
            at = code.at(row, "i8", code.mul(self.w["row_stride"], r)) if r else row
            one = self.dots.spread(at)
            if self.form.flip:
                flip = self.dots.vector.const("int32", -0x7F7F7F80).name
                one = code.let(f"xor {self.kind} {one}, {flip}")
            for j, column in enumerate(columns):
                pair = (column, one) if self.form.rows_signed else (one, column)
                sums[r * n + j] = self.dots.add(sums[r * n + j], *pair)
        return [code.at(row, "i8", 4), code.at(vector, "i8", self.w["group_stride"]), *sums]

    # --- tile registers ---

    def tile(self, name: str, given: str) -> None:
        """An instruction on tile registers."""
        kinds = ", ".join(part.split()[0] for part in given.split(", ") if part)
        fn = self.code.declare(f"llvm.x86.{name}", f"void @({kinds})")
        self.code.do(f"call void {fn}({given})")

    def prefetch(self, tile: str) -> None:
        """Ask for what a later step reads: weights lie in the order in which they are read."""
        code = self.code
        fn = code.declare("llvm.prefetch.p0", "void @(ptr, i32, i32, i32)")
        for line in range(16):
            at = code.at(tile, "i8", AHEAD + 64 * line)
            code.do(f"call void {fn}(ptr {at}, i32 0, i32 3, i32 1)")

    def with_tiles(self, place: Place) -> None:
        """The sums of a tile in tile registers, left on the stack."""
        code, w, n = self.code, self.w, place.count
        kinds = {(True, False): "su", (False, False): "us", (True, True): "ss"}
        product = f"tdpb{kinds[self.form.rows_signed, self.form.both_signed]}d"
        for j in range(n):
            self.tile("tilezero", f"i8 {j}")
        with code.loop(0, w["step_count"]) as steps:
            row, vector = self.step(steps.index, place)
            self.tile("tileloadd64", f"i8 4, ptr {row}, i64 {w['row_stride']}")
            if self.form.ahead == ROWS:
                self.prefetch(row)
            for j in range(n):
                at = code.at(vector, "i8", code.mul(w["vector_stride"], j)) if j else vector
                self.tile("tileloadd64", f"i8 {5 + j % 3}, ptr {at}, i64 {w['group_stride']}")
                if self.form.ahead == COLUMNS:
                    self.prefetch(at)
                self.tile(product, f"i8 {j}, i8 4, i8 {5 + j % 3}")
        for j in range(n):
            at = code.at(self.sums, "i8", 64 * j)
            self.tile("tilestored64", f"i8 {j}, ptr {at}, i64 {64 * n}")
