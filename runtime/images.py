"""Which ops of a batch to run image by image: those that are done sooner so, by what was measured.

An op's images in a row, each by one thread, take what one image takes a thread, times the images
that fall to a thread; all images at once take what the op takes. Of the ops in a row for which the
sum of the differences is largest one op is made, with a graph for one image as its body.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from crossdock.devices.base import DeviceInfo
from crossdock.kernels import table
from crossdock.kernels.by_image import ImageProgram, ImageStep, lowered_alone
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing
from crossdock.runtime.calls import alias_roots, is_alias, op_call
from crossdock.runtime.cut_rules import Cut, cut
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.target import Target

LEAST = 2
"""Ops that are worth it: one alone leaves nothing in the caches."""

CACHED = 1 << 20
"""Bytes of a plan's values that a core's caches hold, so that taking turns gains nothing."""

Measure = Callable[[Mapping[str, OpCall]], None]
"""Measures ops on one thread of the processor."""


@dataclass(frozen=True)
class _Image:
    """A node as it is for one image."""

    node: Node
    call: OpCall


def by_image(
    graph: Graph, target: Target, host: DeviceInfo, thread: DeviceInfo, measure: Measure
) -> Graph | None:
    """The graph with the ops for which it pays in one that takes image after image.

    Args:
        graph: a static graph.
        target: with the costs.
        host: the processor.
        thread: one thread of it.
        measure: called with ops of one image before their costs there are asked for.

    Returns:
        None where that is predicted to gain nothing, or the graph has no batch.
    """
    images = _images(graph)
    if images < 2:
        return None
    found = [_image(graph, node, images) for node in graph.nodes]
    measure({i.node.name: i.call for i in found if i is not None and not is_alias(i.node)})
    turns = -(-images // min(images, host.compute_units))
    choice = _Choice(target, host, thread, turns)
    gains = [
        -math.inf if one is None else choice.gain(op_call(graph, node), one)
        for node, one in zip(graph.nodes, found, strict=True)
    ]
    first, last = _best_row(gains)
    row = [one for one in found[first:last] if one is not None]
    if len(row) < LEAST:
        return None
    return _Joining(graph, row, images, replace(target, devices=(thread,))).made()


def _images(graph: Graph) -> int:
    """The size that all inputs have first; 0 where there is none."""
    sizes = {spec.dims[0] if spec.rank else 0 for spec in graph.inputs.values()}
    return sizes.pop() if len(sizes) == 1 else 0


def _image(graph: Graph, node: Node, images: int) -> _Image | None:
    """A node for one image; None where its images are not computed each from its own."""
    call = op_call(graph, node)
    found = cut(call, 0) if call.outputs[0].rank else None
    if found is None or not _cuts_images(call, found, images):
        return None
    attrs = found.fit(node.attrs, 1, images)
    specs = [
        s if s is None or axis is None else s.with_shape((1, *s.dims[1:]))
        for s, axis in zip(call.inputs, found.operands, strict=True)
    ]
    outs = table.op(node.op).infer(specs, attrs)
    if any(o.dims != (1, *s.dims[1:]) for o, s in zip(outs, call.outputs, strict=True)):
        return None
    one = replace(node, attrs=attrs)
    return _Image(one, replace(call, attrs=attrs, inputs=tuple(specs), outputs=tuple(outs)))


def _cuts_images(call: OpCall, found: Cut, images: int) -> bool:
    """Whether a cut is one of images: they come first everywhere but in constants."""
    for i, (spec, axis) in enumerate(zip(call.inputs, found.operands, strict=True)):
        if spec is None or (axis is None and i in call.constants):
            continue
        if axis != 0 or spec.dims[0] != images or i in call.constants:
            return False
    return set(found.results) == {0} and all(s.dims[0] == images for s in call.outputs)


@dataclass(frozen=True)
class _Choice:
    """What an op takes all at once, and image by image."""

    target: Target
    host: DeviceInfo
    thread: DeviceInfo
    turns: int

    def gain(self, whole: OpCall, one: _Image) -> float:
        """Seconds saved; minus infinity where an image cannot be computed by compiled code."""
        if is_alias(one.node):
            return 0.0
        at_once = self._best(whole, self.host)
        each = self._best(one.call, self.thread)
        if at_once is None or each is None:
            return -math.inf
        if lowered_alone(one.call, each.kernel.name, self.thread) is None:
            return -math.inf
        before, after = at_once.estimate.seconds, each.estimate.seconds
        if before is None or after is None:
            return -math.inf
        return before - self.turns * after

    def _best(self, call: OpCall, info: DeviceInfo) -> costing.Offer | None:
        target = self.target
        made = costing.offers(call, [info], target.model, permission=target.permission)
        return made.best.get(info.id)


def _best_row(gains: Sequence[float]) -> tuple[int, int]:
    """First and last of the members in a row with the largest sum (Kadane's algorithm)."""
    best, found, total, start = 0.0, (0, 0), 0.0, 0
    for i, gain in enumerate(gains):
        if total <= 0.0:
            total, start = 0.0, i
        total += gain
        if total > best:
            best, found = total, (start, i + 1)
    return found


@dataclass(frozen=True)
class _Joining:
    """Makes one op of a row of nodes."""

    graph: Graph
    row: Sequence[_Image]
    images: int
    target: Target

    def made(self) -> Graph | None:
        """The graph with the op; None where a result of it lies in another's bytes."""
        roots = alias_roots(self.body)
        ends = [roots[v] for v in self.body.outputs.values()]
        if len(set(ends)) < len(ends) or any(v != e for v, e in zip(self._ends, ends, strict=True)):
            return None
        attrs = {"body": self.body, "images": self.images, "program": self._program(roots)}
        name = f"{self.row[0].node.name}.by_image"
        joined = Node(name, "by_image", tuple(self.body.inputs), self._ends, attrs)
        gone = {one.node.name for one in self.row}
        at = next(i for i, n in enumerate(self.graph.nodes) if n.name in gone)
        nodes = [n for n in self.graph.nodes if n.name not in gone]
        nodes.insert(at, joined)
        used = {v for n in nodes for v in n.operands} | set(self.graph.outputs.values())
        constants = {k: a for k, a in self.graph.constants.items() if k in used}
        return replace(self.graph, nodes=tuple(nodes), constants=constants).check()

    @cached_property
    def body(self) -> Graph:
        """The graph of one image."""
        inside = {v for one in self.row for v in one.node.outputs}
        specs = {}
        for one in self.row:
            pairs = [
                *zip(one.node.inputs, one.call.inputs, strict=True),
                *zip(one.node.outputs, one.call.outputs, strict=True),
            ]
            specs.update({v: s for v, s in pairs if v is not None and s is not None})
        read = dict.fromkeys(v for one in self.row for v in one.node.operands if v not in inside)
        given = self.graph.constants
        return Graph(
            name=self.graph.name,
            inputs={v: specs[v] for v in read if v not in given},
            outputs={v: v for v in self._ends},
            nodes=tuple(one.node for one in self.row),
            constants={v: given[v] for v in read if v in given},
            specs=specs,
        ).check()

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        """What is read outside of the row."""
        gone = {one.node.name for one in self.row}
        read = {v for n in self.graph.nodes if n.name not in gone for v in n.operands}
        read |= set(self.graph.outputs.values())
        return tuple(v for one in self.row for v in one.node.outputs if v in read)

    def _program(self, roots: Mapping[str, str]) -> ImageProgram:
        plan = make_plan(self.body, self.target, Options())
        nodes = {n.name: n for n in self.body.nodes}
        part = plan.devices[0]
        steps = tuple(
            ImageStep(
                op_call(self.body, nodes[s.name]),
                s.kernel,
                tuple(None if v is None else roots[v] for v in s.inputs),
                tuple(roots[v] for v in s.outputs),
            )
            for s in plan.launches()
        )
        ends = tuple(roots[v] for v in self._ends)
        return ImageProgram(steps, part.offsets, part.arena_bytes, tuple(self.body.inputs), ends)
