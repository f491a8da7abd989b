"""softmax and normalisations on a grid.

Rows are [outer, length, inner]. A long dense row gets a work group, which reduces in local memory;
else one work item does a whole row. Sums are taken twice (mean, then squared differences), as the
array code does, so that no digits are lost to cancellation.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Out
from crossdock.kernels.grid_common import (
    KINDS,
    accessors,
    define,
    f32,
    has,
    i32,
    launch,
    not_among,
    obstacle,
    operand,
)
from crossdock.kernels.grid_reduce import BLOCK, Args, lanes, neighbours, rows
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

DTYPES = ("float32", "float16", "bfloat16")

_SOFTMAX_ONE = r"""
KERNEL BLOCK_SIZE(BLOCK, 1, 1)
void softmax(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner)
{
    const i32 i = GLOBAL_ID(0);
    if (i < count) {
        const i32 base = i / inner * length * inner + i % inner;
        float top = T_LOAD(data, base), sum = 0.0f;
        for (i32 k = 1; k < length; ++k) {
            const float x = T_LOAD(data, base + k * inner);
            top = X_MAX(top, x);
        }
        for (i32 k = 0; k < length; ++k) sum += X_EXP(T_LOAD(data, base + k * inner) - top);
        for (i32 k = 0; k < length; ++k) {
            const float x = X_EXP(T_LOAD(data, base + k * inner) - top);
            T_STORE(y, base + k * inner, x / sum);
        }
    }
}
"""

_TREE = r"""
    part[lane] = acc;
    BARRIER();
    for (i32 gap = LANES / 2; gap > 0; gap /= 2) {
        if (lane < gap) {
            const float u = part[lane], v = part[lane + gap];
            part[lane] = JOIN;
        }
        BARRIER();
    }
"""

_SOFTMAX_ROW = (
    r"""
KERNEL BLOCK_SIZE(LANES, 1, 1)
void softmax(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner)
{
    LOCAL float part[LANES];
    const i32 lane = LOCAL_ID(0), base = GROUP_ID(0) * length;
    float acc = T_LOAD(data, base);
    for (i32 k = lane; k < length; k += LANES) {
        const float x = T_LOAD(data, base + k);
        acc = X_MAX(acc, x);
    }
"""
    + _TREE.replace("JOIN", "X_MAX(u, v)")
    + r"""
    const float top = part[0];
    BARRIER();
    acc = 0.0f;
    for (i32 k = lane; k < length; k += LANES) acc += X_EXP(T_LOAD(data, base + k) - top);
"""
    + _TREE.replace("JOIN", "u + v")
    + r"""
    const float sum = part[0];
    for (i32 k = lane; k < length; k += LANES) {
        const float x = X_EXP(T_LOAD(data, base + k) - top);
        T_STORE(y, base + k, x / sum);
    }
}
"""
)

_WRITE = r"""
#if HAS_SCALE
#define SCALED(v, k) ((v) * T_LOAD(scale, AT(k)))
#else
#define SCALED(v, k) (v)
#endif
#if HAS_BIAS
#define SHIFTED(v, k) (SCALED(v, k) + T_LOAD(bias, AT(k)))
#else
#define SHIFTED(v, k) SCALED(v, k)
#endif
"""

_NORM_ONE = (
    _WRITE
    + r"""
KERNEL BLOCK_SIZE(BLOCK, 1, 1)
void standardize(CONSTANT T *RESTRICT data, @SCALE@ @BIAS@ GLOBAL T *RESTRICT y,
               i32 count, i32 length, i32 inner, i32 channels, float epsilon)
{
    const i32 i = GLOBAL_ID(0);
    if (i < count) {
        const i32 base = i / inner * length * inner + i % inner;
        float mean = 0.0f, spread = 0.0f;
        for (i32 k = 0; k < length; ++k) mean += T_LOAD(data, base + k * inner);
        mean /= (float)length;
        for (i32 k = 0; k < length; ++k) {
            const float x = T_LOAD(data, base + k * inner) - mean;
            spread += x * x;
        }
        const float factor = 1.0f / X_SQRT(spread / (float)length + epsilon);
        for (i32 k = 0; k < length; ++k) {
            const float x = (T_LOAD(data, base + k * inner) - mean) * factor;
            T_STORE(y, base + k * inner, SHIFTED(x, k));
        }
    }
}
"""
)

_NORM_ROW = (
    _WRITE
    + r"""
KERNEL BLOCK_SIZE(LANES, 1, 1)
void standardize(CONSTANT T *RESTRICT data, @SCALE@ @BIAS@ GLOBAL T *RESTRICT y,
               i32 count, i32 length, i32 inner, i32 channels, float epsilon)
{
    LOCAL float part[LANES];
    const i32 lane = LOCAL_ID(0), i = GROUP_ID(0), base = i * length;
    float acc = 0.0f;
    for (i32 k = lane; k < length; k += LANES) acc += T_LOAD(data, base + k);
"""
    + _TREE.replace("JOIN", "u + v")
    + r"""
    const float mean = part[0] / (float)length;
    BARRIER();
    acc = 0.0f;
    for (i32 k = lane; k < length; k += LANES) {
        const float x = T_LOAD(data, base + k) - mean;
        acc += x * x;
    }
"""
    + _TREE.replace("JOIN", "u + v")
    + r"""
    const float factor = 1.0f / X_SQRT(part[0] / (float)length + epsilon);
    for (i32 k = lane; k < length; k += LANES) {
        const float x = (T_LOAD(data, base + k) - mean) * factor;
        T_STORE(y, base + k, SHIFTED(x, k));
    }
}
"""
)

_BATCH = (
    _WRITE
    + r"""
