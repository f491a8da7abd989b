"""Times of a plan whose waits are not those of its schedule: every step as early as it may start.

Queues run in order, a step starts after what it waits for, and of the devices of one resource
group only so many compute at once, those that come first in the plan first.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import replace

from crossdock.runtime.plan import Plan, Step


def retimed(plan: Plan, capacity: Mapping[str, int]) -> Plan:
    """The plan with new starts, and their end as its prediction; the interval keeps its width."""
    groups = {d.id: d.resource_group for d in plan.devices}
    free: dict[str, float] = {}
    slots = {g: [0.0] * max(1, capacity.get(g, 1)) for g in groups.values()}
    ends: list[float] = []
    steps: list[Step] = []
    for step in plan.steps:
        start = max([free.get(step.queue, 0.0), *(ends[w] for w in step.waits)])
        slot = slots[groups[step.device]] if step.kind == "launch" else None
        if slot is not None:
            start = max(start, slot[0])
            heapq.heapreplace(slot, start + step.seconds)
        ends.append(start + step.seconds)
        free[step.queue] = ends[-1]
        steps.append(replace(step, start=start))
    predicted = max(ends, default=0.0)
    return replace(
        plan,
        steps=tuple(steps),
        predicted=predicted,
        low=max(0.0, predicted - (plan.predicted - plan.low)),
        high=predicted + (plan.high - plan.predicted),
        lower_bound=min(plan.lower_bound, predicted),
    )
