"""Ops on the bits of integers, and the view of a tensor's bits as another type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crossdock.devices.program import Work
from crossdock.kernels.ops_elementwise import broadcast_pair
from crossdock.kernels.ops_rules import (
    ANY,
    choice,
    entry,
    fail,
    like,
    of,
    same_as_first,
    some,
)
from crossdock.kernels.ops_work import pointwise
from crossdock.kernels.spec import REQUIRED, Specs
from crossdock.runtime.tensor import DTYPES, TensorSpec, to_numpy

INTEGER = frozenset({"uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"})


def _pair(name: str, run: Callable[..., Any]) -> None:
    entry(
        name,
        {"a": of(INTEGER), "b": like("a")},
        infer=broadcast_pair(name),
        run=run,
        work=pointwise(),
        expr=f"{name.replace('bitwise', 'bit')}({{0}}, {{1}})",
        extension=True,
    )


def _shift_left(xp: Any, a: Any, b: Any) -> Any:
    """Numpy's shift; too far a shift (or a negative one), which C leaves open, gives 0."""
    near = _near(a, b)
    shifted = xp.left_shift(a, xp.where(near, b, xp.zeros_like(b)))
    return xp.where(near, shifted, xp.zeros_like(shifted))


def _shift_right(xp: Any, a: Any, b: Any) -> Any:
    """The arithmetic shift; too far a shift (or a negative one) leaves the sign alone."""
    near = _near(a, b)
    shifted = xp.right_shift(a, xp.where(near, b, xp.zeros_like(b)))
    if a.dtype.kind == "u":
        return xp.where(near, shifted, xp.zeros_like(shifted))
    sign = xp.where(a < 0, xp.full_like(a, -1), xp.zeros_like(a))
    return xp.where(near, shifted, sign)


def _near(a: Any, b: Any) -> Any:
    """Where a shift is less than the type's width."""
    return (b >= 0) & (b < 8 * a.dtype.itemsize)


_pair("bitwise_and", lambda xp, a, b: xp.bitwise_and(a, b))
_pair("bitwise_or", lambda xp, a, b: xp.bitwise_or(a, b))
_pair("bitwise_xor", lambda xp, a, b: xp.bitwise_xor(a, b))
_pair("shift_left", _shift_left)
_pair("shift_right", _shift_right)

entry(
    "bitwise_not",
    {"input": of(INTEGER)},
    infer=same_as_first,
    run=lambda xp, x: xp.invert(x),
    work=pointwise(),
    expr="bit_not({0})",
    extension=True,
)

# --- bit_cast -------------------------------------------------------------------------------------

_FLOATS = {2: "float16", 4: "float32", 8: "float64"}


def _bit_cast_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    """``width``, in bytes, keeps the meaning where floats are computed in another type."""
    spec = some(specs[0])
    target = choice("bit_cast", "data_type", attrs["data_type"], DTYPES)
    width = to_numpy(spec.dtype).itemsize
    if to_numpy(target).itemsize != width:
        raise fail("bit_cast", f"data_type must be as wide as the input's {spec.dtype}; {target}")
    return {"data_type": target, "width": width}


def _bit_cast(xp: Any, x: Any, *, data_type: str, width: int) -> Any:  # noqa: ARG001 - run
    if x.dtype.itemsize != width:
        x = x.astype(_FLOATS[width])
    target = to_numpy(data_type)
    if target.itemsize == width:
        return x.view(target)
    return x.view(_FLOATS[width]).astype(target)


entry(
    "bit_cast",
    {"input": of(ANY)},
    params=("data_type",),
    attrs={"data_type": REQUIRED, "width": None},
    canon=_bit_cast_canon,
    infer=lambda specs, attrs: (TensorSpec(attrs["data_type"], some(specs[0]).shape),),
    run=_bit_cast,
    work=lambda specs, outs, attrs: Work(),  # noqa: ARG005 - WorkFn
    alias=True,
    extension=True,
)
