"""The smallest change that moves an op: batch, bandwidth of a link, bytes of a device's memory.

Every value tried is planned anew, by the same planner with the same options, and each is tried
once for all ops. The search goes outward from what is so by factors of two, and halves the interval
in which the op first runs elsewhere. A placement need not change once only: what is found is the
change nearest in that order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from crossdock.devices.base import DeviceInfo
from crossdock.kernels.refusal import Cause
from crossdock.runtime import planner
from crossdock.runtime.errors import Error, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.target import Target
from crossdock.scheduler import LinkModel

DOUBLINGS = 10
CLOSE = 1.02
"""Ratio of an interval's ends at which a search for a bandwidth or budget ends."""

Rebatch = Callable[[int], Graph]
"""The graph, after the passes, at another batch size; raises Error where it has none."""
Where = Callable[[float], str | None]
"""The device of an op at a value of a knob; None where there is no plan."""


@dataclass(frozen=True)
class Batch:
    """A graph's batch size, and how it is bound to another."""

    size: int
    rebatch: Rebatch


def batch_of(source: Graph, bound: Graph, simplify: Callable[[Graph], Graph]) -> Batch | None:
    """The batch of a graph: the symbol that its inputs' first dimension is; None without one.

    Args:
        source: as loaded.
        bound: with its symbols' sizes.
        simplify: the passes.
    """
    sizes: dict[str, int] = {}
    symbol = None
    for name, spec in source.inputs.items():
        if name in bound.inputs:
            pairs = zip(spec.shape, bound.inputs[name].dims, strict=True)
            sizes.update((d, n) for d, n in pairs if isinstance(d, str))
            first = spec.shape[0] if spec.shape else None
            symbol = first if symbol is None and isinstance(first, str) else symbol
    if symbol is None or symbol not in sizes:
        return None
    return Batch(sizes[symbol], lambda n: simplify(source.bind({**sizes, symbol: n})))


@dataclass(frozen=True)
class Flip:
    """The change of one thing that moves an op.

    Attributes:
        knob: "batch" (samples), "bandwidth" (factor on the links of ``at``) or "memory" (bytes of
            ``at``).
        at: the device whose link or memory it is; empty for a batch.
        now: what is so.
        value: where the op runs elsewhere; None where no value tried moves it.
        device: where it runs then; empty where there is no plan then.
        reason: why there is no value.
    """

    knob: str
    at: str
    now: float
    value: float | None
    device: str = ""
    reason: str = ""

    @property
    def brief(self) -> str:
        """In few words, for a table."""
        if self.value is None:
            return ""
        value = f"x {self.value:.3g}" if self.knob == "bandwidth" else f"{int(self.value)}"
        return " ".join(filter(None, (self.knob, self.at, value)))

    def __str__(self) -> str:
        what = {"batch": "batch", "bandwidth": f"bandwidth of the links of {self.at}",
                "memory": f"memory of {self.at}"}[self.knob]  # fmt: skip
        if self.value is None:
            return f"{what}: {self.reason}"
        then = f"it runs on {self.device}" if self.device else "there is no plan"
        if self.knob == "bandwidth":
            return f"{what} x {self.value:.3g}: {then}"
        return f"{what} {int(self.value)} instead of {int(self.now)}: {then}"


