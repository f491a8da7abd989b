"""What follows a convolution before its result is stored: an elementwise body on whole vectors.

Operand 0 of the body is the value; operand 1, where there is one, an array of the result's shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.devices.program import In, Slot
from crossdock.kernels.cpu_expression import calls_library, emit_body, obstacle
from crossdock.kernels.cpu_rows import RowReader
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.fused import FusedBody
from crossdock.kernels.fused_conv import body_of, residual_of
from crossdock.kernels.spec import OpCall


@dataclass(frozen=True)
class Epilogue:
    """An elementwise body; none leaves values as they are."""

    body: FusedBody | None = None

    def __str__(self) -> str:
        return "" if self.body is None else str(self.body)

    def __bool__(self) -> bool:
        return self.body is not None

    @property
    def reads(self) -> bool:
        """Whether the body has a second operand."""
        return self.body is not None and any(1 in step.args for step in self.body.steps)

    def apply(self, v: Vector, value: Value, other: str, count: str | None) -> Value:
        """The body of a vector; ``other`` is the second operand's address.

        ``count`` is how many of its lanes may be read, None where all.
        """
        if self.body is None:
            return value
        operands = [value]
        if self.reads and count is None:
            operands.append(v.load(other, "float32"))
        elif self.reads:
            assert count is not None
            reader = RowReader(v.code, v, count, 1, "1")
            operands.append(reader.load_masked(other, 0, reader.mask(0)))
        return emit_body(v, self.body, operands)


def epilogue_of(call: OpCall) -> tuple[Epilogue, Slot]:
    """What follows a convolution, and where its second operand lies (any where there is none)."""
    return Epilogue(body_of(call)), In(0 if residual_of(call) is None else 3)


def epilogue_obstacle(call: OpCall) -> str | None:
    """Why what follows a convolution cannot be done on its vectors, or None."""
    body = body_of(call)
    for step in () if body is None else body.steps:
        if any(dtype != "float32" for dtype in (*step.inputs, step.dtype)):
            return f"{step.op} is not of float32 alone"
        if (why := obstacle(step)) is not None:
            return why
        if calls_library(step):
            return f"{step.op} calls the C library for each element"
    return None
