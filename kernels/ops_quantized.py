"""Quantised products as one op each: ``quantized_conv2d`` and ``quantized_matmul``.

An exact int32 product of bytes less their zero points, plus an int32 bias, is taken to float32,
multiplied by ``scale``, increased by ``offset``, and held between ``min_value`` and ``max_value``.
With ``output_zero_point`` it is then rounded half to even, the zero point is added, and the result
saturates at the zero point's type; without, it is the float32 result. ``bias``, ``scale`` and
``offset`` have one element for all, or one an output channel (the last dimension of a product of
matrices).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels import table
from crossdock.kernels.ops_conv import COMMON, conv2d_canon
from crossdock.kernels.ops_integer import BYTES
from crossdock.kernels.ops_rules import entry, fail, like, number, of
from crossdock.kernels.spec import Attrs, OpCall, Specs
from crossdock.runtime.tensor import TensorSpec

CONV, MATMUL = "quantized_conv2d", "quantized_matmul"
PLAIN = {CONV: "conv_integer", MATMUL: "matmul_integer"}
"""The exact products alone."""
SCALE, ZERO_A, ZERO_B, BIAS, OFFSET, OUT_ZERO = range(2, 8)
"""Where the operands after the first two stand."""
BOUNDS: dict[str, Any] = {"min_value": None, "max_value": None}
"""No bounds."""
EPILOGUE = 4.0
"""Operations on a result after the sum."""


def channel_axis(op: str, attrs: Attrs) -> int:
    """The axis of the result that parameters of several elements run along, from the end."""
    return -3 if op == CONV and attrs["input_layout"] == "nchw" else -1


def zeros_of(op: str) -> tuple[int, int]:
    """Where the zero points of the two factors stand, of a quantised product or an exact one."""
    return (ZERO_A, ZERO_B) if op in PLAIN else (2, 3)


def _product_attrs(attrs: Attrs) -> dict[str, Any]:
    return {k: v for k, v in attrs.items() if k not in BOUNDS}


def product_operands(operands: Sequence[Any]) -> tuple[Any, ...]:
    """What the exact product alone takes of an op's operands."""
    given = [*operands, None, None]
    return given[0], given[1], given[ZERO_A], given[ZERO_B]


def _infer_for(op: str) -> Any:
    def infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
        (out,) = table.op(PLAIN[op]).infer(product_operands(specs), _product_attrs(attrs))
        channels = out.shape[channel_axis(op, attrs)]
        for i, name in ((SCALE, "scale"), (BIAS, "bias"), (OFFSET, "offset")):
            spec = specs[i] if i < len(specs) else None
            if spec is not None and spec.shape not in ((), (1,), (channels,)):
                raise fail(op, f"{name} must have one element or {channels}; it is {spec}")
        zero = specs[OUT_ZERO] if len(specs) > OUT_ZERO else None
        if zero is not None and zero.shape not in ((), (1,)):
            raise fail(op, f"output_zero_point must have one element; it is {zero}")
        return (out.with_dtype("float32" if zero is None else zero.dtype),)

    return infer


def _work_for(op: str) -> Any:
    def work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
        found: Work = table.op(PLAIN[op]).work(product_operands(specs), outs, _product_attrs(attrs))
        read = sum(s.nbytes for s in (specs[SCALE], *specs[BIAS:]) if s is not None)
        return found + Work(EPILOGUE * outs[0].size, float(read))

    return work


def _along(array: Any, axis: int) -> Any:
    """A parameter shaped to broadcast: one element, or one an entry of an axis."""
    return array.reshape(()) if array.size == 1 else array.reshape((-1,) + (1,) * (-1 - axis))


