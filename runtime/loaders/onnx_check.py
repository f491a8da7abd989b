"""Structure of an ONNX model, checked without the package's own checker.

Every value is defined once and before use, nothing is cyclic or recursive, everything is supported;
nodes come out in topological order (Kahn 1962).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from crossdock.runtime.errors import LimitError, MalformedModel, UnsupportedModel
from crossdock.runtime.limits import too_many_nodes
from crossdock.runtime.loaders.onnx_model import (
    FunctionKey,
    OnnxFunction,
    OnnxGraph,
    OnnxModel,
    OnnxNode,
    OnnxValue,
    Opaque,
    shown,
)

Supports = Callable[[OnnxNode, int | None], str | None]
"""None where a node's op is supported at an opset (None: not imported), else the reason."""


def sort_model(model: OnnxModel) -> OnnxModel:
    """Verify the structure; return the model with every graph's nodes in topological order.

    Raises:
        MalformedModel: naming the node and value.
        LimitError: its functions unfold to more nodes than it may have.
    """
    if not model.graph.outputs:
        raise MalformedModel(f"{model.label}: the graph has no outputs")
    graph = _Sorter(model.label).graph(model.graph, frozenset())
    functions = {key: _sort_function(model.label, f) for key, f in model.functions.items()}
    sound = replace(model, graph=graph, functions=functions)
    _check_unfolding(sound)
    return sound


def _sort_function(label: str, function: OnnxFunction) -> OnnxFunction:
    sorter = _Sorter(f"{label}: function {shown(function.name)}")
    graph = OnnxGraph(
        function.name,
        tuple(OnnxValue(name, None, None) for name in function.inputs),
        tuple(OnnxValue(name, None, None) for name in function.outputs),
        function.nodes,
        {},
    )
    return replace(function, nodes=sorter.graph(graph, frozenset()).nodes)


class _Sorter:
    def __init__(self, label: str) -> None:
        self.label = label

    def graph(self, graph: OnnxGraph, outer: frozenset[str]) -> OnnxGraph:
        """Check a graph whose enclosing graphs define ``outer``."""
        given = self.given(graph, outer)
        makers = self.makers(graph, given | outer)
        known = given | outer | makers.keys()
        inner = [self.inside(node, known) for node in graph.nodes]
        nodes = tuple(inner[i] for i in self.order(inner, given | outer, makers))
        seen: set[str] = set()
        for value in graph.outputs:
            if value.name not in known or value.name in seen:
                what = "twice" if value.name in seen else "but nothing makes it"
                raise self.fail(
                    f"graph {shown(graph.name)} gives output {shown(value.name)} {what}"
                )
            seen.add(value.name)
        return replace(graph, nodes=nodes)

    def fail(self, what: str) -> MalformedModel:
        return MalformedModel(f"{self.label}: {what}")

    def given(self, graph: OnnxGraph, outer: frozenset[str]) -> frozenset[str]:
        names: set[str] = set()
        for value in graph.inputs:
            if not value.name or value.name in names:
                raise self.fail(f"input {shown(value.name)} has no name or stands there twice")
            names.add(value.name)
        for name in (*names, *graph.constants):
            if name in outer:
                raise self.fail(f"graph {shown(graph.name)} defines {shown(name)} again")
        return frozenset(names | graph.constants.keys())

    def makers(self, graph: OnnxGraph, taken: frozenset[str]) -> dict[str, int]:
        """The index of the node that makes each value."""
        makers: dict[str, int] = {}
        for index, node in enumerate(graph.nodes):
            for name in node.outputs:
                if name and (name in makers or name in taken):
                    raise self.fail(f"{node} makes {shown(name)}, which is defined already")
                if name:
                    makers[name] = index
        return makers

    def inside(self, node: OnnxNode, known: frozenset[str]) -> OnnxNode:
        """The node with its subgraphs sorted."""
        if not any(True for _ in node.subgraphs()):
            return node
        own = known - set(node.outputs)
        attrs = {
            name: self.graph(value, own) if isinstance(value, OnnxGraph) else value
            for name, value in node.attrs.items()
        }
        return replace(node, attrs=attrs)

    def order(
        self, nodes: list[OnnxNode], given: frozenset[str], makers: Mapping[str, int]
    ) -> list[int]:
        """Indices in topological order, the file's order where that is free."""
        waiting: dict[int, int] = {}
        users: dict[int, list[int]] = {}
        for index, node in enumerate(nodes):
            sources = set()
            for name in reads(node):
                if name in makers:
                    sources.add(makers[name])
                elif name not in given:
                    raise self.fail(f"{node} reads {shown(name)}, which nothing makes")
            waiting[index] = len(sources)
            for source in sources:
                users.setdefault(source, []).append(index)
        ready = [index for index, count in waiting.items() if not count]
        done: list[int] = []
        while ready:
            index = heapq.heappop(ready)
            done.append(index)
            for user in users.get(index, ()):
                waiting[user] -= 1
                if not waiting[user]:
                    heapq.heappush(ready, user)
        if len(done) < len(nodes):
            stuck = min(set(waiting) - set(done))
            raise self.fail(f"{nodes[stuck]} is part of a cycle, or behind one")
        return done


