"""Binding lowered ops to buffers: the part that running and measuring share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import Bound, Buffer, Device, Executable, Queue
from crossdock.devices.program import In, Lowered, Out, Packed, Scratch, Slot
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import builds
from crossdock.runtime.tensor import Array


@dataclass(frozen=True)
class CompiledOp:
    """An op lowered and compiled for a device; ``packed`` are its packed constants there."""

    lowered: Lowered
    executables: tuple[Executable, ...]
    packed: tuple[Buffer, ...]


def compile_op(device: Device, kernel: Kernel, call: OpCall) -> CompiledOp:
    """Lower, compile and make packed constants; raises CompileError."""
    builds.note((device.info.fingerprint, kernel.name, call.key()))
    lowered = kernel.lower(call, device.info)
    executables = tuple(device.compile(step) for step in lowered.steps)
    packed = tuple(resident(device, pack.make(), "packed weights") for pack in lowered.packs)
    return CompiledOp(lowered, executables, packed)


def resident(device: Device, array: Array, label: str) -> Buffer:
    """Upload an array once and wait for it."""
    source = np.ascontiguousarray(array)
    buffer = device.allocate(max(1, source.nbytes), label)
    if source.nbytes:
        device.call("upload", lambda queue: _write(queue, buffer, source))
    return buffer


def _write(queue: Queue, buffer: Buffer, source: Array) -> None:
    event = queue.write(buffer, source)
    if event is not None:
        event.wait()


def bind_op(
    op: CompiledOp,
    inputs: Sequence[Buffer | None],
    outputs: Sequence[Buffer],
    scratch: Sequence[Buffer],
    label: str,
    seconds: float,
) -> list[Bound]:
    """Give every slot of an op's steps its buffer."""
    slots: dict[Slot, Buffer] = {
        In(i): b for i, b in enumerate(inputs) if b is not None and i not in op.lowered.unused
    }
    slots.update({Out(i): b for i, b in enumerate(outputs)})
    slots.update({Scratch(i): b for i, b in enumerate(scratch)})
    slots.update({Packed(i): b for i, b in enumerate(op.packed)})
    each = seconds / max(1, len(op.executables))
    return [Bound(executable, slots, label, each) for executable in op.executables]
