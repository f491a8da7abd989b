"""Weights that do not fit a device: they stay on the host, and each run brings them as it goes.

The weights of an op that do not stay on its device are one *load*. Loads are copied in the order of
their ops through a region of bounded size, each as soon as the ops are done whose loads lay in its
place: while one op computes, the next one's weights are on their way (double buffering; as in
FlexGen, Sheng et al., ICML 2023, section 4.1). The copies are steps of the plan as any other, and
every run makes the same. What waits for what is decided by the region; then each weight has a place
in the arena, with the values, whose memory it may take when these are gone.

Which weights stay is chosen by what a run then takes, played through on virtual time. They are kept
in several orders, as many as fit: those first that cost most to bring by the byte; the largest, for
which the region would have to be large; the first or the last of the run; or so that those that are
brought lie evenly between them, since a link that is busy all the time brings most.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from crossdock.devices.base import DeviceInfo
from crossdock.runtime import costing, footprint, goals
from crossdock.runtime.graph_edits import fresh
from crossdock.runtime.order import placed, with_waits
from crossdock.runtime.plan import HOST, Plan, Step
from crossdock.runtime.plan_parts import Key, Streamed
from crossdock.runtime.planner import Planning
from crossdock.runtime.prediction import overhead
from crossdock.runtime.region import LAYOUTS, Layout, before, pair, two_ends
from crossdock.runtime.simulate import simulate
from crossdock.runtime.steps import copy_spread, queue_of, spread_of

WIDER = (1, 2, 4)
"""Sizes of the region that are tried, over the least that a double buffer takes."""
ROUNDS = 6
"""How often it is chosen anew what stays, where the copies have changed the arena."""


def streamed(planning: Planning, plan: Plan) -> Plan | None:
    """The plan with weights brought by each run, so that it is within the devices' memory.

    The fastest that is found; where none fits, the smallest. None where no device over its budget
    has weights to bring, as the host, whose memory they are in.
    """
    made = _streamed(planning, plan, late=False)
    if made is None or not planning.rules.over_budget(made):
        return made
    later = _streamed(planning, plan, late=True)
    assert later is not None, "there are weights to bring"
    return min(made, later, key=partial(_beyond, planning))


def _streamed(planning: Planning, plan: Plan, *, late: bool) -> Plan | None:
    """The best plan found; ``late``: each load comes while the op before its own computes."""
    rooms: dict[str, int] = {}
    small: dict[str, int] = {}  # the rooms of the last plan that fits, and of one that does not
    large: dict[str, int] = {}
    found: list[Plan] = []
    made = plan
    for _ in range(ROUNDS):
        over = planning.rules.over_budget(made)
        lanes = {name: Lane(planning, plan, name) for name in {*over, *rooms} if name != HOST}
        if not all(name in lanes and lanes[name].readers for name in over):
            break
        if rooms and not over:
            small = rooms
        elif small:
            large = rooms
        if large:
            again = {name: (small[name] + large[name]) // 2 for name in small}
        else:
            again = {n: _room(planning, made, lane, over.get(n)) for n, lane in lanes.items()}
        if again == rooms:
            break
        rooms, made = again, plan
        for name, room in rooms.items():
            made = Lane(planning, made, name, late=late).brought(room)
        made = _finished(planning, made)
        found.append(made)
    return min(found, key=partial(_beyond, planning), default=None)


def _beyond(planning: Planning, plan: Plan) -> tuple[float, float]:
    """Bytes beyond the budgets, and what a run takes."""
    over = planning.rules.over_budget(plan).values()
    seconds = simulate(plan, planning.target.capacity).makespan
    return sum(need - budget for need, budget in over), seconds


def _room(planning: Planning, plan: Plan, lane: Lane, over: tuple[int, float] | None) -> int:
    """Bytes for the weights of a device: what they take of a plan, and what is left or lacking."""
    part = plan.device(lane.device)
    need, budget = over or (part.peak_bytes, planning.rules.memory(lane.info))
    slack = lane.alignment if over else 0
    return max(0, int(part.fixed_bytes + part.region_bytes + budget - need) - slack)


def least(planning: Planning, plan: Plan, device: str) -> int:
    """Bytes that the weights of a device take where each run brings them all."""
    lane = Lane(planning, plan, device)
    return pair([load.nbytes for load in lane.loads(frozenset())]) + lane.alignment


def said(planning: Planning, plan: Plan, *, fits: bool) -> str:
    """What is brought, in words; of a plan that does not fit, for which two ops it takes most."""
    parts = []
    for device, nbytes in plan.streamed_bytes().items():
        part = plan.device(device)
        ops = len({stay.op for stay in plan.streamed if stay.device == device})
        parts.append(
            f"{nbytes} B of weights of {ops} ops brought to {device} each run through "
            f"{part.region_bytes} B, {part.fixed_bytes} B stay"
        )
        if not fits:
            parts.append(_largest(Lane(planning, plan, device)))
    return "; ".join(parts)


def _largest(lane: Lane) -> str:
    loads = lane.loads(frozenset())
    pairs = [loads[i : i + 2] for i in range(max(1, len(loads) - 1))]
    most = max(pairs, key=lambda two: sum(load.nbytes for load in two))
    named = " and ".join(f"{load.nbytes} B for {load.reader.name!r:.80}" for load in most)
    return f"of which {named} are there at once"


@dataclass(frozen=True)
class Reader:
    """An op, with the bytes of the weights that it reads; ``step`` is its index in the plan."""

    step: int
    name: str
    weights: Mapping[Key, int]


@dataclass(frozen=True)
class Load:
    """The weights that are brought for an op, and their bytes in the region."""

    reader: Reader
    keys: tuple[Key, ...]
    nbytes: int


@dataclass(frozen=True)
class Choice:
    """The weights that stay, and how the others pass through a region of ``nbytes``.

    ``eager``: their copies go before others of the same queue that could go later.
    """

    kept: frozenset[Key]
    nbytes: int
    layout: Layout
    eager: bool = False


class Lane:
    """The ops of one device of a plan that read weights, in order.

    ``late``: what they read comes while the op before them computes, and no earlier.
    """

    def __init__(self, planning: Planning, plan: Plan, device: str, *, late: bool = False) -> None:
        self.planning, self.plan, self.device, self.late = planning, plan, device, late
        graph, target = planning.graph, planning.target
        self.info: DeviceInfo = target.info(device)
        self.alignment = max(64, self.info.alignment)
        self.link = target.weights_link(self.info)
        self.measured = (HOST, device) in target.measured_links()
        self.there = {key for on, key in planning.options.resident if on == device}
        roots = costing.alias_roots(graph)
        self.readers: list[Reader] = []
        for step in plan.launches():
            if step.device == device:
                found = footprint.weights(step, planning.lowered(step), graph, roots)
                if found:
                    self.readers.append(Reader(step.index, step.name, found))

    def brought(self, room: int) -> Plan:
        """The plan with as many weights kept as fit ``room`` bytes with a region for the others.

        All of them are brought where even that does not fit.
        """
        choices = list(dict.fromkeys(self._choices(room)))
        if not choices:
            region = pair([load.nbytes for load in self.loads(frozenset())])
            choices = [Choice(frozenset(), region, two_ends)]
        plans = [self.made(choice) for choice in choices]
        if len(plans) == 1:
            return plans[0]
        return min(plans, key=self._rank)

    def _rank(self, plan: Plan) -> tuple[float, int]:
        """What a run takes, and what it brings."""
        seconds = simulate(plan, self.planning.target.capacity).makespan
        return seconds, plan.streamed_bytes().get(self.device, 0)

    def loads(self, kept: Collection[Key]) -> list[Load]:
        """What is brought where some weights stay, in order."""
        made = []
        for reader in self.readers:
            keys = tuple(k for k in reader.weights if k not in kept and k not in self.there)
            if keys:
                made.append(Load(reader, keys, sum(self._aligned(reader, key) for key in keys)))
        return made

    def _load(self, reader: Reader) -> int:
        """Bytes of all weights of an op that are not there."""
        return sum(self._aligned(reader, key) for key in reader.weights if key not in self.there)

    def _aligned(self, reader: Reader, key: Key) -> int:
        return -(-reader.weights[key] // self.alignment) * self.alignment

    @cached_property
    def _places(self) -> dict[Key, list[int]]:
        """The readers of each weight, in order of the first."""
        found: dict[Key, list[int]] = {}
        for at, reader in enumerate(self.readers):
            for key in reader.weights:
                found.setdefault(key, []).append(at)
        return found

    def _nbytes(self, key: Key) -> int:
        return self.readers[self._places[key][0]].weights[key]

    # --- which weights stay -----------------------------------------------------------------------

    def _choices(self, room: int) -> Iterator[Choice]:
        """What fits a room, for each way to choose."""
        uploads = [s for s in self.plan.copies() if s.dst == self.device and s.waits]
        for order in self._orders():
            for wider in WIDER:
                kept, held, region = self._kept(order, room, wider)
                if held + region > room:
                    continue
                loads = self.loads(kept)
                all_of_them = sum(load.nbytes for load in loads)
                nbytes = min(all_of_them, (room - held) // self.alignment * self.alignment)
                for layout in LAYOUTS:
                    for eager in (False, True) if uploads else (False,):
                        yield Choice(kept, nbytes, layout, eager)

    def _orders(self) -> Iterator[list[Key]]:
        """Orders in which weights are kept."""
        places = self._places
        cost = {k: len(at) * self.link.seconds(self._nbytes(k)) for k, at in places.items()}
        keys = [key for key in places if key not in self.there]
        ranks: list[list[float]] = [
            [-cost[key] / self._nbytes(key) for key in keys],
            [-self._nbytes(key) for key in keys],
            [_reversed(i) for i in range(len(keys))],
            list(range(len(keys))),
            list(range(len(keys), 0, -1)),
        ]
        for rank in ranks:
            order = sorted(range(len(keys)), key=lambda i: (rank[i], i))
            yield [keys[i] for i in order]

    def _kept(self, order: Sequence[Key], room: int, wider: int) -> tuple[frozenset[Key], int, int]:
        """As many weights as fit, in order, beside a region; the bytes of both."""
        sizes = np.array([self._load(reader) for reader in self.readers])
        kept: set[Key] = set()
        held = sum(self._nbytes(key) for key in self.there if key in self._places)
        region = wider * _pair(sizes)
        for key in order:
            left = sizes.copy()
            for at in self._places[key]:
                left[at] -= self._aligned(self.readers[at], key)
            smaller = wider * _pair(left)
            if held + self._nbytes(key) + smaller <= room:
                kept.add(key)
                held, region, sizes = held + self._nbytes(key), smaller, left
        return frozenset(kept), held, region

    # --- the plan ---------------------------------------------------------------------------------

    def made(self, choice: Choice) -> Plan:
        """The plan with the copies of a choice, whose places are those in the region."""
        loads = self.loads(choice.kept)
        sizes = [load.nbytes for load in loads]
        offsets = choice.layout(sizes, choice.nbytes)
        taken = {*self.planning.graph.specs, *(s.name for s in self.plan.steps)}
        copies: list[tuple[float, Step, int]] = []  # place among the steps, copy, the op it is for
        stays: list[Streamed] = []
        last = -1
        for load, offset, earlier in zip(loads, offsets, before(offsets, sizes), strict=True):
            waits = self._not_before(load.reader)
            if earlier is not None:
                waits = (*waits, loads[earlier].reader.step)
            last = max(last, *waits, -1)
            for key in load.keys:
                stay = self._stay(load.reader, key, offset, taken)
                place = last + 0.5 if choice.eager else load.reader.step - 0.5
                copies.append((place, self._copy(stay, waits), load.reader.step))
                stays.append(stay)
                offset += self._aligned(load.reader, key)
        parts = (
            replace(p, region_bytes=choice.nbytes) if p.id == self.device else p
            for p in self.plan.devices
        )
        return replace(
            self.plan,
            steps=_merged(self.plan.steps, copies),
            devices=tuple(parts),
            streamed=(*self.plan.streamed, *stays),
        )

    def _not_before(self, reader: Reader) -> tuple[int, ...]:
        """The op that a late load waits for: the last but one before its own."""
        if not self.late:
            return ()
        at = self._lane.index(reader.step)
        return (self._lane[at - 2],) if at > 1 else ()

    @cached_property
    def _lane(self) -> list[int]:
        """The device's ops, in order."""
        return [s.index for s in self.plan.launches() if s.device == self.device]

    def _stay(self, reader: Reader, key: Key, offset: int, taken: set[str]) -> Streamed:
        weight, pack = key
        name = name_of(key, reader.name, taken)
        taken.add(name)
        constant = weight if pack is None else ""
        nbytes = reader.weights[key]
        return Streamed(name, self.device, reader.name, constant, pack, offset, nbytes)

    def _copy(self, stay: Streamed, waits: tuple[int, ...]) -> Step:
        seconds = self.link.seconds(stay.nbytes)
        low, high, source = copy_spread(seconds, measured=self.measured)
        return Step(
            index=-1,
            kind="copy",
            device=self.device,
            queue=queue_of(HOST, self.device),
            name=stay.name,
            inputs=(),
            outputs=(),
            waits=waits,
            start=0.0,
            seconds=seconds,
            low=low,
            high=high,
            source=source,
            src=HOST,
            dst=self.device,
            nbytes=stay.nbytes,
        )


