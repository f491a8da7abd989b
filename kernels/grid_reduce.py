"""Reductions on a grid: reduce_*, arg_min and arg_max.

The operand is seen as [outer, length, inner]; where the axes lie apart, a transposed copy brings
them together first. Long dense rows (inner 1) get a team of work items each, which reduce strided
parts and then meet; else one item makes one result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Lowered, Out, Scratch, Slot, Step
from crossdock.kernels.grid_common import (
    COMPUTE,
    KINDS,
    Args,
    Defines,
    accessors,
    define,
    i32,
    launch,
    not_among,
    obstacle,
    on_cpu,
    operand,
    wrapped,
)
from crossdock.kernels.grid_lines import (
    LOG_SUM_EXP_COLUMNS,
    LOG_SUM_EXP_ROWS,
    REDUCE_COLUMNS,
    REDUCE_ROWS,
    line_args,
    lines,
)
from crossdock.kernels.grid_move import transposable, transposed
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel

FLOATS = ("float32", "float16", "bfloat16", "float64")
WHOLE = ("int32", "uint32", "int64", "uint64")
BLOCK = 64
LANES = 128
"""Items of the teams of the longest rows, and of all teams of a group."""

# first value, step with the next one, and what is made of the end; x is in the compute type
REDUCTIONS: dict[str, tuple[str, str, str]] = {
    "sum": ("0", "PLUS(acc, x)", "acc"),
    "mean": ("0", "PLUS(acc, x)", "acc / (T_C)length"),
    "max": ("FIRST", "X_MAX(acc, x)", "acc"),
    "min": ("FIRST", "X_MIN(acc, x)", "acc"),
    "product": ("1", "TIMES(acc, x)", "acc"),
    "l1": ("0", "PLUS(acc, ABS(x))", "acc"),
    "l2": ("0", "PLUS(acc, TIMES(x, x))", "X_SQRT(acc)"),
    "log_sum": ("0", "PLUS(acc, x)", "X_LOG(acc)"),
    "sum_square": ("0", "PLUS(acc, TIMES(x, x))", "acc"),
}
"""reduce_NAME by its steps; log_sum_exp has a text of its own."""

_JOIN = {"max": "X_MAX(a, b)", "min": "X_MIN(a, b)", "product": "TIMES(a, b)"}

_TEAM = r"""
    const i32 lane = ITEM_ID % LANES, at = GROUP_ID(0) * TEAMS + ITEM_ID / LANES;
    const i32 row = at < count ? at : count - 1, base = row * length;
"""
"""A row of a team's own; those past the last one come along, since all have to meet."""

_ONE = r"""
KERNEL BLOCK_SIZE(BLOCK, 1, 1)
void reduce(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner)
{
    const i32 i = GLOBAL_ID(0);
    if (i < count) {
        const i32 base = i / inner * length * inner + i % inner;
        T_C acc = INIT;
        for (i32 k = 0; k < length; ++k) {
            const T_C x = T_LOAD(data, base + k * inner);
            acc = STEP;
        }
        T_STORE(y, i, DONE);
    }
}
"""

_ROW = r"""
KERNEL BLOCK_SIZE(LANES * TEAMS, 1, 1) IN_SUBGROUPS
void reduce(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner)
{
    TEAM_ROOM(T_C, room, LANES, TEAMS);
    @TEAM@
    T_C acc = INIT;
    for (i32 k = lane; k < length; k += LANES) {
        const T_C x = T_LOAD(data, base + k);
        acc = STEP;
    }
    TEAM_REDUCE(T_C, acc, LANES, room, JOIN);
    if (lane == 0 && at < count) T_STORE(y, row, DONE);
}
"""

_LOG_SUM_EXP = r"""
KERNEL BLOCK_SIZE(BLOCK, 1, 1)
void reduce(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner)
{
    const i32 i = GLOBAL_ID(0);
    if (i < count) {
        const i32 base = i / inner * length * inner + i % inner;
        T_C top = T_LOAD(data, base), sum = 0;
        for (i32 k = 1; k < length; ++k) {
            const T_C x = T_LOAD(data, base + k * inner);
            top = X_MAX(top, x);
        }
        const T_C shift = X_ISINF(top) ? (T_C)0 : top;
        for (i32 k = 0; k < length; ++k) {
            const T_C x = T_LOAD(data, base + k * inner) - shift;
            sum += X_EXP(x);
        }
        T_STORE(y, i, X_LOG(sum) + shift);
    }
}
"""

