"""Attention on processors without a matrix of scores in memory: blocks of queries along the keys.

An item has some queries of one head. For a chunk of keys, which it turns in local memory, it takes
the queries in blocks: makes their scores, raises them to exponentials under the largest seen so
far, and adds the values that they weigh; where a later chunk has a larger score, what was summed is
scaled down (the online softmax of Milakov and Gimelshein, 2018, and Dao et al., 2022, section 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Argument, In, Lowered, Out
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
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

_ATTENTION = r"""
#define EACH UNROLL for (i32 r = 0; r < 4; ++r)
KERNEL BLOCK_SIZE(1, 1, 1)
void attention(CONSTANT float *RESTRICT query, CONSTANT float *RESTRICT key,
               CONSTANT float *RESTRICT value, @BIAS@ GLOBAL float *RESTRICT y,
               i32 heads, i32 shared, i32 length, i32 keys, i32 out_width,
               float scale, float cap, i32 offset, i32 b0, i32 b1, i32 b2, i32 b3,
               i32 qf, i32 qb, i32 qh, i32 qr, i32 kf, i32 kb, i32 kh, i32 kr,
               i32 vf, i32 vb, i32 vh, i32 vr, i32 yb, i32 yh, i32 yr)
{
    LOCAL VEC turned_room[WIDTH * LINE / VW];
    LOCAL VEC score_room[ROWS * LINE / VW];
    LOCAL VEC out_room[SPAN * WIDE / VW];
    LOCAL float tops[SPAN];
    LOCAL float totals[SPAN];
    @ROOM@
    LOCAL_PTR float *turned = (LOCAL_PTR float *)turned_room;
    LOCAL_PTR float *scores = (LOCAL_PTR float *)score_room;
    const i32 image = GROUP_ID(1) / heads, head = GROUP_ID(1) % heads;
    const i32 first = GROUP_ID(0) * SPAN, home = head / (heads / shared);
    const i32 last = length - first < SPAN ? length : first + SPAN;
    query += qf + image * qb + head * qh;
    key += kf + image * kb + home * kh;
    value += vf + image * vb + home * vh;
    y += image * yb + head * yh;
    for (i32 i = 0; i < SPAN; ++i) {
        tops[i] = -INFINITY;
        totals[i] = 0.0f;
    }
    for (i32 k0 = 0; k0 < keys; k0 += CHUNK) {
        const i32 some = keys - k0 < CHUNK ? keys - k0 : CHUNK;
        const i32 filled = (some + 2 * VW - 1) / (2 * VW) * (2 * VW);
        CONSTANT float *lines = key + k0 * kr;
        @TURN@
        @WIDEN@
        for (i32 q0 = first; q0 < last; q0 += ROWS) {
            const i32 rows = last - q0 < ROWS ? last - q0 : ROWS;
            LOCAL_PTR float *top = tops + q0 - first, *total = totals + q0 - first;
            LOCAL_PTR float *out = (LOCAL_PTR float *)out_room + (q0 - first) * WIDE;
            CONSTANT float *from[ROWS];
            float less[ROWS];
            UNROLL for (i32 i = 0; i < ROWS; ++i)
                from[i] = query + (q0 + (i < rows ? i : rows - 1)) * qr;
            for (i32 j = 0; j < filled; j += 2 * VW) {
                VEC acc[ROWS][2];
                UNROLL for (i32 i = 0; i < ROWS; ++i) acc[i][0] = acc[i][1] = VSPLAT(0.0f);
                for (i32 d = 0; d < WIDTH; ++d) {
                    LOCAL_PTR const float *at = turned + d * LINE + j;
                    const VEC u = VLOAD(at), v = VLOAD(at + VW);
                    UNROLL for (i32 i = 0; i < ROWS; ++i) {
                        const VEC w = VSPLAT(from[i][d]);
                        acc[i][0] = VFMA(w, u, acc[i][0]);
                        acc[i][1] = VFMA(w, v, acc[i][1]);
                    }
                }
                UNROLL for (i32 i = 0; i < ROWS; ++i) {
                    VSTORE(scores + i * LINE + j, acc[i][0]);
                    VSTORE(scores + i * LINE + j + VW, acc[i][1]);
                }
            }
            for (i32 i = 0; i < rows * CHANGED; ++i) {
                LOCAL_PTR float *row = scores + i * LINE;
#if CAPPED
                for (i32 j = 0; j < some; ++j) row[j] = G_TANH(row[j] / cap) * cap;
#endif
#if HAS_BIAS
                CONSTANT float *added =
                    bias + image * b0 + head * b1 + (q0 + i) * b2 + k0 * b3;
                for (i32 j = 0; j < some; ++j) row[j] += added[j * b3];
#endif
#if CAUSAL
                const i32 seen = q0 + i + offset + 1 - k0;
                for (i32 j = seen < 0 ? 0 : seen; j < some; ++j) row[j] = -INFINITY;
#endif
            }
            for (i32 i = 0; i < ROWS; i += 4) {
                LOCAL_PTR float *row[4];
                VEC most[4], sums[4];
                EACH row[r] = scores + (i + r) * LINE;
                for (i32 j = some; j < filled; ++j) EACH row[r][j] = -INFINITY;
                EACH most[r] = VSPLAT(top[i + r]);
                for (i32 j = 0; j < filled; j += VW)
                    EACH most[r] = v_max(most[r], VLOAD(row[r] + j));
                EACH {
                    const float now = v_top(most[r]), shift = now == -INFINITY ? 0.0f : now;
                    less[i + r] = k0 ? G_EXP(top[i + r] - shift) : 0.0f;
                    top[i + r] = now;
                    most[r] = VSPLAT(shift);
                    sums[r] = VSPLAT(0.0f);
                }
                for (i32 j = 0; j < filled; j += VW)
                    EACH {
                        const VEC raised = v_exp(VLOAD(row[r] + j) - most[r]);
                        sums[r] = sums[r] + raised;
                        VSTORE(row[r] + j, raised);
                    }
                EACH total[i + r] = total[i + r] * less[i + r] + v_sum(sums[r]);
            }
            for (i32 e = 0; e < WIDE; e += STRIP * VW) {
                VEC acc[ROWS][STRIP];
                UNROLL for (i32 i = 0; i < ROWS; ++i)
                    UNROLL for (i32 s = 0; s < STRIP; ++s) acc[i][s] = VSPLAT(0.0f);
                if (k0) {
                    UNROLL for (i32 i = 0; i < ROWS; ++i)
                        UNROLL for (i32 s = 0; s < STRIP; ++s)
                            acc[i][s] = VLOAD(out + i * WIDE + e + s * VW) * less[i];
                }
                for (i32 j = 0; j < some; ++j) {
                    VEC v[STRIP];
                    UNROLL for (i32 s = 0; s < STRIP; ++s)
                        v[s] = VLOAD(VALUES(j) + e + s * VW);
                    UNROLL for (i32 i = 0; i < ROWS; ++i) {
                        const VEC w = VSPLAT(scores[i * LINE + j]);
                        UNROLL for (i32 s = 0; s < STRIP; ++s)
                            acc[i][s] = VFMA(w, v[s], acc[i][s]);
                    }
                }
                UNROLL for (i32 i = 0; i < ROWS; ++i)
                    UNROLL for (i32 s = 0; s < STRIP; ++s)
                        VSTORE(out + i * WIDE + e + s * VW, acc[i][s]);
            }
        }
    }
    for (i32 i = 0; i < last - first; ++i) {
        LOCAL_PTR const float *done = (LOCAL_PTR const float *)out_room + i * WIDE;
        GLOBAL float *to = y + (first + i) * yr;
        const float factor = MASKED && totals[i] == 0.0f ? 0.0f : 1.0f / totals[i];
        for (i32 e = 0; e < out_width; ++e) to[e] = done[e] * factor;
    }
}
"""

_TURN = r"""
        for (i32 d = 0; d < WIDTH / 4 * 4; d += 4) {
            LOCAL_PTR float *t0 = turned + d * LINE;
            for (i32 j = 0; j + 4 <= some; j += 4) {
                CONSTANT float *p = lines + j * kr + d;
                const float4 a = VLOAD4(p) * scale, b = VLOAD4(p + kr) * scale;
                const float4 c = VLOAD4(p + 2 * kr) * scale, e = VLOAD4(p + 3 * kr) * scale;
                VSTORE4(t0 + j, (float4)(a.s0, b.s0, c.s0, e.s0));
                VSTORE4(t0 + LINE + j, (float4)(a.s1, b.s1, c.s1, e.s1));
                VSTORE4(t0 + 2 * LINE + j, (float4)(a.s2, b.s2, c.s2, e.s2));
                VSTORE4(t0 + 3 * LINE + j, (float4)(a.s3, b.s3, c.s3, e.s3));
            }
        }
        for (i32 d = 0; d < WIDTH; ++d) {
            const i32 done = d < WIDTH / 4 * 4 ? some / 4 * 4 : 0;
            for (i32 j = done; j < some; ++j) turned[d * LINE + j] = lines[j * kr + d] * scale;
            for (i32 j = some; j < filled; ++j) turned[d * LINE + j] = 0.0f;
        }
