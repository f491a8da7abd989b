"""Depthwise conv2d on a grid, directly: one channel of the image makes each channel of the result.

On a GPU an item makes PER results down a column, and checks each read; on a processor an item makes
some rows of a channel with plain loops over a padded image, or in vectors through ``grid_planes``.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, In, Lowered, Out, Slot
from crossdock.kernels import fused_conv
from crossdock.kernels.fused_conv import conv_of
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_ROWS,
    accessors,
    define,
    i32,
    launch,
    on_cpu,
)
from crossdock.kernels.grid_conv import Convolution, bias_of, filter_rows, fits, padded_image
from crossdock.kernels.grid_ending import ending
from crossdock.kernels.grid_planes import Meaning, Windows, planes, too_large
from crossdock.kernels.grid_window import Assembly, Lattice
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_PARAMS = (
    "CONSTANT T *RESTRICT x, CONSTANT T *RESTRICT weights, BIAS_PARAM GLOBAL T *RESTRICT y, "
    "i32 channels, i32 times, i32 out_h, i32 out_w, "
    "i32 step_h, i32 step_w, i32 dilation_h, i32 dilation_w, i32 top, i32 left, "
    "i32 in_h, i32 in_w, i32 xn, i32 xc, i32 xh, i32 xw, i32 yn, i32 yc, i32 yh, i32 yw"
)

_PLACE = r"""
    const i32 image = z / channels, channel = z - image * channels;
    CONSTANT T *from = x + image * xn + channel / times * xc;
    CONSTANT T *taps = weights + channel * WINDOW_H * WINDOW_W;
    GLOBAL T *to = y + image * yn + channel * yc;
"""

_EACH = (
    "KERNEL void depthwise("
    + _PARAMS
    + r""") {
    const i32 right = GLOBAL_ID(0), down0 = GLOBAL_ID(1) * PER, z = GLOBAL_ID(2);
    if (right < out_w && down0 < out_h) {
"""
    + _PLACE
    + r"""
        const i32 column = right * step_w - left, row = down0 * step_h - top;
        float acc[PER];
        UNROLL for (i32 j = 0; j < PER; ++j) acc[j] = BIAS;
        for (i32 ky = 0; ky < WINDOW_H; ++ky) {
            for (i32 kx = 0; kx < WINDOW_W; ++kx) {
                const float tap = T_LOAD(taps, ky * WINDOW_W + kx);
                const i32 w = column + kx * dilation_w;
                UNROLL for (i32 j = 0; j < PER; ++j) {
                    const i32 h = row + j * step_h + ky * dilation_h;
                    if ((u32)h < (u32)in_h && (u32)w < (u32)in_w)
                        acc[j] += tap * T_LOAD(from, h * xh + w * xw);
                }
            }
        }
        UNROLL for (i32 j = 0; j < PER; ++j)
            if (down0 + j < out_h) T_STORE(to, (down0 + j) * yh + right * yw, acc[j]);
    }
}
"""
)

_ROWS = (
    r"""
#define EACH8(F) F(s0, 0) F(s1, 1) F(s2, 2) F(s3, 3) F(s4, 4) F(s5, 5) F(s6, 6) F(s7, 7)
#define GET(s, l) v.s = T_LOAD(run, l * APART_IN);
#define PUT(s, l) T_STORE(to, down * yh + (right + l) * APART_OUT, acc.s);
KERNEL BLOCK_SIZE(1, 1, 1)
void depthwise("""
    + _PARAMS
    + r""") {
    const i32 z = GROUP_ID(1), first = GROUP_ID(0) * PER;
    const i32 last = first + PER < out_h ? first + PER : out_h;
"""
    + _PLACE
    + r"""
    for (i32 down = first; down < last; ++down) {
        CONSTANT T *row = from + down * step_h * xh;
        for (i32 c = 0; c < out_w && out_w >= 8; c += 8) {
            const i32 right = c + 8 <= out_w ? c : out_w - 8;
            f32x8 acc = SPLAT8(BIAS);
            UNROLL for (i32 ky = 0; ky < WINDOW_H; ++ky) {
                UNROLL for (i32 kx = 0; kx < WINDOW_W; ++kx) {
                    const float tap = T_LOAD(taps, ky * WINDOW_W + kx);
                    CONSTANT T *run = row + ky * dilation_h * xh + kx * dilation_w * xw
                        + right * APART_IN;
                    f32x8 v;
                    EACH8(GET)
                    acc = FMA8(SPLAT8(tap), v, acc);
                }
            }
            EACH8(PUT)
        }
        for (i32 right = 0; right < out_w && out_w < 8; ++right) {
            float acc = BIAS;
            UNROLL for (i32 ky = 0; ky < WINDOW_H; ++ky)
                UNROLL for (i32 kx = 0; kx < WINDOW_W; ++kx)
                    acc += T_LOAD(taps, ky * WINDOW_W + kx) * T_LOAD(row, ky * dilation_h * xh
                        + kx * dilation_w * xw + right * APART_IN);
            T_STORE(to, down * yh + right * APART_OUT, acc);
        }
    }
}
"""
)

PER_ITEM = 4
ROWS_OF_ITEM = 8


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := fits(call, device)) is not None:
        return why
    conv = Convolution.of(call)
    if not conv.is_depthwise:
        return "not depthwise"
    over = conv.image[0] * conv.result[1] > MAX_ROWS
    return Refusal(f"more than {MAX_ROWS} channels of images", Cause.SIZE) if over else None


@kernel("grid.conv2d.depthwise", "conv2d", KINDS, when=_fits, rank=15)
def lower_depthwise(call: OpCall, device: DeviceInfo) -> Lowered:
    """At most a padding step and a filter's rearrangement, then one launch."""
    parts = Assembly(call, device)
    weights = filter_rows(parts)
    slot, bounds, origin = padded_image(parts, Convolution.of(call))
    parts.steps.append(_depthwise(call, device, slot, weights, bounds, origin))
    return parts.lowered()


