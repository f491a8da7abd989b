"""Running work on a device under watch, and taking samples of many quantities in turns.

Everything runs on the device's own queue threads, so that a probe may share an open device with
sessions. A device that raises or does not answer ends in a ``Fault`` that names it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from crossdock.devices.base import Bound, Buffer, CommandBuffer, Device, Event
from crossdock.devices.machine import Measured
from crossdock.devices.program import Step
from crossdock.runtime.errors import DeviceError
from crossdock.runtime.tensor import Array

T = TypeVar("T")
PATIENCE_S = 20.0
"""Seconds after which a device that does not answer has failed."""


class Fault(DeviceError):
    """A device failed while it was probed; ``device`` is its id."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(reason)
        self.device = device


def said(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    name = "" if isinstance(error, DeviceError) and text else f"{type(error).__name__}: "
    return f"{name}{text or 'no message'}"


def begin(post: Callable[[Callable[[], None]], None], job: Callable[[], T]) -> Future[T]:
    """Hand ``job`` to another thread through ``post``; ``outcome`` waits for it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(job())
        except BaseException as error:  # noqa: BLE001 - the one who waits gets it
            future.set_exception(error)

    post(run)
    return future


def outcome(device: str, future: Future[T]) -> T:
    """The result of a device's job; raises Fault."""
    try:
        error = future.exception(PATIENCE_S)
    except TimeoutError:
        raise Fault(device, f"{device} did not answer for {PATIENCE_S:g} s") from None
    if error is not None:
        raise Fault(device, said(error)) from error
    return future.result()


@dataclass(eq=False)
class Bench:
    """An open device, and what a probe does with it."""

    device: Device
    buffers: dict[tuple[str, int], Buffer] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The device's id."""
        return self.device.info.id

    def call(self, role: str, job: Callable[[], T]) -> T:
        """Run ``job`` on the thread of a queue; raises Fault."""
        return outcome(self.id, self.start(role, job))

    def start(self, role: str, job: Callable[[], T]) -> Future[T]:
        """Begin ``job`` on the thread of a queue; ``outcome`` waits for it."""
        return begin(self.device.worker(role).post, job)

    def buffer(self, name: str, nbytes: int) -> Buffer:
        """The buffer of this name and size, all zero when it is new."""
        found = self.buffers.get((name, nbytes))
        if found is None:
            found = self.call("compute", lambda: self.device.allocate(nbytes, f"probe {name}"))
            self.buffers[name, nbytes] = found
            self.write(found, np.zeros(nbytes, np.uint8))
        return found

    def fill(self, name: str, array: Array) -> Buffer:
        """The buffer of this name and an array's size, with the array's bytes in it."""
        found = self.buffer(name, array.nbytes)
        self.write(found, array)
        return found

    def write(self, target: Buffer, source: Array, times: int = 1) -> float:
        """Upload and wait, ``times`` times; returns the median seconds."""
        queue = self.device.queues["upload"]
        return self.call("upload", lambda: timed(lambda: queue.write(target, source), times))

    def read(self, source: Buffer, target: Array, times: int = 1) -> float:
        """Download and wait, ``times`` times; returns the median seconds."""
        queue = self.device.queues["download"]
        return self.call("download", lambda: timed(lambda: queue.read(source, target), times))

    def copy(self, target: Buffer, source: Buffer, times: int = 1) -> float:
        """Copy from another device's memory and wait; returns the median seconds."""
        queue = self.device.queues["upload"]
        return self.call("upload", lambda: timed(lambda: queue.copy(target, source), times))

    def record(self, steps: Iterable[tuple[Step, Mapping[Any, Buffer]]]) -> CommandBuffer:
        """Compile and record steps, each with its buffers by slot."""
        made = list(steps)

        def job() -> CommandBuffer:
            bound = [Bound(self.device.compile(step), held, "probe") for step, held in made]
            return self.device.record(bound)

        return self.call("compute", job)

    def run(self, commands: CommandBuffer, times: int = 1) -> float:
        """Execute and wait, ``times`` times; returns the median seconds."""
        queue = self.device.queues["compute"]
        return self.call("compute", lambda: timed(lambda: queue.execute(commands), times))

    def release(self) -> None:
        """Give all buffers back, as far as the device still answers."""
        held, self.buffers = list(self.buffers.values()), {}
        for buffer in held:
            self.call("compute", buffer.release)


def timed(submit: Callable[[], Event | None], times: int = 1) -> float:
    """Median seconds from a queue call to the completion of its work."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        event = submit()
        if event is not None:
            event.wait()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


@dataclass(frozen=True)
class Trial:
    """One quantity: ``sample`` measures it once, in its own unit; ``devices`` take part."""

    key: tuple[object, ...]
    devices: tuple[str, ...]
    sample: Callable[[], float]


Samples = dict[tuple[object, ...], Measured]


def in_turns(
    trials: Sequence[Trial],
    *,
    rounds: int,
    least: int,
    seconds: float,
    failed: Callable[[Fault], None],
    progress: Callable[[str, float], None],
) -> Samples:
    """Sample every quantity once a round, so that a slow spell of the machine hits all alike.

    Args:
        trials: what to measure.
        rounds: samples of each at most.
        least: samples of each, however long that takes.
        seconds: no round is begun after so long.
        failed: told of a device's failure; its trials end, their samples are dropped.
        progress: told what is measured, and the fraction done.
    """
    taken: dict[tuple[object, ...], list[float]] = {trial.key: [] for trial in trials}
    dead: set[str] = set()
    start = time.perf_counter()
    for turn in range(rounds):
        spent = (time.perf_counter() - start) / seconds
        if turn >= least and spent >= 1.0:
            break
        for i, trial in enumerate(trials):
            if not dead.isdisjoint(trial.devices):
                continue
            by_count = (turn + i / len(trials)) / rounds
            progress(" ".join(str(part) for part in trial.key), max(by_count, min(spent, 1.0)))
            try:
                taken[trial.key].append(trial.sample())
            except Fault as fault:
                dead.add(fault.device)
                failed(fault)
    alive = (t for t in trials if dead.isdisjoint(t.devices))
    return {t.key: Measured.of(taken[t.key]) for t in alive if taken[t.key]}
