"""conv2d on a processor with known weights: a block of channels by a run of places in registers.

Weights are packed ahead in the order that they are read. The image is padded and split by the
phases of the strides, so that neighbouring places lie side by side; the places of all rows then
form one line, in which each tap of the window is the same line from another point on. Vectors are
loaded from there without a copy per tap. Places in the padding between rows are computed, too, and
left out when results are stored: (W + padding) / W times the arithmetic of a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, In, Lowered, Out, Slot
from crossdock.kernels import fused_conv
from crossdock.kernels.fused_conv import conv_of
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_ROWS,
    define,
    i32,
    launch,
    on_cpu,
    vector_width,
    vectors,
)
from crossdock.kernels.grid_conv import Convolution, bias_of, fits
from crossdock.kernels.grid_ending import ending
from crossdock.kernels.grid_window import Assembly
from crossdock.kernels.ops_conv import FILTER_AXES
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import Array, TensorSpec

_SPLIT = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void split(CONSTANT float *RESTRICT x, GLOBAL float *RESTRICT y, i32 planes, i32 per,
           i32 height, i32 width, i32 tall, i32 wide, i32 top, i32 left)
{
    const i32 first = GROUP_ID(0) * per, last = first + per < planes ? first + per : planes;
    for (i32 i = first; i < last; ++i) {
        CONSTANT float *from = x + i * height * width;
        for (i32 p = 0; p < PHASES_H; ++p) {
            for (i32 q = 0; q < PHASES_W; ++q) {
                GLOBAL float *to = y + ((i * PHASES_H + p) * PHASES_W + q) * tall * wide;
                i32 begin = (left - q + STEP_W - 1) / STEP_W;
                i32 end = (width + left - q + STEP_W - 1) / STEP_W;
                begin = begin < 0 ? 0 : begin > wide ? wide : begin;
                end = end < begin ? begin : end > wide ? wide : end;
                for (i32 h = 0; h < tall; ++h) {
                    const i32 at = h * STEP_H + p - top;
                    const i32 in = at >= 0 && at < height, most = in ? end : begin;
                    CONSTANT float *row = from + (in ? at : 0) * width + q - left;
                    for (i32 l = 0; l < begin; ++l) to[h * wide + l] = 0.0f;
                    i32 w = begin;
#if STEP_W == 2
                    for (; w + VW < most; w += VW) {
                        const VEC u = VLOAD(row + 2 * w), v = VLOAD(row + 2 * w + VW);
                        VSTORE(to + h * wide + w, (VEC)(u.even, v.even));
                    }
#endif
                    for (; w < most; ++w) to[h * wide + w] = row[w * STEP_W];
                    for (; w < wide; ++w) to[h * wide + w] = 0.0f;
                }
            }
        }
    }
}
"""

