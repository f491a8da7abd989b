"""Convolution of ``nchw`` images of bytes on the host, with what follows it.

The image is packed once with four channels beside each other and the zero point around it; then a
tap of the window is an offset into it, and the convolution is a product (``cpu_quantized_product``)
of the filter (output channels by taps) and packed pixels, without a copy of the patches. Outputs
are taken along whole padded rows: what falls between rows is not stored. A filter
less its zero point that does not fit signed bytes is the sum of filters that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.host_memory import aligned_empty
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out, Scratch
from crossdock.kernels.cpu_dots import TILES, Unit
from crossdock.kernels.cpu_ir import compiled
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
from crossdock.kernels.cpu_quantized_pack import WORDS as PACK_WORDS
from crossdock.kernels.cpu_quantized_pack import PackForm, PackWriter
from crossdock.kernels.cpu_quantized_product import ROWS, Form, tile_config
from crossdock.kernels.cpu_rows import words
from crossdock.kernels.spec import OpCall
from crossdock.runtime.tensor import Array, TensorSpec

GRAIN_BYTES = 256 << 10
LINE = 64
"""Bytes of a cache line."""
SLACK = 1024
"""Bytes behind the packed images that tiles may read."""


def fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    """Why a convolution is none that products of bytes take, or None."""
    attrs = call.attrs
    if attrs["input_layout"] != "nchw" or attrs["filter_layout"] != "oihw":
        return f"layouts {attrs['input_layout']} and {attrs['filter_layout']}, not nchw and oihw"
    return common_obstacle(call)


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution, and those of its packed image."""

    call: OpCall
    unit: Unit

    @cached_property
    def image(self) -> tuple[int, int, int, int]:
        """Images, channels of a group, height and width."""
        spec = self.call.inputs[0]
        assert spec is not None
        batch, channels, height, width = spec.dims
        return batch, channels // self.groups, height, width

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return int(self.call.attrs["groups"])

    @cached_property
    def window(self) -> tuple[int, int]:
        """Height and width of the window."""
        spec = self.call.inputs[1]
        assert spec is not None
        return spec.dims[2], spec.dims[3]

    @cached_property
    def out(self) -> tuple[int, int, int]:
        """Output channels of a group, height and width."""
        _, channels, height, width = self.call.outputs[0].dims
        return channels // self.groups, height, width

    @cached_property
    def flat(self) -> bool:
        """Whether every output reads its own pixel: then the image is one row."""
        attrs = self.call.attrs
        return (
            self.window == (1, 1)
            and tuple(attrs["strides"]) == (1, 1)
            and not any(attrs["padding"])
        )

    @cached_property
    def taps(self) -> list[tuple[tuple[int, int], int, int]]:
        """For each tap of the window, its phase, and its offset in rows and pixels."""
        (sh, sw), (dh, dw) = self.call.attrs["strides"], self.call.attrs["dilations"]
        kh, kw = self.window
        return [
            ((y * dh % sh, x * dw % sw), y * dh // sh, x * dw // sw)
            for y in range(kh)
            for x in range(kw)
        ]

    @cached_property
    def phases(self) -> list[tuple[int, int]]:
        """The phases of the stride that taps read."""
        return sorted({phase for phase, _, _ in self.taps})

    @cached_property
    def out_rows(self) -> tuple[int, int]:
        """Rows of outputs and outputs a row, as the packed image has them."""
        _, height, width = self.out
        return (1, height * width) if self.flat else (height, width)

    @cached_property
    def packed(self) -> tuple[int, int]:
        """Rows of a phase, and pixels from one to the next."""
        height, width = self.out_rows
        return height + max(y for _, y, _ in self.taps), width + max(x for _, _, x in self.taps)

    @cached_property
    def quads(self) -> int:
        """Quads of channels of a group."""
        return -(-self.image[1] // 4)

    @cached_property
    def blocks(self) -> int:
        """Blocks of quads: a tile register holds 16 of them."""
        return -(-self.quads // 16) if self.unit.name == TILES else 1

    @cached_property
    def block(self) -> int:
        """Quads of a block."""
        return -(-self.quads // self.blocks)

    @cached_property
    def quad_size(self) -> int:
        """Bytes from the planes of a quad to the next: an odd number of cache lines.

        So the quads of a tile do not meet in a few sets of the cache.
        """
        rows, pitch = self.packed
        lines = -(-4 * rows * pitch * len(self.phases) // LINE)
        return LINE * (lines + 1 - lines % 2)

    @property
    def problem_size(self) -> int:
        """Bytes of the packed image of a problem."""
        return self.blocks * self.block * self.quad_size

    @property
    def nbytes(self) -> int:
        """Bytes of all packed images."""
        return self.image[0] * self.groups * self.problem_size + SLACK


def lowered(call: OpCall, threads: int, unit: Unit) -> Lowered:
    """The steps on a unit: pack the image, multiply."""
    g, weights, operands = Geometry(call, unit), Weights(call), Operands()
    image = call.inputs[0]
    assert image is not None
    parts = weights.count()
    outputs = g.out[0]
    rows = -(-outputs // unit.rows) * unit.rows
    steps = len(g.taps) * g.blocks * parts
    step_size = 4 * g.block * rows
    kinds = operands.parameters(call, lambda: weights.sums((1, 2, 3)))
    operands.slots |= {"out": Out(0), "vectors": Scratch(0)}
    packed = TensorSpec("int8", (g.groups * steps * step_size,))
    operands.pack("rows", lambda: pack_filter(g, weights.parts()), packed)
    operands.pack("steps", lambda: step_table(g, parts))
    panels = panels_of(unit, pixels(g), (g.packed[1], g.out_rows[1]))
    operands.pack("panels", lambda: panels)
    if unit.name == TILES:
        operands.pack("config", lambda: tile_config(unit.rows, g.block))
    operands.pack("phases", lambda: phase_table(g))
    signed = image.dtype == "int8"
    terms = Terms(
        True, image.dtype, 128 if signed else 0, *kinds, call.outputs[0].dtype,
        bounded=bounded(call), sparse=g.packed[1] != g.out_rows[1],
    )  # fmt: skip
    form = Form(unit, rows_signed=True, flip=False, both_signed=False, terms=terms, ahead=ROWS)
    plane_out = g.out[1] * g.out[2]
    numbers = {
        "step_count": steps, "groups": g.block, "row_stride": 4 * g.block,
        "row_step": 4 * g.block * steps, "group_stride": g.quad_size,
        "vector_stride": 4 * unit.lanes, "rows_size": steps * step_size,
        "vectors_size": g.problem_size, "out_size": outputs * plane_out,
        "out_stride": plane_out, "row_count": outputs, "last_row": rows,
        "panel_count": len(panels), "problem_groups": g.groups,
    }  # fmt: skip
    shape = (g.image[0] * g.groups, 8 * g.block * steps)
    step = product_step(call, form, operands, numbers, shape, threads)
    pack = pack_call(g, operands, signed=signed)
    return Lowered((pack, step), (g.nbytes,), tuple(operands.packs), operands.unused(call))


def pixels(g: Geometry) -> int:
    """Outputs of a plane with those between rows that are none."""
    height, width = g.out_rows
    return (height - 1) * g.packed[1] + width


def pack_filter(g: Geometry, parts: Sequence[Array]) -> Array:
    """The filter by group, tile of rows, step, row and byte."""
    outputs, channels, rows = g.out[0], g.image[1], g.unit.rows
    tiles, width, taps = -(-outputs // rows), g.blocks * g.block * 4, len(g.taps)
    made = []
    for part in parts:
        wide = np.zeros((g.groups, tiles * rows, width, taps), np.int8)
        wide[:, :outputs, :channels] = part.reshape(g.groups, outputs, channels, taps)
        split = wide.reshape(g.groups, tiles, rows, g.blocks, 4 * g.block, taps)
        made.append(split.transpose(0, 1, 5, 3, 2, 4))
    packed = aligned_empty(sum(m.size for m in made), "int8")
    packed[...] = np.concatenate(made, axis=2).reshape(-1)
    return packed


def step_table(g: Geometry, parts: int) -> Array:
    """Where each step begins in a tile of rows and in the packed image."""
    rows, pitch = g.packed
    table: list[tuple[int, int]] = []
    for _ in range(parts):
        for phase, y, x in g.taps:
            start = 4 * ((g.phases.index(phase) * rows + y) * pitch + x)
            for block in range(g.blocks):
                table.append(
                    (len(table) * g.unit.rows * 4 * g.block, start + block * g.block * g.quad_size)
                )
    return np.array(table, np.int64)


def phase_table(g: Geometry) -> Array:
    """For each phase: first source row and column, and the packed columns inside the image."""
    (_, sw), (top, _, left, _) = g.call.attrs["strides"], g.call.attrs["padding"]
    width = g.image[2] * g.image[3] if g.flat else g.image[3]
    table = []
    for y, x in g.phases:
        first = x - left
        low = min(max(0, -(first // sw)), g.packed[1])
        high = min(max(low, -(-(width - first) // sw)), g.packed[1])
        table.append((y - top, first, low, high))
    return np.array(table, np.int64)


def pack_call(g: Geometry, operands: Operands, *, signed: bool) -> NativeCall:
    """The step that packs the image."""
    (sh, sw), (batch, channels, height, width) = g.call.attrs["strides"], g.image
    form = PackForm(g.unit, signed, sw if sw in (1, 2) else 0)
    numbers = {
        "channels": channels, "quads": g.quads, "plane_in": height * width,
        "width": height * width if g.flat else width, "height": 1 if g.flat else height,
        "rows": g.packed[0], "pitch": g.packed[1], "quad_size": g.quad_size,
        "problem_size": g.problem_size, "stride_y": sh, "stride_x": sw,
        "phase_count": len(g.phases),
    }  # fmt: skip
    slots: dict[str, Argument] = {
        "out": Scratch(0), "in": In(0),
        "zero": operands.slot("zero"), "phases": operands.slot("phases"),
    }  # fmt: skip
    return NativeCall(
        name="pack bytes",
        address=compiled(f"pack bytes {form}", lambda code: PackWriter(code, form).write()),
        args=words(PACK_WORDS, slots, numbers),
        extent=batch * g.groups * g.quads,
        grain=max(1, GRAIN_BYTES // g.quad_size),
    )


offer("quantized_conv2d", fits, lowered)
