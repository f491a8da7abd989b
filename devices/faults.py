"""Any device with faults on demand: what goes wrong at which call is planned, or drawn by a seed.

For proving that whatever a device does, a run ends with the right answer or with a typed error. The
device is one of the simulated kind, ``sim:NAME``, and computes as the device inside of it does.

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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crossdock.devices import sim
from crossdock.devices.base import (
    Bound,
    Buffer,
    CommandBuffer,
    Device,
    DeviceInfo,
    Event,
    Executable,
    Queue,
    Span,
)
from crossdock.devices.program import Step
from crossdock.runtime.errors import (
    CompileError,
    DeviceError,
    DeviceLost,
    LaunchError,
    OutOfMemory,
)
from crossdock.runtime.tensor import Array

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
GRACE = 0.05
"""Seconds after a fatal fault in which other queues' calls may still come: they were under way."""


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


class FaultEvent(Event):
    """Work that hangs: done at ``due`` on the clock of ``time.monotonic``, or when given up."""

    def __init__(self, device: FaultDevice, due: float, then: Event | None) -> None:
        self.device, self.due, self.then = device, due, then

    def wait(self) -> None:
        """Block until the time is over; raises DeviceLost where the device was given up."""
        self.device.sleep(self.due - time.monotonic())
        if self.then is not None:
            self.then.wait()

    def done(self) -> bool:
        """Whether the time is over, or the device was given up."""
        over = time.monotonic() >= self.due and (self.then is None or self.then.done())
        return over or self.device.released


class FaultCommands(CommandBuffer):
    """A command buffer for each step, so that a fault can come between two."""

    def __init__(self, parts: Sequence[CommandBuffer]) -> None:
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def stop(self, on: bool) -> None:
        """Stop each step's."""
        for part in self.parts:
            part.stop(on)


