"""Ops that go along one axis in order: running sums and products, the k largest elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from crossdock.devices.program import Work
from crossdock.kernels import ops_math
from crossdock.kernels.ops_rules import (
    NUMERIC,
    SUMMABLE,
    axis_of,
    entry,
    fail,
    flag,
    integer,
    of,
    same_as_first,
    size_of,
    some,
)
from crossdock.kernels.ops_work import per_input, traffic
from crossdock.kernels.spec import REQUIRED, Attrs, Canon, Specs
from crossdock.runtime.tensor import TensorSpec

# --- running sums and products --------------------------------------------------------------------


def _running_canon(op: str) -> Canon:
    def canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
        return {
            "axis": axis_of(op, attrs["axis"], some(specs[0]).rank),
            "exclusive": flag(op, "exclusive", attrs["exclusive"]),
            "reversed": flag(op, "reversed", attrs["reversed"]),
        }

    return canon


def _running(name: str, neutral: int) -> Callable[..., Any]:
    """``run`` of a numpy function that accumulates, whose first value is ``neutral``."""

    def run(xp: Any, x: Any, *, axis: int, exclusive: bool, reversed: bool) -> Any:  # noqa: A002 - WebNN's name
        source = xp.flip(x, axis=axis) if reversed else x
        if exclusive:
            index = [slice(None)] * x.ndim
            index[axis] = slice(0, -1)
            edge = list(x.shape)
            edge[axis] = 1
            first = xp.full(tuple(edge), neutral, dtype=x.dtype)
            source = xp.concatenate((first, source[tuple(index)]), axis=axis)
        out = getattr(xp, name)(source, axis=axis, dtype=x.dtype)
        return xp.flip(out, axis=axis) if reversed else out

    return run


for _op, _name, _neutral in (("cumulative_sum", "cumsum", 0), ("cumulative_product", "cumprod", 1)):
    entry(
        _op,
        {"input": of(SUMMABLE, 1)},
        params=("axis",),
        attrs={"axis": REQUIRED, "exclusive": False, "reversed": False},
        canon=_running_canon(_op),
        infer=same_as_first,
        run=ops_math.widened(_running(_name, _neutral)),
        work=per_input(),
        extension=_op == "cumulative_product",
    )

# --- top_k ----------------------------------------------------------------------------------------


def _top_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    op, spec = "top_k", some(specs[0])
    axis = axis_of(op, attrs["axis"], spec.rank)
    k, size = integer(op, "k", attrs["k"]), size_of(op, "input", spec, axis)
    if k > size:
        raise fail(op, f"k must be at most the size {size} of axis {axis}; it is {k}")
    return {"k": k, "axis": axis, "largest": flag(op, "largest", attrs["largest"])}


def _top_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    shape = list(spec.shape)
    shape[attrs["axis"]] = attrs["k"]
    return spec.with_shape(shape), TensorSpec("int64", tuple(shape))


def _top(xp: Any, x: Any, *, k: int, axis: int, largest: bool) -> Any:
    """A stable sort of the reversed line, read backwards, has ties in their first order."""
    order: Any
    if largest:
        flipped = xp.flip(x, axis=axis)
        order = x.shape[axis] - 1 - xp.flip(xp.argsort(flipped, axis=axis, kind="stable"), axis)
    else:
        order = xp.argsort(x, axis=axis, kind="stable")
    index = [slice(None)] * x.ndim
    index[axis] = slice(0, k)
    order = order[tuple(index)].astype("int64")
    return xp.take_along_axis(x, order, axis=axis), order


def _top_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    """A sort of each line by comparisons."""
    spec = some(specs[0])
    return traffic(specs, outs, spec.size * math.log2(max(2, spec.dims[attrs["axis"]])))


entry(
    "top_k",
    {"input": of(NUMERIC, 1)},
    params=("k", "axis"),
    attrs={"k": REQUIRED, "axis": REQUIRED, "largest": True},
    canon=_top_canon,
    infer=_top_infer,
    run=_top,
    work=_top_work,
    extension=True,
    many=True,
)
