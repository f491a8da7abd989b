"""Runs over the devices' workers: each queue walks its segments, waiting only where the plan says.

The order in which runs are posted is the same for every queue, so runs of several sessions never
wait for each other in a circle. The first failure reaches every waiter of its run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from crossdock.devices import registry
from crossdock.devices.base import Event, Queue
from crossdock.devices.timeline import Point, Timeline
from crossdock.devices.worker import Worker
from crossdock.runtime.errors import DeviceError, DeviceLost, Error
from crossdock.runtime.executor import Care, Outcome, Run, failed, late
from crossdock.runtime.losses import blame
from crossdock.runtime.pool import TURN, Deadline
from crossdock.runtime.program import Instance, Program
from crossdock.runtime.progress import leave, look_around, watch
from crossdock.runtime.segments import Segment
from crossdock.runtime.tensor import Array

LOOK = 0.001
"""Seconds between looks at work of a device that takes long."""
SETTLE_SECONDS = 1.0
"""How long devices that work may go on with a run after another device of it was lost."""
_POST = threading.Lock()


class QueuedRun(Run):
    """A run whose queues are walked by their own threads, while the caller waits."""

    def __init__(
        self,
        program: Program,
        instance: Instance,
        release: Callable[[], None],
        *,
        profile: bool = False,
        care: Care | None = None,
    ) -> None:
        super().__init__(program, instance, release, profile=profile, care=care)
        self._lost = False
        self._driving: set[int] = set()  # the queues whose workers are at this run
        self._long = program.plan.predicted >= TURN
        self._timelines: dict[int, Timeline] = {}
        self._points: dict[int, Point] = {}
        self._left = 0
        self._ended = threading.Event()

    def across(self, feeds: Mapping[str, Array], deadline: Deadline) -> Outcome:
        """Run over the devices' workers and wait for the outputs.

        Giving up, by the deadline, a cancellation or an exception such as KeyboardInterrupt, leaves
        the instance to the workers: the last of them gives it back.
        """
        began = time.perf_counter()
        try:
            self._feed(feeds)
            self._take_turn(deadline)
        except BaseException:
            self._release()
            raise
        deadline.wake = self._ended.set
        try:
            self._post()
            ended = deadline.wait(self._over) and not deadline.cancelled
        except BaseException:
            if not self._abandon():
                self._release()
            raise
        if not ended and self._abandon():
            raise late(self.program, deadline)
        error: BaseException | None = None
        try:
            if self.error is None:
                return self._collect(began)
            self._quieten()
            # An error holds the frames that it went through, and those hold devices' memory.
            error, self.error, self._timelines, self._points = self.error, None, {}, {}
            self._salvage(error)
            if isinstance(error, Error):
                raise error
            raise failed(self.program, error) from error
        finally:
            self._release()
            del error

    def _over(self, seconds: float) -> bool:
        """Wait for the end of the run, and look whether devices hang that have not come to it."""
        if not self._ended.wait(seconds):
            look_around()
        return self._ended.is_set()

    def _lose(self, error: DeviceLost) -> None:
        """End the run where a device of it is lost, whatever its queues are at; from any thread."""
        blame(error, self.program.devices[error.device])
        with self._lock:
            over = self._left == 0 or self._lost
            self._lost = True
            abandoned, self.cancelled = self.cancelled, True
        if over:
            return
        if not self.program.devices[error.device].apart:
            registry.bury(self)  # what hangs may still write to its memory
        self._stop(on=True)
        self._fail(error)
        self._ended.set()
        if abandoned:
            leave(self.progress)
            self.unsettled.add(error.device)
            self._release()

    def _quieten(self) -> None:
        """Wait until no living device works for the run, and free the threads of those that wait.

        A thread that waits for an event of a device that hangs waits for ever: its queue gets
        another one.
        """
        end = time.monotonic() + SETTLE_SECONDS
        leave(self.progress)
        for parts in self.progress.queues if self._lost else ():
            device, queue = self.program.devices[parts[0].device], self._queue(parts[0])
            while id(queue) in self._driving and not device.gone and time.monotonic() < end:
                time.sleep(0.001)
            if id(queue) in self._driving and not device.gone:
                device.renew(parts[0].role)
                taken = all(p.index in self.progress.taken for p in parts if self._begun(p))
                if not (taken and _finished(device.worker(parts[0].role), queue)):
                    self.unsettled.add(device.info.id)

    def _begun(self, part: Segment) -> bool:
        return part.index in self.progress.begun

    def _abandon(self) -> bool:
        """Give the run up, unless it ended meanwhile; the last worker then frees its instance."""
        with self._lock:
            if self._left:
                self.cancelled = True
                self._stop(on=True)
            return self.cancelled

    def _post(self) -> None:
        queues = self._by_queue(self.program.segments)
        self.progress.queues, self.progress.end = queues, self._lose
        self._timelines = {id(self._queue(parts[0])): Timeline() for parts in queues}
        for part in self.program.segments:
            if part.signals:
                self._points[part.index] = self._timelines[id(self._queue(part))].record()
        jobs = [
            (self.program.devices[parts[0].device].worker(parts[0].role), _Job(self, parts))
            for parts in queues
        ]
        self._left = len(jobs)
        if not jobs:
            self._ended.set()
        else:
            watch(self.progress)
        posted = 0
        try:
            with _POST:
                for worker, job in jobs:
                    worker.post(job)
                    posted += 1
        except BaseException as error:
            self._fail(error)
            for _ in jobs[posted:]:
                self._end()
            if not isinstance(error, Error):  # ours reach the caller when the posted jobs end
                raise

    def drive(self, parts: list[Segment]) -> None:
        """Walk one queue's segments (on its worker); never raises."""
        key = id(self._queue(parts[0]))
        try:
            self._driving.add(key)
            last: Event | None = None
            for part in parts:
                self._check()
                waits = self._waits(part) if part.waits else ()
                self._check()
                event = self._do(part, waits)
                # One that copies nothing has none: those before it in the queue need not be done.
                last = last if event is None else event
                point = self._points.get(part.index)
                if point is not None:
                    self._flush(part)
                    point.signal(last)
            if last is not None:
                self._flush(parts[-1])
                self._wait_for(last, parts[-1].device)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to the caller
            self._fail(error)
            if any(map(self._begun, parts)):  # else it may hang at what others gave it
                self._settle(parts[0])
        finally:
            self._driving.discard(key)
            self._end()

    def _flush(self, part: Segment) -> None:
        try:
            self._queue(part).flush()
        except DeviceError as error:
            blame(error, self.program.devices[part.device])
            raise

    def _wait_for(self, event: Event, device: str) -> None:
        """Wait for a device, outside of its driver where that may take long.

        A thread that the interpreter ends inside of a driver takes the process down with it, and a
        run that is given up need not be waited for.
        """
        try:
            if self._long:
                while not event.done():
                    self._check()
                    event.pause(LOOK)
            event.wait()
        except DeviceError as error:
            blame(error, self.program.devices[device])
            raise

    def _end(self) -> None:
        """One queue has done its part; the last one ends the run."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
            release = last and self.cancelled and not self._lost
        if last:
            leave(self.progress)
            if not self._lost:  # else what is lost may still be at work for it
                self._turn.end()
        if release:
            self._stop(on=False)
            self._release()
        if last:
            self._ended.set()

    def _waits(self, part: Segment) -> list[Event]:
        native: list[Event] = []
        for index in part.waits:
            event = self._points[index].event()
            if event is None:
                continue
            device = self.program.segments[index].device
            if device == part.device:
                native.append(event)
            else:
                self._wait_for(event, device)
        return native

    def _finish(self, queue: Queue) -> None:
        queue.finish()  # who waits for this run looks after its queues' threads

    def _fail(self, error: BaseException) -> None:
        """Keep the first failure and wake everybody who waits for a step of this run."""
        with self._lock:
            if self.error is None:
                self.error = error
            self._failed = True
        for timeline in self._timelines.values():
            timeline.fail(error)


def _finished(worker: Worker, queue: Queue) -> bool:
    """Whether a queue's work is done within a while."""
    done = threading.Event()

    def finish() -> None:
        with suppress(Exception):
            queue.finish()
            done.set()

    worker.post(finish)
    return done.wait(SETTLE_SECONDS)


@dataclass(frozen=True)
class _Job:
    run: QueuedRun
    parts: list[Segment]

    def __call__(self) -> None:
        self.run.drive(self.parts)
