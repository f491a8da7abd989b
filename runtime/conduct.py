"""A run that its caller conducts: no other thread is woken to give the device its work.

Waking a thread takes longer than handing a command to a driver, so where the host shares a graph
with one device that takes commands without waiting, the caller hands over whatever is ready, does
the host's part of the work, and hands over what that has made ready. Only what the device has still
to do then is waited for in another thread, since a driver may not come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from crossdock.devices.base import Device, Event
from crossdock.runtime.plan import HOST
from crossdock.runtime.program import Program
from crossdock.runtime.segments import Segment

Do = Callable[[Segment, Sequence[Event]], Event | None]
"""Does a segment, or hands it over: then the event says when it is done."""


def conducts(program: Program) -> bool:
    """Whether one thread can run a program: on the host, and one device that it never waits for."""
    others = {s.device for s in program.segments} - {HOST}
    return len(others) == 1 and all(program.devices[d].submits_at_once for d in others)


class Conductor:
    """One run in the calling thread.

    Segments of a queue go in order. What is handed over depends only on what was handed over before
    it, by whichever run: runs of several threads on one device never wait for each other in a
    circle. ``wait`` waits for an event that is not done, and raises what ends the run meanwhile.
    ``leave`` is called once with the device, when only the host has still to compute.
    """

    def __init__(
        self,
        program: Program,
        do: Do,
        check: Callable[[], None],
        wait: Callable[[Event], None],
        leave: Callable[[Device], None],
    ) -> None:
        self._segments, self._do, self._check = program.segments, do, check
        self._host = [s for s in program.segments if s.device == HOST]
        other = next(s.device for s in program.segments if s.device != HOST)
        self._device, self._wait, self._leave = program.devices[other], wait, leave
        self._queues: dict[str, deque[Segment]] = {}
        for part in program.segments:
            if part.device != HOST:
                self._queues.setdefault(part.role, deque()).append(part)
        self._events: dict[int, Event | None] = {}
        self._last: dict[str, Event] = {}

    def run(self) -> None:
        """Do everything; returns when all of it is done."""
        self._check()
        self._hand_over()
        for part in self._host:
            self._check()
            for index in part.waits:
                event = self._events[index]
                if event is not None:
                    self._wait(event)
            if not any(self._queues.values()) and all(e.done() for e in self._last.values()):
                self._leave(self._device)
            self._events[part.index] = self._do(part, ())
            self._hand_over()
        for event in reversed(
            self._last.values()
        ):  # once the newest is done, the others mostly are
            self._wait(event)

    def _hand_over(self) -> None:
        """Hand the device every segment whose inputs are made or handed over."""
        queues = list(self._queues.values())
        while any(self._advance(queue) for queue in queues):
            pass

    def _advance(self, queue: deque[Segment]) -> bool:
        moved = False
        while queue and all(w in self._events for w in queue[0].waits):
            part = queue.popleft()
            known = (self._events[w] for w in part.waits)
            event = self._do(part, [e for e in known if e is not None])
            if event is not None:
                self._last.pop(part.role, None)
                self._last[part.role] = event
            # Without an event it is done, which those before it in the queue need not be.
            self._events[part.index] = self._last.get(part.role)
            moved = True
        return moved
