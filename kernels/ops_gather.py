"""Gather. Negative indices count from the end; indices out of range are clamped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossdock.devices.program import Work
from crossdock.kernels.ops_rules import (
    ANY,
    INDEX,
    axis_of,
    entry,
    fail,
    of,
    same_dims,
    size_of,
    some,
)
from crossdock.kernels.spec import Attrs, Canon, Specs
from crossdock.runtime.tensor import TensorSpec


def in_range(xp: Any, indices: Any, size: int) -> Any:
    """Indices as int64 in [0, size): negative ones wrap once, the rest is clamped."""
    wide = indices.astype("int64")
    return xp.clip(xp.where(wide < 0, wide + size, wide), 0, size - 1)


def check_places(op: str, spec: TensorSpec, indices: TensorSpec, axes: Sequence[int]) -> None:
    """Raise where indices address an axis that has no elements: no clamping makes them valid."""
    empty = next((a for a in axes if spec.shape[a] == 0), None)
    if empty is not None and all(isinstance(n, int) and n > 0 for n in indices.shape):
        raise fail(op, f"indices {indices} address axis {empty} of input {spec}, which is empty")


def with_axis(name: str) -> Canon:
    """A ``canon`` that reads the axis."""

    def canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
        return attrs | {"axis": axis_of(name, attrs["axis"], some(specs[0]).rank)}

    return canon


def _work(specs: Specs, outs: Any, attrs: Attrs) -> Work:  # noqa: ARG001 - WorkFn
    indices = some(specs[1])
    written = float(outs[0].nbytes)
    return Work(0.0, written + indices.nbytes, written)


# --- gather ---------------------------------------------------------------------------------------


def _gather_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec, indices, axis = some(specs[0]), some(specs[1]), attrs["axis"]
    check_places("gather", spec, indices, (axis,))
    return (spec.with_shape((*spec.shape[:axis], *indices.shape, *spec.shape[axis + 1 :])),)


entry(
    "gather",
    {"input": of(ANY, 1), "indices": of(INDEX)},
    attrs={"axis": 0},
    canon=with_axis("gather"),
    infer=_gather_infer,
    run=lambda xp, x, i, axis: xp.take(x, in_range(xp, i, x.shape[axis]), axis=axis),
    work=_work,
)


def _elements_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec, indices, axis = some(specs[0]), some(specs[1]), attrs["axis"]
    check_elements("gather_elements", spec, indices, axis)
    return (spec.with_shape(indices.shape),)


def check_elements(op: str, spec: TensorSpec, indices: TensorSpec, axis: int) -> None:
    """Raise unless indices have the input's shape but for the axis."""
    rest = (*spec.shape[:axis], *indices.shape[axis : axis + 1], *spec.shape[axis + 1 :])
    if indices.rank != spec.rank or not same_dims(rest, indices.shape):
        raise fail(
            op, f"indices must have the shape of input {spec} but for axis {axis}; it is {indices}"
        )
    check_places(op, spec, indices, (axis,))


entry(
    "gather_elements",
    {"input": of(ANY, 1), "indices": of(INDEX, 1)},
    attrs={"axis": 0},
    canon=with_axis("gather_elements"),
    infer=_elements_infer,
    run=lambda xp, x, i, axis: xp.take_along_axis(x, in_range(xp, i, x.shape[axis]), axis=axis),
    work=_work,
)


def depth_of(op: str, spec: TensorSpec, indices: TensorSpec) -> int:
    """How many leading axes of the input an index tuple addresses."""
    depth = size_of(op, "indices", indices, indices.rank - 1)
    if depth > spec.rank:
        raise fail(
            op,
            f"the last dimension of indices must be at most the rank of input {spec}; "
            f"it is {indices}",
        )
    check_places(op, spec, indices, range(depth))
    return depth


def _nd_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    spec, indices = some(specs[0]), some(specs[1])
    depth = depth_of("gather_nd", spec, indices)
    return (spec.with_shape((*indices.shape[:-1], *spec.shape[depth:])),)


def coordinates(xp: Any, x: Any, indices: Any) -> tuple[Any, ...]:
    """One array of positions for each leading axis that ``indices`` addresses."""
    depth = indices.shape[-1]
    return tuple(in_range(xp, indices[..., k], x.shape[k]) for k in range(depth))


def _gather_nd(xp: Any, x: Any, indices: Any) -> Any:
    if indices.shape[-1] == 0:
        return xp.broadcast_to(x, (*indices.shape[:-1], *x.shape))
    return x[coordinates(xp, x, indices)]


entry(
    "gather_nd",
    {"input": of(ANY, 1), "indices": of(INDEX, 1)},
    infer=_nd_infer,
    run=_gather_nd,
    work=_work,
)
