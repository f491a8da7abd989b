"""Runs that the caller conducts: right answers, no worker woken, failures and hangs told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices.base import Device, DeviceInfo, Event
from crossdock.devices.sim import Fault
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing
from crossdock.runtime.conduct import Conductor, conducts
from crossdock.runtime.errors import Cancelled, DeviceError, DeviceHung, DeviceLost, ExecutionError
from crossdock.runtime.executor import Run
from crossdock.runtime.graph import Graph
from crossdock.runtime.knowledge import group_capacity
from crossdock.runtime.plan import Constraints
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.ready import Ready, make_ready
from crossdock.runtime.segments import Segment
from crossdock.runtime.split import SplitGraph
from crossdock.runtime.split_choice import Planned
from crossdock.runtime.target import Target
from tests.runtime.conftest import Machine
from tests.runtime.strategies import exact_graphs, whole_feeds

BOTH = "cpu:0", "sim:quick"


def quick(machine: Machine, *faults: Fault) -> Device:
    """A simulated device that takes commands from any thread."""
    machine.sim("quick", faults=faults)
    device = machine.device("sim:quick")
    device.submits_at_once = True
    return device


def ready_of(machine: Machine, graph: Graph, pin: dict[str, str]) -> Ready:
    devices = {name: machine.device(name) for name in BOTH}
    infos = tuple(d.info for d in devices.values())
    target = Target(infos, frozenset(BOTH), costing.store().model, group_capacity(infos))
    plan = make_plan(graph, target, Options(constraints=Constraints(pin=pin)))
    return make_ready(graph, Planned(SplitGraph(graph), plan), target.asked, devices, 4, {})


def back_and_forth() -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (4, 8))
    y = b.tanh(b.exp(b.neg(x, label="there"), label="here"), label="again")
    return b.build({"y": y})


@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(exact_graphs(), st.data())
def test_any_graph_any_placement(machine: Machine, graph: Graph, data: st.DataObject) -> None:
    quick(machine)
    names = [n.name for n in graph.nodes if not costing.is_alias(n)]
    pin = {name: data.draw(st.sampled_from(BOTH)) for name in names}
    ready = ready_of(machine, graph, pin)
    feeds = [whole_feeds(graph, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda f: ready.run(f, Deadline(), profile=False).outputs, feeds))
    for fed, outputs in zip(feeds, done, strict=True):
        for name, value in evaluate(graph, fed).items():
            np.testing.assert_array_equal(outputs[name], value)


def test_no_worker_is_woken(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    device = quick(machine)
    graph = back_and_forth()
    ready = ready_of(machine, graph, {"there": BOTH[1], "here": BOTH[0], "again": BOTH[1]})
    assert conducts(ready.program)
    feeds = {"x": np.ones((4, 8), np.float32)}
    ready.run(feeds, Deadline(), profile=False)
    monkeypatch.setattr(device, "worker", lambda role: pytest.fail(f"{role} was woken"))
    outcome = ready.run(feeds, Deadline(), profile=False)
    np.testing.assert_allclose(outcome.outputs["y"], np.tanh(np.exp(-1.0)), rtol=1e-6)


def test_a_failure_is_told_and_the_device_is_lost(machine: Machine) -> None:
    quick(machine, Fault("launch", 3))
    graph = back_and_forth()
    ready = ready_of(machine, graph, {"there": BOTH[1], "here": BOTH[0], "again": BOTH[1]})
    feeds = {"x": np.ones((4, 8), np.float32)}
    for _ in range(2):
        try:
            ready.run(feeds, Deadline(), profile=False)
        except DeviceError as error:
            assert "failed to launch" in str(error)  # noqa: PT017 - one of the two runs
            break
    else:
        pytest.fail("no run failed")
    with pytest.raises(DeviceLost, match=r"failed to launch.*rescan"):
        ready.run(feeds, Deadline(), profile=False)


class Unending(Event):
    """Work that does not end before ``ends`` is set."""

    def __init__(self) -> None:
        self.ends = threading.Event()

    def wait(self) -> None:
        assert self.ends.wait(30)

    def done(self) -> bool:
        return self.ends.is_set()


def unending(device: Device, monkeypatch: pytest.MonkeyPatch) -> Unending:
    """What the device's queues give for all that they do from now on."""
    event = Unending()
    for queue in device.queues.values():
        for what in ("execute", "read", "write"):
            monkeypatch.setattr(queue, what, lambda *_: event)
        monkeypatch.setattr(queue, "finish", event.wait)
    return event


