"""Products of matrices of bytes by constant weights on the host, with what follows them.

The left matrix is read as it lies. The weights are packed once a session: by vectors of columns,
steps of at most 64 rows, and quads of rows. The last step of a sum that is no multiple of a
step begins earlier, over terms whose weights are zero there, so that nothing beyond a row is read;
so do the last rows' tiles, over rows that are done already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.host_memory import aligned_empty
from crossdock.devices.program import In, Lowered, Out
from crossdock.kernels.cpu_dots import TILES, Unit
from crossdock.kernels.cpu_quantized_call import (
    Operands,
    Weights,
    bounded,
    common_obstacle,
    offer,
    panels_of,
    product_step,
)
from crossdock.kernels.cpu_quantized_epilogue import Terms
from crossdock.kernels.cpu_quantized_product import COLUMNS, NOTHING, Form, tile_config
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import Array, TensorSpec

STEP = 16
"""Quads of terms of a step at most: what a tile register holds."""
FEW = 64
"""Up to so many rows, reading the weights is what takes the time."""


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    why = common_obstacle(call)
    if why is not None:
        return why
    a, b = call.inputs[0], call.inputs[1]
    assert a is not None
    assert b is not None
    if math.prod(b.dims[:-2]) != 1:
        return "a batch of weights"
    if a.dims[-1] < 4:
        return Refusal("fewer than four terms", Cause.SIZE)
    return None


@dataclass(frozen=True)
class Shape:
    """Sizes of a product and of its steps; the unit's tile has no more rows than there are."""

    unit: Unit
    rows: int
    terms: int
    columns: int

    @staticmethod
    def of(call: OpCall, unit: Unit) -> Shape:
        """The shape of a call on a unit."""
        a = call.inputs[0]
        assert a is not None
        rows = math.prod(a.dims[:-1])
        unit = replace(unit, rows=max(1, min(unit.rows, rows)))
        return Shape(unit, rows, a.dims[-1], call.outputs[0].dims[-1])

    @cached_property
    def block(self) -> int:
        """Quads of a step."""
        quads = -(-self.terms // 4)
        return min(-(-quads // -(-quads // STEP)), self.terms // 4)

    @cached_property
    def starts(self) -> list[tuple[int, int]]:
        """For each step, the first term it reads and the first that counts."""
        width = 4 * self.block
        return [(min(k, self.terms - width), k) for k in range(0, self.terms, width)]

    @cached_property
    def vectors(self) -> int:
        """Vectors of columns."""
        return -(-self.columns // self.unit.lanes)

    @property
    def step_size(self) -> int:
        """Bytes of a step of a vector of columns."""
        return 4 * self.block * self.unit.lanes


def lowered(call: OpCall, threads: int, unit: Unit) -> Lowered:
    """The step on a unit."""
    s, weights, operands = Shape.of(call, unit), Weights(call), Operands()
    a = call.inputs[0]
    assert a is not None
    parts = weights.count()
    steps = len(s.starts) * parts
    kinds = operands.parameters(call, lambda: weights.sums(_others(call)))
    operands.slots |= {"out": Out(0), "rows": In(0)}
    size = s.vectors * steps * s.step_size
    operands.pack("vectors", lambda: pack_weights(s, weights), TensorSpec("int8", (size,)))
    operands.pack("steps", lambda: step_table(s, parts))
    panels = panels_of(s.unit, s.columns)
    operands.pack("panels", lambda: panels)
    tiles = unit.name == TILES
    if tiles:
        operands.pack("config", lambda: tile_config(s.unit.rows, s.block))
    signed = a.dtype == "int8"
    terms = Terms(
        False, a.dtype, 128 if signed and not tiles else 0, *kinds, call.outputs[0].dtype,
        bounded=bounded(call),
    )  # fmt: skip
    ahead = COLUMNS if s.rows <= FEW else NOTHING
    form = Form(
        s.unit, rows_signed=signed and tiles, flip=signed and not tiles,
        both_signed=signed and tiles, terms=terms, ahead=ahead,
    )  # fmt: skip
    numbers = {
        "step_count": steps, "groups": s.block, "row_stride": s.terms, "row_step": s.terms,
        "group_stride": 4 * s.unit.lanes, "vector_stride": steps * s.step_size,
        "rows_size": 0, "vectors_size": 0, "out_size": 0, "out_stride": s.columns,
        "row_count": s.rows, "last_row": s.rows - s.unit.rows,
        "panel_count": len(panels), "problem_groups": 1,
    }  # fmt: skip
    shape = (1, 8 * s.block * steps)
    step = product_step(call, form, operands, numbers, shape, threads)
    return Lowered((step,), packs=tuple(operands.packs), unused=operands.unused(call))


def _others(call: OpCall) -> tuple[int, ...]:
    """The axes of the weights but the columns."""
    return tuple(range(call.constants[1].ndim - 1))


def pack_weights(s: Shape, weights: Weights) -> Array:
    """The weights by vector of columns, step, quad of rows, column and row."""
    lanes, made = s.unit.lanes, []
    for part in weights.parts():
        wide = np.zeros((s.terms, s.vectors * lanes), np.int8)
        wide[:, : s.columns] = part.reshape(s.terms, s.columns)
        for start, first in s.starts:
            step = wide[start : start + 4 * s.block].copy()
            step[: first - start] = 0
            split = step.reshape(s.block, 4, s.vectors, lanes)
            made.append(split.transpose(2, 0, 3, 1).reshape(s.vectors, -1))
    packed = aligned_empty(sum(m.size for m in made), "int8")
    packed[...] = np.concatenate(made, axis=1).reshape(-1)
    return packed


def step_table(s: Shape, parts: int) -> Array:
    """Where each step begins in a row and in a vector of columns."""
    starts = [start for start, _ in s.starts] * parts
    return np.array([(k, i * s.step_size) for i, k in enumerate(starts)], np.int64)


offer("quantized_matmul", _fits, lowered)
