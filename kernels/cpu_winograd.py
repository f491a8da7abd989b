"""Winograd convolution of ``nchw`` float32 images on the host: windows 3x3 and 5x5, stride 1.

The image is cut into overlapping tiles. Their transforms, filter and result are matrices for each
element of a tile, so that the convolution is ``n * n`` products of matrices with fewer
multiplications than the convolution has (see ``cpu_winograd_math``; Lavin and Gray 2016). Tiles are
the lanes of vectors: lines of pixels are transformed along columns as they are, taken apart by
their place in a tile, and transformed along rows. A part of the tile rows goes through all stages
at a time, so that what passes between the stages stays in the second-level cache.

The transforms cost accuracy. It is measured on each layer's own filter, see ``error_of``. They also
add what lies in a tile, so that an infinity or NaN (or numbers near the largest) makes NaN of all
its results, where the convolution has them in the window around it alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.host_memory import aligned_empty
from crossdock.devices.program import (
    Argument,
    In,
    Lowered,
    NativeCall,
    Out,
    Pack,
    Packed,
    Scratch,
)
from crossdock.kernels.cpu_conv_pack import tile_shape
from crossdock.kernels.cpu_epilogue import epilogue_obstacle, epilogue_of
from crossdock.kernels.cpu_ir import compiled
from crossdock.kernels.cpu_rows import words
from crossdock.kernels.cpu_winograd_error import error_of
from crossdock.kernels.cpu_winograd_math import as_array, filtering
from crossdock.kernels.cpu_winograd_stages import WORDS, Form, StagesWriter
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.settings import fast_error
from crossdock.runtime.tensor import Array, TensorSpec

STAGE_BYTES = 512 << 10
"""What the transformed image of an item may take, and half as much the products."""

IMAGE_CYCLES, RESULT_CYCLES = 170.0, 190.0
"""About what transforming a vector of tiles of F(4, 3) takes."""


@dataclass(frozen=True)
class Plan:
    """How a layer's tiles and channels are shared out; counts, ``chunk`` in output channels."""

    rows: int
    units: int
    parts: int
    part_rows: int
    chunk: int
    span: int
    items: int
    jobs: int