@pytest.mark.parametrize("again", BOTH)
def test_a_device_that_hangs_is_given_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """Whether the host waits for it on the way, or for the last of it."""
    event = unending(quick(machine), monkeypatch)
    ready = ready_of(machine, back_and_forth(), {"there": BOTH[1], "here": BOTH[0], "again": again})
    ready.watchdog = 0.3
    assert conducts(ready.program)
    with pytest.raises(DeviceHung, match=r"sim:quick/upload has not ended the copy of .x"):
        ready.run({"x": np.ones((4, 8), np.float32)}, Deadline(), profile=False)
    assert ready.program.devices[BOTH[1]].gone
    event.ends.set()


def test_a_device_that_hangs_when_the_host_fails(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first error is told once the device is given up: it might write to the run's memory."""
    event = unending(quick(machine), monkeypatch)
    graph = back_and_forth()
    ready = ready_of(machine, graph, {"there": BOTH[1], "here": BOTH[1], "again": BOTH[1]})
    ready.watchdog = 0.3

    def fail(self: Run, given: Event) -> None:
        raise ZeroDivisionError(str(given))

    monkeypatch.setattr(Run, "_wait", fail)
    with pytest.raises(ExecutionError, match="ZeroDivisionError"):
        ready.run({"x": np.ones((4, 8), np.float32)}, Deadline(), profile=False)
    assert "has not ended" in ready.program.devices[BOTH[1]].gone
    event.ends.set()


def test_a_wait_is_left_by_who_cancels_the_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = unending(quick(machine), monkeypatch)
    ready = ready_of(machine, back_and_forth(), {"there": BOTH[1]})
    deadline = Deadline()
    timers = [threading.Timer(0.1, deadline.cancel), threading.Timer(0.4, event.ends.set)]
    for timer in timers:
        timer.start()
    with pytest.raises(Cancelled):
        ready.run({"x": np.ones((4, 8), np.float32)}, deadline, profile=False)
    assert event.done()  # the memory is the device's till then
    assert not ready.program.devices[BOTH[1]].gone


@pytest.mark.parametrize(("again", "left"), [("cpu:0", True), ("sim:quick", False)])
def test_a_run_that_only_computes_on_the_host_leaves_the_device(
    machine: Machine, again: str, left: bool
) -> None:
    quick(machine)
    ready = ready_of(machine, back_and_forth(), {"there": BOTH[1], "here": BOTH[0], "again": again})
    freed: list[str] = []
    seen = []

    def do(part: Segment, waits: Sequence[Event]) -> None:
        if part.device == "cpu:0":
            seen.append(list(freed))

    Conductor(ready.program, do, lambda: None, Event.wait, lambda d: freed.append(d.info.id)).run()
    assert seen == [["sim:quick"] if left else []]


def test_only_with_one_device_that_takes_commands_at_once(machine: Machine) -> None:
    device = quick(machine)
    graph = back_and_forth()
    ready = ready_of(machine, graph, {"there": BOTH[1]})
    assert conducts(ready.program)
    device.submits_at_once = False
    assert not conducts(ready.program)
    assert not conducts(
        ready_of(machine, graph, dict.fromkeys(("there", "here", "again"), BOTH[0])).program
    )


def test_opencl(opencl: DeviceInfo) -> None:
    graph = back_and_forth()
    pin = {"there": opencl.id, "here": "cpu:0", "again": opencl.id}
    constraints = Constraints(pin=pin)
    with xd.compile(graph, ["cpu:0", opencl.id], constraints=constraints, measure=False) as session:
        feeds = {"x": np.ones((4, 8), np.float32)}
        with ThreadPoolExecutor(4) as pool:
            for outputs in pool.map(session.run, [feeds] * 16):
                np.testing.assert_allclose(outputs["y"], np.tanh(np.exp(-1.0)), rtol=1e-6)
