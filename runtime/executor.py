"""Running a program: each queue's worker walks its segments, waiting only where the plan says.

The order in which runs are posted is the same for every queue, so runs of several sessions never
wait for each other in a circle. The first failure reaches every waiter of its run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from crossdock.devices.base import Event, Point, Queue, Span, Timeline
from crossdock.runtime.errors import Cancelled, Error, ExecutionError, Timeout
from crossdock.runtime.lower import Instance, Program, Segment
from crossdock.runtime.tensor import Array

_POST = threading.Lock()


@dataclass
class Outcome:
    """What a run did: outputs, seconds from feeding to outputs, spans where profiled."""

    outputs: dict[str, Array]
    seconds: float
    spans: dict[str, list[Span]] = field(default_factory=dict)
    began: float = 0.0


class Run:
    """One execution of a program on one instance."""

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
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def inline(self, feeds: Mapping[str, Array]) -> Outcome:
        """Run a host-only program in the calling thread."""
        began = time.perf_counter()
        try:
            self._feed(feeds)
            for part in self.program.segments:
                self._do(part, ())
            return self._collect(began)
        except Error:
            raise
        except Exception as error:
            raise _failed(self.program, error) from error
        finally:
            self._release()

    def across(self, feeds: Mapping[str, Array], timeout: float | None = None) -> Outcome:
        """Run over the devices' workers and wait for the outputs."""
        began = time.perf_counter()
        try:
            self._feed(feeds)
        except BaseException:
            self._release()
            raise
        self._post()
        if not self._ended.wait(timeout) and self._abandon():
            raise Timeout(
                f"run of {self.program.graph.name!r} not done after {timeout} s; the session "
                "stays usable"
            )
        try:
            if isinstance(self.error, Error):
                raise self.error
            if self.error is not None:
                raise _failed(self.program, self.error) from self.error
            return self._collect(began)
        finally:
            self._release()

    def _abandon(self) -> bool:
        """Give the run up, unless it ended meanwhile; the last worker then frees its instance."""
        with self._lock:
            if self._left:
                self.cancelled = True
            return self.cancelled

    def _feed(self, feeds: Mapping[str, Array]) -> None:
        for name, target in self.instance.inputs.items():
            np.copyto(target, feeds[name])

    def _collect(self, began: float) -> Outcome:
        outputs = {name: np.array(view) for name, view in self.instance.outputs.items()}
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
        self._left = len(queues)
        if not queues:
            self._ended.set()
        with _POST:
            for parts in queues.values():
                worker = self.program.devices[parts[0].device].worker(parts[0].role)
                worker.post(_Job(self, parts))

    def _queue(self, part: Segment) -> Queue:
        return self.program.devices[part.device].queues[part.role]

    def drive(self, parts: list[Segment]) -> None:
        """Walk one queue's segments (on its worker); never raises."""
        try:
            last: Event | None = None
            for part in parts:
                if self.cancelled:
                    raise Cancelled(f"run of {self.program.graph.name!r} was cancelled")
                last = self._do(part, self._waits(part))
                point = self._points.get(part.index)
                if point is not None:
                    self._queue(part).flush()
                    point.signal(last)
            if last is not None:
                self._queue(parts[-1]).flush()
                last.wait()
        except BaseException as error:
            self._fail(error, parts[0])
        finally:
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self._ended.set()
                    if self.cancelled:
                        self._release()

    def _waits(self, part: Segment) -> list[Event]:
        native: list[Event] = []
        for index in part.waits:
            event = self._points[index].event()
            if event is None:
                continue
            if self.program.segments[index].device == part.device:
                native.append(event)
            else:
                event.wait()
        return native

    def _do(self, part: Segment, waits: list[Event] | tuple[()]) -> Event | None:
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

    def _fail(self, error: BaseException, part: Segment) -> None:
        with self._lock:
            if self.error is None:
                self.error = error
        for timeline in self._timelines.values():
            timeline.fail(error)
        try:
            self._queue(part).finish()
        except Error:
            return  # the device is gone; the first failure is what the caller sees


@dataclass(frozen=True)
class _Job:
    run: Run
    parts: list[Segment]

    def __call__(self) -> None:
        self.run.drive(self.parts)


def _failed(program: Program, error: BaseException) -> ExecutionError:
    """The error a caller gets for an exception that is not ours."""
    return ExecutionError(f"run of {program.graph.name!r} failed: {type(error).__name__}: {error}")


class Pool:
    """Instances of a program: made at need up to ``limit``, then runs wait for a free one."""

    def __init__(self, make: Callable[[], Instance], limit: int) -> None:
        self._make, self._limit = make, limit
        self._free: deque[Instance] = deque()
        self._made = 0
        self._change = threading.Condition()

    def take(self, timeout: float | None = None) -> Instance:
        """A free instance; raises Timeout after ``timeout`` seconds without one."""
        with self._change:
            while not self._free:
                if self._made < self._limit:
                    self._made += 1
                    break
                if not self._change.wait(timeout):
                    raise Timeout(f"no free slot for a run after {timeout} s")
            else:
                return self._free.pop()
        try:
            return self._make()
        except BaseException:
            with self._change:
                self._made -= 1
                self._change.notify()
            raise

    def give(self, instance: Instance) -> None:
        """Put an instance back."""
        with self._change:
            self._free.append(instance)
            self._change.notify()
