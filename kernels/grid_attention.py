"""Attention on processors without a matrix of scores in memory: blocks of queries along the keys.

An item has a few queries of one head. It makes the scores of a chunk of keys, raises them to
exponentials under the largest seen so far, and adds the values that they weigh; where a later chunk
has a larger score, what was summed is scaled down (the online softmax of Milakov and Gimelshein,
2018, and Dao et al., 2022, section 3.1). Keys are turned before, so that those of a chunk lie side
by side, and values are widened to whole vectors.
"""

from __future__ import annotations

import math

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, GridLaunch, In, Lowered, Out, Slot
from crossdock.kernels.fused_attention import extents_of, result_strides, strides_of
from crossdock.kernels.grid_common import (
    KINDS,
    MAX_ROWS,
    broadcast_strides,
    define,
    f32,
    has,
    i32,
    launch,
    obstacle,
    on_cpu,
    operand,
    vector_width,
    vectors,
)
from crossdock.kernels.grid_math import prelude
from crossdock.kernels.grid_vectors import VECTOR_MATHS
from crossdock.kernels.grid_window import Assembly
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_ARRANGE = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void arrange(CONSTANT float *RESTRICT key, CONSTANT float *RESTRICT value,
             GLOBAL float *RESTRICT turned, GLOBAL float *RESTRICT widened,
             i32 shared, i32 keys, i32 width, i32 out_width, i32 span, i32 wide,
             i32 kf, i32 kb, i32 kh, i32 kr, i32 vf, i32 vb, i32 vh, i32 vr)
{
    const i32 z = GROUP_ID(0);
    key += kf + z / shared * kb + z % shared * kh;
    value += vf + z / shared * vb + z % shared * vh;
    for (i32 d = 0; d < width; ++d) {
        GLOBAL float *to = turned + (z * width + d) * span;
        for (i32 j = 0; j < keys; ++j) to[j] = key[j * kr + d];
        for (i32 j = keys; j < span; ++j) to[j] = 0.0f;
    }
    for (i32 j = 0; j < keys; ++j) {
        GLOBAL float *to = widened + (z * keys + j) * wide;
        for (i32 e = 0; e < out_width; ++e) to[e] = value[j * vr + e];
        for (i32 e = out_width; e < wide; ++e) to[e] = 0.0f;
    }
}
"""

_ATTENTION = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void attention(CONSTANT float *RESTRICT query, CONSTANT float *RESTRICT turned,
               CONSTANT float *RESTRICT widened, @BIAS@ GLOBAL float *RESTRICT y,
               i32 heads, i32 each, i32 length, i32 keys, i32 width, i32 out_width, i32 span,
               float scale, float cap, i32 offset, i32 b0, i32 b1, i32 b2, i32 b3,
               i32 qf, i32 qb, i32 qh, i32 qr, i32 yb, i32 yh, i32 yr)
{
    LOCAL VEC score_room[ROWS * LINE / VW];
    LOCAL VEC out_room[ROWS * WIDE / VW];
    LOCAL_PTR float *scores = (LOCAL_PTR float *)score_room;
    LOCAL_PTR float *out = (LOCAL_PTR float *)out_room;
    float tops[ROWS], totals[ROWS];
    const i32 z = GROUP_ID(1), q0 = GROUP_ID(0) * ROWS, home = z / each;
    const i32 rows = length - q0 < ROWS ? length - q0 : ROWS;
    CONSTANT float *from[ROWS];
    UNROLL for (i32 i = 0; i < ROWS; ++i) {
        from[i] = query + qf + z / heads * qb + z % heads * qh
                + (q0 + (i < rows ? i : rows - 1)) * qr;
        tops[i] = -INFINITY;
        totals[i] = 0.0f;
    }
    for (i32 i = 0; i < ROWS * WIDE; ++i) out[i] = 0.0f;
    turned += home * width * span;
    widened += home * keys * WIDE;
    for (i32 k0 = 0; k0 < keys; k0 += CHUNK) {
        const i32 some = keys - k0 < CHUNK ? keys - k0 : CHUNK;
        const i32 filled = (some + 2 * VW - 1) / (2 * VW) * (2 * VW);
        for (i32 j = 0; j < filled; j += 2 * VW) {
            VEC acc[ROWS][2];
            UNROLL for (i32 i = 0; i < ROWS; ++i) acc[i][0] = acc[i][1] = VSPLAT(0.0f);
            for (i32 d = 0; d < width; ++d) {
                CONSTANT float *line = turned + d * span + k0 + j;
                const VEC u = VLOAD(line), v = VLOAD(line + VW);
                UNROLL for (i32 i = 0; i < ROWS; ++i) {
                    const VEC w = VSPLAT(from[i][d]);
                    acc[i][0] = VFMA(w, u, acc[i][0]);
                    acc[i][1] = VFMA(w, v, acc[i][1]);
                }
            }
            UNROLL for (i32 i = 0; i < ROWS; ++i) {
                VSTORE(scores + i * LINE + j, acc[i][0] * scale);
                VSTORE(scores + i * LINE + j + VW, acc[i][1] * scale);
            }
        }
        for (i32 i = 0; i < rows; ++i) {
            LOCAL_PTR float *row = scores + i * LINE;
#if CAPPED
            for (i32 j = 0; j < some; ++j) row[j] = G_TANH(row[j] / cap) * cap;
#endif
#if HAS_BIAS
            CONSTANT float *added =
                bias + z / heads * b0 + z % heads * b1 + (q0 + i) * b2 + k0 * b3;
            for (i32 j = 0; j < some; ++j) row[j] += added[j * b3];
#endif
#if CAUSAL
            const i32 seen = q0 + i + offset + 1 - k0;
            for (i32 j = seen < 0 ? 0 : seen; j < some; ++j) row[j] = -INFINITY;
#endif
            for (i32 j = some; j < filled; ++j) row[j] = -INFINITY;
            VEC most = VSPLAT(tops[i]), sums = VSPLAT(0.0f);
            for (i32 j = 0; j < filled; j += VW) most = v_max(most, VLOAD(row + j));
            const float top = v_top(most), shift = top == -INFINITY ? 0.0f : top;
            for (i32 j = 0; j < filled; j += VW) {
                const VEC raised = v_exp(VLOAD(row + j) - shift);
                sums = sums + raised;
                VSTORE(row + j, raised);
            }
            const float less = k0 ? G_EXP(tops[i] - shift) : 0.0f;
            totals[i] = totals[i] * less + v_sum(sums);
            tops[i] = top;
            for (i32 e = 0; e < WIDE; e += VW)
                VSTORE(out + i * WIDE + e, VLOAD(out + i * WIDE + e) * less);
        }
        for (i32 e = 0; e < WIDE; e += STRIP * VW) {
            VEC acc[ROWS][STRIP];
            UNROLL for (i32 i = 0; i < ROWS; ++i)
                UNROLL for (i32 s = 0; s < STRIP; ++s)
                    acc[i][s] = VLOAD(out + i * WIDE + e + s * VW);
            for (i32 j = 0; j < some; ++j) {
                VEC v[STRIP];
                UNROLL for (i32 s = 0; s < STRIP; ++s)
                    v[s] = VLOAD(widened + (k0 + j) * WIDE + e + s * VW);
                UNROLL for (i32 i = 0; i < ROWS; ++i) {
                    const VEC w = VSPLAT(scores[i * LINE + j]);
                    UNROLL for (i32 s = 0; s < STRIP; ++s) acc[i][s] = VFMA(w, v[s], acc[i][s]);
                }
            }
            UNROLL for (i32 i = 0; i < ROWS; ++i)
                UNROLL for (i32 s = 0; s < STRIP; ++s)
                    VSTORE(out + i * WIDE + e + s * VW, acc[i][s]);
        }
    }
    for (i32 i = 0; i < rows; ++i) {
        GLOBAL float *to = y + z / heads * yb + z % heads * yh + (q0 + i) * yr;
        const float factor = MASKED && totals[i] == 0.0f ? 0.0f : 1.0f / totals[i];
        for (i32 e = 0; e < out_width; ++e) to[e] = out[i * WIDE + e] * factor;
    }
}
"""

