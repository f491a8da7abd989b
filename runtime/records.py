"""Programs kept on disk, so that a process that starts need not plan, pack and compile again.

What is kept of a graph that runs on the processor alone is its settled plan, the steps that it was
lowered to, and the weights as the kernels take them. It is found by what it was made from: the
model's content and the shapes, the arguments of ``compile``, the devices, the settings, and the
sources of this package. The graph itself is loaded only if somebody looks at it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from crossdock.devices import cpu_steps
from crossdock.devices.base import Buffer, Cap, Device
from crossdock.devices.cpu import CpuBuffer, NativeExecutable
from crossdock.devices.cpu_llvm import toolchain
from crossdock.devices.program import Lowered
from crossdock.kernels import call_data
from crossdock.runtime import record_file, settings
from crossdock.runtime.binding import CompiledOp
from crossdock.runtime.config import Config
from crossdock.runtime.errors import CompileError, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.kept import Folder, key
from crossdock.runtime.late import LateExplainer
from crossdock.runtime.lazy_graph import lazy
from crossdock.runtime.plan import HOST, Explainer, Plan, Step
from crossdock.runtime.pool import Pool
from crossdock.runtime.program import Program, Windows, instantiate
from crossdock.runtime.ready import Ready, Recorder, Watch, check_free
from crossdock.runtime.record_file import Damaged, RecordFile
from crossdock.runtime.segments import segment
from crossdock.runtime.sources import stamp
from crossdock.runtime.tensor import Array, TensorSpec

FOLDER = Folder("programs", 0)
ARRAY = "array"
"""The kernel that is an op's array code."""
NOTE = "plan, kernels and packed weights are those that an earlier process settled on"


class Remake(Protocol):
    """Makes what is not kept, when somebody asks."""

    def simplified(self) -> Graph:
        """The graph after the passes."""

    def explainer(self, plan: Plan) -> Explainer:
        """What explains the plan."""

    def replanned(self, ready: Ready) -> Ready:
        """What to run where runs take longer than the plan says."""


def key_of(graph: Graph, config: Config, devices: Mapping[str, Device]) -> str | None:
    """What a graph's program is kept by; None where none is kept."""
    virtual = any(Cap.VIRTUAL_TIME in d.info.caps for d in devices.values())
    plain = config.measure and config.plan is None and not config.check_finite and not virtual
    plain = plain and not (config.watched or config.lost or config.broken)
    if not graph.origin or not plain or not hasattr(os, "preadv"):
        return None
    infos = (device.info for device in devices.values())
    there = [f"{i.id} {i.fingerprint} {i.driver} {i.memory_bytes}" for i in infos]
    more = f"{settings.fast_error()}"
    return key("program", stamp(), toolchain(), graph.origin, repr(config), more, *there)


def save(name: str, ready: Ready) -> bool:
    """Keep a program under its key; False where it is of a kind that is not, or cannot be."""
    program = ready.program
    large: list[Array] = []
    ops = _plain_ops(program, large) if _may_be_kept(program) else None
    if ops is None:
        return False
    order = {id(buffer): i for i, buffer in enumerate(_buffers(program))}
    told = {
        "plan": program.plan.to_json(),
        "ops": ops,
        "packed": [
            [order[id(buffer)] for buffer in op.packed.values()] for op in program.ops.values()
        ],
        "residents": [[root, order[id(b)]] for (root, _), b in program.residents.items()],
        "roots": dict(program.roots),
        "specs": {name: [spec.dtype, *spec.dims] for name, spec in program.graph.specs.items()},
        "inputs": list(program.graph.inputs),
        "outputs": dict(program.graph.outputs),
        "capacity": dict(ready.capacity),
        "asked": sorted(ready.recorder.asked),
        "runs": ready.pool.limit,
        "large": len(large),
    }
    blocks = [buffer.bytes() for buffer in _buffers(program)]
    blocks += [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in large]
    return record_file.save(FOLDER, name, told, blocks, settings.cache_bytes())


def _may_be_kept(program: Program) -> bool:
    """Whether a program stays on the processor, is its caller's whole graph, and is of our making.

    Third parties' kernels are made from sources that ``stamp`` does not know.
    """
    from crossdock.kernels import table  # what makes a program has loaded it already

    theirs = {name.partition(" ")[2] for name in table.foreign_names()}
    ours = theirs.isdisjoint(step.kernel for step in program.plan.launches())
    windows, outputs = program.windows, program.graph.outputs.values()
    whole = not (windows.inputs or windows.outputs or program.watched or program.plan.rungs)
    made = all(program.roots[value] in program.offsets[HOST] for value in outputs)
    return program.host_only and whole and made and ours


