"""What a caller permits kernels to lose, and what formats they round operands to.

A policy is a permission, not an order: of the kernels that it permits the one that takes least is
taken, which may be one of the ops' own arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import Kernel

HIGHEST = "highest"
POLICIES = (HIGHEST, "high", "fast")
"""From the ops' own arithmetic to the coarsest format; each permits what those before it do."""


@dataclass(frozen=True)
class Format:
    """A format that float32 operands of products may be rounded to; sums stay float32.

    ``error`` bounds the relative error of an operand, ``policy`` is the first that permits the
    format. The largest float32 numbers may become infinite.
    """

    policy: str
    error: float


FORMATS = {
    "tf32": Format("high", 2.0**-10),
    "bfloat16": Format("fast", 2.0**-8),
}
"""TF32 has 11 significant bits and bfloat16 8, both float32's exponents.

Rounded to nearest, TF32 is half as far off; but the tensor units of cards ignore the low bits of a
float32 operand that nobody rounded before, and cuBLAS does not say which of the two it does.
"""


@dataclass(frozen=True)
class Permission:
    """What kernels may be used: ``strict`` permits exact ones alone, ``same_bits`` steady ones."""

    strict: bool = False
    same_bits: bool = False
    precision: str = HIGHEST

    def refuses(self, kernel: Kernel) -> Refusal | None:
        """Why a kernel may not be used; None where it may."""
        if self.strict and not kernel.exact:
            return Refusal("it loses bits that strict=True keeps", Cause.PRECISION)
        if self.same_bits and not kernel.steady:
            return Refusal("its bits hang on how many threads there are", Cause.PRECISION)
        if not permits(self.precision, kernel.rounds):
            return Refusal(
                f"it rounds operands to {kernel.rounds}, which needs "
                f"precision={FORMATS[kernel.rounds].policy!r}",
                Cause.PRECISION,
            )
        return None

    def permitted(self, kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
        """Those of the kernels that may be used, in their order."""
        return tuple(k for k in kernels if self.refuses(k) is None)


PLAIN = Permission()
"""All of the ops' own arithmetic, and fast algorithms within their bounds."""


def permits(policy: str, rounds: str) -> bool:
    """Whether a policy permits rounding operands to a format; "" is their own."""
    return not rounds or POLICIES.index(FORMATS[rounds].policy) <= POLICIES.index(policy)
