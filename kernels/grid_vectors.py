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
    x = VSPLAT(-88.0f) > x ? VSPLAT(-88.0f) : x;
    const VEC big = VFMA(x, VSPLAT(1.44269504f), VSPLAT(12583039.0f)), n = big - 12583039.0f;
    const VEC r = VFMA(n, VSPLAT(-0.693147182f), x);
    VEC p = VFMA(r, VSPLAT(8.312477e-3f), VSPLAT(4.1890275e-2f));
    p = VFMA(p, r, VSPLAT(0.16667116f));
    p = VFMA(p, r, VSPLAT(0.4999923f));
    p = VFMA(p, r, VSPLAT(1.0f));
    p = VFMA(p, r, VSPLAT(1.0f));
    return p * AS_VEC(AS_VINT(big) << 23);
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
"""exp is for what is not above zero: what softmax takes it of. From e^-88 on it gives zero. Its
polynomial is fitted like those of ``grid_math``; rounding is by a large number, since no vector
rounds elsewise, which leaves the exponent of the power of two in the lowest bits."""

_LINES = r"""
#define EACH UNROLL for (i32 r = 0; r < ROWS; ++r)
#define BLOCKS_OF_ITEM \
    const i32 first = GROUP_ID(0) * per, last = first + per < count ? first + per : count; \
    const i32 whole = length / VW * VW, left = length - whole; \
    for (i32 begin = first; begin < last; begin += deep)
#define PLACES(from, place) \
    EACH place[r] = from + (i + r < end ? i + r : end - 1) * length;
"""
"""A block of lines stays in the fastest cache; each pass goes over all of it, ROWS lines side by
side: while one waits, others go on. The last line fills up what misses."""

_SOFTMAX = (
    VECTOR_MATHS
    + _LINES
    + r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void softmax(CONSTANT float *RESTRICT data, GLOBAL float *RESTRICT y, i32 count, i32 length,
             i32 per, i32 deep)
{
    float found[MOST];
    CONSTANT float *line[ROWS];
    GLOBAL float *to[ROWS];
    BLOCKS_OF_ITEM {
        const i32 end = begin + deep < last ? begin + deep : last;
        for (i32 i = begin; i < end; i += ROWS) {
            VEC tops[ROWS];
            PLACES(data, line)
            EACH tops[r] = VSPLAT(-INFINITY);
            for (i32 k = 0; k < whole; k += VW) EACH tops[r] = v_max(tops[r], VLOAD(line[r] + k));
            if (left) EACH tops[r] = v_max(tops[r], v_part(line[r] + whole, left, -INFINITY));
            EACH found[i - begin + r] = v_top(tops[r]);
        }
        for (i32 i = begin; i < end; i += ROWS) {
            VEC tops[ROWS], sums[ROWS];
            PLACES(data, line)
            PLACES(y, to)
            EACH tops[r] = VSPLAT(found[i - begin + r]);
            EACH sums[r] = VSPLAT(0.0f);
            for (i32 k = 0; k < whole; k += VW)
                EACH {
                    const VEC raised = v_exp(VLOAD(line[r] + k) - tops[r]);
                    sums[r] = sums[r] + raised;
                    VSTORE(to[r] + k, raised);
                }
            if (left)
                EACH {
                    const VEC raised = v_exp(v_part(line[r] + whole, left, -INFINITY) - tops[r]);
                    sums[r] = sums[r] + raised;
                    v_put(to[r] + whole, left, raised);
                }
            EACH found[i - begin + r] = 1.0f / v_sum(sums[r]);
        }
        for (i32 i = begin; i < end; i += ROWS) {
            PLACES(y, to)
            for (i32 k = 0; k < whole; k += VW)
                EACH if (i + r < end)
                    VSTORE(to[r] + k, VLOAD(to[r] + k) * found[i - begin + r]);
            for (i32 k = whole; k < length; ++k)
                EACH if (i + r < end) to[r][k] = to[r][k] * found[i - begin + r];
        }
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
                 i32 count, i32 length, float epsilon, i32 per, i32 deep)
{
    float means[MOST], factors[MOST];
    CONSTANT float *line[ROWS];
    GLOBAL float *to[ROWS];
    BLOCKS_OF_ITEM {
        const i32 end = begin + deep < last ? begin + deep : last;
        for (i32 i = begin; i < end; i += ROWS) {
            VEC sums[ROWS];
            PLACES(data, line)
            EACH sums[r] = VSPLAT(0.0f);
            for (i32 k = 0; k < whole; k += VW) EACH sums[r] = sums[r] + VLOAD(line[r] + k);
            if (left) EACH sums[r] = sums[r] + v_part(line[r] + whole, left, 0.0f);
            EACH means[i - begin + r] = v_sum(sums[r]) / (float)length;
        }
        for (i32 i = begin; i < end; i += ROWS) {
            VEC sums[ROWS];
            float mean[ROWS];
            PLACES(data, line)
            EACH mean[r] = means[i - begin + r];
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
            EACH factors[i - begin + r] =
                1.0f / X_SQRT(v_sum(sums[r]) / (float)length + epsilon);
        }
        for (i32 i = begin; i < end; i += ROWS) {
            float mean[ROWS], factor[ROWS];
            PLACES(data, line)
            PLACES(y, to)
            EACH {
                mean[r] = means[i - begin + r];
                factor[r] = factors[i - begin + r];
            }
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
}
"""
)

ROWS = 4
BLOCK = 4096
"""Elements of a block, about: twice as many bytes as that takes are in the fastest cache."""
MOST = 64
"""Lines of a block, at most."""
WORK = 16384
"""Elements of an item, about."""


def _launch(
    text: str,
    entry: str,
    args: Args,
    shape: Shape,
    device: DeviceInfo,
    *,
    together: int = ROWS,
    **flags: int,
) -> GridLaunch:
    """The launch over rows; the last arguments are how many an item does, and how many a block."""
    count, length, _ = shape
    per = _lines(min(WORK // length, count // (4 * max(1, device.compute_units))), together)
    deep = _lines(min(BLOCK // length, MOST), together)
    defines = (*define(ROWS=together, MOST=MOST, **flags), *vectors(vector_width(device)))
    return launch(text, entry, (*args, *i32(per, deep)), (-(-count // per),), (1,), defines)


def _lines(wanted: int, together: int) -> int:
    """About as many lines, in whole steps of those that are side by side."""
    return max(1, round(wanted / together)) * together


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


def _softmax(call: OpCall, device: DeviceInfo, together: int) -> Lowered:
    shape = rows(call, (int(call.attrs["axis"]),))
    args: Args = (In(0), Out(0), *i32(shape[0], shape[1]))
    step = _launch(_SOFTMAX, "softmax", args, shape, device, together=together)
    return Lowered((step,))


@kernel("grid.softmax.vectors", "softmax", KINDS, when=_fits_softmax, rank=15)
def lower_softmax(call: OpCall, device: DeviceInfo) -> Lowered:
    """Each row in three passes; the exponentials are taken once."""
    return _softmax(call, device, ROWS)


@kernel("grid.softmax.vectors_low", "softmax", KINDS, when=_fits_softmax, rank=16)
def lower_softmax_low(call: OpCall, device: DeviceInfo) -> Lowered:
    """The same by fewer rows, whose constants some compilers keep in registers."""
    return _softmax(call, device, ROWS // 2)


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
