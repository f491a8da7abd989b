"""A kernel of ``neg`` for isolated devices that crashes or never ends where the values say so."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Lowered, Out, Scalar
from crossdock.kernels import table
from crossdock.kernels.spec import Kernel, OpCall

WILD, ENDLESS = 12345.0, 54321.0
"""First values with which the kernel writes far out of bounds, or never ends."""
NAME = "test.planted"
_SOURCE = """
KERNEL void planted(GLOBAL const float *x, volatile GLOBAL float *y, int n)
{
    int i = GLOBAL_ID(0);
    if (x[0] == 12345.0f) y[((i64)1 << 40) + i] = 1.0f;
    if (x[0] == 54321.0f) while (y[0] != -2.5f) y[i] = -1.0f;
    if (i < n) y[i] = -x[i];
}
"""


def _lower(call: OpCall, _device: DeviceInfo) -> Lowered:
    n = call.outputs[0].size
    args = (In(0), Out(0), Scalar(np.int32(n)))
    return Lowered((GridLaunch(_SOURCE, "planted", args, (n,), (1,)),))


def _fits(_call: OpCall, device: DeviceInfo) -> str | None:
    return None if device.id.startswith("isolated:") else "it is for isolated devices"


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be the first kernel of ``neg`` for the rest of a test."""
    table.load()
    made = Kernel(NAME, "neg", frozenset({"opencl"}), _fits, _lower, rank=1)
    monkeypatch.setitem(table._KERNELS, "neg", [made])
