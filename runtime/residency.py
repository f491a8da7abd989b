"""Residency: which values may live on which devices only, and what that means for each op.

A label names ops or graph inputs and the devices that their results may live on. The op itself and
everything that reads a result, under another shape too, must then be on one of these devices, and
so must the host where the value would pass through it: on its way between two devices, or as an
input or output of the graph. What is computed from the value is a value of its own.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence

from crossdock.runtime.calls import alias_roots, is_alias
from crossdock.runtime.errors import NoPlacement, PlanError
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.plan import HOST

Labels = Mapping[str, Sequence[str] | str]


def matches(pattern: str, node: Node) -> bool:
    """True where a constraint's pattern is the node's name or op, or matches its name."""
    return pattern in (node.name, node.op) or fnmatch.fnmatchcase(node.name, pattern)


class Residency:
    """Labels resolved against a graph.

    Raises:
        PlanError: a label matches nothing, names an unknown device, or devices that exchange values
            through the host without it.
        NoPlacement: a labelled value is an input or output of the graph and may not be on the host.
    """

    def __init__(self, labels: Labels, graph: Graph, known: Sequence[str]) -> None:
        self._homes: dict[str, list[tuple[str, str, frozenset[str]]]] = {}
        roots = alias_roots(graph)
        for label, given in labels.items():
            homes = frozenset([given] if isinstance(given, str) else given)
            _check_devices(label, homes, known)
            named = dict(_labelled(graph, label))
            if not named:
                raise PlanError(f"residency {label!r} matches no op and no input of the graph")
            values = {roots[v]: name for name, results in named.items() for v in results}
            _check_ends(graph, roots, label, homes, values)
            for node in graph.nodes:
                touched = [roots[v] for v in (*node.operands, *node.outputs)]
                owner = next((values[r] for r in touched if r in values), None)
                if owner is not None and not is_alias(node):
                    self._homes.setdefault(node.name, []).append((label, owner, homes))

    def banned(self, node: str, device: str) -> str:
        """Why a node may not be on a device; empty where it may."""
        for label, owner, homes in self._homes.get(node, ()):
            if device not in homes:
                whose = "its result" if owner == node else f"the value of {owner!r}"
                return f"residency {label!r} keeps {whose} on {', '.join(sorted(homes))}"
        return ""

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes that labels bear upon: those that make or read a labelled value."""
        return frozenset(self._homes)


def _labelled(graph: Graph, label: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of the nodes and inputs that a label matches, with their values."""
    for name in graph.inputs:
        if fnmatch.fnmatchcase(name, label) or name == label:
            yield name, (name,)
    for node in graph.nodes:
        if matches(label, node):
            yield node.name, node.outputs


def _check_devices(label: str, homes: frozenset[str], known: Sequence[str]) -> None:
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


def _check_ends(
    graph: Graph,
    roots: Mapping[str, str],
    label: str,
    homes: frozenset[str],
    values: Mapping[str, str],
) -> None:
    if HOST in homes:
        return
    outputs = {roots[value]: name for name, value in graph.outputs.items()}
    for value, owner in values.items():
        end = f"output {outputs[value]!r}" if value in outputs else ""
        end = f"input {value!r}" if value in graph.inputs else end
        if end:
            raise NoPlacement(
                f"residency {label!r} keeps the value of {owner!r} on {', '.join(sorted(homes))}, "
                f"but it is the graph's {end}, which is on {HOST}: add {HOST} to the label, or "
                "take the op out of it"
            )
