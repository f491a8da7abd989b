"""Looking whether devices do what they say: copies are read back, steps are computed again.

A copy that arrives as other bytes, work that is said to be done and is not, a unit that computes
wrongly: nothing but this notices them. ``verify="transfers"`` reads back what every copy wrote and
compares all bytes, which is stronger than any checksum and costs less; what damages the same bits
on the way back as on the way there goes unnoticed. ``verify="sample:0.01"``
computes one step in a hundred again, by the op's array function in float64, from the operands that
the device had; which steps these are hangs on a seed and on the number of the run.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from crossdock.runtime.errors import PlanError


@dataclass
class Checks:
    """What is looked at: all copies, and a share of the steps. Shared by all runs of a session."""

    transfers: bool = False
    share: float = 0.0
    seed: int = 0
    _runs: itertools.count[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sampled(self, numbers: Iterable[int]) -> frozenset[int]:
        """Those of the next run's launches, by number, that are computed again."""
        with self._lock:
            run = next(self._runs)
        if not self.share:
            return frozenset()
        those = sorted(numbers)
        drawn = np.random.default_rng((self.seed, run)).random(len(those))
        return frozenset(n for n, share in zip(those, drawn, strict=True) if share < self.share)


def checks_of(given: object) -> Checks | None:
    """What ``compile(verify=...)`` asks for; raises PlanError for what is nothing."""
    if given is None:
        return None
    made = Checks()
    for word in given.split(",") if isinstance(given, str) else ("",):
        name, _, number = word.strip().partition(":")
        if name == "transfers" and not number:
            made.transfers = True
        elif name == "sample" and _is_share(number):
            made.share = float(number)
        else:
            raise PlanError(
                f"verify={given!r:.80}: give 'transfers', 'sample:0.01' (the share of the steps, "
                "up to 1), or both with a comma"
            )
    return made


def _is_share(text: str) -> bool:
    try:
        return 0.0 < float(text) <= 1.0
    except ValueError:
        return False