KERNEL BLOCK_SIZE(BLOCK, 1, 1)
void standardize(CONSTANT T *RESTRICT data, CONSTANT T *RESTRICT means, CONSTANT T *RESTRICT spreads,
               @SCALE@ @BIAS@ GLOBAL T *RESTRICT y, i32 count, i32 inner, i32 channels,
               float epsilon)
{
    const i32 i = GLOBAL_ID(0);
    if (i < count) {
        const i32 c = i / inner % channels;
        const float factor = 1.0f / X_SQRT(T_LOAD(spreads, c) + epsilon);
        const float x = (T_LOAD(data, i) - T_LOAD(means, c)) * factor;
        T_STORE(y, i, SHIFTED(x, c));
    }
}
"""
)


def _text(source: str, call: OpCall, scale: int, bias: int) -> str:
    """A text with the parameters of the optional operands that are there."""
    source = source.replace("@SCALE@", "CONSTANT T *RESTRICT scale," if has(call, scale) else "")
    return source.replace("@BIAS@", "CONSTANT T *RESTRICT bias," if has(call, bias) else "")


def _optional(call: OpCall, *at: int) -> Args:
    return tuple(In(i) for i in at if has(call, i))


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    return obstacle(call, device) or not_among(DTYPES, call)


@kernel("grid.softmax", "softmax", KINDS, when=_fits, rank=20)
def _softmax(call: OpCall, device: DeviceInfo) -> Lowered:
    outer, length, inner = rows(call, (int(call.attrs["axis"]),))
    args: Args = (In(0), Out(0), *i32(outer * inner, length, inner))
    types = accessors(operand(call, 0).dtype)
    width = lanes(device, length) if inner == 1 else 0
    if width:
        defines = (*types, *define(LANES=width))
        step = launch(_SOFTMAX_ROW, "softmax", args, (outer * width,), (width,), defines)
    else:
        defines = (*types, *define(BLOCK=BLOCK))
        step = launch(_SOFTMAX_ONE, "softmax", args, (outer * inner,), (BLOCK,), defines)
    return Lowered((step,))


def _fits_layer(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device)) is not None:
        return why
    axes, rank = list(call.attrs["axes"]), operand(call, 0).rank
    if not axes or axes != list(range(rank - len(axes), rank)):
        return "the axes are not the last ones in order"
    return None if neighbours(call, tuple(axes)) else "the axes lie apart"


@kernel("grid.layer_normalization", "layer_normalization", KINDS, when=_fits_layer, rank=20)
def _layer(call: OpCall, device: DeviceInfo) -> Lowered:
    outer, length, inner = rows(call, tuple(call.attrs["axes"]))
    return _normalized(call, device, (outer, length, inner), ("AT(k)", "k"), 1)


def _fits_instance(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device)) is not None:
        return why
    return None if call.attrs["layout"] == "nchw" else "only the layout nchw"


@kernel(
    "grid.instance_normalization", "instance_normalization", KINDS, when=_fits_instance, rank=20
)
def _instance(call: OpCall, device: DeviceInfo) -> Lowered:
    n, c, h, w = operand(call, 0).dims
    return _normalized(call, device, (n * c, h * w, 1), ("AT(k)", "(i % channels)"), c)


def _normalized(
    call: OpCall,
    device: DeviceInfo,
    shape: tuple[int, int, int],
    at: tuple[str, str],
    channels: int,
) -> Lowered:
    outer, length, inner = shape
    args: Args = (
        In(0), *_optional(call, 1, 2), Out(0),
        *i32(outer * inner, length, inner, channels), *f32(float(call.attrs["epsilon"])),
    )  # fmt: skip
    flags = define(HAS_SCALE=int(has(call, 1)), HAS_BIAS=int(has(call, 2)))
    types = (*accessors(operand(call, 0).dtype), *flags, at)
    width = lanes(device, length) if inner == 1 else 0
    if width:
        text, items, block = _NORM_ROW, outer * width, width
        defines = (*types, *define(LANES=width))
    else:
        text, items, block = _NORM_ONE, outer * inner, BLOCK
        defines = (*types, *define(BLOCK=BLOCK))
    return Lowered(
        (launch(_text(text, call, 1, 2), "standardize", args, (items,), (block,), defines),)
    )


@kernel("grid.batch_normalization", "batch_normalization", KINDS, when=_fits, rank=20)
def _batch(call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - Kernel's signature
    _, channels, inner = rows(call, (int(call.attrs["axis"]),))
    size = operand(call, 0).size
    args: Args = (
        In(0), In(1), In(2), *_optional(call, 3, 4), Out(0),
        *i32(size, inner, channels), *f32(float(call.attrs["epsilon"])),
    )  # fmt: skip
    defines = (
        *accessors(operand(call, 0).dtype),
        *define(HAS_SCALE=int(has(call, 3)), HAS_BIAS=int(has(call, 4)), BLOCK=BLOCK),
        ("AT(k)", "k"),
    )
    step = launch(_text(_BATCH, call, 3, 4), "standardize", args, (size,), (BLOCK,), defines)
    return Lowered((step,))
