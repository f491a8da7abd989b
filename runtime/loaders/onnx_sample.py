"""Reading a tensor between its cells: taps along each axis, combined by gathers and products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.runtime.builder import Operand
from crossdock.runtime.loaders.onnx_table import Context
from crossdock.runtime.tensor import FLOATS

CUBIC = -0.75
"""The parameter of cubic convolution (Keys 1981)."""


@dataclass(frozen=True)
class Tap:
    """One cell that counts along an axis: its place, its weight, and whether it is inside.

    ``weight`` None is one; ``inside`` None is everywhere. Shapes broadcast among the axes.
    """

    place: Operand
    weight: Operand | None
    inside: Operand | None


def working_type(dtype: str) -> str:
    """The type that positions are computed in."""
    return "float64" if dtype == "float64" else "float32"


def positions(ctx: Context, grid: Operand, size: int, *, corners: bool) -> Operand:
    """Places in cells from places between -1 and 1; those are corner cells' centres, or edges."""
    b = ctx.b
    ahead = b.add(grid, ctx.like(1, grid))
    if corners:
        return b.mul(ahead, ctx.like((size - 1) / 2, grid))
    return b.sub(b.mul(ahead, ctx.like(size / 2, grid)), ctx.like(0.5, grid))


def _limits(size: int, *, corners: bool) -> tuple[float, float]:
    return (0.0, size - 1.0) if corners else (-0.5, size - 0.5)


def _reflected(ctx: Context, at: Operand, size: int, *, corners: bool) -> Operand:
    """Places thrown back from the edges as often as it takes."""
    b = ctx.b
    low, high = _limits(size, corners=corners)
    if low == high:
        return b.mul(at, ctx.like(0, at))
    span = ctx.like(high - low, at)
    turn = b.mod(b.sub(at, ctx.like(low, at)), ctx.like(2 * (high - low), at))
    return b.add(b.sub(span, b.abs(b.sub(turn, span))), ctx.like(low, at))


def _held(ctx: Context, at: Operand, size: int, padding: str, *, corners: bool) -> Operand:
    """Places outside moved inside, where the padding has a cell for them."""
    if padding == "zeros":
        return at
    b = ctx.b
    low, high = _limits(size, corners=corners)
    outside = b.logical_or(b.lesser(at, ctx.like(low, at)), b.greater(at, ctx.like(high, at)))
    if padding == "border":
        moved = b.clamp(at, min_value=0, max_value=size - 1)
    else:
        moved = _reflected(ctx, at, size, corners=corners)
    return b.where(outside, moved, at)


def _cell(
    ctx: Context, at: Operand, weight: Operand | None, size: int, padding: str, *, corners: bool
) -> Tap:
    """A tap at whole-numbered places, which may lie outside."""
    b = ctx.b
    inside = None
    if padding == "zeros":
        inside = b.logical_and(
            b.greater_or_equal(at, ctx.like(0, at)), b.lesser(at, ctx.like(size, at))
        )
    elif padding == "reflection":
        at = _reflected(ctx, at, size, corners=corners)
    place = b.cast(b.clamp(at, min_value=0, max_value=size - 1), "int32")
    return Tap(place, weight, inside)


def axis_taps(
    ctx: Context, at: Operand, size: int, mode: str, padding: str, *, corners: bool
) -> list[Tap]:
    """The cells that count at places along an axis, for nearest, linear or cubic reading."""
    b = ctx.b
    if mode == "nearest":
        whole = _held(ctx, b.round_even(at), size, padding, corners=corners)
        return [_cell(ctx, whole, None, size, padding, corners=corners)]
    if mode == "linear" or padding == "reflection":
        # Cubic weights stay those of the place outside; each of the four cells is the border's.
        at = _held(ctx, at, size, padding, corners=corners)
    low = b.floor(at)
    part = b.sub(at, low)
    one = ctx.like(1, part)
    if mode == "linear":
        weights = {0: b.sub(one, part), 1: part}
    else:
        rest = b.sub(one, part)
        weights = {
            -1: _far(ctx, b.add(part, one)),
            0: _near(ctx, part),
            1: _near(ctx, rest),
            2: _far(ctx, b.add(rest, one)),
        }
    return [
        _cell(ctx, b.add(low, ctx.like(step, low)), weight, size, padding, corners=corners)
        for step, weight in weights.items()
    ]


def _near(ctx: Context, x: Operand) -> Operand:
    """((a + 2) x - (a + 3)) x^2 + 1, for a distance up to 1."""
    b = ctx.b
    inner = b.sub(b.mul(x, ctx.like(CUBIC + 2, x)), ctx.like(CUBIC + 3, x))
    return b.add(b.mul(inner, b.mul(x, x)), ctx.like(1, x))


def _far(ctx: Context, x: Operand) -> Operand:
    """((a x - 5 a) x + 8 a) x - 4 a, for a distance from 1 to 2."""
    b = ctx.b
    inner = b.mul(b.sub(b.mul(x, ctx.like(CUBIC, x)), ctx.like(5 * CUBIC, x)), x)
    inner = b.mul(b.add(inner, ctx.like(8 * CUBIC, x)), x)
    return b.sub(inner, ctx.like(4 * CUBIC, x))


def corners_of(
    ctx: Context, x: Operand, rows: Operand, taps: Sequence[Sequence[Tap]]
) -> list[Operand]:
    """What each combination of one tap an axis gives [points ..., channels], by its weight.

    ``x`` is [rows, channels, spatial ...]; ``rows`` says which row each point reads, and
    broadcasts with the taps' places. Results have a floating type, or x's where nothing is weighed.
    """
    b, sizes = ctx.b, x.shape[2:]
    order = [0, *range(2, len(x.shape)), 1]
    cells = b.reshape(
        b.transpose(x, permutation=order), [x.shape[0] * math.prod(sizes), x.shape[1]]
    )
    weighed = any(t.weight is not None for axis in taps for t in axis)
    if weighed and x.dtype not in FLOATS:
        cells = b.cast(cells, "float32")
    found = []
    for chosen in itertools.product(*taps):
        place = rows
        for size, tap in zip(sizes, chosen, strict=True):
            place = b.add(b.mul(place, ctx.like(size, place)), tap.place)
        value = b.gather(cells, place, axis=0)
        for tap in chosen:
            if tap.weight is not None:
                value = b.mul(value, _column(ctx, b.cast(tap.weight, value.dtype)))
            if tap.inside is not None:
                value = b.where(_column(ctx, tap.inside), value, ctx.like(0, value))
        found.append(value)
    return found


def _column(ctx: Context, x: Operand) -> Operand:
    return ctx.b.reshape(x, [*x.shape, 1])


def total(ctx: Context, parts: Sequence[Operand]) -> Operand:
    """The sum of some operands."""
    out = parts[0]
    for part in parts[1:]:
        out = ctx.b.add(out, part)
    return out


def row_numbers(ctx: Context, count: int, rank: int) -> Operand:
    """0, 1 ... along the first of ``rank`` axes."""
    return ctx.b.constant(np.arange(count, dtype=np.int32).reshape(count, *[1] * (rank - 1)))