class FaultQueue(Queue):
    """A queue of the device inside, with faults."""

    def __init__(self, device: FaultDevice, queue: Queue) -> None:
        self.device: FaultDevice = device
        self.role = queue.role
        self._queue = queue
        self._factor = 1.0
        self._hung = 0.0  # when what hangs here ends, on the clock of time.monotonic
        self._late: list[tuple[float, Callable[[], object]]] = []  # said to be done, and was not

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> Event | None:
        """Run the steps one by one; each may fail."""
        assert isinstance(commands, FaultCommands)
        event: Event | None = None
        waits = self._inner(waits)
        for part in commands.parts:

            def step(part: CommandBuffer = part, waits: Sequence[Event] = waits) -> Event | None:
                return self._queue.execute(part, waits, spans)

            event = self._do("execute", step)
            waits = ()
        return event

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> Event | None:
        """Copy an array into a buffer, whole and right unless a fault is due."""
        waits = self._inner(waits)

        def copy(fault: Fault | None = None) -> Event | None:
            if fault is None:
                return self._queue.write(target, source, waits)
            if fault.kind == "short":
                return self._queue.write(target, _half(source), waits)
            return self._queue.write(target, _flipped(source.copy(), fault.bit), waits)

        return self._copy(copy)

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> Event | None:
        """Copy a buffer into an array, whole and right unless a fault is due."""
        waits = self._inner(waits)

        def copy(fault: Fault | None = None) -> Event | None:
            if fault is None:
                return self._queue.read(source, target, waits)
            if fault.kind == "short":
                return self._queue.read(source, _half(target), waits)
            event = self._queue.read(source, target, waits)
            self._await(event)
            _flipped(target, fault.bit)
            return event

        return self._copy(copy)

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> Event | None:
        """Copy from another device's memory, whole and right unless a fault is due."""
        waits = self._inner(waits)

        def copy(fault: Fault | None = None) -> Event | None:
            if fault is None:
                return self._queue.copy(target, source, waits)
            if fault.kind == "short":
                return self._queue.copy(target, source.view(0, source.nbytes // 2), waits)
            self._await(self._queue.copy(target, source, waits))
            arrived = np.empty(source.nbytes, np.uint8)
            self._await(self._queue.read(target, arrived))
            return self._queue.write(target, _flipped(arrived, fault.bit))

        return self._copy(copy)

    def _await(self, event: Event | None) -> None:
        if event is not None:
            self._queue.flush()
            event.wait()

    def _copy(self, copy: Callable[[Fault | None], Event | None]) -> Event | None:
        return self._do("copy", lambda: copy(None), copy)

    def finish(self) -> None:
        """Block until everything submitted is done, and what was said to be, too."""
        self.device.touch()
        self._catch_up(ended=True)
        self.device.sleep(self._hung - time.monotonic())
        self._queue.finish()

    def flush(self) -> None:
        """Hand what was submitted to the device."""
        self.device.touch()
        self._queue.flush()

    def _inner(self, waits: Sequence[Event]) -> list[Event]:
        """The events that the device inside knows; for others the caller waits."""
        for event in waits:
            if isinstance(event, FaultEvent):
                event.wait()
        return [event for event in waits if not isinstance(event, FaultEvent)]

    def _do(
        self,
        call: str,
        work: Callable[[], Event | None],
        damaged: Callable[[Fault], Event | None] | None = None,
    ) -> Event | None:
        self.device.touch()
        self._catch_up()
        for fault in self.device.faults.due(call, self.role):
            if fault.kind == "slow":
                self._factor = fault.factor
            elif fault.kind == "hang":
                self._hung = max(self._hung, time.monotonic() + fault.seconds)
                self.device.hang()
            elif fault.kind == "early":
                self._late.append((time.monotonic() + fault.seconds, work))
                return None
            elif damaged is not None and fault.kind in ("corrupt", "short"):
                work = _with(damaged, fault)
            else:
                self.device.happen(fault)
        return self._timed(work)

    def _timed(self, work: Callable[[], Event | None]) -> Event | None:
        """Do the work as slowly as the queue is now, and not before what hangs ends."""
        if self._hung > time.monotonic() and not self.device.submits:
            self.device.sleep(self._hung - time.monotonic())
        began = time.perf_counter()
        event = work()
        if self._factor > 1.0:
            self._await(event)
            self.device.sleep((self._factor - 1.0) * (time.perf_counter() - began))
        hangs = self._hung > time.monotonic()
        return FaultEvent(self.device, self._hung, event) if hangs else event

    def _catch_up(self, *, ended: bool = False) -> None:
        """Do what was said to be done long ago."""
        now = time.monotonic()
        ready = [work for due, work in self._late if due <= now or (ended and due < math.inf)]
        self._late = [(due, work) for due, work in self._late if work not in ready]
        for work in ready:
            work()


def _with(damaged: Callable[[Fault], Event | None], fault: Fault) -> Callable[[], Event | None]:
    return lambda: damaged(fault)


def _half(array: Array) -> Array:
    half: Array = array.reshape(-1).view(np.uint8)[: array.nbytes // 2]
    return half


def _flipped(array: Array, bit: int) -> Array:
    """The same array, with one bit of its bytes flipped; ``bit`` is taken modulo their number."""
    flat = array.reshape(-1).view(np.uint8)
    if flat.size:
        at = bit % (8 * flat.size)
        flat[at // 8] ^= np.uint8(1 << at % 8)
    return array


class FaultDevice(Device):
    """An opened device, with faults.

    ``after`` counts the calls that came after a fatal fault, or after the device was found to hang,
    but for those within ``GRACE``.
    """

    def __init__(
        self,
        inner: Device,
        plan: Sequence[Fault] | FaultPlan,
        seed: int = 0,
        name: str | None = "faulty",
    ) -> None:
        """``name`` makes it ``sim:NAME``; None leaves the id of the device inside."""
        self.inner = inner
        self.faults = plan if isinstance(plan, FaultPlan) else FaultPlan(plan, seed)
        self.gauge = inner.gauge
        self.info: DeviceInfo = replace(
            inner.info,
            id=inner.info.id if name is None else f"{sim.KIND}:{name}",
            fingerprint=f"{inner.info.fingerprint}|with faults as {name}",
        )
        made: dict[int, FaultQueue] = {}
        for queue in inner.queues.values():
            made.setdefault(id(queue), FaultQueue(self, queue))
        self.queues = {role: made[id(queue)] for role, queue in inner.queues.items()}
        self.submits_at_once = inner.submits_at_once
        self.submits = inner.submits_at_once or "events" in inner.info.caps
        self.after = 0
        self._failed = math.inf  # when a fatal fault happened
        self._hangs = False
        self._sticks: DeviceError | None = None
        self._give_up = threading.Event()

    @property
    def released(self) -> bool:
        """Whether what hangs was given up."""
        return self._give_up.is_set()

    def release(self) -> None:
        """Let the threads go that wait for what hangs; they get DeviceLost."""
        self._give_up.set()

    def sleep(self, seconds: float) -> None:
        """Block for a while; raises DeviceLost where the device is given up meanwhile."""
        left = None if seconds == math.inf else seconds
        if (left is None or left > 0) and self._give_up.wait(left):
            raise DeviceLost(f"{self.info.id} hung, and was given up", device=self.info.id)

    def touch(self) -> None:
        """Note a call; raises what every call does after a fault that stays."""
        if self._failed == math.inf and self._hangs and self.gone:
            self._failed = time.monotonic()
        if time.monotonic() > self._failed + GRACE:
            self.after += 1
        if self._sticks is not None:
            raise self._sticks

    def hang(self) -> None:
        """From when it is noticed on calls are counted; nobody can know before."""
        self._hangs = True

    def fail(self, kind: str) -> None:
        """From now on calls are counted; ``sticky`` and ``lost`` make them fail, too."""
        self._failed = min(self._failed, time.monotonic())
        if kind in ("sticky", "lost"):
            said = f"{self.info.id} answers no more since a {kind} fault, as its fault plan says"
            made = DeviceLost if kind == "lost" else LaunchError
            self._sticks = made(said, device=self.info.id)

    def happen(self, fault: Fault) -> None:
        """Raise what a fault raises."""
        where = f"{self.info.id}: {fault.at} failed, as its fault plan says ({fault.kind})"
        if fault.kind in FATAL:
            self.fail(fault.kind)
        if fault.kind == "oom":
            raise OutOfMemory(where, device=self.info.id)
        if fault.kind == "build":
            raise CompileError(where, log="error: a fault was planned", device=self.info.id)
        if fault.kind == "lost":
            raise DeviceLost(where, device=self.info.id)
        raise LaunchError(where, device=self.info.id)

    def copies_from(self, other: Device) -> str:
        """What the devices inside of the two say."""
        return self.inner.copies_from(other.inner) if isinstance(other, FaultDevice) else ""

    def pinned(self, array: Array) -> Array:
        """What the device inside makes of it."""
        return self.inner.pinned(array)

    def allocate(self, nbytes: int, label: str = "") -> Buffer:
        """Allocate on the device inside."""
        self._call("allocate")
        return self.inner.allocate(nbytes, label)

    def compile(self, step: Step) -> Executable:
        """Compile for the device inside."""
        self._call("compile")
        return self.inner.compile(step)

    def _call(self, call: str) -> None:
        self.touch()
        for fault in self.faults.due(call, ""):
            self.happen(fault)

    def record(self, bound: Sequence[Bound]) -> FaultCommands:
        """Record every step by itself."""
        self.touch()
        return FaultCommands([self.inner.record([item]) for item in bound])

    def rebind(self, commands: CommandBuffer, changed: Mapping[int, Bound]) -> FaultCommands:
        """Record some steps anew."""
        self.touch()
        assert isinstance(commands, FaultCommands)
        parts = enumerate(commands.parts)
        return FaultCommands(
            [self.inner.record([changed[i]]) if i in changed else old for i, old in parts]
        )

    def close(self) -> None:
        """Let go what hangs; the device inside stays open."""
        self.release()

    def reopened(self) -> FaultDevice:
        """The device as another opening finds it: this one, or one that works again after a loss.

        What happened already does not happen again; counts go on.
        """
        if not self.gone:
            return self
        return FaultDevice(self.inner, self.faults, name=self.info.id.partition(":")[2])


def register(
    name: str, inner: Device, plan: Sequence[Fault] | FaultPlan, seed: int = 0
) -> FaultDevice:
    """Make ``sim:NAME`` an opened device with faults; ``sim.unregister`` forgets it.

    It is opened anew where it was lost and ``registry.rescan`` was called since.

    Raises:
        DeviceError: ``inner`` is no opened device.
    """
    if not isinstance(inner, Device):
        raise DeviceError(f"sim:{name}: {inner!r:.80} is no opened device; open one first")
    made = [FaultDevice(inner, plan, seed, name)]

    def opened() -> Device:
        made.append(made.pop().reopened())
        return made[-1]

    sim.adopt(made[0], opened)
    return made[0]
