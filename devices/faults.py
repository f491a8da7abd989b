"""Any device with faults on demand, as ``fault_plan`` has them.

For proving that whatever a device does, a run ends with the right answer or with a typed error. The
device is one of the simulated kind, ``sim:NAME``, and computes as the device inside of it does.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from crossdock.devices import sim
from crossdock.devices.base import (
    Bound,
    Buffer,
    CommandBuffer,
    Device,
    DeviceInfo,
    Executable,
)
from crossdock.devices.fault_plan import CALLS as CALLS
from crossdock.devices.fault_plan import FATAL as FATAL
from crossdock.devices.fault_plan import Fault as Fault
from crossdock.devices.fault_plan import FaultPlan as FaultPlan
from crossdock.devices.fault_queue import FaultCommands, FaultQueue
from crossdock.devices.program import Step
from crossdock.runtime.errors import (
    CompileError,
    DeviceError,
    DeviceLost,
    LaunchError,
    OutOfMemory,
)
from crossdock.runtime.tensor import Array

GRACE = 0.05
"""Seconds after a fatal fault in which other queues' calls may still come: they were under way."""


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
