"""Lowering to a product of bytes: operands, constants, panels and the call itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import (
    Argument,
    In,
    Lowered,
    NativeCall,
    Pack,
    Packed,
    Scalar,
    Slot,
)
from crossdock.kernels.cpu_dots import TILES, Unit, tile_unit, vector_unit
from crossdock.kernels.cpu_ir import compiled
from crossdock.kernels.cpu_quantized_epilogue import EACH, NONE, ONE
from crossdock.kernels.cpu_quantized_product import PANEL_WORDS, WORDS, Form, ProductWriter
from crossdock.kernels.cpu_rows import words
from crossdock.kernels.ops_quantized import (
    BIAS,
    BOUNDS,
    OFFSET,
    OUT_ZERO,
    PLAIN,
    SCALE,
    ends,
    operand,
    zeros_of,
)
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array, TensorSpec

GRAIN_OPS, GRAIN_TILE_OPS = 1e7, 4e7
"""Operations that are worth handing to another thread; tile registers do them faster."""

Made = Callable[[], Array]


When = Callable[[OpCall, DeviceInfo], str | None]


def offer(op: str, when: When, lower: Callable[[OpCall, int, Unit], Lowered]) -> None:
    """Register a product of bytes, quantised or exact: in tile registers, and in vector ones.

    ``lower`` is given the threads and the unit.
    """

    def tiles_fit(call: OpCall, device: DeviceInfo) -> str | None:
        if tile_unit() is None:
            return Refusal("this processor has no tile registers", Cause.LIBRARY)
        return when(call, device)

    def on_tiles(call: OpCall, device: DeviceInfo) -> Lowered:
        unit = tile_unit()
        assert unit is not None
        return lower(call, device.compute_units, unit)

    def on_vectors(call: OpCall, device: DeviceInfo) -> Lowered:
        return lower(call, device.compute_units, vector_unit())

    for name in (op, PLAIN[op]):
        kernel(f"cpu.{op}.tiles", name, ("cpu",), when=tiles_fit, rank=10)(on_tiles)
        kernel(f"cpu.{op}.vectors", name, ("cpu",), when=when, rank=15)(on_vectors)


def common_obstacle(call: OpCall) -> str | None:
    """Why a product of bytes cannot take an op's operands, or None."""
    left, right = zeros_of(call.op)
    if 1 not in call.constants:
        return Refusal("the weights are no constant", Cause.DTYPE)
    if operand(call, right) is not None and right not in call.constants:
        return Refusal("the weights' zero point is no constant", Cause.DTYPE)
    zero = operand(call, left)
    if zero is not None and zero.size != 1:
        return Refusal("a zero point for each row", Cause.SIZE)
    return None


@dataclass(frozen=True)
class Weights:
    """Constant weights less their zero point, as a sum of arrays of signed bytes: up to three."""

    call: OpCall

    @property
    def _zero(self) -> Array:
        zero = self.call.constants.get(zeros_of(self.call.op)[1])
        return np.zeros((), np.int16) if zero is None else zero.astype(np.int16)

    def count(self) -> int:
        """How many arrays it takes."""
        usual = 0 if self.call.constants[1].dtype == np.int8 else 128
        return 1 if bool((self._zero == usual).all()) else len(self.parts())

    def parts(self) -> list[Array]:
        """The arrays, in the shape of the weights."""
        rest = self.call.constants[1].astype(np.int16) - self._zero
        made: list[Array] = []
        while not made or rest.any():
            made.append(np.clip(rest, -128, 127).astype(np.int8))
            rest = rest - made[-1]
        return made

    def sums(self, axes: tuple[int, ...]) -> Array:
        """Sums over axes, as a row of int32."""
        weights = self.call.constants[1].astype(np.int32) - self._zero
        total: Array = weights.sum(axis=axes, dtype=np.int32).reshape(-1)
        return total


