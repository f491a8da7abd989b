"""The code of attention on the host: one block of queries after the other along the keys.

See ``cpu_attention`` for the algorithm. Lanes are queries: scores lie by key, so that maximum, sum
and exponential of a query's scores are operations of whole vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crossdock.kernels.cpu_conv_pack import TileShape
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_math import exp2_falling, tanh
from crossdock.kernels.cpu_rows import RowReader, Words, store_first
from crossdock.kernels.cpu_turn import turned
from crossdock.kernels.cpu_vector import Value, Vector

KEYS = 64
"""Keys whose scores an item holds at a time: they, a block of queries and its results fit the
first-level cache."""
UNROLL = 4
BITS = 1 / math.log(2)
"""Scores are exponents of 2: those of e times this."""
LOWEST = -3.4028234663852886e38
"""The lowest float32."""
WORDS = (
    "out", "q", "k", "v", "bias", "length", "keys", "heads", "each", "blocks", "vectors",
    "q_first", "q_batch", "q_head", "q_row", "k_first", "k_batch", "k_head", "k_row",
    "v_first", "v_batch", "v_head", "v_row", "o_batch", "o_head", "o_row",
    "b_batch", "b_head", "b_row", "b_key", "offset", "scale", "cap",
)  # fmt: skip
POINTERS = 5


@dataclass(frozen=True)
class Form:
    """What the code depends on beside the tile.

    ``bias`` is "" (none), "key" (one value a key for all queries) or "full"; ``zero`` gives zeros
    where a query sees no key, else NaN.
    """

    width: int
    out_width: int
    bias: str
    causal: bool
    capped: bool
    zero: bool

    def __str__(self) -> str:
        flags = "".join("cpz"[i] for i, f in enumerate((self.causal, self.capped, self.zero)) if f)
        return f"{self.width} {self.out_width} {self.bias} {flags}"


def by_base_2(v: Vector, bias: Value) -> Value:
    """A bias as an exponent of 2; the lowest finite ones, which hide keys, stay finite."""
    made = v.arith("*", bias, v.const("float32", BITS))
    lowest = v.const("float32", LOWEST)
    low = v.logic(
        "and", v.compare("<", made, lowest), v.compare(">", bias, v.const("float32", -math.inf))
    )
    return v.select(low, lowest, made)


@dataclass(frozen=True)
class Block:
    """``count`` vectors of queries of one head; where its operands and results begin."""

    count: str
    first: str
    q: str
    k: str
    v: str
    bias: str
    out: str


class AttentionWriter:
    """Writes the kernel for one shape of tile and one form."""

    def __init__(self, code: Code, shape: TileShape, form: Form) -> None:
        self.code, self.form = code, form
        self.rows, self.vectors, self.lanes = shape.rows, shape.vectors, shape.lanes
        self.v = Vector(code, shape.lanes)
        self.kind = f"<{shape.lanes} x float>"
        self.w = Words(code, WORDS, POINTERS)
        wide = shape.vectors
        self.queries = code.stack(self.kind, wide * self._whole(form.width))
        self.results = code.stack(self.kind, wide * self._whole(form.out_width))
        self.scores = code.stack(self.kind, wide * KEYS)
        self.factors = code.stack(self.kind, wide)
        self.square = code.stack(self.kind, shape.lanes)
        self.scale, self.cap = (
            code.let(f"fptrunc double {code.let(f'bitcast i64 {self.w[n]} to double')} to float")
            for n in ("scale", "cap")
        )

    def _whole(self, size: int) -> int:
        return -(-size // self.lanes) * self.lanes

    def write(self) -> None:
        """Append the whole function: one block of queries of one head after the other."""
        code, w = self.code, self.w
        with code.loop("%begin", "%end") as items:
            turn, rest = code.rem(items.index, w["blocks"]), code.div(items.index, w["blocks"])
            head, batch = code.rem(rest, w["heads"]), code.div(rest, w["heads"])
            low = code.div(code.mul(turn, w["vectors"]), w["blocks"])
            high = code.div(code.mul(code.add(turn, 1), w["vectors"]), w["blocks"])
            shared, first = code.div(head, w["each"]), code.mul(low, self.lanes)

            def at(name: str, batch: str, head: str) -> str:
                far = code.mul(batch, w[f"{name[0]}_batch"])
                far = code.add(far, code.mul(head, w[f"{name[0]}_head"]))
                if name in ("q", "k", "v"):
                    far = code.add(far, w[f"{name}_first"])
                return code.at(w[name], "float", far)

            q, bias, out = (at(name, batch, head) for name in ("q", "bias", "out"))
            k, value = (at(name, batch, shared) for name in ("k", "v"))
            block = Block(code.sub(high, low), first, q, k, value, bias, out)
            self.turn_queries(block)
            for n in range(1, self.vectors + 1):
                with code.when(code.equal(block.count, n)):
                    self.along_keys(block, n)
            self.write_results(block)

    def along_keys(self, block: Block, n: int) -> None:
        """Chunks of keys, in order, for ``n`` vectors of queries; leaves results and factors."""
        code, v = self.code, self.v
        zero, lowest = v.const("float32", 0.0).name, v.const("float32", -math.inf).name
        with code.loop(0, n * self.form.out_width) as all_results:
            code.store(self.kind, zero, code.at(self.results, self.kind, all_results.index))
        stop = self.last_key(block)
        carried = [(self.kind, lowest)] * n + [(self.kind, zero)] * n
        with code.loop(0, stop, KEYS, carried) as chunk:
            tops, sums = chunk.values[:n], chunk.values[n:]
            count = code.least(KEYS, code.sub(stop, chunk.index))
            most = self.make_scores(block, chunk.index, count, stop, tops)
            shifts = [self.finite(top) for top in most]
            less = [self.raised(Value(t, "float32"), s) for t, s in zip(tops, shifts, strict=True)]
            start = [
                v.arith("*", Value(total, "float32"), by).name
                for total, by in zip(sums, less, strict=True)
            ]
            totals = self.raise_scores(n, count, shifts, start)
            self.add_values(block, chunk.index, count, less)
            chunk.next = [*most, *totals]
        for j, (top, total) in enumerate(zip(chunk.values[:n], chunk.values[n:], strict=True)):
            factor = self.factor_of(Value(top, "float32"), Value(total, "float32"))
            code.store(self.kind, factor.name, code.at(self.factors, self.kind, j))

    def factor_of(self, top: Value, total: Value) -> Value:
        """What results are multiplied by: 0 or NaN for queries that see no key."""
        v = self.v
        hidden = v.compare("==", top, v.const("float32", -math.inf))
        none = v.const("float32", 0.0 if self.form.zero else math.nan)
        return v.select(hidden, none, v.arith("/", v.const("float32", 1.0), total))

    def last_key(self, block: Block) -> str:
        """How many keys any query of the block sees."""
        code, w = self.code, self.w
        if not self.form.causal:
            return w["keys"]
        end = code.add(block.first, code.mul(block.count, self.lanes))
        seen = code.add(code.least(end, w["length"]), w["offset"])
        return code.greatest(0, code.least(seen, w["keys"]))

    # --- queries and results, by row outside and by feature here ---

    def row(self, block: Block, index: str) -> str:
        """The number of a query; past the last one, that one."""
        last = self.code.sub(self.w["length"], 1)
        return self.code.least(self.code.add(block.first, index), last)

    def turn_queries(self, block: Block) -> None:
        """Queries times the scale, by feature."""
        code, lanes, width = self.code, self.lanes, self.form.width
        with code.loop(0, block.count) as vectors:
            lines = []
            for lane in range(lanes):
                index = code.add(code.mul(vectors.index, lanes), lane)
                far = code.mul(self.row(block, index), self.w["q_row"])
                lines.append(code.at(block.q, "float", far))
            whole = width // lanes * lanes
            with code.loop(0, whole, lanes) as features:
                self.turn_square(block, lines, vectors.index, features.index, lanes)
            if width > whole:
                last = code.add(whole, 0)
                self.turn_square(block, lines, vectors.index, last, width - whole)

    def turn_square(
        self, block: Block, lines: Sequence[str], vector: str, feature: str, left: int
    ) -> None:
        """``left`` features of a vector of queries."""
        code, v = self.code, self.v
        factor = v.splat(Value(self.scale, "float32"))
        rows = [self.load(code.at(line, "float", feature), left) for line in lines]
        for i, column in enumerate(turned(v, rows)[:left]):
            at = code.add(code.mul(code.add(feature, i), block.count), vector)
            made = v.arith("*", column, factor).name
            code.store(self.kind, made, code.at(self.queries, self.kind, at))

    def load(self, at: str, left: int) -> Value:
        """A vector, or its first lanes with zeros behind."""
        if left == self.lanes:
            return self.v.load(at, "float32")
        reader = RowReader(self.code, self.v, str(left), 1, "1")
        return reader.load_masked(at, 0, reader.mask(0))

    def write_results(self, block: Block) -> None:
        """Results times their factors, by row; rows past the last query are not stored."""
        code, lanes, width = self.code, self.lanes, self.form.out_width
        with code.loop(0, block.count) as vectors:
            at = code.at(self.factors, self.kind, vectors.index)
            factor = Value(code.load(self.kind, at), "float32")
            whole = width // lanes * lanes
            with code.loop(0, whole, lanes) as features:
                self.write_square(block, factor, vectors.index, features.index, lanes)
            if width > whole:
                last = code.add(whole, 0)
                self.write_square(block, factor, vectors.index, last, width - whole)

    def write_square(
        self, block: Block, factor: Value, vector: str, feature: str, left: int
    ) -> None:
        """``left`` features of a vector of queries."""
        code, v, w, lanes = self.code, self.v, self.w, self.lanes
        columns = []
        for i in range(lanes):
            at = code.mul(code.add(feature, min(i, left - 1)), block.count)
            at = code.at(self.results, self.kind, code.add(at, vector))
            columns.append(v.arith("*", Value(code.load(self.kind, at), "float32"), factor))
        for i, row in enumerate(turned(v, columns)):
            code.store(self.kind, row.name, code.at(self.square, self.kind, i))
        first = code.add(block.first, code.mul(vector, lanes))
        with code.loop(0, code.least(lanes, code.sub(w["length"], first))) as rows:
            far = code.add(code.mul(code.add(first, rows.index), w["o_row"]), feature)
            at = code.at(block.out, "float", far)
            row_at = code.at(self.square, self.kind, rows.index)
            made = Value(code.load(self.kind, row_at), "float32")
            if left == lanes:
                v.store(made, at, "float32")
            else:
                store_first(code, made, at, left, lanes)

    # --- scores ---

    def make_scores(
        self, block: Block, first: str, count: str, stop: str, tops: Sequence[str]
    ) -> list[str]:
        """Scores of ``count`` keys, a tile of keys at a time; the largest so far, by query.

        Keys past the last one are that one again.
        """
        code, n, last = self.code, len(tops), self.code.sub(stop, 1)
        with code.loop(0, count, self.rows, [(self.kind, t) for t in tops]) as tiles:
            most = list(tiles.values)
            keys = [
                code.least(code.add(code.add(first, tiles.index), r), last)
                for r in range(self.rows)
            ]
            lines = [code.at(block.k, "float", code.mul(key, self.w["k_row"])) for key in keys]
            sums = self.products(lines, n)
            for r, key in enumerate(keys):
                for j in range(n):
                    score = self.completed(block, Value(sums[r * n + j], "float32"), key, j)
                    at = code.add(code.mul(code.add(tiles.index, r), n), j)
                    code.store(self.kind, score.name, code.at(self.scores, self.kind, at))
                    most[j] = self.larger(score, Value(most[j], "float32")).name
            tiles.next = most
        return list(tiles.values)

    def larger(self, a: Value, b: Value) -> Value:
        """The larger, as the processor has it: a NaN is found again when it is raised."""
        return self.v.select(self.v.compare(">", a, b), a, b)

    def products(self, lines: Sequence[str], n: int) -> list[str]:
        """The products of a tile of keys and all queries of the block."""
        code, v, width = self.code, self.v, self.form.width
        zero = v.const("float32", 0.0).name
        carried = [(self.kind, zero)] * (len(lines) * n)
        whole = width // UNROLL * UNROLL
        with code.loop(0, whole, UNROLL, carried) as loop:
            sums = list(loop.values)
            for u in range(UNROLL):
                self.advance(sums, lines, code.add(loop.index, u), n)
            loop.next = sums
        sums = list(loop.values)
        for feature in range(whole, width):
            self.advance(sums, lines, code.add(feature, 0), n)
        return sums

    def advance(self, sums: list[str], lines: Sequence[str], feature: str, n: int) -> None:
        """One feature of a tile of keys and all queries."""
        code, v = self.code, self.v
        row = code.at(self.queries, self.kind, code.mul(feature, n))
        columns = [
            Value(code.load(self.kind, code.at(row, self.kind, j)), "float32") for j in range(n)
        ]
        for r, line in enumerate(lines):
            one = v.splat(Value(code.load("float", code.at(line, "float", feature)), "float32"))
            for j in range(n):
                total = Value(sums[r * n + j], "float32")
                sums[r * n + j] = v.fma(columns[j], one, total).name

    def completed(self, block: Block, score: Value, key: str, j: int) -> Value:
        """A score with its cap, its bias, and -inf where the query does not see the key."""
        code, v, w = self.code, self.v, self.w
        if self.form.capped:
            cap = v.splat(Value(self.cap, "float32"))
            score = v.arith(
                "*", tanh(v, v.arith("/", score, cap)), v.arith("*", cap, v.const("float32", BITS))
            )
        first = code.add(block.first, j * self.lanes)
        if self.form.bias:
            at = code.at(block.bias, "float", code.mul(key, w["b_key"]))
            score = v.arith("+", score, self.bias_of(at, first))
        if self.form.causal:
            seen = v.splat(Value(code.add(first, w["offset"]), "int64"))
            numbers = ", ".join(f"i64 {i}" for i in range(self.lanes))
            wide = v.t("int64")
            far = Value(code.let(f"add {wide} {seen.name}, <{numbers}>"), "int64")
            there = v.compare(">=", far, v.splat(Value(key, "int64")))
            score = v.select(there, score, v.const("float32", -math.inf))
        return score

    def bias_of(self, at: str, first: str) -> Value:
        """What is added to the scores of one key, by base 2."""
        code, v, w = self.code, self.v, self.w
        if self.form.bias == "key":
            return v.splat(by_base_2(Vector(code, 1), Value(code.load("float", at), "float32")))
        at = code.at(at, "float", code.mul(first, w["b_row"]))
        left = code.sub(w["length"], first)
        mask = RowReader(code, v, left, 1, "1").mask(0)
        return by_base_2(v, RowReader(code, v, left, 0, w["b_row"]).load_masked(at, 0, mask))

    # --- exponentials and values ---

    def finite(self, top: str) -> Value:
        """What exponentials are taken under: the largest score, or 0 where all are -inf."""
        v, held = self.v, Value(top, "float32")
        hidden = v.compare("==", held, v.const("float32", -math.inf))
        return v.select(hidden, v.const("float32", 0.0), held)

    def raised(self, score: Value, shift: Value) -> Value:
        """The exponential of what a score lies under ``shift``."""
        return exp2_falling(self.v, self.v.arith("-", score, shift))

    def raise_scores(
        self, n: int, count: str, shifts: Sequence[Value], sums: Sequence[str]
    ) -> tuple[str, ...]:
        """Exponentials in the scores' place; their sums, by query, on top of ``sums``."""
        code, v = self.code, self.v
        with code.loop(0, count, 1, [(self.kind, total) for total in sums]) as keys:
            row = code.at(self.scores, self.kind, code.mul(keys.index, n))
            totals = list(keys.values)
            for j in range(n):
                at = code.at(row, self.kind, j)
                made = self.raised(Value(code.load(self.kind, at), "float32"), shifts[j])
                code.store(self.kind, made.name, at)
                totals[j] = v.arith("+", Value(totals[j], "float32"), made).name
            keys.next = totals
        return keys.values

    def add_values(self, block: Block, first: str, count: str, less: Sequence[Value]) -> None:
        """Scale down what was summed, and add the values by their exponentials, tile by tile."""
        code, rows, width = self.code, self.rows, self.form.out_width
        start = code.at(block.v, "float", code.mul(first, self.w["v_row"]))
        whole = width // rows * rows
        with code.loop(0, whole, rows) as tiles:
            self.add_tile(start, tiles.index, rows, count, less)
        if width > whole:
            self.add_tile(start, code.add(whole, 0), width - whole, count, less)

    def add_tile(
        self, start: str, feature: str, rows: int, count: str, less: Sequence[Value]
    ) -> None:
        """A tile of features and all queries, over the keys of a chunk."""
        code, v, n = self.code, self.v, len(less)
        place = code.at(self.results, self.kind, code.mul(feature, n))
        held = []
        for i in range(rows * n):
            total = Value(code.load(self.kind, code.at(place, self.kind, i)), "float32")
            held.append(v.arith("*", total, less[i % n]).name)
        line = code.at(start, "float", feature)
        carried = [("ptr", line), ("ptr", self.scores)] + [(self.kind, h) for h in held]
        stop = code.sub(count, UNROLL - 1)
        with code.loop(0, stop, UNROLL, carried) as main:
            main.next = self.weigh(main.values, UNROLL, rows, n)
        rest = code.let(f"and i64 {count}, -{UNROLL}")
        again = list(zip([k for k, _ in carried], main.values, strict=True))
        with code.loop(rest, count, 1, again) as tail:
            tail.next = self.weigh(tail.values, 1, rows, n)
        for i, made in enumerate(tail.values[2:]):
            code.store(self.kind, made, code.at(place, self.kind, i))

    def weigh(self, values: Sequence[str], steps: int, rows: int, n: int) -> list[str]:
        """``steps`` keys: their values by the exponentials of all queries."""
        code, v, (line, row, *sums) = self.code, self.v, values
        for u in range(steps):
            weights = [
                Value(code.load(self.kind, code.at(row, self.kind, u * n + j)), "float32")
                for j in range(n)
            ]
            for r in range(rows):
                one = v.splat(Value(code.load("float", code.at(line, "float", r)), "float32"))
                for j in range(n):
                    total = Value(sums[r * n + j], "float32")
                    sums[r * n + j] = v.fma(weights[j], one, total).name
            line = code.at(line, "float", self.w["v_row"])
        return [line, code.at(row, self.kind, steps * n), *sums]
