"""Attention on the host without a matrix of scores in memory: blocks of queries along the keys.

An item has a few vectors of queries of one head, turned so that lanes are queries. For a chunk of
keys at a time it makes the scores as a register-tiled product, keys and values read where they lie,
raises them to exponentials under the largest so far, and adds the values that they weigh as another
one; where a later chunk has a larger score, what was summed is scaled down (the online softmax of
Milakov and Gimelshein, 2018, and Dao et al., 2022, section 3.1). Every operand is read by strides.
"""

from __future__ import annotations

import math

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, NativeCall, Out, Scalar
from crossdock.kernels.cpu_attention_panel import BITS, WORDS, AttentionWriter, Form
from crossdock.kernels.cpu_conv_pack import tile_shape
from crossdock.kernels.cpu_ir import compiled
from crossdock.kernels.cpu_rows import words
from crossdock.kernels.fused_attention import WIDEST, extents_of, result_strides, strides_of
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

GRAIN_SECONDS = 10e-6
FLOPS = 80e9
"""Operations a second, about: good enough to size chunks."""


def _fits(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    if call.outputs[0].dtype != "float32":
        return Refusal(f"{call.outputs[0].dtype}, not float32", Cause.DTYPE)
    sizes = extents_of(call)
    if max(sizes.width, sizes.out_width) > WIDEST:
        return Refusal(f"heads of more than {WIDEST} features", Cause.SIZE)
    return None


@kernel("cpu.attention", "scaled_dot_product_attention", ("cpu",), when=_fits, rank=15)
@kernel("cpu.attention", "fused_attention", ("cpu",), when=_fits, rank=15)
def lower_attention(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - the same
    """Lower an attention to one native call."""
    sizes, attrs, tile = extents_of(call), call.attrs, tile_shape()
    numbers = {"length": sizes.length, "keys": sizes.keys, "heads": sizes.heads}
    numbers["each"] = sizes.heads // sizes.shared
    numbers["vectors"] = -(-sizes.length // tile.lanes)
    numbers["blocks"] = -(-numbers["vectors"] // tile.vectors)
    for i, name in enumerate("qkv"):
        places = (f"{name}_{axis}" for axis in ("first", *AXES))
        numbers |= dict(zip(places, strides_of(call, i), strict=True))
    numbers |= dict(zip((f"o_{axis}" for axis in AXES), result_strides(call), strict=True))
    bias = bias_strides(call)
    numbers |= dict(zip(("b_batch", "b_head", "b_row", "b_key"), bias, strict=True))
    numbers["offset"] = attrs["causal_offset"] or 0
    there = len(call.inputs) > 3 and call.inputs[3] is not None
    form = Form(
        sizes.width, sizes.out_width, ("full" if bias[2] else "key") if there else "",
        attrs["causal_offset"] is not None, bool(attrs["softcap"]), attrs.get("hidden_zero", True),
    )  # fmt: skip
    scale = 1 / math.sqrt(sizes.width) if attrs["scale"] is None else attrs["scale"]
    scale *= 1.0 if form.capped else BITS
    slots: dict[str, Argument] = {
        "out": Out(0), "q": In(0), "k": In(1), "v": In(2), "bias": In(3) if there else In(0),
        "scale": Scalar(np.float64(scale)), "cap": Scalar(np.float64(attrs["softcap"] or 1.0)),
    }  # fmt: skip
    items = sizes.batch * sizes.heads * numbers["blocks"]
    flops = 2.0 * sizes.batch * sizes.heads * sizes.length * sizes.keys
    flops *= sizes.width + sizes.out_width + 20
    step = NativeCall(
        name="attention",
        address=compiled(
            f"attention {tile} {form}", lambda code: AttentionWriter(code, tile, form).write()
        ),
        args=words(WORDS, slots, numbers),
        extent=items,
        grain=max(1, int(GRAIN_SECONDS * FLOPS * items / max(flops, 1.0))),
    )
    return Lowered((step,))


AXES = ("batch", "head", "row")


def bias_strides(call: OpCall) -> tuple[int, int, int, int]:
    """Strides of the bias along batch, heads, queries and keys; 0 where it repeats."""
    bias = call.inputs[3] if len(call.inputs) > 3 else None
    if bias is None:
        return 0, 0, 0, 0
    strides, step = [0, 0, 0, 0], 1
    for back in range(1, bias.rank + 1):
        if bias.dims[-back] != 1:
            strides[-back] = step
        step *= bias.dims[-back]
    return strides[0], strides[1], strides[2], strides[3]
