"""Faults of devices: what goes wrong at which call, planned or drawn by a seed.

==============  ===================================================================================
``oom``         the call raises OutOfMemory
``build``       the compilation raises CompileError
``launch``      the call raises LaunchError; later calls would work, but nobody should make one
``sticky``      the call raises LaunchError, and so does every later call
``lost``        the call raises DeviceLost, and so does every later call
``hang``        what the call asks for is not done for ``seconds``; nor is what follows in its queue
``corrupt``     the copy arrives with bit ``bit`` flipped, or with a chance another one each time
``short``       only the first half of the copy arrives
``slow``        this call of the queue and all that follow take ``factor`` times as long
``early``       the call says that all is done, and does it ``seconds`` later, or never
==============  ===================================================================================
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossdock.runtime.errors import DeviceError

_RUNS = ("execute", "copy")
CALLS: dict[str, tuple[str, ...]] = {
    "oom": ("execute", "copy", "allocate"),
    "build": ("compile",),
    "launch": _RUNS,
    "sticky": _RUNS,
    "lost": (*_RUNS, "allocate", "compile"),
    "hang": _RUNS,
    "corrupt": ("copy",),
    "short": ("copy",),
    "slow": _RUNS,
    "early": _RUNS,
}
"""The calls that a kind of fault can happen at; the first one is where it does by default."""
FATAL = frozenset({"launch", "sticky", "lost", "hang"})
"""Kinds after which the device should not be called any more."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and when.

    It happens at the ``nth`` call of its sort (from 0, once), or at any with ``probability``. The
    calls are "execute" (each step of a command buffer counts), "copy", "allocate" and "compile".
    """

    kind: str
    nth: int | None = None
    probability: float = 0.0
    call: str = ""
    seconds: float = math.inf
    bit: int = 0
    factor: float = 10.0

    def __post_init__(self) -> None:
        calls = CALLS.get(self.kind, ())
        when = (self.nth is not None and self.nth >= 0) != (0.0 < self.probability <= 1.0)
        sound = self.seconds >= 0 and self.bit >= 0 and self.factor >= 1
        if not calls or (self.call and self.call not in calls) or not when or not sound:
            raise DeviceError(
                f"{self} is no fault: kind is one of {', '.join(CALLS)}; give nth from 0 on or a "
                f"probability up to 1; it can happen at {', '.join(calls) or 'no call'}"
            )

    @property
    def at(self) -> str:
        """The sort of call that it happens at."""
        return self.call or CALLS[self.kind][0]


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that happened: its kind, the sort of call and its number."""

    kind: str
    call: str
    nth: int


class FaultPlan:
    """Which faults are due at which call; what happened. Thread-safe.

    Chances are drawn for each queue and sort of call by a generator of its own: which of them fail
    hangs on the seed and not on how threads take turns.
    """

    def __init__(self, faults: Sequence[Fault], seed: int = 0) -> None:
        self.faults = tuple(faults)
        self.seed = seed
        self.injected: list[Injected] = []
        self._counts: dict[str, int] = {}
        self._random: dict[tuple[str, str], random.Random] = {}
        self._lock = threading.Lock()

    def due(self, call: str, role: str) -> list[Fault]:
        """Count a call; the faults that happen at it."""
        with self._lock:
            nth = self._counts.get(call, 0)
            self._counts[call] = nth + 1
            drawn = self._random.setdefault((call, role), random.Random(f"{self.seed}{call}{role}"))
            found = [
                _moved(f, nth) for f in self.faults if f.at == call and _happens(f, nth, drawn)
            ]
            self.injected += [Injected(f.kind, call, nth) for f in found]
            return found

    def count(self, call: str) -> int:
        """How many calls of a sort there were."""
        return self._counts.get(call, 0)


def _happens(fault: Fault, nth: int, drawn: random.Random) -> bool:
    return drawn.random() < fault.probability if fault.nth is None else fault.nth == nth


def _moved(fault: Fault, nth: int) -> Fault:
    """The fault with a bit of its own for each call, where it may happen at several."""
    return fault if fault.nth is not None else replace(fault, bit=fault.bit + 97 * nth)