def _run_for(op: str) -> Any:
    def run(
        xp: Any, a: Any, b: Any, scale: Any, a_zero: Any = None, b_zero: Any = None,
        bias: Any = None, offset: Any = None, zero: Any = None, *,
        min_value: float | None, max_value: float | None, **attrs: Any,
    ) -> Any:  # fmt: skip
        axis = channel_axis(op, attrs)
        total = table.op(PLAIN[op]).run(xp, a, b, a_zero, b_zero, **attrs)
        if bias is not None:
            total = total + _along(bias, axis)
        real = total.astype("float32") * _along(scale, axis)
        if offset is not None:
            real = real + _along(offset, axis)
        if min_value is not None or max_value is not None:
            real = xp.clip(real, *ends(min_value, max_value))
        if zero is None:
            return real
        limits, start = np.iinfo(zero.dtype), zero.reshape(()).astype("float32")
        real = xp.clip(xp.rint(real), limits.min - start, limits.max - start)
        return (real + start).astype(zero.dtype)

    return run


def _decompose_for(op: str) -> Any:
    def decompose(
        b: Any, left: Any, right: Any, scale: Any, left_zero: Any = None, right_zero: Any = None,
        bias: Any = None, offset: Any = None, zero: Any = None, *,
        min_value: float | None, max_value: float | None, **attrs: Any,
    ) -> Any:  # fmt: skip
        def along(x: Any) -> Any:
            return b.reshape(x, [] if x.spec.size == 1 else [x.spec.size, *[1] * (-1 - axis)])

        axis = channel_axis(op, attrs)
        names = table.op(PLAIN[op]).operands[2:]
        zeros = dict(zip((n.rstrip("?") for n in names), (left_zero, right_zero), strict=True))
        total = getattr(b, PLAIN[op])(left, right, **zeros, **attrs)
        if bias is not None:
            total = b.add(total, along(bias))
        real = b.mul(b.cast(total, "float32"), along(scale))
        if offset is not None:
            real = b.add(real, along(offset))
        if min_value is not None or max_value is not None:
            real = b.clamp(real, min_value=min_value, max_value=max_value)
        if zero is None:
            return real
        limits = np.iinfo(zero.dtype)
        start = b.cast(b.reshape(zero, []), "float32")
        real = b.add(b.round_even(real), start)
        bounded = b.clamp(real, min_value=int(limits.min), max_value=int(limits.max))
        return b.cast(bounded, zero.dtype)

    return decompose


def _define(op: str, left: str, right: str, rank: tuple[int, int | None], **more: Any) -> None:
    one = frozenset({"float32"})
    entry(
        op,
        {
            left: of(BYTES, *rank),
            right: of(BYTES, *rank),
            "scale": of(one, 0, 1),
            f"{left}_zero_point?": like(left),
            f"{right}_zero_point?": like(right),
            "bias?": of(frozenset({"int32"}), 0, 1),
            "offset?": of(one, 0, 1),
            "output_zero_point?": of(BYTES, 0, 1),
        },
        infer=_infer_for(op),
        run=_run_for(op),
        work=_work_for(op),
        decompose=_decompose_for(op),
        extension=True,
        **more,
    )


def _conv_canon(specs: Specs, attrs: dict[str, Any]) -> dict[str, Any]:
    return _bounds(specs, conv2d_canon(specs, attrs, op=CONV), op=CONV)


def _bounds(
    specs: Specs,  # noqa: ARG001 - Canon
    attrs: dict[str, Any],
    op: str = MATMUL,
) -> dict[str, Any]:
    given = {name: attrs[name] for name in BOUNDS if attrs[name] is not None}
    return attrs | {name: number(op, name, value) for name, value in given.items()}


_define(
    CONV, "input", "filter", (4, 4),
    attrs=COMMON | {"filter_layout": "oihw"} | BOUNDS, canon=_conv_canon,
)  # fmt: skip
_define(MATMUL, "a", "b", (2, None), attrs=BOUNDS, canon=_bounds)


def ends(low: float | None, high: float | None) -> tuple[np.float32, np.float32]:
    """Bounds in float32, infinite where there are none."""
    return (
        np.float32(-math.inf if low is None else low),
        np.float32(math.inf if high is None else high),
    )


def operand(call: OpCall, index: int) -> TensorSpec | None:
    """An operand of a call, None where it is absent."""
    return call.inputs[index] if index < len(call.inputs) else None
