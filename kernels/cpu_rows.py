"""Rows of images as vectors: loads with a stride and with the image's edge masked.

Window kernels (convolution, pooling) on ``nchw`` data cut every output row into vectors; the lanes
of a vector read pixels ``first, first + stride, ...`` of one input row. Lanes outside of the row
read 0 (or what the kernel asks for), so no padded copy of the image is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.devices.cpu_llvm import host_features
from crossdock.devices.program import Argument, Scalar
from crossdock.kernels.cpu_ir import Code, Index
from crossdock.kernels.cpu_vector import Value, Vector


def register_lanes() -> int:
    """float32 lanes of this processor's vector registers."""
    features = host_features()
    if "avx512f" in features:
        return 16
    return 8 if "avx" in features else 4


class Words:
    """Names for the argument words of a kernel, read where they are first asked for."""

    def __init__(self, code: Code, names: tuple[str, ...], pointers: int) -> None:
        self._values = {
            name: code.pointer(i) if i < pointers else code.word(i) for i, name in enumerate(names)
        }

    def __getitem__(self, name: str) -> str:
        return self._values[name]


def words(
    names: tuple[str, ...], slots: dict[str, Argument], numbers: dict[str, int]
) -> tuple[Argument, ...]:
    """The arguments in the order of ``names``."""
    return tuple(
        slots[name] if name in slots else Scalar(np.int64(numbers[name])) for name in names
    )


@dataclass
class RowReader:
    """Loads of ``vector.lanes`` pixels of a row of ``width`` pixels, ``stride`` apart.

    ``stride`` is 1, 2, or 0 for any other one, which the i64 ``step`` then holds.
    """

    code: Code
    vector: Vector
    width: str
    stride: int
    step: str
    outside: float = 0.0

    @property
    def reach(self) -> int:
        """Pixels that a load touches."""
        return self.vector.lanes * (2 if self.stride == 2 else 1)

    def inside(self, first: Index) -> str:
        """i1: every pixel that a load at ``first`` touches is in the row."""
        code = self.code
        if self.stride == 0:
            far = code.add(first, code.mul(self.step, self.vector.lanes - 1))
        else:
            far = code.add(first, self.reach - 1)
        low = code.let(f"icmp sge i64 {first}, 0")
        return code.let(f"and i1 {low}, {code.less(far, self.width)}")

    def mask(self, first: Index) -> str:
        """The touched pixels that are in the row, as a vector of i1."""
        code, count = self.code, self.reach
        wide = f"<{count} x i32>"
        lanes = ", ".join(f"i32 {i}" for i in range(count))
        steps = f"<{lanes}>"
        if self.stride == 0:
            steps = code.let(f"mul {wide} {steps}, {self._splat32(self.step, count)}")
        pixels = code.let(f"add {wide} {self._splat32(first, count)}, {steps}")
        return code.let(f"icmp ult {wide} {pixels}, {self._splat32(self.width, count)}")

    def lanes_between(self, low: Index, high: Index) -> str:
        """The touched pixels of lanes in [low, high), as a vector of i1."""
        code, count = self.code, self.reach
        wide = f"<{count} x i64>"
        each = 2 if self.stride == 2 else 1
        lanes = ", ".join(f"i64 {i // each}" for i in range(count))
        above = code.let(f"icmp sge {wide} <{lanes}>, {self._splat(low, count)}")
        below = code.let(f"icmp slt {wide} <{lanes}>, {self._splat(high, count)}")
        return code.let(f"and <{count} x i1> {above}, {below}")

    def load(self, row: str, first: Index) -> Value:
        """All pixels; the caller knows that they are in the row."""
        if self.stride == 0:
            return self.load_masked(row, first, self._splat_bit(self.vector.lanes))
        at = self.code.at(row, "float", first)
        raw = self.code.let(f"load <{self.reach} x float>, ptr {at}, align 4")
        return self._even(raw)

    def load_masked(self, row: str, first: Index, mask: str) -> Value:
        """The pixels that the mask names; the others read ``outside``."""
        code, count = self.code, self.reach
        kind = f"<{count} x float>"
        fill = Vector(code, count).const("float32", self.outside).name
        if self.stride == 0:
            return self._gather(row, first, mask, fill)
        fn = code.declare(
            f"llvm.masked.load.v{count}f32.p0", f"{kind} @(ptr, i32, <{count} x i1>, {kind})"
        )
        at = code.at(row, "float", first)
        raw = code.let(f"call {kind} {fn}(ptr {at}, i32 4, <{count} x i1> {mask}, {kind} {fill})")
        return self._even(raw)

    def _even(self, raw: str) -> Value:
        if self.stride == 1:
            return Value(raw, "float32")
        kind = f"<{self.reach} x float>"
        even = ", ".join(f"i32 {2 * i}" for i in range(self.vector.lanes))
        lanes = self.vector.lanes
        return Value(
            self.code.let(f"shufflevector {kind} {raw}, {kind} undef, <{lanes} x i32> <{even}>"),
            "float32",
        )

    def _gather(self, row: str, first: Index, mask: str, fill: str) -> Value:
        code, count = self.code, self.vector.lanes
        kind, wide = f"<{count} x float>", f"<{count} x i64>"
        lanes = ", ".join(f"i64 {i}" for i in range(count))
        steps = code.let(f"mul {wide} <{lanes}>, {self._splat(self.step, count)}")
        pixels = code.let(f"add {wide} {self._splat(first, count)}, {steps}")
        at = code.let(f"getelementptr float, ptr {row}, {wide} {pixels}")
        fn = code.declare(
            f"llvm.masked.gather.v{count}f32.v{count}p0",
            f"{kind} @(<{count} x ptr>, i32, <{count} x i1>, {kind})",
        )
        given = f"<{count} x ptr> {at}, i32 4, <{count} x i1> {mask}, {kind} {fill}"
        return Value(code.let(f"call {kind} {fn}({given})"), "float32")

    def _splat(self, scalar: Index, count: int) -> str:
        return Vector(self.code, count).splat(Value(str(scalar), "int64")).name

    def _splat32(self, scalar: Index, count: int) -> str:
        short = self.code.let(f"trunc i64 {scalar} to i32")
        return Vector(self.code, count).splat(Value(short, "int32")).name

    def _splat_bit(self, count: int) -> str:
        return Vector(self.code, count).const("mask", 1).name


def store_first(code: Code, value: Value, at: str, count: Index, lanes: int) -> None:
    """Store the first ``count`` lanes of a float32 vector."""
    kind, wide = f"<{lanes} x float>", f"<{lanes} x i64>"
    fn = code.declare(
        f"llvm.masked.store.v{lanes}f32.p0", f"void @({kind}, ptr, i32, <{lanes} x i1>)"
    )
    numbers = ", ".join(f"i64 {i}" for i in range(lanes))
    limit = Vector(code, lanes).splat(Value(str(count), "int64")).name
    mask = code.let(f"icmp slt {wide} <{numbers}>, {limit}")
    code.do(f"call void {fn}({kind} {value.name}, ptr {at}, i32 4, <{lanes} x i1> {mask})")
