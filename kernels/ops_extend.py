"""Ops that put elements beside others: concat, expand, tile, pad; triangular, which blanks some."""

from __future__ import annotations

from typing import Any

from crossdock.kernels.ops_rules import (
    ANY,
    axis_of,
    broadcast_to,
    cast_number,
    choice,
    dims,
    entry,
    fail,
    flag,
    integer,
    integers,
    number,
    of,
    same_as_first,
    same_dims,
    same_dtype,
    size_of,
    some,
)
from crossdock.kernels.ops_shape import INPUT
from crossdock.kernels.ops_work import joins, moves
from crossdock.kernels.spec import REQUIRED, Attrs, Specs
from crossdock.runtime.tensor import Dim, TensorSpec

# --- concat, expand, tile -------------------------------------------------------------------------


def _concat_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    if not specs:
        raise fail("concat", "inputs must hold at least one operand; the list is empty")
    return attrs | {"axis": axis_of("concat", attrs["axis"], some(specs[0]).rank)}


def _concat_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    first, axis = some(specs[0]), attrs["axis"]
    shape = list(first.shape)
    for i, given in enumerate(specs[1:], 1):
        spec = some(given)
        name = f"inputs[{i}]"
        same_dtype("concat", name, spec, "inputs[0]", first)
        rest = (*spec.shape[:axis], first.shape[axis], *spec.shape[axis + 1 :])
        if spec.rank != first.rank or not same_dims(rest, first.shape):
            raise fail(
                "concat",
                f"{name} must have the shape of inputs[0] ({first}) but for axis {axis}; "
                f"it is {spec}",
            )
        shape = [b if isinstance(a, str) else a for a, b in zip(shape, rest, strict=True)]
    if len(specs) > 1:
        names = [(f"inputs[{i}]", some(s)) for i, s in enumerate(specs)]
        shape[axis] = sum(size_of("concat", name, spec, axis) for name, spec in names)
    return (first.with_shape(shape),)


entry(
    "concat",
    {"inputs*": of(ANY, 1)},
    params=("axis",),
    attrs={"axis": REQUIRED},
    canon=_concat_canon,
    infer=_concat_infer,
    run=lambda xp, *arrays, axis: xp.concatenate(arrays, axis=axis),
    work=joins,
)


def _expand_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    shape = dims("expand", "new_shape", attrs["new_shape"])
    broadcast_to("expand", "input", some(specs[0]).shape, shape)
    return attrs | {"new_shape": shape}


entry(
    "expand",
    INPUT,
    params=("new_shape",),
    attrs={"new_shape": REQUIRED},
    canon=_expand_canon,
    infer=lambda specs, attrs: (some(specs[0]).with_shape(attrs["new_shape"]),),
    run=lambda xp, x, new_shape: xp.broadcast_to(x, new_shape),
    work=moves,
)


def _tile_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    rank = some(specs[0]).rank
    return attrs | {
        "repetitions": integers("tile", "repetitions", attrs["repetitions"], count=rank)
    }


def _tile_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    return (
        spec.with_shape(
            spec.shape[axis] if count == 1 else size_of("tile", "input", spec, axis) * count
            for axis, count in enumerate(attrs["repetitions"])
        ),
    )


entry(
    "tile",
    INPUT,
    params=("repetitions",),
    attrs={"repetitions": REQUIRED},
    canon=_tile_canon,
    infer=_tile_infer,
    run=lambda xp, x, repetitions: xp.tile(x, repetitions),
    work=moves,
)

# --- pad and triangular ---------------------------------------------------------------------------

PAD_MODES = {"constant": "constant", "edge": "edge", "reflection": "reflect"}


def _pad_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    spec = some(specs[0])
    begin = integers("pad", "beginning_padding", attrs["beginning_padding"], count=spec.rank)
    end = integers("pad", "ending_padding", attrs["ending_padding"], count=spec.rank)
    mode = choice("pad", "mode", attrs["mode"], tuple(PAD_MODES))
    number("pad", "value", attrs["value"])
    for axis, widths in enumerate(zip(begin, end, strict=True)):
        if mode == "reflection" and max(widths) > 0:
            size = size_of("pad", "input", spec, axis)
            if max(widths) >= size:
                raise fail(
                    "pad",
                    f"reflection must be narrower than the input; on axis {axis} it is "
                    f"{max(widths)} for {spec}",
                )
    return {
        "beginning_padding": begin,
        "ending_padding": end,
        "mode": mode,
        "value": cast_number(attrs["value"], spec.dtype),
    }


def _pad_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    spec = some(specs[0])
    shape: list[Dim] = []
    for axis, dim in enumerate(spec.shape):
        extra = attrs["beginning_padding"][axis] + attrs["ending_padding"][axis]
        shape.append(size_of("pad", "input", spec, axis) + extra if extra else dim)
    return (spec.with_shape(shape),)


def _pad(
    xp: Any,
    x: Any,
    *,
    beginning_padding: tuple[int, ...],
    ending_padding: tuple[int, ...],
    mode: str,
    value: float,
) -> Any:
    widths = list(zip(beginning_padding, ending_padding, strict=True))
    if not widths:
        return x
    if mode != "constant":
        return xp.pad(x, widths, mode=PAD_MODES[mode])
    shape = tuple(n + a + z for n, (a, z) in zip(x.shape, widths, strict=True))
    out = xp.full(shape, value, dtype=x.dtype)
    out[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, widths, strict=True))] = x
    return out


entry(
    "pad",
    INPUT,
    params=("beginning_padding", "ending_padding"),
    attrs={
        "beginning_padding": REQUIRED,
        "ending_padding": REQUIRED,
        "mode": "constant",
        "value": 0,
    },
    canon=_pad_canon,
    infer=_pad_infer,
    run=_pad,
    work=moves,
)


def _triangular_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - Canon
    return {
        "upper": flag("triangular", "upper", attrs["upper"]),
        "diagonal": integer("triangular", "diagonal", attrs["diagonal"], None),
    }


def _triangular(xp: Any, x: Any, *, upper: bool, diagonal: int) -> Any:
    return xp.triu(x, diagonal) if upper else xp.tril(x, diagonal)


entry(
    "triangular",
    {"input": of(ANY, 2)},
    attrs={"upper": True, "diagonal": 0},
    canon=_triangular_canon,
    infer=same_as_first,
    run=_triangular,
    work=moves,
)
