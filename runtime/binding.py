"""Binding lowered ops to buffers: the part that running and measuring share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from crossdock.devices.base import Bound, Buffer, Device, Executable
from crossdock.devices.program import In, Lowered, Out, Pack, Packed, Scratch, Slot, fixed
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime.errors import CompileError
from crossdock.runtime.refused import Refused, refuse
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

Keep = Callable[[Device, Array, str], Buffer]
"""Puts a constant into memory of a device; the text says what it is."""


@dataclass(frozen=True)
class CompiledOp:
    """An op lowered and compiled for a device; ``packed`` are its packed constants there.

    By number; those that each run brings are not among them.
    """

    lowered: Lowered
    executables: tuple[Executable, ...]
    packed: dict[int, Buffer]

    @property
    def said(self) -> str:
        """Which algorithms of a library, or tiles, its steps run by, and how they were chosen."""
        return "; ".join(dict.fromkeys(e.said for e in self.executables if e.said))


def resident(device: Device, array: Array, label: str) -> Buffer:
    """Memory of a device with an array's values that nothing writes to."""
    return device.resident(array, label)


def compile_op(
    device: Device,
    kernel: Kernel,
    call: OpCall,
    lowered: Lowered | None = None,
    keep: Keep = resident,
    brought: Collection[int] = (),
    *,
    steady: bool = False,
) -> CompiledOp:
    """Lower, unless that is done, compile and make packed constants, which ``keep`` puts there.

    Those in ``brought``, by number, are left to each run. ``steady``: by no algorithm or tile that
    measurements chose.

    Raises:
        CompileError: a kernel does not build; it is not chosen again in this process.
    """
    from crossdock.runtime import builds  # which loads the cost model

    mark = (device.info.fingerprint, kernel.name, call.key())
    builds.note(mark)
    if lowered is None:
        lowered = kernel.lowered(call, device.info)
    if steady:
        lowered = replace(lowered, steps=tuple(map(fixed, lowered.steps)))
    try:
        executables = tuple(device.compile(step) for step in lowered.steps)
    except CompileError as error:
        error.device = device.info.id
        refuse(mark, Refused(device.info.id, kernel.name, str(error), error.log))
        raise
    packed = {
        i: keep(device, packed_by(pack), "packed weights")
        for i, pack in enumerate(lowered.packs)
        if i not in brought
    }
    return CompiledOp(lowered, executables, packed)


def read(device: Device, buffer: Buffer, spec: TensorSpec) -> Array:
    """A copy of what a buffer holds, of ``spec``'s shape and type."""
    array = np.empty(spec.dims, to_numpy(spec.dtype))
    if array.nbytes:
        queue = device.queues["download"]
        event = queue.read(buffer, array.reshape(-1).view(np.uint8))
        queue.flush()
        if event is not None:
            event.wait()
    return array


def packed_by(pack: Pack) -> Array:
    """A packed constant, read-only: a device may use its memory as it is."""
    made = pack.make()
    made.flags.writeable = False
    return made


def bind_op(
    op: CompiledOp,
    inputs: Sequence[Buffer | None],
    outputs: Sequence[Buffer],
    scratch: Sequence[Buffer],
    label: str,
    seconds: float,
    brought: Mapping[int, Buffer] = MappingProxyType({}),
) -> list[Bound]:
    """Give every slot of an op's steps its buffer; ``brought`` has packed constants by number."""
    slots: dict[Slot, Buffer] = {
        In(i): b for i, b in enumerate(inputs) if b is not None and i not in op.lowered.unused
    }
    slots.update({Out(i): b for i, b in enumerate(outputs)})
    slots.update({Scratch(i): b for i, b in enumerate(scratch)})
    slots.update({Packed(i): b for i, b in {**op.packed, **brought}.items()})
    each = seconds / max(1, len(op.executables))
    return [Bound(executable, slots, label, each) for executable in op.executables]