"""
"""Keys of a chunk, turned and scaled: those that a vector takes lie side by side."""

_WIDEN = r"""
        for (i32 j = 0; j < some; ++j) {
            CONSTANT float *line = value + (k0 + j) * vr;
            for (i32 e = 0; e < out_width; ++e) widened[j * WIDE + e] = line[e];
            for (i32 e = out_width; e < WIDE; ++e) widened[j * WIDE + e] = 0.0f;
        }
"""
"""Values of a chunk in whole vectors."""

CHUNK = 128
"""Keys at a time; lines are a vector longer, or all of them would fall into the same cache sets."""
MOST = 96
"""Queries that share the turned keys."""


@dataclass(frozen=True)
class _Tile:
    """Queries of a block, blocks of an item, and the width of values in whole vectors."""

    rows: int
    span: int
    wide: int

    def nbytes(self, call: OpCall, vector: int) -> int:
        """Local memory of an item."""
        sizes, line = extents_of(call), CHUNK + vector
        widened = CHUNK * self.wide if sizes.out_width < self.wide else 0
        return 4 * ((sizes.width + self.rows) * line + self.span * (self.wide + 2) + widened)


def _tile(call: OpCall, device: DeviceInfo, rows: int) -> _Tile:
    sizes, vector = extents_of(call), vector_width(device)
    blocks = -(-sizes.operand(0)[2] // rows)
    wanted = -(-8 * max(1, device.compute_units) // (sizes.batch * sizes.heads))
    each = max(1, min(MOST // rows, blocks // min(wanted, blocks)))
    each = -(-blocks // -(-blocks // each))
    return _Tile(rows, each * rows, -(-sizes.out_width // vector) * vector)


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    if not on_cpu(device):
        return "for processors"
    if operand(call, 0).dtype != "float32":
        return Refusal("float32 only", Cause.DTYPE)
    sizes = extents_of(call)
    if sizes.batch * sizes.heads > MAX_ROWS:
        return Refusal(f"more than {MAX_ROWS} heads", Cause.SIZE)
    needed = max(
        _tile(call, device, n).nbytes(call, vector_width(device)) for n in _heights(device)
    )
    if needed > (device.local_memory or 32 << 10):
        return Refusal("too little local memory", Cause.SIZE)
    return None


def _heights(device: DeviceInfo) -> tuple[int, int]:
    """Queries of a block: as many as the registers hold, and fewer, which waste fewer."""
    return (12, 8) if vector_width(device) != 8 else (4, 4)


def _lower(call: OpCall, device: DeviceInfo, rows: int) -> Lowered:
    attrs, tile, vector = call.attrs, _tile(call, device, rows), vector_width(device)
    sizes = extents_of(call)
    batch, heads, length, width = sizes.operand(0)
    keys, out_width = sizes.keys, sizes.out_width
    scale = 1.0 / math.sqrt(width) if attrs["scale"] is None else float(attrs["scale"])
    strides, bias, offset = (0, 0, 0, 0), has(call, 3), attrs["causal_offset"]
    if bias:
        b0, b1, b2, b3 = broadcast_strides(operand(call, 3).dims, (batch, heads, length, keys))
        strides = (b0, b1, b2, b3)
    places = *(n for at in range(3) for n in strides_of(call, at)), *result_strides(call)
    args: tuple[Argument, ...] = (
        In(0), In(1), In(2), *((In(3),) if bias else ()), Out(0),
        *i32(heads, sizes.shared, length, keys, out_width),
        *f32(scale, float(attrs["softcap"])), *i32(offset or 0, *strides, *places),
    )  # fmt: skip
    capped, masked, whole = bool(attrs["softcap"]), bias or offset is not None, tile.wide
    hidden = masked and attrs.get("hidden_zero", True)
    known = define(
        ROWS=rows, SPAN=tile.span, CHUNK=CHUNK, LINE=CHUNK + vector, WIDTH=width, WIDE=whole,
        STRIP=2 if whole % (2 * vector) == 0 else 1, CAPPED=int(capped), HAS_BIAS=int(bias),
        CAUSAL=int(offset is not None), MASKED=int(hidden), CHANGED=int(masked or capped),
            )  # fmt: skip
    values = "(widened + (j) * WIDE)" if out_width < whole else "(value + (k0 + (j)) * vr)"
    known = (*known, ("VALUES(j)", values))
    text = _ATTENTION.replace("@TURN@", _TURN)
    text = text.replace("@WIDEN@", _WIDEN if out_width < whole else "")
    text = text.replace("@ROOM@", "LOCAL float widened[CHUNK * WIDE];" * (out_width < whole))
    text = text.replace("@BIAS@", "CONSTANT float *RESTRICT bias," if bias else "")
    text = prelude(("tanh", "exp"), cpu=True) + VECTOR_MATHS + text
    items = (-(-length // tile.span), batch * heads)
    step = launch(text, "attention", args, items, (1, 1), (*known, *vectors(vector)))
    return Lowered((step,))


@kernel("grid.attention", "scaled_dot_product_attention", KINDS, when=_fits, rank=15)
@kernel("grid.attention", "fused_attention", KINDS, when=_fits, rank=15)
def lower_attention(call: OpCall, device: DeviceInfo) -> Lowered:
    """One launch; blocks of as many queries as the registers hold."""
    return _lower(call, device, _heights(device)[0])


@kernel("grid.attention.low", "scaled_dot_product_attention", KINDS, when=_fits, rank=16)
@kernel("grid.attention.low", "fused_attention", KINDS, when=_fits, rank=16)
def lower_attention_low(call: OpCall, device: DeviceInfo) -> Lowered:
    """The same in blocks of fewer queries."""
    return _lower(call, device, _heights(device)[1])
