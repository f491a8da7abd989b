"""What is alive on a device while its ops run one after the other: which values, and the peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan


@dataclass(frozen=True)
class Idle:
    """A value that lies untouched on a device after op ``before`` until op ``until`` (places)."""

    value: str
    nbytes: int
    before: int
    until: int


class Lane:
    """The ops of one device in order, and the places at which each touches a value.

    A value is held from the first op that touches it to the last; values of the graph's inputs on
    the host are held from the start, and its outputs there to the end.
    """

    def __init__(self, graph: Graph, plan: Plan, device: str, roots: Mapping[str, str]) -> None:
        self.names = [s.name for s in plan.launches() if s.device == device]
        self.touches: dict[str, list[int]] = {}
        self._sizes: dict[str, int] = {}
        lane = [s for s in plan.launches() if s.device == device]
        for at, step in enumerate(lane):
            for value in dict.fromkeys((*step.inputs, *step.outputs)):
                root = None if value is None else roots[value]
                if root is None or root in graph.constants:
                    continue
                self._sizes[root] = graph.specs[root].nbytes
                places = self.touches.setdefault(root, [])
                if not places or places[-1] != at:
                    places.append(at)

    def held(self) -> list[int]:
        """Bytes held at each place."""
        held = [0] * (len(self.names) + 1)
        for value, places in self.touches.items():
            held[places[0]] += self._sizes[value]
            held[places[-1] + 1] -= self._sizes[value]
        for at in range(1, len(held)):
            held[at] += held[at - 1]
        return held[:-1]

    def beyond(self, room: float) -> float:
        """Sum over the places of the bytes held beyond ``room``."""
        return sum(max(0.0, held - room) for held in self.held())

    def peak(self) -> int:
        """The first place at which most is held; 0 for a lane without ops."""
        held = self.held()
        return held.index(max(held)) if held else 0

    def alive(self, at: int) -> list[str]:
        """Values held at a place, largest first."""
        found = [v for v, p in self.touches.items() if p[0] <= at <= p[-1]]
        return sorted(found, key=lambda v: -self._sizes[v])

    def idle(self, at: int) -> list[Idle]:
        """Values that are held at a place and not touched there, largest first."""
        found = []
        for value in self.alive(at):
            places = self.touches[value]
            if at not in places:
                after = next(i for i, place in enumerate(places) if place > at)
                found.append(Idle(value, self._sizes[value], places[after - 1], places[after]))
        return found
