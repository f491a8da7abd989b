"""Constraints of a placement, resolved against a graph's nodes and the devices."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence

from crossdock.devices.base import DeviceInfo
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.runtime import costing
from crossdock.runtime.errors import NoPlacement, PlanError
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.plan import HOST, Constraints, DevicePlan, Plan
from crossdock.runtime.residency import Residency
from crossdock.runtime.residency import matches as matches
from crossdock.runtime.sites import ON_HOST, Sites
from crossdock.runtime.target import Target


class Rules:
    """Constraints resolved against the graph's nodes and the devices."""

    def __init__(
        self,
        given: Constraints,
        target: Target,
        graph: Graph,
        homes: Mapping[str, str] | None = None,
        sites: Sites = ON_HOST,
    ) -> None:
        """``homes`` holds the device of nodes that have only one, by name.

        Raises:
            PlanError: a constraint matches nothing, or names a device that there is not.
            NoPlacement: by ``sites``, an input lies, or an output goes, where its label bars it.
        """
        self._homes = homes or {}
        self._given = given
        self._target = target
        self.full: frozenset[str] = frozenset()
        known = {d.id for d in target.devices}
        for pattern, device in (*given.pin.items(), *_flat(given.forbid)):
            if device not in known:
                raise PlanError(
                    f"constraint {pattern!r} names device {device!r}; there are "
                    f"{', '.join(sorted(known))}"
                )
            named = [n for n in graph.nodes if matches(pattern, n)]
            if not named:
                raise PlanError(f"constraint {pattern!r} matches no op of the graph")
            if all(costing.is_alias(n) for n in named):
                raise PlanError(
                    f"constraint {pattern!r} matches {named[0].name!r} ({named[0].op}), which only "
                    "renames the shape of its operand and runs nowhere; name the op before it"
                )
        cards = {d.physical_id for d in target.devices}
        for device, budget in given.memory.items():
            if device not in known | cards or not budget >= 0:
                raise PlanError(
                    f"constraints.memory gives {device!r} {budget!r} bytes; devices are "
                    f"{', '.join(sorted(known))}, of {', '.join(sorted(cards))}, and budgets at "
                    "least 0"
                )
        for device, share in given.max_share.items():
            if device not in known or not 0 <= share <= 1:
                raise PlanError(
                    f"constraints.max_share gives {device!r} {share!r}; devices are "
                    f"{', '.join(sorted(known))}, and shares from 0 to 1"
                )
        self._residency = Residency(given.residency, graph, sorted(known))
        if astray := self._residency.astray(sites):
            raise NoPlacement(astray)

    def check_residency(self, plan: Plan) -> None:
        """Raise NoPlacement for a plan, made elsewhere, that breaks a residency."""
        if broken := self._residency.broken(plan):
            raise NoPlacement(f"{broken}; plan again")

    def without(self, device: str) -> Rules:
        """The same rules, with no op on a device whose memory is too small."""
        made = copy.copy(self)
        made.full = self.full | {device}
        return made

    def memory(self, info: DeviceInfo) -> float:
        """Budget in bytes; one that is given for the physical device binds every way to it."""
        given = self._given.memory
        return float(
            min(given.get(info.id, info.memory_bytes), given.get(info.physical_id, math.inf))
        )

    def over_budget(self, plan: Plan) -> dict[str, tuple[int, float]]:
        """Bytes needed and allowed, by id of the devices whose budget the plan passes.

        Devices of one physical memory share it, and a budget given for it; the one with most of the
        plan stands for them.
        """
        over: dict[str, tuple[int, float]] = {}
        shared: dict[str, list[DevicePlan]] = {}
        for part in plan.devices:
            budget = self.memory(self._target.info(part.id))
            shared.setdefault(part.physical_id, []).append(part)
            if part.peak_bytes > budget:
                over[part.id] = (part.peak_bytes, budget)
        for card, parts in shared.items():
            need = sum(p.peak_bytes for p in parts)
            room: float = max(self._target.info(p.id).memory_bytes for p in parts)
            if len(parts) > 1:
                room = min(room, self._given.memory.get(card, room))
            if need > room and not any(p.id in over for p in parts):
                most = max((p for p in parts), key=lambda p: (p.id != HOST, p.peak_bytes))
                over[most.id] = (need, float(room))
        return over

    def banned(self, node: Node, device: str, unbuilt: Collection[str] = ()) -> str:
        """Why a constraint keeps a node off a device; empty where none does.

        A pin to one of the ``unbuilt`` devices, whose kernels did not build, does not bind, and nor
        does a home.
        """
        if device in self._target.broken:
            return Refusal(self._target.broken[device], Cause.BROKEN)
        if device in self.full:
            return Refusal("its memory is too small for this graph", Cause.MEMORY)
        home = self._homes.get(node.name, device)
        if home != device and home not in unbuilt:
            return Refusal(f"the part of {home}", Cause.PINNED)
        for pattern, pinned in self._given.pin.items():
            if pinned != device and pinned not in unbuilt and matches(pattern, node):
                return Refusal(f"pinned to {pinned} by {pattern!r}", Cause.PINNED)
        for pattern, forbidden in _flat(self._given.forbid):
            if forbidden == device and matches(pattern, node):
                return Refusal(f"forbidden by {pattern!r}", Cause.FORBIDDEN)
        kept = self._residency.banned(node.name, device)
        return Refusal(kept, Cause.RESIDENCY) if kept else ""


def named(graph: Graph, constraints: Constraints) -> frozenset[str]:
    """The nodes that constraints bear upon: passes and splits leave them as they are."""
    patterns = (*constraints.pin, *constraints.forbid)
    found = {n.name for n in graph.nodes if any(matches(p, n) for p in patterns)}
    return frozenset(found) | Residency(constraints.residency, graph).nodes


def _flat(forbid: Mapping[str, Sequence[str] | str]) -> list[tuple[str, str]]:
    return [
        (pattern, device)
        for pattern, devices in forbid.items()
        for device in ([devices] if isinstance(devices, str) else devices)
    ]
