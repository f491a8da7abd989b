"""Scatter: updates placed by index; those of one place combined where a reduction is asked for.

Negative indices count from the end; indices out of range are clamped.
"""

from __future__ import annotations

import math
from typing import Any

from crossdock.kernels import ops_math
from crossdock.kernels.ops_gather import (
    check_elements,
    coordinates,
    depth_of,
    in_range,
    with_axis,
)
from crossdock.kernels.ops_rules import (
    ANY,
    INDEX,
    choice,
    entry,
    fail,
    like,
    of,
    same_dims,
    show,
    some,
)
from crossdock.kernels.ops_work import joins
from crossdock.kernels.spec import Attrs, Specs
from crossdock.runtime.tensor import TensorSpec

REDUCTIONS = {"none": "", "add": "add", "mul": "multiply", "max": "maximum", "min": "minimum"}
"""Names of the extension attribute ``reduction``, and numpy's functions."""


def _canon(op: str, specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    reduction = choice(op, "reduction", attrs["reduction"], tuple(REDUCTIONS))
    if reduction != "none" and some(specs[0]).dtype == "bool":
        raise fail(op, f"reduction {reduction} takes numbers; input is {some(specs[0])}")
    return attrs | {"reduction": reduction}


def _placed(xp: Any, x: Any, at: tuple[Any, ...], updates: Any, reduction: str) -> Any:
    """A copy of ``x`` with updates written, or combined, at positions of its leading axes."""
    if reduction == "none" or not updates.size:
        out = x.copy()
        out[at] = updates
        return out
    count = math.prod(updates.shape[: updates.ndim - x.ndim + len(at)])
    place = xp.zeros((count,), dtype="int64")
    for size, part in zip(x.shape, at, strict=False):
        place = place * size + part.reshape(-1)
    rows = ops_math.widen(x).reshape(math.prod(x.shape[: len(at)]), -1).copy()
    found = ops_math.widen(updates).reshape(count, -1)
    combine = getattr(xp, REDUCTIONS[reduction])
    place, found = _combined(xp, place, found, combine)
    rows[place] = combine(rows[place], found)
    return rows.reshape(x.shape).astype(x.dtype)


def _combined(xp: Any, place: Any, found: Any, combine: Any) -> tuple[Any, Any]:
    """Every place once, with all of its updates combined: a segmented scan of sorted places.

    After a pass of step s an entry has taken in the next 2 s - 1 of its place, if so many follow.
    """
    order = xp.argsort(place, kind="stable")
    place, found = place[order], found[order]
    step = 1
    while step < place.shape[0]:
        same = (place[:-step] == place[step:])[:, None]
        joined = xp.where(same, combine(found[:-step], found[step:]), found[:-step])
        found = xp.concatenate((joined, found[-step:]))
        step *= 2
    first = xp.concatenate((xp.ones((1,), dtype="bool"), place[1:] != place[:-1]))
    return place[first], found[first]


def _elements_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    return _canon("scatter_elements", specs, with_axis("scatter_elements")(specs, attrs))


def _elements_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec, indices, updates = (some(s) for s in specs)
    check_elements("scatter_elements", spec, indices, attrs["axis"])
    if not same_dims(indices.shape, updates.shape):
        raise fail(
            "scatter_elements", f"updates must have the shape of indices {indices}; it is {updates}"
        )
    return (spec,)


def _elements(xp: Any, x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
    grid = list(xp.meshgrid(*(xp.arange(n) for n in indices.shape), indexing="ij"))
    grid[axis] = in_range(xp, indices, x.shape[axis])
    return _placed(xp, x, tuple(grid), updates, reduction)


entry(
    "scatter_elements",
    {"input": of(ANY, 1), "indices": of(INDEX, 1), "updates": like("input", 1)},
    attrs={"axis": 0, "reduction": "none"},
    canon=_elements_canon,
    infer=_elements_infer,
    run=_elements,
    work=joins,
)


def _nd_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    spec, indices, updates = (some(s) for s in specs)
    depth = depth_of("scatter_nd", spec, indices)
    want = (*indices.shape[:-1], *spec.shape[depth:])
    if not same_dims(updates.shape, want):
        raise fail("scatter_nd", f"updates must have shape {show(want)}; it is {updates}")
    return (spec,)


entry(
    "scatter_nd",
    {"input": of(ANY, 1), "indices": of(INDEX, 1), "updates": like("input")},
    attrs={"reduction": "none"},
    canon=lambda specs, attrs: _canon("scatter_nd", specs, attrs),
    infer=_nd_infer,
    run=lambda xp, x, indices, updates, reduction: _placed(
        xp, x, coordinates(xp, x, indices), updates, reduction
    ),
    work=joins,
)
