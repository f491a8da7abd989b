"""Half-precision ops on the host by its kernels for float32; see ``wide``."""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Slot, Step
from crossdock.kernels.cpu_elementwise import dtype_obstacle, elementwise_call
from crossdock.kernels.fused import FusedBody
from crossdock.kernels.spec import OpCall
from crossdock.kernels.wide import Widening
from crossdock.runtime.tensor import TensorSpec


def _obstacle(call: OpCall, device: DeviceInfo) -> str | None:  # noqa: ARG001 - a candidate's guard
    return dtype_obstacle([s.dtype for s in (*call.inputs, *call.outputs) if s is not None])


def _cast(
    body: FusedBody,
    source: TensorSpec,
    slot: Slot,
    target: TensorSpec,
    device: DeviceInfo,  # noqa: ARG001 - grids ask for it
) -> Step:
    return elementwise_call(body, (source,), target, (slot,))


Widening(_obstacle, _cast).register("cpu.wide", "cpu", rank=30)