def reads(node: OnnxNode) -> list[str]:
    """Names a node reads: its inputs, and what its subgraphs take from outside."""
    names = dict.fromkeys(name for name in node.inputs if name)
    for graph in node.subgraphs():
        names.update(dict.fromkeys(free_names(graph)))
    return list(names)


def free_names(graph: OnnxGraph) -> list[str]:
    """Names that a subgraph takes from the graphs around it, in order of use."""
    own = {v.name for v in graph.inputs} | set(graph.constants)
    own.update(name for node in graph.nodes for name in node.outputs)
    free: dict[str, None] = {}
    for node in graph.nodes:
        free.update((name, None) for name in reads(node) if name not in own)
    free.update((v.name, None) for v in graph.outputs if v.name not in own)
    return list(free)


def _check_unfolding(model: OnnxModel) -> None:
    """Refuse recursive functions, and those that unfold to too many nodes."""
    _Unfolding(model).count(model.graph.nodes)


class _Unfolding:
    """The nodes of a model once its functions are unfolded."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._counts: dict[FunctionKey, int] = {}
        self._open: set[FunctionKey] = set()

    def count(self, nodes: Iterable[OnnxNode]) -> int:
        """How many nodes unfold from some."""
        model, total = self._model, 0
        for node in nodes:
            total += 1 + sum(self.count(g.nodes) for g in node.subgraphs())
            key = (node.domain, node.op, node.overload)
            if key in model.functions:
                total += self._function(key)
            if total > model.limits.nodes:
                raise too_many_nodes(model.limits, model.label)
        return total

    def _function(self, key: FunctionKey) -> int:
        model = self._model
        if key in self._open:
            raise MalformedModel(f"{model.label}: function {shown(key[1])} calls itself")
        if len(self._open) >= model.limits.depth:
            raise LimitError(
                f"{model.label}: more than {model.limits.depth} functions call one another, at "
                f"{shown(key[1])}; raise Limits.depth if that is right"
            )
        if key not in self._counts:
            self._open.add(key)
            self._counts[key] = self.count(model.functions[key].nodes)
            self._open.discard(key)
        return self._counts[key]


def check_support(model: OnnxModel, supports: Supports) -> None:
    """Raise one UnsupportedModel naming every op that has no converter, and every odd tensor."""
    problems: dict[str, list[str]] = {}
    pending = [(model.graph.nodes, model.opsets)]
    seen: set[FunctionKey] = set()
    while pending:
        nodes, opsets = pending.pop()
        for node in nodes:
            pending.extend((g.nodes, opsets) for g in node.subgraphs())
            key = (node.domain, node.op, node.overload)
            if key in model.functions:
                if key not in seen:
                    seen.add(key)
                    function = model.functions[key]
                    pending.append((function.nodes, function.opsets))
                continue
            reason = supports(node, opsets.get(node.domain))
            if reason:
                problems.setdefault(reason, []).append(node.label)
    for name, what in _opaque(model):
        problems.setdefault(f"tensors of type {what}", []).append(name)
    if problems:
        raise UnsupportedModel(f"{model.label}: not supported: {_listing(problems)}")


def _opaque(model: OnnxModel) -> list[tuple[str, str]]:
    """Constants of types the IR lacks that some node reads."""
    found: list[tuple[str, str]] = []
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        used = {name for node in graph.nodes for name in reads(node)}
        used.update(v.name for v in graph.outputs)
        for name, value in graph.constants.items():
            if isinstance(value, Opaque) and name in used:
                found.append((name, value.what))
        for node in graph.nodes:
            pending.extend(node.subgraphs())
            values = (v for v in node.attrs.values() if isinstance(v, Opaque))
            found.extend((node.label, v.what) for v in values)
    return found


def _listing(problems: Mapping[str, list[str]], most: int = 4) -> str:
    lines = []
    for reason, names in problems.items():
        listed = ", ".join(shown(n) for n in names[:most])
        more = f" and {len(names) - most} more" if len(names) > most else ""
        lines.append(f"{reason} at {listed}{more}")
    return "; ".join(lines)