_LOG_SUM_EXP_ROW = r"""
#define PLUS(a, b) ((a) + (b))
KERNEL BLOCK_SIZE(LANES * TEAMS, 1, 1) IN_SUBGROUPS
void reduce(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner)
{
    TEAM_ROOM(T_C, tops, LANES, TEAMS);
    TEAM_ROOM(T_C, sums, LANES, TEAMS);
    @TEAM@
    T_C top = T_LOAD(data, base);
    for (i32 k = lane; k < length; k += LANES) {
        const T_C x = T_LOAD(data, base + k);
        top = X_MAX(top, x);
    }
    TEAM_REDUCE(T_C, top, LANES, tops, X_MAX);
    const T_C shift = X_ISINF(top) ? (T_C)0 : top;
    T_C sum = 0;
    for (i32 k = lane; k < length; k += LANES) {
        const T_C x = T_LOAD(data, base + k) - shift;
        sum += X_EXP(x);
    }
    TEAM_REDUCE(T_C, sum, LANES, sums, PLUS);
    if (lane == 0 && at < count) T_STORE(y, row, X_LOG(sum) + shift);
}
"""

_BETTER = r"""
#define BEATS(x, best) ((x) BETTER (best) || (X_ISNAN(x) && !X_ISNAN(best)))
#define BEST(a, b) (BEATS(b, a) ? (b) : (a))
"""

_ARG = (
    _BETTER
    + r"""
KERNEL BLOCK_SIZE(BLOCK, 1, 1)
void arg(CONSTANT T *RESTRICT data, GLOBAL R *RESTRICT y, i32 count, i32 length, i32 inner)
{
    const i32 i = GLOBAL_ID(0);
    if (i < count) {
        const i32 base = i / inner * length * inner + i % inner;
        T_C best = T_LOAD(data, base);
        i32 at = 0;
        for (i32 k = 1; k < length; ++k) {
            const T_C x = T_LOAD(data, base + k * inner);
            if (BEATS(x, best)) {
                best = x;
                at = k;
            }
        }
        y[i] = (R)at;
    }
}
"""
)

_ARG_ROW = (
    _BETTER
    + r"""
KERNEL BLOCK_SIZE(LANES * TEAMS, 1, 1) IN_SUBGROUPS
void arg(CONSTANT T *RESTRICT data, GLOBAL R *RESTRICT y, i32 count, i32 length, i32 inner)
{
    TEAM_ROOM(T_C, values, LANES, TEAMS);
    TEAM_ROOM(i32, places, LANES, TEAMS);
    @TEAM@
    T_C own = T_LOAD(data, base + lane);
    i32 place = lane;
    for (i32 k = lane + LANES; k < length; k += LANES) {
        const T_C x = T_LOAD(data, base + k);
        if (BEATS(x, own)) {
            own = x;
            place = k;
        }
    }
    T_C best = own;
    TEAM_REDUCE(T_C, best, LANES, values, BEST);
    if (BEATS(best, own)) place = length; // the first of equal ones counts
    TEAM_REDUCE(i32, place, LANES, places, X_MIN);
    if (lane == 0 && at < count) y[row] = (R)place;
}
"""
)


Shape = tuple[int, int, int]


def rows(call: OpCall, axes: Sequence[int]) -> Shape:
    """(outer, length, inner) of the first operand over neighbouring axes."""
    dims = operand(call, 0).dims
    if not axes:
        return math.prod(dims), 1, 1
    first, last = min(axes), max(axes)
    return math.prod(dims[:first]), math.prod(dims[first : last + 1]), math.prod(dims[last + 1 :])


def neighbours(call: OpCall, axes: Sequence[int]) -> bool:
    """True where nothing but dimensions of one element lies between the axes."""
    dims = operand(call, 0).dims
    between = range(min(axes, default=0), max(axes, default=-1) + 1)
    return all(a in axes or dims[a] == 1 for a in between)


@dataclass(frozen=True)
class Gathered:
    """The first operand with the reduced axes last: the step that makes it so, and its shape."""

    step: Step
    slot: Slot
    scratch: tuple[int, ...]
    shape: Shape
    order: tuple[int, ...]


def last_order(call: OpCall, axes: Sequence[int]) -> tuple[int, ...]:
    """The order of axes in which ``axes``, as given, come last."""
    rank = operand(call, 0).rank
    return (*(a for a in range(rank) if a not in axes), *axes)