CHUNK = 256
"""Keys whose scores an item holds at a time; lines are a vector longer, or all rows of a block
would fall into the same cache sets."""


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    if not on_cpu(device):
        return "for processors"
    if operand(call, 0).dtype != "float32":
        return Refusal("float32 only", Cause.DTYPE)
    sizes = extents_of(call)
    rows, wide = _tile(call, device)
    if sizes.batch * sizes.heads > MAX_ROWS:
        return Refusal(f"more than {MAX_ROWS} heads", Cause.SIZE)
    if 4 * rows * (CHUNK + vector_width(device) + wide) > (device.local_memory or 32 << 10):
        return Refusal("too little local memory", Cause.SIZE)
    return None


def _tile(call: OpCall, device: DeviceInfo) -> tuple[int, int]:
    """Queries of an item, and the width of values in whole vectors."""
    width = vector_width(device)
    return 8 if width != 8 else 4, -(-extents_of(call).out_width // width) * width


def _arrange(
    call: OpCall, parts: Assembly, span: int, wide: int
) -> tuple[GridLaunch, tuple[Slot, Slot]]:
    sizes = extents_of(call)
    width, keys, out_width = sizes.width, sizes.keys, sizes.out_width
    count = sizes.batch * sizes.shared
    room = parts.buffer(4 * count * width * span), parts.buffer(4 * count * keys * wide)
    places = i32(*strides_of(call, 1), *strides_of(call, 2))
    args: tuple[Argument, ...] = (
        In(1), In(2), *room, *i32(sizes.shared, keys, width, out_width, span, wide), *places,
    )  # fmt: skip
    return launch(_ARRANGE, "arrange", args, (count,), (1,)), room


@kernel("grid.attention", "scaled_dot_product_attention", KINDS, when=_fits, rank=15)
@kernel("grid.attention", "fused_attention", KINDS, when=_fits, rank=15)
def lower_attention(call: OpCall, device: DeviceInfo) -> Lowered:
    """One launch that turns keys and widens values, one that does the rest."""
    parts, attrs = Assembly(call, device), call.attrs
    sizes = extents_of(call)
    batch, heads, length, width = sizes.operand(0)
    shared, keys = sizes.shared, sizes.keys
    vector = vector_width(device)
    rows, wide = _tile(call, device)
    span = -(-keys // (2 * vector)) * 2 * vector
    step, room = _arrange(call, parts, span, wide)
    parts.steps.append(step)
    strides, bias = (0, 0, 0, 0), has(call, 3)
    if bias:
        b0, b1, b2, b3 = broadcast_strides(operand(call, 3).dims, (batch, heads, length, keys))
        strides = (b0, b1, b2, b3)
    scale, offset = attrs["scale"], attrs["causal_offset"]
    args: tuple[Argument, ...] = (
        In(0), *room, *((In(3),) if bias else ()), Out(0),
        *i32(heads, heads // shared, length, keys, width, sizes.out_width, span),
        *f32(1.0 / math.sqrt(width) if scale is None else scale, float(attrs["softcap"])),
        *i32(offset or 0, *strides, *strides_of(call, 0), *result_strides(call)),
    )  # fmt: skip
    known = define(
        ROWS=rows, CHUNK=CHUNK, LINE=CHUNK + vector, WIDE=wide,
        STRIP=2 if wide % (2 * vector) == 0 else 1,
        CAPPED=int(bool(attrs["softcap"])), HAS_BIAS=int(bias), CAUSAL=int(offset is not None),
        MASKED=int((bias or offset is not None) and attrs.get("hidden_zero", True)),
    )  # fmt: skip
    text = prelude(("tanh", "exp"), cpu=True) + VECTOR_MATHS + _ATTENTION
    text = text.replace("@BIAS@", "CONSTANT float *RESTRICT bias," if bias else "")
    items = (-(-length // rows), batch * heads)
    parts.steps.append(launch(text, "attention", args, items, (1, 1), (*known, *vectors(vector))))
    return parts.lowered()
