"""Failures at every step of every device: the run goes on without it, and nobody hangs.

Here the devices of ``devices.sim`` fail, in the ways that they have themselves; see ``faults/`` for
devices that fail in any way.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import cpu, registry, sim
from crossdock.devices.sim import Fault
from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import (
    DeviceError,
    DeviceLost,
    ExecutionError,
    Timeout,
)
from crossdock.runtime.graph import Graph
from crossdock.runtime.session import Session
from tests.runtime.conftest import Machine
from tests.runtime.faults.graphs import branches
from tests.runtime.strategies import whole_feeds

Array = np.ndarray[Any, np.dtype[Any]]
pytestmark = pytest.mark.usefixtures("no_hang")
A, B = "sim:a", "sim:b"
PLACES = {"n0": A, "n1": B, "n2": A, "n3": "cpu:0", "n4": B, "n5": A, "n6": A}


def relay() -> Graph:
    return branches()[0]


def compiled(graph: Graph, **options: Any) -> Session:
    rules = xd.Constraints(pin=PLACES)
    return xd.compile(graph, ["cpu:0", A, B], constraints=rules, measure=False, **options)


def check(session: Session, graph: Graph, seed: int) -> None:
    feeds = whole_feeds(graph, seed)
    got, want = session.run(feeds, timeout=30), evaluate(graph, feeds)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def faulty(machine: Machine, device: str, fault: Fault) -> None:
    for name in ("a", "b"):
        machine.sim(name, faults=(fault,) if device == f"sim:{name}" else ())


EVERYWHERE = [(d, i) for d in (A, B) for i in range(list(PLACES.values()).count(d))]


@pytest.mark.parametrize(("device", "step"), EVERYWHERE)
@pytest.mark.parametrize("kind", ["oom", "launch", "lost"])
def test_a_failure_is_told_of_by_the_receipt_alone(
    machine: Machine, kind: str, device: str, step: int
) -> None:
    faulty(machine, device, Fault(kind, step))
    graph = relay()
    with compiled(graph, runs_at_once=1) as session:
        check(session, graph, 0)
        (told,) = session.receipt.recoveries
        assert told.device == device
        assert f"{device}{':' if kind != 'lost' else ' was lost at'} step {step}" in told.error
        for seed in range(3):
            check(session, graph, seed)
            assert not session.receipt.recoveries
        assert (device in session.devices) == (kind == "oom")


@pytest.mark.parametrize(("device", "step"), EVERYWHERE)
def test_a_hanging_device_lets_the_caller_go_at_the_deadline(
    machine: Machine, device: str, step: int
) -> None:
    faulty(machine, device, Fault("hang", step))
    graph = relay()
    with compiled(graph) as session:
        with pytest.raises(Timeout, match=r"not done after 0\.05 s"):
            session.run(whole_feeds(graph, 0), timeout=0.05)
        future = session.submit(whole_feeds(graph, 0), timeout=0.05)
        with pytest.raises(Timeout):
            future.result(30)
        # Closing the device fails what hangs: its workers come back to life.
        pool = session._plans.bound().pool
    machine.forget(device)
    end = time.monotonic() + 30
    while len(pool.free) != pool._made:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("number", range(11))
def test_a_copy_that_fails_is_made_good(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Every copy of the plan in turn: up, down, and both hops of one that is staged."""
    faulty(machine, "", Fault("slow", 0, factor=1.0))
    graph = relay()
    left = itertools.count()

    def failing(name: str) -> Any:
        method = getattr(sim.SimQueue, name)

        def copy(queue: sim.SimQueue, *args: Any) -> Any:
            if next(left) == number:
                raise DeviceLost(f"{queue.device.info.id}: the wire broke")
            return method(queue, *args)

        return copy

    with compiled(graph, runs_at_once=1) as session:
        assert len(session.plan.copies()) == 11
        for name in ("write", "read"):
            monkeypatch.setattr(sim.SimQueue, name, failing(name))
        check(session, graph, 0)
        assert "the wire broke" in session.receipt.recoveries[0].error
        check(session, graph, 1)


def test_a_slow_device_changes_no_answer(machine: Machine) -> None:
    faulty(machine, "sim:a", Fault("slow", 1, factor=1e6))
    graph = relay()
    with compiled(graph) as session:
        for seed in range(3):
            check(session, graph, seed)


def test_a_failure_takes_none_of_many_runs(machine: Machine) -> None:
    faulty(machine, "sim:b", Fault("launch", 40))
    graph = relay()
    feeds = [whole_feeds(graph, i) for i in range(8)]
    wants = [evaluate(graph, f) for f in feeds]
    with compiled(graph, runs_at_once=4) as session:
        futures = [(i, session.submit(feeds[i])) for _ in range(5) for i in range(8)]
        for i, future in futures:
            np.testing.assert_array_equal(future.result(60)["y"], wants[i]["y"])
        assert B not in session.devices


def test_what_is_no_error_of_ours_is_wrapped_with_its_cause(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty(machine, "", Fault("slow", 0, factor=1.0))
    graph = relay()

    def bad(*_: object) -> None:
        raise ZeroDivisionError("in a kernel")

    with compiled(graph) as session:
        with monkeypatch.context() as patch:
            patch.setattr(sim._Timed, "run", bad)
            with pytest.raises(ExecutionError, match="ZeroDivisionError: in a kernel") as caught:
                session.run(whole_feeds(graph, 0))
            assert isinstance(caught.value.__cause__, ZeroDivisionError)
        check(session, graph, 1)


def test_the_same_on_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = relay()

    def bad(*_: object) -> None:
        raise ZeroDivisionError("in a kernel")

    with xd.compile(graph, "cpu:0", measure=False, runs_at_once=1) as session:
        for timeout in (None, 30):
            with monkeypatch.context() as patch:
                patch.setattr(cpu.CpuQueue, "execute", bad)
                with pytest.raises(ExecutionError, match="ZeroDivisionError: in a kernel"):
                    session.run(whole_feeds(graph, 0), timeout=timeout)
            check(session, graph, 1)


def test_a_queue_that_cannot_even_finish_is_survived(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty(machine, "sim:a", Fault("launch", 1))
    graph = relay()

    def bad(*_: object) -> None:
        raise RuntimeError("the driver is gone")

    with compiled(graph, runs_at_once=1) as session:
        with monkeypatch.context() as patch:
            patch.setattr(sim.SimQueue, "finish", bad)
            check(session, graph, 0)
            assert "sim:a: step 1" in session.receipt.recoveries[0].error
        check(session, graph, 1)


def test_a_closed_device_is_an_error_and_no_hang(machine: Machine) -> None:
    faulty(machine, "", Fault("slow", 0, factor=1.0))
    graph = relay()
    with compiled(graph, runs_at_once=1) as session:
        check(session, graph, 0)
        machine.device("sim:b").worker("compute").stop()
        for _ in range(2):
            with pytest.raises(DeviceError, match="sim:b compute: it was closed"):
                session.run(whole_feeds(graph, 0), timeout=30)


def test_an_opencl_device_closed_under_a_session_is_an_error(opencl: Any) -> None:
    graph = relay()
    rules = xd.Constraints(pin={"n0": opencl.id, "n3": "cpu:0"})
    devices = [opencl.id, "cpu:0"]
    with xd.compile(graph, devices, constraints=rules, measure=False, threads=1) as session:
        check(session, graph, 0)
        closed = session.devices[opencl.id]
        closed.close()
        registry._OPEN.pop((opencl.id, 1, None))
        with pytest.raises(DeviceError):
            session.run(whole_feeds(graph, 0), timeout=30)
