"""The loops behind ``cpu_copy``: strided copies and gathers, by the size of an element."""

from __future__ import annotations

from collections.abc import Sequence

from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_rows import Words
from crossdock.kernels.cpu_vector import LLVM_TYPES, Value, Vector

TILE = 16
VECTOR_BYTES = 64
GATHER_WORDS = ("out", "in", "indices", "size", "count", "row")

INTEGER = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
"""What an element of so many bytes is moved as."""


def write_copy(code: Code, form: str, item: int, unit: int, outer: int) -> None:
    """Write a copy with ``outer`` outer loops.

    Words: target, source, first element of each, outer sizes, their source strides, their target
    strides, then (size, source stride, target stride) of the loop's own dimensions. In the form
    ``row`` sizes of the row count units of ``unit`` bytes; elements have ``item`` bytes.
    """
    kind = LLVM_TYPES[INTEGER[item]]
    target, source = code.pointer(0), code.pointer(1)
    target = code.at(target, kind, code.word(2))
    source = code.at(source, kind, code.word(3))
    sizes = [code.word(4 + d) for d in range(outer)]
    strides = [[code.word(4 + (1 + k) * outer + d) for d in range(outer)] for k in range(2)]
    own = [code.word(4 + 3 * outer + i) for i in range(6 if form == "tile" else 3)]
    if form == "row" and not outer:
        apart = code.let(f"icmp ne ptr {source}, {target}")  # what is in its place already stays
        with code.when(apart):
            _row(code, unit, source, target, "%begin", "%end")
        return
    blocks = code.div(code.add(own[0], TILE - 1), TILE) if form == "tile" else "1"
    with code.loop("%begin", "%end") as items:
        place = _place(code, code.div(items.index, blocks), sizes)
        s = code.at(source, kind, _offset(code, place, strides[0]))
        t = code.at(target, kind, _offset(code, place, strides[1]))
        if form == "row":
            _row(code, unit, s, t, "0", own[0])
        elif form == "any":
            with code.loop(0, own[0]) as loop:
                _element(code, kind, (s, code.mul(loop.index, own[1])),
                         (t, code.mul(loop.index, own[2])))  # fmt: skip
        else:
            first = code.mul(code.rem(items.index, blocks), TILE)
            _tiles(code, kind, s, t, own, first)


def _place(code: Code, row: str, sizes: Sequence[str]) -> list[str]:
    """The index along each outer loop."""
    place: list[str] = []
    for size in reversed(sizes[1:]):
        place.append(code.rem(row, size))
        row = code.div(row, size)
    return [row, *reversed(place)] if sizes else []


def _offset(code: Code, place: Sequence[str], strides: Sequence[str]) -> str:
    total = "0"
    for index, stride in zip(place, strides, strict=True):
        total = code.add(total, code.mul(index, stride))
    return total


def _element(code: Code, kind: str, source: tuple[str, str], target: tuple[str, str]) -> None:
    value = code.load(kind, code.at(source[0], kind, source[1]))
    code.store(kind, value, code.at(target[0], kind, target[1]))


def _row(code: Code, unit: int, source: str, target: str, begin: str, end: str) -> None:
    """Contiguous units in [begin, end): whole vectors, then the rest."""
    dtype = INTEGER[unit]
    kind, lanes = LLVM_TYPES[dtype], VECTOR_BYTES // unit
    rest = code.let(f"and i64 {code.sub(end, begin)}, {lanes - 1}")
    whole = code.sub(end, rest)
    for vector, start, stop in (
        (Vector(code, lanes), begin, whole),
        (Vector(code, 1), whole, end),
    ):
        llvm = vector.t(dtype)
        with code.loop(start, stop, vector.lanes) as loop:
            value = code.let(f"load {llvm}, ptr {code.at(source, kind, loop.index)}, align 1")
            code.do(f"store {llvm} {value}, ptr {code.at(target, kind, loop.index)}, align 1")


def _tiles(code: Code, kind: str, source: str, target: str, own: Sequence[str], first: str) -> None:
    """One stripe of tiles, each written along the target's contiguous dimension.

    The first dimension is contiguous in the source, the second in the target.
    """
    p_size, _, p_target, q_size, q_source, _ = own
    stop = code.least(code.add(first, TILE), p_size)
    with code.loop(0, q_size, TILE) as tiles:
        q_stop = code.least(code.add(tiles.index, TILE), q_size)
        with code.loop(first, stop) as p:
            t = code.at(target, kind, code.mul(p.index, p_target))
            s = code.at(source, kind, p.index)
            with code.loop(tiles.index, q_stop) as q:
                _element(code, kind, (s, code.mul(q.index, q_source)), (t, q.index))


def write_gather(code: Code, dtype: str, unit: int) -> None:
    """Write a gather of rows of ``row`` units by indices of ``dtype``.

    An item is one index under one outer position. A negative index counts from the end; what is
    still out of range is clamped.
    """
    w = Words(code, GATHER_WORDS, 3)
    kind = LLVM_TYPES[INTEGER[unit]]
    one = Vector(code, 1)
    last = code.sub(w["size"], 1)
    with code.loop("%begin", "%end") as items:
        outer, which = code.div(items.index, w["count"]), code.rem(items.index, w["count"])
        raw = one.load(code.at(w["indices"], LLVM_TYPES[dtype], which), dtype)
        index = one.convert(Value(raw.name, dtype), "int64").name
        wrapped = code.select(code.less(index, 0), code.add(index, w["size"]), index)
        index = code.greatest(code.least(wrapped, last), 0)
        line = code.add(code.mul(outer, w["size"]), index)
        source = code.at(w["in"], kind, code.mul(line, w["row"]))
        target = code.at(w["out"], kind, code.mul(items.index, w["row"]))
        _row(code, unit, source, target, "0", w["row"])