@dataclass(frozen=True)
class Layer:
    """Sizes of a convolution; channels and outputs are those of a group."""

    m: int
    r: int
    batch: int
    groups: int
    channels: int
    outputs: int
    height: int
    width: int

    @property
    def n(self) -> int:
        """Pixels of a tile along one axis."""
        return self.m + self.r - 1

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles in an image."""
        return -(-self.height // self.m), -(-self.width // self.m)


def layer_of(call: OpCall, m: int) -> Layer:
    """The sizes of a call; height and width are the result's."""
    image, filters, result = call.inputs[0], call.inputs[1], call.outputs[0]
    assert image is not None
    assert filters is not None
    groups = call.attrs["groups"]
    outputs, channels, r, _ = filters.dims
    batch, _, height, width = result.dims
    return Layer(m, r, batch, groups, channels, outputs // groups, height, width)


def plan_of(layer: Layer, threads: int) -> Plan:
    """The cheapest way to share a layer out, by the arithmetic of its stages."""
    tile = tile_shape()
    down, across = layer.tiles
    tile_rows, square = layer.batch * down, layer.n * layer.n
    most = STAGE_BYTES // (4 * square * layer.channels)
    most = max(1, max(most, tile.wide) // across)
    ways = [
        (units, parts)
        for units in sorted({-(-tile_rows // n) for n in range(1, min(most, tile_rows) + 1)})
        for parts in sorted({1, threads})
        if parts == 1 or parts * 2 * tile.rows <= layer.outputs
    ]
    units, parts = min(ways, key=lambda way: _cycles(layer, way[0], way[1], threads))
    vectors = max(_vectors(layer, units))
    rows = 2 * tile.rows if vectors == 1 else tile.rows
    part_rows = -(-layer.outputs // (parts * rows)) * rows
    span = vectors * tile.lanes
    chunk = max(1, STAGE_BYTES // 2 // (4 * square * span * rows)) * rows
    jobs = units * parts * layer.groups
    return Plan(
        rows, units, parts, part_rows, min(chunk, part_rows), span, min(threads, jobs), jobs
    )


def _vectors(layer: Layer, units: int) -> list[int]:
    """Vectors of tiles in each of so many units, which share the rows of tiles evenly."""
    down, across = layer.tiles
    ends = [i * layer.batch * down // units for i in range(units + 1)]
    lanes = tile_shape().lanes
    return [-(-(b - a) * across // lanes) for a, b in itertools.pairwise(ends)]


def _cycles(layer: Layer, units: int, parts: int, threads: int) -> float:
    """About what the thread with most to do takes; jobs are dealt out in order."""
    square, each = layer.n * layer.n, -(-layer.outputs // parts)
    vector = IMAGE_CYCLES * layer.channels + RESULT_CYCLES * each
    vector += square * layer.channels * each / 2 * 1.1
    reading = square * layer.channels * each / 4.0
    jobs = [vector * count + reading for count in _vectors(layer, units)] * parts * layer.groups
    items = min(threads, len(jobs))
    ends = [i * len(jobs) // items for i in range(items + 1)]
    return max(sum(jobs[a:b]) for a, b in itertools.pairwise(ends))


def _item_floats(layer: Layer, plan: Plan, lanes: int) -> int:
    """Elements of an item's scratch memory; see ``StagesWriter.buffers``."""
    pitch = plan.span * layer.m + 2 * lanes
    copies, square = -(-layer.n // layer.m), layer.n * layer.n
    image, result = layer.channels * plan.span + lanes, plan.chunk * plan.span + lanes
    total = pitch * (copies * layer.n + layer.m) + square * (image + result)
    return -(-total // 1024) * 1024 + 16 * lanes


def pack_filter(filters: Array, layer: Layer, plan: Plan) -> Array:
    """G g G', in the order in which it is read.

    By group, chunk of output channels, element of a tile, register tile, channel, output.
    """
    f = filtering(layer.m, layer.r)
    g = as_array(f.filter)
    square, rows = layer.n * layer.n, plan.rows
    both = np.kron(g, g)  # of rows of a window one after the other
    taps = filters.reshape(-1, layer.r * layer.r).astype(np.float64)
    made = (both @ taps.T).astype(np.float32)
    made = made.reshape(square, layer.groups, layer.outputs, layer.channels)
    count = -(-layer.outputs // rows) * rows
    padded = np.zeros((layer.groups, square, count, layer.channels), np.float32)
    padded[:, :, : layer.outputs] = made.transpose(1, 0, 2, 3)
    packed = aligned_empty(padded.size, "float32")
    at = 0
    for group in padded:
        for low in range(0, count, plan.part_rows):
            high = min(low + plan.part_rows, count)
            for first in range(low, high, plan.chunk):
                chunk = group[:, first : min(first + plan.chunk, high)]
                tiled = chunk.reshape(square, -1, rows, layer.channels).swapaxes(2, 3)
                packed[at : at + chunk.size].reshape(tiled.shape)[...] = tiled
                at += chunk.size
    return packed


def _fits(m: int, r: int) -> Callable[[OpCall, DeviceInfo], str | None]:
    def fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a guard
        attrs, filters = call.attrs, call.inputs[1]
        assert filters is not None
        if call.outputs[0].dtype != "float32":
            return Refusal(f"{call.outputs[0].dtype}, not float32", Cause.DTYPE)
        if attrs["input_layout"] != "nchw" or attrs["filter_layout"] != "oihw":
            return (
                f"layouts {attrs['input_layout']} and {attrs['filter_layout']}, not nchw and oihw"
            )
        window = (*filters.dims[2:], *attrs["strides"], *attrs["dilations"])
        if window != (r, r, 1, 1, 1, 1):
            return f"not a window of {r} x {r} with strides and dilations of 1"
        if filters.dims[1] < 8 or filters.dims[0] // attrs["groups"] < 8:
            return Refusal("fewer than 8 channels: the transforms cost more", Cause.SIZE)
        constant = call.constants.get(1)
        if constant is None:
            return "the filter is no constant"
        allowed = fast_error()
        if not allowed:
            return "exact algorithms alone are allowed (CROSSDOCK_FAST_ERROR is 0)"
        error = error_of(constant, m, r)
        if error > allowed:
            return f"an error of {error:.1e} on this filter; {allowed:.1e} is allowed"
        return epilogue_obstacle(call)

    return fits


def _lower(m: int, r: int) -> Callable[[OpCall, DeviceInfo], Lowered]:
    def lower(call: OpCall, device: DeviceInfo) -> Lowered:
        layer = layer_of(call, m)
        plan = plan_of(layer, device.compute_units)
        filters = call.constants[1]
        tile = tile_shape()
        rows = plan.rows
        size = layer.groups * layer.n**2 * layer.channels * -(-layer.outputs // rows) * rows
        pack = Pack(lambda: pack_filter(filters, layer, plan), TensorSpec("float32", (size,)))
        form = Form(tile.lanes, rows, tile.vectors, m, r, epilogue_of(call)[0])
        step = _native(call, layer, plan, form)
        scratch = 4 * plan.items * _item_floats(layer, plan, tile.lanes)
        return Lowered((step,), (scratch,), (pack,), frozenset({1}))

    return lower


for _m, _r, _rank in ((4, 3, 25), (2, 3, 26), (2, 5, 25)):
    for _op in ("conv2d", "fused_conv2d"):
        kernel(
            f"cpu.conv2d.winograd-{_m}x{_r}", _op, ("cpu",),
            when=_fits(_m, _r), rank=_rank, exact=False,
        )(_lower(_m, _r))  # fmt: skip


def _native(call: OpCall, layer: Layer, plan: Plan, form: Form) -> NativeCall:
    image = call.inputs[0]
    assert image is not None
    down, across = layer.tiles
    top, _, left, _ = call.attrs["padding"]
    bias = len(call.inputs) > 2 and call.inputs[2] is not None
    numbers = {
        "channels": layer.channels, "height": image.dims[2], "width": image.dims[3],
        "out_height": layer.height, "out_width": layer.width, "top": top, "left": left,
        "outputs": layer.outputs, "groups": layer.groups, "tiles_x": across, "tiles_y": down,
        "tile_rows": layer.batch * down, "units": plan.units,
        "parts": plan.parts, "part_rows": plan.part_rows, "chunk": plan.chunk,
        "items": plan.items, "jobs": plan.jobs, "span": plan.span,
        "item_floats": _item_floats(layer, plan, form.lanes), "biased": int(bias),
    }  # fmt: skip
    slots: dict[str, Argument] = {
        "out": Out(0), "in": In(0), "filter": Packed(0), "bias": In(2) if bias else In(0),
        "residual": epilogue_of(call)[1], "scratch": Scratch(0),
    }  # fmt: skip
    f = filtering(form.m, form.r)
    return NativeCall(
        name="winograd",
        address=compiled(
            f"winograd {form}",
            lambda code: StagesWriter(code, form, f).write(),
            as_written=True,
        ),
        args=words(WORDS, slots, numbers),
        extent=plan.items,
    )
