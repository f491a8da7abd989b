"""Cutting a region of a graph into parts that run side by side: slices, copies of the ops, concats.

A *region* is a set of ops that are cut along one dimension that all of them share: the images of a
batch, the rows of a product, the output channels of a convolution with what follows it elementwise.
Inside of it parts feed parts; only at its borders values are sliced and joined. Constants are
sliced ahead, and where the border is the graph's own, no op is needed: parts of an input are filled
from windows of the array that is fed, and an output's parts are written into windows of the result,
as long as these are in the host's memory.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from crossdock.kernels import table
from crossdock.runtime.calls import op_call
from crossdock.runtime.cut_rules import Cut, cut
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.tensor import Array


@dataclass(frozen=True)
class Window:
    """Elements ``start`` to ``stop`` along ``axis`` of the array ``source``."""

    source: str
    axis: int
    start: int
    stop: int

    def of(self, array: Array) -> Array:
        """The view."""
        window: Array = array[(slice(None),) * self.axis + (slice(self.start, self.stop),)]
        return window


@dataclass(frozen=True)
class Whole:
    """Inputs and outputs that have no windows, as the host's arrays have: ops slice and join them.

    They lie on a device, or stay on the one that makes them.
    """

    inputs: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SplitGraph:
    """A graph with some of its ops in parts.

    ``inputs`` and ``outputs`` say of which window of which array of the caller's an input or output
    of ``graph`` is; those not named are the caller's own, and those in ``whole`` always are.
    ``parts`` holds the number of the part that a node belongs to, by node name.
    """

    graph: Graph
    inputs: Mapping[str, Window] = field(default_factory=dict)
    outputs: Mapping[str, Window] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)
    whole: Whole = Whole()


@dataclass(frozen=True)
class Region:
    """Ops that are cut together, in graph order.

    ``axes`` has the axis of every value that is cut, made inside or read from outside; a part's
    share of each is a multiple of 1 / ``units``. ``seed`` and ``axis`` say where it grew from.
    """

    seed: str
    axis: int
    nodes: tuple[str, ...]
    axes: Mapping[str, int]
    units: int


def grow(graph: Graph, seed: Node, axis: int, keep: frozenset[str] = frozenset()) -> Region | None:
    """The largest region around an op cut along an axis of its result; None if that cannot be.

    Nodes named in ``keep`` stay as they are. A region takes in what makes or reads its cut values
    as long as that is cut along the same dimension, into equal shares.
    """
    growth = _Growth(graph, keep)
    if seed.name in keep or not growth.take(seed, axis):
        return None
    growth.spread()
    names = tuple(n.name for n in graph.nodes if n.name in growth.taken)
    return Region(seed.name, axis, names, growth.axes, growth.units)


class _Growth:
    def __init__(self, graph: Graph, keep: frozenset[str]) -> None:
        self.graph, self.keep = graph, keep
        self.makers, self.readers = graph.producers(), graph.consumers()
        self.axes: dict[str, int] = {}
        self.taken: dict[str, Cut] = {}
        self.units = 0
        self._open: deque[str] = deque()

    def take(self, node: Node, axis: int) -> bool:
        """Take a node in, if it can be cut so; whether it was."""
        found = cut(op_call(self.graph, node), axis)
        if found is None or node.name in self.keep:
            return False
        wanted = _wanted(node, found)
        if wanted is None or any(self.axes.get(v, a) != a for v, a in wanted.items()):
            return False
        sizes = [self.graph.specs[v].dims[a] for v, a in wanted.items()]
        units = math.gcd(self.units, *sizes)
        if units < 2:
            return False
        self.units, self.taken[node.name] = units, found
        for value in wanted:
            if value not in self.axes:
                self._open.append(value)
        self.axes.update(wanted)
        return True

    def spread(self) -> None:
        """Take in neighbours over cut values until none fits."""
        while self._open:
            value = self._open.popleft()
            maker = self.makers.get(value)
            if maker is not None:
                at = maker.outputs.index(value)
                self._take_where(maker, self.axes[value], partial(_result, at))
            for reader in self.readers.get(value, ()):
                at = reader.inputs.index(value)
                self._take_where(reader, self.axes[value], partial(_operand, at))

    def _take_where(self, node: Node, axis: int, side: Callable[[Cut], int | None]) -> None:
        """Take a node in by a cut whose ``side`` is ``axis``, if there is one."""
        if node.name in self.taken:
            return
        call = op_call(self.graph, node)
        for out in range(call.outputs[0].rank):
            found = cut(call, out)
            if found is not None and side(found) == axis and self.take(node, out):
                return


def _result(at: int, found: Cut) -> int:
    return found.results[at]


def _operand(at: int, found: Cut) -> int | None:
    return found.operands[at]


def _wanted(node: Node, found: Cut) -> dict[str, int] | None:
    """The axis of every value that a cut cuts; None where a value is cut in two ways."""
    wanted: dict[str, int] = {}
    pairs = [
        *zip(node.inputs, found.operands, strict=True),
        *zip(node.outputs, found.results, strict=True),
    ]
    for value, axis in pairs:
        if value is None or axis is None:
            continue
        if wanted.setdefault(value, axis) != axis:
            return None
    whole = {v for v, a in pairs if v is not None and a is None}
    return None if whole & wanted.keys() else wanted


def rewrite(given: SplitGraph, region: Region, sizes: Sequence[int]) -> SplitGraph:
    """Cut a region into parts of ``sizes`` units, in order; they add up to ``region.units``."""
    assert sum(sizes) == region.units, (sizes, region.units)
    assert all(s > 0 for s in sizes), sizes
    return _Rewriting(given, region, sizes).made()


class _Rewriting:
    def __init__(self, given: SplitGraph, region: Region, sizes: Sequence[int]) -> None:
        self.given, self.region, self.sizes = given, region, sizes
        self.graph = given.graph
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.inside = set(region.nodes)
        self.nodes: list[Node] = []
        self.specs = dict(self.graph.specs)
        self.constants = dict(self.graph.constants)
        self.inputs = dict(self.graph.inputs)
        self.windows = dict(given.inputs)
        self.belongs = dict(given.parts)
        self._windowed = self.graph.inputs.keys() - self.windows.keys() - given.whole.inputs
        self.parts: dict[str, list[str]] = {}

    def made(self) -> SplitGraph:
        outputs, windows = self._outputs()
        whole = self._read_whole(set(outputs.values()))
        for node in self.graph.nodes:
            if node.name not in self.inside:
                self.nodes.append(node)
                continue
            self._part(node)
            self.nodes.extend(self._join(v) for v in node.outputs if v in whole)
        used = {v for n in self.nodes for v in n.operands} | set(outputs.values())
        whole_inputs = {v for v in self.graph.inputs if v in self.parts and v not in used}
        graph = replace(
            self.graph,
            inputs={k: s for k, s in self.inputs.items() if k not in whole_inputs},
            outputs=outputs,
            nodes=tuple(self.nodes),
            constants={k: a for k, a in self.constants.items() if k in used},
            specs=self.specs,
        ).check()
        kept = {k: w for k, w in self.windows.items() if k in graph.inputs}
        return SplitGraph(graph, kept, windows, self.belongs, self.given.whole)

    def _outputs(self) -> tuple[dict[str, str], dict[str, Window]]:
        """Outputs by name, those that are made in the region in parts; and their windows."""
        made = {v for n in self.graph.nodes if n.name in self.inside for v in n.outputs}
        outputs: dict[str, str] = {}
        windows = dict(self.given.outputs)
        for name, value in self.graph.outputs.items():
            if value not in made or name in windows or name in self.given.whole.outputs:
                outputs[name] = value
                continue
            for i in range(len(self.sizes)):
                outputs[f"{name}.part{i}"] = self._made(value, i)
                windows[f"{name}.part{i}"] = self._window(name, value, i)
        return outputs, windows

    def _made(self, value: str, part: int) -> str:
        """Part of a value that the region makes: a join of parts cut before has others already."""
        stem = value
        for n in itertools.count(2):
            if not any(f"{stem}.part{i}" in self.graph.specs for i in range(len(self.sizes))):
                break
            stem = f"{value}.{n}"
        return f"{stem}.part{part}"

    def _window(self, name: str, value: str, part: int) -> Window:
        axis = self.region.axes[value]
        unit = self.graph.specs[value].dims[axis] // self.region.units
        start = self.starts[part] * unit
        return Window(name, axis, start, start + self.sizes[part] * unit)

    def _read_whole(self, outputs: set[str]) -> set[str]:
        """Values that something reads whole."""
        whole = set(outputs)
        for node in self.graph.nodes:
            axes = self._cut(node).operands if node.name in self.inside else ()
            for i, value in enumerate(node.inputs):
                if value is not None and (not axes or axes[i] is None):
                    whole.add(value)
        return whole

    def _cut(self, node: Node) -> Cut:
        """The node's cut in this region."""
        call = op_call(self.graph, node)
        want = self.region.axes[node.outputs[0]]
        found = cut(call, want)
        assert found is not None, node.name
        return found

    def _part(self, node: Node) -> None:
        """The node's copies, one a part, with the windows of what they read from outside."""
        found = self._cut(node)
        whole = self.graph.specs[node.outputs[0]].dims[found.results[0]]
        for value, axis in zip(node.inputs, found.operands, strict=True):
            if value is not None and axis is not None and value not in self.parts:
                self.parts[value] = [self._outside(value, i) for i in range(len(self.sizes))]
        for value in node.outputs:
            self.parts[value] = [self._made(value, i) for i in range(len(self.sizes))]
        for i, size in enumerate(self.sizes):
            inputs = tuple(
                v if v is None or axis is None else self.parts[v][i]
                for v, axis in zip(node.inputs, found.operands, strict=True)
            )
            attrs = found.fit(node.attrs, whole * size // self.region.units, whole)
            outputs = tuple(self.parts[v][i] for v in node.outputs)
            specs = [None if v is None else self.specs[v] for v in inputs]
            self.specs.update(zip(outputs, table.op(node.op).infer(specs, attrs), strict=True))
            self._add(Node(f"{node.name}.part{i}", node.op, inputs, outputs, attrs), i)

    def _add(self, node: Node, part: int) -> None:
        self.nodes.append(node)
        self.belongs[node.name] = part

    def _outside(self, value: str, part: int) -> str:
        """Part of a value from outside of the region: of a constant, an input, or by a slice."""
        name = f"{value}.{self.region.seed}.part{part}"  # other regions cut the value elsewhere
        window = self._window(value, value, part)
        spec = self.graph.specs[value]
        dims = [*spec.dims]
        dims[window.axis] = window.stop - window.start
        self.specs[name] = spec.with_shape(dims)
        if value in self.constants:
            array = np.ascontiguousarray(window.of(self.constants[value]))
            array.flags.writeable = False
            self.constants[name] = array
        elif value in self._windowed:
            self.inputs[name] = self.specs[name]
            self.windows[name] = window
        else:
            starts = [0] * spec.rank
            starts[window.axis] = window.start
            attrs = {"starts": tuple(starts), "sizes": tuple(dims), "strides": (1,) * spec.rank}
            self.nodes.append(Node(name, "slice", (value,), (name,), attrs))
        return name

    def _join(self, value: str) -> Node:
        attrs = {"axis": self.region.axes[value]}
        return Node(f"{value}.join", "concat", tuple(self.parts[value]), (value,), attrs)
