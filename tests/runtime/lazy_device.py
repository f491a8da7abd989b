"""Devices that put everything off: the worst that an asynchronous driver may do.

Nothing that is submitted runs until somebody waits for it. Then only what it depends on runs, by
queue order and waits, in an order drawn at random, now and then with something unrelated: a wait
that the plan lacks, or memory that is used again too early, gives a wrong answer.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

import numpy as np

from crossdock.devices import sim
from crossdock.devices.base import Buffer, CommandBuffer, Event, Queue, Span
from crossdock.devices.host_memory import copy_bytes
from crossdock.devices.sim import SimBuffer, SimCommands, SimDevice
from crossdock.runtime.tensor import Array

UNRELATED = 0.2  # how often something runs that nobody waits for


class Command:
    """A piece of work, with what must have run before it."""

    def __init__(self, work: Callable[[], None], needs: Sequence[Command]) -> None:
        self.work = work
        self.needs = tuple(needs)
        self.done = False
        self.error: Exception | None = None

    def run(self) -> None:
        """Do the work, or fail with the first failure before it."""
        self.error = next((n.error for n in self.needs if n.error is not None), None)
        if self.error is None:
            try:
                self.work()
            except Exception as error:  # noqa: BLE001 - handed to whoever waits
                self.error = error
        self.done, self.needs = True, ()


class World:
    """What has been submitted to the lazy devices of a test and has not run."""

    def __init__(self, seed: int) -> None:
        self.lock = threading.RLock()
        self._random = random.Random(seed)
        self._pending: list[Command] = []

    def submit(self, work: Callable[[], None], needs: Sequence[Command]) -> Command:
        """Put a command off."""
        with self.lock:
            command = Command(work, [n for n in needs if not n.done or n.error is not None])
            self._pending.append(command)
            return command

    def force(self, wanted: Command) -> None:
        """Run what a command depends on, and the command itself."""
        with self.lock:
            while not wanted.done:
                ready = [c for c in self._pending if all(n.done for n in c.needs)]
                before = _ancestors(wanted)
                if self._random.random() >= UNRELATED:
                    ready = [c for c in ready if c in before]
                chosen = self._random.choice(ready)
                chosen.run()
                self._pending.remove(chosen)


def _ancestors(command: Command) -> set[Command]:
    found, todo = {command}, [command]
    while todo:
        new = [n for n in todo.pop().needs if n not in found]
        found.update(new)
        todo += new
    return found


class LazyEvent(Event):
    """Completion of a command, which waiting brings about."""

    def __init__(self, world: World, command: Command) -> None:
        self.world, self.command = world, command

    def wait(self) -> None:
        self.world.force(self.command)
        if self.command.error is not None:
            raise self.command.error

    def done(self) -> bool:
        return self.command.done


class LazyQueue(Queue):
    """An in-order queue of commands put off."""

    def __init__(self, device: LazyDevice, role: str) -> None:
        self.device: LazyDevice = device
        self.role = role
        self._last: Command | None = None

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> LazyEvent:
        assert isinstance(commands, SimCommands)

        def work() -> None:
            for timed in commands.steps:
                self.device.next_step()
                timed.run()
                if spans is not None:
                    spans.append(Span(timed.label, 0.0, timed.seconds))

        return self._submit(work, waits)

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> LazyEvent:
        assert isinstance(target, SimBuffer)
        return self._submit(lambda: copy_bytes(target.first(source.nbytes), source), waits)

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> LazyEvent:
        assert isinstance(source, SimBuffer)
        return self._submit(lambda: copy_bytes(target, source.first(target.nbytes)), waits)

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> LazyEvent:
        assert isinstance(target, SimBuffer)
        assert isinstance(source, SimBuffer)
        return self._submit(lambda: copy_bytes(target.first(source.nbytes), source.bytes()), waits)

    def finish(self) -> None:
        if self._last is not None:
            self.device.world.force(self._last)

    def _submit(self, work: Callable[[], None], waits: Sequence[Event]) -> LazyEvent:
        needs = [] if self._last is None else [self._last]
        for event in waits:
            assert isinstance(event, LazyEvent), "a foreign event waits on the host"
            needs.append(event.command)
        self._last = self.device.world.submit(work, needs)
        return LazyEvent(self.device.world, self._last)


class LazyDevice(SimDevice):
    """A simulated device whose work is put off; its memory starts as NaN."""

    def __init__(self, spec: sim.SimSpec, world: World) -> None:
        super().__init__(spec)
        self.world = world
        self.queues = {role: LazyQueue(self, role) for role in ("compute", "upload", "download")}

    def allocate(self, nbytes: int, label: str = "") -> SimBuffer:
        made = super().allocate(nbytes, label)
        np.copyto(made.bytes(), 0xFF)
        return made