def gathered(call: OpCall, axes: Sequence[int], device: DeviceInfo) -> Gathered:
    """A transposed copy of the first operand in scratch."""
    spec, order = operand(call, 0), last_order(call, axes)
    length = math.prod(spec.dims[a] for a in axes)
    step = transposed(spec.dtype, spec.dims, order, device, In(0), Scratch(0))
    shape = (spec.size // length, length, 1)
    return Gathered(step, Scratch(0), (spec.nbytes,), shape, order)


def lanes(device: DeviceInfo, shape: Shape) -> int:
    """Items of the team that reduces a row; 0 where an item had better do it alone.

    A sub-group meets in its registers, so that two rounds of it pay; what meets in local memory
    has to be longer.
    """
    _, length, inner = shape
    if inner > 1 or (device.max_work_group or LANES) < LANES:
        return 0
    if length >= 4 * LANES:
        return LANES
    return device.subgroup if device.subgroup > 1 and length >= 2 * device.subgroup else 0


def team_launch(
    text: str, entry: str, args: Args, shape: Shape, width: int, defines: Defines
) -> GridLaunch:
    """A launch of a text that has @TEAM@ over the rows, in teams of ``width``."""
    teams = max(1, LANES // width)
    groups = -(-shape[0] // teams)
    known = (*defines, *define(LANES=width, TEAMS=teams))
    source = text.replace("@TEAM@", _TEAM)
    return launch(source, entry, args, (groups * width * teams,), (width * teams,), known)


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    name = call.op.removeprefix("reduce_")
    allowed = FLOATS if name in ("mean", "l2", "log_sum", "log_sum_exp") else (*FLOATS, *WHOLE)
    if name in ("max", "min"):
        allowed = (*allowed, "int8", "uint8", "int16", "uint16")
    if (why := not_among(allowed, call)) is not None:
        return why
    axes = call.attrs["axes"]
    if neighbours(call, axes):
        return None
    return transposable(operand(call, 0).dims, last_order(call, axes))


def _lower(call: OpCall, device: DeviceInfo) -> Lowered:
    axes, dtype = call.attrs["axes"], operand(call, 0).dtype
    name = call.op.removeprefix("reduce_")
    if neighbours(call, axes):
        return Lowered((reduction(name, dtype, rows(call, axes), In(0), device),))
    source = gathered(call, axes, device)
    step = reduction(name, dtype, source.shape, source.slot, device)
    return Lowered((source.step, step), source.scratch)


def reduction(name: str, dtype: str, shape: Shape, source: Slot, device: DeviceInfo) -> GridLaunch:
    """reduce_NAME over the middle of [outer, length, inner]."""
    outer, _, inner = shape
    args = line_args(source, Out(0), shape)
    shifted = name == "log_sum_exp"
    origin = "data, base"
    if on_cpu(device):
        origin = "line, l" if inner > 1 else "line, 0"
    defines = accessors(dtype)
    defines += () if shifted else _steps(name, dtype, origin)
    if on_cpu(device):
        texts = (REDUCE_ROWS, REDUCE_COLUMNS)
        if shifted:
            texts = (LOG_SUM_EXP_ROWS, LOG_SUM_EXP_COLUMNS)
        return lines(*texts, "reduce", args, shape, device, defines, dtype=dtype)
    if width := lanes(device, shape):
        text = _LOG_SUM_EXP_ROW if shifted else _ROW
        return team_launch(text, "reduce", args, shape, width, defines)
    text = _LOG_SUM_EXP if shifted else _ONE
    defines += define(BLOCK=BLOCK)
    return launch(text, "reduce", args, (outer * inner,), (BLOCK,), defines)


def _steps(name: str, dtype: str, first: str) -> Defines:
    init, step, done = REDUCTIONS[name]
    absolute = "X_ABS(v)" if dtype in FLOATS else ("(v)" if "uint" in dtype else "X_IABS(v)")
    kind = COMPUTE[dtype]
    return (
        ("PLUS(a, b)", wrapped("(a)", "+", "(b)", kind)),
        ("TIMES(a, b)", wrapped("(a)", "*", "(b)", kind)),
        ("INIT", init.replace("FIRST", f"T_LOAD({first})")),
        ("STEP", step),
        ("DONE", done),
        ("ABS(v)", absolute),
        ("JOIN(a, b)", _JOIN.get(name, "PLUS(a, b)")),
    )


for _name in (*REDUCTIONS, "log_sum_exp"):
    kernel("grid.reduce", f"reduce_{_name}", KINDS, when=_fits, rank=20)(_lower)


def _fits_arg(call: OpCall, device: DeviceInfo) -> str | None:
    if (why := obstacle(call, device)) is not None:
        return why
    return not_among((*FLOATS, *WHOLE, "int8", "uint8", "int16", "uint16"), call)


def _lower_arg(call: OpCall, device: DeviceInfo) -> Lowered:
    shape = rows(call, (int(call.attrs["axis"]),))
    outer, length, inner = shape
    defines: Defines = (
        *accessors(operand(call, 0).dtype),
        ("R", "i64" if call.outputs[0].dtype == "int64" else "i32"),
        ("BETTER", ">" if call.op == "arg_max" else "<"),
    )
    args: Args = (In(0), Out(0), *i32(outer * inner, length, inner))
    width = 0 if on_cpu(device) else lanes(device, shape)
    if width:
        return Lowered((team_launch(_ARG_ROW, "arg", args, shape, width, defines),))
    defines += define(BLOCK=BLOCK)
    return Lowered((launch(_ARG, "arg", args, (outer * inner,), (BLOCK,), defines),))


for _name in ("arg_min", "arg_max"):
    kernel("grid.arg", _name, KINDS, when=_fits_arg, rank=20)(_lower_arg)
