"""Runs on devices in processes of their own: drivers crash and hang, and the answers are right."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.isolated_process import DEATHS, DEATHS_AT
from crossdock.devices.probe import probe
from crossdock.runtime import refused
from crossdock.runtime.session import Session
from tests.runtime.faults.planted import ENDLESS, NAME, WILD, plant

Array = np.ndarray[Any, np.dtype[Any]]
ID = "isolated:opencl:0"
PINS = {"n0": ID, "n1": "cpu:0", "n2": ID, "n3": ID}


@pytest.fixture(autouse=True)
def _planted(costs: Any, opencl: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(DEATHS_AT, "_counts", Counter())
    plant(monkeypatch)
    yield
    registry.close_all()
    registry.rescan()
    refused.forget()


def compiled(**options: Any) -> Session:
    b = xd.GraphBuilder()
    x = b.input("x", (64,))
    z = b.neg(x, label="n0")
    y = b.neg(b.mul(b.add(z, b.constant(np.ones(64, np.float32)), label="n1"), z, label="n2"),
              label="n3")  # fmt: skip
    rules = xd.Constraints(pin=PINS)
    graph = b.build({"y": y, "z": z})
    return xd.compile(graph, ["cpu:0", ID], constraints=rules, measure=False, **options)


def run(session: Session, first: float) -> list[Any]:
    """Run with this first value, hold the outputs to what they should be; what was recovered."""
    x = np.arange(64, dtype=np.float32)
    x[0] = first
    made = session.run({"x": x}, timeout=120)
    assert np.array_equal(made["z"], -x)
    assert np.array_equal(made["y"], (1 - x) * x)
    return list(session.receipt.recoveries)


def where(session: Session) -> set[str]:
    return {op.device for op in session.receipt.ops}


def test_a_kernel_that_writes_out_of_bounds_takes_only_its_process_down() -> None:
    with compiled() as session:
        assert run(session, 1.0) == []
        assert {op.kernel for op in session.receipt.ops if op.name in ("n0", "n3")} == {NAME}
        (told,) = run(session, WILD)
        assert (told.device, told.action) == (ID, "lost")
        assert "was ended by signal 11 (SIGSEGV) while it was at 'n0'" in told.error
        assert where(session) == {"cpu:0"}
        assert "SIGSEGV" in str(session.receipt)
        assert run(session, 1.0) == []
        assert where(session) == {"cpu:0"}
        assert xd.rescan() == [ID]
        assert run(session, 2.0) == []
        assert where(session) == {"cpu:0", ID}


def test_a_kernel_that_never_ends_is_killed_and_its_memory_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buried: list[object] = []
    monkeypatch.setattr(registry, "bury", buried.append)
    with compiled(watchdog=0.5) as session:
        run(session, 1.0)
        device: Any = session.devices[ID]
        (told,) = run(session, ENDLESS)
        assert told.device == ID
        assert told.error.startswith("DeviceHung")
        assert device.process.wait(10.0)
        assert not buried  # what hung can write to nothing here any more
        xd.rescan()
        assert run(session, 2.0) == []
        assert where(session) == {"cpu:0", ID}


def test_a_kernel_that_ended_three_processes_gives_way_to_another_one() -> None:
    with compiled() as session:
        run(session, 1.0)
        for _ in range(DEATHS):
            xd.rescan()
            (told,) = run(session, WILD)
            assert "SIGSEGV" in told.error
        xd.rescan()
        (told,) = run(session, WILD)
        assert told.action == "next candidate"
        assert "is refused: 3 of the device's processes ended over it" in told.error
        assert NAME not in {op.kernel for op in session.receipt.ops}
        assert where(session) == {"cpu:0", ID}


def test_an_idle_process_that_is_killed_is_planned_without() -> None:
    with compiled() as session:
        run(session, 1.0)
        device: Any = session.devices[ID]
        os.kill(device.process.pid, signal.SIGKILL)
        assert device.process.wait(10.0)
        run(session, 2.0)
        assert where(session) == {"cpu:0"}


@pytest.mark.parametrize(
    "kills", [3, pytest.param(100, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_killed_at_any_moment_of_a_run(kills: int) -> None:
    """Nothing is lost and nothing is wrong, whatever the process was at; receipts tell of it."""
    drawn, told, threads = random.Random(kills), 0, 0
    with compiled() as session:
        for turn in range(kills):
            threads = threads or threading.active_count()
            registry.rescan()
            run(session, float(turn))
            device: Any = session.devices[ID]
            timer = threading.Timer(drawn.random() * 0.02, device.process.kill)
            timer.start()
            for number in itertools.count():
                found = run(session, float(number))
                told += len(found)
                assert all("SIGKILL" in one.error for one in found)
                if device.gone:
                    break
            timer.join()
            DEATHS_AT._counts.clear()  # this is no one kernel's doing
            assert ID in registry.lost()
        assert ended(threads), [thread.name for thread in threading.enumerate()]
    assert told > 0


def ended(threads: int) -> bool:
    """Whether there soon are no more threads than these, with those of the host's device."""
    until = time.monotonic() + 10.0
    while threading.active_count() > threads + 2 and time.monotonic() < until:
        time.sleep(0.05)
    return threading.active_count() <= threads + 2


def test_a_probe_fails_the_device_that_crashes_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CROSSDOCK_DEVICES", ID)
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", "off")
    seen = threading.Event()

    def kill_it(text: str, _fraction: float) -> None:
        if text.startswith("preparing isolated"):
            os.kill(registry.open_device(ID).process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            seen.set()

    begun = time.monotonic()
    machine = probe(quick=True, progress=kill_it)
    assert seen.is_set()
    states = {device.id: (str(device.status), device.reason) for device in machine.devices}
    assert states["cpu:0"][0].lower() == "pass"
    assert states[ID][0].lower() == "fail"
    assert "SIGKILL" in states[ID][1]
    assert time.monotonic() - begun < 60
