"""Reductions, softmax and normalisation for processors: an item goes along some lines in loops.

A line is a row of [outer, length, inner] where inner is 1; else a bundle of neighbouring columns,
whose partial results stand side by side. Partial results along a row let the compiler use
vectors, and add less rounding than one would.
"""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, Slot
from crossdock.kernels.grid_common import Args, Defines, define, i32, launch
from crossdock.kernels.grid_math import prelude

_SWEEP = r"""
#define SWEEP(part, VALUE, STEP_) \
    for (i32 k = 0; k + WIDE <= length; k += WIDE) \
        for (i32 l = 0; l < WIDE; ++l) { \
            const T_C x = VALUE(k + l), acc = part[l]; \
            part[l] = STEP_; \
        } \
    for (i32 k = length / WIDE * WIDE; k < length; ++k) { \
        const T_C x = VALUE(k), acc = part[0]; \
        part[0] = STEP_; \
    }
#define MEET(result, part, STEP_) \
    for (i32 l = 1; l < WIDE; ++l) { \
        const T_C x = part[l], acc = part[0]; \
        part[0] = STEP_; \
    } \
    const T_C result = part[0];
#define SPREAD(part, VALUE, PUT) \
    for (i32 k = 0; k + WIDE <= length; k += WIDE) { \
        for (i32 l = 0; l < WIDE; ++l) part[l] = VALUE(k + l); \
        for (i32 l = 0; l < WIDE; ++l) PUT(k + l, part[l]); \
    } \
    for (i32 k = length / WIDE * WIDE; k < length; ++k) PUT(k, VALUE(k));
#define FILL(part, value) for (i32 l = 0; l < WIDE; ++l) part[l] = value;
#define PLAIN(k) T_LOAD(line, k)
#define ROWS_OF_ITEM \
    const i32 first = GROUP_ID(0) * per, last = first + per < count ? first + per : count; \
    for (i32 i = first; i < last; ++i)
#define COLUMNS_OF_ITEM \
    const i32 bundles = (inner + BUNDLE - 1) / BUNDLE, first = GROUP_ID(0) * per; \
    const i32 all = count / inner * bundles, last = first + per < all ? first + per : all; \
    for (i32 i = first; i < last; ++i)
#define OF_BUNDLE \
    const i32 outer = i / bundles, begin = (i - outer * bundles) * BUNDLE; \
    const i32 wide = inner - begin < BUNDLE ? inner - begin : BUNDLE; \
    CONSTANT T *line = data + outer * length * inner + begin;
#define ACROSS(what) \
    if (wide == BUNDLE) { \
        for (i32 l = 0; l < BUNDLE; ++l) { what } \
    } else { \
        for (i32 l = 0; l < wide; ++l) { what } \
    }
"""

REDUCE_ROWS = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void reduce(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner,
            i32 per)
{
    ROWS_OF_ITEM {
        CONSTANT T *line = data + i * length;
        T_C part[WIDE];
        FILL(part, INIT)
        SWEEP(part, PLAIN, STEP)
        MEET(acc, part, JOIN(acc, x))
        T_STORE(y, i, DONE);
    }
}
"""

REDUCE_COLUMNS = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void reduce(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner,
            i32 per)
{
    COLUMNS_OF_ITEM {
        OF_BUNDLE
        T_C part[BUNDLE];
        for (i32 l = 0; l < wide; ++l) part[l] = INIT;
        for (i32 k = 0; k < length; ++k) {
            CONSTANT T *row = line + k * inner;
            ACROSS(const T_C x = T_LOAD(row, l); const T_C acc = part[l]; part[l] = STEP;)
        }
        for (i32 l = 0; l < wide; ++l) {
            const T_C acc = part[l];
            T_STORE(y, outer * inner + begin + l, DONE);
        }
    }
}
"""

LOG_SUM_EXP_ROWS = r"""
#define RAISED(k) EXP(T_LOAD(line, k) - shift)
KERNEL BLOCK_SIZE(1, 1, 1)
void reduce(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner,
            i32 per)
{
    ROWS_OF_ITEM {
        CONSTANT T *line = data + i * length;
        T_C part[WIDE];
        FILL(part, T_LOAD(line, 0))
        SWEEP(part, PLAIN, X_MAX(acc, x))
        MEET(top, part, X_MAX(acc, x))
        const T_C shift = top == INFINITY || top == -INFINITY ? (T_C)0 : top;
        FILL(part, 0)
        SWEEP(part, RAISED, acc + x)
        MEET(sum, part, acc + x)
        T_STORE(y, i, X_LOG(sum) + shift);
    }
}
"""

