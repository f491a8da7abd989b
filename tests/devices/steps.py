"""Small steps that a test can run on any kind of device, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossdock.devices.base import Bound, Buffer, Cap, CommandBuffer, Device, Event
from crossdock.devices.program import ArrayCall, GridLaunch, In, Out, Scalar, Step
from crossdock.runtime.tensor import Array, TensorSpec

BLOCK = 32

AXPB = """
KERNEL BLOCK_SIZE(BLOCK, 1, 1)
void axpb(CONSTANT float *RESTRICT x, GLOBAL float *RESTRICT y, float a, float b, int n)
{
    int i = GLOBAL_ID(0);
    if (i < n) y[i] = FMA(a, x[i], b);
}
"""


def axpb_grid(n: int, a: float, b: float) -> GridLaunch:
    """y = a x + b as a grid kernel."""
    return GridLaunch(
        source=AXPB,
        entry="axpb",
        args=(In(0), Out(0), Scalar(np.float32(a)), Scalar(np.float32(b)), Scalar(np.int32(n))),
        grid=(-(-n // BLOCK) * BLOCK,),
        block=(BLOCK,),
        defines=(("BLOCK", str(BLOCK)),),
    )


def axpb_array(n: int, a: float, b: float) -> ArrayCall:
    """y = a x + b as an array call."""

    def run(xp: Any, ins: list[Any], outs: list[Any]) -> None:
        xp.multiply(ins[0], np.float32(a), out=outs[0])
        xp.add(outs[0], np.float32(b), out=outs[0])

    spec = TensorSpec("float32", (n,))
    return ArrayCall(run, (In(0),), (Out(0),), (spec,), (spec,))


def axpb(device: Device, n: int, a: float, b: float) -> Step:
    """y = a x + b in a form that the device runs."""
    return axpb_grid(n, a, b) if Cap.GRID in device.info.caps else axpb_array(n, a, b)


def record(device: Device, *steps: tuple[Step, Mapping[Any, Buffer]]) -> CommandBuffer:
    """Compile steps and record them in one command buffer, labelled by their number."""
    return device.record(
        [Bound(device.compile(step), buffers, str(i)) for i, (step, buffers) in enumerate(steps)]
    )


def events(*found: Event | None) -> Sequence[Event]:
    """The events among what queue calls returned."""
    return [event for event in found if event is not None]


def upload(device: Device, data: Array) -> Buffer:
    """A new buffer with ``data``, there when the call returns."""
    buffer = device.allocate(data.nbytes)
    for event in events(device.queues["upload"].write(buffer, data)):
        event.wait()
    return buffer


def download(device: Device, buffer: Buffer, like: Array, *waits: Event | None) -> Array:
    """The buffer's content."""
    out = np.empty_like(like)
    for event in events(device.queues["download"].read(buffer, out, events(*waits))):
        event.wait()
    return out
