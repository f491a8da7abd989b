"""What a plan says of launches that are replayed as graphs, and of those that are not and why."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from crossdock.devices.program import Lowered, is_launch
from crossdock.devices.replay import graphs
from crossdock.runtime.in_place import apart
from crossdock.runtime.plan import Step
from crossdock.runtime.segments import segment

ARRAYS = "its array calls may allocate, which a capture forbids"
THEIRS = "it is over an array of the caller's, which may lie elsewhere in each run"
ALONE = "no other launch is beside it between two waits"


def told(
    steps: Sequence[Step],
    lowered: Mapping[int, Lowered],
    roots: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Step, ...]:
    """The steps, those in ``lowered`` with what is replayed of them; by index.

    These are the ops of devices that replay launches; ``roots`` has the graph's aliases.
    """
    theirs = apart(steps, lowered, roots)
    numbers = itertools.count(1)
    said: dict[int, str] = {}
    for part in segment(steps):
        here = [index for index in part.steps if index in lowered]
        calls = [
            (i, ARRAYS if not is_launch(call) else THEIRS if (i, n) in theirs else "")
            for i in here
            for n, call in enumerate(lowered[i].steps)
        ]
        number_of: dict[int, tuple[int, int]] = {}  # a call's graph, and how many launches that has
        for found in graphs([not why for _, why in calls]):
            number = next(numbers)
            number_of.update((at, (number, len(found))) for at in found)
        for index in here:
            places = [at for at, (i, _) in enumerate(calls) if i == index]
            said[index] = _said([(number_of.get(at), calls[at][1]) for at in places])
    return tuple(
        replace(step, replay=said[step.index]) if step.index in said else step for step in steps
    )


def _said(found: Sequence[tuple[tuple[int, int] | None, str]]) -> str:
    """What becomes of the calls of an op: their graphs, and why some are in none."""
    in_graphs = dict.fromkeys(graph for graph, _ in found if graph is not None)
    graphs_said = " and ".join(f"graph {number} of {count} launches" for number, count in in_graphs)
    count = sum(graph is None for graph, _ in found)
    why = "; ".join(dict.fromkeys(why for _, why in found if why)) or ALONE
    if not found:
        return "nothing to launch"
    if not in_graphs:
        return f"not replayed: {why}"
    if not count:
        return f"replayed in {graphs_said}"
    return f"replayed in {graphs_said}, {count} of its {len(found)} calls not: {why}"
