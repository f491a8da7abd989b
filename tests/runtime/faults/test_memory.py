"""A device without memory: caches are freed, then less is asked of it, then it is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.faults import Fault
from crossdock.devices.sim import SimDevice, SimSpec
from crossdock.runtime.errors import DeviceError, OutOfMemory
from crossdock.runtime.graph import Graph
from tests.runtime.faults.machine import A, B, FaultyMachine, right
from tests.runtime.strategies import whole_feeds

pytestmark = pytest.mark.usefixtures("no_hang")
N = 64
BYTES = 4 * N * N


def wide(rows: int = N) -> Graph:
    """Eight values alive at once, unless they are made in another order; weights of ``rows``."""
    b = xd.GraphBuilder()
    x = b.input("x", (N, N))
    parts = [
        b.add(x, b.constant(np.full((rows, N), i, np.float32)), label=f"p{i}") for i in range(8)
    ]
    sums = [b.reduce_sum(p, axes=[1], label=f"s{i}") for i, p in enumerate(parts)]
    total = sums[0]
    for i, one in enumerate(sums[1:]):
        total = b.add(total, one, label=f"t{i}")
    return b.build({"y": total})


def session_on(graph: Graph, *devices: str, **options: Any) -> Any:
    return xd.compile(graph, list(devices), measure=False, runs_at_once=1, **options)


def test_a_passing_lack_of_memory_frees_caches_and_tries_again(faulty: FaultyMachine) -> None:
    graph = wide()
    before = faulty.add("a")
    with session_on(graph, A) as session:
        session.run(whole_feeds(graph, 0))
    allocations = before.faults.count("allocate")
    faulty.add("a", Fault("oom", allocations - 1, call="allocate"))
    with session_on(graph, A) as session:
        right(graph, whole_feeds(graph, 1), session.run(whole_feeds(graph, 1)))
        (told,) = session.receipt.recoveries
        assert told.action == "caches freed"
        assert {op.device for op in session.receipt.ops} == {A}
        right(graph, whole_feeds(graph, 2), session.run(whole_feeds(graph, 2)))
        assert not session.receipt.recoveries


def test_instances_that_no_run_uses_are_given_up_for_another_session(faulty: FaultyMachine) -> None:
    graph = wide()
    inner = SimDevice(SimSpec("inside", memory_bytes=64 * BYTES))
    device = faulty.add("a", inner=inner)
    with session_on(graph, A) as one:
        one.run(whole_feeds(graph, 0))
        part = one.plan.device(A)
        room = inner.info.memory_bytes - device.gauge.used
        hog = device.allocate(room - part.peak_bytes + part.run_bytes // 2)
        with session_on(graph, A) as other:
            right(graph, whole_feeds(graph, 1), other.run(whole_feeds(graph, 1)))
            assert not other.plan.rungs, "there was room for the plan as it is"
            assert [told.action for told in other.receipt.recoveries] == ["caches freed"]
        hog.release()
        right(graph, whole_feeds(graph, 2), one.run(whole_feeds(graph, 2)))


def test_less_memory_than_was_said_is_planned_for(faulty: FaultyMachine) -> None:
    """The ladder goes down to what the device really has; later runs need no rescue."""
    graph = wide()
    inner = SimDevice(SimSpec("inside", memory_bytes=64 * BYTES))
    device = faulty.add("a", inner=inner)
    with session_on(graph, A) as session:
        need = session.estimate().peak_bytes[A]
        hog = device.allocate(inner.info.memory_bytes - need + BYTES // 2)
        for seed in range(3):
            right(graph, whole_feeds(graph, seed), session.run(whole_feeds(graph, seed)))
            assert bool(session.receipt.recoveries) == (seed == 0)
            assert {op.device for op in session.receipt.ops} == {A}
        assert session.plan.rungs
        assert session.estimate().peak_bytes[A] < need
        hog.release()


def test_a_device_with_too_little_for_anything_is_left_out(faulty: FaultyMachine) -> None:
    graph = wide(rows=1)  # whose weights leave no room where they are given up
    inner = SimDevice(SimSpec("inside", memory_bytes=64 * BYTES))
    device = faulty.add("a", inner=inner)
    faulty.add("b")
    with session_on(graph, A, B, constraints=xd.Constraints(pin={"p?": A})) as session:
        hog = device.allocate(inner.info.memory_bytes - device.gauge.used - 64)
        right(graph, whole_feeds(graph, 0), session.run(whole_feeds(graph, 0)))
        assert session.receipt.recoveries[-1].action == "left out"
        assert {op.device for op in session.receipt.ops} == {B}
        right(graph, whole_feeds(graph, 1), session.run(whole_feeds(graph, 1)))
        assert not session.receipt.recoveries
        assert "too little memory" in session.plan.explain_op("p0")
        hog.release()
        registry.rescan()
        right(graph, whole_feeds(graph, 2), session.run(whole_feeds(graph, 2)))
        assert A in {op.device for op in session.receipt.ops}


def test_a_device_that_never_has_memory_is_left_out_step_by_step(faulty: FaultyMachine) -> None:
    graph = wide()
    device = faulty.add("a", Fault("oom", probability=1.0))
    with session_on(graph, A, constraints=xd.Constraints(pin={"p?": A})) as session:
        right(graph, whole_feeds(graph, 0), session.run(whole_feeds(graph, 0)))
        actions = [told.action for told in session.receipt.recoveries]
        assert [action.partition(" within")[0] for action in actions] == [
            "caches freed", "planned", "left out",
        ]  # fmt: skip
        assert A in session.devices, "a device without memory is not lost"
        asked = device.faults.count("execute")
        right(graph, whole_feeds(graph, 1), session.run(whole_feeds(graph, 1)))
        assert device.faults.count("execute") == asked
    assert device.faults.injected


def test_with_nowhere_to_go_the_refusal_has_the_numbers(faulty: FaultyMachine) -> None:
    graph = wide(rows=1)  # whose weights leave no room where they are given up
    inner = SimDevice(SimSpec("inside", memory_bytes=64 * BYTES))
    device = faulty.add("a", inner=inner)
    with session_on(graph, A, fallback="forbid") as session:
        hog = device.allocate(inner.info.memory_bytes - device.gauge.used - 64)
        with pytest.raises(OutOfMemory, match=r"bytes wanted .* free of") as caught:
            session.run(whole_feeds(graph, 0))
        assert caught.value.device == A
        assert caught.value.wanted > caught.value.free == 64
        assert caught.value.retryable
        hog.release()
        right(graph, whole_feeds(graph, 1), session.run(whole_feeds(graph, 1)))


def test_the_host_without_memory_is_refused_by_its_name(
    faulty: FaultyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossdock.devices.cpu import CpuDevice

    def full(self: CpuDevice, nbytes: int, label: str = "") -> Any:
        raise OutOfMemory(f"{nbytes} bytes wanted, none free")

    graph = wide()
    with session_on(graph, "cpu:0") as session:
        with monkeypatch.context() as patch:
            patch.setattr(CpuDevice, "allocate", full)
            with pytest.raises(DeviceError) as caught:
                session.run(whole_feeds(graph, 0))
        assert caught.value.device == "cpu:0"
        want = whole_feeds(graph, 1)
        assert set(session.run(want)) == {"y"}
