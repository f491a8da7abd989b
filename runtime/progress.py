"""How far the runs of this process have come, and which devices take too long for a step.

A run is looked at by whoever waits: its own caller, and callers of other runs, who may wait for
what a run holds that nobody waits for any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from crossdock.devices.base import Event
from crossdock.runtime.errors import DeviceHung, DeviceLost
from crossdock.runtime.losses import lost
from crossdock.runtime.program import Program
from crossdock.runtime.segments import Segment

FACTOR = 10.0
"""How many times its predicted seconds a device may take."""
_KNOWN = ("measured", "fitted")
"""Sources of a prediction that are worth anything here."""


class Progress:
    """What the queues were given of a run (``begun``) and took (``taken``, with its event).

    ``queues`` has the segments of each queue in order; ``end`` gives the run up with an error.
    ``settling`` has, by queue, the segment after whose failure the queue's work is waited for, this
    run's and any other's.
    ``floor`` is the least time that any device is allowed, in seconds.
    """

    __slots__ = ("_since", "begun", "end", "floor", "program", "queues", "settling", "taken")

    def __init__(self, program: Program, floor: float) -> None:
        self.program = program
        self.floor = floor
        self.begun: set[int] = set()
        self.taken: dict[int, Event | None] = {}
        self.queues: Sequence[Sequence[Segment]] = ()
        self.settling: dict[int, Segment] = {}
        self.end: Callable[[DeviceLost], None] = _ignored
        # When a segment was first seen at the head of a queue, or a queue settling.
        self._since: dict[tuple[str, int], float] = {}

    def over(self) -> None:
        """Let go of the run, which has ended: the two would keep each other, and memory, alive."""
        self.end = _ignored

    def done(self, index: int) -> bool:
        """Whether a segment is done; never blocks."""
        event = self.taken.get(index)
        return index in self.taken and (event is None or event.done())

    def look(self) -> None:
        """End the run where one of its devices is lost, or takes too long.

        Allowed are ``FACTOR`` times what is predicted for all that the device was given, by all
        runs, and has not done, where a step that nothing is known of counts as ``floor``; and
        ``floor`` at least. The time of a segment counts from when it was first seen to be next, and
        only while this process looks: it may have been stopped.
        """
        for device in self.program.devices.values():
            if device.gone:
                self.end(lost(device))
                return
        now = _awake()
        heads = [("at", part.index, part) for part in filter(None, map(self._head, self.queues))]
        heads += [("settling", key, part) for key, part in tuple(self.settling.items())]
        for how, key, part in heads:
            took = now - self._since.setdefault((how, key), now)
            if took <= self.floor:
                continue
            allowed = sum(run.outstanding(part.device) for run in list(_ACTIVE))
            if took > max(self.floor, allowed):
                self.end(_hung(self.program, part, took))
                return

    def _head(self, parts: Sequence[Segment]) -> Segment | None:
        """What a queue is at; None where it is at nothing of this run, or waits for another."""
        for part in parts:
            if not self.done(part.index):
                ready = part.index in self.begun and all(map(self.done, part.waits))
                return part if ready else None
        return None

    def outstanding(self, device: str) -> float:
        """Seconds allowed for what a device was given by this run and has not done."""
        steps, segments = self.program.plan.steps, self.program.segments
        return sum(
            FACTOR * steps[step].seconds if steps[step].source in _KNOWN else self.floor
            for index in tuple(self.begun)
            if segments[index].device == device and not self.done(index)
            for step in segments[index].steps
        )


def _ignored(_: DeviceLost) -> None:
    """A run that is not looked at yet."""


_ACTIVE: set[Progress] = set()
LONGEST = 0.3
"""Seconds that count at most from one look to the next: who waits looks more often than that."""


class _Clock:
    """Seconds for which somebody has looked; stands while the process is stopped or suspended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._seen = 0.0

    def __call__(self) -> float:
        with self._lock:
            now = time.monotonic()
            self._seen += min(now - self._last, LONGEST)
            self._last = now
            return self._seen


_awake = _Clock()


def watch(progress: Progress) -> None:
    """Count a run among those that are on, until ``leave``."""
    _ACTIVE.add(progress)


def leave(progress: Progress) -> None:
    """The run is over, and no queue works for it."""
    _ACTIVE.discard(progress)


def look_around() -> None:
    """Look at all the runs that are on."""
    for progress in list(_ACTIVE):
        progress.look()


def _hung(program: Program, part: Segment, took: float) -> DeviceHung:
    names = [program.plan.steps[i].name for i in part.steps]
    predicted = sum(program.plan.steps[i].seconds for i in part.steps)
    what = f"{names[0]!r:.80}" + (f" and {len(names) - 1} more steps" if len(names) > 1 else "")
    kind = "the copy of " if program.plan.steps[part.steps[0]].kind == "copy" else ""
    return DeviceHung(
        f"{part.device}/{part.role} has not ended {kind}{what} after {took:.1f} s, and "
        f"{predicted * 1e3:.3f} ms are predicted; set CROSSDOCK_WATCHDOG or compile(watchdog=...) "
        "where steps may take that long",
        device=part.device,
    )
