"""The real executor on virtual time: it does what the replay of a plan says."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.devices.base import Cap
from crossdock.devices.virtual import VirtualDevice, VirtualTime
from crossdock.runtime.errors import DeviceError, PlanError
from crossdock.runtime.plan import Plan, Step
from crossdock.runtime.simulate import simulate
from crossdock.runtime.virtual import execute
from tests.runtime.handmade import device, step
from tests.runtime.handmade import plan as handmade

DEVICES = (
    device("cpu:0", "host"),
    device("opencl:0", "host"),
    device("opencl:1", "host"),
    device("cuda:0", "card"),
)
QUEUES = tuple(f"{d.id}/{role}" for d in DEVICES for role in ("compute", "upload", "download"))


def plan(steps: list[Step]) -> Plan:
    return handmade(steps, *DEVICES)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Waits are on other queues, as the planner makes them."""
    steps: list[Step] = []
    for index in range(draw(st.integers(0, 30))):
        queue = draw(st.sampled_from(QUEUES))
        others = [s.index for s in steps if s.queue != queue]
        waits = draw(st.sets(st.sampled_from(others), max_size=3)) if others else set()
        seconds = draw(st.floats(1e-6, 1.0))
        steps.append(step(index, queue, seconds, tuple(sorted(waits))))
    return plan(steps)


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(1, 3), st.sampled_from([1.0, 0.5, 3.0]))
def test_the_executor_does_what_the_replay_says(made: Plan, capacity: int, factor: float) -> None:
    room, scale = {"host": capacity}, {"cpu:0": factor}
    ran, replayed = execute(made, room, scale), simulate(made, room, scale)
    assert ran.makespan == replayed.makespan
    np.testing.assert_array_equal(ran.start, replayed.start)
    np.testing.assert_array_equal(ran.finish, replayed.finish)
    assert ran.busy == pytest.approx(replayed.busy)


def test_devices_that_share_a_core_take_turns_in_the_order_of_virtual_time() -> None:
    """The second step is ready first, though it stands later in the plan."""
    made = plan(
        [
            step(0, "cuda:0/compute", 5.0),
            step(1, "cpu:0/compute", 1.0, (0,)),
            step(2, "opencl:0/compute", 7.0),
            step(3, "cuda:0/compute", 1.0, (1,)),
        ]
    )
    alone, both = execute(made, {"host": 1}), execute(made, {"host": 2})
    assert alone.start.tolist() == [0.0, 7.0, 0.0, 8.0]
    assert both.start.tolist() == [0.0, 5.0, 0.0, 6.0]


def wide(nodes: int, devices: int) -> Plan:
    """Copies and ops around a ring of devices, so that every queue waits for others."""
    parts = tuple(device(f"cuda:{i}" if i else "cpu:0", f"g{i // 4}") for i in range(devices))
    steps: list[Step] = []
    for node in range(nodes):
        name = parts[(7 * node) % devices].id
        last = {s.queue: s.index for s in steps[-40:]}
        near = [i for q, i in last.items() if not q.startswith(f"{name}/")][:3]
        copy = step(len(steps), f"{name}/upload", 1e-5, tuple(sorted(near)))
        steps.append(copy)
        steps.append(step(len(steps), f"{name}/compute", 1e-4, (copy.index,)))
    return dataclasses.replace(plan(steps), devices=parts)


def test_a_thousand_nodes_on_sixteen_devices() -> None:
    made = wide(1000, 16)
    assert len(made.launches()) == 1000
    assert len({s.device for s in made.steps}) == 16
    room = {f"g{i}": 2 for i in range(4)}
    before = threading.active_count()
    ran = execute(made, room)
    np.testing.assert_array_equal(ran.finish, simulate(made, room).finish)
    assert ran.makespan > 1000 * 1e-4 / 8
    assert threading.active_count() <= before + 48


def test_a_plan_without_steps_takes_no_time() -> None:
    assert execute(plan([])).makespan == 0.0


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(PlanError, match="not before it"):
        execute(plan([step(0, "cpu:0/compute", 1.0, (0,))]))
    with pytest.raises(PlanError, match="greater than 0"):
        execute(plan([]), scale={"cpu:0": 0.0})


def test_a_virtual_device_has_no_memory_and_no_code() -> None:
    from crossdock.runtime.virtual import _info

    made = VirtualDevice(_info(DEVICES[0]), VirtualTime([], {}))
    assert Cap.VIRTUAL_TIME in made.info.caps
    with pytest.raises(DeviceError, match="virtual"):
        made.allocate(1, "arena")
    with pytest.raises(DeviceError, match="virtual"):
        made.record([])
