"""Convolution of small ``nchw`` float32 images on the host, with output channels as lanes.

An image of 7x7 pixels fills three vectors of 16 and leaves the fourth all but empty; and its filter
is larger than it, so that reading the filter once for each few vectors of pixels costs more than
the arithmetic. Here a register tile is a few vectors of output channels by about a dozen pixels,
every pixel is broadcast, and each block of the filter is read once for all pixels while it is in
the first-level cache. Patches are packed as for ``cpu_conv``; sums are turned before they are
stored.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
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
from crossdock.kernels.cpu_conv import geometry, is_point, pack_filter
from crossdock.kernels.cpu_conv_pack import SIGNATURE, UNROLLED, PackWriter, TileShape, tile_shape
from crossdock.kernels.cpu_conv_small_stages import WORDS, Form, SmallWriter
from crossdock.kernels.cpu_epilogue import Epilogue, epilogue_obstacle, epilogue_of
from crossdock.kernels.cpu_ir import compiled
from crossdock.kernels.cpu_rows import words
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import TensorSpec

PIXELS = 256
"""Results of an image that are few."""


def form_of(epilogue: Epilogue) -> Form:
    """The tiles for this processor: sums, weights and a pixel fill its registers."""
    tile = tile_shape()
    many = tile.rows >= 8
    shape = TileShape(tile.lanes, tile.rows, 64 // tile.lanes, tile.taps)
    return Form(shape, 2, 13 if many else 5, 96, epilogue)


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    attrs, filters, out = call.attrs, call.inputs[1], call.outputs[0]
    assert filters is not None
    if out.dtype != "float32":
        return Refusal(f"{out.dtype}, not float32", Cause.DTYPE)
    if attrs["input_layout"] != "nchw" or attrs["filter_layout"] != "oihw":
        return f"layouts {attrs['input_layout']} and {attrs['filter_layout']}, not nchw and oihw"
    if out.dims[2] * out.dims[3] > PIXELS:
        return Refusal(f"more than {PIXELS} pixels in a result", Cause.SIZE)
    if filters.dims[0] // attrs["groups"] < tile_shape().lanes:
        return Refusal("fewer channels than lanes", Cause.SIZE)
    if 1 not in call.constants:
        return "the filter is no constant"
    return epilogue_obstacle(call)


@kernel("cpu.conv2d.small", "conv2d", ("cpu",), when=_fits, rank=27)
@kernel("cpu.conv2d.small", "fused_conv2d", ("cpu",), when=_fits, rank=27)
def lower_small(call: OpCall, device: DeviceInfo) -> Lowered:
    """Lower a convolution of small images to one native call."""
    epilogue, residual = epilogue_of(call)
    form = form_of(epilogue)
    numbers = small_geometry(call, form, device.compute_units)
    packing = numbers | {"rows": form.channels, "block": numbers["channels"]}
    size = numbers["groups"] * numbers["tiles"] * form.channels * numbers["taps"]
    pack = Pack(lambda: pack_filter(call.constants[1], packing), TensorSpec("float32", (size,)))
    bias = len(call.inputs) > 2 and call.inputs[2] is not None
    stride = numbers["sw"] if numbers["sw"] in (1, 2) else 0
    width = numbers["kw"] if numbers["kw"] <= UNROLLED else 0
    point = is_point(call)
    packer = compiled(
        f"conv2d pack {form.shape} {stride} {width} {point}",
        lambda code: PackWriter(code, form.shape, stride, width, point).write(),
        SIGNATURE,
    )
    slots: dict[str, Argument] = {
        "out": Out(0), "in": In(0), "filter": Packed(0), "bias": In(2) if bias else In(0),
        "pack": packer, "residual": residual, "scratch": Scratch(0),
    }  # fmt: skip
    step = NativeCall(
        name="conv2d small",
        address=compiled(f"conv2d small {form}", lambda code: SmallWriter(code, form).write()),
        args=words(WORDS, slots, numbers | {"biased": int(bias)}),
        extent=numbers["items"],
    )
    scratch = 4 * numbers["items"] * numbers["item_floats"]
    return Lowered((step,), (scratch,), (pack,), frozenset({1}))


def small_geometry(call: OpCall, form: Form, threads: int) -> dict[str, int]:
    """The numbers among the kernel's words; ``panels`` are the parts of an image's pixels."""
    found = geometry(call, threads)
    wide = form.shape.vectors
    panels = -(-found["vectors"] // wide)
    tiles = -(-found["outputs"] // form.channels)
    each = call.outputs[0].dims[0] * found["groups"] * panels
    parts = 1 if each >= threads else min(tiles, -(-threads // each))
    part_tiles = -(-tiles // parts)
    parts = -(-tiles // part_tiles)
    taps = found["channels"] * found["kh"] * found["kw"]
    jobs = each * parts
    return found | {
        "panels": panels, "tiles": tiles, "parts": parts, "part_tiles": part_tiles, "taps": taps,
        "jobs": jobs, "items": min(threads, jobs), "item_floats": taps * form.shape.wide + 16,
        "share": 1, "shares": panels,
    }  # fmt: skip
