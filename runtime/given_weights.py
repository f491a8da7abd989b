"""The weights that a given plan brings in each run: what it says of them, held against its ops.

Each is one that its op's kernel reads, goes by the name and has the size of that, and is copied by
one step before the op, which waits for it. Where they lie then follows, as it does for values, from
which step waits for which: a weight has its bytes to itself from its copy to the end of its op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Lowered
from crossdock.runtime import footprint
from crossdock.runtime.graph import Graph
from crossdock.runtime.order import most_brought
from crossdock.runtime.plan import HOST, Plan, Step
from crossdock.runtime.plan_data import damaged
from crossdock.runtime.plan_parts import Key
from crossdock.runtime.steps import queue_of
from crossdock.runtime.streams import name_of


def arrivals(plan: Plan) -> dict[int, list[int]]:
    """The steps that bring the weights of an op, by its step.

    Raises:
        PlanError: a step brings no weight of the plan, or one comes not at all, twice, elsewhere or
            too late.
    """
    stays = {stay.name: stay for stay in plan.streamed}
    ops = {(step.name, step.device): step.index for step in plan.launches()}
    made: dict[int, list[int]] = {}
    for step in (step for step in plan.steps if step.brings_weight):
        stay = stays.pop(step.name, None)
        reader = -1 if stay is None else ops.get((stay.op, stay.device), -1)
        sound = (
            stay is not None
            and (step.src, step.dst, step.device) == (HOST, stay.device, stay.device)
            and (step.queue, step.nbytes) == (queue_of(HOST, stay.device), stay.nbytes)
            and step.index < reader
            and stay.device != HOST
        )
        if not sound:
            raise damaged(f"step #{step.index} ({step.name!r:.80}) brings no weight to an op")
        made.setdefault(reader, []).append(step.index)
    if stays or sum(map(len, made.values())) < len(plan.streamed):
        name = next(iter(stays), plan.streamed[0].name)
        raise damaged(f"no step brings the weight {name!r:.80}, or one brings two")
    return made


def check_weights(
    plan: Plan, graph: Graph, roots: Mapping[str, str], lowered: Callable[[Step], Lowered]
) -> None:
    """Raise PlanError where an op does not read a weight that is brought to it.

    Args:
        plan: whose weights ``arrivals`` has found.
        graph: that its steps are of.
        roots: the values whose bytes values share.
        lowered: gives what a step is lowered to.
    """
    ops = {step.name: step for step in plan.launches()}
    taken = {*graph.specs, *ops}
    read: dict[str, dict[Key, int]] = {}
    for stay in plan.streamed:
        if stay.op not in read:
            step = ops[stay.op]
            read[stay.op] = footprint.weights(step, lowered(step), graph, roots)
        nbytes = read[stay.op].pop(stay.key, None)
        known = stay.name == name_of(stay.key, stay.op, taken)
        known = known and (stay.pack is None or not stay.weight)
        if nbytes != stay.nbytes or not known:
            raise damaged(f"{stay.op!r:.80} reads no weight {stay.name!r:.80} of {stay.nbytes} B")
        taken.add(stay.name)


def check_regions(
    plan: Plan,
    graph: Graph,
    steps: Sequence[Step],
    roots: Mapping[str, str],
    devices: Sequence[DeviceInfo],
) -> None:
    """Raise PlanError where more weights are there at once than a device's region holds.

    Or where that is larger than all that is brought; ``steps`` are the plan's with their waits.
    """
    most = most_brought(graph, steps, devices, roots, plan.streamed) if plan.streamed else {}
    for info in devices:
        alignment = max(64, info.alignment)
        sizes = [-(-s.nbytes // alignment) for s in plan.streamed if s.device == info.id]
        region = plan.device(info.id).region_bytes
        there = most.get(info.id, 0)
        if not there <= region <= sum(sizes) * alignment:
            raise damaged(f"weights of {there} B pass through {region} B of {info.id}")
