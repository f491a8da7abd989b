"""Devices with faults on demand: each kind happens where it was planned, and only there."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import faults, registry, sim
from crossdock.devices.base import Bound, CommandBuffer, Device
from crossdock.devices.faults import Fault, FaultDevice, FaultPlan
from crossdock.devices.program import In, Out
from crossdock.devices.sim import SimDevice, SimSpec
from crossdock.runtime.errors import CompileError, DeviceError, DeviceLost, LaunchError, OutOfMemory
from tests.devices.steps import axpb_array

N = 64
BYTES = 4 * N
X = np.arange(N, dtype=np.float32)


@pytest.fixture(autouse=True)
def no_devices() -> Iterator[None]:
    yield
    registry.rescan()
    for key in [key for key in registry._OPEN if key[0].startswith("sim:")]:
        registry._OPEN.pop(key).close()
    for info in sim.probe().devices:
        sim.unregister(info.id.partition(":")[2])


def inner(kind: str) -> Device:
    if kind == "cpu":
        return registry.open_device("cpu:0")
    return SimDevice(SimSpec("inside"))


def opened(*plan: Fault, kind: str = "sim", seed: int = 0) -> FaultDevice:
    return faults.register("f", inner(kind), plan, seed)


class Held:
    """A device with a command buffer of ``steps`` times y = 2 x + 1, and x there."""

    def __init__(self, device: FaultDevice, steps: int = 3) -> None:
        self.device = device
        self.x, self.y = device.allocate(BYTES), device.allocate(BYTES)
        executable = device.compile(axpb_array(N, 2.0, 1.0))
        bound = [Bound(executable, {In(0): self.x, Out(0): self.y}, f"s{i}") for i in range(steps)]
        device.inner.queues["upload"].write(self.y, np.zeros_like(X))
        self.commands: CommandBuffer = device.record(bound)

    def write(self) -> None:
        _done(self.device.queues["upload"].write(self.x, X))

    def run(self) -> None:
        _done(self.device.queues["compute"].execute(self.commands))

    def read(self) -> Any:
        got = np.full_like(X, -1)
        _done(self.device.queues["download"].read(self.y, got))
        return got

    def all(self) -> Any:
        self.write()
        self.run()
        return self.read()


def _done(event: Any) -> None:
    if event is not None:
        event.wait()


@pytest.mark.parametrize("kind", ["sim", "cpu"])
def test_without_faults_it_computes_as_the_device_inside(kind: str) -> None:
    held = Held(opened(kind=kind))
    assert len(held.commands) == 3
    np.testing.assert_array_equal(held.all(), 2 * X + 1)
    assert held.device.faults.injected == []
    assert held.device.faults.count("execute") == 3
    assert held.device.faults.count("copy") == 2


@pytest.mark.parametrize(
    ("kind", "error"), [("oom", OutOfMemory), ("launch", LaunchError), ("lost", DeviceLost)]
)
def test_a_step_fails_once_where_it_was_planned(kind: str, error: type[DeviceError]) -> None:
    held = Held(opened(Fault(kind, 4)))
    held.all()
    with pytest.raises(error, match="sim:f: execute failed, as its fault plan says") as caught:
        held.run()
    assert caught.value.device == "sim:f"
    assert [(i.kind, i.nth) for i in held.device.faults.injected] == [(kind, 4)]
    if kind == "oom":
        held.run()


@pytest.mark.parametrize(("kind", "error"), [("sticky", LaunchError), ("lost", DeviceLost)])
def test_a_fault_that_stays_fails_every_later_call_and_counts_them(
    kind: str, error: type[DeviceError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "GRACE", -1.0)
    held = Held(opened(Fault(kind, 0)))
    with pytest.raises(error):
        held.run()
    assert held.device.after == 0
    device, queue = held.device, held.device.queues["compute"]
    calls = [
        held.write, held.run, held.read, queue.finish, queue.flush, lambda: device.allocate(1),
        lambda: device.compile(axpb_array(N, 2.0, 1.0)), lambda: device.record([]),
    ]  # fmt: skip
    for number, call in enumerate(calls):
        with pytest.raises(error, match="answers no more"):
            call()
        assert device.after == number + 1


def test_memory_and_kernels_fail_to_be_had() -> None:
    device = opened(Fault("oom", 1, call="allocate"), Fault("build", 0))
    device.allocate(8)
    with pytest.raises(OutOfMemory, match="allocate failed"):
        device.allocate(8)
    with pytest.raises(CompileError) as caught:
        device.compile(axpb_array(N, 2.0, 1.0))
    assert "a fault was planned" in caught.value.log
    device.compile(axpb_array(N, 2.0, 1.0))


@pytest.mark.parametrize("inside", ["sim", "cpu"])
def test_copies_arrive_damaged(inside: str) -> None:
    held = Held(opened(Fault("corrupt", 0, bit=33), Fault("short", 3), kind=inside))
    wrong = held.all()
    assert np.flatnonzero(wrong != 2 * X + 1).tolist() == [1]
    half = held.all()
    assert (half[: N // 2] == 2 * X[: N // 2] + 1).all()
    assert (half[N // 2 :] == -1).all()
    np.testing.assert_array_equal(held.all(), 2 * X + 1)


def test_a_damaged_upload_leaves_its_source_alone() -> None:
    held = Held(opened(Fault("corrupt", 0)))
    before = X.copy()
    held.write()
    np.testing.assert_array_equal(X, before)


def test_work_said_to_be_done_is_done_later_or_never() -> None:
    held = Held(opened(Fault("early", 0, seconds=0.02), Fault("early", 3)), steps=1)
    held.write()
    held.run()
    assert (held.read() == 0).all()
    time.sleep(0.03)
    held.run()
    np.testing.assert_array_equal(held.read(), 2 * X + 1)
    held.device.queues["compute"].finish()


@pytest.mark.parametrize("inside", ["sim", "cpu"])
def test_what_hangs_ends_with_its_time_or_with_the_device(inside: str) -> None:
    held = Held(opened(Fault("hang", 0, seconds=0.03), Fault("hang", 2), kind=inside), steps=1)
    held.write()
    began = time.perf_counter()
    held.run()
    assert time.perf_counter() - began > 0.025
    np.testing.assert_array_equal(held.read(), 2 * X + 1)
    held.run()
    held.device.release()
    with pytest.raises(DeviceLost, match="hung, and was given up"):
        held.run()


def test_a_slow_queue_stays_slow() -> None:
    held = Held(opened(Fault("slow", 0, factor=50.0)), steps=1)
    held.write()
    for _ in range(2):
        held.run()
    np.testing.assert_array_equal(held.read(), 2 * X + 1)
    assert held.device.queues["compute"]._factor == 50.0  # type: ignore[attr-defined]


def test_chances_hang_on_the_seed_and_not_on_the_order_of_queues() -> None:
    def drawn(seed: int, roles: str) -> dict[str, list[bool]]:
        plan = FaultPlan([Fault("launch", probability=0.3)], seed)
        found: dict[str, list[bool]] = {"a": [], "b": []}
        for role in roles:
            found[role].append(bool(plan.due("execute", role)))
        return found

    one = drawn(1, "ab" * 50)
    assert one == drawn(1, "a" * 50 + "b" * 50)
    assert one != drawn(2, "ab" * 50)
    assert 5 < sum(one["a"]) < 30


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "explode", "nth": 1},
        {"kind": "oom"},
        {"kind": "oom", "nth": -1},
        {"kind": "oom", "nth": 1, "probability": 0.5},
        {"kind": "oom", "probability": 1.5},
        {"kind": "corrupt", "nth": 0, "call": "compile"},
        {"kind": "hang", "nth": 0, "seconds": -1.0},
        {"kind": "slow", "nth": 0, "factor": math.nan},
    ],
)
def test_what_is_no_fault_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match="is no fault"):
        Fault(**wrong)


def test_a_lost_device_is_not_opened_until_a_rescan() -> None:
    first = opened(Fault("lost", 0))
    assert registry.open_device("sim:f") is first
    assert registry.open_device("sim:f", threads=1) is first
    registry.lose(first, "it broke")
    assert first.gone == "it broke"
    assert not first.released, "a lost device is not closed"
    assert "sim:f" not in {info.id for info in xd.devices()}
    (probe,) = registry.probe_all(["sim"])
    assert "sim:f was lost (it broke)" in probe.reason
    assert "crossdock.rescan()" in probe.fix
    with pytest.raises(DeviceLost, match=r"sim:f was lost \(it broke\); call crossdock\.rescan"):
        registry.open_device("sim:f")
    assert xd.rescan() == ["sim:f"]
    again = registry.open_device("sim:f")
    assert again is not first
    assert not again.gone
    assert "sim:f" in {info.id for info in xd.devices()}
    registry.lose(first, "it broke again")  # told late by a thread that was stuck
    assert registry.open_device("sim:f") is again


def test_the_memory_of_the_host_is_never_lost() -> None:
    registry.lose(registry.open_device("cpu:0"), "it broke")
    assert registry.open_device("cpu:0").info.id == "cpu:0"
    assert not registry.open_device("cpu:0").gone
    assert registry.lost() == {"cpu:0": "it broke"}
    assert xd.rescan() == ["cpu:0"]
