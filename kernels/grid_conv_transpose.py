"""conv_transpose2d on a grid: one implicit product for each phase of the strides.

Results whose row and column leave the same remainders by the strides meet the same taps of the
filter: each such phase is an ordinary convolution of stride one with some of the taps, and no
multiplication by the zeros between the image's cells is left (the sub-pixel view of Shi et al.,
"Is the deconvolution layer the same as a convolutional layer?", 2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Slot
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_ROWS,
    has,
    item_size,
    not_among,
    obstacle,
    operand,
    row_major,
)
from crossdock.kernels.grid_matmul import DTYPES, no_tile
from crossdock.kernels.grid_pad import Padding, padded
from crossdock.kernels.grid_window import Assembly, Lattice, Taps, Window, implicit, prepads
from crossdock.kernels.ops_conv import TRANSPOSED_FILTER_AXES
from crossdock.kernels.ops_window import Image
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel


@dataclass(frozen=True)
class Phase:
    """Along one axis: the first result, how many, the taps that meet them, and their distances.

    Tap number t of the phase is the filter's ``tap + t * every``; result number i reads the image
    at i plus ``away[t]``.
    """

    first: int
    count: int
    tap: int
    every: int
    away: tuple[int, ...]


def phases(out: int, window: int, stride: int, dilation: int, before: int) -> Iterator[Phase]:
    """The phases along an axis of ``out`` results."""
    every = stride // int(np.gcd(stride, dilation))
    for first in range(min(stride, out)):
        reach = first + before
        taps = [k for k in range(window) if (reach - k * dilation) % stride == 0]
        away = tuple((reach - k * dilation) // stride for k in taps)
        count = -(-(out - first) // stride)
        yield Phase(first, count, taps[0] if taps else 0, every, away)


def beyond(axis: Sequence[Phase], size: int) -> tuple[int, int]:
    """How many cells the phases of an axis reach before and after an image of ``size``."""
    low = min((a for p in axis for a in p.away), default=0)
    high = max((p.count - 1 + a for p in axis for a in p.away), default=0)
    return max(0, -low), max(0, high - size + 1)


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    why = obstacle(call, device) or not_among(DTYPES, call) or no_tile(device)
    if why is not None:
        return why
    groups = call.attrs["groups"]
    return Refusal(f"more than {MAX_ROWS} groups", Cause.SIZE) if groups > MAX_ROWS else None


@dataclass
class _Phases:
    """The parts of a lowering that all phases share."""

    call: OpCall
    parts: Assembly

    def __post_init__(self) -> None:
        attrs = self.call.attrs
        layout = attrs["input_layout"]
        weights = operand(self.call, 1)
        axes = TRANSPOSED_FILTER_AXES[attrs["filter_layout"]]
        dense = row_major(weights.dims)
        self.sizes = [weights.dims[a] for a in axes]
        self.strides = [dense[a] for a in axes]
        image = Image.of(operand(self.call, 0), layout)
        result = Image.of(self.call.outputs[0], layout)
        self.images = int(image.batch)
        self.image = image
        self.bounds = (int(image.height), int(image.width))
        self.origin = (0, 0)
        self.slot: Slot = In(0)
        self.x = Lattice.of(int(image.channels), *self.bounds, layout)
        self.y = Lattice.of(int(result.channels), int(result.height), int(result.width), layout)

    def pad(self, rows: Sequence[Phase], columns: Sequence[Phase]) -> None:
        """Append a step that pads the image with all that the phases reach beyond it."""
        n, channels = self.images, int(self.image.channels)
        (top, bottom), (left, right) = (
            beyond(axis, size) for axis, size in zip((rows, columns), self.bounds, strict=True)
        )
        if not (top or bottom or left or right):
            return
        h, w = self.bounds
        layout, dtype = self.call.attrs["input_layout"], operand(self.call, 0).dtype
        if layout == "nchw":
            padding = Padding((n, channels, h, w), (0, 0, top, left), (0, 0, bottom, right))
        else:
            padding = Padding((n, h, w, channels), (0, top, left, 0), (0, bottom, right, 0))
        self.bounds, self.origin = (h + top + bottom, w + left + right), (top, left)
        self.slot = self.parts.buffer(math.prod(padding.out) * item_size(dtype))
        self.x = Lattice.of(channels, *self.bounds, layout)
        self.parts.steps.append(padded(dtype, padding, device=self.parts.device, target=self.slot))

    def add(self, rows: Phase, columns: Phase) -> None:
        """Append a phase's steps."""
        attrs, x, y = self.call.attrs, self.x, self.y
        groups = attrs["groups"]
        channels, per_out = self.sizes[0], self.sizes[1]
        per_in = channels // groups
        grid = np.meshgrid(
            np.arange(per_in), np.array(rows.away, int), np.array(columns.away, int), indexing="ij"
        )
        c, down, right = (a.reshape(-1) for a in grid)
        taps = Taps(c * x.c + down * x.h + right * x.w, down, right)
        window = Window(
            m=per_out,
            groups=groups,
            images=self.images,
            out=(rows.count, columns.count),
            steps=(1, 1),
            origin=self.origin,
            bounds=self.bounds,
            taps=taps,
            x=x,
            x_group=per_in * x.c,
            y=Lattice(y.n, y.c, attrs["strides"][0] * y.h, attrs["strides"][1] * y.w),
            y_group=per_out * y.c,
            y_offset=rows.first * y.h + columns.first * y.w,
            dtype=operand(self.call, 0).dtype,
        )
        self.parts.steps.append(
            implicit(
                window,
                self.parts.device,
                x=self.slot,
                weights=self._weights(rows, columns) if taps.count else In(0),
                table=self.parts.table(taps),
                bias=In(2) if has(self.call, 2) else None,
                checked=not prepads(self.parts.device),
            )
        )

    def _weights(self, rows: Phase, columns: Phase) -> Slot:
        """The phase's taps of the filter as rows of (group and output channel, reduction)."""
        groups = self.call.attrs["groups"]
        channels, per_out, *_ = self.sizes
        si, so, sh, sw = self.strides
        per_in = channels // groups
        return self.parts.arranged(
            1,
            (groups, per_out, per_in, len(rows.away), len(columns.away)),
            (per_in * si, so, si, rows.every * sh, columns.every * sw),
            rows.tap * sh + columns.tap * sw,
        )


@kernel("grid.conv_transpose2d.phases", "conv_transpose2d", KINDS, when=_fits, rank=20)
def lower_phases(call: OpCall, device: DeviceInfo) -> Lowered:
    """One implicit product a phase; each writes its own places of the result."""
    parts = Assembly(call, device)
    work = _Phases(call, parts)
    attrs = call.attrs
    result = Image.of(call.outputs[0], attrs["input_layout"])
    axes = [
        list(
            phases(
                size,
                work.sizes[2 + i],
                attrs["strides"][i],
                attrs["dilations"][i],
                attrs["padding"][2 * i],
            )
        )
        for i, size in enumerate((int(result.height), int(result.width)))
    ]
    if prepads(device):
        work.pad(*axes)
    for rows in axes[0]:
        for columns in axes[1]:
            work.add(rows, columns)
    return parts.lowered()
