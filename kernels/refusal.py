"""Reasons with a code: why a kernel, a rule or a device is no candidate for an op.

A reason is a sentence for people. One that is a ``Refusal`` has a code too, which plans and
explanations keep beside it; a plain string is about the op's form.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Self


class Cause(enum.StrEnum):
    """What kind of thing keeps a candidate out."""

    OK = "ok"
    NO_KERNEL = "no-kernel"  # several reasons, or none is known
    DTYPE = "dtype"
    RANK = "rank"
    SIZE = "size"  # too many or too few elements, rows, groups
    FORM = "form"  # attributes or operands that the kernel does not take
    LACKS = "lacks"  # the device lacks a capability
    LIBRARY = "library"
    PINNED = "pinned"
    FORBIDDEN = "forbidden"
    RESIDENCY = "residency"  # a value that may not go there
    MEMORY = "memory"
    BROKEN = "broken"
    PRECISION = "precision"  # loses more than the caller permits
    NOT_ASKED = "not-asked"
    UNREACHABLE = "unreachable"


class Refusal(str):
    """A reason that knows its code."""

    __slots__ = ("cause",)
    cause: Cause

    def __new__(cls, text: str, cause: Cause) -> Self:
        """The sentence, and its code."""
        made = super().__new__(cls, text)
        made.cause = cause
        return made

    def __getnewargs__(self) -> tuple[str, Cause]:  # type: ignore[override]
        """What copies and pickles are made from."""
        return str(self), self.cause


def cause_of(reason: str) -> Cause:
    """The code of a reason; ``ok`` where there is none."""
    if isinstance(reason, Refusal):
        return reason.cause
    return Cause.FORM if reason else Cause.OK


def joined(reasons: Iterable[tuple[str, str]]) -> Refusal:
    """One reason from those of several candidates, by name.

    Its cause is the one they have besides their form: a kernel for other ops is always among them.
    """
    named = list(reasons)
    causes = {cause_of(why) for _, why in named} - {Cause.FORM}
    cause = causes.pop() if len(causes) == 1 else Cause.NO_KERNEL
    text = "; ".join(f"{name}: {why}" for name, why in named) or "no kernel is known"
    return Refusal(text, cause)
