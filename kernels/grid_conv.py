"""conv2d on a grid: 1x1 as matrix products, all others but depthwise as implicit products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Slot
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_ROWS,
    has,
    not_among,
    obstacle,
    operand,
    row_major,
)
from crossdock.kernels.grid_matmul import DTYPES, FEW_ROWS, Factors, few_rows, no_tile, tiled
from crossdock.kernels.grid_pad import Padding, padded
from crossdock.kernels.grid_window import Assembly, Lattice, Taps, Window, implicit, prepads
from crossdock.kernels.ops_conv import FILTER_AXES
from crossdock.kernels.ops_window import Image
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel


@dataclass(frozen=True)
class Convolution:
    """Sizes of a conv2d, whatever its layouts are."""

    image: tuple[int, int, int, int]
    result: tuple[int, int, int, int]
    window: tuple[int, int]
    groups: int
    steps: tuple[int, int]
    dilations: tuple[int, int]
    padding: tuple[int, int, int, int]
    layout: str
    dtype: str

    @classmethod
    def of(cls, call: OpCall) -> Convolution:
        """Read an op instance."""
        attrs, layout = call.attrs, call.attrs["input_layout"]
        weights = operand(call, 1).dims
        _, _, kh, kw = (weights[a] for a in FILTER_AXES[attrs["filter_layout"]])
        return cls(
            _sizes(Image.of(operand(call, 0), layout)),
            _sizes(Image.of(call.outputs[0], layout)),
            (kh, kw),
            attrs["groups"],
            attrs["strides"],
            attrs["dilations"],
            attrs["padding"],
            layout,
            operand(call, 0).dtype,
        )

    @property
    def per_group(self) -> tuple[int, int]:
        """Input and output channels of a group."""
        return self.image[1] // self.groups, self.result[1] // self.groups

    @property
    def is_depthwise(self) -> bool:
        """True where each input channel is a group."""
        return self.groups > 1 and self.per_group[0] == 1

    @property
    def is_product(self) -> bool:
        """True where each place depends on the same place only."""
        return self.window == (1, 1) and self.steps == (1, 1) and self.padding == (0, 0, 0, 0)


def _sizes(image: Image) -> tuple[int, int, int, int]:
    return (int(image.batch), int(image.channels), int(image.height), int(image.width))


def filter_rows(parts: Assembly) -> Slot:
    """The filter as rows of (channel, row, column): as it is, or rearranged."""
    layout = parts.call.attrs["filter_layout"]
    if layout == "oihw":
        return In(1)
    dims = operand(parts.call, 1).dims
    dense, axes = row_major(dims), FILTER_AXES[layout]
    return parts.arranged(1, [dims[a] for a in axes], [dense[a] for a in axes])


def padded_image(
    parts: Assembly, conv: Convolution
) -> tuple[Slot, tuple[int, int], tuple[int, int]]:
    """The image's slot, its height and width, and where windows begin: padded where it helps."""
    n, c, h, w = conv.image
    top, bottom, left, right = conv.padding
    if not any(conv.padding) or not prepads(parts.device):
        return In(0), (h, w), (-top, -left)
    if conv.layout == "nchw":
        padding = Padding((n, c, h, w), (0, 0, top, left), (0, 0, bottom, right))
    else:
        padding = Padding((n, h, w, c), (0, top, left, 0), (0, bottom, right, 0))
    tall, wide = h + top + bottom, w + left + right
    slot = parts.buffer(n * c * tall * wide * operand(parts.call, 0).nbytes // (n * c * h * w))
    parts.steps.append(padded(conv.dtype, padding, device=parts.device, target=slot))
    return slot, (tall, wide), (0, 0)


def bias_of(call: OpCall) -> Slot | None:
    """The slot of the bias, where there is one."""
    return In(2) if has(call, 2) else None


def fits(call: OpCall, device: DeviceInfo) -> str | None:
    """What rules out every convolution kernel."""
    return obstacle(call, device) or not_among(DTYPES, call)


# --- implicit product -----------------------------------------------------------------------------


def _fits_implicit(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := fits(call, device) or no_tile(device)) is not None:
        return why
    conv = Convolution.of(call)
    if conv.is_depthwise:
        return "depthwise"
    if _fits_product(call, device) is None:
        return "a plain matrix product"
    return Refusal(f"more than {MAX_ROWS} groups", Cause.SIZE) if conv.groups > MAX_ROWS else None


def window_of(conv: Convolution, bounds: tuple[int, int], origin: tuple[int, int]) -> Window:
    """The implicit product over an image of ``bounds``; see ``Window``."""
    _, channels, *_ = conv.image
    per_in, per_out = conv.per_group
    x = Lattice.of(channels, *bounds, conv.layout)
    y = Lattice.of(*conv.result[1:], conv.layout)
    c, ky, kx = (
        a.reshape(-1) for a in np.meshgrid(*map(np.arange, (per_in, *conv.window)), indexing="ij")
    )
    down, right = ky * conv.dilations[0], kx * conv.dilations[1]
    return Window(
        m=per_out,
        groups=conv.groups,
        images=conv.image[0],
        out=conv.result[2:],
        steps=conv.steps,
        origin=origin,
        bounds=bounds,
        taps=Taps(c * x.c + down * x.h + right * x.w, down, right),
        x=x,
        x_group=per_in * x.c,
        y=y,
        y_group=per_out * y.c,
        y_offset=0,
        dtype=conv.dtype,
    )


@kernel("grid.conv2d.implicit", "conv2d", KINDS, when=_fits_implicit, rank=20)
def lower_implicit(call: OpCall, device: DeviceInfo) -> Lowered:
    """At most a padding step and a filter's rearrangement, then one product."""
    conv, parts = Convolution.of(call), Assembly(call, device)
    weights = filter_rows(parts)
    slot, bounds, origin = padded_image(parts, conv)
    window = window_of(conv, bounds, origin)
    parts.steps.append(
        implicit(
            window,
            device,
            x=slot,
            weights=weights,
            table=parts.table(window.taps),
            bias=bias_of(call),
            checked=slot == In(0) and any(conv.padding),
        )
    )
    return parts.lowered()


# --- 1x1 ------------------------------------------------------------------------------------------


def _fits_product(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := fits(call, device) or no_tile(device)) is not None:
        return why
    conv = Convolution.of(call)
    if not conv.is_product:
        return "not 1x1 with stride 1 and no padding"
    if conv.groups > 1 and (conv.layout, call.attrs["filter_layout"]) not in (
        ("nchw", "oihw"),
        ("nchw", "ohwi"),
    ):
        return "groups in this layout"
    return (
        Refusal("a batch over 65535", Cause.SIZE)
        if conv.image[0] * conv.groups > MAX_ROWS
        else None
    )


@kernel("grid.conv2d.product", "conv2d", KINDS, when=_fits_product, rank=15)
def lower_product(call: OpCall, device: DeviceInfo) -> Lowered:
    """A 1x1 convolution as one batch of matrix products."""
    factors = _product_of(call)
    small = factors.m <= FEW_ROWS and not factors.a_transposed
    return Lowered(((few_rows if small else tiled)(factors, device),))


def _product_of(call: OpCall) -> Factors:
    conv = Convolution.of(call)
    n, channels, h, w = conv.image
    per_in, per_out = conv.per_group
    rows_of_outputs = call.attrs["filter_layout"] in ("oihw", "ohwi")
    if conv.layout == "nhwc":
        return Factors(
            n * h * w,
            per_out,
            per_in,
            conv.dtype,
            b_transposed=rows_of_outputs,
            c=bias_of(call),
            c_strides=(0, 1),
        )
    return Factors(
        per_out,
        h * w,
        per_in,
        conv.dtype,
        batch=(n, conv.groups),
        a_batch=(0, per_out * per_in),
        b_batch=(channels * h * w, per_in * h * w),
        c_batch=(0, per_out),
        c_strides=(1, 0),
        a_transposed=not rows_of_outputs,
        a=In(1),
        b=In(0),
        c=bias_of(call),
    )
