"""A plan's rules, checked the slow way: by the transitive closure of queue order and waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from crossdock.runtime import costing
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST, Plan, Step

FEED, END = -1, -2  # steps of their own: inputs are fed before all others, outputs read after them


def done_before(steps: Sequence[Step]) -> list[set[int]]:
    """For each step, the steps that are done when it starts."""
    last: dict[str, int] = {}
    result: list[set[int]] = []
    for i, step in enumerate(steps):
        done = {FEED}
        for before in (*step.waits, *([last[step.queue]] if step.queue in last else [])):
            done |= result[before] | {before}
        result.append(done)
        last[step.queue] = i
    return result


@dataclass
class _Life:
    """A value on a device: who writes it and who touches it."""

    writer: int
    touches: set[int] = field(default_factory=set)


def check_plan(graph: Graph, plan: Plan) -> None:
    """Assert that nothing is read before it is there and no bytes are shared by living values."""
    roots = costing.alias_roots(graph)
    done = done_before(plan.steps)
    lives = {(name, HOST): _Life(FEED, {FEED}) for name in graph.inputs}
    for step in plan.steps:
        reads, writes = (step.src, step.dst) if step.kind == "copy" else (step.device, step.device)
        for value in step.inputs:
            root = None if value is None else roots[value]
            if root is None or root in graph.constants:
                continue
            life = lives.get((root, reads))
            assert life is not None, f"{step.name} reads {root}, which never comes to {reads}"
            assert life.writer in done[step.index], f"{step.name} does not wait for {root}"
            life.touches.add(step.index)
        for value in step.outputs:
            assert (value, writes) not in lives, f"{value} is put on {writes} twice"
            lives[value, writes] = _Life(step.index, {step.index})
    for value in graph.outputs.values():
        if roots[value] not in graph.constants:
            lives[roots[value], HOST].touches.add(END)
    for part in plan.devices:
        _check_arena(graph, part.id, dict(part.offsets), part.arena_bytes, lives, done)


def _check_arena(
    graph: Graph,
    device: str,
    offsets: dict[str, int],
    arena: int,
    lives: dict[tuple[str, str], _Life],
    done: list[set[int]],
) -> None:
    here = {value: life for (value, where), life in lives.items() if where == device}
    assert set(offsets) == set(here), device
    ends = {value: offsets[value] + max(1, graph.specs[value].nbytes) for value in here}
    assert all(end <= arena for end in ends.values())
    for a, b in combinations(here, 2):
        if offsets[a] < ends[b] and offsets[b] < ends[a]:
            assert _over(here[a], here[b], done) or _over(here[b], here[a], done), (
                f"{a} and {b} share bytes of {device} and may be alive together"
            )


def _over(first: _Life, second: _Life, done: list[set[int]]) -> bool:
    """True where every use of the first is done before the second is written."""
    return second.writer != FEED and first.touches <= done[second.writer]
