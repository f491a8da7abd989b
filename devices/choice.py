"""Several ways to do one step, of which the fastest is to be taken once they have been timed.

They are called algorithms: a library's, or variants of a kernel of our own.
"""

from __future__ import annotations

from collections.abc import Sequence

Timing = float | str | None
"""Seconds that an algorithm takes, why it failed, or None where it was not timed."""

REASONS = 3
"""Algorithms that failed and are told of with their reasons, at most."""
LENGTH = 200
"""Characters of a reason, at most."""


class Choice:
    """What a compiled step leaves to choose among; nothing, unless a kind of step overrides it.

    ``said`` names the algorithm that it runs by, and how that was chosen; "" where there is no
    other.
    """

    said: str = ""

    def algorithms(self) -> int:
        """See ``Device.algorithms``."""
        return 0

    def take(self, index: int) -> None:
        """See ``Device.take_algorithm``."""

    def keep(self, index: int, timings: Sequence[Timing]) -> None:
        """See ``Device.keep_algorithm``."""


def summary(names: Sequence[str], index: int, timings: Sequence[Timing], first: str) -> str:
    """How an algorithm was chosen among those called ``names``, and why others were dropped.

    ``first`` says what the first of them is: that which is taken where nothing is measured.
    """
    seconds = [t for t in timings if isinstance(t, float)]
    failed = [f"{n}: {t[:LENGTH]}" for n, t in zip(names, timings, strict=True)
              if isinstance(t, str)]  # fmt: skip
    before, taken = timings[0], timings[index]
    if len(timings) == 1:
        said = "the only one there is"
    elif index == 0:
        said = f"{first}, which no other of {len(seconds)} timed beats"
    elif isinstance(before, float) and isinstance(taken, float):
        said = f"the fastest of {len(seconds)} timed, {before / taken:.2f} x {first}"
    else:
        said = f"the fastest of {len(seconds)} timed"
    untimed = len(timings) - len(seconds) - len(failed)
    said += f", {untimed} not timed" if untimed and len(timings) > 1 else ""
    if failed:
        said += f"; {len(failed)} dropped ({'; '.join(failed[:REASONS])})"
    return f"{names[index]}, {said}"
