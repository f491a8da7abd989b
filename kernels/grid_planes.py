"""Windows over single channels on a processor: depthwise convolution and pooling.

An item copies some rows of a channel into local memory, filled up beyond the edges and split by the
phases of the horizontal stride, so that each tap of the window is a vector at another place there;
rows of results that share rows of the image are made together.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Out, Slot
from crossdock.kernels.grid_common import Args, Defines, define, i32, launch, vector_width, vectors
from crossdock.kernels.grid_ending import PLAIN, Ending

_PLANES = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void planes(CONSTANT float *RESTRICT x, @PARAMS@ @RESIDUAL@ GLOBAL float *RESTRICT y,
            i32 outputs, i32 times, i32 band, i32 bands, i32 per, i32 total,
            i32 in_h, i32 in_w, i32 out_h, i32 out_w, i32 top, i32 left, i32 wide)
{
    LOCAL float tile[ROOM];
    const i32 first = GROUP_ID(0) * per, last = first + per < total ? first + per : total;
    @SETUP@
    for (i32 item = first; item < last; ++item) {
        const i32 z = item / bands, d0 = item % bands * band, channel = z % outputs;
        const i32 d1 = d0 + band < out_h ? d0 + band : out_h, h0 = d0 * STEP_H - top;
        const i32 tall = (d1 - d0 - 1) * STEP_H + REACH_H + 1;
        CONSTANT float *from = x + z / times * in_h * in_w;
        for (i32 i = 0; i < tall; ++i) {
            const i32 in = h0 + i >= 0 && h0 + i < in_h;
            for (i32 q = 0; q < PHASES; ++q) {
                LOCAL_PTR float *line = tile + (i * PHASES + q) * wide;
                CONSTANT float *row = from + (in ? h0 + i : 0) * in_w + q - left;
                i32 begin = (left - q + STEP_W - 1) / STEP_W;
                i32 end = in ? (in_w + left - q + STEP_W - 1) / STEP_W : 0, w = 0;
                begin = begin < 0 ? 0 : begin;
                end = end > wide ? wide : end;
                for (; w < begin && w < wide; ++w) line[w] = START;
#if STEP_W == 1
                for (; w + VW <= end; w += VW) VSTORE(line + w, VLOAD(row + w));
#elif STEP_W == 2
                for (; w + VW < end; w += VW) {
                    const VEC u = VLOAD(row + 2 * w), v = VLOAD(row + 2 * w + VW);
                    VSTORE(line + w, (VEC)(u.even, v.even));
                }
#endif
                for (; w < end; ++w) line[w] = row[w * STEP_W];
                for (; w < wide; ++w) line[w] = START;
            }
        }
        @CHANNEL@
        for (i32 d = d0; d < d1; d += ROWS) {
            const i32 down = d + ROWS > d1 && d1 - d0 >= ROWS ? d1 - ROWS : d;
            LOCAL_PTR const float *lines = tile + (down - d0) * STEP_H * PHASES * wide;
            for (i32 c = 0; c < out_w; c += VW) {
                const i32 right = c + VW > out_w && out_w >= VW ? out_w - VW : c;
                VEC acc[ROWS];
                UNROLL for (i32 r = 0; r < ROWS; ++r) acc[r] = VSPLAT(FIRST);
                UNROLL for (i32 i = 0; i <= (ROWS - 1) * STEP_H + REACH_H; ++i)
                    UNROLL for (i32 kx = 0; kx < WINDOW_W; ++kx) {
                        const VEC v = VLOAD(lines + (i * PHASES + kx * DILATION_W % STEP_W) * wide
                                            + kx * DILATION_W / STEP_W + right);
                        UNROLL for (i32 r = 0; r < ROWS; ++r) {
                            const i32 ky = (i - r * STEP_H) / DILATION_H;
                            if (ky >= 0 && ky < WINDOW_H && i == r * STEP_H + ky * DILATION_H)
                                acc[r] = NEXT(acc[r], v, ky * WINDOW_W + kx);
                        }
                    }
                UNROLL for (i32 r = 0; r < ROWS; ++r) {
                    if (down + r < d1) {
                        const i32 at = (z * out_h + down + r) * out_w + right;
                        float part[VW];
                        VSTORE(part, RESULT(acc[r], down + r, right));
                        if (right + VW <= out_w) {
                            for (i32 l = 0; l < VW; ++l) y[at + l] = DONE(part[l], at + l);
                        } else {
                            for (i32 l = 0; l < out_w - right; ++l)
                                y[at + l] = DONE(part[l], at + l);
                        }
                    }
                }
            }
        }
    }
}
"""

