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
                    for (i32 w = 0; w < begin; ++w) to[h * wide + w] = 0.0f;
                    for (i32 w = begin; w < most; ++w) to[h * wide + w] = row[w * STEP_W];
                    for (i32 w = most; w < wide; ++w) to[h * wide + w] = 0.0f;
                }
            }
        }
    }
}
"""

_DIRECT = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void direct(CONSTANT float *RESTRICT x, CONSTANT float *RESTRICT a, CONSTANT i32 *RESTRICT taps,
            @BIAS@ GLOBAL float *RESTRICT y, i32 M, i32 N, i32 K, i32 per, i32 groups,
            i32 out_w, i32 wide, i32 x_size, i32 y_size)
{
    const i32 begin = GROUP_ID(0) * RN, z = GROUP_ID(2), blocks = (M + RM - 1) / RM;
    const i32 n0 = SHIFTED && begin + RN > N ? N - RN : begin, skip = begin - n0;
    const i32 end = N - n0 < RN ? N - n0 : RN, g = z % groups;
    const i32 first = GROUP_ID(1) * per, last = first + per < blocks ? first + per : blocks;
    x += z * x_size + n0;
    y += z * M * y_size;
    for (i32 r = first; r < last; ++r) {
        CONSTANT float *panel = a + (g * blocks + r) * K * RM;
        VEC acc[RM][2];
        UNROLL for (i32 i = 0; i < RM; ++i) {
            const i32 m = r * RM + i < M ? r * RM + i : M - 1;
            acc[i][0] = acc[i][1] = VSPLAT(FIRST);
        }
        for (i32 k = 0; k < K; ++k) {
            CONSTANT float *from = x + taps[k];
            const VEC b0 = VLOAD(from), b1 = VLOAD(from + VW);
            UNROLL for (i32 i = 0; i < RM; ++i) {
                const VEC w = VSPLAT(panel[k * RM + i]);
                acc[i][0] = VFMA(w, b0, acc[i][0]);
                acc[i][1] = VFMA(w, b1, acc[i][1]);
            }
        }
        VEC sums[RM][2];
        UNROLL for (i32 i = 0; i < RM; ++i) { sums[i][0] = acc[i][0]; sums[i][1] = acc[i][1]; }
        for (i32 i = 0; i < RM && r * RM + i < M; ++i) {
            GLOBAL float *row = y + (r * RM + i) * y_size;
            if (wide == out_w && end == RN) {
                VSTORE(row + n0, sums[i][0]);
                VSTORE(row + n0 + VW, sums[i][1]);
            } else {
                const float *sum = (const float *)sums[i];
                i32 h = (n0 + skip) / wide, w = n0 + skip - h * wide;
                for (i32 c = skip; c < end;) {
                    const i32 left = out_w - w < end - c ? out_w - w : end - c;
                    GLOBAL float *to = row + h * out_w + w;
                    for (i32 l = 0; l < left; ++l) to[l] = sum[c + l];
                    c += wide - w;
                    h += 1;
                    w = 0;
                }
            }
        }
    }
}
"""


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


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := fits(call, device)) is not None:
        return why
    conv = Convolution.of(call)
    if not on_cpu(device):
        return "for processors"
    if conv.dtype != "float32" or conv.layout != "nchw":
        return Refusal("float32 in nchw only", Cause.DTYPE)
    if 1 not in call.constants:
        return "weights that are not known"
    if conv.is_depthwise:
        return "depthwise"
    if conv.image[0] * conv.groups > MAX_ROWS:
        return Refusal(f"a batch over {MAX_ROWS}", Cause.SIZE)
    return None


def _lower(call: OpCall, device: DeviceInfo, rows: int) -> Lowered:
    conv, parts = Convolution.of(call), Assembly(call, device)
    width = vector_width(device)
    lines = Lines.of(conv, 2 * width)
    slot: Slot = In(0)
    if lines.copied:
        slot = parts.buffer(4 * (conv.image[0] * conv.image[1] * lines.plane + 4 * width))
        parts.steps.append(_split(conv, lines, slot, device))
    known, layout = call.constants[1], call.attrs["filter_layout"]
    per_in, per_out = conv.per_group
    blocks, k = -(-per_out // rows), per_in * conv.window[0] * conv.window[1]
    weights = parts.pack(
        lambda: packed(known, layout, conv.groups, rows),
        TensorSpec("float32", (conv.groups, blocks, k, rows)),
    )
    parts.unused.add(1)
    taps = lines.taps(conv)
    table = parts.pack(lambda: taps, TensorSpec.of(taps))
    parts.steps.append(_direct(conv, lines, (slot, weights, table), bias_of(call), device, rows))
    return parts.lowered()


def _split(conv: Convolution, lines: Lines, target: Slot, device: DeviceInfo) -> GridLaunch:
    n, c, h, w = conv.image
    top, _, left, _ = conv.padding
    per = max(1, min(n * c // (4 * max(1, device.compute_units)), 16384 // lines.plane))
    args = (In(0), target, *i32(n * c, per, h, w, lines.tall, lines.wide, top, left))
    known = define(
        STEP_H=lines.step[0], STEP_W=lines.step[1],
        PHASES_H=lines.phases[0], PHASES_W=lines.phases[1],
    )  # fmt: skip
    return launch(_SPLIT, "split", args, (-(-n * c // per),), (1,), known)


def _direct(
    conv: Convolution,
    lines: Lines,
    slots: tuple[Slot, Slot, Slot],
    bias: Slot | None,
    device: DeviceInfo,
    rows: int,
) -> GridLaunch:
    width = vector_width(device)
    run = 2 * width
    (per_in, per_out), (out_h, out_w) = conv.per_group, conv.result[2:]
    count = (out_h - 1) * lines.wide + out_w
    tiles, blocks, batch = -(-count // run), -(-per_out // rows), conv.image[0] * conv.groups
    # Enough items for the device's units to end together; the more blocks an item does, the more
    # often it finds the places that it reads in its caches.
    wanted = max(1, 12 * max(1, device.compute_units) // (tiles * batch))
    per = max(1, blocks // wanted)
    k = per_in * conv.window[0] * conv.window[1]
    numbers = i32(
        per_out, count, k, per, conv.groups, out_w, lines.wide, per_in * lines.plane, out_h * out_w
    )
    args: tuple[Argument, ...] = (*slots, *((bias,) if bias else ()), Out(0), *numbers)
    text = _DIRECT.replace("@BIAS@", "CONSTANT float *RESTRICT bias," if bias else "")
    first = "bias[g * M + m]" if bias else "0.0f"
    known = define(RM=rows, RN=run, SHIFTED=int(not lines.copied), FIRST=first)
    items = (tiles, -(-blocks // per), batch)
    return launch(text, "direct", args, items, (1, 1, 1), (*known, *vectors(width)))


def _heights(device: DeviceInfo) -> tuple[int, int]:
    """Rows of a block: as many as the registers hold, and fewer, which waste fewer."""
    return (12, 8) if vector_width(device) != 8 else (6, 4)


@kernel("grid.conv2d.direct", "conv2d", KINDS, when=_fits, rank=12)
def lower_direct(call: OpCall, device: DeviceInfo) -> Lowered:
    """A padding step where there is padding, then one launch; tall blocks."""
    return _lower(call, device, _heights(device)[0])


@kernel("grid.conv2d.direct_low", "conv2d", KINDS, when=_fits, rank=13)
def lower_direct_low(call: OpCall, device: DeviceInfo) -> Lowered:
    """The same in lower blocks."""
    return _lower(call, device, _heights(device)[1])
