"""conv2d on a processor with known weights: a run of places by vectors of channels in registers.

Vectors lie along the channels of the result, so that small images waste no lanes and strides cost
nothing: an element of the image is read for all channels of the vectors. The image is copied only
where it is padded. Results are turned as they are stored, which short sums notice.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, In, Lowered, Out, Slot
from crossdock.kernels import fused_conv
from crossdock.kernels.grid_common import (
    KINDS,
    define,
    i32,
    launch,
    vector_width,
    vectors,
)
from crossdock.kernels.grid_conv import Convolution, bias_of
from crossdock.kernels.grid_direct import Lines, fits_known, known_operands, split
from crossdock.kernels.grid_ending import ending
from crossdock.kernels.grid_window import Assembly
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_CHANNELS = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void channels(CONSTANT float *RESTRICT x, CONSTANT float *RESTRICT a, CONSTANT i32 *RESTRICT taps,
              @BIAS@ @RESIDUAL@ GLOBAL float *RESTRICT y, i32 M, i32 K, i32 run, i32 tiles,
              i32 segments, i32 groups, i32 out_w, i32 down, i32 x_size, i32 y_size)
{
    const i32 z = GROUP_ID(2), m0 = GROUP_ID(1) * RN, panels = (M + RN - 1) / RN;
    const i32 end = M - m0 < RN ? M - m0 : RN, t0 = GROUP_ID(0) * run;
    const i32 t1 = t0 + run < tiles ? t0 + run : tiles;
    CONSTANT float *panel = a + (z % groups * panels + GROUP_ID(1)) * K * RN;
    for (i32 t = t0; t < t1; ++t) {
        const i32 h = t / segments, at = t % segments * RM, w = at + RM > out_w ? out_w - RM : at;
        CONSTANT float *from = x + z * x_size + h * down + w * STEP;
        VEC acc[RM][VECS];
        float sums[RM][RN];
        UNROLL for (i32 i = 0; i < RM; ++i)
            UNROLL for (i32 j = 0; j < VECS; ++j) acc[i][j] = VSPLAT(0.0f);
        for (i32 k = 0; k < K; ++k) {
            CONSTANT float *p = from + taps[k];
            VEC b[VECS];
            UNROLL for (i32 j = 0; j < VECS; ++j) b[j] = VLOAD(panel + k * RN + j * VW);
            UNROLL for (i32 i = 0; i < RM; ++i) {
                const VEC v = VSPLAT(p[i * STEP]);
                UNROLL for (i32 j = 0; j < VECS; ++j) acc[i][j] = VFMA(v, b[j], acc[i][j]);
            }
        }
        UNROLL for (i32 i = 0; i < RM; ++i)
            UNROLL for (i32 j = 0; j < VECS; ++j) VSTORE(sums[i] + j * VW, acc[i][j]);
        for (i32 l = 0; l < end; ++l) {
            const i32 m = m0 + l, to = (z * M + m) * y_size + h * out_w + w;
            UNROLL for (i32 i = 0; i < RM; ++i) y[to + i] = DONE(sums[i][l] ADDED, to + i);
        }
    }
}
"""

BLOCKS = {16: ((14, 2), (7, 4)), 8: ((6, 2), (3, 4))}
"""Places at most, by vectors of channels, by the vectors' width."""


def _lines(conv: Convolution) -> Lines:
    """The image as it is, or padded."""
    top, bottom, left, right = conv.padding
    size = conv.image[2] + top + bottom, conv.image[3] + left + right
    return Lines(*size, (1, 1), (1, 1), copied=any(conv.padding))


def _lower(call: OpCall, device: DeviceInfo, most: int, vecs: int) -> Lowered:
    conv, parts, width = Convolution.of(call), Assembly(call, device), vector_width(device)
    lines = _lines(conv)
    slot: Slot = In(0)
    if lines.copied:
        slot = parts.buffer(4 * conv.image[0] * conv.image[1] * lines.plane)
        parts.steps.append(split(conv, lines, slot, device))
    slots = (slot, *known_operands(parts, call, conv, lines, vecs * width))
    parts.steps.append(_launch(call, lines, slots, device, (most, vecs)))
    return parts.lowered()


def _launch(
    call: OpCall,
    lines: Lines,
    slots: tuple[Slot, Slot, Slot],
    device: DeviceInfo,
    block: tuple[int, int],
) -> GridLaunch:
    conv, width, (most, vecs) = Convolution.of(call), vector_width(device), block
    (per_in, per_out), (out_h, out_w) = conv.per_group, conv.result[2:]
    segments = -(-out_w // most)
    places, tiles = -(-out_w // segments), out_h * segments
    panels, batch = -(-per_out // (vecs * width)), conv.image[0] * conv.groups
    wanted = max(1, 12 * max(1, device.compute_units) // (panels * batch))
    run = max(1, tiles // wanted)
    numbers = i32(
        per_out, per_in * conv.window[0] * conv.window[1], run, tiles, segments, conv.groups,
        out_w, conv.steps[0] * lines.wide, per_in * lines.plane, out_h * out_w,
    )  # fmt: skip
    bias, end = bias_of(call), ending(call, device)
    beside = tuple(s for s in (bias, end.residual) if s is not None)
    args: tuple[Argument, ...] = (*slots, *beside, Out(0), *numbers)
    text = _CHANNELS.replace("@BIAS@", "CONSTANT float *RESTRICT bias," if bias else "")
    known = define(
        RM=places, RN=vecs * width, VECS=vecs, STEP=conv.steps[1],
        ADDED="+ bias[z % groups * M + m]" if bias else "",
    )  # fmt: skip
    items = (-(-tiles // run), panels, batch)
    return launch(end.into(text), "channels", args, items, (1, 1, 1), (*known, *vectors(width)))


def _register(name: str, at: int) -> None:
    def lower(call: OpCall, device: DeviceInfo) -> Lowered:
        return _lower(call, device, *BLOCKS[8 if vector_width(device) == 8 else 16][at])

    for op in ("conv2d", fused_conv.NAME):
        kernel(f"grid.conv2d.{name}", op, KINDS, when=fits_known, rank=16 + at)(lower)


_register("channels", 0)
_register("channels_wide", 1)