_DIRECT = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void direct(CONSTANT float *RESTRICT x, CONSTANT float *RESTRICT a, CONSTANT i32 *RESTRICT taps,
            @BIAS@ @RESIDUAL@ GLOBAL float *RESTRICT y, i32 M, i32 N, i32 K, i32 per, i32 run,
            i32 groups, i32 out_w, i32 wide, i32 x_size, i32 y_size)
{
    const i32 blocks = (M + RM - 1) / RM, tiles = (N + RN - 1) / RN;
    const i32 z = GROUP_ID(2), g = z % groups, r0 = GROUP_ID(1) * per, t0 = GROUP_ID(0) * run;
    const i32 r1 = r0 + per < blocks ? r0 + per : blocks, t1 = t0 + run < tiles ? t0 + run : tiles;
    const i32 count = t1 - t0;
    x += z * x_size;
    for (i32 e = 0; e < (r1 - r0) * count; ++e) {
        const i32 r = r0 + e / count, begin = (t0 + e % count) * RN;
        const i32 n0 = SHIFTED && begin + RN > N ? N - RN : begin, skip = begin - n0;
        const i32 end = N - n0 < RN ? N - n0 : RN;
        CONSTANT float *panel = a + (g * blocks + r) * K * RM;
        VEC acc[RM][VECS];
        UNROLL for (i32 i = 0; i < RM; ++i) {
            const i32 m = r * RM + i < M ? r * RM + i : M - 1;
            UNROLL for (i32 j = 0; j < VECS; ++j) acc[i][j] = VSPLAT(FIRST);
        }
        for (i32 k = 0; k < K; ++k) {
            CONSTANT float *from = x + n0 + taps[k];
            VEC b[VECS];
            UNROLL for (i32 j = 0; j < VECS; ++j) b[j] = VLOAD(from + j * VW);
            UNROLL for (i32 i = 0; i < RM; ++i) {
                const VEC w = VSPLAT(panel[k * RM + i]);
                UNROLL for (i32 j = 0; j < VECS; ++j) acc[i][j] = VFMA(w, b[j], acc[i][j]);
            }
        }
        VEC sums[RM][VECS];
        UNROLL for (i32 i = 0; i < RM; ++i)
            UNROLL for (i32 j = 0; j < VECS; ++j) sums[i][j] = acc[i][j];
        for (i32 i = 0; i < RM && r * RM + i < M; ++i) {
            const i32 row = (z * M + r * RM + i) * y_size;
            const float *sum = (const float *)sums[i];
            if (wide == out_w && end == RN) {
                for (i32 l = 0; l < RN; ++l) y[row + n0 + l] = DONE(sum[l], row + n0 + l);
            } else {
                i32 h = (n0 + skip) / wide, w = n0 + skip - h * wide;
                for (i32 c = skip; c < end;) {
                    const i32 left = out_w - w < end - c ? out_w - w : end - c;
                    const i32 to = row + h * out_w + w;
                    for (i32 l = 0; l < left; ++l) y[to + l] = DONE(sum[c + l], to + l);
                    c += wide - w;
                    h += 1;
                    w = 0;
                }
            }
        }
    }
}
"""


Share = tuple[int, int]


@dataclass(frozen=True)
class Lines:
    """The image as the kernel reads it: planes of [phases, tall, wide], windows from their start.

    ``phases`` are those of the strides ``step`` that the window reaches; ``copied`` says whether
    the lines are made first.
    """

    tall: int
    wide: int
    step: tuple[int, int]
    phases: tuple[int, int]
    copied: bool

    @classmethod
    def of(cls, conv: Convolution, run: int) -> Lines:
        """Of a convolution whose kernel reads runs of ``run`` places."""
        _, _, h, w = conv.image
        (sh, sw), (top, bottom, left, right) = conv.steps, conv.padding
        in_place = conv.is_product and h * w >= run
        tall, wide = -(-(h + top + bottom) // sh), -(-(w + left + right) // sw)
        (kh, kw), (dh, dw) = conv.window, conv.dilations
        phases = 1 + max(k * dh % sh for k in range(kh)), 1 + max(k * dw % sw for k in range(kw))
        return cls(tall, wide, (sh, sw), phases, not in_place)

    @property
    def plane(self) -> int:
        """Elements of a channel."""
        return self.phases[0] * self.phases[1] * self.tall * self.wide

    def taps(self, conv: Convolution) -> Array:
        """Where the line of each tap (channel, row, column) begins."""
        kh, kw = conv.window
        c, ky, kx = np.meshgrid(*map(np.arange, (conv.per_group[0], kh, kw)), indexing="ij")
        down, right = ky * conv.dilations[0], kx * conv.dilations[1]
        phase = down % self.step[0] * self.phases[1] + right % self.step[1]
        at = (down // self.step[0]) * self.wide + right // self.step[1]
        found = c * self.plane + phase * self.tall * self.wide + at
        return np.asarray(found.reshape(-1), np.int32)


def packed(weights: Array, layout: str, groups: int, rows: int) -> Array:
    """Weights as [groups, blocks, taps, rows]: blocks of ``rows`` output channels, with zeros."""
    dense = np.transpose(weights, FILTER_AXES[layout])
    out = dense.shape[0] // groups
    blocks = -(-out // rows)
    flat = np.zeros((groups, blocks * rows, dense[0].size), np.float32)
    flat[:, :out] = dense.reshape(groups, out, -1)
    return np.ascontiguousarray(flat.reshape(groups, blocks, rows, -1).transpose(0, 1, 3, 2))


def fits_known(call: OpCall, device: DeviceInfo) -> str | None:
    """What rules out the kernels for processors that pack weights ahead."""
    if not on_cpu(device):
        return "for processors"
    if (why := fits(conv_of(call), device)) is not None:
        return why
    conv = Convolution.of(call)
    if conv.dtype != "float32" or conv.layout != "nchw":
        return Refusal("float32 in nchw only", Cause.DTYPE)
    if 1 not in call.constants:
        return "weights that are not known"
    if conv.is_depthwise:
        return "depthwise"
    if conv.image[0] * conv.groups > MAX_ROWS:
        return Refusal(f"a batch over {MAX_ROWS}", Cause.SIZE)
    return None


def _lower(call: OpCall, device: DeviceInfo, rows: int, vecs: int) -> Lowered:
    conv, parts = Convolution.of(call), Assembly(call, device)
    width = vector_width(device)
    lines = Lines.of(conv, vecs * width)
    slot: Slot = In(0)
    if lines.copied:
        slot = parts.buffer(4 * (conv.image[0] * conv.image[1] * lines.plane + 2 * vecs * width))
        parts.steps.append(split(conv, lines, slot, device))
    slots = (slot, *known_operands(parts, call, conv, lines, rows))
    parts.steps.append(_direct(call, lines, slots, device, (rows, vecs)))
    return parts.lowered()


def known_operands(
    parts: Assembly, call: OpCall, conv: Convolution, lines: Lines, together: int
) -> tuple[Slot, Slot]:
    """The filters packed with ``together`` output channels side by side, and where taps read."""
    known, layout = call.constants[1], call.attrs["filter_layout"]
    per_in, per_out = conv.per_group
    blocks, k = -(-per_out // together), per_in * conv.window[0] * conv.window[1]
    weights = parts.pack(
        lambda: packed(known, layout, conv.groups, together),
        TensorSpec("float32", (conv.groups, blocks, k, together)),
    )
    parts.unused.add(1)
    taps = lines.taps(conv)
    return weights, parts.pack(lambda: taps, TensorSpec.of(taps))


def split(conv: Convolution, lines: Lines, target: Slot, device: DeviceInfo) -> GridLaunch:
    """The launch that makes the lines of an image."""
    n, c, h, w = conv.image
    top, _, left, _ = conv.padding
    per = max(1, min(n * c // (4 * max(1, device.compute_units)), 16384 // lines.plane))
    args = (In(0), target, *i32(n * c, per, h, w, lines.tall, lines.wide, top, left))
    known = define(
        STEP_H=lines.step[0], STEP_W=lines.step[1],
        PHASES_H=lines.phases[0], PHASES_W=lines.phases[1],
    )  # fmt: skip
    known = (*known, *vectors(vector_width(device)))
    return launch(_SPLIT, "split", args, (-(-n * c // per),), (1,), known)


def _shares(conv: Convolution, lines: Lines, blocks: int, tiles: int, units: int) -> Share:
    """How many blocks and tiles an item does: enough items for the units to end together.

    What is larger, image or weights, is read as few times as can be: items go along tiles with a
    block's weights, or along blocks with a tile.
    """
    batch = conv.image[0] * conv.groups
    wanted = max(1, 12 * units // batch)
    per_out = conv.per_group[1]
    if per_out * conv.window[0] * conv.window[1] > lines.plane and blocks >= 4 * units:
        return max(1, blocks // wanted), tiles
    return max(1, blocks // max(1, wanted // tiles)), 1


def _direct(
    call: OpCall,
    lines: Lines,
    slots: tuple[Slot, Slot, Slot],
    device: DeviceInfo,
    block: tuple[int, int],
) -> GridLaunch:
    conv, width, (rows, vecs) = Convolution.of(call), vector_width(device), block
    run = vecs * width
    (per_in, per_out), (out_h, out_w) = conv.per_group, conv.result[2:]
    count = (out_h - 1) * lines.wide + out_w
    tiles, blocks, batch = -(-count // run), -(-per_out // rows), conv.image[0] * conv.groups
    per, along = _shares(conv, lines, blocks, tiles, max(1, device.compute_units))
    k = per_in * conv.window[0] * conv.window[1]
    numbers = i32(
        per_out, count, k, per, along, conv.groups, out_w, lines.wide, per_in * lines.plane,
        out_h * out_w,
    )  # fmt: skip
    bias, end = bias_of(call), ending(call, device)
    beside = tuple(s for s in (bias, end.residual) if s is not None)
    args: tuple[Argument, ...] = (*slots, *beside, Out(0), *numbers)
    text = _DIRECT.replace("@BIAS@", "CONSTANT float *RESTRICT bias," if bias else "")
    text = end.into(text)
    first = "bias[g * M + m]" if bias else "0.0f"
    known = define(RM=rows, RN=run, VECS=vecs, SHIFTED=int(not lines.copied), FIRST=first)
    items = (-(-tiles // along), -(-blocks // per), batch)
    return launch(text, "direct", args, items, (1, 1, 1), (*known, *vectors(width)))


SHAPES = {16: ((12, 2), (8, 2), (8, 3), (6, 4)), 8: ((6, 2), (4, 2), (4, 3), (3, 4))}
"""Rows by vectors of a block, by the vectors' width: as many as the registers hold in two to four
vectors, and fewer rows, which waste fewer."""
NAMES = ("direct", "direct_low", "direct_wide", "direct_widest")


def _register(name: str, at: int) -> None:
    def lower(call: OpCall, device: DeviceInfo) -> Lowered:
        shapes = SHAPES[8 if vector_width(device) == 8 else 16]
        return _lower(call, device, *shapes[at])

    for op in ("conv2d", fused_conv.NAME):
        kernel(f"grid.conv2d.{name}", op, KINDS, when=fits_known, rank=12 + at)(lower)


for _at, _name in enumerate(NAMES):
    _register(_name, _at)
