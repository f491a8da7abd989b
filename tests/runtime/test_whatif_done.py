"""What-if, and then really: on simulated devices the change takes what was predicted of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import topology
from crossdock.devices.sim import SimDevice
from crossdock.runtime import costing, planner
from crossdock.runtime.graph import Graph
from crossdock.runtime.knowledge import group_capacity
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.prepare import simplify
from crossdock.runtime.target import Target
from crossdock.runtime.virtual import execute
from crossdock.runtime.whatif import Changes, changed, placement

FAST, SLOW = "sim:fast", "sim:slow"
SPECS: dict[str, dict[str, Any]] = {
    "fast": {"bandwidth": 2e8, "link_bandwidth": 2e9},
    "slow": {"bandwidth": 1.5e8, "link_bandwidth": 2e9},
}
LINK = 2e7
"""Bytes a second of the slow link."""


def branches(count: int = 3, depth: int = 6) -> Graph:
    """Independent chains that no pass fuses, and their sum."""
    b = xd.GraphBuilder("branches")
    x = b.input("x", (64, 64))
    ends = []
    for side in range(count):
        y = b.relu(x, label=f"start{side}")
        for i in range(depth):
            y = b.softmax(y, axis=i % 2, label=f"{side}.{i}")
        ends.append(y)
    total = ends[0]
    for end in ends[1:]:
        total = b.add(total, end)
    return b.build({"y": total})


def devices(machine: Any, **given: dict[str, Any]) -> None:
    for name, spec in SPECS.items():
        machine.sim(name, **{**spec, "resource_group": topology.HOST_CPU, **given.get(name, {})})


def target(machine: Any, ids: tuple[str, ...]) -> Target:
    infos = tuple(machine.device(name).info for name in (HOST, *ids))
    return Target(infos, frozenset(ids), costing.store().model, group_capacity(infos))


def really(machine: Any, ids: tuple[str, ...]) -> tuple[Plan, float]:
    """The plan and the virtual seconds of a first run, on clocks that start at 0."""
    graph = branches()
    xd.compile(graph, ids, split=False).close()  # measures
    for name in ids:
        machine.forget(name)
    with xd.compile(graph, ids, split=False) as session:
        session.run({"x": np.ones((64, 64), np.float32)})
        opened = [machine.device(name) for name in ids]
        assert all(isinstance(device, SimDevice) for device in opened)
        return session.plan, max(device.now for device in opened)


def places(plan: Plan) -> dict[str, tuple[str, ...]]:
    return placement(plan, [n.name for n in simplify(branches(), Constraints()).nodes])


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "cpu_count", lambda: 2)


CASES: dict[str, Changes] = {
    "nothing": Changes(),
    "removed": Changes(without=(FAST,)),
    "one core": Changes(cores=1),
    "slow link": Changes(links={(HOST, SLOW): LINK, (SLOW, HOST): LINK}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_the_change_takes_what_was_predicted(
    case: str, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices(machine)
    before, _ = really(machine, (FAST, SLOW))
    whole = target(machine, (FAST, SLOW))
    other = changed(whole, CASES[case])
    graph = simplify(branches(), Constraints())
    plan = planner.make_plan(graph, other, planner.Options())
    simulated = execute(plan, other.capacity).makespan

    ids: tuple[str, ...] = (FAST, SLOW)
    if case == "removed":
        ids = (SLOW,)
    elif case == "one core":
        monkeypatch.setattr(topology, "cpu_count", lambda: 1)
    elif case == "slow link":
        devices(machine, slow={"link_bandwidth": LINK})
    made, seconds = really(machine, ids)

    there, here = places(plan), places(made)
    assert there.keys() == here.keys()
    assert sum(here[op] == device for op, device in there.items()) >= 0.95 * len(there)
    assert seconds == pytest.approx(simulated, rel=0.15)
    if case == "nothing":
        assert {d for devices in here.values() for d in devices} == set(ids)
    else:
        assert places(before) != here  # the change moved something
        assert seconds > 1.1 * execute(before, whole.capacity).makespan


def test_simulated_devices_and_virtual_ones_agree_on_a_plan(machine: Any) -> None:
    """Two ways to virtual time: devices that compute, and devices that only take their time."""
    devices(machine)
    plan, seconds = really(machine, (FAST, SLOW))
    assert plan.copies()
    assert seconds == pytest.approx(execute(plan, {topology.HOST_CPU: 2}).makespan, rel=0.02)
    assert seconds == pytest.approx(plan.predicted, rel=0.1)