def _pair(sizes: np.ndarray) -> int:
    """``pair`` of the sizes that are not 0."""
    there = sizes[sizes > 0]
    return int(max((there[:-1] + there[1:]).max(initial=0), there.max(initial=0)))


def _reversed(number: int) -> int:
    """The bits of a number in reverse order (van der Corput): neighbours are far apart."""
    return int(f"{number:032b}"[::-1], 2)


def name_of(key: Key, op: str, taken: Container[str]) -> str:
    """The name of what brings a weight for an op: none of those taken."""
    weight, pack = key
    return fresh(f"{weight} for {op}" if pack is None else f"{op} packed {pack}", taken)


def _merged(steps: Sequence[Step], copies: Sequence[tuple[float, Step, int]]) -> tuple[Step, ...]:
    """The steps with copies among them, each at its place, and waited for by the op it is for.

    Waits of the copies, and the ops, are indices of ``steps``.
    """
    numbered = [(float(step.index), step, None) for step in steps]
    merged = sorted([*numbered, *copies], key=lambda item: item[0])
    index = {old: new for new, (_, step, _) in enumerate(merged) if (old := step.index) >= 0}
    awaited: dict[int, list[int]] = {}
    for new, (_, _, reader) in enumerate(merged):
        if reader is not None:
            awaited.setdefault(index[reader], []).append(new)
    return tuple(
        replace(
            step,
            index=new,
            waits=tuple(sorted([*(index[w] for w in step.waits), *awaited.get(new, ())])),
        )
        for new, (_, step, _) in enumerate(merged)
    )


def _finished(planning: Planning, plan: Plan) -> Plan:
    """The plan with its arenas, what it takes of the devices, and its times."""
    graph, target = planning.graph, planning.target
    roots = costing.alias_roots(graph)
    steps = tuple(with_waits(plan.steps))
    plan = placed(replace(plan, steps=steps), graph, target.devices, roots)
    made = simulate(plan, target.capacity)
    starts = zip(plan.steps, made.start.tolist(), strict=True)
    more, spread = overhead(plan, target.model), spread_of(plan.steps)
    seconds = made.makespan + more
    plan = replace(
        plan,
        steps=tuple(replace(step, start=start) for step, start in starts),
        predicted=seconds,
        low=max(0.0, seconds - spread),
        high=seconds + spread,
        lower_bound=min(plan.lower_bound, seconds),
        source="composed",
    )
    return goals.with_goal(planning.counted(plan), plan.goal, planning.wanted, target)