LOG_SUM_EXP_COLUMNS = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void reduce(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner,
            i32 per)
{
    COLUMNS_OF_ITEM {
        OF_BUNDLE
        T_C tops[BUNDLE], sums[BUNDLE];
        for (i32 l = 0; l < wide; ++l) tops[l] = T_LOAD(line, l);
        for (i32 k = 1; k < length; ++k)
            ACROSS(const T_C x = T_LOAD(line, k * inner + l); const T_C acc = tops[l];
                   tops[l] = X_MAX(acc, x);)
        for (i32 l = 0; l < wide; ++l) {
            tops[l] = tops[l] == INFINITY || tops[l] == -INFINITY ? (T_C)0 : tops[l];
            sums[l] = 0;
        }
        for (i32 k = 0; k < length; ++k)
            ACROSS(sums[l] += EXP(T_LOAD(line, k * inner + l) - tops[l]);)
        for (i32 l = 0; l < wide; ++l)
            T_STORE(y, outer * inner + begin + l, X_LOG(sums[l]) + tops[l]);
    }
}
"""

SOFTMAX_ROWS = r"""
#define RAISED(k) EXP(T_LOAD(line, k) - top)
KERNEL BLOCK_SIZE(1, 1, 1)
void softmax(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner,
             i32 per)
{
    ROWS_OF_ITEM {
        CONSTANT T *line = data + i * length;
        T_C part[WIDE];
        FILL(part, T_LOAD(line, 0))
        SWEEP(part, PLAIN, X_MAX(acc, x))
        MEET(top, part, X_MAX(acc, x))
        FILL(part, 0)
        SWEEP(part, RAISED, acc + x)
        MEET(sum, part, acc + x)
        const T_C factor = 1 / sum;
#define SHARE(k) (RAISED(k) * factor)
#define PUT(k, v) T_STORE(y, i * length + k, v)
        SPREAD(part, SHARE, PUT)
    }
}
"""

SOFTMAX_COLUMNS = r"""
KERNEL BLOCK_SIZE(1, 1, 1)
void softmax(CONSTANT T *RESTRICT data, GLOBAL T *RESTRICT y, i32 count, i32 length, i32 inner,
             i32 per)
{
    COLUMNS_OF_ITEM {
        OF_BUNDLE
        GLOBAL T *to = y + outer * length * inner + begin;
        T_C tops[BUNDLE], sums[BUNDLE];
        for (i32 l = 0; l < wide; ++l) { tops[l] = T_LOAD(line, l); sums[l] = 0; }
        for (i32 k = 1; k < length; ++k)
            ACROSS(const T_C x = T_LOAD(line, k * inner + l); const T_C acc = tops[l];
                   tops[l] = X_MAX(acc, x);)
        for (i32 k = 0; k < length; ++k)
            ACROSS(sums[l] += EXP(T_LOAD(line, k * inner + l) - tops[l]);)
        for (i32 l = 0; l < wide; ++l) sums[l] = 1 / sums[l];
        for (i32 k = 0; k < length; ++k)
            ACROSS(const T_C x = EXP(T_LOAD(line, k * inner + l) - tops[l]) * sums[l];
                   T_STORE(to, k * inner + l, x);)
    }
}
"""

STANDARDIZE_ROWS = r"""
#define AWAY(k) (T_LOAD(line, k) - mean)
KERNEL BLOCK_SIZE(1, 1, 1)
void standardize(CONSTANT T *RESTRICT data, @SCALE@ @BIAS@ GLOBAL T *RESTRICT y,
                 i32 count, i32 length, i32 inner, i32 channels, float epsilon, i32 per)
{
    ROWS_OF_ITEM {
        CONSTANT T *line = data + i * length;
        T_C part[WIDE];
        FILL(part, 0)
        SWEEP(part, PLAIN, acc + x)
        MEET(total, part, acc + x)
        const float mean = total / (float)length;
        FILL(part, 0)
        SWEEP(part, AWAY, acc + x * x)
        MEET(spread, part, acc + x)
        const float factor = 1.0f / X_SQRT(spread / (float)length + epsilon);
#define STANDARD(k) SHIFTED(AWAY(k) * factor, k)
#define PUT(k, v) T_STORE(y, i * length + k, v)
        SPREAD(part, STANDARD, PUT)
    }
}
"""

WIDE = 64
BUNDLE = 32
WORK = 8192
"""Elements of an item, about."""


def lines(
    rows_text: str,
    columns_text: str,
    entry: str,
    args: Args,
    shape: tuple[int, int, int],
    device: DeviceInfo,
    defines: Defines,
    *,
    dtype: str,
) -> GridLaunch:
    """A launch of one of two texts on [outer, length, inner]; ``per`` is their last argument."""
    outer, length, inner = shape
    count, each = outer, length
    if inner > 1:
        bundles = -(-inner // BUNDLE)
        count, each = outer * bundles, length * min(inner, BUNDLE)
    per = max(1, min(WORK // each, count // (4 * max(1, device.compute_units))))
    known = (*defines, *define(WIDE=WIDE, BUNDLE=BUNDLE))
    exp = "X_EXP(x)" if dtype == "float64" else "G_EXP(x)"
    text = prelude(("exp",), cpu=True) + _SWEEP + (columns_text if inner > 1 else rows_text)
    groups = -(-count // per)
    return launch(text, entry, (*args, *i32(per)), (groups,), (1,), (*known, ("EXP(x)", exp)))


def line_args(source: Slot, target: Slot, shape: tuple[int, int, int]) -> Args:
    """The arguments that the texts begin with."""
    outer, length, inner = shape
    return (source, target, *i32(outer * inner, length, inner))
