"""What a plan was made for, and what of it has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crossdock.devices.base import DeviceInfo
from crossdock.runtime.errors import StalePlan
from crossdock.runtime.plan import DevicePlan, Plan


@dataclass(frozen=True)
class Situation:
    """What a plan is fresh for: a graph's digest, the kernel set, the costs, devices by id."""

    graph: str
    kernels: str
    cost_model: str
    devices: Mapping[str, DeviceInfo]


def staleness(plan: Plan, now: Situation) -> dict[str, str]:
    """What changed since a plan was made, a sentence each; empty for a fresh plan.

    Keys are "graph", "kernel set", "cost model", and "driver", "device" or "missing" with the
    device's id after a blank.
    """
    found = {}
    if now.graph != plan.graph:
        found["graph"] = f"the plan of {plan.graph_name!r} is for another graph"
    if now.kernels != plan.kernels:
        found["kernel set"] = "the kernels are not those that the plan was made with"
    if now.cost_model != plan.cost_model:
        found["cost model"] = (
            f"costs are of version {now.cost_model or 'none'}, the plan's of "
            f"{plan.cost_model or 'none'}: its predictions are no longer the best there are"
        )
    for part in plan.devices:
        found.update(_device_staleness(part, now.devices.get(part.id)))
    return found


def check_fresh(plan: Plan, now: Situation) -> None:
    """Raise StalePlan naming all that changed; other costs alone leave a plan runnable."""
    found = staleness(plan, now)
    found.pop("cost model", None)
    if found:
        raise StalePlan(f"{'; '.join(found.values())}; plan again")


def _device_staleness(part: DevicePlan, here: DeviceInfo | None) -> dict[str, str]:
    if here is None:
        missing = f"the plan needs {part.id} ({part.name}), which is not here"
        return {f"missing {part.id}": missing}
    if here.driver != part.driver:
        said = f"the driver of {part.id} is {here.driver!r}, the plan is for {part.driver!r}"
        return {f"driver {part.id}": said}
    if here.fingerprint != part.fingerprint:
        said = f"{part.id} is not the device the plan was made for ({part.name})"
        return {f"device {part.id}": said}
    return {}