class Probes:
    """Placements under changed conditions, each planned once."""

    def __init__(self, planning: planner.Planning, batch: Batch | None) -> None:
        self.planning, self.batch = planning, batch
        self.target, self.options = planning.target, planning.options
        self._tried: dict[tuple[str, str, float], Mapping[str, str] | None] = {}

    def flips(self, plan: Plan, name: str, other: str | None, deadline: float) -> tuple[Flip, ...]:
        """What moves an op of ``plan`` whose best other device is ``other``."""
        step = plan.find(name)
        home = step.device
        far = next((d for d in (other, home) if d not in (None, HOST)), None)
        found = [self._batch(name, home, deadline)]
        if far is not None and other is not None:
            found.append(self._bandwidth(name, home, far, deadline))
        found.append(self._memory(plan, name, home, deadline))
        short = [c.device for c in step.choices if c.cause == Cause.MEMORY]
        found += [self._more_memory(d, name, home, deadline) for d in short]
        return tuple(found)

    def _batch(self, name: str, home: str, deadline: float) -> Flip:
        if self.batch is None:
            return Flip("batch", "", 0.0, None, "", "no input's first dimension is open")
        now = self.batch.size
        up = [float(now << k) for k in range(1, DOUBLINGS + 1)]
        down = [float(now >> k) for k in range(1, now.bit_length())]
        search = _Search(partial_of(self._where, "batch", "", name), home, deadline)
        value, device = search.nearest(float(now), (up, down), _between_counts)
        return _flip("batch", "", now, value, device, search)

    def _bandwidth(self, name: str, home: str, far: str, deadline: float) -> Flip:
        up = [2.0**k for k in range(1, DOUBLINGS + 1)]
        search = _Search(partial_of(self._where, "bandwidth", far, name), home, deadline)
        value, device = search.nearest(1.0, (up, [1 / f for f in up]), _between_factors)
        return _flip("bandwidth", far, 1.0, value, device, search)

    def _memory(self, plan: Plan, name: str, home: str, deadline: float) -> Flip:
        now = plan.device(home).peak_bytes
        down = [float(now >> k) for k in range(1, DOUBLINGS + 1) if now >> k]
        search = _Search(partial_of(self._where, "memory", home, name), home, deadline)
        value, device = search.nearest(float(now), ([max(0.0, now - 1.0)], down), _between_factors)
        return _flip("memory", home, now, value, device, search)

    def _more_memory(self, at: str, name: str, home: str, deadline: float) -> Flip:
        """The budget from which a device that is too small for the graph takes the op."""
        info = self.target.info(at)
        now = float(self.options.constraints.memory.get(at, info.memory_bytes))
        up = [max(now, 1.0) * 2.0**k for k in range(1, DOUBLINGS + 1)]
        search = _Search(partial_of(self._where, "memory", at, name), home, deadline)
        value, device = search.nearest(now, (up,), _between_factors)
        return _flip("memory", at, now, value, device, search)

    def _where(self, knob: str, at: str, name: str, value: float) -> str | None:
        key = (knob, at, value)
        if key not in self._tried:
            self._tried[key] = self._placement(*key)
        placed = self._tried[key]
        return None if placed is None else placed.get(name)

    def _planning(self, knob: str, at: str, value: float) -> planner.Planning:
        """The planning under the conditions of one value of a knob."""
        if knob == "batch":
            assert self.batch is not None
            graph = self.batch.rebatch(int(value))
            return planner.Planning(graph, self.target, self.options)
        if knob == "bandwidth":
            return self.planning.under(linked(self.target, at, value), self.options)
        rules = self.options.constraints
        rules = replace(rules, memory={**rules.memory, at: value})
        return self.planning.under(self.target, replace(self.options, constraints=rules))

    def _placement(self, knob: str, at: str, value: float) -> Mapping[str, str] | None:
        try:
            plan = self._planning(knob, at, value).plan()
        except PlanError:
            return None
        except Error:
            if knob == "batch":  # the model does not take this batch
                return None
            raise
        return {s.name: s.device for s in plan.launches()}


def partial_of(where: Callable[..., str | None], *fixed: str) -> Where:
    """A search's question from the probes' one."""
    return lambda value: where(*fixed, value)


def _flip(
    knob: str, at: str, now: float, value: float | None, device: str | None, search: _Search
) -> Flip:
    late = "not found in the time given"
    reason = late if search.late else f"stays from {search.least:.4g} to {search.most:.4g}"
    if value is None:
        return Flip(knob, at, now, None, "", reason)
    return Flip(knob, at, now, value, device or "")


class _Search:
    """One op's search along one knob."""

    def __init__(self, where: Where, home: str, deadline: float) -> None:
        self._where, self._home, self._deadline = where, home, deadline
        self.late = False
        self.least, self.most = math.inf, -math.inf

    def nearest(
        self,
        now: float,
        ways: Sequence[Sequence[float]],
        between: Callable[[float, float], float | None],
    ) -> tuple[float | None, str | None]:
        """The nearest value at which the op is elsewhere, and where; (None, None) for none."""
        last = [now] * len(ways)
        for k in range(max(map(len, ways))):
            for i, way in enumerate(ways):
                if k >= len(way):
                    continue
                device = self._ask(way[k])
                if self.late:
                    return None, None
                if device != self._home:
                    return self._halve(last[i], way[k], device, between)
                last[i] = way[k]
        return None, None

    def _halve(
        self,
        same: float,
        other: float,
        device: str | None,
        between: Callable[[float, float], float | None],
    ) -> tuple[float, str | None]:
        while (middle := between(same, other)) is not None:
            found = self._ask(middle)
            if self.late:
                break
            if found == self._home:
                same = middle
            else:
                other, device = middle, found
        self.late = False
        return other, device

    def _ask(self, value: float) -> str | None:
        self.late = time.monotonic() > self._deadline
        self.least, self.most = min(self.least, value), max(self.most, value)
        return None if self.late else self._where(value)


def _between_counts(a: float, b: float) -> float | None:
    return None if abs(a - b) <= 1 else float(round(math.sqrt(max(a, 1.0) * b)) or 1)


def _between_factors(a: float, b: float) -> float | None:
    low, high = min(a, b), max(a, b)
    return None if low <= 0 or high / low <= CLOSE else math.sqrt(low * high)


@dataclass(frozen=True)
class _Linked(Target):
    """A target with the bandwidth of one device's links multiplied."""

    at: str = ""
    factor: float = 1.0

    def link(self, src: DeviceInfo, dst: DeviceInfo) -> LinkModel:
        """The link as it is, or faster or slower; its latency stays."""
        known = super().link(src, dst)
        if self.at not in (src.id, dst.id):
            return known
        return LinkModel(
            known.latency_s, tuple((size, rate * self.factor) for size, rate in known.points)
        )


def linked(target: Target, device: str, factor: float) -> Target:
    """The target with the bandwidth of all links of ``device`` times ``factor``."""
    fields = {name: getattr(target, name) for name in target.__dataclass_fields__}
    return _Linked(**fields, at=device, factor=factor)
