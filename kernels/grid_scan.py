"""Running sums and products, and local response normalisation on a grid: windows along one axis."""

from __future__ import annotations

import math

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Out
from crossdock.kernels.grid_common import (
    KINDS,
    Args,
    accessors,
    define,
    f32,
    i32,
    launch,
    not_among,
    obstacle,
    operand,
)
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
            acc = acc JOIN v;
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

BLOCK = 64


@kernel("grid.cumulative_sum", "cumulative_sum", KINDS, when=obstacle, rank=20)
@kernel("grid.cumulative_product", "cumulative_product", KINDS, when=obstacle, rank=20)
def lower_running(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - lower
    """One work item for each line along the axis."""
    spec, attrs = operand(call, 0), call.attrs
    axis = attrs["axis"]
    inner = math.prod(spec.dims[axis + 1 :])
    count = spec.size // spec.dims[axis]
    defines = (
        *accessors(spec.dtype),
        *define(REVERSED=int(attrs["reversed"]), EXCLUSIVE=int(attrs["exclusive"])),
        *(define(FIRST=0, JOIN="+") if call.op == "cumulative_sum" else define(FIRST=1, JOIN="*")),
    )
    args: Args = (In(0), Out(0), *i32(count, spec.dims[axis], inner))
    return Lowered((launch(_RUNNING, "scan", args, (count,), (BLOCK,), defines),))


def _fits_lrn(call: OpCall, device: DeviceInfo) -> str | None:
    return obstacle(call, device) or not_among(("float32", "float16", "bfloat16"), call)


@kernel("grid.lrn", "lrn", KINDS, when=_fits_lrn, rank=20)
def lower_lrn(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - lower
    """One work item a result, over a window of channels."""
    spec, attrs = operand(call, 0), call.attrs
    size = attrs["size"]
    inner = math.prod(spec.dims[2:])
    before = (size - 1) // 2
    args: Args = (
        In(0),
        Out(0),
        *i32(spec.size, spec.dims[1], inner, before, size - 1 - before),
        *f32(attrs["bias"], attrs["alpha"] / size, attrs["beta"]),
    )
    step = launch(_RESPONSE, "respond", args, (spec.size,), (BLOCK,), accessors(spec.dtype))
    return Lowered((step,))
