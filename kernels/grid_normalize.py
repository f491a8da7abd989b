"""softmax and normalisations on a grid.

Rows are [outer, length, inner]. A long dense row gets a team of work items; else one work item does
a whole row. Sums are taken twice (mean, then squared differences), as the
array code does, so that no digits are lost to cancellation.
"""

from __future__ import annotations

from collections.abc import Sequence

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Lowered, Out, Scratch, Slot
from crossdock.kernels.grid_common import (
    KINDS,
    Args,
    accessors,
    define,
    f32,
    has,
    i32,
    launch,
    not_among,
    obstacle,
    on_cpu,
    operand,
)
from crossdock.kernels.grid_lines import (
    SOFTMAX_COLUMNS,
    SOFTMAX_ROWS,
    STANDARDIZE_ROWS,
    line_args,
    lines,
)
from crossdock.kernels.grid_move import transposable, transposed
from crossdock.kernels.grid_reduce import (
    BLOCK,
    Shape,
    gathered,
    lanes,
    last_order,
    rows,
    team_launch,
)
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

_PLUS = "#define PLUS(a, b) ((a) + (b))\n"

_SOFTMAX_ROW = (
    _PLUS
    + r"""
KERNEL BLOCK_SIZE(LANES * TEAMS, 1, 1) IN_SUBGROUPS
void softmax(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner)
{
    TEAM_ROOM(float, tops, LANES, TEAMS);
    TEAM_ROOM(float, sums, LANES, TEAMS);
    @TEAM@
    float top = T_LOAD(data, base), sum = 0.0f;
    for (i32 k = lane; k < length; k += LANES) {
        const float x = T_LOAD(data, base + k);
        top = X_MAX(top, x);
    }
    TEAM_REDUCE(float, top, LANES, tops, X_MAX);
    for (i32 k = lane; k < length; k += LANES) sum += X_EXP(T_LOAD(data, base + k) - top);
    TEAM_REDUCE(float, sum, LANES, sums, PLUS);
    if (at < count) {
        for (i32 k = lane; k < length; k += LANES) {
            const float x = X_EXP(T_LOAD(data, base + k) - top);
            T_STORE(y, base + k, x / sum);
        }
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
    + _PLUS
    + r"""
KERNEL BLOCK_SIZE(LANES * TEAMS, 1, 1) IN_SUBGROUPS
void standardize(CONSTANT T *RESTRICT data, @SCALE@ @BIAS@ GLOBAL T *RESTRICT y,
               i32 count, i32 length, i32 inner, i32 channels, float epsilon)
{
    TEAM_ROOM(float, totals, LANES, TEAMS);
    TEAM_ROOM(float, spreads, LANES, TEAMS);
    @TEAM@
    float mean = 0.0f, spread = 0.0f;
    for (i32 k = lane; k < length; k += LANES) mean += T_LOAD(data, base + k);
    TEAM_REDUCE(float, mean, LANES, totals, PLUS);
    mean /= (float)length;
    for (i32 k = lane; k < length; k += LANES) {
        const float x = T_LOAD(data, base + k) - mean;
        spread += x * x;
    }
    TEAM_REDUCE(float, spread, LANES, spreads, PLUS);
    const float factor = 1.0f / X_SQRT(spread / (float)length + epsilon);
    if (at < count) {
        const i32 i = row;
        for (i32 k = lane; k < length; k += LANES) {
            const float x = (T_LOAD(data, base + k) - mean) * factor;
            T_STORE(y, base + k, SHIFTED(x, k));
        }
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
    shape = rows(call, (int(call.attrs["axis"]),))
    outer, _, inner = shape
    args, dtype = line_args(In(0), Out(0), shape), operand(call, 0).dtype
    types = accessors(dtype)
    if on_cpu(device):
        texts = (SOFTMAX_ROWS, SOFTMAX_COLUMNS)
        step = lines(*texts, "softmax", args, shape, device, types, dtype=dtype)
        return Lowered((step,))
    if width := lanes(device, shape):
        step = team_launch(_SOFTMAX_ROW, "softmax", args, shape, width, types)
    else:
        defines = (*types, *define(BLOCK=BLOCK))
        step = launch(_SOFTMAX_ONE, "softmax", args, (outer * inner,), (BLOCK,), defines)
    return Lowered((step,))


def _fits_layer(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device)) is not None:
        return why
    axes = call.attrs["axes"]
    if not axes:
        return "no axes"
    return (
        None if _last(call, axes) else transposable(operand(call, 0).dims, last_order(call, axes))
    )


def _last(call: OpCall, axes: Sequence[int]) -> bool:
    """True where the axes are the last ones in their order."""
    rank = operand(call, 0).rank
    return list(axes) == list(range(rank - len(axes), rank))


@kernel("grid.layer_normalization", "layer_normalization", KINDS, when=_fits_layer, rank=20)
def _layer(call: OpCall, device: DeviceInfo) -> Lowered:
    axes, at = call.attrs["axes"], ("AT(k)", "k")
    if _last(call, axes):
        shape = rows(call, axes)
        return Lowered((_normalized(call, device, shape, at, 1, In(0), Out(0)),))
    return _around(call, device, axes, at, 1)


def _fits_instance(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(call, device)) is not None:
        return why
    return transposable(operand(call, 0).dims, (0, 3, 1, 2))


@kernel(
    "grid.instance_normalization", "instance_normalization", KINDS, when=_fits_instance, rank=20
)
def _instance(call: OpCall, device: DeviceInfo) -> Lowered:
    at = ("AT(k)", "(i % channels)")
    dims = operand(call, 0).dims
    if call.attrs["layout"] == "nhwc":
        return _around(call, device, (1, 2), at, dims[3])
    n, c, h, w = dims
    return Lowered((_normalized(call, device, (n * c, h * w, 1), at, c, In(0), Out(0)),))


def _around(
    call: OpCall, device: DeviceInfo, axes: Sequence[int], at: tuple[str, str], channels: int
) -> Lowered:
    """With the axes brought last before, and put back after."""
    spec = operand(call, 0)
    source = gathered(call, axes, device)
    middle = _normalized(call, device, source.shape, at, channels, source.slot, Scratch(1))
    inside = tuple(spec.dims[a] for a in source.order)
    back = tuple(source.order.index(a) for a in range(spec.rank))
    after = transposed(spec.dtype, inside, back, device, Scratch(1), Out(0))
    return Lowered((source.step, middle, after), (*source.scratch, spec.nbytes))


def _normalized(
    call: OpCall,
    device: DeviceInfo,
    shape: Shape,
    at: tuple[str, str],
    channels: int,
    source: Slot,
    target: Slot,
) -> GridLaunch:
    outer, length, inner = shape
    args: Args = (
        source, *_optional(call, 1, 2), target,
        *i32(outer * inner, length, inner, channels), *f32(float(call.attrs["epsilon"])),
    )  # fmt: skip
    flags = define(HAS_SCALE=int(has(call, 1)), HAS_BIAS=int(has(call, 2)))
    dtype = operand(call, 0).dtype
    types = (*accessors(dtype), *flags, at)
    if on_cpu(device):
        text = _text(_WRITE + STANDARDIZE_ROWS, call, 1, 2)
        return lines(text, text, "standardize", args, shape, device, types, dtype=dtype)
    if width := lanes(device, shape):
        text = _text(_NORM_ROW, call, 1, 2)
        return team_launch(text, "standardize", args, shape, width, types)
    text, defines = _text(_NORM_ONE, call, 1, 2), (*types, *define(BLOCK=BLOCK))
    return launch(text, "standardize", args, (outer * inner,), (BLOCK,), defines)
