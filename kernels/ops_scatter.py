"""Scatter: updates placed by index; those of one place combined where a reduction is asked for.

Negative indices count from the end; indices out of range are clamped.
"""

from __future__ import annotations

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
    """A copy of ``x`` with updates written, or combined, at positions."""
    if reduction == "none":
        out = x.copy()
        out[at] = updates
        return out
    half = ops_math.is_half(x)
    out = x.astype("float32") if half else x.copy()
    getattr(xp, REDUCTIONS[reduction]).at(out, at, updates.astype(out.dtype))
    return out.astype(x.dtype) if half else out


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
