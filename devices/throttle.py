"""A real device behind a slower link: copies are held up until a given bandwidth is not exceeded.

For seeing what a slow link does without having one: the device computes as it does, a copy takes
as long as it takes, or as its bytes take at the bandwidth, whichever is longer. The device is one
of the simulated kind, ``sim:NAME``, with a fingerprint of its own: its link is measured anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from crossdock.devices import sim
from crossdock.devices.base import (
    Bound,
    Buffer,
    Cap,
    CommandBuffer,
    Device,
    Event,
    Executable,
    Queue,
    Span,
)
from crossdock.devices.program import Step
from crossdock.devices.worker import Worker
from crossdock.runtime.errors import DeviceError
from crossdock.runtime.tensor import Array


class ThrottledQueue(Queue):
    """A queue of the real device whose copies are held up."""

    def __init__(self, device: ThrottledDevice, queue: Queue) -> None:
        self.device: ThrottledDevice = device
        self.role = queue.role
        self._queue = queue

    def execute(
        self,
        commands: CommandBuffer,
        waits: Sequence[Event] = (),
        spans: list[Span] | None = None,
    ) -> Event | None:
        """Run a command buffer as the real device does."""
        return self._queue.execute(commands, waits, spans)

    def write(self, target: Buffer, source: Array, waits: Sequence[Event] = ()) -> None:
        """Copy an array into a buffer; done when it returns."""
        began = _ready(waits)
        self._end(self._queue.write(target, source), began, source.nbytes)

    def read(self, source: Buffer, target: Array, waits: Sequence[Event] = ()) -> None:
        """Copy a buffer into an array; done when it returns."""
        began = _ready(waits)
        self._end(self._queue.read(source, target), began, target.nbytes)

    def copy(self, target: Buffer, source: Buffer, waits: Sequence[Event] = ()) -> Event | None:
        """Copy a buffer into another as the real device does: nothing crosses the link."""
        return self._queue.copy(target, source, waits)

    def _end(self, event: Event | None, began: float, nbytes: int) -> None:
        if event is not None:
            self._queue.flush()
            event.wait()
        left = began + nbytes / self.device.bandwidth - time.perf_counter()
        if left > 0:
            time.sleep(left)

    def finish(self) -> None:
        """Block until everything submitted is done."""
        self._queue.finish()

    def flush(self) -> None:
        """Hand what was submitted to the device."""
        self._queue.flush()


def _ready(waits: Sequence[Event]) -> float:
    """Wait until a copy may begin; the time then. Who signalled an event has flushed its queue."""
    for event in waits:
        event.wait()
    return time.perf_counter()


class ThrottledDevice(Device):
    """An opened device behind a link of ``bandwidth`` bytes a second in each direction."""

    def __init__(self, name: str, device: Device, bandwidth: float) -> None:
        if Cap.VIRTUAL_TIME in device.info.caps:
            raise DeviceError(
                f"{device.info.id} is simulated: nothing holds up its copies; give its SimSpec a "
                "link_bandwidth instead"
            )
        if not (name and 0 < bandwidth < math.inf):
            raise DeviceError(f"sim:{name}: give a name, and a bandwidth greater than 0")
        self.bandwidth = bandwidth
        self._device = device
        self.gauge = device.gauge
        made: dict[int, ThrottledQueue] = {}
        for queue in device.queues.values():
            made.setdefault(id(queue), ThrottledQueue(self, queue))
        self.queues = {role: made[id(queue)] for role, queue in device.queues.items()}
        link = f"{bandwidth:g} B/s"
        self.info = replace(
            device.info,
            id=f"{sim.KIND}:{name}",
            fingerprint=f"{device.info.fingerprint}|link of {link}",
            details={**device.info.details, "link": f"{link}, of {device.info.id}"},
        )

    def worker(self, role: str) -> Worker:
        """The real device's thread: a queue has one."""
        return self._device.worker(role)

    def allocate(self, nbytes: int, label: str = "") -> Buffer:
        """Allocate on the real device."""
        return self._device.allocate(nbytes, label)

    def compile(self, step: Step) -> Executable:
        """Compile for the real device."""
        return self._device.compile(step)

    def record(self, bound: Sequence[Bound]) -> CommandBuffer:
        """Record for the real device."""
        return self._device.record(bound)

    def rebind(self, commands: CommandBuffer, changed: Mapping[int, Bound]) -> CommandBuffer:
        """Rebind for the real device."""
        return self._device.rebind(commands, changed)

    def close(self) -> None:
        """Nothing of its own to release; the real device stays open."""


def register(name: str, device: Device, bandwidth: float) -> ThrottledDevice:
    """Make ``sim:NAME`` an opened device behind a slower link; ``sim.unregister`` forgets it.

    Raises:
        DeviceError: the device is simulated itself, or the bandwidth is not positive and finite.
    """
    made = ThrottledDevice(name, device, bandwidth)
    sim.adopt(made)
    return made
