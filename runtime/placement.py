"""From a graph and the offers of its ops to the placement problem that is scheduled."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from crossdock.kernels.refusal import Cause, Refusal, cause_of
from crossdock.runtime import costing, steps
from crossdock.runtime.builds import Mark, build_of
from crossdock.runtime.costing import Offers
from crossdock.runtime.errors import NoPlacement
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.plan import HOST
from crossdock.runtime.rules import Rules
from crossdock.runtime.sites import ON_HOST, Sites
from crossdock.runtime.target import Target
from crossdock.scheduler import DeviceSpec, EdgeSpec, LinkSpec, Problem, TaskSpec


def problem_of(
    graph: Graph,
    placed: Sequence[Node],
    offered: Mapping[str, Offers],
    edges: Sequence[EdgeSpec],
    target: Target,
    rules: Rules,
    expected_runs: int,
    sites: Sites = ON_HOST,
    *,
    builds: bool = False,
) -> Problem:
    """The problem of placing ``placed``: a task an op, graph input and graph output.

    Inputs are where ``sites`` says; outputs that stay have no task, since nothing carries them.

    With ``builds``, an op has its part of what its kernel takes to build, as of uploads.

    Raises:
        NoPlacement: ops that no device can run, with the reasons.
    """
    tasks = [
        _ends_task(steps.input_task(name), graph.specs[name].nbytes, sites.feeds.get(name, HOST))
        for name in graph.inputs
    ]
    dead: list[str] = []
    built = _builds(placed, offered, target) if builds else {}
    for node in placed:
        cost, reasons = _costs(node, offered[node.name], target, rules, expected_runs)
        for device in cost:
            cost[device] += built.get((node.name, device), 0.0) / max(1, expected_runs)
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
    gone = {steps.output_task(name) for name in sites.stays}
    carried = [steps.output_task(name) for name in graph.outputs]
    tasks += [_ends_task(name, 0, HOST) for name in carried if name not in gone]
    edges = [edge for edge in edges if edge.dst not in gone]
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


def _ends_task(name: str, nbytes: int, device: str) -> TaskSpec:
    """A graph input or output: takes no time, and is on one device."""
    return TaskSpec(name, {device: 0.0}, out_bytes=float(nbytes))


def _costs(
    node: Node, offers: Offers, target: Target, rules: Rules, expected_runs: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds by device id for an op, with the reasons of the devices left out."""
    reasons = dict(offers.reasons)
    costs: dict[str, float] = {}
    unbuilt = [name for name, why in reasons.items() if cause_of(why) is Cause.BROKEN]
    for info in target.devices:
        banned = rules.banned(node, info.id, unbuilt)
        if banned:
            reasons[info.id] = banned
            continue
        offer = offers.best.get(info.id)
        if offer is None:
            continue
        seconds = costing.interval(offer.estimate)[0]
        if info.id != HOST:
            upload = target.link(target.info(HOST), info).seconds(_constant_bytes(offers))
            seconds += upload / max(1, expected_runs) if offers.call.constants else 0.0
        costs[info.id] = seconds
    aside = HOST not in target.asked and any(d in target.asked for d in costs)
    if aside and costs.pop(HOST, None) is not None:
        reasons[HOST] = Refusal("not among the devices asked for", Cause.NOT_ASKED)
    return costs, reasons


def _builds(
    placed: Sequence[Node], offered: Mapping[str, Offers], target: Target
) -> dict[tuple[str, str], float]:
    """Seconds to build an op's kernel, shared by the ops that have it, by (node, device)."""
    users: dict[Mark, list[tuple[str, str]]] = {}
    for node in placed:
        offers = offered[node.name]
        key = offers.call.key()
        for info in target.devices:
            if info.id in offers.best:
                mark = (info.fingerprint, offers.best[info.id].kernel.name, key)
                users.setdefault(mark, []).append((node.name, info.id))
    found: dict[tuple[str, str], float] = {}
    for mark, pairs in users.items():
        seconds = build_of(target.model, mark, target.built).seconds / len(pairs)
        found.update((pair, seconds) for pair in pairs)
    return found


def _constant_bytes(offers: Offers) -> int:
    return sum(a.nbytes for a in offers.call.constants.values())


def edges_of(graph: Graph, placed: Sequence[Node]) -> list[EdgeSpec]:
    """An edge for every value that an op or a graph output reads; aliases are their roots."""
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
    """The links to and from the host, and the direct ones; the rest goes through the host."""
    others = [d.id for d in target.devices if d.id != HOST]
    ends = [pair for name in others for pair in ((HOST, name), (name, HOST))]
    made = []
    for src, dst in (*ends, *sorted(target.direct)):
        latency, rate = target.link(target.info(src), target.info(dst)).affine(nbytes)
        made.append(LinkSpec(src, dst, latency, rate))
    return made
