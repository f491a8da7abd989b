"""Kernels of the dialect's team reductions, and what has to come of them."""

from __future__ import annotations

import numpy as np

from crossdock.devices.program import GridLaunch, In, Out
from crossdock.runtime.tensor import Array

C_TYPE = {"int32": "i32", "uint32": "u32", "int64": "i64", "uint64": "u64", "float32": "f32",
          "float64": "f64"}  # fmt: skip
ITEMS = 256
EVEN = (1, 2, 8, 32, 64, 128, 256)
"""Teams that several of make a group of 256 items."""
RAGGED = (("float32", 20), ("int64", 100), ("float32", 1000))
"""Teams that are a group alone, no multiple of any sub-group."""
GROUPS = 2

_TEXT = """
#define PLUS(a, b) ((a) + (b))
KERNEL BLOCK_SIZE(ITEMS, 1, 1) IN_SUBGROUPS void f(CONSTANT T *x, GLOBAL T *y)
{
    @ROOMS@
    const i32 i = GROUP_ID(0) * ITEMS + ITEM_ID, count = GROUPS * ITEMS;
    T v;
    @STEPS@
}
"""
JOINS = {"PLUS": np.sum, "X_MAX": np.max, "X_MIN": np.min}


def _trials(teams: tuple[int, ...]) -> list[tuple[int, str]]:
    """Sizes of teams, each with a join; one alone has all of them."""
    joins = list(JOINS)
    if len(teams) == 1:
        return [(teams[0], join) for join in joins]
    return [(n, joins[at % len(joins)]) for at, n in enumerate(teams)]


def step(dtype: str, items: int, teams: tuple[int, ...]) -> GridLaunch:
    """Each item puts down what its team makes of their values, for each trial."""
    rooms, steps = [], []
    for at, (n, join) in enumerate(_trials(teams)):
        rooms.append(f"TEAM_ROOM(T, r{at}, {n}, {items // n});")
        steps.append(f"v = x[i]; TEAM_REDUCE(T, v, {n}, r{at}, {join}); y[{at} * count + i] = v;")
    text = _TEXT.replace("@ROOMS@", "\n".join(rooms)).replace("@STEPS@", "\n".join(steps))
    defines = (("T", C_TYPE[dtype]), ("ITEMS", str(items)), ("GROUPS", str(GROUPS)))
    return GridLaunch(text, "f", (In(0), Out(0)), (GROUPS * items,), (items,), defines)


def values(dtype: str, items: int) -> Array:
    """Whole numbers, whose sums are exact; among floats an infinity and a NaN."""
    x = np.random.default_rng(items).integers(0, 1000, GROUPS * items).astype(dtype)
    x = x if "uint" in dtype else x - np.array(500, dtype)
    if "float" in dtype:
        x[3], x[items + 7] = -np.inf, np.nan
    return x


def expected(x: Array, teams: tuple[int, ...]) -> Array:
    """[trials, items] for ``step`` of these values."""
    made = []
    for n, join in _trials(teams):
        result = JOINS[join](x.reshape(-1, n), axis=1)
        made.append(np.repeat(np.asarray(result, x.dtype), n))
    return np.stack(made)
