"""Convolution of ``nchw`` float32 images on the host, as an implicit matrix product.

The result of one image is a product of the filter (output channels by taps) and the image's
patches (taps by pixels). Patches are never stored: for a few vectors of pixels at a time the taps
of one block of channels are packed into a panel that stays in the first-level cache, and a register
tile of a few channels by a few vectors runs over the panel, once for each tile of the
filter. The filter is packed once a session, in the order in which the tiles read it. After K. Goto
and R. van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008); the packing of
patches on the way is that of cuDNN's implicit product (Chetlur et al. 2014, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.host_memory import aligned_empty
from crossdock.devices.program import (
    Argument,
    ArrayCall,
    In,
    Lowered,
    NativeCall,
    Out,
    Pack,
    Packed,
    Scratch,
    Slot,
    Step,
)
from crossdock.kernels.cpu_conv_pack import (
    SIGNATURE,
    UNROLLED,
    WORDS,
    PackWriter,
    tile_shape,
)
from crossdock.kernels.cpu_conv_panel import SHARE, PanelWriter
from crossdock.kernels.cpu_epilogue import epilogue_obstacle, epilogue_of
from crossdock.kernels.cpu_ir import compiled
from crossdock.kernels.cpu_rows import words
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array, TensorSpec

L2_BYTES = 512 << 10
GRAIN_FLOPS = 2e6
"""Work that is worth handing to another thread."""


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    attrs = call.attrs
    if call.outputs[0].dtype != "float32":
        return Refusal(f"{call.outputs[0].dtype}, not float32", Cause.DTYPE)
    if attrs["input_layout"] != "nchw" or attrs["filter_layout"] != "oihw":
        return f"layouts {attrs['input_layout']} and {attrs['filter_layout']}, not nchw and oihw"
    filters = call.inputs[1]
    assert filters is not None
    if filters.dims[2] * filters.dims[3] > SHARE * tile_shape().taps:
        return Refusal(
            f"a window of {filters.dims[2]} x {filters.dims[3]} does not fit a panel", Cause.SIZE
        )
    return epilogue_obstacle(call)


@kernel("cpu.conv2d.panel", "conv2d", ("cpu",), when=_fits, rank=20)
@kernel("cpu.conv2d.panel", "fused_conv2d", ("cpu",), when=_fits, rank=20)
def lower_conv2d(call: OpCall, device: DeviceInfo) -> Lowered:
    """Lower a convolution to one native call over panels of pixels."""
    shape = geometry(call, device.compute_units)
    spec = TensorSpec("float32", (shape["groups"] * packed_size(shape),))
    packed = 1 in call.constants
    steps: list[Step] = []
    if not packed:
        slot: Slot = Scratch(0)
        weights = call.inputs[1]
        steps.append(
            ArrayCall(
                lambda xp, ins, outs: _write_packed(xp, ins[0], outs[0], shape),
                (In(1),),
                (slot,),
                (weights,),
                (spec,),
            )
        )
        packs: tuple[Pack, ...] = ()
        scratch: tuple[int, ...] = (spec.nbytes,)
    else:
        slot, scratch = Packed(0), ()
        packs = (Pack(lambda: pack_filter(call.constants[1], shape), spec),)
    steps.append(_native(call, shape, slot))
    return Lowered(tuple(steps), scratch, packs, frozenset({1} if packed else ()))


def packed_size(shape: Mapping[str, int]) -> int:
    """Elements of one group's packed filter."""
    taps = shape["kh"] * shape["kw"] * shape["channels"]
    return -(-shape["outputs"] // shape["rows"]) * shape["rows"] * taps


def pack_filter(filters: Array, shape: Mapping[str, int]) -> Array:
    """Pack an ``oihw`` filter: by group, block of taps, tile of outputs, tap, output."""
    packed = aligned_empty(shape["groups"] * packed_size(shape), "float32")
    _write_packed(np, filters, packed, shape)
    return packed


def _write_packed(xp: Any, filters: Any, out: Any, shape: Mapping[str, int]) -> None:
    groups, outputs, rows = shape["groups"], shape["outputs"], shape["rows"]
    block = shape["block"] * shape["kh"] * shape["kw"]
    tiles, taps = -(-outputs // rows), shape["channels"] * shape["kh"] * shape["kw"]
    padded = filters.reshape(groups, outputs, taps)
    if outputs % rows:
        padded = xp.zeros((groups, tiles * rows, taps), "float32")
        padded[:, :outputs] = filters.reshape(groups, outputs, taps)
    tiled = padded.reshape(groups, tiles, rows, taps)
    whole = out.reshape(groups, tiles * rows * taps)
    for start in range(0, taps, block):
        stop = min(start + block, taps)
        part = whole[:, start * tiles * rows : stop * tiles * rows]
        part = part.reshape(groups, tiles, stop - start, rows)
        part[...] = tiled[:, :, :, start:stop].transpose(0, 1, 3, 2)


def geometry(call: OpCall, threads: int) -> dict[str, int]:
    """The numbers among the kernel's words, and ``items``: how many there are to share."""
    image, filters, result = call.inputs[0], call.inputs[1], call.outputs[0]
    assert image is not None
    assert filters is not None
    batch, channels, height, width = image.dims
    outputs, _, kh, kw = filters.dims
    groups = call.attrs["groups"]
    channels, outputs = channels // groups, outputs // groups
    (sh, sw), (dh, dw) = call.attrs["strides"], call.attrs["dilations"]
    top, _, left, _ = call.attrs["padding"]
    out_width, plane_out = result.dims[3], result.dims[2] * result.dims[3]
    if is_point(call):
        height, width, out_width = 1, height * width, plane_out
    elif width == kw == out_width == 1 and left == 0:  # a column of pixels lies as a row does
        height, width, out_width = 1, height, plane_out
        kh, kw, sh, sw, dh, dw, top, left = 1, kh, sw, sh, dw, dh, 0, top
    tile = tile_shape()
    vectors = -(-plane_out // tile.lanes)
    panels = -(-vectors // tile.vectors)
    most = max(1, tile.taps // (kh * kw))
    blocks = -(-channels // most)
    block = -(-channels // blocks)
    alone = block * kh * kw > tile.taps  # its panel takes the room of several
    share = 1 if alone else share_of(panels, outputs, channels * kh * kw)
    shares = -(-panels // share)
    tiles = -(-outputs // tile.rows)
    parts = parts_of(tiles, batch * groups * shares, threads)
    return {
        "channels": channels, "height": height, "width": width,
        "out_width": out_width, "plane_out": plane_out, "kh": kh, "kw": kw,
        "sh": sh, "sw": sw, "dh": dh, "dw": dw, "top": top, "left": left,
        "outputs": outputs, "groups": groups, "vectors": vectors, "panels": panels,
        "shares": shares, "share": share, "parts": parts,
        "part_rows": -(-tiles // parts) * tile.rows, "rows": tile.rows,
        "block": block, "blocks": blocks,
        "items": batch * groups * shares * parts,
    }  # fmt: skip


def is_point(call: OpCall) -> bool:
    """The window is one pixel, and every output reads its own."""
    filters = call.inputs[1]
    assert filters is not None
    one = (*filters.dims[2:], *call.attrs["strides"]) == (1, 1, 1, 1)
    return one and not any(call.attrs["padding"])


def share_of(panels: int, outputs: int, taps: int) -> int:
    """Panels that one item works on: several where the filter leaves the L2 cache meanwhile."""
    if 4 * outputs * taps <= L2_BYTES // 2:
        return 1
    count = -(-panels // SHARE)
    return -(-panels // count)


def parts_of(tiles: int, items: int, threads: int) -> int:
    """Parts of the output channels that are items of their own: enough for all threads."""
    if threads == 1 or items >= 4 * threads:
        return 1
    return max(1, min(tiles // 8, -(-4 * threads // max(1, items))))


def _native(call: OpCall, shape: dict[str, int], filters: Slot) -> NativeCall:
    bias = len(call.inputs) > 2 and call.inputs[2] is not None
    tile = tile_shape()
    stride = shape["sw"] if shape["sw"] in (1, 2) else 0
    width = shape["kw"] if shape["kw"] <= UNROLLED else 0
    point = is_point(call)
    pack = compiled(
        f"conv2d pack {tile} {stride} {width} {point}",
        lambda code: PackWriter(code, tile, stride, width, point).write(),
        SIGNATURE,
    )
    epilogue, residual = epilogue_of(call)
    slots: dict[str, Argument] = {
        "out": Out(0), "in": In(0), "filter": filters, "residual": residual,
        "bias": In(2) if bias else In(0), "pack": pack,
    }  # fmt: skip
    flops = 2.0 * call.outputs[0].size * shape["kh"] * shape["kw"] * shape["channels"]
    return NativeCall(
        name="conv2d",
        address=compiled(
            f"conv2d {tile} {point} {epilogue}",
            lambda code: PanelWriter(code, tile, epilogue, point).write(),
        ),
        args=words(WORDS, slots, {**shape, "biased": int(bias)}),
        extent=shape["items"],
        grain=max(1, int(GRAIN_FLOPS * shape["items"] / max(flops, 1.0))),
    )
