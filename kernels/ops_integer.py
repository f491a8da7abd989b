"""matmul_integer and conv_integer: products of 8-bit integers less their zero points, in int32.

A product in floats is exact while no sum can pass 2^24 (float32) or 2^53 (float64). Where a device
has float32 only, the decomposition keeps below that by splitting operands into their low four bits
and the rest; the parts' products are put together in int32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels.ops_conv import (
    COMMON,
    FILTER_AXES,
    conv2d_canon,
    conv2d_filter,
    conv2d_infer,
    conv2d_run,
)
from crossdock.kernels.ops_rules import (
    broadcast,
    broadcast_to,
    entry,
    fail,
    like,
    of,
    show,
    some,
)
from crossdock.kernels.ops_work import traffic
from crossdock.kernels.spec import Attrs, Specs
from crossdock.runtime.tensor import TensorSpec

BYTES = frozenset({"uint8", "int8"})
EXACT = 2**24
"""Whole numbers of a smaller size are exact in float32, and so is every sum of them."""
LOW = 16
"""What the low part of a split operand is less than."""

Product = Callable[[Any, Any], Any]


# --- size of an operand ---------------------------------------------------------------------------


def _range(array: Any) -> tuple[int, int]:
    limits = np.iinfo(array.dtype)
    return int(limits.min), int(limits.max)


def _reach(dtype: str, zero: Any) -> int:
    """The largest size of an element less its zero point; ``zero`` is an array, or None for 0."""
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    nearest, farthest = (0, 0) if zero is None else (int(zero.min()), int(zero.max()))
    return max(abs(low - farthest), abs(high - nearest))


def _any_reach(x: Any, zero: Any) -> int:
    """The same for a builder's operands, whose zero point may be known only at run time."""
    known = None if zero is None else zero.value
    if zero is None or known is not None:
        return _reach(x.dtype, known)
    return int(np.iinfo(x.dtype).max) - int(np.iinfo(x.dtype).min)


def _centred(xp: Any, x: Any, zero: Any, dtype: str) -> Any:  # noqa: ARG001 - array-namespace code
    wide = x.astype(dtype)
    return wide if zero is None else wide - zero.astype(dtype)


def _float_for(terms: int, x: Any, x_zero: Any, w: Any, w_zero: Any) -> str:
    """The narrowest float in which a sum of ``terms`` products of two arrays is exact."""
    bound = terms
    for array, zero in ((x, x_zero), (w, w_zero)):
        low, high = _range(array)
        bound *= max(-low, high) if zero is None else high - low
    return "float32" if bound < EXACT else "float64"


# --- the product from float32 ones ----------------------------------------------------------------


