"""Running sums and products, and local response normalisation on a grid: windows along one axis."""

from __future__ import annotations

import math

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Out
from crossdock.kernels.grid_common import (
    COMPUTE,
    KINDS,
    Args,
    accessors,
    define,
    f32,
    i32,
    launch,
    not_among,
    obstacle,
    on_cpu,
    operand,
    vector_width,
    wrapped,
)
from crossdock.kernels.grid_math import prelude
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_RUNNING = r"""
KERNEL void scan(CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner) {
    const i32 i = GLOBAL_ID(0);
    if (i < count) {
        const i32 base = i / inner * length * inner + i % inner;
        T_C acc = FIRST;
        for (i32 k = 0; k < length; ++k) {
            const i32 at = base + (REVERSED ? length - 1 - k : k) * inner;
            const T_C v = T_LOAD(x, at);
            if (EXCLUSIVE) T_STORE(y, at, acc);
            acc = JOIN(acc, v);
            if (!EXCLUSIVE) T_STORE(y, at, acc);
        }
    }
}
"""

_RESPONSE = r"""
KERNEL void respond(CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, i32 n, i32 channels, i32 inner,
                    i32 before, i32 after, float bias, float share, float beta) {
    const i32 i = GLOBAL_ID(0);
    if (i < n) {
        const i32 channel = i / inner % channels;
        const i32 first = channel < before ? -channel : -before;
        const i32 last = channel + after < channels ? after : channels - 1 - channel;
        float sum = 0.0f;
        for (i32 k = first; k <= last; ++k) {
            const float v = T_LOAD(x, i + k * inner);
            sum += v * v;
        }
        T_STORE(y, i, T_LOAD(x, i) / X_POW(bias + share * sum, beta));
    }
}
"""

_RESPONSE_LINES = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void respond(CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, i32 lines, i32 channels, i32 inner,
             i32 before, i32 after, float bias, float share, float beta, i32 per)
{
    const i32 first = GROUP_ID(0) * per, last = first + per < lines ? first + per : lines;
    const i32 begin = GROUP_ID(1) * CHUNK, wide = inner - begin < CHUNK ? inner - begin : CHUNK;
    for (i32 i = first; i < last; ++i) {
        const i32 channel = i % channels, low = channel < before ? -channel : -before;
        const i32 high = channel + after < channels ? after : channels - 1 - channel;
        CONSTANT T *from = x + i * inner + begin;
        GLOBAL T *to = y + i * inner + begin;
        float sums[CHUNK];
        for (i32 l = 0; l < wide; ++l) sums[l] = 0.0f;
        for (i32 k = low; k <= high; ++k) {
            CONSTANT T *line = from + k * inner;
            VECTORIZE(WIDTH)
            for (i32 l = 0; l < wide; ++l) {
                const float v = T_LOAD(line, l);
                sums[l] += v * v;
            }
        }
        INTERLEAVE(WIDTH, 2)
        for (i32 l = 0; l < wide; ++l)
            T_STORE(to, l, T_LOAD(from, l) * G_EXP(-beta * G_LOG(bias + share * sums[l])));
    }
}
"""
"""For processors: an item goes along lines of channels."""

BLOCK = 64
CHUNK = 1024


@kernel("grid.cumulative_sum", "cumulative_sum", KINDS, when=obstacle, rank=20)
@kernel("grid.cumulative_product", "cumulative_product", KINDS, when=obstacle, rank=20)
def lower_running(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - lower
    """One work item for each line along the axis."""
    spec, attrs = operand(call, 0), call.attrs
    axis = attrs["axis"]
    inner = math.prod(spec.dims[axis + 1 :])
    count = spec.size // spec.dims[axis]
    sign = "+" if call.op == "cumulative_sum" else "*"
    defines = (
        *accessors(spec.dtype),
        *define(REVERSED=int(attrs["reversed"]), EXCLUSIVE=int(attrs["exclusive"])),
        ("FIRST", "0" if call.op == "cumulative_sum" else "1"),
        ("JOIN(a, b)", wrapped("(a)", sign, "(b)", COMPUTE[spec.dtype])),
    )
    args: Args = (In(0), Out(0), *i32(count, spec.dims[axis], inner))
    return Lowered((launch(_RUNNING, "scan", args, (count,), (BLOCK,), defines),))


def _fits_lrn(call: OpCall, device: DeviceInfo) -> str | None:
    return obstacle(call, device) or not_among(("float32", "float16", "bfloat16"), call)


@kernel("grid.lrn", "lrn", KINDS, when=_fits_lrn, rank=20)
def lower_lrn(call: OpCall, device: DeviceInfo) -> Lowered:
    """One work item a result, over a window of channels; lines of results on a processor."""
    spec, attrs = operand(call, 0), call.attrs
    size, channels = attrs["size"], spec.dims[1]
    inner = math.prod(spec.dims[2:])
    before = (size - 1) // 2
    window = (
        *i32(channels, inner, before, size - 1 - before),
        *f32(attrs["bias"], attrs["alpha"] / size, attrs["beta"]),
    )
    if not on_cpu(device):
        args: Args = (In(0), Out(0), *i32(spec.size), *window)
        step = launch(_RESPONSE, "respond", args, (spec.size,), (BLOCK,), accessors(spec.dtype))
        return Lowered((step,))
    lines, parts = spec.dims[0] * channels, -(-inner // CHUNK)
    per = max(
        1, min(4096 // min(inner, CHUNK), lines * parts // (8 * max(1, device.compute_units)))
    )
    text = prelude(("exp", "log"), cpu=True) + _RESPONSE_LINES
    known = define(CHUNK=CHUNK, WIDTH=vector_width(device))
    args = (In(0), Out(0), *i32(lines), *window, *i32(per))
    items, types = (-(-lines // per), parts), accessors(spec.dtype)
    return Lowered((launch(text, "respond", args, items, (1, 1), (*known, *types)),))
