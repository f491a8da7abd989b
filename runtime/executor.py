"""Running a program: segment by segment, in the thread of the caller; see ``queued`` for others."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from crossdock.devices import registry
from crossdock.devices.attended import attend, await_event
from crossdock.devices.base import Buffer, CommandBuffer, Device, Event, Queue, Span
from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime.checks import Checks
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
from crossdock.runtime.plan import HOST, Step
from crossdock.runtime.pool import TURN, Deadline
from crossdock.runtime.program import Instance, Program, Windows
from crossdock.runtime.progress import Progress, leave, look_around, watch
from crossdock.runtime.segments import Segment
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy
from crossdock.runtime.transit import Transit
from crossdock.runtime.turns import Flow, Turn


@dataclass
class Outcome:
    """What a run did: outputs, seconds from feeding to outputs, spans where profiled, and notes.

    Outputs are arrays; a staged graph's may also be lists (sequences) or None (empty optionals).
    ``avoided`` are copies of the plan that were not made, since arrays stayed on their device;
    ``pulled`` has the bytes that crossed a link beside the plan, by link, and ``otherwise`` the
    copies of the plan that crossed another link.
    """

    outputs: dict[str, Any]
    seconds: float
    spans: dict[str, list[Span]] = field(default_factory=dict)
    began: float = 0.0
    notes: tuple[str, ...] = ()
    avoided: tuple[Step, ...] = ()
    pulled: Mapping[str, int] = field(default_factory=dict)
    otherwise: tuple[Step, ...] = ()


def _no_turn() -> Turn:
    return Turn((), Flow())


@dataclass(slots=True)
class Care:
    """What a run does where a device fails, and its turn on the devices.

    ``salvage`` is called with the run before it gives up its memory, when no living device works
    for it any more. ``discard`` takes an instance that must not be used again. A device may take
    ``watchdog`` seconds for any step, and longer where that is predicted. ``checks`` says what is
    looked at. ``turn`` is taken once the inputs are in place. ``transit`` has what inputs and
    outputs do that stay off the host, if any do.
    """

    salvage: Callable[[Run], None] | None = None
    discard: Callable[[], None] | None = None
    watchdog: float = math.inf
    checks: Checks | None = None
    turn: Turn = field(default_factory=_no_turn)
    transit: Transit | None = None


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
        checks = self.care.checks
        self._sampled = frozenset[int]()
        if checks is not None:
            launches = (p.index for p in program.segments if p.index in instance.commands)
            self._sampled = checks.sampled(launches)
        self._checked = checks is not None and checks.transfers
        self._failed = False
        self._turn = self.care.turn
        self._deadline = Deadline()
        self._lock = threading.Lock()

    @property
    def spared(self) -> AbstractSet[int]:
        """The segments that copy nothing between the host and their device in this run."""
        return frozenset() if self.care.transit is None else self.care.transit.spared

    def inline(self, feeds: Mapping[str, Array]) -> Outcome:
        """Run a host-only program in the calling thread."""
        began = time.perf_counter()
        with self._here():
            self._feed(feeds)
            self._take_turn(Deadline())
            for part in self.program.segments:
                self._check()
                self._do(part, ())
            self._turn.end()
            return self._collect(began)

    def conducted(self, feeds: Mapping[str, Array], deadline: Deadline) -> Outcome:
        """Run a program that ``conducts`` in the calling thread."""
        began = time.perf_counter()
        with self._looked_at(deadline), self._here():
            self._feed(feeds)
            self._take_turn(deadline)
            try:
                Conductor(self.program, self._do, self._check, self._wait, self._leave).run()
            except DeviceError as error:
                if not error.device:  # waited for outside of a step
                    others = [d for d in self.program.devices.values() if d.info.id != HOST]
                    blame(error, others[0])
                raise
            self._turn.end()
            return self._collect(began)

    def watched(self, feeds: Mapping[str, Array], deadline: Deadline) -> Outcome:
        """Run segment by segment in the calling thread, looking at what each launch made.

        Raises:
            NotFinite: an op made what is not finite; all steps have run then.
        """
        began = time.perf_counter()
        watcher = Watcher(self.program, self.instance)
        with self._looked_at(deadline), self._here():
            self._feed(feeds)
            self._take_turn(deadline)
            watcher.fed()
            for part in self.program.segments:
                self._check()
                if deadline.over():
                    raise late(self.program, deadline)
                event = self._do(part, ())
                self._queue(part).flush()
                if event is not None:
                    self._wait(event)
                watcher.look(self.program.plan.steps[part.steps[0]])
            watcher.check()
            return self._collect(began)

    @contextmanager
    def _here(self) -> Iterator[None]:
        """A run in the calling thread: whatever ends it, no queue uses the instance any more."""
        try:
            yield
        except BaseException as error:
            for parts in self._by_queue(self.program.segments):
                self._settle(parts[-1])
            self._salvage(error)
            if isinstance(error, Error) or not isinstance(error, Exception):
                raise
            raise failed(self.program, error) from error
        finally:
            self._release()

    @contextmanager
    def _looked_at(self, deadline: Deadline) -> Iterator[None]:
        """Have those who wait, this caller and others, look whether devices hang in this run.

        The host does its part in this thread, where nothing could end it.
        """
        parts = [p for p in self.program.segments if p.device != HOST]
        self.progress.queues, self.progress.end = self._by_queue(parts), self._lose
        self._deadline = deadline
        watch(self.progress)
        try:
            yield
        finally:
            leave(self.progress)

    def _by_queue(self, parts: Iterable[Segment]) -> list[list[Segment]]:
        """Segments in order, a list for each queue: roles may share one."""
        queues: dict[int, list[Segment]] = {}
        for part in parts:
            queues.setdefault(id(self._queue(part)), []).append(part)
        return list(queues.values())

    def _lose(self, error: DeviceLost) -> None:
        """Have the caller end the run, of which a device is lost; from any thread."""
        blame(error, self.program.devices[error.device])
        with self._lock:
            if error.device in self.unsettled:
                return
            self.unsettled.add(error.device)
            self.error = error
        if not self.program.devices[error.device].apart:
            registry.bury(self)  # what hangs may still write to its memory

    def _look(self) -> None:
        """Raise what a device of the run is lost by."""
        look_around()
        error, self.error = self.error, None  # it holds the frames that hold the run
        if error is not None:
            raise error

    def _wait(self, event: Event) -> None:
        """Wait for a device; raises what ends the run meanwhile."""
        await_event(event, self._look_on, TURN)

    def _look_on(self) -> None:
        self._look()
        self._check()
        if self._deadline.over():
            raise late(self.program, self._deadline)

    def _salvage(self, error: BaseException) -> None:
        """Let what a failed run has made be taken, before its memory is gone."""
        if isinstance(error, DeviceError | MemoryError) and self.care.salvage is not None:
            self.care.salvage(self)

    def _release(self) -> None:
        """Give the instance back, or away where a device may still write to it; once."""
        self._turn.end()
        with self._lock:
            give_back, self._give_back = self._give_back, None
        if give_back is None:
            return
        discard = self.care.discard
        devices = self.program.devices.values()
        spoilt = self._failed and (bool(self.unsettled) or any(d.gone for d in devices))
        if not spoilt:
            self.progress.over()
            if self.care.transit is not None:
                self.care.transit.let_go()
        (discard if spoilt and discard is not None else give_back)()

    def _take_turn(self, deadline: Deadline) -> None:
        """Wait for a turn on the devices; raises what ends a run whose caller waits no more."""
        if not self._turn.take(partial(_patiently, deadline)):
            raise late(self.program, deadline)

    def _leave(self, device: Device) -> None:
        """Let another run on a device that this one needs no more."""
        self._turn.leave(device)

    def _stop(self, *, on: bool) -> None:
        for commands in self._all_commands():
            commands.stop(on)

    def _all_commands(self) -> Iterator[CommandBuffer]:
        """Those of the instance, and those over arrays that are used where they lie."""
        yield from self.instance.commands.values()
        if self.care.transit is not None:
            yield from self.care.transit.commands.values()

    def _feed(self, feeds: Mapping[str, Array]) -> None:
        windows = self.program.windows.inputs
        transit = self.care.transit
        for name, target in self.instance.inputs.items():
            if transit is not None and name in transit.fed:
                continue
            window = windows.get(name)
            source = feeds[name] if window is None else window.of(feeds[window.source])
            np.copyto(target, source)

    def _collect(self, began: float) -> Outcome:
        transit, made = self.care.transit, self.instance.outputs
        outputs: Mapping[str, Any] = (
            transit.collected(made)
            if transit is not None and transit.kept
            else collected(self.program.windows, made, {} if transit is None else transit.brought)
        )
        notes = tuple(note for commands in self._all_commands() for note in commands.notes)
        seconds = time.perf_counter() - began
        if transit is None:
            return Outcome(dict(outputs), seconds, self.spans or {}, began, notes)
        return Outcome(
            dict(outputs),
            seconds,
            self.spans or {},
            began,
            notes,
            transit.avoided,
            transit.pulled,
            transit.otherwise,
        )

    def _queue(self, part: Segment) -> Queue:
        return self.program.devices[part.device].queues[part.role]

    def _check(self) -> None:
        what = f"run of {self.program.graph.name!r:.80}"
        if self.cancelled:
            raise Cancelled(f"{what} was cancelled")
        if JOBS.ending:
            raise no_more(what)

    def _do(self, part: Segment, waits: Sequence[Event]) -> Event | None:
        """Give a segment to its queue; errors say which device is to blame."""
        queue = self._queue(part)
        if queue.device.gone:
            check(queue.device)
        self.progress.begun.add(part.index)
        try:
            event = self._given(part, queue, waits)
        except DeviceError as error:
            blame(error, self.program.devices.get(error.device, queue.device))
            raise
        self.progress.taken[part.index] = event
        return event

    def _given(self, part: Segment, queue: Queue, waits: Sequence[Event]) -> Event | None:
        commands = self.instance.commands.get(part.index)
        spans = None
        if self.spans is not None:
            spans = self.spans.setdefault(f"{part.device}/{part.role}", [])
        if commands is None:
            return self._copied(part, queue, waits, spans)
        transit = self.care.transit
        if transit is not None and part.index in transit.commands:
            commands, waits = transit.commands[part.index], [*waits, *transit.ready(part.index)]
        if part.index not in self._sampled:
            return queue.execute(commands, waits, spans)
        from crossdock.runtime.recompute import Recomputed  # ops take long to load

        for event in waits:
            event.wait()
        step = Recomputed(self.program, self.instance, part, queue)
        step.run(lambda: queue.execute(commands, (), spans))
        return None

    def _copied(
        self, part: Segment, queue: Queue, waits: Sequence[Event], spans: list[Span] | None
    ) -> Event | None:
        buffer, other = self.instance.copies[part.index]
        step = self.program.plan.steps[part.steps[0]]
        began = time.perf_counter()
        event: Event | None = None
        whole = False
        if self.care.transit is not None:
            whole, event = self.care.transit.copied(part.index, queue, buffer, waits)
            other = self.care.transit.hosted.get(part.index, other)
        if whole:
            pass
        elif isinstance(other, Buffer):
            check(self.program.devices[step.src])
            event = queue.copy(buffer, other, waits)
        elif self._checked:
            from crossdock.runtime.copies import copied

            copied(queue, part, buffer, other, waits, step.name)
        elif part.role == "upload":
            event = queue.write(buffer, other, waits)
        else:
            event = queue.read(buffer, other, waits)
        if spans is not None and part.index not in self.spared:
            if event is not None:
                queue.flush()
                event.wait()
            spans.append(Span(f"copy {step.name}", began, time.perf_counter()))
        return event

    def _settle(self, part: Segment) -> None:
        """After a failure: wait until the queue touches this run's memory no more."""
        queue = self._queue(part)
        self._failed = True
        if queue.device.gone or JOBS.ending:
            return
        self.progress.settling[id(queue)] = part
        try:
            self._finish(queue)
        except Exception as error:  # noqa: BLE001 - the first failure is what is told
            self.unsettled.add(part.device)
            registry.lose(queue.device, said(error))
        finally:
            del self.progress.settling[id(queue)]

    def _finish(self, queue: Queue) -> None:
        """Wait for all of a queue; raises where its device is lost meanwhile."""
        if queue.device.info.id == HOST:
            queue.finish()
        else:
            attend(queue.finish, self._look, TURN)


