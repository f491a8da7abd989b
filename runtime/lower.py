"""From a plan to a program: ops are compiled, weights uploaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crossdock.devices.base import Buffer, Device
from crossdock.kernels.spec import OpCall
from crossdock.runtime import copies, costing, emulation
from crossdock.runtime.binding import CompiledOp, Keep, compile_op, resident
from crossdock.runtime.config import Progress
from crossdock.runtime.errors import StalePlan
from crossdock.runtime.graph import Graph
from crossdock.runtime.losses import blaming
from crossdock.runtime.plan import Plan, Step
from crossdock.runtime.program import Program, Windows
from crossdock.runtime.segments import segment


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
) -> Program:
    """Compile the ops of a plan and upload its weights.

    Weights that a program in ``kept`` (of the same devices) has there already are shared with it,
    and so are ops where it is of the very same graph.
    ``singly``: a launch is a segment of its own; ``verified``: weights are read back. ``windows``
    is for a graph whose inputs and outputs are parts of the caller's.

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
    compiled = {
        (step.name, step.device, step.kernel): program.ops[step.index]
        for program in kept
        if program.graph is graph
        for step in program.plan.launches()
        if program.devices[step.device] is devices.get(step.device)
    }
    launches = plan.launches()
    for i, step in enumerate(launches):
        if progress is not None:
            progress(f"preparing {step.op} on {step.device}", i, len(launches))
        device = devices[step.device]
        there = compiled.get((step.name, step.device, step.kernel))
        with blaming(device):
            op = ops[step.index] = there or _compiled(step, device, calls[step.name], keep)
            for at, value in enumerate(step.inputs):
                root = None if value is None else roots[value]
                if root is None or root not in graph.constants or at in op.lowered.unused:
                    continue
                if (root, step.device) not in residents:
                    array = graph.constants[root]
                    copied = shared.get((id(array), step.device))
                    residents[root, step.device] = copied or keep(device, array, root)
    windows = windows or Windows(graph.output_specs)
    segments = segment(plan.steps, singly=watched or singly)
    return Program(
        graph, plan, dict(devices), roots, ops, residents, segments, windows, watched=watched
    )


def _compiled(step: Step, device: Device, call: OpCall, keep: Keep) -> CompiledOp:
    fitting = emulation.candidates(call, device.info).fitting
    kernel = next((k for k in fitting if k.name == step.kernel), None)
    if kernel is None:
        raise StalePlan(
            f"op {step.name!r} was planned with kernel {step.kernel!r}, which is not here "
            f"for {step.device}; plan again"
        )
    return compile_op(device, kernel, call, keep=keep)
