"""Fused elementwise chains: one op ``fused`` whose attribute ``body`` holds the steps.

The iteration space is the result's shape; operands broadcast to it by numpy's rules. Every device
runs the same body: array code through the op table, compiled code through the C expressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels import table
from crossdock.kernels.expression import Expr, parse
from crossdock.kernels.spec import REQUIRED, Attrs, OpCall, OpSpec, Specs
from crossdock.runtime.tensor import TensorSpec, to_numpy

FUSIBLE = frozenset({"float32", "float16", "bfloat16"})
"""Element types of products, convolutions and attentions that passes fuse with what is around."""


@dataclass(frozen=True)
class FusedStep:
    """One elementwise op of a body.

    ``args`` are operand indices (>= 0) or earlier steps (``-1 - k`` for step k); ``dtype`` is the
    element type of the step's result; ``inputs`` the element types of its arguments.
    """

    op: str
    attrs: Attrs
    args: tuple[int, ...]
    dtype: str
    inputs: tuple[str, ...]

    def expr(self) -> Expr:
        """The step's parsed expression over its own arguments."""
        text = table.op(self.op).expression(self.attrs)
        assert text is not None, self.op
        return parse(text, self.attrs)

    def __str__(self) -> str:
        names = ",".join(f"x{a}" if a >= 0 else f"t{-1 - a}" for a in self.args)
        extra = "".join(f",{k}={v}" for k, v in sorted(self.attrs.items()))
        return f"{self.op}:{self.dtype}({names}{extra})"


@dataclass(frozen=True)
class FusedBody:
    """Steps in order; the last one's value is the result."""

    steps: tuple[FusedStep, ...] = field(default_factory=tuple)

    @property
    def dtype(self) -> str:
        """Element type of the result."""
        return self.steps[-1].dtype

    def retyped(self, types: Mapping[str, str]) -> FusedBody:
        """The same steps on other element types; attributes that name a type are of them, too."""

        def named(value: Any) -> Any:
            return types.get(value, value) if isinstance(value, str) else value

        steps = (
            replace(
                step,
                attrs={name: named(value) for name, value in step.attrs.items()},
                dtype=named(step.dtype),
                inputs=tuple(map(named, step.inputs)),
            )
            for step in self.steps
        )
        return FusedBody(tuple(steps))

    @cached_property
    def _text(self) -> str:
        return "+".join(str(step) for step in self.steps)

    def __str__(self) -> str:
        return self._text


def body_of(call: OpCall) -> FusedBody | None:
    """The body of a fused op, or a one-step body of a plain elementwise op; None for others."""
    if call.op == "fused":
        body = call.attrs["body"]
        assert isinstance(body, FusedBody)
        return body
    if table.op(call.op).expression(call.attrs) is None or len(call.outputs) != 1:
        return None
    specs = [s for s in call.inputs if s is not None]
    if len(specs) != len(call.inputs):
        return None
    step = FusedStep(
        call.op,
        call.attrs,
        tuple(range(len(specs))),
        call.outputs[0].dtype,
        tuple(s.dtype for s in specs),
    )
    return FusedBody((step,))


def _infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    body: FusedBody = attrs["body"]
    shape = np.broadcast_shapes(*(s.dims for s in specs if s is not None))
    return (TensorSpec(body.dtype, tuple(int(d) for d in shape)),)


def _work(specs: Specs, outs: Sequence[TensorSpec], attrs: Attrs) -> Work:
    body: FusedBody = attrs["body"]
    read = sum(s.nbytes for s in specs if s is not None)
    return Work(float(len(body.steps) * outs[0].size), float(read), float(outs[0].nbytes))


def _run(xp: Any, *arrays: Any, body: FusedBody) -> Any:
    values: list[Any] = []
    for step in body.steps:
        args = [arrays[a] if a >= 0 else values[-1 - a] for a in step.args]
        value = table.op(step.op).run(xp, *args, **step.attrs)
        values.append(value.astype(to_numpy(step.dtype), copy=False))
    return values[-1]


table.define(
    OpSpec(
        name="fused",
        operands=("inputs*",),
        infer=_infer,
        run=_run,
        work=_work,
        attrs={"body": REQUIRED},
        extension=True,
    )
)
