"""The pace of a processor behind OpenCL, taken on the cores that its driver computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from crossdock.devices.base import Bound
from crossdock.devices.opencl_memory import ClBuffer
from crossdock.devices.pace import FLOATS, LANES, PASS_SECONDS, PASSES, TAKES
from crossdock.devices.program import GridLaunch, In, Out, Scalar
from crossdock.runtime.tensor import Array

if TYPE_CHECKING:
    from crossdock.devices.opencl import OpenCLDevice

GROUPS = 12
"""For each compute unit: drivers hand a thread several at a time."""

_SOURCE = f"""
KERNEL BLOCK_SIZE(1, 1, 1)
void xd_pace(GLOBAL const f32x16 *RESTRICT from, GLOBAL f32x16 *RESTRICT to, i32 passes)
{{
    f32x16 a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, a5 = 0, a6 = 0, a7 = 0;
    for (i32 i = 0; i < passes; i++)
        for (i32 j = 0; j < {FLOATS // LANES}; j += 8) {{
            f32x16 x0 = from[j], x1 = from[j + 1], x2 = from[j + 2], x3 = from[j + 3];
            f32x16 x4 = from[j + 4], x5 = from[j + 5], x6 = from[j + 6], x7 = from[j + 7];
            a0 += x0 * x0; a1 += x1 * x1; a2 += x2 * x2; a3 += x3 * x3;
            a4 += x4 * x4; a5 += x5 * x5; a6 += x6 * x6; a7 += x7 * x7;
        }}
    to[GROUP_ID(0)] = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7;
}}
"""


class ClPace:
    """Groups on each compute unit make the passes of ``pace.Pace`` over a small array."""

    def __init__(self, device: OpenCLDevice) -> None:
        groups = GROUPS * device.info.compute_units
        args = (In(0), Out(0), Scalar(np.int32(PASSES // GROUPS)))
        step = GridLaunch(_SOURCE, "xd_pace", args, (groups,), (1,))
        source = _own(device, np.full(FLOATS, 0.5, np.float32))
        target = _own(device, np.zeros(LANES * groups, np.float32))
        self._queue = device.queues["compute"]
        bound = Bound(device.compile(step), {In(0): source, Out(0): target})
        self._commands = device.record([bound])
        self.take()

    def take(self) -> float:
        """Time a fixed piece of work now: 1 at the reference pace, 2 at half of it."""
        seconds = min(self._queue.timed(self._commands) for _ in range(TAKES))
        return max(seconds, 1e-9) / (PASSES * PASS_SECONDS)


def _own(device: OpenCLDevice, array: Array) -> ClBuffer:
    """Memory of the measurement's own: none of what sessions are counted and limited by."""
    flags = device.cl.mem_flags
    memory = device.cl.Buffer(device.context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=array)
    return ClBuffer(device, memory, 0)
