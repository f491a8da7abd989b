"""From a graph and costs to a plan: the placement problem, its schedule, and the steps."""

from __future__ import annotations

import copy
import fnmatch
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from crossdock.devices.base import DeviceInfo
from crossdock.runtime import costing, steps
from crossdock.runtime.costing import Offers
from crossdock.runtime.errors import MemoryBudget, NoPlacement, PlanError
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.plan import HOST, Constraints, DevicePlan, Plan
from crossdock.scheduler import (
    CostModel,
    DeviceSpec,
    EdgeSpec,
    LinkModel,
    LinkSpec,
    Problem,
    TaskSpec,
    schedule,
)

DEFAULT_LINK = LinkModel(20e-6, ((1.0, 4e9),))
"""Host link of a device whose link was never measured."""


@dataclass(frozen=True)
class Target:
    """Where a graph may run.

    ``devices`` holds every device considered, the host first; ``asked`` the ids that ops are
    placed on (the host alone runs what no asked device can). ``capacity`` says how many devices
    of a resource group may compute at once; ``broken`` why a device computes nothing, by id.
    """

    devices: tuple[DeviceInfo, ...]
    asked: frozenset[str]
    model: CostModel
    capacity: Mapping[str, int] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)

    def link(self, src: DeviceInfo, dst: DeviceInfo) -> LinkModel:
        """The measured link, or the default."""
        return self.model.link(src.fingerprint, dst.fingerprint) or DEFAULT_LINK

    def measured_links(self) -> frozenset[tuple[str, str]]:
        """(source, target) ids of the links whose speed is known."""
        return frozenset(
            (a.id, b.id)
            for a in self.devices
            for b in self.devices
            if self.model.link(a.fingerprint, b.fingerprint) is not None
        )

    def info(self, name: str) -> DeviceInfo:
        """A device by id."""
        return next(d for d in self.devices if d.id == name)


@dataclass(frozen=True)
class Options:
    """How to plan; see ``session.compile``.

    ``search`` lets the policy search on with compiled code for ``budget_s`` seconds: better plans,
    but code that takes seconds to load, and a plan that depends on the time there was. Without,
    the same graph, target and options give the same plan.
    """

    policy: str = "auto"
    constraints: Constraints = field(default_factory=Constraints)
    expected_runs: int = 1000
    budget_s: float = 0.2
    search: bool = False


def make_plan(graph: Graph, target: Target, options: Options) -> Plan:
    """Plan a static graph.

    Raises:
        NoPlacement: an op has no device; every such op is named.
        MemoryBudget: a device's arena and weights exceed its budget.
        PlanError: no such policy, or a constraint names no op or device.
    """
    calls = costing.op_calls(graph)
    placed = [n for n in graph.nodes if not costing.is_alias(n)]
    memo: costing.Memo = {}
    offered = {
        n.name: costing.offers(calls[n.name], target.devices, target.model, memo) for n in placed
    }
    rules = _Rules(options.constraints, target, graph)
    plan = _draft(graph, placed, offered, target, options, rules)
    if rules.over_budget(plan):
        plan = _smaller(graph, placed, offered, target, options, rules) or plan
    _check_memory(plan, rules)
    return replace(plan, cost_model=target.model.version)


def _smaller(
    graph: Graph,
    placed: Sequence[Node],
    offered: Mapping[str, Offers],
    target: Target,
    options: Options,
    rules: _Rules,
) -> Plan | None:
    """A plan within the memory budgets, or None.

    First a schedule that minds memory; then devices whose budget is passed are left out, one by
    one.
    """
    try:
        plan = _draft(graph, placed, offered, target, options, rules, memory=True)
        while full := [d for d in rules.over_budget(plan) if d != HOST]:
            rules = rules.without(full[0])
            plan = _draft(graph, placed, offered, target, options, rules)
    except (NoPlacement, MemoryBudget):
        return None
    return None if rules.over_budget(plan) else plan