def _plain_ops(program: Program, large: list[Array]) -> list[list[Any]] | None:
    """The ops as plain data; None where one has a step of a kind that is not kept.

    Arrays that are blocks of the file are appended to ``large``.
    """
    made: list[list[Any]] = []
    for index, op in program.ops.items():
        calls = [e.step for e in op.executables if isinstance(e, NativeExecutable)]
        steps: list[Any] = [cpu_steps.plain(call) for call in calls]
        if len(calls) < len(op.executables):
            steps = [_plain_call(program, program.plan.steps[index], large)]
        if None in steps:
            return None
        kind = "native" if len(calls) == len(op.executables) else ARRAY
        made.append([index, kind, steps, list(op.lowered.scratch), sorted(op.lowered.unused)])
    return made


def _plain_call(program: Program, step: Step, large: list[Array]) -> list[Any] | None:
    """An op of array code as data, of which its step is made again; None for another kernel's."""
    from crossdock.runtime.calls import op_call

    node = next(node for node in program.graph.nodes if node.name == step.name)
    return call_data.plain(op_call(program.graph, node), large) if step.kernel == ARRAY else None


def _buffers(program: Program) -> list[CpuBuffer]:
    """The weights, each once."""
    packed = (buffer for op in program.ops.values() for buffer in op.packed.values())
    found = {id(b): b for b in (*packed, *program.residents.values())}
    return [buffer for buffer in found.values() if isinstance(buffer, CpuBuffer)]


def load(
    name: str, graph: Graph, devices: Mapping[str, Device], remake: Remake, threads: int
) -> Ready | None:
    """The program kept under a key, ready to run; None where there is none that is sound.

    ``graph`` is as its caller feeds it; ``threads`` read.

    Raises:
        OutOfMemory: there is no room for its weights, or for a run.
    """
    descriptor = FOLDER.open(name)
    if descriptor is None:
        return None
    with suppress(OSError):  # it is used, if the disk takes note of that; its own clock is coarse
        os.utime(descriptor, ns=(time.time_ns(), time.time_ns()))
    try:
        with RecordFile(descriptor, name) as file:
            return _ready(file, graph, devices, remake, threads)
    except Damaged as error:
        FOLDER.discard(name, f"{error} is not what was written")
        return None
    except (CompileError, PlanError):
        return None


def _ready(
    file: RecordFile, graph: Graph, devices: Mapping[str, Device], remake: Remake, threads: int
) -> Ready:
    told = file.told
    plan = Plan.from_json(told["plan"])
    plan = replace(plan, explainer=LateExplainer(partial(remake.explainer, plan)))
    check_free(plan)
    device = devices[HOST]
    sizes = file.sizes()
    weights = len(sizes) - told["large"]
    buffers = [device.allocate(max(1, n), "weights") for n in sizes[:weights]]
    large = [np.empty(n, np.uint8) for n in sizes[weights:]]
    file.read([*(b.bytes() for b in buffers if isinstance(b, CpuBuffer)), *large], threads)
    for array in large:
        array.flags.writeable = False
    specs = {name: TensorSpec(dtype, tuple(dims)) for name, (dtype, *dims) in told["specs"].items()}
    inside = lazy(
        graph.name,
        {name: specs[name] for name in told["inputs"]},
        told["outputs"],
        {name: specs[value] for name, value in told["outputs"].items()},
        remake.simplified,
        specs=specs,
        passes=plan.passes,
    )
    program = Program(
        inside,
        plan,
        {HOST: device},
        told["roots"],
        {
            row[0]: _op(device, row, [buffers[i] for i in packed], large)
            for row, packed in zip(told["ops"], told["packed"], strict=True)
        },
        {(root, HOST): buffers[i] for root, i in told["residents"]},
        segment(plan.steps),
        Windows(graph.output_specs),
    )
    pool = Pool(partial(instantiate, program), told["runs"], plan.graph_name)
    recorder = Recorder(plan, frozenset(told["asked"]), (NOTE,))
    ready = Ready(graph, program, pool, recorder, told["capacity"], Watch(plan.high))
    ready.replan = remake.replanned
    return ready


def _op(
    device: Device, row: Sequence[Any], packed: Sequence[Buffer], large: Sequence[Array]
) -> CompiledOp:
    _, kind, steps, scratch, unused = row
    if kind == ARRAY:
        from crossdock.kernels.array_kernels import lower_array  # ops take long to load

        lowered = lower_array(call_data.read(steps[0], large), device.info)
    else:
        calls = tuple(cpu_steps.read(form) for form in steps)
        lowered = Lowered(calls, tuple(scratch), (), frozenset(unused))
    return CompiledOp(lowered, tuple(map(device.compile, lowered.steps)), dict(enumerate(packed)))
