"""What a region costs in parts: seconds a device by share, and the shares that end together.

The time of a part on a device is known at a few sizes (measured, or fitted by the cost model) and
interpolated between them; the best shares are those with which all devices are done at the same
time, found by bisection over that time. That is how loops are partitioned over unequal processors
by *functional performance models* (Lastovetsky and Reddy, 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from crossdock.devices.base import DeviceInfo
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing
from crossdock.runtime.calls import is_alias, op_call
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST
from crossdock.runtime.sites import ON_HOST, Sites
from crossdock.runtime.split import Region, SplitGraph, rewrite
from crossdock.runtime.target import Target
from crossdock.scheduler import Estimate, Source

Measure = Callable[[str, Mapping[str, OpCall]], None]
"""Called with a device id and ops by name before their costs there are asked for."""

TILE = 16
"""Parts are multiples of so many rows, columns or channels where there are enough of them: kernels
work on tiles, and a part of a tile takes as long as a whole one."""

HAND_OVER_S = 2e-5
"""Seconds that it takes to hand a part to another device and to hear that it is done, beside the
copies: what the caller's thread and the driver do."""

ROUNDS = 4
"""How often shares are found anew at most, each time from the costs of the last ones."""

DOUBT = (Source.MEASURED, Source.FITTED, Source.ROOFLINE, Source.UNKNOWN)
FITTED, UNKNOWN = 1, 3


@dataclass
class Curve:
    """Seconds of a part on one device by units, through points, from 0 at no units."""

    points: dict[int, float] = field(default_factory=dict)

    def seconds(self, units: int) -> float:
        """Interpolated; beyond the points as the line through the nearest two."""
        if units <= 0:
            return 0.0
        if units in self.points:
            return self.points[units]
        known = sorted(self.points.items())
        below = [p for p in known if p[0] < units][-1:] or [(0, 0.0)]
        above = [p for p in known if p[0] > units][:1]
        if not above:
            return below[0][1] * units / below[0][0]
        (a, ta), (b, tb) = below[0], above[0]
        if a == 0 and len(known) > 1:  # the line through the two smallest keeps a launch's cost
            (b, tb), (c, tc) = known[:2]
            return max(tb + (tc - tb) * (units - b) / (c - b), tb * units / b)
        return ta + (tb - ta) * (units - a) / (b - a)


@dataclass(frozen=True)
class Shares:
    """Units by device, with predicted seconds until all parts are done and joined.

    ``spread`` is half the 80 % interval of the seconds, as far as they were measured.
    """

    devices: tuple[str, ...]
    sizes: tuple[int, ...]
    seconds: float
    spread: float = 0.0


@dataclass
class _Total:
    """Seconds of ops one after the other, half their interval, and how little is known of them."""

    seconds: float = 0.0
    variance: float = 0.0
    doubt: int = 0

    def add(self, estimate: Estimate) -> None:
        """Add an op. What models say is off by much, but alike for the whole and its parts."""
        seconds, low, high = costing.interval(estimate)
        self.seconds += seconds
        if estimate.source is Source.MEASURED:
            self.variance += ((high - low) / 2) ** 2
        self.doubt = max(self.doubt, DOUBT.index(estimate.source))


