"""Rows in explicit vectors, for processors: softmax and normalisation.

A compiler that makes loops over lanes into vectors does so for simple ones only; here the vectors
are in the text. The end of a row that fills no vector is filled up with what changes nothing.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Lowered, Out
from crossdock.kernels.grid_common import (
    KINDS,
    Args,
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
from crossdock.kernels.grid_reduce import Shape, rows
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

VECTOR_MATHS = r"""
DEVICE VEC v_exp(VEC x) {
    const VEC big = VFMA(x, VSPLAT(1.44269504f), VSPLAT(12582912.0f)), n = big - 12582912.0f;
    const VEC r = VFMA(n, VSPLAT(-0.693147182f), x);
    VEC p = VFMA(r, VSPLAT(8.312477e-3f), VSPLAT(4.1890275e-2f));
    p = VFMA(p, r, VSPLAT(0.16667116f));
    p = VFMA(p, r, VSPLAT(0.4999923f));
    p = VFMA(p, r, VSPLAT(1.0f));
    p = VFMA(p, r, VSPLAT(1.0f));
    const VEC y = AS_VEC(AS_VINT(p) + (AS_VINT(big) << 23));
    return x < VSPLAT(-87.0f) ? VSPLAT(0.0f) : y;
}
DEVICE VEC v_max(VEC a, VEC b) { return a > b ? a : b; }
#define V_MOST(a, b) ((a) > (b) ? (a) : (b))
#define V_PLUS(a, b) ((a) + (b))
#if VW == 16
#define V_QUARTER(v, JOIN) const float8 v8 = JOIN(v.lo, v.hi); const float4 v4 = JOIN(v8.lo, v8.hi);
#elif VW == 8
#define V_QUARTER(v, JOIN) const float4 v4 = JOIN(v.lo, v.hi);
#else
#define V_QUARTER(v, JOIN) const float4 v4 = v;
#endif
#define V_MEET(v, JOIN) V_QUARTER(v, JOIN) const float2 v2 = JOIN(v4.lo, v4.hi);
DEVICE float v_top(VEC v) {
    V_MEET(v, V_MOST)
    return V_MOST(v2.s0, v2.s1);
}
DEVICE float v_sum(VEC v) {
    V_MEET(v, V_PLUS)
    return v2.s0 + v2.s1;
}
DEVICE VEC v_part(CONSTANT float *p, i32 left, float rest) {
    float part[VW];
    for (i32 l = 0; l < VW; ++l) part[l] = l < left ? p[l] : rest;
    return VLOAD(part);
}
DEVICE void v_put(GLOBAL float *p, i32 left, VEC v) {
    float part[VW];
    VSTORE(part, v);
    for (i32 l = 0; l < left; ++l) p[l] = part[l];
}
"""
"""exp is for what is not above zero: what softmax takes it of. Below e^-87 it gives zero. Its
polynomial is fitted like those of ``grid_math``; rounding is by a large number, since no vector
rounds elsewise."""

_LINES = r"""
#define EACH UNROLL for (i32 r = 0; r < ROWS; ++r)
#define LINES_OF_ITEM \
    const i32 first = GROUP_ID(0) * per, last = first + per < count ? first + per : count; \
    const i32 whole = length / VW * VW, left = length - whole; \
    for (i32 i = first; i < last; i += ROWS)
#define PLACES \
    CONSTANT float *line[ROWS]; \
    GLOBAL float *to[ROWS]; \
    EACH { \
        const i32 at = (i + r < last ? i + r : last - 1) * length; \
        line[r] = data + at; \
        to[r] = y + at; \
    }
"""
"""ROWS lines side by side: while one waits, others go on. The last line fills up what misses."""

_SOFTMAX = (
    VECTOR_MATHS
    + _LINES
    + r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void softmax(CONSTANT float *RESTRICT data, GLOBAL float *RESTRICT y, i32 count, i32 length,
             i32 per)
{
    LINES_OF_ITEM {
        PLACES
        VEC tops[ROWS], sums[ROWS], end[ROWS];
        float factor[ROWS];
        EACH tops[r] = VSPLAT(-INFINITY);
        for (i32 k = 0; k < whole; k += VW) EACH tops[r] = v_max(tops[r], VLOAD(line[r] + k));
        if (left) EACH tops[r] = v_max(tops[r], v_part(line[r] + whole, left, -INFINITY));
        EACH tops[r] = VSPLAT(v_top(tops[r]));
        EACH sums[r] = end[r] = VSPLAT(0.0f);
        for (i32 k = 0; k < whole; k += VW)
            EACH {
                const VEC raised = v_exp(VLOAD(line[r] + k) - tops[r]);
                sums[r] = sums[r] + raised;
                VSTORE(to[r] + k, raised);
            }
        if (left)
            EACH {
                end[r] = v_exp(v_part(line[r] + whole, left, -INFINITY) - tops[r]);
                sums[r] = sums[r] + end[r];
            }
        EACH factor[r] = 1.0f / v_sum(sums[r]);
        for (i32 k = 0; k < whole; k += VW)
            EACH if (i + r < last) VSTORE(to[r] + k, VLOAD(to[r] + k) * factor[r]);
        if (left) EACH v_put(to[r] + whole, left, end[r] * factor[r]);
    }
}
"""
)

