"""Ops that move elements without computing: identity, reshape, transpose, reverse, slice, split."""

from __future__ import annotations

from typing import Any

from crossdock.kernels.ops_rules import (
    ANY,
    Shape,
    axes_of,
    axis_of,
    dims,
    entry,
    fail,
    integer,
    integers,
    of,
    same_as_first,
    show,
    size_of,
    some,
)
from crossdock.kernels.ops_work import free, joins, moves, product
from crossdock.kernels.spec import REQUIRED, Attrs, Specs
from crossdock.runtime.tensor import Dim, TensorSpec

INPUT = {"input": of(ANY)}

# --- identity and reshape: the same bytes ---------------------------------------------------------

entry(
    "identity",
    INPUT,
    infer=same_as_first,
    run=lambda xp, x: x,  # noqa: ARG005 - run
    work=free,
    alias=True,
)


def _reshape_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    spec = some(specs[0])
    shape = dims("reshape", "new_shape", attrs["new_shape"])
    if not _same_size(spec.shape, shape):
        raise fail("reshape", f"input {spec} does not hold the elements of {show(shape)}")
    return attrs | {"new_shape": shape}


def _same_size(a: Shape, b: Shape) -> bool:
    """True where the element counts agree, or symbols hide whether they do."""
    names_a = sorted(d for d in a if isinstance(d, str))
    names_b = sorted(d for d in b if isinstance(d, str))
    if names_a != names_b:
        return True
    numbers = ([d for d in s if isinstance(d, int)] for s in (a, b))
    return product(next(numbers)) == product(next(numbers))


entry(
    "reshape",
    INPUT,
    params=("new_shape",),
    attrs={"new_shape": REQUIRED},
    canon=_reshape_canon,
    infer=lambda specs, attrs: (some(specs[0]).with_shape(attrs["new_shape"]),),
    run=lambda xp, x, new_shape: x.reshape(new_shape),  # noqa: ARG005 - run
    work=free,
    alias=True,
)

# --- transpose and reverse ------------------------------------------------------------------------


def _transpose_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    rank = some(specs[0]).rank
    given = attrs["permutation"]
    if given is None:
        return attrs | {"permutation": tuple(reversed(range(rank)))}
    order = integers("transpose", "permutation", given)
    if sorted(order) != list(range(rank)):
        raise fail(
            "transpose", f"permutation must order the axes 0 to {rank - 1}; it is {list(order)}"
        )
    return attrs | {"permutation": order}


def _transpose_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    return (spec.with_shape(spec.shape[axis] for axis in attrs["permutation"]),)


entry(
    "transpose",
    INPUT,
    attrs={"permutation": None},
    canon=_transpose_canon,
    infer=_transpose_infer,
    run=lambda xp, x, permutation: xp.transpose(x, permutation),
    work=moves,
)


def _reverse_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    axes = axes_of("reverse", attrs["axes"], some(specs[0]).rank)
    return attrs | {"axes": tuple(sorted(axes))}


entry(
    "reverse",
    INPUT,
    attrs={"axes": None},
    canon=_reverse_canon,
    infer=same_as_first,
    run=lambda xp, x, axes: xp.flip(x, axis=axes) if axes else x,
    work=moves,
)

# --- slice and split ------------------------------------------------------------------------------


def _slice_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    spec = some(specs[0])
    starts = integers("slice", "starts", attrs["starts"], count=spec.rank)
    sizes = dims("slice", "sizes", attrs["sizes"])
    if len(sizes) != spec.rank:
        raise fail("slice", f"sizes must have {spec.rank} values; it is {show(sizes)}")
    given = attrs["strides"]
    strides = (
        (1,) * spec.rank
        if given is None
        else integers("slice", "strides", given, count=spec.rank, low=1)
    )
    for axis, dim in enumerate(spec.shape):
        _check_window(spec, axis, starts[axis], sizes[axis], dim)
    return attrs | {"starts": starts, "sizes": sizes, "strides": strides}


def _check_window(spec: TensorSpec, axis: int, start: int, size: Dim, dim: Dim) -> None:
    if isinstance(size, str):
        fits = size == dim and start == 0
    elif isinstance(dim, str):
        fits = True
    else:
        fits = start + size <= dim
    if not fits:
        raise fail(
            "slice",
            f"starts + sizes must stay inside the input; on axis {axis} {start} + {size} is "
            f"beyond {spec}",
        )


def _slice_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    shape: list[Dim] = []
    for size, stride in zip(attrs["sizes"], attrs["strides"], strict=True):
        if isinstance(size, str) and stride != 1:
            raise fail("slice", f"strides over the unbound size {size!r}; bind it first")
        shape.append(size if isinstance(size, str) else -(-size // stride))
    return (some(specs[0]).with_shape(shape),)


def _slice(
    xp: Any,  # noqa: ARG001 - run
    x: Any,
    *,
    starts: tuple[int, ...],
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
) -> Any:
    window = zip(starts, sizes, strides, strict=True)
    return x[tuple(slice(start, start + size, stride) for start, size, stride in window)]


entry(
    "slice",
    INPUT,
    params=("starts", "sizes"),
    attrs={"starts": REQUIRED, "sizes": REQUIRED, "strides": None},
    canon=_slice_canon,
    infer=_slice_infer,
    run=_slice,
    work=moves,
)


def _split_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    spec = some(specs[0])
    axis = axis_of("split", attrs["axis"], spec.rank)
    size = size_of("split", "input", spec, axis)
    given = attrs["splits"]
    if isinstance(given, list | tuple):
        splits = integers("split", "splits", given)
    else:
        count = integer("split", "splits", given, 1)
        if size % count:
            raise fail("split", f"splits {count} does not divide axis {axis} of input {spec}")
        splits = (size // count,) * count
    if sum(splits) != size or not splits:
        raise fail("split", f"splits {list(splits)} must add up to axis {axis} of input {spec}")
    return attrs | {"axis": axis, "splits": splits}


def _split_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec, axis = some(specs[0]), attrs["axis"]
    return tuple(
        spec.with_shape((*spec.shape[:axis], size, *spec.shape[axis + 1 :]))
        for size in attrs["splits"]
    )


def _split(xp: Any, x: Any, *, splits: tuple[int, ...], axis: int) -> Any:
    ends = [sum(splits[: i + 1]) for i in range(len(splits) - 1)]
    return tuple(xp.split(x, ends, axis=axis))


def _split_steps(b: Any, x: Any, *, splits: tuple[int, ...], axis: int) -> Any:
    parts = []
    for i, size in enumerate(splits):
        starts, sizes = [0] * len(x.shape), list(x.shape)
        starts[axis], sizes[axis] = sum(splits[:i]), size
        parts.append(b.slice(x, starts, sizes))
    return tuple(parts)


entry(
    "split",
    {"input": of(ANY, 1)},
    params=("splits",),
    attrs={"splits": REQUIRED, "axis": 0},
    canon=_split_canon,
    infer=_split_infer,
    run=_split,
    work=joins,
    decompose=_split_steps,
    many=True,
)
