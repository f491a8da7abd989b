"""Predicted latency over batch sizes and device sets, and the batch from which a set pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from crossdock.runtime import planner, virtual
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST
from crossdock.runtime.split_choice import Planned
from crossdock.runtime.target import Target

Devices = tuple[str, ...]
"""A device set: ids in the target's order."""
PAYS = 0.99
"""A set pays where it takes at most this share of what it is compared with."""


@dataclass(frozen=True)
class Point:
    """What one device set is predicted to do with one batch.

    Times in seconds; None with a ``reason`` where the set has no plan. ``simulated`` is what the
    executor takes on virtual time; ``seconds`` has a share of the weights' upload beside it, and
    what whole runs take beyond their steps. ``shares`` are of the ops, ``peak_bytes`` of memory,
    both by device id.
    """

    batch: int
    devices: Devices
    seconds: float | None
    low: float | None = None
    high: float | None = None
    lower_bound: float | None = None
    simulated: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""

    @property
    def throughput(self) -> float | None:
        """Samples a second, one run after the other."""
        return self.batch / self.seconds if self.seconds else None


@dataclass(frozen=True)
class BreakEven:
    """From which batch on ``devices`` take less than ``versus``, of the batches swept.

    ``batch`` is None where they do not at the largest batch; ``exact`` says that the batch before
    it was tried and does not pay, which it is not for the smallest batch swept.
    """

    devices: Devices
    versus: str
    batch: int | None
    exact: bool


@dataclass(frozen=True)
class Sweep:
    """All points, by batch and then by set, and where the sets break even."""

    batches: tuple[int, ...]
    sets: tuple[Devices, ...]
    points: tuple[Point, ...]
    break_even: tuple[BreakEven, ...]

    def point(self, batch: int, devices: Devices) -> Point:
        """One of the points."""
        return next(p for p in self.points if (p.batch, p.devices) == (batch, devices))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        points = [{**dataclasses.asdict(p), "throughput": p.throughput} for p in self.points]
        return {
            "schema": "crossdock-sweep/1",
            "batches": list(self.batches),
            "sets": [list(s) for s in self.sets],
            "points": points,
            "break_even": [dataclasses.asdict(b) for b in self.break_even],
        }


Plans = Callable[[Graph, Target, planner.Options], Planned]
At = Callable[[int, bool], tuple[Graph, Target, Plans]]
"""The graph bound to a batch, its target with every device, and what plans it.

The flag says that costs may be measured.
"""


class Sweeper:
    """Plans batches on device sets, each once."""

    def __init__(self, at: At, options: planner.Options) -> None:
        self._at, self._options = at, options
        self._bound: dict[int, tuple[Graph, Target, Plans]] = {}
        self._points: dict[tuple[int, Devices], Point] = {}

    def sweep(self, batches: Sequence[int], sets: Sequence[Devices] = ()) -> Sweep:
        """Plan every batch on every set.

        Args:
            batches: at least one, each at least 1.
            sets: device ids; none for each device alone and all together.

        Raises:
            PlanError: a set names a device that there is not.
        """
        sizes = tuple(sorted(set(batches)))
        for batch in sizes:
            self._bound[batch] = self._at(batch, True)
        ids = [d.id for d in self._bound[sizes[0]][1].devices]
        asked = self._bound[sizes[0]][1].asked
        wanted = tuple(_ordered(s, ids) for s in sets) or default_sets(
            [name for name in ids if name in asked]
        )
        points = tuple(self.point(batch, s) for batch in sizes for s in wanted)
        alone = [s for s in wanted if len(s) == 1]
        found = []
        for s in wanted:
            if s != (HOST,) and (HOST,) in wanted:
                found.append(self._break_even(sizes, s, HOST, [(HOST,)]))
            others = [a for a in alone if a != s]
            if others and others != [(HOST,)]:
                found.append(self._break_even(sizes, s, "best other single device", others))
        return Sweep(sizes, wanted, points, tuple(found))

    def point(self, batch: int, devices: Devices) -> Point:
        """Plan a batch on a set."""
        found = self._points.get((batch, devices))
        if found is None:
            found = self._points[batch, devices] = self._plan(batch, devices)
        return found

    def _plan(self, batch: int, devices: Devices) -> Point:
        if batch not in self._bound:
            self._bound[batch] = self._at(batch, False)
        graph, target, plans = self._bound[batch]
        sites = self._options.sites.within({d.id for d in target.devices})
        infos = tuple(d for d in target.devices if d.id in {HOST, *devices, *sites.devices})
        narrowed = replace(target, devices=infos, asked=frozenset(devices))
        options = replace(self._options, sites=sites)
        try:
            made = plans(graph, narrowed.holding(sites.devices), options).plan
        except PlanError as error:
            return Point(batch, devices, None, reason=str(error))
        return Point(
            batch,
            devices,
            made.predicted,
            made.low,
            made.high,
            made.lower_bound,
            virtual.execute(made, narrowed.capacity).makespan,
            made.shares(),
            {d.id: d.peak_bytes for d in made.devices},
        )

    def _break_even(
        self, batches: Sequence[int], devices: Devices, versus: str, others: Sequence[Devices]
    ) -> BreakEven:
        """The first batch of the last stretch of batches that pay, found by bisection."""
        paying = [b for b in batches if self._pays(b, devices, others)]
        idle = [b for b in batches if b not in paying]
        after = [b for b in paying if b > max(idle, default=0)]
        if not after:
            return BreakEven(devices, versus, None, False)
        if not idle:
            return BreakEven(devices, versus, after[0], after[0] == 1)
        low, high = max(idle), after[0]
        while high - low > 1:
            middle = (low + high) // 2
            if self._pays(middle, devices, others):
                high = middle
            else:
                low = middle
        return BreakEven(devices, versus, high, True)

    def _pays(self, batch: int, devices: Devices, others: Sequence[Devices]) -> bool:
        own = self.point(batch, devices).seconds
        if own is None:
            return False
        found = (self.point(batch, other).seconds for other in others)
        best = min((s for s in found if s is not None), default=None)
        return best is None or own <= PAYS * best


def default_sets(ids: Sequence[str]) -> tuple[Devices, ...]:
    """Each device alone, and all together."""
    alone = tuple((name,) for name in ids)
    return alone if len(ids) < 2 else (*alone, tuple(ids))


def _ordered(devices: Devices, ids: Sequence[str]) -> Devices:
    for name in devices:
        if name not in ids:
            raise PlanError(f"--set {name}: no such device; there are {', '.join(sorted(ids))}")
    return tuple(name for name in ids if name in devices)
