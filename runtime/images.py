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
from crossdock.kernels.precision import Permission
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing
from crossdock.runtime.calls import alias_roots, is_alias, op_call
from crossdock.runtime.cut_rules import Cut, cut
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.order import plan_arenas
from crossdock.runtime.plan import HOST, Step
from crossdock.runtime.plan_parts import ImageRow
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
) -> ImageRow | None:
    """The ops that are done sooner by taking image after image through all of them.

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
    joining = _Joining(graph, row, images)
    if not joining.sound:
        return None
    plan = make_plan(joining.body, replace(target, devices=(thread,)), Options())
    steps = plan.launches()
    return ImageRow(
        tuple(one.node.name for one in row),
        tuple(step.name for step in steps),
        tuple(step.kernel for step in steps),
    )


def joined(graph: Graph, row: ImageRow, thread: DeviceInfo, permission: Permission) -> Graph | None:
    """The graph with the ops of a row in one that takes image after image.

    Args:
        graph: a static graph.
        row: of it; one that anybody made up is refused.
        thread: one thread of the processor.
        permission: what kernels may lose.

    Returns:
        None where the graph has no such row, or its images cannot be computed so.
    """
    images, names = _images(graph), [n.name for n in graph.nodes]
    if images < 2 or not row.ops or row.ops[0] not in names:
        return None
    first = names.index(row.ops[0])
    nodes = graph.nodes[first : first + len(row.ops)]
    if tuple(n.name for n in nodes) != row.ops:
        return None
    found = [_image(graph, node, images) for node in nodes]
    joining = _Joining(graph, [one for one in found if one is not None], images)
    if len(joining.row) < len(nodes) or not joining.sound:
        return None
    program = joining.program(row, thread, permission)
    return None if program is None else joining.made(program)


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

    @property
    def sound(self) -> bool:
        """Whether every result has bytes of its own."""
        ends = [self._roots[v] for v in self._ends]
        return len(set(ends)) == len(ends) and tuple(ends) == self._ends

    def made(self, program: ImageProgram) -> Graph:
        """The graph with the op."""
        attrs = {"body": self.body, "images": self.images, "program": program}
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

    @cached_property
    def _roots(self) -> Mapping[str, str]:
        return alias_roots(self.body)

    def program(
        self, row: ImageRow, thread: DeviceInfo, permission: Permission
    ) -> ImageProgram | None:
        """How the body is run, with values where the order of the steps lets them lie.

        None where a step is missing or reads what is not made yet, or there is no such kernel.
        """
        nodes = {one.node.name: one.node for one in self.row if not is_alias(one.node)}
        if sorted(row.order) != sorted(nodes) or len(row.kernels) != len(row.order):
            return None
        there = {*self.body.inputs, *self.body.constants}
        made: list[ImageStep] = []
        for node, kernel in zip((nodes[name] for name in row.order), row.kernels, strict=True):
            call = op_call(self.body, node)
            reads = tuple(None if v is None else self._roots[v] for v in node.inputs)
            sound = all(v is None or v in there for v in reads)
            if not sound or not _runs_alone(call, kernel, thread, permission):
                return None
            made.append(ImageStep(call, kernel, reads, tuple(self._roots[v] for v in node.outputs)))
            there.update(node.outputs)
        steps = [_step(i, nodes[name]) for i, name in enumerate(row.order)]
        arena = plan_arenas(self.body, steps, [thread], self._roots)[thread.id]
        return ImageProgram(
            tuple(made), arena.offsets, arena.nbytes, tuple(self.body.inputs), self._ends
        )


def _runs_alone(call: OpCall, name: str, thread: DeviceInfo, permission: Permission) -> bool:
    """Whether there is a kernel of that name for one thread, which loses no more than it may."""
    found = next((k for k in table.candidates(call, thread).fitting if k.name == name), None)
    allowed = found is not None and permission.refuses(found) is None
    return allowed and lowered_alone(call, name, thread) is not None


def _step(index: int, node: Node) -> Step:
    """An op of a body as a step of the thread that takes an image through it."""
    return Step(
        index=index,
        kind="launch",
        device=HOST,
        queue=f"{HOST}/compute",
        name=node.name,
        inputs=node.inputs,
        outputs=node.outputs,
        waits=(),
        start=0.0,
        seconds=0.0,
        low=0.0,
        high=0.0,
        source="",
    )