@dataclass
class Operands:
    """Words of a product that are slots: operands of the op, buffers, packed constants."""

    slots: dict[str, Argument] = field(default_factory=dict)
    packs: list[Pack] = field(default_factory=list)

    def pack(self, name: str, make: Made, spec: TensorSpec | None = None) -> None:
        """Add a constant; without ``spec`` it is small and made here."""
        once = cache(make)
        self.packs.append(Pack(once, TensorSpec.of(once()) if spec is None else spec))
        self.slots[name] = Packed(len(self.packs) - 1)

    def place(self, name: str, call: OpCall, index: int) -> None:
        """Add an operand: packed where it is constant, else where it lies."""
        known = call.constants.get(index)
        if known is None:
            self.slots[name] = In(index)
        else:
            flat = np.ascontiguousarray(known).reshape(-1)
            self.pack(name, lambda: flat)

    def parameters(self, call: OpCall, sums: Made) -> tuple[str, str, str]:
        """Add the zero points and what follows the sum; the kinds of bias, scale and offset."""
        channels = call.outputs[0].dims[
            -3 if call.outputs[0].rank == 4 and "strides" in call.attrs else -1
        ]
        self.pack("sums", sums, TensorSpec("int32", (channels,)))
        left = zeros_of(call.op)[0]
        if operand(call, left) is None:
            self.pack("zero", lambda: np.zeros(1, np.uint8))
        else:
            self.place("zero", call, left)
        kinds = []
        for name, index in (("bias", BIAS), ("scale", SCALE), ("offset", OFFSET)):
            spec = operand(call, index) if call.op in PLAIN else None
            kinds.append(NONE if spec is None else ONE if spec.size == 1 else EACH)
            if spec is not None:
                self.place(name, call, index)
        if call.op in PLAIN and operand(call, OUT_ZERO) is not None:
            self.place("out_zero", call, OUT_ZERO)
        bias, scale, offset = kinds
        return bias, scale, offset

    def unused(self, call: OpCall) -> frozenset[int]:
        """Operands that no step reads."""
        read = {0} | {s.index for s in self.slots.values() if isinstance(s, In)}
        return frozenset(range(len(call.inputs))) - read

    def slot(self, name: str) -> Slot:
        """Where an operand lies."""
        found = self.slots[name]
        assert isinstance(found, Slot)
        return found


def bounded(call: OpCall) -> bool:
    """Whether the real result is held between bounds."""
    return any(call.attrs.get(name) is not None for name in BOUNDS)


def bound_slots(call: OpCall) -> dict[str, Argument]:
    """The bounds as arguments, infinite where there are none."""
    low, high = ends(*(call.attrs.get(name) for name in BOUNDS))
    return {"low": Scalar(np.float64(low)), "high": Scalar(np.float64(high))}


def product_step(
    call: OpCall,
    form: Form,
    operands: Operands,
    numbers: Mapping[str, int],
    shape: tuple[int, int],
    threads: int,
) -> NativeCall:
    """The call of a product; ``shape`` are the problems and the operations of one result."""
    problems, terms = shape
    slots = dict(operands.slots)
    slots |= bound_slots(call)
    tile = form.unit.rows
    tiles = -(-numbers["row_count"] // tile)
    items = problems * numbers["panel_count"]
    parts = parts_of(tiles, items, threads)
    per = -(-tiles // parts)
    numbers = {**numbers, "parts": parts, "part_rows": per * tile}
    cost = float(per * tile * form.unit.vectors * form.unit.lanes * terms)
    for name in WORDS:  # a parameter that the form does not read
        if name not in slots and name not in numbers:
            slots[name] = In(0)
    return NativeCall(
        name=call.op,
        address=compiled(f"bytes {form}", lambda code: ProductWriter(code, form).write()),
        args=words(WORDS, slots, numbers),
        extent=items * parts,
        grain=max(1, int((GRAIN_TILE_OPS if form.unit.name == TILES else GRAIN_OPS) / cost)),
    )


def parts_of(tiles: int, items: int, threads: int) -> int:
    """Parts of the rows that are items of their own: enough for all threads."""
    if threads == 1 or items >= 8 * threads:
        return 1
    return max(1, min(tiles, -(-8 * threads // items)))


def panels_of(unit: Unit, columns: int, row: tuple[int, int] | None = None) -> Array:
    """The table of panels over columns: see ``PANEL_WORDS``.

    ``row`` is how far apart rows of results are and how many of a row's columns are results.
    """
    pitch, width = row or (columns, columns)
    vectors = -(-columns // unit.lanes)
    count = -(-vectors // unit.vectors)
    table: list[Sequence[int]] = []
    for panel in range(count):
        low, high = panel * vectors // count, (panel + 1) * vectors // count
        at = np.arange(low * unit.lanes, high * unit.lanes)
        keep = (at < columns) & (at % pitch < width)
        start = int(at[0]) // pitch * width + min(int(at[0]) % pitch, width)
        mask = sum(1 << int(i) for i in np.flatnonzero(keep))
        table.append((low, high - low, start, mask, int(keep.sum())))
    assert all(len(entry) == PANEL_WORDS for entry in table)
    return np.array(table, np.uint64)