def _depthwise(
    call: OpCall,
    device: DeviceInfo,
    slot: Slot,
    weights: Slot,
    bounds: tuple[int, int],
    origin: tuple[int, int],
) -> GridLaunch:
    conv = Convolution.of(call)
    n, channels, *_ = conv.image
    _, outputs, oh, ow = conv.result
    x = Lattice.of(channels, *bounds, conv.layout)
    y = Lattice.of(outputs, oh, ow, conv.layout)
    bias = bias_of(call)
    slots: tuple[Argument, ...] = (slot, weights, *((bias,) if bias else ()), Out(0))
    numbers = i32(
        outputs, conv.per_group[1], oh, ow, *conv.steps, *conv.dilations,
        -origin[0], -origin[1], *bounds, x.n, x.c, x.h, x.w, y.n, y.c, y.h, y.w,
    )  # fmt: skip
    per = ROWS_OF_ITEM if on_cpu(device) else PER_ITEM
    defines = accessors(conv.dtype) + define(
        PER=per,
        APART_IN=1 if conv.steps[1] * x.w == 1 else "(step_w * xw)",
        APART_OUT=1 if y.w == 1 else "yw",
        WINDOW_H=conv.window[0],
        WINDOW_W=conv.window[1],
        BIAS_PARAM="CONSTANT T *RESTRICT bias," if bias else "",
        BIAS="T_LOAD(bias, channel)" if bias else "0.0f",
    )
    args = (*slots, *numbers)
    if on_cpu(device):
        assert slot != In(0) or not any(conv.padding)
        items = (-(-oh // per), n * outputs)
        return launch(_ROWS, "depthwise", args, items, (1, 1), defines)
    wide = next((b for b in (8, 16, 32) if ow <= b), 64)
    spread = (ow, -(-oh // per), n * outputs)
    return launch(_EACH, "depthwise", args, spread, (wide, 64 // wide, 1), defines)


# --- planes on a processor ------------------------------------------------------------------------


def _fits_planes(call: OpCall, device: DeviceInfo) -> str | None:
    if not on_cpu(device):
        return "for processors"
    if (why := _fits(conv_of(call), device)) is not None:
        return why
    conv = Convolution.of(call)
    if conv.dtype != "float32" or conv.layout != "nchw":
        return Refusal("float32 in nchw only", Cause.DTYPE)
    too = too_large(_windows(conv), device)
    return Refusal("rows or windows too large", Cause.SIZE) if too else None


def _windows(conv: Convolution) -> Windows:
    n, _, *image = conv.image
    _, outputs, *result = conv.result
    top, _, left, _ = conv.padding
    return Windows(
        n * outputs, outputs, conv.per_group[1], (image[0], image[1]), (result[0], result[1]),
        conv.window, conv.steps, conv.dilations, (top, left),
    )  # fmt: skip


def _lower_planes(call: OpCall, device: DeviceInfo, rows: int) -> Lowered:
    parts, bias = Assembly(call, device), bias_of(call)
    weights = filter_rows(parts)
    params = "CONSTANT float *RESTRICT weights,"
    params += " CONSTANT float *RESTRICT bias," if bias else ""
    meaning = Meaning(
        defines=(
            ("START", "0.0f"),
            ("FIRST", "bias[channel]" if bias else "0.0f"),
            ("NEXT(acc, v, tap)", "VFMA(VSPLAT(taps[tap]), v, acc)"),
            ("RESULT(acc, h, w)", "acc"),
        ),
        params=params,
        channel="CONSTANT float *taps = weights + channel * WINDOW_H * WINDOW_W;",
        reads=(weights, *((bias,) if bias else ())),
        end=ending(call, device),
    )
    parts.steps.append(planes(_windows(Convolution.of(call)), meaning, device, rows))
    return parts.lowered()


for _op in ("conv2d", fused_conv.NAME):

    @kernel("grid.conv2d.planes", _op, KINDS, when=_fits_planes, rank=12)
    def lower_planes(call: OpCall, device: DeviceInfo) -> Lowered:
        """One launch; four rows of results at a time."""
        return _lower_planes(call, device, 4)

    @kernel("grid.conv2d.planes_low", _op, KINDS, when=_fits_planes, rank=13)
    def lower_planes_low(call: OpCall, device: DeviceInfo) -> Lowered:
        """The same by two rows, which waste fewer."""
        return _lower_planes(call, device, 2)
