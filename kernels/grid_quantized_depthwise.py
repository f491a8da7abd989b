"""conv_integer and quantized_conv2d on a grid directly: depthwise, and what no tiles take.

On a card a work item makes a result. On a processor an item makes some rows of a channel, in runs
of neighbours, over an image that has been centred and padded before.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, Out, Slot
from crossdock.kernels.grid_common import KINDS, define, i32, launch, obstacle, on_cpu
from crossdock.kernels.grid_conv import Convolution, filter_rows
from crossdock.kernels.grid_quantized_conv import (
    centred_image,
    filter_zero,
    fits_implicit,
    types,
    zero_params,
    zero_slots,
)
from crossdock.kernels.grid_quantized_ending import ending
from crossdock.kernels.grid_window import Assembly, Lattice
from crossdock.kernels.ops_quantized import CONV, PLAIN
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_PARAMS = (
    "CONSTANT @X@ *RESTRICT x, CONSTANT A *RESTRICT weights, @BETWEEN@ GLOBAL Y *RESTRICT y, "
    "i32 many, i32 outputs, i32 per_in, i32 per_out, i32 out_h, i32 out_w, i32 window_h, "
    "i32 window_w, i32 step_h, i32 step_w, i32 dilation_h, i32 dilation_w, i32 top, i32 left, "
    "i32 in_h, i32 in_w, i32 xn, i32 xc, i32 xh, i32 xw, i32 yn, i32 yc, i32 yh, i32 yw"
)

_EACH = r"""
KERNEL void each(@PARAMS@)
{
    const i32 at = GLOBAL_ID(0);
    if (at < many) {
        const i32 rows = at / out_w, w = at - rows * out_w;
        const i32 planes = rows / out_h, h = rows - planes * out_h;
        const i32 n = planes / outputs, c = planes - n * outputs;
        CONSTANT X *from = x + n * xn + c / per_out * per_in * xc;
        CONSTANT A *taps = weights + c * per_in * window_h * window_w;
        const i32 zero = PAD, weight_zero = ZERO_A(c);
        u32 total = 0;
        for (i32 i = 0; i < per_in; ++i) {
            for (i32 ky = 0; ky < window_h; ++ky) {
                const i32 row = h * step_h - top + ky * dilation_h;
                for (i32 kx = 0; kx < window_w; ++kx, ++taps) {
                    const i32 column = w * step_w - left + kx * dilation_w;
                    if ((u32)row < (u32)in_h && (u32)column < (u32)in_w)
                        total += (u32)((from[i * xc + row * xh + column * xw] - zero)
                            * (taps[0] - weight_zero));
                }
            }
        }
        y[n * yn + c * yc + h * yh + w * yw] = FINISHED((i32)total, c);
    }
}
"""

_ROWS = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void depthwise(@PARAMS@)
{
    const i32 z = GROUP_ID(1), first = GROUP_ID(0) * many;
    const i32 last = first + many < out_h ? first + many : out_h;
    const i32 n = z / outputs, c = z - n * outputs, weight_zero = ZERO_A(c);
    CONSTANT i16 *from = x + n * xn + c / per_out * xc;
    CONSTANT A *taps = weights + c * window_h * window_w;
    GLOBAL Y *to = y + n * yn + c * yc;
    for (i32 h = first; h < last; ++h) {
        for (i32 w0 = 0; w0 < out_w; w0 += RUN) {
            const i32 wide = out_w - w0 < RUN ? out_w - w0 : RUN;
            i32 acc[RUN];
            for (i32 l = 0; l < RUN; ++l) acc[l] = 0;
            for (i32 ky = 0; ky < window_h; ++ky) {
                for (i32 kx = 0; kx < window_w; ++kx) {
                    const i32 tap = taps[ky * window_w + kx] - weight_zero;
                    CONSTANT i16 *run = from + (h * step_h + ky * dilation_h) * xh
                        + kx * dilation_w * xw + w0 * APART_IN;
                    if (wide == RUN) {
                        for (i32 l = 0; l < RUN; ++l) acc[l] += run[l * APART_IN] * tap;
                    } else {
                        for (i32 l = 0; l < wide; ++l) acc[l] += run[l * APART_IN] * tap;
                    }
                }
            }
            for (i32 l = 0; l < wide; ++l)
                to[h * yh + (w0 + l) * APART_OUT] = FINISHED(acc[l], c);
        }
    }
}
"""

