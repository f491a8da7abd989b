"""Two-dimensional pooling on a grid; layouts are strides, and a whole image is a reduction."""

from __future__ import annotations

import dataclasses

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Out
from crossdock.kernels.grid_common import (
    COMPUTE,
    KINDS,
    MAX_ROWS,
    Args,
    Defines,
    accessors,
    define,
    i32,
    launch,
    obstacle,
    on_cpu,
    operand,
)
from crossdock.kernels.grid_planes import Meaning, Windows, planes, too_large
from crossdock.kernels.grid_reduce import reduction
from crossdock.kernels.grid_window import Lattice
from crossdock.kernels.ops_window import Image
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_PARAMS = (
    "CONSTANT T *RESTRICT x, GLOBAL T *RESTRICT y, i32 channels, i32 out_h, i32 out_w, "
    "i32 window_h, i32 window_w, i32 step_h, i32 step_w, i32 dilation_h, i32 dilation_w, "
    "i32 top, i32 left, i32 in_h, i32 in_w, i32 bottom_edge, i32 right_edge, "
    "i32 xn, i32 xc, i32 xh, i32 xw, i32 yn, i32 yc, i32 yh, i32 yw"
)

_EACH = (
    "KERNEL void pool("
    + _PARAMS
    + r""") {
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
                    count += !PADS_COUNT;
                }
                if (PADS_COUNT) count += h < bottom_edge && w < right_edge;
            }
        }
        T_STORE(y, image * yn + channel * yc + down * yh + right * yw, RESULT);
    }
}
"""
)

_ROWS = (
    r"""
#define FIRST(at) ((at) <= 0 ? 0 : ((at) + step_w - 1) / step_w)
#define WITHIN(c, name, edge) \
    i32 name##0 = FIRST(edge##0 - (c)) - begin, name##1 = FIRST(edge##1 - (c)) - begin; \
    name##0 = name##0 < 0 ? 0 : name##0; \
    name##1 = name##1 > wide ? wide : name##1;
KERNEL BLOCK_SIZE(1, 1, 1)
void pool("""
    + _PARAMS
    + r""") {
    const i32 z = GROUP_ID(1), first = GROUP_ID(0) * PER;
    const i32 last = first + PER < out_h ? first + PER : out_h;
    const i32 image = z / channels, channel = z - image * channels;
    const i32 in0 = 0, in1 = in_w, edge0 = -left, edge1 = right_edge;
    CONSTANT T *from = x + image * xn + channel * xc;
    GLOBAL T *to = y + image * yn + channel * yc;
    for (i32 down = first; down < last; ++down) {
        for (i32 begin = 0; begin < out_w; begin += CHUNK) {
            const i32 wide = out_w - begin < CHUNK ? out_w - begin : CHUNK;
            T_C sums[CHUNK];
            i32 counts[CHUNK];
            for (i32 l = 0; l < wide; ++l) { sums[l] = START; counts[l] = 0; }
            for (i32 ky = 0; ky < window_h; ++ky) {
                const i32 h = down * step_h - top + ky * dilation_h;
                for (i32 kx = 0; kx < window_w; ++kx) {
                    const i32 w = kx * dilation_w - left;
#if PADS_COUNT
                    if (h < bottom_edge) {
                        WITHIN(w, c, edge)
                        for (i32 l = c0; l < c1; ++l) counts[l] += 1;
                    }
#endif
                    if ((u32)h < (u32)in_h) {
                        WITHIN(w, r, in)
                        CONSTANT T *run = from + h * xh + (begin * step_w + w) * xw;
                        for (i32 l = r0; l < r1; ++l) {
                            const T_C v = T_LOAD(run, l * APART), acc = sums[l];
                            sums[l] = NEXT;
#if COUNTS
                            counts[l] += 1;
#endif
                        }
                    }
                }
            }
            for (i32 l = 0; l < wide; ++l) {
                const T_C acc = sums[l];
                const i32 count = counts[l];
                T_STORE(to, down * yh + (begin + l) * yw, RESULT);
            }
        }
    }
}
"""
)
"""For processors: an item makes some rows of a channel, tap by tap."""

PER = 4
CHUNK = 64

LOWEST = {
    "f32": "-INFINITY", "f64": "-(double)INFINITY", "u32": "0", "u64": "0",
    "i64": "((i64)(-9223372036854775807 - 1))", "i32": "(-2147483647 - 1)",
}  # fmt: skip
"""What no element lies below, by compute type."""


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    image = Image.of(operand(call, 0), call.attrs["layout"])
    many = int(image.batch) * int(image.channels) > MAX_ROWS
    return Refusal(f"more than {MAX_ROWS} channels of images", Cause.SIZE) if many else None


def _meaning(call: OpCall) -> Defines:
    """The defines that make the texts the op."""
    if call.op == "max_pool2d":
        start = LOWEST[COMPUTE[operand(call, 0).dtype]]
        return define(START=start, NEXT="X_MAX(v, acc)", PADS_COUNT=0, COUNTS=0, RESULT="acc")
    if call.op == "l2_pool2d":
        result = "X_SQRT(acc)"
        return define(START=0, NEXT="acc + v * v", PADS_COUNT=0, COUNTS=0, RESULT=result)
    padded = int(call.attrs["count_include_pad"])
    result = "acc / (T_C)(count > 0 ? count : 1)"
    return define(START=0, NEXT="acc + v", PADS_COUNT=padded, COUNTS=1 - padded, RESULT=result)


GLOBAL = {"average_pool2d": "mean", "l2_pool2d": "l2", "max_pool2d": "max"}
"""What a pool over the whole image reduces by."""


