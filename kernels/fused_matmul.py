"""A product with what follows it, as one op: ``fused_matmul``.

``a @ b``, plus ``bias``, one value a column; then the elementwise steps of the attribute ``body``,
as those of ``fused``: operand 0 is the sum, operand 1 the op's fourth operand, ``residual``, which
has the result's shape. A body of None does nothing. A graph pass alone makes the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from crossdock.devices.program import Work
from crossdock.kernels import table
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.kernels.spec import Attrs, Leading, OpCall, OpSpec, Specs
from crossdock.runtime.tensor import TensorSpec

NAME = "fused_matmul"


def product_of(call: OpCall) -> OpCall:
    """The product alone: a plain one is its own."""
    if call.op != NAME:
        return call
    constants = Leading(call.constants, 2)
    return replace(call, op="matmul", attrs={}, inputs=call.inputs[:2], constants=constants)


def whole_body(call: OpCall) -> tuple[FusedBody, tuple[int, ...]]:
    """What follows the product, the bias included; and the op's operands that are its further ones.

    Operand 0 of the body is the product.
    """
    there = tuple(i for i in (3, 2) if len(call.inputs) > i and call.inputs[i] is not None)
    body: FusedBody = call.attrs["body"] or FusedBody()
    if 2 not in there:
        return body, there
    return with_bias(body, len(there), call.outputs[0].dtype), there


def with_bias(body: FusedBody, place: int, dtype: str) -> FusedBody:
    """A body over a product, after a bias that is operand ``place`` is added."""
    bias = FusedStep("add", {}, (0, place), dtype, (dtype, dtype))
    moved = {0: -1}  # the sum; results of steps are one place later
    steps = (
        replace(s, args=tuple(a - 1 if a < 0 else moved.get(a, a) for a in s.args))
        for s in body.steps
    )
    return FusedBody((bias, *steps))


def _infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    return table.op("matmul").infer(specs[:2], {})


def _work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    work = table.op("matmul").work(specs[:2], outs, {})
    body: FusedBody | None = attrs["body"]
    steps = (0 if body is None else len(body.steps)) + int(specs[2] is not None)
    read = sum(s.nbytes for s in specs[2:] if s is not None)
    return work + Work(float(steps * outs[0].size), float(read))


def _run(
    xp: Any, a: Any, b: Any, bias: Any = None, residual: Any = None, *, body: FusedBody | None
) -> Any:
    made = table.op("matmul").run(xp, a, b)
    made = made if bias is None else made + bias
    if body is None:
        return made
    operands = (made,) if residual is None else (made, residual)
    return table.op("fused").run(xp, *operands, body=body)


table.define(
    OpSpec(
        name=NAME,
        operands=("a", "b", "bias?", "residual?"),
        infer=_infer,
        run=_run,
        work=_work,
        attrs={"body": None},
        extension=True,
    )
)