def _draft(
    graph: Graph,
    placed: Sequence[Node],
    offered: Mapping[str, Offers],
    target: Target,
    options: Options,
    rules: _Rules,
    *,
    memory: bool = False,
) -> Plan:
    edges = _edges(graph, placed)
    problem = _problem(graph, placed, offered, edges, target, options, rules)
    made = schedule(
        problem,
        options.policy,
        links="serial",
        budget_s=options.budget_s,
        seed=0,
        memory=memory,
        compiled=options.search,
    )
    tensors = {
        int(number): str(edge.tensor)
        for number, edge in zip(problem.edge_tensor, edges, strict=True)
    }
    return steps.build(
        graph,
        placed,
        offered,
        made,
        tensors,
        target.devices,
        target.measured_links(),
        options.expected_runs,
    )


def _problem(
    graph: Graph,
    placed: Sequence[Node],
    offered: Mapping[str, Offers],
    edges: Sequence[EdgeSpec],
    target: Target,
    options: Options,
    rules: _Rules,
) -> Problem:
    tasks = [_ends_task(steps.input_task(name), graph.specs[name].nbytes) for name in graph.inputs]
    dead: list[str] = []
    for node in placed:
        cost, reasons = _costs(node, offered[node.name], target, rules, options.expected_runs)
        if not cost:
            dead.append(
                f"{node.name} ({node.op}): " + "; ".join(f"{d}: {w}" for d, w in reasons.items())
            )
            continue
        out = max((graph.specs[v].nbytes for v in node.outputs), default=0)
        tasks.append(
            TaskSpec(
                node.name,
                cost,
                out_bytes=float(out),
                param_bytes=float(_constant_bytes(offered[node.name])),
                reasons=reasons,
            )
        )
    if dead:
        raise NoPlacement(
            f"{len(dead)} op(s) have no device: {' | '.join(dead[:8])}; allow another device or "
            "lift the constraint"
        )
    tasks += [_ends_task(steps.output_task(name), 0) for name in graph.outputs]
    sizes = [e.nbytes for e in edges if e.nbytes > 0]
    typical = statistics.median(sizes) if sizes else 4096.0
    return Problem.build(
        tasks,
        edges,
        [DeviceSpec(d.id, rules.memory(d), d.resource_group, d.kind) for d in target.devices],
        _links(target, typical),
        host=HOST,
        group_capacity=dict(target.capacity),
    )


def _ends_task(name: str, nbytes: int) -> TaskSpec:
    """A graph input or output: takes no time, lives in host memory."""
    return TaskSpec(name, {HOST: 0.0}, out_bytes=float(nbytes))


