"""Half-precision ops on processors' grids by the kernels for float32; see ``wide``."""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Slot, Step
from crossdock.kernels.fused import FusedBody
from crossdock.kernels.grid_common import obstacle, on_cpu
from crossdock.kernels.grid_emit import steps_of
from crossdock.kernels.grid_pointwise import Operand, pointwise
from crossdock.kernels.spec import OpCall
from crossdock.kernels.wide import Widening
from crossdock.runtime.tensor import TensorSpec


def _obstacle(call: OpCall, device: DeviceInfo) -> str | None:
    if not on_cpu(device):
        return "for processors: others gain by what is smaller"
    return obstacle(call, device)


def _cast(
    body: FusedBody, source: TensorSpec, slot: Slot, target: TensorSpec, device: DeviceInfo
) -> Step:
    operand = Operand(slot, source.dtype, source.dims)
    return pointwise(steps_of(body), (operand,), target, device)


Widening(_obstacle, _cast).register("grid.wide", "opencl", rank=14)
