"""The devices of a session, and what it does when one fails: without it, or with less of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from weakref import WeakMethod

from crossdock.devices import registry
from crossdock.devices.base import Device, DeviceInfo
from crossdock.runtime.config import Config
from crossdock.runtime.errors import (
    CompileError,
    Declined,
    DeviceError,
    MemoryBudget,
    OutOfMemory,
    PlanError,
)
from crossdock.runtime.losses import is_loss, let_go, said
from crossdock.runtime.plan import HOST, Constraints
from crossdock.runtime.pool import free_caches
from crossdock.runtime.ready import Ready
from crossdock.runtime.receipt import Recovery
from crossdock.runtime.turns import Flow


@dataclass
class Pressure:
    """How far a device without memory has been eased, by its id: see ``Fleet.ease``."""

    steps: dict[str, int] = field(default_factory=dict)

    def next(self, device: str) -> int:
        """Count a time that the device had no memory; how often it was before."""
        before = self.steps.get(device, 0)
        self.steps[device] = before + 1
        return before


class Fleet:
    """Opened devices with the configuration that plans for them now. Thread-safe.

    ``changed`` is called where what was planned before is not to be used any more.
    """

    def __init__(
        self, config: Config, devices: Mapping[str, Device], changed: Callable[[], None]
    ) -> None:
        self._given = config
        self._told = WeakMethod(changed)  # of the session, which holds the fleet
        self._lock = threading.RLock()
        self._lost: dict[str, DeviceInfo] = {}
        self._shut: dict[str, str] = {}  # why one of them could not be opened again
        self._out: dict[str, str] = {}  # why a device that is not lost computes nothing here
        self._budgets: dict[str, int] = {}
        self._reopen = False
        self.devices = dict(devices)
        self.flow = Flow()
        registry.listen(self)

    @property
    def config(self) -> Config:
        """How to plan now."""
        with self._lock:
            whys = {**dict.fromkeys(self._lost, "it is not open again"), **self._shut}
            whys |= {name: why for name, why in registry.lost().items() if name in {*whys, HOST}}
            lost = {name: f"is lost: {why}" for name, why in whys.items()}
            given = self._given
            left = _unpinned(given.constraints, {*lost, *self._out})
            memory = {**left.memory}
            for name, budget in self._budgets.items():
                memory[name] = min(budget, memory.get(name, budget))
            return replace(
                given,
                constraints=replace(left, memory=memory),
                plan=None if self._lost or self._out or self._budgets else given.plan,
                lost=tuple(self._lost.values()),
                broken={**self._out, **lost},
                sites=given.sites.within(self.devices),
            )

    def now(self) -> tuple[Config, dict[str, Device]]:
        """How to plan, and the devices to plan for, at one moment."""
        with self._lock:
            return self.config, dict(self.devices)

    @property
    def tight(self) -> frozenset[str]:
        """The devices that are planned for with less memory than they were said to have."""
        return frozenset(self._budgets)

    def refresh(self) -> bool:
        """Leave out devices lost since, and take back those found again; whether that changed.

        Raises:
            DeviceError: a device found again cannot be opened; it stays out.
        """
        with self._lock:
            gone = [name for name, device in self.devices.items() if device.gone]
            for name in gone:
                self._lost[name] = self.devices.pop(name).info
            host = HOST in registry.lost()
            changed = bool(gone) or (host and HOST not in self._out)
            if host:
                self._out[HOST] = "it is lost"
            changed = self._found_again() or changed
        if changed:
            self._changed()
        return changed

    def _found_again(self) -> bool:
        if not self._reopen:
            return False
        self._reopen = False
        self._out.clear()
        self._budgets.clear()
        self._shut.clear()
        for name in list(self._lost):
            try:
                self.devices[name] = registry.open_device(name, threads=self._given.threads)
            except DeviceError as error:
                self._shut[name] = said(error)
                continue
            del self._lost[name]
        return True

    def rescanned(self) -> None:
        """Lost devices may be opened again: plan anew from the next run on."""
        with self._lock:
            self._reopen = bool(self._lost or self._out or self._budgets)
        if self._reopen:
            self._changed()

    def _changed(self) -> None:
        told = self._told()
        if told is not None:
            told()

    # --- failures ---------------------------------------------------------------------------------

    def survive(self, error: DeviceError, pressure: Pressure) -> str:
        """Make ready to go on after an error of a device; what was done about it.

        Raises:
            DeviceError: ``error``, where nothing can be done about it.
        """
        if is_loss(error) and error.device and error.device in {*self.devices, *self._lost}:
            self.refresh()
            return "lost"
        if isinstance(error, OutOfMemory) and error.device in self._lost:
            return "lost"  # meanwhile, for another run
        if isinstance(error, OutOfMemory) and error.device in self.devices:
            return self._ease(error, pressure)
        raise error

    def _ease(self, error: OutOfMemory, pressure: Pressure) -> str:
        """After a device had no memory: free caches, then plan for less, then without it.

        Raises:
            OutOfMemory: ``error``, where all of that was done.
        """
        device, step = error.device, pressure.next(error.device)
        if step == 0:
            free_caches()
            return "caches freed"
        if step == 1:
            with self._lock:
                self._budgets[device] = _observed(error, self.devices[device].info)
            self._changed()
            return f"planned within {self._budgets[device]} bytes"
        if step == 2 and device != HOST:
            self.leave_out(device, f"has too little memory: {said(error)}")
            return "left out"
        raise error

    def relent(self, error: DeviceError) -> None:
        """Give a device without memory another chance at the next run, as nothing else helps."""
        with self._lock:
            if not isinstance(error, OutOfMemory) or error.device not in self.devices:
                return
            had = self._out.pop(error.device, ""), self._budgets.pop(error.device, 0)
        if any(had):
            self._changed()

    def leave_out(self, device: str, why: str) -> None:
        """Let a device compute nothing in this session any more."""
        with self._lock:
            self._out[device] = why
        self._changed()

    def prepared(self, make: Callable[[], Ready]) -> Ready:
        """What ``make`` makes with ``config`` and ``devices``, again where devices fail at it.

        A kernel that does not build is passed over for the next candidate, once a device: one whose
        kernels fail again is left out. What a library declines is passed over as often as there is.

        Raises:
            DeviceError: nothing is left to be done about it.
            PlanError: there is no plan without what failed.
        """
        pressure, told = Pressure(), list[Recovery]()
        failed: DeviceError | None = None
        while True:
            try:
                made = make()
            except DeviceError as error:
                failed = error
                let_go(error)
                action = self._try_again(error, pressure)
                log = error.log if isinstance(error, CompileError) else ""
                told.append(Recovery(error.device, said(error), action, log=log))
            except PlanError as error:
                tight = self._too_tight() if isinstance(error, MemoryBudget) else []
                told += [Recovery(name, said(error), "left out") for name in tight]
                if not tight and failed is None:
                    raise
                if not tight and failed is not None:
                    self.relent(failed)
                    raise hopeless(failed, error) from error
            else:
                made.recorder.recoveries += tuple(told)
                made.flow = self.flow
                return made

    def _too_tight(self) -> list[str]:
        """Leave out the devices that nothing fits into what they really have; their ids."""
        with self._lock:
            found = [name for name in self._budgets if name != HOST and name not in self._out]
            for name in found:
                self._out[name] = f"has too little memory: {self._budgets.pop(name)} bytes"
        if found:
            self._changed()
        return found

    def _try_again(self, error: DeviceError, pressure: Pressure) -> str:
        if not isinstance(error, CompileError):
            return self.survive(error, pressure)
        if isinstance(error, Declined) and not pressure.next(f"{error.device}: {error.log}"):
            return "next candidate"
        step = pressure.next(f"kernels of {error.device}")
        if step == 0:
            return "next candidate"
        if step > 1 or error.device == HOST:
            raise error
        self.leave_out(error.device, f"does not build kernels: {said(error)}")
        return "left out"


def hopeless(error: DeviceError, why: PlanError) -> DeviceError:
    """The error of a device, where there is no way to do without it."""
    made = type(error)(f"{error}; it cannot be done without: {why}")
    made.__dict__.update(error.__dict__)
    return made


def _unpinned(constraints: Constraints, gone: set[str]) -> Constraints:
    """Without pins to devices that are gone, which bind no more; what is forbidden stays so."""
    pins = {op: device for op, device in constraints.pin.items() if device not in gone}
    return replace(constraints, pin=pins)


def _observed(error: OutOfMemory, info: DeviceInfo) -> int:
    """Bytes that a session may take of a device, by what it could not have."""
    planned = error.planned or info.memory_bytes
    short = error.wanted - error.free
    return max(1, planned - short if 0 < short < planned else planned // 2)
