"""Two-dimensional pooling on a grid: one work item a result; layouts are strides."""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Out
from crossdock.kernels.grid_common import (
    COMPUTE,
    KINDS,
    MAX_ROWS,
    accessors,
    define,
    i32,
    launch,
    obstacle,
    operand,
)
from crossdock.kernels.grid_window import Lattice
from crossdock.kernels.ops_window import Image
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_TEXT = r"""
KERNEL void pool(
    CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, i32 channels, i32 out_h, i32 out_w,
    i32 window_h, i32 window_w, i32 step_h, i32 step_w, i32 dilation_h, i32 dilation_w,
    i32 top, i32 left, i32 in_h, i32 in_w, i32 bottom_edge, i32 right_edge,
    i32 xn, i32 xc, i32 xh, i32 xw, i32 yn, i32 yc, i32 yh, i32 yw)
{
    const i32 right = GLOBAL_ID(0), down = GLOBAL_ID(1), z = GLOBAL_ID(2);
    if (right < out_w && down < out_h) {
        const i32 image = z / channels, channel = z - image * channels;
        const i32 h0 = down * step_h - top, w0 = right * step_w - left;
        CONSTANT T *from = x + image * xn + channel * xc;
        T_C acc = START;
        i32 count = 0;
        for (i32 ky = 0; ky < window_h; ++ky) {
            const i32 h = h0 + ky * dilation_h;
            for (i32 kx = 0; kx < window_w; ++kx) {
                const i32 w = w0 + kx * dilation_w;
                if ((u32)h < (u32)in_h && (u32)w < (u32)in_w) {
                    const T_C v = T_LOAD(from, h * xh + w * xw);
                    acc = NEXT;
                }
                count += COUNTED;
            }
        }
        T_STORE(y, image * yn + channel * yc + down * yh + right * yw, RESULT);
    }
}
"""

LOWEST = {
    "f32": "-INFINITY", "f64": "-(double)INFINITY", "u32": "0", "u64": "0",
    "i64": "((i64)(-9223372036854775807 - 1))", "i32": "(-2147483647 - 1)",
}  # fmt: skip
"""What no element lies below, by compute type."""

_INSIDE = "(u32)h < (u32)in_h && (u32)w < (u32)in_w"
_PADDED = "h < bottom_edge && w < right_edge"


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    image = Image.of(operand(call, 0), call.attrs["layout"])
    many = int(image.batch) * int(image.channels) > MAX_ROWS
    return f"more than {MAX_ROWS} channels of images" if many else None


def _meaning(call: OpCall) -> dict[str, str]:
    """The defines that make the text the op."""
    if call.op == "max_pool2d":
        start = LOWEST[COMPUTE[operand(call, 0).dtype]]
        return {"START": start, "NEXT": "X_MAX(v, acc)", "COUNTED": "0", "RESULT": "acc"}
    if call.op == "l2_pool2d":
        return {"START": "0", "NEXT": "acc + v * v", "COUNTED": "0", "RESULT": "X_SQRT(acc)"}
    return {
        "START": "0",
        "NEXT": "acc + v",
        "COUNTED": f"({_PADDED if call.attrs['count_include_pad'] else _INSIDE})",
        "RESULT": "acc / (T_C)(count > 0 ? count : 1)",
    }


def _lower(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - lower
    attrs, spec = call.attrs, operand(call, 0)
    layout = attrs["layout"]
    image, result = Image.of(spec, layout), Image.of(call.outputs[0], layout)
    n, channels = int(image.batch), int(image.channels)
    bounds = (int(image.height), int(image.width))
    out = (int(result.height), int(result.width))
    top, bottom, left, right = attrs["padding"]
    x, y = Lattice.of(channels, *bounds, layout), Lattice.of(channels, *out, layout)
    numbers = i32(
        channels, *out, *attrs["window_dimensions"], *attrs["strides"], *attrs["dilations"],
        top, left, *bounds, bounds[0] + bottom, bounds[1] + right,
        x.n, x.c, x.h, x.w, y.n, y.c, y.h, y.w,
    )  # fmt: skip
    wide = next((b for b in (8, 16, 32) if out[1] <= b), 64)
    step = launch(
        _TEXT,
        "pool",
        (In(0), Out(0), *numbers),
        (out[1], out[0], n * channels),
        (wide, 64 // wide, 1),
        (*accessors(spec.dtype), *define(**_meaning(call))),
    )
    return Lowered((step,))


for _op in ("average_pool2d", "l2_pool2d", "max_pool2d"):
    kernel(f"grid.{_op}", _op, KINDS, when=_fits, rank=20)(_lower)