_STANDARDIZE = (
    VECTOR_MATHS
    + _LINES
    + r"""
#if HAS_SCALE
#define SCALED(v, read) ((v) * read(scale))
#else
#define SCALED(v, read) (v)
#endif
#if HAS_BIAS
#define SHIFTED(v, read) (SCALED(v, read) + read(bias))
#else
#define SHIFTED(v, read) SCALED(v, read)
#endif
#define FULL(p) VLOAD((p) + k)
#define REST(p) v_part((p) + whole, left, 0.0f)
KERNEL BLOCK_SIZE(1, 1, 1)
void standardize(CONSTANT float *RESTRICT data, @SCALE@ @BIAS@ GLOBAL float *RESTRICT y,
                 i32 count, i32 length, float epsilon, i32 per)
{
    LINES_OF_ITEM {
        PLACES
        VEC sums[ROWS];
        float mean[ROWS], factor[ROWS];
        EACH sums[r] = VSPLAT(0.0f);
        for (i32 k = 0; k < whole; k += VW) EACH sums[r] = sums[r] + VLOAD(line[r] + k);
        if (left) EACH sums[r] = sums[r] + v_part(line[r] + whole, left, 0.0f);
        EACH mean[r] = v_sum(sums[r]) / (float)length;
        EACH sums[r] = VSPLAT(0.0f);
        for (i32 k = 0; k < whole; k += VW)
            EACH {
                const VEC v = VLOAD(line[r] + k) - mean[r];
                sums[r] = VFMA(v, v, sums[r]);
            }
        if (left)
            EACH {
                const VEC v = v_part(line[r] + whole, left, mean[r]) - mean[r];
                sums[r] = VFMA(v, v, sums[r]);
            }
        EACH factor[r] = 1.0f / X_SQRT(v_sum(sums[r]) / (float)length + epsilon);
        for (i32 k = 0; k < whole; k += VW)
            EACH {
                const VEC v = (VLOAD(line[r] + k) - mean[r]) * factor[r];
                VSTORE(to[r] + k, SHIFTED(v, FULL));
            }
        if (left)
            EACH {
                const VEC v = (REST(line[r]) - mean[r]) * factor[r];
                v_put(to[r] + whole, left, SHIFTED(v, REST));
            }
    }
}
"""
)

ROWS = 4
WORK = 4096
"""Elements of an item, about."""


def _launch(
    text: str, entry: str, args: Args, shape: Shape, device: DeviceInfo, **flags: int
) -> GridLaunch:
    """The launch over rows; ``per``, how many an item does, is the text's last argument."""
    count, length, _ = shape
    per = max(1, min(WORK // length, count // (8 * max(1, device.compute_units))))
    per = -(-per // ROWS) * ROWS
    defines = (*define(ROWS=ROWS, **flags), *vectors(vector_width(device)))
    return launch(text, entry, (*args, *i32(per)), (-(-count // per),), (1,), defines)


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    if not on_cpu(device):
        return "for processors"
    if operand(call, 0).dtype != "float32":
        return Refusal("float32 only", Cause.DTYPE)
    return None


def _fits_softmax(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device)) is not None:
        return why
    return None if rows(call, (int(call.attrs["axis"]),))[2] == 1 else "columns"


@kernel("grid.softmax.vectors", "softmax", KINDS, when=_fits_softmax, rank=15)
def lower_softmax(call: OpCall, device: DeviceInfo) -> Lowered:
    """Each row in three passes; the exponentials are taken once."""
    shape = rows(call, (int(call.attrs["axis"]),))
    args: Args = (In(0), Out(0), *i32(shape[0], shape[1]))
    return Lowered((_launch(_SOFTMAX, "softmax", args, shape, device),))


def _fits_layer(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device)) is not None:
        return why
    axes, rank = list(call.attrs["axes"]), operand(call, 0).rank
    return None if axes and axes == list(range(rank - len(axes), rank)) else "other axes"


@kernel("grid.layer_normalization.vectors", "layer_normalization", KINDS, when=_fits_layer, rank=15)
def lower_layer(call: OpCall, device: DeviceInfo) -> Lowered:
    """Each row in three passes: mean, spread, result."""
    shape = rows(call, call.attrs["axes"])
    given = [at for at in (1, 2) if has(call, at)]
    epsilon = f32(float(call.attrs["epsilon"]))
    args: Args = (In(0), *(In(at) for at in given), Out(0), *i32(shape[0], shape[1]), *epsilon)
    text = _STANDARDIZE
    for at, name in ((1, "scale"), (2, "bias")):
        parameter = f"CONSTANT float *RESTRICT {name}," if at in given else ""
        text = text.replace(f"@{name.upper()}@", parameter)
    flags = {"HAS_SCALE": int(1 in given), "HAS_BIAS": int(2 in given)}
    return Lowered((_launch(text, "standardize", args, shape, device, **flags),))
