"""What-if: the target that a change makes of another, and what the change does to a plan.

Only the data that a plan is made from changes (devices, costs, links, memory); the plan itself
comes from the planner, as always.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crossdock.devices.base import DeviceInfo
from crossdock.devices.links import link_ends
from crossdock.devices.topology import HOST_CPU
from crossdock.runtime.errors import PlanError
from crossdock.runtime.knowledge import group_capacity
from crossdock.runtime.plan import HOST, Choice, Plan, Step
from crossdock.runtime.supposed import SupposedCosts
from crossdock.runtime.target import Target
from crossdock.scheduler import LinkModel


@dataclass(frozen=True)
class Changes:
    """What to plan with that is not so.

    Attributes:
        without: ids of devices that are gone. The host still feeds the others where it is named,
            and computes nothing that another device can.
        links: bytes per second by (source, target) id; latencies stay.
        memory: bytes of budget by device id.
        cores: processor cores that there are.
        threads: of the processor's own device, ``cpu:0``.
    """

    without: tuple[str, ...] = ()
    links: Mapping[tuple[str, str], float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    cores: int | None = None
    threads: int | None = None

    def __bool__(self) -> bool:
        """Whether anything changes."""
        supposed = self.without or self.links or self.memory
        return bool(supposed) or self.cores is not None or self.threads is not None


def changed(target: Target, changes: Changes) -> Target:
    """The target with the changes made.

    Raises:
        PlanError: a device named is not among the target's, or none is left.
    """
    _check(changes, {d.id for d in target.devices})
    asked = target.asked - set(changes.without)
    if not asked:
        raise PlanError("--without leaves no device to plan for; leave one out of it")
    infos = tuple(
        replace(d, memory_bytes=int(changes.memory.get(d.id, d.memory_bytes)))
        for d in target.devices
        if d.id == HOST or d.id not in changes.without
    )
    made = replace(target, devices=infos, asked=asked)
    if not changes.links and changes.cores is None and changes.threads is None:
        return made
    return _supposed(made, changes, target)


def _check(changes: Changes, ids: set[str]) -> None:
    for flag, names in (("without", changes.without), ("memory", tuple(changes.memory))):
        for name in names:
            if name not in ids:
                raise PlanError(
                    f"--{flag} {name}: no such device; there are {', '.join(sorted(ids))}"
                )
    for flag, count in (("cores", changes.cores), ("threads", changes.threads)):
        if count is not None and count < 1:
            raise PlanError(f"--{flag} {count}: give 1 or more")


def _supposed(target: Target, changes: Changes, unchanged: Target) -> Target:
    """The target with links of another speed, or fewer cores: with costs that are supposed."""
    infos = tuple(_fewer(d, _units(d, changes)) for d in target.devices)
    pairs = list(zip(target.devices, infos, strict=True))
    whole = {
        new.fingerprint: (old.fingerprint, old.compute_units / new.compute_units)
        for old, new in pairs
        if new is not old
    }
    model = SupposedCosts(target.model, whole)
    for (src, dst), bandwidth in changes.links.items():
        ends = unchanged.info(src), unchanged.info(dst)
        if HOST not in (src, dst) and (src, dst) not in target.peers:
            raise PlanError(
                f"--link {src}:{dst}: transfers pass through {HOST}; give the links {src}:{HOST} "
                f"and {HOST}:{dst}"
            )
        made = LinkModel(unchanged.link(*ends).latency_s, ((1.0, bandwidth),))
        model.set_link(*link_ends(*ends), made)
    capacity = target.capacity
    if changes.cores is not None:
        capacity = group_capacity(infos, changes.cores)
    return replace(target, devices=infos, model=model, capacity=capacity)


def _units(info: DeviceInfo, changes: Changes) -> int:
    units = [info.compute_units]
    if changes.cores is not None and info.resource_group == HOST_CPU:
        units.append(changes.cores)
    if changes.threads is not None and info.id == HOST:
        units.append(changes.threads)
    return min(units)


def _fewer(info: DeviceInfo, units: int) -> DeviceInfo:
    if info.compute_units <= units:
        return info
    name = f"{info.fingerprint}|on {units} cores"
    return replace(info, compute_units=units, fingerprint=name)


class Why(enum.StrEnum):
    """Why an op moved."""

    GONE = "device gone"
    MEMORY = "memory"
    CANNOT = "cannot run there"
    COST = "cost there"
    CORES = "fewer at once"
    LINK = "link"
    SPLIT = "split"
    FOLLOWS = "follows"
    FINISH = "earlier end"


@dataclass(frozen=True)
class Move:
    """An op that another device runs after the change.

    ``before`` and ``after`` are its seconds on the two; ``detail`` has the figures of the reason.
    """

    op: str
    name: str
    src: str
    dst: str
    before: float
    after: float
    why: Why
    detail: str


@dataclass(frozen=True)
class Comparison:
    """A plan before and after a change."""

    before: Plan
    after: Plan
    moves: tuple[Move, ...]

    @property
    def kept(self) -> float:
        """Share of the ops that stay where they were."""
        return 1.0 - len(self.moves) / max(1, len(self.before.launches()))

    def to_json(self) -> dict[str, Any]:
        """Latency, peak bytes by device and op shares of both plans, and the moves."""
        return {
            "schema": "crossdock-whatif/1",
            "before": _figures(self.before),
            "after": _figures(self.after),
            "kept": self.kept,
            "moves": [dataclasses.asdict(m) for m in self.moves],
        }


def _figures(plan: Plan) -> dict[str, Any]:
    return {
        "seconds": plan.predicted,
        "low": plan.low,
        "high": plan.high,
        "lower_bound": plan.lower_bound,
        "peak_bytes": {d.id: d.peak_bytes for d in plan.devices},
        "shares": plan.shares(),
    }


def compare(
    before: Plan, after: Plan, target: Target, changes: Changes, ops: Iterable[str] | None = None
) -> Comparison:
    """What moved and why.

    Args:
        before: the plan for ``target``.
        after: the plan for the changed target.
        target: the target as it is.
        changes: what was changed.
        ops: the ops by node name, where the plans may have some of them in parts.
    """
    names = [s.name for s in before.launches()] if ops is None else ops
    return Comparison(before, after, _Moves(before, after, target, changes, names).found)


@dataclass(frozen=True)
class _Place:
    """The steps of an op: one, or one a part; all in the order of their devices."""

    steps: tuple[Step, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.device for s in self.steps))

    @property
    def whole(self) -> bool:
        return len(self.steps) == 1

    @property
    def seconds(self) -> float:
        return max(s.seconds for s in self.steps)


def _places(plan: Plan, ops: Iterable[str]) -> dict[str, _Place]:
    steps = {s.name: s for s in plan.launches()}
    found = {name: _Place((steps[name],)) for name in ops if name in steps}
    for split in plan.splits:
        for name in split.ops if split.taken else ():
            parts = (steps.get(f"{name}.part{i}") for i in range(len(split.devices)))
            there = tuple(s for s in parts if s is not None)
            if there:
                found[name] = _Place(there)
    return found


def placement(plan: Plan, ops: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The devices of each op of a graph by node name, several where the op is in parts."""
    return {name: place.devices for name, place in _places(plan, ops).items()}


