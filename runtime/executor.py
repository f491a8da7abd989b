"""Running a program: each queue's worker walks its segments, waiting only where the plan says.

The order in which runs are posted is the same for every queue, so runs of several sessions never
wait for each other in a circle. The first failure reaches every waiter of its run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crossdock.devices.base import Event, Point, Queue, Span, Timeline
from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime.conduct import Conductor
from crossdock.runtime.errors import Cancelled, Error, ExecutionError, OutOfMemory
from crossdock.runtime.finite import Watcher
from crossdock.runtime.pool import TURN, Deadline
from crossdock.runtime.program import Instance, Program, Segment
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


class Run:
    """One execution of a program on one instance, which it gives back exactly once."""

    def __init__(
        self,
        program: Program,
        instance: Instance,
        release: Callable[[], None],
        *,
        profile: bool = False,
    ) -> None:
        self.program, self.instance = program, instance
        self._release = release
        self.spans: dict[str, list[Span]] | None = {} if profile else None
        self.error: BaseException | None = None
        self.cancelled = False
        self._long = program.plan.predicted >= TURN
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
            Conductor(self.program, self._do, self._check).run()
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
            if isinstance(error, Error) or not isinstance(error, Exception):
                raise
            raise failed(self.program, error) from error
        finally:
            self._release()

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
            ended = deadline.wait(self._ended.wait) and not deadline.cancelled
        except BaseException:
            if not self._abandon():
                self._release()
            raise
        if not ended and self._abandon():
            raise late(self.program, deadline)
        try:
            if isinstance(self.error, Error):
                raise self.error
            if self.error is not None:
                raise failed(self.program, self.error) from self.error
            return self._collect(began)
        finally:
            self._release()

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
        made, windows = self.instance.outputs, self.program.windows
        outputs = {
            name: np.array(made[name])
            if name in made
            else np.empty(spec.dims, to_numpy(spec.dtype))
            for name, spec in windows.specs.items()
        }
        for name, window in windows.outputs.items():
            np.copyto(window.of(outputs[window.source]), made[name])
        return Outcome(outputs, time.perf_counter() - began, self.spans or {}, began)

    def _post(self) -> None:
        queues: dict[int, list[Segment]] = {}  # roles may share a queue: one job, in plan order
        for part in self.program.segments:
            queues.setdefault(id(self._queue(part)), []).append(part)
        self._timelines = {key: Timeline() for key in queues}
        self._points: dict[int, Point] = {}
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
        try:
            last: Event | None = None
            for part in parts:
                self._check()
                last = self._do(part, self._waits(part))
                point = self._points.get(part.index)
                if point is not None:
                    self._queue(part).flush()
                    point.signal(last)
            if last is not None:
                self._queue(parts[-1]).flush()
                self._wait(last)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to the caller
            self._fail(error)
            self._settle(parts[0])
        finally:
            self._end()

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
            release = last and self.cancelled
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
            if self.program.segments[index].device == part.device:
                native.append(event)
            else:
                self._wait(event)
        return native

    def _wait(self, event: Event) -> None:
        """Wait for a device, outside of its driver where that may take long.

        A thread that the interpreter ends inside of a driver takes the process down with it, and a
        run that is given up need not be waited for.
        """
        if self._long:
            while not event.done():
                self._check()
                time.sleep(LOOK)
        event.wait()

    def _do(self, part: Segment, waits: Sequence[Event]) -> Event | None:
        queue = self._queue(part)
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
        for timeline in self._timelines.values():
            timeline.fail(error)

    def _settle(self, part: Segment) -> None:
        """After a failure: wait until the queue touches this run's memory no more."""
        if JOBS.ending:
            return
        try:
            self._queue(part).finish()
        except Exception:  # noqa: BLE001 - the device is gone; the first failure is what is told
            return


@dataclass(frozen=True)
class _Job:
    run: Run
    parts: list[Segment]

    def __call__(self) -> None:
        self.run.drive(self.parts)


def late(program: Program, deadline: Deadline) -> Error:
    """What a run ends with whose caller waits no more."""
    name, seconds = program.graph.name, deadline.seconds
    said = f"run of {name!r} not done after {seconds} s; the session stays usable"
    return deadline.error(name, said)


def failed(program: Program, error: BaseException) -> Error:
    """The error a caller gets for an exception that is not ours."""
    if isinstance(error, MemoryError):
        return OutOfMemory(
            f"run of {program.graph.name!r:.80}: the host has too little memory for it ({error}); "
            "use smaller inputs or constraints.memory"
        )
    return ExecutionError(f"run of {program.graph.name!r} failed: {type(error).__name__}: {error}")
