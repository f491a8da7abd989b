"""A plan run by the real executor on virtual time: its threads, segments and waits, no device.

Where ``simulate.simulate`` replays a plan by itself, this drives the executor that real runs use,
over devices whose steps take what the plan predicts and compute nothing. The two agree, which is
what shows that the executor keeps a plan's promises.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crossdock.devices.base import Cap, DeviceInfo
from crossdock.devices.virtual import (
    Row,
    TimedStep,
    VirtualBuffer,
    VirtualCommands,
    VirtualDevice,
    VirtualTime,
)
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import DevicePlan, Plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.program import Instance, Program, Windows
from crossdock.runtime.queued import QueuedRun
from crossdock.runtime.segments import segment
from crossdock.runtime.simulate import Simulation, check, step_seconds
from crossdock.runtime.tensor import Array

_NOTHING: Array = np.empty(0, np.uint8)


def execute(
    plan: Plan,
    capacity: Mapping[str, int] | None = None,
    scale: Mapping[str, float] | None = None,
) -> Simulation:
    """Run a plan on virtual time; arguments, result and errors are those of ``simulate``.

    Needs a thread a queue, but neither devices, kernels nor memory.
    """
    factors = dict(scale or {})
    check(plan, factors)
    segments = segment(plan.steps)
    rows = [Row(f"{part.device}/{part.role}", part.waits) for part in segments]
    time = VirtualTime(rows, _shared(plan, capacity or {}))
    devices = {part.id: VirtualDevice(_info(part), time) for part in plan.devices}
    instance = Instance({}, {}, {}, {}, {})
    seconds = [step_seconds(step, factors) for step in plan.steps]
    for part in segments:
        steps = [TimedStep(i, part.index, seconds[i]) for i in part.steps]
        if plan.steps[part.steps[0]].kind == "launch":
            instance.commands[part.index] = VirtualCommands(steps)
        else:
            buffer = VirtualBuffer(devices[part.device], steps[0])
            instance.copies[part.index] = (buffer, _NOTHING)
    graph = Graph({}, {}, (), {}, name=plan.graph_name)
    program = Program(graph, plan, dict(devices), {}, {}, {}, segments, Windows({}))
    try:
        QueuedRun(program, instance, lambda: None).across({}, Deadline())
    finally:
        for device in devices.values():
            device.close()
    return _simulation(plan, time, seconds)


def _shared(plan: Plan, capacity: Mapping[str, int]) -> dict[str, int]:
    """Steps at once of each group in which more could want to run."""
    queues = {(s.queue, s.device) for s in plan.steps if s.kind == "launch"}
    group_of = {part.id: part.resource_group for part in plan.devices}
    groups = [group_of.get(device, "") for _, device in queues]
    lanes = {group: max(1, capacity.get(group, 1)) for group in groups}
    return {group: n for group, n in lanes.items() if groups.count(group) > n}


def _info(part: DevicePlan) -> DeviceInfo:
    return DeviceInfo(
        id=part.id,
        kind="virtual",
        name=part.name,
        vendor="",
        driver="virtual time",
        physical_id=part.physical_id,
        resource_group=part.resource_group,
        compute_units=1,
        memory_bytes=0,
        caps=frozenset({Cap.EVENTS, Cap.COPY_QUEUES, Cap.VIRTUAL_TIME}),
        fingerprint=part.fingerprint,
    )


def _simulation(plan: Plan, time: VirtualTime, seconds: list[float]) -> Simulation:
    indices = range(len(plan.steps))
    start = np.array([time.start[i] for i in indices], np.float64)
    finish = np.array([time.finish[i] for i in indices], np.float64)
    busy: dict[str, float] = {}
    for step in plan.steps:
        busy[step.queue] = busy.get(step.queue, 0.0) + seconds[step.index]
    return Simulation(start, finish, float(finish.max(initial=0.0)), busy)