def _parts(b: Any, x: Any, reach: int, split: bool) -> list[tuple[Any, int, int]]:
    """``x`` as a sum of parts: (part, its factor, its largest size)."""
    if not split:
        return [(x, 1, reach)]
    base = b.constant(float(LOW), "float32")
    high = b.floor(b.div(x, base))
    low = b.sub(x, b.mul(high, base))
    return [(high, LOW, -(-reach // LOW)), (low, 1, LOW - 1)]


def _exact_steps(
    b: Any, op: str, sides: Sequence[tuple[Any, Any]], terms: int, product: Product
) -> Any:
    """An exact product of two operands, given with their zero points, as int32."""
    reaches = [_any_reach(x, zero) for x, zero in sides]
    wide = []
    for x, zero in sides:
        x = b.cast(x, "float32")
        wide.append(x if zero is None else b.sub(x, b.cast(zero, "float32")))
    for splits in ((False, False), (False, True), (True, True)):
        left, right = (
            _parts(b, x, reach, split)
            for x, reach, split in zip(wide, reaches, splits, strict=True)
        )
        if terms * max(p[2] for p in left) * max(p[2] for p in right) < EXACT:
            break
    else:
        raise fail(op, f"sums of {terms} products are not exact in parts of float32")
    total = None
    for x, x_factor, _ in left:
        for w, w_factor, _ in right:
            part = b.cast(product(x, w), "int32")
            if x_factor * w_factor > 1:
                part = b.mul(part, b.constant(x_factor * w_factor, "int32"))
            total = part if total is None else b.add(total, part)
    return total


# --- matmul_integer -------------------------------------------------------------------------------


def _matmul_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    op = "matmul_integer"
    a, b, *zeros = specs
    left, right = some(a), some(b)
    x, y = left.shape[-1], right.shape[-2]
    if isinstance(x, int) and isinstance(y, int) and x != y:
        raise fail(
            op, f"the inner sizes of a {left} and b {right} must agree; they are {x} and {y}"
        )
    for name, spec, side in zip(("a", "b"), zeros, (left, right), strict=False):
        if spec is not None:
            broadcast_to(op, f"{name}_zero_point", spec.shape, side.shape)
    batch = broadcast(op, {"a": left.shape[:-2], "b": right.shape[:-2]})
    return (TensorSpec("int32", (*batch, left.shape[-2], right.shape[-1])),)


def _matmul_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001
    return traffic(specs, outs, 2.0 * outs[0].size * some(specs[0]).dims[-1])


def _matmul(xp: Any, a: Any, b: Any, a_zero: Any, b_zero: Any) -> Any:
    dtype = _float_for(a.shape[-1], a, a_zero, b, b_zero)
    product = xp.matmul(_centred(xp, a, a_zero, dtype), _centred(xp, b, b_zero, dtype))
    return _wrapped(product)


def _wrapped(product: Any) -> Any:
    """Whole floats as int32; sums beyond its range wrap, as they do in int32."""
    if product.dtype.name == "float32":
        return product.astype("int32")
    return product.astype("int64").astype("int32")


def _matmul_steps(b: Any, left: Any, right: Any, left_zero: Any, right_zero: Any) -> Any:
    sides = ((left, left_zero), (right, right_zero))
    return _exact_steps(b, "matmul_integer", sides, left.shape[-1], b.matmul)


entry(
    "matmul_integer",
    {
        "a": of(BYTES, 2),
        "b": of(BYTES, 2),
        "a_zero_point?": like("a"),
        "b_zero_point?": like("b"),
    },
    infer=_matmul_infer,
    run=_matmul,
    work=_matmul_work,
    decompose=_matmul_steps,
    extension=True,
)

# --- conv_integer ---------------------------------------------------------------------------------


def _filter_shape(specs: Specs, attrs: Attrs) -> tuple[int, ...]:
    return conv2d_filter("conv_integer", some(specs[1]), FILTER_AXES[attrs["filter_layout"]])


def _conv_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    return conv2d_canon(specs, attrs, op="conv_integer")


def _conv_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    op = "conv_integer"
    x_zero, w_zero = (specs[i] if i < len(specs) else None for i in (2, 3))
    if x_zero is not None and x_zero.size != 1:
        raise fail(op, f"input_zero_point must have one element; it is {x_zero}")
    if w_zero is not None and w_zero.rank:
        axis = attrs["filter_layout"].index("o")
        shape = tuple(s if i == axis else 1 for i, s in enumerate(some(specs[1]).shape))
        if w_zero.shape not in (shape, (1,) * 4):
            raise fail(op, f"filter_zero_point must have shape {show(shape)}; it is {w_zero}")
    (out,) = conv2d_infer(specs[:2], attrs, op=op)
    return (out.with_dtype("int32"),)


def _conv_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    _, per_group, height, width = _filter_shape(specs, attrs)
    return traffic(specs, outs, 2.0 * outs[0].size * per_group * height * width)


def _conv(xp: Any, x: Any, w: Any, x_zero: Any, w_zero: Any, **attrs: Any) -> Any:
    terms = w.size // w.shape[attrs["filter_layout"].index("o")]
    dtype = _float_for(terms, x, x_zero, w, w_zero)
    x, w = _centred(xp, x, x_zero, dtype), _centred(xp, w, w_zero, dtype)
    return _wrapped(conv2d_run(xp, x, w, None, **attrs))


def _conv_steps(b: Any, x: Any, w: Any, x_zero: Any, w_zero: Any, **attrs: Any) -> Any:
    sizes = list(w.shape)
    del sizes[attrs["filter_layout"].index("o")]
    terms = int(np.prod(sizes))
    x_zero = x_zero if x_zero is None or x_zero.rank == 0 else b.reshape(x_zero, [])

    def product(image: Any, weights: Any) -> Any:
        return b.conv2d(image, weights, **attrs)

    return _exact_steps(b, "conv_integer", ((x, x_zero), (w, w_zero)), terms, product)


entry(
    "conv_integer",
    {
        "input": of(BYTES, 4, 4),
        "filter": of(BYTES, 4, 4),
        "input_zero_point?": like("input"),
        "filter_zero_point?": like("filter"),
    },
    attrs=COMMON | {"filter_layout": "oihw"},
    canon=_conv_canon,
    infer=_conv_infer,
    run=_conv,
    work=_conv_work,
    decompose=_conv_steps,
    extension=True,
)