def _patiently(deadline: Deadline, done: Callable[[float], bool]) -> bool:
    """Wait within the deadline, and look whether devices hang: what is waited for may not come."""

    def looking(seconds: float) -> bool:
        if done(seconds):
            return True
        look_around()
        return done(0.0)

    return deadline.wait(looking)


def collected(
    windows: Windows, made: Mapping[str, Array], brought: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The outputs that a caller gets: those ``brought``, and copies of what the graph has made."""
    own = brought or {}

    def output(name: str, spec: TensorSpec) -> Array:
        if name in own:
            return own[name]
        return np.array(made[name]) if name in made else np.empty(spec.dims, to_numpy(spec.dtype))

    outputs = {name: output(name, spec) for name, spec in windows.specs.items()}
    for name, window in windows.outputs.items():
        np.copyto(window.of(outputs[window.source]), made[name])
    return outputs


def late(program: Program, deadline: Deadline) -> Error:
    """What a run ends with whose caller waits no more."""
    name, seconds = program.graph.name, deadline.seconds
    return deadline.error(
        name, f"run of {name!r:.80} not done after {seconds} s; the session stays usable"
    )


def failed(program: Program, error: BaseException) -> Error:
    """The error a caller gets for an exception that is not ours."""
    if isinstance(error, MemoryError):
        return OutOfMemory(
            f"run of {program.graph.name!r:.80}: the host has too little memory for it ({error}); "
            "use smaller inputs or constraints.memory",
            device=HOST,
        )
    name = f"{program.graph.name!r:.80}"
    return ExecutionError(f"run of {name} failed: {type(error).__name__}: {error}")