class RegionCost:
    """Costs of one region whole and in parts, on the devices that may have one each."""

    def __init__(
        self,
        given: SplitGraph,
        region: Region,
        target: Target,
        devices: Sequence[DeviceInfo],
        sites: Sites = ON_HOST,
    ) -> None:
        """What other ops make and read is taken to be on the host, the graph's ends where said."""
        self.given, self.region, self.target, self.sites = given, region, target, sites
        self.devices = {d.id: d for d in devices}
        graph = given.graph
        self.nodes = [n for n in graph.nodes if n.name in set(region.nodes)]
        calls = {n.name: op_call(graph, n) for n in self.nodes if not is_alias(n)}
        self._curves = {d: Curve() for d in self.devices}
        self._trust: dict[str, int] = {}
        self._variance: dict[str, float] = {}
        for name, curve in self._curves.items():
            total = self._sum(name, calls)
            if total.doubt >= UNKNOWN:
                del self.devices[name]
            else:
                curve.points[region.units] = total.seconds
                self._trust[name] = max(total.doubt, FITTED)
                self._variance[name] = total.variance
        self._inside = {v for n in self.nodes for v in n.outputs}
        self._home = min(
            self.devices, key=lambda d: self._curves[d].seconds(region.units), default=HOST
        )
        self._in = self._read()
        self._out = self._written()
        self.extra = 0.0

    @property
    def whole(self) -> Shares:
        """The whole region on the device that takes least for it."""
        units = self.region.units
        device = min(self.devices, key=lambda d: self._finish(d, units))
        spread = math.sqrt(self._variance[device])
        return Shares((device,), (units,), self._finish(device, units), spread)

    @property
    def grain(self) -> int:
        """Units that sizes are multiples of."""
        region = self.region
        size = self.given.graph.specs[self._seed_value()].dims[region.axis]
        each = max(1, size // region.units)
        return max(1, min(-(-TILE // each), region.units // 32))

    def guess(self) -> Shares:
        """The shares that are best if a part's time is its share of the whole's."""
        return self._solve()

    def best(self, measure: Measure | None = None) -> Shares:
        """The best shares: of one device, where more are no better.

        Shares are found on what is known, their costs asked for (and measured, with ``measure``),
        and found again, until they stay.
        """
        tried = {self.whole.sizes: self.whole}
        for _ in range(ROUNDS):
            shares = self._solve()
            if len(shares.sizes) < 2 or shares.sizes in tried:
                break
            tried[shares.sizes] = self.evaluate(shares, measure)
        return min(tried.values(), key=lambda s: s.seconds)

    def evaluate(self, shares: Shares, measure: Measure | None = None) -> Shares:
        """The shares with seconds from costs of the exact parts."""
        made = rewrite(self.given, self.region, shares.sizes)
        own = {n.name for n in self.given.graph.nodes}
        aside: dict[str, OpCall] = {}
        parts: list[dict[str, OpCall]] = [{} for _ in shares.sizes]
        for node in made.graph.nodes:
            if node.name in own or is_alias(node):
                continue
            at = made.parts.get(node.name)
            (aside if at is None else parts[at])[node.name] = op_call(made.graph, node)
        self.extra = 0.0
        for device, calls in self._borders(made.graph, aside).items():
            if measure is not None:
                measure(device, calls)
            self.extra += self._sum(device, calls).seconds
        variance = 0.0
        for device, size, calls in zip(shares.devices, shares.sizes, parts, strict=True):
            if measure is not None:
                measure(device, calls)
            total = self._sum(device, calls)
            variance = max(variance, total.variance)
            if total.doubt <= self._trust[device]:  # a worse source than the whole's says less
                self._curves[device].points[size] = total.seconds
        ends = [self._finish(d, k) for d, k in zip(shares.devices, shares.sizes, strict=True)]
        return replace(shares, seconds=max(ends) + self.extra, spread=math.sqrt(variance))

    def _solve(self) -> Shares:
        """Shares that end together on the curves, by bisection over the end."""
        units, grain = self.region.units, self.grain
        low, high = 0.0, self.whole.seconds
        for _ in range(40):
            middle = (low + high) / 2
            fits = sum(self._most(d, middle, grain) for d in self.devices) >= units
            low, high = (low, middle) if fits else (middle, high)
        sizes = {d: self._most(d, high, grain) for d in self.devices}
        left = units - sum(sizes.values())
        order = sorted(self.devices, key=lambda d: (d == HOST, -sizes[d]))
        for name in order:  # what is too much goes first from where it saves most
            taken = min(sizes[name], max(0, -left))
            sizes[name] -= taken
            left += taken
        if left:
            least = min(self.devices, key=lambda d: self._finish(d, sizes[d] + left))
            sizes[least] += left
        used = tuple(d for d in self.devices if sizes[d])
        picked = tuple(sizes[d] for d in used)
        ends = [self._finish(d, sizes[d]) for d in used]
        return Shares(used, picked, max(ends, default=0.0) + self.extra)

    def _most(self, device: str, seconds: float, grain: int) -> int:
        """Most units, a multiple of ``grain``, that a device has done after ``seconds``."""
        low, high = 0, self.region.units // grain
        while low < high:
            middle = (low + high + 1) // 2
            if self._finish(device, middle * grain) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low * grain

    def _finish(self, device: str, units: int) -> float:
        """Seconds until a device has its part, has computed it and has handed it back."""
        if units <= 0:
            return 0.0
        seconds = self._curves[device].seconds(units) + (HAND_OVER_S if device != HOST else 0.0)
        share = units / self.region.units
        for n, cut, where in self._in:
            seconds += self._moved(where, device, n * share if cut else n)
        return seconds + sum(self._moved(device, where, n * share) for n, where in self._out)

    def _moved(self, src: str, dst: str, nbytes: float) -> float:
        """Seconds of a copy, in one piece or through the host."""
        if src == dst:
            return 0.0
        target = self.target
        a, b, host = target.info(src), target.info(dst), target.info(HOST)
        if HOST in (src, dst) or (src, dst) in target.direct:
            return target.link(a, b).seconds(nbytes)
        return target.link(a, host).seconds(nbytes) + target.link(host, b).seconds(nbytes)

    def _borders(self, graph: Graph, aside: Mapping[str, OpCall]) -> dict[str, dict[str, OpCall]]:
        """Slices and joins by the device that does them: where what they read or make is."""
        found: dict[str, dict[str, OpCall]] = {}
        for node in graph.nodes:
            if node.name in aside:
                where = next((self._lies(v) for v in node.operands if v in graph.inputs), HOST)
                stays = any(self._stays(v) for v in node.outputs)
                device = self._home if stays else where
                found.setdefault(device, {})[node.name] = aside[node.name]
        return found

    def _lies(self, value: str) -> str:
        """Where a value from outside is: an input of a device that computes nothing has to come."""
        where = self.sites.feeds.get(value, HOST)
        return where if where in self.devices else HOST

    def _stays(self, value: str) -> bool:
        """Whether a value is an output that stays where the region makes it, and nothing else."""
        graph, inside = self.given.graph, {n.name for n in self.nodes}
        names = [name for name, made in graph.outputs.items() if made == value]
        if not names or not set(names) <= set(self.sites.stays):
            return False
        return not any(value in n.operands for n in graph.nodes if n.name not in inside)

    def _sum(self, device: str, calls: Mapping[str, OpCall]) -> _Total:
        """The total of ops on a device; unknown where it cannot run one of them."""
        info, total = self.target.info(device), _Total()
        memo: costing.Memo = {}
        for call in calls.values():
            target = self.target
            made = costing.offers(call, [info], target.model, memo, target.permission)
            offer = made.best.get(device)
            total.add(Estimate.unknown() if offer is None else offer.estimate)
        return total

    def _read(self) -> list[tuple[float, bool, str]]:
        """Bytes of each value that the region reads from outside, if it is cut, and where it is."""
        graph = self.given.graph
        read = {v for n in self.nodes for v in n.operands} - self._inside
        return [
            (float(graph.specs[v].nbytes), v in self.region.axes, self._lies(v))
            for v in sorted(read)
            if v not in graph.constants
        ]

    def _written(self) -> list[tuple[float, str]]:
        """Bytes of each value that others read from the region, and where it goes."""
        graph = self.given.graph
        inside = set(self.region.nodes)
        read = {v for n in graph.nodes if n.name not in inside for v in n.operands}
        read |= set(graph.outputs.values())
        return [
            (float(graph.specs[v].nbytes), self._home if self._stays(v) else HOST)
            for v in sorted(read & self._inside)
        ]

    def _seed_value(self) -> str:
        seed = next(n for n in self.nodes if n.name == self.region.seed)
        return seed.outputs[0]


def computing_devices(target: Target) -> list[DeviceInfo]:
    """Asked devices that compute at once: of each resource group as many as it has room for.

    The host comes first, then those of most compute units.
    """
    taken: list[DeviceInfo] = []
    room = {d.resource_group: target.capacity.get(d.resource_group, 1) for d in target.devices}
    able = [d for d in target.devices if d.id in target.asked and d.id not in target.broken]
    for info in sorted(able, key=lambda d: (d.id != HOST, -d.compute_units, d.id)):
        if room[info.resource_group] > 0:
            room[info.resource_group] -= 1
            taken.append(info)
    return taken


def heaviest(graph: Graph, target: Target, devices: Sequence[DeviceInfo], most: int) -> list[str]:
    """Names of the ops with the largest costs (each on its best device), largest first."""
    memo: costing.Memo = {}
    seconds: dict[str, float] = {}
    for node in graph.nodes:
        if is_alias(node):
            continue
        call = op_call(graph, node)
        made = costing.offers(call, devices, target.model, memo, target.permission)
        best = made.best.values()
        if best:
            seconds[node.name] = min(costing.interval(o.estimate)[0] for o in best)
    return sorted(seconds, key=lambda n: -seconds[n])[:most]
