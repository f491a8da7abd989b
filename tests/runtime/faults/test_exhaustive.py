"""A fault at every step, copy, allocation and build of every device, of every kind.

The answer is bit-equal to the fault-free one, no device is called after it failed for good, and the
receipt says what happened.
"""

from __future__ import annotations

from typing import Any

import pytest

import crossdock as xd
from crossdock.devices.faults import CALLS, FATAL, Fault
from crossdock.runtime import refused
from crossdock.runtime.receipt import Receipt
from tests.runtime.faults.graphs import GRAPHS
from tests.runtime.faults.machine import A, B, C, FaultyMachine, compiled, right, untouched
from tests.runtime.strategies import whole_feeds

pytestmark = pytest.mark.usefixtures("no_hang")
TIMES = {"hang": {"seconds": 60.0}, "slow": {"factor": 2.0}}
CASES = [
    (kind, call)
    for kind, calls in CALLS.items()
    for call in calls
    if kind not in ("corrupt", "short", "early", "hang")
]


def at(kind: str, call: str, nth: int) -> Fault:
    return Fault(kind, nth, call=call, **TIMES.get(kind, {}))  # type: ignore[arg-type]


def calls_of(faulty: FaultyMachine, name: str, call: str) -> dict[str, int]:
    """How many calls of a sort two runs make, from opening the devices on, by device."""
    graph, places = GRAPHS[name]()
    devices = faulty.all("abc", "")
    with compiled(graph, places, runs_at_once=1) as session:
        for seed in range(2):
            session.run(whole_feeds(graph, seed), timeout=30)
    return {device: made.faults.count(call) for device, made in devices.items()}


def session_of(faulty: FaultyMachine, name: str) -> xd.Session:
    graph, places = GRAPHS[name]()
    faulty.all("abc", "")
    return compiled(graph, places, runs_at_once=1)


def outlives(
    faulty: FaultyMachine, name: str, device: str, fault: Fault, **options: Any
) -> Receipt:
    """Two runs with a fault on the way, and one after it."""
    graph, places = GRAPHS[name]()
    devices = faulty.all("abc", device, fault)
    told: Receipt | None = None
    with compiled(graph, places, runs_at_once=1, **options) as session:
        for seed in range(3):
            feeds = whole_feeds(graph, seed)
            right(graph, feeds, session.run(feeds, timeout=30))
            if session.receipt.recoveries and told is None:
                told = session.receipt
        if fault.kind in FATAL:
            assert device not in session.devices
            assert device not in {s.device for s in session.plan.steps}
    assert devices[device].faults.injected
    untouched(list(devices.values()))
    if fault.kind == "slow":
        assert told is None
        return session.receipt
    if told is None:  # it failed while the session was made
        assert fault.at in ("allocate", "compile")
        return session.receipt
    return told


QUICK = {("oom", "execute"), ("launch", "execute"), ("lost", "copy"), ("build", "compile")}


@pytest.mark.parametrize("name", ["branches"])
@pytest.mark.parametrize(("kind", "call"), sorted(QUICK))
@pytest.mark.parametrize("device", [A, B, C])
def test_a_fault_at_every_call(
    faulty: FaultyMachine, name: str, device: str, kind: str, call: str
) -> None:
    everywhere(faulty, name, device, kind, call)


@pytest.mark.parametrize(
    ("kind", "call", "device"), [("lost", "execute", A), ("launch", "copy", C)]
)
def test_a_fault_at_every_call_where_copies_are_direct(
    faulty: FaultyMachine, device: str, kind: str, call: str
) -> None:
    faulty.peers = ("a", "b", "c")
    everywhere(faulty, "branches", device, kind, call)
    with session_of(faulty, "branches") as session:
        assert any("cpu:0" not in (c.src, c.dst) for c in session.plan.copies())


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("kind", "call"), CASES)
@pytest.mark.parametrize("device", [A, B, C])
def test_every_fault_at_every_call_where_copies_are_direct(
    faulty: FaultyMachine, name: str, device: str, kind: str, call: str
) -> None:
    faulty.peers = ("a", "b", "c")
    everywhere(faulty, name, device, kind, call)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("kind", "call"), CASES)
@pytest.mark.parametrize("device", [A, B, C])
def test_every_fault_at_every_call(
    faulty: FaultyMachine, name: str, device: str, kind: str, call: str
) -> None:
    everywhere(faulty, name, device, kind, call)


def everywhere(faulty: FaultyMachine, name: str, device: str, kind: str, call: str) -> None:
    for nth in range(calls_of(faulty, name, call)[device]):
        receipt = outlives(faulty, name, device, at(kind, call, nth))
        for op in receipt.ops:
            assert op.device != device or kind not in FATAL or op.name not in lost_ops(receipt)
        xd.rescan()
        refused.forget()


def lost_ops(receipt: Receipt) -> set[str]:
    """The ops that were run after a loss."""
    return {op for told in receipt.recoveries for op in told.placed}


@pytest.mark.slow
@pytest.mark.parametrize("call", ["execute", "copy"])
@pytest.mark.parametrize("name", ["branches"])
@pytest.mark.parametrize("device", [A, B, C])
def test_a_hang_at_every_call(faulty: FaultyMachine, name: str, device: str, call: str) -> None:
    for nth in range(calls_of(faulty, name, call)[device]):
        receipt = outlives(faulty, name, device, at("hang", call, nth), watchdog=0.1)
        (told,) = receipt.recoveries
        assert told.action == "lost"
        assert "DeviceHung" in told.error
        xd.rescan()
        refused.forget()