ROOM = 7168
"""Floats of local memory for an item: 28 KiB, within any first-level cache."""
TAPS = 49
"""Taps of a window that is written out."""


@dataclass(frozen=True)
class Windows:
    """Windows over channels: sizes as (height, width), ``origin`` is the padding before.

    ``count`` results' channels in all images; ``outputs`` of one image, ``times`` for each channel
    of the image.
    """

    count: int
    outputs: int
    times: int
    image: tuple[int, int]
    result: tuple[int, int]
    window: tuple[int, int]
    steps: tuple[int, int]
    dilations: tuple[int, int]
    origin: tuple[int, int]


@dataclass(frozen=True)
class Meaning:
    """What is made of a window: defines START, FIRST, NEXT, RESULT, and parts of the text.

    ``reads`` are the slots of ``params``.
    """

    defines: Defines
    params: str = ""
    setup: str = ""
    channel: str = ""
    reads: tuple[Slot, ...] = ()
    helpers: str = ""
    end: Ending = PLAIN


@dataclass(frozen=True)
class _Cut:
    """How work is cut: results a vector and rows at a time, rows of an item, a tile's columns."""

    width: int
    rows: int
    band: int
    wide: int
    phases: int


def _cut(windows: Windows, device: DeviceInfo, rows: int) -> _Cut:
    (kh, kw), (sh, sw), (dh, dw) = windows.window, windows.steps, windows.dilations
    out_h, out_w = windows.result
    width = next((w for w in (4, 8) if out_w <= w), 16)
    width = min(width, vector_width(device))
    reach = (kw - 1) * dw
    phases = 1 + max(k * dw % sw for k in range(kw))
    wide = -(-max(out_w, width) // 4) * 4 + reach // sw
    lines = ROOM // (wide * phases)
    band = max(0, (lines - (kh - 1) * dh - 1) // sh + 1) if lines > (kh - 1) * dh else 0
    rows = min(rows, out_h)
    # The rows below an item's last that fill up a block are read, too.
    return _Cut(width, rows, min(out_h, band // rows * rows), wide, phases)


def too_large(windows: Windows, device: DeviceInfo) -> bool:
    """True where a row of windows does not fit local memory, or has too many taps to write out."""
    taps = windows.window[0] * windows.window[1]
    small = bool(device.local_memory) and device.local_memory < 4 * ROOM
    return taps > TAPS or small or _cut(windows, device, 1).band < 1


def planes(
    windows: Windows,
    meaning: Meaning,
    device: DeviceInfo,
    rows: int,
) -> GridLaunch:
    """The launch that makes at most so many rows at a time."""
    cut = _cut(windows, device, rows)
    if cut.band < 1:
        cut = _cut(windows, device, 1)
    out_h = windows.result[0]
    bands = -(-out_h // cut.band)
    total = bands * windows.count
    per = max(1, total // (16 * max(1, device.compute_units)))
    numbers = i32(
        windows.outputs, windows.times, cut.band, bands, per, total, *windows.image,
        *windows.result, *windows.origin, cut.wide,
    )  # fmt: skip
    (kh, kw), (sh, sw), (dh, dw) = windows.window, windows.steps, windows.dilations
    known = define(
        ROOM=ROOM, ROWS=cut.rows, PHASES=cut.phases, WINDOW_H=kh, WINDOW_W=kw, STEP_H=sh,
        STEP_W=sw, DILATION_H=dh, DILATION_W=dw, REACH_H=(kh - 1) * dh,
    )  # fmt: skip
    text = _PLANES.replace("@PARAMS@", meaning.params).replace("@SETUP@", meaning.setup)
    text = meaning.helpers + meaning.end.into(text.replace("@CHANNEL@", meaning.channel))
    beside = () if meaning.end.residual is None else (meaning.end.residual,)
    args: Args = (In(0), *meaning.reads, *beside, Out(0), *numbers)
    defines = (*known, *meaning.defines, *vectors(cut.width))
    return launch(text, "planes", args, (-(-total // per),), (1,), defines)
