"""Residency: which values may live on which devices only, and what that means for each op.

A label names ops or graph inputs and the devices that their results may live on. The op itself and
everything that reads a result, under another shape too, must then be on one of these devices, and
so must the host where the value would pass through it: on its way between two devices, or as an
input that comes from it or an output that goes there. An input that lies on a device has to be
allowed on that one. What is computed from the value is a value of its own.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from crossdock.runtime.calls import alias_roots, is_alias
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.sites import Sites

Labels = Mapping[str, Sequence[str] | str]


def matches(pattern: str, node: Node) -> bool:
    """True where a constraint's pattern is the node's name or op, or matches its name."""
    return pattern in (node.name, node.op) or fnmatch.fnmatchcase(node.name, pattern)


@dataclass(frozen=True)
class _Hold:
    """What a label does to a value: that of an op or an input, ``owner``, stays on ``homes``."""

    label: str
    owner: str
    homes: frozenset[str]

    def said(self, node: str = "") -> str:
        """The rule in words; for ``node``, which touches the value."""
        whose = "its result" if self.owner == node else f"the value of {self.owner!r}"
        return f"residency {self.label!r} keeps {whose} on {', '.join(sorted(self.homes))}"


class Residency:
    """Labels resolved against a graph.

    Raises:
        PlanError: a label matches nothing, names an unknown device, or devices that exchange values
            through the host without it.
    """

    def __init__(self, labels: Labels, graph: Graph, known: Collection[str] | None = None) -> None:
        """``known`` are the devices that there are; None where that has been looked at."""
        self.graph, self._roots = graph, alias_roots(graph)
        self._nodes: dict[str, list[_Hold]] = {}
        self._values: dict[str, list[_Hold]] = {}
        for label, homes in _homes_of(labels).items():
            if known is not None:
                _check_devices(label, homes, known)
            named = dict(_labelled(graph, label))
            if not named:
                raise PlanError(f"residency {label!r} matches no op and no input of the graph")
            values = {self._roots[v]: name for name, results in named.items() for v in results}
            for value, owner in values.items():
                self._values.setdefault(value, []).append(_Hold(label, owner, homes))
            for node in graph.nodes:
                touched = [self._roots[v] for v in (*node.operands, *node.outputs)]
                found = next((values[r] for r in touched if r in values), None)
                if found is not None and not is_alias(node):
                    self._nodes.setdefault(node.name, []).append(_Hold(label, found, homes))

    def banned(self, node: str, device: str) -> str:
        """Why a node may not be on a device; empty where it may."""
        holds = self._nodes.get(node, ())
        return next((hold.said(node) for hold in holds if device not in hold.homes), "")

    def astray(self, sites: Sites) -> str:
        """Which input lies, or output goes, where its label bars it, and the fix; else empty."""
        for name in self.graph.inputs:
            for hold in self._values.get(name, ()):
                device = sites.feeds.get(name, HOST)
                if device not in hold.homes:
                    return (
                        f"{hold.said()}, but it is the graph's input {name!r}, which lies on "
                        f"{device}: add {device} to the label, or have the input on "
                        f"{' or '.join(sorted(hold.homes))} (feeds_on)"
                    )
        for name, said in self.off_host.items():
            if name not in sites.stays:
                return (
                    f"{said}, but it is the graph's output {name!r}, which goes to {HOST}: add "
                    f"{HOST} to the label, or let outputs stay (outputs='device')"
                )
        return ""

    @property
    def off_host(self) -> dict[str, str]:
        """The outputs of the graph that may not go to the host, by name, with the rule."""
        return {
            name: hold.said()
            for name, value in self.graph.outputs.items()
            for hold in self._values.get(self._roots[value], ())
            if HOST not in hold.homes
        }

    def broken(self, plan: Plan) -> str:
        """How a plan breaks a label: by an op's place, or a copy's end; empty where it does not."""
        whole = {step.name for step in plan.launches()}
        for name, holds in self._nodes.items():
            if name not in whole:
                return f"{holds[0].said(name)}, and the plan has {name!r} in parts"
        for step in plan.steps:
            if step.kind == "launch":
                said = self.banned(step.name, step.device)
                if said:
                    return f"{said}, and the plan has {step.name!r} on {step.device}"
                continue
            for hold in self._values.get(self._roots.get(step.name, step.name), ()):
                for device in (step.src, step.dst):
                    if device not in hold.homes:
                        return f"{hold.said()}, and the plan copies it {step.src}->{step.dst}"
        return ""

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes that labels bear upon: those that make or read a labelled value."""
        return frozenset(self._nodes)


def _homes_of(labels: Labels) -> dict[str, frozenset[str]]:
    return {n: frozenset([to] if isinstance(to, str) else to) for n, to in labels.items()}


def private(labels: Labels) -> list[str]:
    """The labels of values that may not be on the host."""
    return [label for label, homes in _homes_of(labels).items() if HOST not in homes]


def _labelled(graph: Graph, label: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of the nodes and inputs that a label matches, with their values."""
    for name in graph.inputs:
        if fnmatch.fnmatchcase(name, label) or name == label:
            yield name, (name,)
    for node in graph.nodes:
        if matches(label, node):
            yield node.name, node.outputs


def _check_devices(label: str, homes: frozenset[str], known: Collection[str]) -> None:
    unknown = sorted(homes - set(known))
    if unknown or not homes:
        raise PlanError(
            f"residency {label!r} names {', '.join(unknown) or 'no device'}; there are "
            f"{', '.join(sorted(known))}"
        )
    if len(homes) > 1 and HOST not in homes:
        raise PlanError(
            f"residency {label!r} names {', '.join(sorted(homes))}, which exchange values through "
            f"{HOST}; name one of them, or {HOST} too"
        )
