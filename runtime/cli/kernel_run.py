"""Running one kernel by itself, and how far its results are from what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import Device
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import emulation
from crossdock.runtime.binding import bind_op, compile_op, read
from crossdock.runtime.tensor import Array


@dataclass(frozen=True)
class Fits:
    """The kernels that fit an op instance on a device, or why none does."""

    call: OpCall
    kernels: tuple[Kernel, ...]
    reason: str


def fits(call: OpCall, device: Device) -> Fits:
    """Find the kernels for an op instance."""
    found = emulation.candidates(call, device.info)
    return Fits(call, found.fitting, "" if found.fitting else found.reason())


def run_kernel(
    device: Device, kernel: Kernel, call: OpCall, arrays: Sequence[Array | None]
) -> list[Array]:
    """Run a kernel once on arrays of the call's specs; returns the results.

    Raises:
        DeviceError: it does not build, or fails.
    """
    op = compile_op(device, kernel, call)
    inputs = [
        None if array is None or i in op.lowered.unused else device.upload(array, "verify")
        for i, array in enumerate(arrays)
    ]
    outputs = [device.allocate(max(1, spec.nbytes), "verify") for spec in call.outputs]
    scratch = [device.allocate(max(1, n), "verify") for n in op.lowered.scratch]
    try:
        queue = device.queues["compute"]
        bound = bind_op(op, inputs, outputs, scratch, kernel.name, 0.0)
        event = queue.execute(device.record(bound))
        queue.flush()
        if event is not None:
            event.wait()
        return [read(device, b, s) for b, s in zip(outputs, call.outputs, strict=True)]
    finally:
        for buffer in (*inputs, *outputs, *scratch, *op.packed.values()):
            if buffer is not None:
                buffer.release()


def worst(have: Array, want: Array, rtol: float, atol: float) -> tuple[float, float]:
    """The largest error: over ``atol + rtol |want|``, and by itself; see ``errors``."""
    over, off = errors(have, want, rtol, atol)
    return (float(over.max()), float(off.max())) if have.size else (0.0, 0.0)


def errors(have: Array, want: Array, rtol: float, atol: float) -> tuple[Array, Array]:
    """Each element's error: over ``atol + rtol |want|``, and by itself; float64.

    Infinite where one is NaN or infinite and the other is not the same. Where nothing is allowed,
    any difference is infinitely over it. A value beyond the range of ``have``'s type is infinite.
    """
    with np.errstate(all="ignore"):
        if want.dtype.kind in "iub":
            # Differences of 64-bit integers do not fit their own type.
            off = np.abs(have.astype(object) - want.astype(object)).astype(np.float64)
            allowed = np.full(want.shape, atol)
        else:
            bounded = want.astype(have.dtype).astype(np.float64)
            target = np.where(np.isinf(bounded), bounded, want)
            got = have.astype(np.float64)
            same = (got == target) | (np.isnan(got) & np.isnan(target))
            off = np.where(same, 0.0, np.abs(got - target))
            off = np.where(np.isnan(off), np.inf, off)
            allowed = atol + rtol * np.abs(target)
        over = np.where(off == 0, 0.0, np.where(allowed > 0, off / allowed, np.inf))
    return np.where(np.isnan(over), np.inf, over), off