class _Moves:
    """Finds what moved; the reasons are tried from the most certain one down."""

    def __init__(
        self, before: Plan, after: Plan, target: Target, changes: Changes, ops: Iterable[str]
    ) -> None:
        self.before, self.after = before, after
        self.target, self.changes = target, changes
        names = tuple(ops)
        was, now = _places(before, names), _places(after, names)
        pairs = {n: (was[n], now[n]) for n in names if n in was and n in now}
        self.pairs = {n: p for n, p in pairs.items() if p[0].devices != p[1].devices}
        self.maker = {v: s.name for s in before.launches() for v in s.outputs}
        self.found = tuple(
            Move(
                new.steps[0].op,
                name,
                " + ".join(old.devices),
                " + ".join(new.devices),
                old.seconds,
                new.seconds,
                *self._why(name, old, new),
            )
            for name, (old, new) in self.pairs.items()
        )

    def _why(self, name: str, old: _Place, new: _Place) -> tuple[Why, str]:
        left = [d for d in old.devices if d not in new.devices]
        found = self._gone(left) or self._memory(left)
        if found is None and old.whole and new.whole:
            found = self._cannot(old, new) or self._cost(old.steps[0], new.steps[0])
        touched = {*old.devices, *new.devices}
        found = found or self._cores(touched) or self._link(touched)
        if found is None and not (old.whole and new.whole):
            return self._split(name)
        return found or self._follows(old.steps[0]) or self._finish(old.steps[0], new.steps[0])

    def _gone(self, left: Iterable[str]) -> tuple[Why, str] | None:
        gone = [d for d in left if d in self.changes.without]
        return (Why.GONE, f"{gone[0]} is left out") if gone else None

    def _memory(self, left: Iterable[str]) -> tuple[Why, str] | None:
        for device in left:
            budget = self.changes.memory.get(device)
            need = self.before.device(device).peak_bytes
            if budget is not None and need > budget:
                return Why.MEMORY, f"unchanged, {device} takes {need} B; it has {budget} B"
        return None

    def _cannot(self, old: _Place, new: _Place) -> tuple[Why, str] | None:
        choice = _choice(new.steps[0], old.devices[0])
        if choice is None or choice.seconds is not None:
            return None
        return Why.CANNOT, choice.reason

    def _cost(self, old: Step, new: Step) -> tuple[Why, str] | None:
        for device, worse in ((old.device, True), (new.device, False)):
            a, b = _choice(old, device), _choice(new, device)
            if a is None or b is None or a.seconds is None or b.seconds is None:
                continue
            if (b.seconds > a.seconds * 1.001) if worse else (b.seconds < a.seconds * 0.999):
                return Why.COST, f"{_ms(b.seconds)} on {device} instead of {_ms(a.seconds)}"
        return None

    def _cores(self, touched: set[str]) -> tuple[Why, str] | None:
        groups = {self.target.info(d).resource_group for d in touched}
        if self.changes.cores is None or groups != {HOST_CPU}:
            return None
        return Why.CORES, f"{', '.join(sorted(touched))} share {self.changes.cores} core(s)"

    def _link(self, touched: set[str]) -> tuple[Why, str] | None:
        said = []
        for (src, dst), rate in self.changes.links.items():
            if {src, dst} - {HOST} <= touched:
                moved = sum(
                    c.nbytes for p in (self.before, self.after) for c in _crossing(p, src, dst)
                )
                was = self.target.link(self.target.info(src), self.target.info(dst))
                speed = was.bandwidth(max(1.0, float(moved)))
                slower = "slower" if rate < speed else "faster"
                said.append(
                    f"{slower} {src}->{dst}: {rate / 1e9:.3g} GB/s instead of {speed / 1e9:.3g}"
                )
        return (Why.LINK, "; ".join(said)) if said else None

    def _split(self, name: str) -> tuple[Why, str]:
        told = [s.reason for s in self.after.splits if name in s.ops]
        return Why.SPLIT, told[0] if told else "in parts it ends no sooner"

    def _follows(self, old: Step) -> tuple[Why, str] | None:
        near = [self.maker.get(v) for v in old.inputs if v is not None]
        near += [s.name for s in self.before.launches() if set(old.outputs) & set(s.inputs)]
        others = [n for n in near if n is not None and n in self.pairs]
        return (Why.FOLLOWS, f"{others[0]}, which moved") if others else None

    def _finish(self, old: Step, new: Step) -> tuple[Why, str]:
        there, here = _choice(new, old.device), _choice(new, new.device)
        if there is None or here is None or there.finish is None or here.finish is None:
            return Why.FINISH, "of the whole"
        return Why.FINISH, f"ends at {_ms(here.finish)}, there at {_ms(there.finish)}"


def _choice(step: Step, device: str) -> Choice | None:
    return next((c for c in step.choices if c.device == device), None)


def _crossing(plan: Plan, src: str, dst: str) -> Iterable[Step]:
    return (s for s in plan.copies() if (s.src, s.dst) == (src, dst))


def _ms(value: float) -> str:
    return f"{value * 1e3:.3f} ms"