def _is_global(call: OpCall) -> bool:
    attrs = call.attrs
    image = Image.of(operand(call, 0), attrs["layout"])
    whole = attrs["window_dimensions"] == (image.height, image.width)
    return whole and not any(attrs["padding"]) and attrs["dilations"] == (1, 1)


def _lower(call: OpCall, device: DeviceInfo) -> Lowered:
    attrs, spec = call.attrs, operand(call, 0)
    layout = attrs["layout"]
    if _is_global(call):
        n, c, h, w = (int(d) for d in dataclasses.astuple(Image.of(spec, layout)))
        shape = (n * c, h * w, 1) if layout == "nchw" else (n, h * w, c)
        step = reduction(GLOBAL[call.op], spec.dtype, shape, In(0), device)
        return Lowered((step,))
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
    args: Args = (In(0), Out(0), *numbers)
    defines = accessors(spec.dtype) + _meaning(call)
    if on_cpu(device):
        apart = "1" if attrs["strides"][1] * x.w == 1 else "(step_w * xw)"
        defines += define(PER=PER, CHUNK=CHUNK, APART=apart)
        items = (-(-out[0] // PER), n * channels)
        return Lowered((launch(_ROWS, "pool", args, items, (1, 1), defines),))
    wide = next((b for b in (8, 16, 32) if out[1] <= b), 64)
    spread = (out[1], out[0], n * channels)
    return Lowered((launch(_EACH, "pool", args, spread, (wide, 64 // wide, 1), defines),))


for _op in ("average_pool2d", "l2_pool2d", "max_pool2d"):
    kernel(f"grid.{_op}", _op, KINDS, when=_fits, rank=20)(_lower)


# --- planes on a processor ------------------------------------------------------------------------

_ACROSS = r"""
    LOCAL float across[ACROSS];
    for (i32 c = 0; c < ACROSS; ++c) {
        float n = 0.0f;
        for (i32 kx = 0; kx < WINDOW_W; ++kx) {
            const i32 w = c * STEP_W - left + kx * DILATION_W;
            if (w < EDGE_W && (w >= 0 || PADS_COUNT)) n += 1.0f;
        }
        across[c] = n > 0.0f ? n : 1.0f;
    }
"""

_DOWN = r"""
DEVICE float down_count(i32 h, i32 edge) {
    float n = 0.0f;
    for (i32 ky = 0; ky < WINDOW_H; ++ky, h += DILATION_H)
        if (h < edge && (h >= 0 || PADS_COUNT)) n += 1.0f;
    return n > 0.0f ? n : 1.0f;
}
"""


def _windows(call: OpCall) -> Windows:
    attrs = call.attrs
    n, c, *image = operand(call, 0).dims
    result = call.outputs[0].dims[2:]
    top, _, left, _ = attrs["padding"]
    return Windows(
        n * c, c, 1, (image[0], image[1]), (result[0], result[1]),
        attrs["window_dimensions"], attrs["strides"], attrs["dilations"], (top, left),
    )  # fmt: skip


def _fits_planes(call: OpCall, device: DeviceInfo) -> str | None:
    if not on_cpu(device):
        return "for processors"
    if (why := _fits(call, device)) is not None:
        return why
    if operand(call, 0).dtype != "float32" or call.attrs["layout"] != "nchw":
        return Refusal("float32 in nchw only", Cause.DTYPE)
    if _is_global(call):
        return "a reduction"
    too = too_large(_windows(call), device)
    return Refusal("rows or windows too large", Cause.SIZE) if too else None


def _counted(call: OpCall, windows: Windows) -> Meaning:
    """An average: the sum by the number of rows times that of columns that a window has."""
    padded, attrs = bool(call.attrs["count_include_pad"]), call.attrs
    _, bottom, _, right = attrs["padding"]
    edges = windows.image
    if padded:
        edges = edges[0] + bottom, edges[1] + right
    place = "(h) * STEP_H - top"
    return Meaning(
        defines=(
            ("START", "0.0f"),
            ("FIRST", "0.0f"),
            ("NEXT(acc, v, tap)", "((acc) + (v))"),
            ("RESULT(acc, h, w)", f"((acc) / (VLOAD(across + w) * down_count({place}, EDGE_H)))"),
            *define(
                PADS_COUNT=int(padded), EDGE_H=edges[0], EDGE_W=edges[1],
                ACROSS=-(-windows.result[1] // 16) * 16,
            ),
        ),
        setup=_ACROSS,
        helpers=_DOWN,
    )  # fmt: skip


_PLAIN_MEANINGS = {
    "max_pool2d": Meaning(
        (
            ("START", "(-INFINITY)"),
            ("FIRST", "(-INFINITY)"),
            ("NEXT(acc, v, tap)", "(((acc >= v) | (acc != acc)) ? acc : v)"),
            ("RESULT(acc, h, w)", "(acc)"),
        )
    ),
    "l2_pool2d": Meaning(
        (
            ("START", "0.0f"),
            ("FIRST", "0.0f"),
            ("NEXT(acc, v, tap)", "VFMA(v, v, acc)"),
            ("RESULT(acc, h, w)", "sqrt(acc)"),
        )
    ),
}


def _lower_planes(call: OpCall, device: DeviceInfo, rows: int) -> Lowered:
    windows = _windows(call)
    meaning = _PLAIN_MEANINGS.get(call.op) or _counted(call, windows)
    return Lowered((planes(windows, meaning, device, rows),))


for _op in ("average_pool2d", "l2_pool2d", "max_pool2d"):

    @kernel(f"grid.{_op}.planes", _op, KINDS, when=_fits_planes, rank=15)
    def lower_planes(call: OpCall, device: DeviceInfo) -> Lowered:
        """One launch; two rows of results at a time."""
        return _lower_planes(call, device, 2)