def _costs(
    node: Node, offers: Offers, target: Target, rules: _Rules, expected_runs: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds by device id for an op, with the reasons of the devices left out."""
    reasons = dict(offers.reasons)
    costs: dict[str, float] = {}
    for info in target.devices:
        offer = offers.best.get(info.id)
        if offer is None:
            continue
        banned = rules.banned(node, info.id)
        if banned:
            reasons[info.id] = banned
            continue
        seconds = costing.interval(offer.estimate)[0]
        if info.id != HOST:
            upload = target.link(target.info(HOST), info).seconds(_constant_bytes(offers))
            seconds += upload / max(1, expected_runs) if offers.call.constants else 0.0
        costs[info.id] = seconds
    aside = HOST not in target.asked and any(d in target.asked for d in costs)
    if aside and costs.pop(HOST, None) is not None:
        reasons[HOST] = "not among the devices asked for"
    return costs, reasons


def _constant_bytes(offers: Offers) -> int:
    return sum(a.nbytes for a in offers.call.constants.values())


def _edges(graph: Graph, placed: Sequence[Node]) -> list[EdgeSpec]:
    roots = costing.alias_roots(graph)
    maker = {v: n.name for n in placed for v in n.outputs}
    maker.update({name: steps.input_task(name) for name in graph.inputs})
    reads = [
        (node, value)
        for node in placed
        for value in dict.fromkeys(roots[v] for v in node.operands)
        if value in maker
    ]
    edges = [EdgeSpec(maker[v], n.name, float(graph.specs[v].nbytes), v) for n, v in reads]
    for name, value in graph.outputs.items():
        root = roots[value]
        if root in maker:
            size = float(graph.specs[root].nbytes)
            edges.append(EdgeSpec(maker[root], steps.output_task(name), size, root))
    return edges


def _links(target: Target, nbytes: float) -> list[LinkSpec]:
    host = target.info(HOST)
    made = []
    for info in target.devices:
        if info.id == HOST:
            continue
        for src, dst in ((host, info), (info, host)):
            latency, rate = target.link(src, dst).affine(nbytes)
            made.append(LinkSpec(src.id, dst.id, latency, rate))
    return made


def _check_memory(plan: Plan, rules: _Rules) -> None:
    for device, (need, budget) in rules.over_budget(plan).items():
        part = plan.device(device)
        raise MemoryBudget(
            f"{device} needs {need} B (arena {part.arena_bytes}, weights {part.resident_bytes}) "
            f"and has {int(budget)} B; raise constraints.memory, allow another device or use a "
            "smaller batch"
        )


class _Rules:
    """Constraints resolved against the graph's nodes and the devices."""

    def __init__(self, given: Constraints, target: Target, graph: Graph) -> None:
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
        for device, budget in given.memory.items():
            if device not in known or not budget >= 0:
                raise PlanError(
                    f"constraints.memory gives {device!r} {budget!r} bytes; devices are "
                    f"{', '.join(sorted(known))}, and budgets at least 0"
                )

    def without(self, device: str) -> _Rules:
        """The same rules, with no op on a device whose memory is too small."""
        made = copy.copy(self)
        made.full = self.full | {device}
        return made

    def memory(self, info: DeviceInfo) -> float:
        """Budget in bytes."""
        return float(self._given.memory.get(info.id, info.memory_bytes))

    def over_budget(self, plan: Plan) -> dict[str, tuple[int, float]]:
        """Bytes needed and allowed, by id of the devices whose budget the plan passes.

        Devices of one physical memory share it; the one with most of the plan stands for them.
        """
        over: dict[str, tuple[int, float]] = {}
        shared: dict[str, list[DevicePlan]] = {}
        for part in plan.devices:
            budget = self.memory(self._target.info(part.id))
            shared.setdefault(part.physical_id, []).append(part)
            if part.peak_bytes > budget:
                over[part.id] = (part.peak_bytes, budget)
        for parts in shared.values():
            need = sum(p.peak_bytes for p in parts)
            room = max(self._target.info(p.id).memory_bytes for p in parts)
            if need > room and not any(p.id in over for p in parts):
                most = max((p for p in parts), key=lambda p: (p.id != HOST, p.peak_bytes))
                over[most.id] = (need, float(room))
        return over

    def banned(self, node: Node, device: str) -> str:
        """Why a constraint keeps a node off a device; empty where none does."""
        if device in self._target.broken:
            return self._target.broken[device]
        if device in self.full:
            return "its memory is too small for this graph"
        for pattern, pinned in self._given.pin.items():
            if pinned != device and matches(pattern, node):
                return f"pinned to {pinned} by {pattern!r}"
        for pattern, forbidden in _flat(self._given.forbid):
            if forbidden == device and matches(pattern, node):
                return f"forbidden by {pattern!r}"
        return ""


def matches(pattern: str, node: Node) -> bool:
    """True where a constraint's pattern is the node's name or op, or matches its name."""
    return pattern in (node.name, node.op) or fnmatch.fnmatchcase(node.name, pattern)


def _flat(forbid: Mapping[str, Sequence[str] | str]) -> list[tuple[str, str]]:
    return [
        (pattern, device)
        for pattern, devices in forbid.items()
        for device in ([devices] if isinstance(devices, str) else devices)
    ]