BLOCK = 64
RUN = 32
"""Neighbours that an item of a processor adds up at once."""
MOST_TAPS = 2**31 // 255**2
"""Taps of a window whose sum is sure to be an int32."""


def _lowered(call: OpCall, device: DeviceInfo, *, rows: bool) -> Lowered:
    conv, parts, end = Convolution.of(call), Assembly(call, device), ending(call)
    weights = filter_rows(parts)
    slot: Slot = In(0)
    bounds, origin = conv.image[2:], (-conv.padding[0], -conv.padding[2])
    between, zeros = zero_params(call), zero_slots(call)
    zero, apart = filter_zero(call)
    if rows:
        slot, bounds, origin = centred_image(parts, conv)
        between = "CONSTANT A *RESTRICT v, " if zero else ""
        zeros = (zero,) if zero else ()
    x = Lattice.of(conv.image[1], *bounds, conv.layout)
    y = Lattice.of(*conv.result[1:], conv.layout)
    n, outputs, oh, ow = conv.result
    count = call.outputs[0].size
    per = max(1, min(oh, n * outputs * oh // (8 * max(1, device.compute_units))))
    numbers = i32(
        per if rows else count, outputs, *conv.per_group, oh, ow, *conv.window, *conv.steps,
        *conv.dilations, -origin[0], -origin[1], *bounds, x.n, x.c, x.h, x.w, y.n, y.c, y.h, y.w,
    )  # fmt: skip
    args: tuple[Argument, ...] = (slot, weights, *zeros, *end.args, Out(0), *numbers)
    text = end.text + (_ROWS if rows else _EACH).replace("@PARAMS@", _PARAMS)
    text = text.replace("@X@", "i16" if rows else "X").replace("@BETWEEN@", between + end.params)
    known = (*types(call), ("ZERO_A(c)", f"v[{apart} * (c)]" if zero else "0"))
    if rows:
        known += define(
            RUN=RUN,
            APART_IN="1" if conv.steps[1] * x.w == 1 else "(step_w * xw)",
            APART_OUT="1" if y.w == 1 else "yw",
        )
        items = (-(-oh // per), n * outputs)
        step = launch(text, "depthwise", args, items, (1, 1), known)
    else:
        step = launch(text, "each", args, (count,), (BLOCK,), known)
    parts.steps.append(step)
    return parts.lowered()


def _fits_rows(call: OpCall, device: DeviceInfo) -> str | None:
    if not on_cpu(device):
        return "for processors"
    if (why := obstacle(call, device)) is not None:
        return why
    conv = Convolution.of(call)
    if not conv.is_depthwise:
        return "not depthwise"
    return "too large a window" if conv.window[0] * conv.window[1] > MOST_TAPS else None


def _fits_each(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    if fits_implicit(call, device) is None:
        return "tiles fit"
    return None if _fits_rows(call, device) is not None else "rows fit"


for _op in (CONV, PLAIN[CONV]):

    @kernel(f"grid.{_op}.depthwise", _op, KINDS, when=_fits_rows, rank=15)
    def lower_rows(call: OpCall, device: DeviceInfo) -> Lowered:
        """The image's copy, at most a filter's rearrangement, then one launch over rows."""
        return _lowered(call, device, rows=True)

    @kernel(f"grid.{_op}.each", _op, KINDS, when=_fits_each, rank=25)
    def lower_each(call: OpCall, device: DeviceInfo) -> Lowered:
        """At most a filter's rearrangement, then one launch in which an item makes a result."""
        return _lowered(call, device, rows=False)
