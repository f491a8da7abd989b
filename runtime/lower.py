"""From a plan to a program: ops are compiled, weights uploaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np

from crossdock.devices.base import Buffer, Device
from crossdock.kernels.spec import OpCall
from crossdock.runtime import copies, costing, emulation
from crossdock.runtime.binding import CompiledOp, Keep, compile_op, packed_by, resident
from crossdock.runtime.config import Progress
from crossdock.runtime.errors import StalePlan
from crossdock.runtime.graph import Graph
from crossdock.runtime.losses import blaming
from crossdock.runtime.plan import Plan, Step
from crossdock.runtime.plan_parts import Key, Streamed
from crossdock.runtime.program import Program, Windows
from crossdock.runtime.segments import segment
from crossdock.runtime.tensor import Array


def lower(
    graph: Graph,
    plan: Plan,
    devices: Mapping[str, Device],
    progress: Progress | None = None,
    kept: Sequence[Program] = (),
    windows: Windows | None = None,
    *,
    watched: bool = False,
    singly: bool = False,
    verified: bool = False,
    steady: bool = False,
) -> Program:
    """Compile the ops of a plan and upload its weights, but for those that each run brings.

    Weights that a program in ``kept`` (of the same devices) has there already are shared with it,
    and so are ops that are its own.
    ``singly``: a launch is a segment of its own; ``verified``: weights are read back; ``steady``:
    no algorithm or tile is one that measurements chose. ``windows`` is for a graph whose inputs
    and outputs are parts of the caller's.

    Raises:
        CompileError: a kernel does not build.
        StalePlan: the plan names a kernel that is not here.
        TransferError: a weight does not arrive.
    """
    keep = copies.resident if verified else resident
    calls = costing.op_calls(graph)
    roots = costing.alias_roots(graph)
    ops: dict[int, CompiledOp] = {}
    residents: dict[tuple[str, str], Buffer] = {}
    shared = {
        (id(program.graph.constants[name]), device): buffer
        for program in kept
        for (name, device), buffer in program.residents.items()
        if program.devices[device] is devices.get(device)
    }
    brought: dict[tuple[str, str], dict[Key, Streamed]] = {}
    for stay in plan.streamed:
        brought.setdefault((stay.device, stay.op), {})[stay.key] = stay
    same = _Same(graph, devices, kept)
    streamed: dict[str, Array] = {}
    launches = plan.launches()
    for i, step in enumerate(launches):
        if progress is not None:
            progress(f"preparing {step.op} on {step.device}", i, len(launches))
        device = devices[step.device]
        stays = brought.get((step.device, step.name), {})
        packs = frozenset(pack for _, pack in stays if pack is not None)
        there = same.op(step, packs)
        with blaming(device):
            op = there or _compiled(step, device, calls[step.name], keep, packs, steady=steady)
            ops[step.index] = op
            for at, value in enumerate(step.inputs):
                root = None if value is None else roots[value]
                if root is None or root not in graph.constants or at in op.lowered.unused:
                    continue
                if (root, step.device) not in residents and (root, None) not in stays:
                    array = graph.constants[root]
                    copied = shared.get((id(array), step.device))
                    residents[root, step.device] = copied or keep(device, array, root)
            for stay in stays.values():
                known = same.streamed(stay, step.kernel)
                streamed[stay.name] = _sent(stay, op, device, graph) if known is None else known
    windows = windows or Windows(graph.output_specs)
    told = {step.name: said for step in launches if (said := ops[step.index].said)}
    plan = replace(plan, algorithms=told) if told else plan
    segments = segment(plan.steps, singly=watched or singly)
    return Program(
        graph,
        plan,
        dict(devices),
        roots,
        ops,
        residents,
        segments,
        windows,
        streamed,
        watched=watched,
    )


class _Same:
    """What programs have already of what one of a graph needs.

    Besides programs of the graph itself, those count that bring weights: where these fill a device,
    it has no room for what it has twice.
    """

    def __init__(
        self, graph: Graph, devices: Mapping[str, Device], kept: Sequence[Program]
    ) -> None:
        self._graph = graph
        self._ops: dict[tuple[str, str, str], CompiledOp] = {}
        self._packed: dict[tuple[str, str, str, int], Array] = {}
        self._constants: dict[tuple[str, int], Array] = {}
        for program in kept:
            if program.graph is graph or program.plan.streamed:
                self._add(program, devices)

    def _add(self, program: Program, devices: Mapping[str, Device]) -> None:
        here = {d for d, device in program.devices.items() if device is devices.get(d)}
        own = _like(self._graph, program.graph)
        ops = {}
        for step in program.plan.launches():
            if step.device in here and step.name in own:
                ops[step.name, step.device] = step.kernel
                op = program.ops[step.index]
                self._ops.setdefault((step.name, step.device, step.kernel), op)
        for stay in (stay for stay in program.plan.streamed if stay.device in here):
            array = program.streamed[stay.name]
            kernel = ops.get((stay.op, stay.device))
            if stay.pack is None:
                mark = stay.device, id(program.graph.constants[stay.weight])
                self._constants.setdefault(mark, array)
            elif kernel is not None:
                self._packed.setdefault((stay.op, stay.device, kernel, stay.pack), array)

    def op(self, step: Step, packs: AbstractSet[int]) -> CompiledOp | None:
        """The op of a step, where there is one that has just these packed constants brought."""
        found = self._ops.get((step.name, step.device, step.kernel))
        if found is None or found.packed.keys() & packs:
            return None
        return found if len(found.packed) + len(packs) == len(found.lowered.packs) else None

    def streamed(self, stay: Streamed, kernel: str) -> Array | None:
        """The bytes in host memory of a weight that is brought, for an op with a kernel."""
        if stay.pack is not None:
            return self._packed.get((stay.op, stay.device, kernel, stay.pack))
        return self._constants.get((stay.device, id(self._graph.constants[stay.weight])))


def _like(graph: Graph, other: Graph) -> frozenset[str]:
    """The names of the nodes that two graphs have in common, with all that they read."""
    if graph is other:
        return frozenset(node.name for node in graph.nodes)
    mine = {id(node) for node in graph.nodes}

    def same(value: str) -> bool:
        weight = graph.constants.get(value)
        return other.specs[value] == graph.specs[value] and other.constants.get(value) is weight

    return frozenset(
        node.name
        for node in other.nodes
        if id(node) in mine and all(map(same, (*node.operands, *node.outputs)))
    )


def _sent(stay: Streamed, op: CompiledOp, device: Device, graph: Graph) -> Array:
    """The bytes of a weight in the host memory that they are brought from."""
    pack = stay.pack
    array = graph.constants[stay.weight] if pack is None else packed_by(op.lowered.packs[pack])
    return device.pinned(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _compiled(
    step: Step,
    device: Device,
    call: OpCall,
    keep: Keep,
    brought: Collection[int],
    *,
    steady: bool,
) -> CompiledOp:
    fitting = emulation.candidates(call, device.info).fitting
    kernel = next((k for k in fitting if k.name == step.kernel), None)
    if kernel is None:
        raise StalePlan(
            f"op {step.name!r:.80} was planned with kernel {step.kernel!r}, which is not here "
            f"for {step.device}; plan again"
        )
    return compile_op(device, kernel, call, keep=keep, brought=brought, steady=steady)
