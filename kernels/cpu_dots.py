"""Dot products of four bytes for each lane: what integer products are made of on the host.

A lane of a vector holds four consecutive terms of a sum. With VNNI one instruction multiplies
four unsigned bytes by four signed ones and adds them to the lane; elsewhere bytes are widened to
16 bits and multiplied in pairs. Sums are exact and wrap at 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.devices.cpu_amx import tiles_allowed
from crossdock.devices.cpu_llvm import host_features
from crossdock.kernels.cpu_ir import Code
from crossdock.kernels.cpu_vector import Value, Vector

VNNI, PAIRS, PLAIN, TILES = "vnni", "pairs", "plain", "tiles"
_PAIRS = {
    16: "llvm.x86.avx512.pmaddw.d.512",
    8: "llvm.x86.avx2.pmadd.wd",
    4: "llvm.x86.sse2.pmadd.wd",
}
_BITS = {16: 512, 8: 256, 4: 128}


@dataclass(frozen=True)
class Unit:
    """How sums of bytes are taken: the instructions, lanes of a vector, and a tile's size.

    ``rows`` and ``vectors`` are those of a register tile. ``compress`` says whether the processor
    moves chosen bytes of a vector together.
    """

    name: str
    lanes: int
    rows: int
    vectors: int
    compress: bool = False

    def __str__(self) -> str:
        return f"{self.name}{self.lanes}{'c' * self.compress}"


def vector_unit(features: frozenset[str] | None = None) -> Unit:
    """The best unit of vector instructions of these features (None: this processor's)."""
    have = host_features() if features is None else features
    if {"avx512f", "avx512bw", "avx512vl"} <= have:
        name = VNNI if "avx512vnni" in have else PAIRS
        return Unit(name, 16, 4, 4, compress="avx512vbmi2" in have)
    if "avx2" in have:
        return Unit(VNNI if "avxvnni" in have else PAIRS, 8, 4, 2)
    return Unit(PAIRS if "sse2" in have else PLAIN, 4, 4, 2)


def tile_unit() -> Unit | None:
    """The unit of tile registers, where there are any."""
    if not tiles_allowed():
        return None
    return Unit(TILES, 16, 16, 4, compress="avx512vbmi2" in host_features())


class Dots:
    """Dot products of four bytes a lane, appended to a function."""

    def __init__(self, code: Code, unit: Unit) -> None:
        self.code = code
        self.unit = unit
        self.vector = Vector(code, unit.lanes)
        self.kind = self.vector.t("int32")

    def add(self, total: str, unsigned: str, signed: str) -> str:
        """``total`` plus the products of unsigned and signed bytes, each four to a lane."""
        if self.unit.name == VNNI:
            name = f"llvm.x86.avx512.vpdpbusd.{_BITS[self.unit.lanes]}"
            kind = self.kind
            fn = self.code.declare(name, f"{kind} @({kind}, {kind}, {kind})")
            given = f"{kind} {total}, {kind} {unsigned}, {kind} {signed}"
            return self.code.let(f"call {kind} {fn}({given})")
        for a, b in zip(self.halves(unsigned, "lshr"), self.halves(signed, "ashr"), strict=True):
            total = self.code.let(f"add {self.kind} {total}, {self._pairs(a, b)}")
        return total

    def halves(self, bytes_: str, shift: str) -> tuple[str, str]:
        """Even and odd bytes as vectors of twice as many 16-bit numbers."""
        code, wide = self.code, Vector(self.code, 2 * self.unit.lanes)
        kind, eight = wide.t("int16"), wide.const("int16", 8).name
        both = code.let(f"bitcast {self.kind} {bytes_} to {kind}")
        high = code.let(f"{shift} {kind} {both}, {eight}")
        low = code.let(f"{shift} {kind} {code.let(f'shl {kind} {both}, {eight}')}, {eight}")
        return low, high

    def _pairs(self, a: str, b: str) -> str:
        """Sums of products of neighbouring 16-bit numbers."""
        code, lanes = self.code, self.unit.lanes
        short = f"<{2 * lanes} x i16>"
        if self.unit.name == PAIRS:
            fn = code.declare(_PAIRS[lanes], f"{self.kind} @({short}, {short})")
            return code.let(f"call {self.kind} {fn}({short} {a}, {short} {b})")
        a, b = (code.let(f"bitcast {short} {x} to {self.kind}") for x in (a, b))
        sixteen = self.vector.const("int32", 16).name
        parts = []
        for op in ("shl", "none"):
            x, y = (
                code.let(f"shl {self.kind} {z}, {sixteen}") if op == "shl" else z for z in (a, b)
            )
            x, y = (code.let(f"ashr {self.kind} {z}, {sixteen}") for z in (x, y))
            parts.append(code.let(f"mul {self.kind} {x}, {y}"))
        return code.let(f"add {self.kind} {parts[0]}, {parts[1]}")

    def spread(self, address: str) -> str:
        """Four bytes at an address in every lane."""
        word = self.code.let(f"load i32, ptr {address}, align 1")
        return self.vector.splat(Value(word, "int32")).name

    def load(self, address: str) -> str:
        """A vector of lanes at an address."""
        return self.code.let(f"load {self.kind}, ptr {address}, align 1")
