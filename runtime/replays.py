"""What a plan says of launches that are replayed as graphs, and of those that are not and why."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from crossdock.devices.program import Lowered, is_launch
from crossdock.devices.replay import graphs
from crossdock.runtime.plan import Step
from crossdock.runtime.segments import segment

ARRAYS = "its array calls may allocate, which a capture forbids"
ALONE = "no other launch is beside it between two waits"


def told(steps: Sequence[Step], lowered: Mapping[int, Lowered]) -> tuple[Step, ...]:
    """The steps, those in ``lowered`` with what is replayed of them; by index.

    These are the ops of devices that replay launches.
    """
    numbers = itertools.count(1)
    said: dict[int, str] = {}
    for part in segment(steps):
        here = [index for index in part.steps if index in lowered]
        calls = [(i, is_launch(s)) for i in here for s in lowered[i].steps]
        number_of: dict[int, tuple[int, int]] = {}  # a call's graph, and how many launches that has
        for found in graphs([launch for _, launch in calls]):
            number = next(numbers)
            number_of.update((at, (number, len(found))) for at in found)
        for index in here:
            places = [at for at, (i, _) in enumerate(calls) if i == index]
            said[index] = _said(
                [number_of.get(at) for at in places], [calls[at][1] for at in places]
            )
    return tuple(
        replace(step, replay=said[step.index]) if step.index in said else step for step in steps
    )


def _said(found: Sequence[tuple[int, int] | None], launches: Sequence[bool]) -> str:
    """What becomes of the calls of an op: their graphs, and which of them are launches."""
    in_graphs = dict.fromkeys(graph for graph in found if graph is not None)
    graphs_said = " and ".join(f"graph {number} of {count} launches" for number, count in in_graphs)
    apart = sum(graph is None for graph in found)
    why = ARRAYS if not all(launches) else ALONE
    if not found:
        return "nothing to launch"
    if not in_graphs:
        return f"not replayed: {why}"
    if not apart:
        return f"replayed in {graphs_said}"
    return f"replayed in {graphs_said}, {apart} of its {len(found)} calls not: {why}"
