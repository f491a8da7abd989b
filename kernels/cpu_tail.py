"""What follows a product before its result is stored: an elementwise body on whole vectors.

Operand 0 of the body is the value; operand 1, where there is one, an array of the result's shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.kernels.cpu_expression import emit_body
from crossdock.kernels.cpu_rows import RowReader
from crossdock.kernels.cpu_vector import Value, Vector
from crossdock.kernels.fused import FusedBody


@dataclass(frozen=True)
class Tail:
    """An elementwise body; none leaves values as they are."""

    body: FusedBody | None = None

    def __str__(self) -> str:
        return "" if self.body is None else str(self.body)

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
