"""What is left of a failed run: values not written over, on devices that are sound."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import crossdock as xd
from crossdock.runtime.graph import Graph
from crossdock.runtime.lineage import intact
from crossdock.runtime.program import Program
from tests.runtime.faults.machine import A, B, FaultyMachine, compiled


def chain() -> tuple[Graph, dict[str, str]]:
    """Six steps on one device, whose values take turns in its memory, then one on another."""
    b = xd.GraphBuilder()
    y = b.input("x", (64,))
    for i in range(6):
        y = b.neg(b.abs(y, label=f"abs{i}"), label=f"neg{i}")
    graph = b.build({"y": b.tanh(y, label="there")})
    return graph, {n.name: B if n.name == "there" else A for n in graph.nodes}


def over(program: Program, *unsettled: str) -> Any:
    """A run whose steps have all ended; devices that may still be at work do not count."""
    every = dict.fromkeys(range(len(program.segments)))
    progress = SimpleNamespace(begun=every, taken=every)
    return SimpleNamespace(
        program=program, progress=progress, spared=frozenset(), unsettled=set(unsettled)
    )


def test_values_that_were_written_over_are_gone(faulty: FaultyMachine) -> None:
    graph, places = chain()
    faulty.all("ab", "")
    with compiled(graph, places, skip_passes=["fuse-elementwise"]) as session:
        program = session.ready().program
        held = [value for value, device in intact(over(program)) if device == A]
        places_of = [
            (program.offsets[A][v], program.offsets[A][v] + program.graph.specs[v].nbytes)
            for v in held
        ]
        made = [n.outputs[0] for n in program.graph.nodes]
        assert made[-2] in held  # what the next device read
        assert 0 < len(held) < len(made) - 1
        ends = sorted(places_of)
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(ends))


def test_what_is_on_a_device_that_is_not_sound_is_gone(faulty: FaultyMachine) -> None:
    graph, places = chain()
    devices = faulty.all("ab", "")
    with compiled(graph, places) as session:
        program = session.ready().program
        assert {device for _, device in intact(over(program))} >= {A, B}
        assert A not in {device for _, device in intact(over(program, A))}
        devices[A].gone = True
        assert A not in {device for _, device in intact(over(program))}
        devices[A].gone = False
