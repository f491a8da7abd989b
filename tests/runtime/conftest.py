"""Machines for the runtime's tests: simulated devices of any make, and costs of their own."""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from crossdock.devices import registry, sim
from crossdock.devices.base import Device, DeviceInfo
from crossdock.devices.machine import DeviceProfile
from crossdock.devices.machine import Machine as MachineProfile
from crossdock.devices.sim import SimQueue, SimSpec
from crossdock.runtime import costing, knowledge
from tests.fakes import cards, cupy_fake
from tests.runtime.lazy_device import LazyDevice, World


@pytest.fixture
def no_hang() -> Iterator[None]:
    """End the whole run, and show every thread's stack, if one test takes two minutes."""
    faulthandler.dump_traceback_later(120, exit=True, file=2)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def opencl() -> DeviceInfo:
    """The first OpenCL device, or a skip that says why there is none."""
    probe = registry.probe_all(["opencl"])[0]
    if not probe.devices:
        pytest.skip(f"no OpenCL device: {probe.reason}")
    return probe.devices[0]


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> costing.CostStore:
    """Costs that nothing was measured for, kept nowhere."""
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", "off")
    empty = costing.CostStore()
    monkeypatch.setattr(costing, "store", lambda: empty)
    return empty


@pytest.fixture
def fake(
    opencl: DeviceInfo, monkeypatch: pytest.MonkeyPatch, costs: costing.CostStore
) -> Iterator[cupy_fake.FakeCupy]:
    """The fake cupy, which runs kernels on the OpenCL device."""
    del opencl, costs
    with cards.installed(monkeypatch) as made:
        yield made


class Machine:
    """Simulated devices of one test: registered, opened at need, closed and forgotten after it."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def sim(self, name: str, **spec: object) -> str:
        """Register ``sim:NAME`` and return its id; opening it anew gives a device without past."""
        made = sim.register(SimSpec(name, **spec))  # type: ignore[arg-type]
        self._names.append(name)
        self.forget(made.id)
        return made.id

    def lazy(self, name: str, world: World, **spec: object) -> str:
        """A lazy device of that name."""
        device_id = self.sim(name, **spec)
        made = LazyDevice(SimSpec(name, **spec), world)  # type: ignore[arg-type]
        registry._OPEN[device_id, None, None] = made
        return device_id

    def device(self, device_id: str) -> Device:
        """The open device."""
        return registry.open_device(device_id)

    def forget(self, device_id: str) -> None:
        """Close a device, so that the next session opens another."""
        found = registry._OPEN.pop((device_id, None, None), None)
        if found is not None:
            found.close()

    def end(self) -> None:
        """Close and forget everything, and what was lost."""
        registry.rescan()
        for name in self._names:
            self.forget(f"sim:{name}")
            sim.unregister(name)


def no_profile(*devices: DeviceProfile) -> MachineProfile:
    """What a probe gives that measured nothing."""
    return MachineProfile(
        "0", "cpu", 1, {}, "2026-01-01T00:00:00", quick=True, seconds=0, devices=devices
    )


@pytest.fixture
def machine(costs: costing.CostStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Simulated devices, and costs of their own; the real ones are not probed."""
    monkeypatch.setattr(knowledge, "probe", lambda **_: no_profile())
    made = Machine()
    yield made
    made.end()


class Gate:
    """Holds up what simulated devices compute until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()

    def hold(self) -> None:
        """Called by a queue before it computes."""
        self.reached.set()
        assert self.open.wait(60)


@pytest.fixture
def gate(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A closed gate before the compute queues of simulated devices."""
    made = Gate()
    execute = SimQueue.execute

    def held(self: SimQueue, *args: Any, **options: Any) -> Any:
        made.hold()
        return execute(self, *args, **options)

    monkeypatch.setattr(SimQueue, "execute", held)
    yield made
    made.open.set()
