"""A convolution and what follows it, as one op: ``fused_conv2d``.

The attribute ``body`` holds elementwise steps as those of ``fused``: operand 0 is the convolution's
result, operand 1 the op's fourth operand, ``residual``, which has the result's shape. A step
``scalar`` is a number. Both ops are made by a graph pass alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from crossdock.devices.program import Work
from crossdock.kernels import table
from crossdock.kernels.fused import FusedBody
from crossdock.kernels.ops_conv import COMMON
from crossdock.kernels.spec import REQUIRED, Attrs, Leading, OpCall, OpSpec, Specs
from crossdock.runtime.tensor import TensorSpec

NAME = "fused_conv2d"
SCALAR = "scalar"
INTERNAL = frozenset({"fused", NAME, SCALAR, "fused_matmul", "fused_attention", "by_image"})
"""Ops that graph passes make and no builder offers."""


def conv_of(call: OpCall) -> OpCall:
    """The convolution alone: a plain one is its own."""
    if call.op != NAME:
        return call
    attrs = {key: value for key, value in call.attrs.items() if key != "body"}
    constants, inputs = Leading(call.constants, 3), call.inputs[:3]
    return replace(call, op="conv2d", attrs=attrs, inputs=inputs, constants=constants)


def body_of(call: OpCall) -> FusedBody | None:
    """What follows the convolution, None where nothing does."""
    body = call.attrs.get("body")
    assert body is None or isinstance(body, FusedBody)
    return body


def residual_of(call: OpCall) -> TensorSpec | None:
    """The operand of the result's shape, where there is one."""
    return call.inputs[3] if len(call.inputs) > 3 else None


def _infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    conv = {key: value for key, value in attrs.items() if key != "body"}
    return table.op("conv2d").infer(specs[:3], conv)


def _work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    work = table.op("conv2d").work(specs[:3], outs, attrs)
    read = sum(s.nbytes for s in specs[3:] if s is not None)
    return work + Work(float(len(attrs["body"].steps) * outs[0].size), float(read))


def _run(
    xp: Any, x: Any, w: Any, bias: Any, residual: Any = None, *, body: FusedBody, **attrs: Any
) -> Any:
    made = table.op("conv2d").run(xp, x, w, bias, **attrs)
    operands = (made,) if residual is None else (made, residual)
    return table.op("fused").run(xp, *operands, body=body)


table.define(
    OpSpec(
        name=NAME,
        operands=("input", "filter", "bias?", "residual?"),
        infer=_infer,
        run=_run,
        work=_work,
        attrs=COMMON | {"filter_layout": "oihw", "body": REQUIRED},
        extension=True,
    )
)


def _scalar_spec(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    return (TensorSpec("float32", ()),)


def _no_work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:  # noqa: ARG001
    return Work()


def _scalar(xp: Any, *, value: float) -> Any:
    return xp.asarray(value, dtype="float32")


table.define(
    OpSpec(
        name=SCALAR,
        operands=(),
        infer=_scalar_spec,
        run=_scalar,
        work=_no_work,
        attrs={"value": REQUIRED},
        expr="{value}",
        extension=True,
    )
)
