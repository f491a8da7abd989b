"""Running a program: each queue's worker walks its segments, waiting only where the plan says.

The order in which runs are posted is the same for every queue, so runs of several sessions never
wait for each other in a circle. The first failure reaches every waiter of its run.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crossdock.devices import registry
from crossdock.devices.base import Event, Point, Queue, Span, Timeline
from crossdock.devices.worker import JOBS, Worker, no_more
from crossdock.runtime.conduct import Conductor
from crossdock.runtime.errors import (
    Cancelled,
    DeviceError,
    DeviceLost,
    Error,
    ExecutionError,
    OutOfMemory,
)
from crossdock.runtime.finite import Watcher
from crossdock.runtime.losses import blame, check, said
from crossdock.runtime.lower import Instance, Program, Segment, Windows
from crossdock.runtime.plan import HOST
from crossdock.runtime.pool import TURN, Deadline
from crossdock.runtime.progress import Progress, leave, look_around, watch
from crossdock.runtime.tensor import Array, to_numpy

LOOK = 0.001
"""Seconds between looks at work of a device that takes long."""
_POST = threading.Lock()


@dataclass
class Outcome:
    """What a run did: outputs, seconds from feeding to outputs, spans where profiled.

    Outputs are arrays; a staged graph's may also be lists (sequences) or None (empty optionals).
    """

    outputs: dict[str, Any]
    seconds: float
    spans: dict[str, list[Span]] = field(default_factory=dict)
    began: float = 0.0


@dataclass(frozen=True)
class Care:
    """What a run does where a device fails.

    ``salvage`` is called with the run before it gives up its memory, when no living device works
    for it any more. ``discard`` takes an instance that must not be used again. A device may take
    ``watchdog`` seconds for any step, and longer where that is predicted.
    """

    salvage: Callable[[Run], None] | None = None
    discard: Callable[[], None] | None = None
    watchdog: float = math.inf


SETTLE_SECONDS = 1.0
"""How long devices that work may go on with a run after another device of it was lost."""


class Run:
    """One execution of a program on one instance, which it gives back exactly once."""

    def __init__(
        self,
        program: Program,
        instance: Instance,
        release: Callable[[], None],
        *,
        profile: bool = False,
        care: Care | None = None,
    ) -> None:
        self.program, self.instance = program, instance
        self.care = care or Care()
        self.progress = Progress(program, self.care.watchdog)
        self.unsettled: set[str] = set()  # devices that may still be at work for this run
        self._give_back: Callable[[], None] | None = release
        self.spans: dict[str, list[Span]] | None = {} if profile else None
        self.error: BaseException | None = None
        self.cancelled = False
        self._failed = False
        self._lost = False
        self._driving: set[int] = set()  # the queues whose workers are at this run
        self._long = program.plan.predicted >= TURN
        self._timelines: dict[int, Timeline] = {}
        self._points: dict[int, Point] = {}
        self._left = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def inline(self, feeds: Mapping[str, Array]) -> Outcome:
        """Run a host-only program in the calling thread."""
        began = time.perf_counter()
        with self._here():
            self._feed(feeds)
            for part in self.program.segments:
                self._check()
                self._do(part, ())
            return self._collect(began)

    def conducted(self, feeds: Mapping[str, Array]) -> Outcome:
        """Run a program that ``conducts`` in the calling thread."""
        began = time.perf_counter()
        with self._here():
            self._feed(feeds)
            other = next(d for d in self.program.devices.values() if d.info.id != HOST)
            try:
                Conductor(self.program, self._do, self._check).run()
            except DeviceError as error:
                if not error.device:  # waited for outside of a step
                    blame(error, other)
                raise
            return self._collect(began)

    def watched(self, feeds: Mapping[str, Array], deadline: Deadline) -> Outcome:
        """Run segment by segment in the calling thread, looking at what each launch made.

        Raises:
            NotFinite: an op made what is not finite; all steps have run then.
        """
        began = time.perf_counter()
        watcher = Watcher(self.program, self.instance)
        with self._here():
            self._feed(feeds)
            watcher.fed()
            for part in self.program.segments:
                self._check()
                if deadline.over():
                    raise late(self.program, deadline)
                event = self._do(part, ())
                self._queue(part).flush()
                if event is not None:
                    event.wait()
                watcher.look(self.program.plan.steps[part.steps[0]])
            watcher.check()
            return self._collect(began)

    @contextmanager
    def _here(self) -> Iterator[None]:
        """A run in the calling thread: whatever ends it, no queue uses the instance any more."""
        try:
            yield
        except BaseException as error:
            for part in {id(self._queue(p)): p for p in self.program.segments}.values():
                self._settle(part)
            self._salvage(error)
            if isinstance(error, Error) or not isinstance(error, Exception):
                raise
            raise failed(self.program, error) from error
        finally:
            self._release()

    def _salvage(self, error: BaseException) -> None:
        """Let what a failed run has made be taken, before its memory is gone."""
        if isinstance(error, DeviceError | MemoryError) and self.care.salvage is not None:
            self.care.salvage(self)

    def _release(self) -> None:
        """Give the instance back, or away where a device may still write to it; once."""
        with self._lock:
            give_back, self._give_back = self._give_back, None
        if give_back is None:
            return
        discard = self.care.discard
        spoilt = self._failed and any(d.gone for d in self.program.devices.values())
        (discard if spoilt and discard is not None else give_back)()

    def across(self, feeds: Mapping[str, Array], deadline: Deadline) -> Outcome:
        """Run over the devices' workers and wait for the outputs.

        Giving up, by the deadline, a cancellation or an exception such as KeyboardInterrupt, leaves
        the instance to the workers: the last of them gives it back.
        """
        began = time.perf_counter()
        try:
            self._feed(feeds)
        except BaseException:
            self._release()
            raise
        deadline.wake = self._ended.set
        try:
            self._post()
            ended = deadline.wait(self._look) and not deadline.cancelled
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

    def _look(self, seconds: float) -> bool:
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
        registry.bury(self)  # what hangs may still write to its memory
        self._stop(on=True)
        self._fail(error)
        self._ended.set()
        if abandoned:
            leave(self.progress)
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

    def _stop(self, *, on: bool) -> None:
        for commands in self.instance.commands.values():
            commands.stop(on)

    def _feed(self, feeds: Mapping[str, Array]) -> None:
        windows = self.program.windows.inputs
        for name, target in self.instance.inputs.items():
            window = windows.get(name)
            source = feeds[name] if window is None else window.of(feeds[window.source])
            np.copyto(target, source)

    def _collect(self, began: float) -> Outcome:
        outputs = collected(self.program.windows, self.instance.outputs)
        return Outcome(outputs, time.perf_counter() - began, self.spans or {}, began)

    def _post(self) -> None:
        queues: dict[int, list[Segment]] = {}  # roles may share a queue: one job, in plan order
        for part in self.program.segments:
            queues.setdefault(id(self._queue(part)), []).append(part)
        self.progress.queues, self.progress.end = list(queues.values()), self._lose
        self._timelines = {key: Timeline() for key in queues}
        for part in self.program.segments:
            if part.signals:
                self._points[part.index] = self._timelines[id(self._queue(part))].record()
        jobs = [
            (self.program.devices[parts[0].device].worker(parts[0].role), _Job(self, parts))
            for parts in queues.values()
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

    def _queue(self, part: Segment) -> Queue:
        return self.program.devices[part.device].queues[part.role]

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
                last = self._do(part, waits)
                point = self._points.get(part.index)
                if point is not None:
                    self._flush(part)
                    point.signal(last)
            if last is not None:
                self._flush(parts[-1])
                self._wait_for(last, parts[-1].device)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to the caller
            self._fail(error)
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
                    time.sleep(LOOK)
            event.wait()
        except DeviceError as error:
            blame(error, self.program.devices[device])
            raise

    def _check(self) -> None:
        what = f"run of {self.program.graph.name!r}"
        if self.cancelled:
            raise Cancelled(f"{what} was cancelled")
        if JOBS.ending:
            raise no_more(what)

    def _end(self) -> None:
        """One queue has done its part; the last one ends the run."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
            release = last and self.cancelled and not self._lost
        if last:
            leave(self.progress)
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

    def _do(self, part: Segment, waits: Sequence[Event]) -> Event | None:
        """Give a segment to its queue; errors say which device is to blame."""
        queue = self._queue(part)
        if queue.device.gone:
            check(queue.device)
        self.progress.begun.add(part.index)
        try:
            event = self._given(part, queue, waits)
        except DeviceError as error:
            blame(error, queue.device)
            raise
        self.progress.taken[part.index] = event
        return event

    def _given(self, part: Segment, queue: Queue, waits: Sequence[Event]) -> Event | None:
        commands = self.instance.commands.get(part.index)
        spans = None
        if self.spans is not None:
            spans = self.spans.setdefault(f"{part.device}/{part.role}", [])
        if commands is not None:
            return queue.execute(commands, waits, spans)
        buffer, array = self.instance.copies[part.index]
        began = time.perf_counter()
        if part.role == "upload":
            event = queue.write(buffer, array, waits)
        else:
            event = queue.read(buffer, array, waits)
        if spans is not None:
            if event is not None:
                queue.flush()
                event.wait()
            name = self.program.plan.steps[part.steps[0]].name
            spans.append(Span(f"copy {name}", began, time.perf_counter()))
        return event

    def _fail(self, error: BaseException) -> None:
        """Keep the first failure and wake everybody who waits for a step of this run."""
        with self._lock:
            if self.error is None:
                self.error = error
            self._failed = True
        for timeline in self._timelines.values():
            timeline.fail(error)

    def _settle(self, part: Segment) -> None:
        """After a failure: wait until the queue touches this run's memory no more."""
        queue = self._queue(part)
        self._failed = True
        if queue.device.gone or JOBS.ending:
            return
        try:
            queue.finish()
        except Exception as error:  # noqa: BLE001 - the first failure is what is told
            self.unsettled.add(part.device)
            registry.lose(queue.device, said(error))


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
    run: Run
    parts: list[Segment]

    def __call__(self) -> None:
        self.run.drive(self.parts)


def collected(windows: Windows, made: Mapping[str, Array]) -> dict[str, Array]:
    """Copies of the outputs that a caller gets, from those of the graph that was run."""
    outputs = {
        name: np.array(made[name]) if name in made else np.empty(spec.dims, to_numpy(spec.dtype))
        for name, spec in windows.specs.items()
    }
    for name, window in windows.outputs.items():
        np.copyto(window.of(outputs[window.source]), made[name])
    return outputs


def late(program: Program, deadline: Deadline) -> Error:
    """What a run ends with whose caller waits no more."""
    name, seconds = program.graph.name, deadline.seconds
    return deadline.error(
        name, f"run of {name!r} not done after {seconds} s; the session stays usable"
    )


def failed(program: Program, error: BaseException) -> Error:
    """The error a caller gets for an exception that is not ours."""
    if isinstance(error, MemoryError):
        return OutOfMemory(
            f"run of {program.graph.name!r:.80}: the host has too little memory for it ({error}); "
            "use smaller inputs or constraints.memory",
            device=HOST,
        )
    return ExecutionError(f"run of {program.graph.name!r} failed: {type(error).__name__}: {error}")
