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
    x = x < VSPLAT(-104.0f) ? VSPLAT(-104.0f) : x;
    x = x > VSPLAT(89.0f) ? VSPLAT(89.0f) : x;
    const VEC big = x * 1.44269504f + 12582912.0f, n = big - 12582912.0f;
    const VEC r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    VEC p = r * 1.979030348593369e-4f + 1.3944704551249743e-3f;
    p = p * r + 8.333497680723667e-3f;
    p = p * r + 4.166629537940025e-2f;
    p = p * r + 0.1666666567325592f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    const VINT whole = AS_VINT(big) - 0x4b400000, first = whole >> 1;
    return p * AS_VEC((first + 127) << 23) * AS_VEC((whole - first + 127) << 23);
}
DEVICE VEC v_max(VEC a, VEC b) { return a > b ? a : b; }
DEVICE float v_top(VEC v) {
    float part[VW];
    VSTORE(part, v);
    for (i32 l = 1; l < VW; ++l) part[0] = part[0] > part[l] ? part[0] : part[l];
    return part[0];
}
DEVICE float v_sum(VEC v) {
    float part[VW];
    VSTORE(part, v);
    UNROLL for (i32 gap = VW / 2; gap > 0; gap /= 2)
        for (i32 l = 0; l < gap; ++l) part[l] += part[l + gap];
    return part[0];
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
"""exp is that of ``grid_math``; rounding is by a large number, since no vector rounds elsewise."""

_SOFTMAX = (
    VECTOR_MATHS
    + r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void softmax(CONSTANT float *RESTRICT data, GLOBAL float *RESTRICT y, i32 count, i32 length,
             i32 per)
{
    const i32 first = GROUP_ID(0) * per, last = first + per < count ? first + per : count;
    const i32 whole = length / VW * VW, left = length - whole;
    for (i32 i = first; i < last; ++i) {
        CONSTANT float *line = data + i * length;
        GLOBAL float *to = y + i * length;
        VEC tops = VSPLAT(-INFINITY), sums = VSPLAT(0.0f), end = sums;
        for (i32 k = 0; k < whole; k += VW) tops = v_max(tops, VLOAD(line + k));
        if (left) tops = v_max(tops, v_part(line + whole, left, -INFINITY));
        const float top = v_top(tops);
        for (i32 k = 0; k < whole; k += VW) {
            const VEC raised = v_exp(VLOAD(line + k) - top);
            sums = sums + raised;
            VSTORE(to + k, raised);
        }
        if (left) {
            end = v_exp(v_part(line + whole, left, -INFINITY) - top);
            sums = sums + end;
        }
        const float factor = 1.0f / v_sum(sums);
        for (i32 k = 0; k < whole; k += VW) VSTORE(to + k, VLOAD(to + k) * factor);
        if (left) v_put(to + whole, left, end * factor);
    }
}
"""
)

_STANDARDIZE = (
    VECTOR_MATHS
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
    const i32 first = GROUP_ID(0) * per, last = first + per < count ? first + per : count;
    const i32 whole = length / VW * VW, left = length - whole, even = whole / (2 * VW) * 2 * VW;
    for (i32 i = first; i < last; ++i) {
        CONSTANT float *line = data + i * length;
        GLOBAL float *to = y + i * length;
        VEC sums = VSPLAT(0.0f), more = sums;
        for (i32 k = 0; k < even; k += 2 * VW) {
            sums = sums + VLOAD(line + k);
            more = more + VLOAD(line + k + VW);
        }
        if (even < whole) sums = sums + VLOAD(line + even);
        if (left) more = more + v_part(line + whole, left, 0.0f);
        const float mean = v_sum(sums + more) / (float)length;
        sums = more = VSPLAT(0.0f);
        for (i32 k = 0; k < even; k += 2 * VW) {
            const VEC u = VLOAD(line + k) - mean, v = VLOAD(line + k + VW) - mean;
            sums = VFMA(u, u, sums);
            more = VFMA(v, v, more);
        }
        if (even < whole) {
            const VEC u = VLOAD(line + even) - mean;
            sums = VFMA(u, u, sums);
        }
        if (left) {
            const VEC u = v_part(line + whole, left, mean) - mean;
            more = VFMA(u, u, more);
        }
        const float factor = 1.0f / X_SQRT(v_sum(sums + more) / (float)length + epsilon);
        for (i32 k = 0; k < whole; k += VW) {
            const VEC v = (VLOAD(line + k) - mean) * factor;
            VSTORE(to + k, SHIFTED(v, FULL));
        }
        if (left) {
            const VEC v = (REST(line) - mean) * factor;
            v_put(to + whole, left, SHIFTED(v, REST));
        }
    }
}
"""
)

WORK = 4096
"""Elements of an item, about."""


def _launch(
    text: str, entry: str, args: Args, shape: Shape, device: DeviceInfo, **flags: int
) -> GridLaunch:
    """The launch over rows; ``per``, how many an item does, is the text's last argument."""
    count, length, _ = shape
    per = max(1, min(WORK // length, count // (8 * max(1, device.compute_units))))
    defines = (*define(**flags), *vectors(vector_width(device)))
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
