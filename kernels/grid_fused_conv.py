"""A convolution and what follows it on a grid: the convolution's launches, then one more.

The result of the convolution lies in scratch memory between the two.
"""

from __future__ import annotations

from dataclasses import replace

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Out, Scratch, renamed
from crossdock.kernels import table
from crossdock.kernels.fused_conv import body_of, conv_of, residual_of
from crossdock.kernels.grid_common import KINDS
from crossdock.kernels.grid_emit import steps_of
from crossdock.kernels.grid_pointwise import Operand, pointwise
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.kernels.table import kernel


def _conv_kernel(call: OpCall, device: DeviceInfo) -> Kernel | str:
    found = table.candidates(conv_of(call), device)
    named = [k for k in found.fitting if k.name.startswith("grid.")]
    return named[0] if named else found.reason()


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    found = _conv_kernel(call, device)
    return found if isinstance(found, str) else None


@kernel("grid.fused_conv2d", "fused_conv2d", KINDS, when=_fits, rank=20)
def lower_fused_conv(call: OpCall, device: DeviceInfo) -> Lowered:
    """The steps of the best convolution, and one launch for the elementwise steps."""
    found, body, residual = _conv_kernel(call, device), body_of(call), residual_of(call)
    assert isinstance(found, Kernel), found
    assert body is not None
    conv, result = found.lower(conv_of(call), device), call.outputs[0]
    between = Scratch(len(conv.scratch))
    operands = [Operand(between, result.dtype, result.dims)]
    if residual is not None:
        operands.append(Operand(In(3), residual.dtype, residual.dims))
    last = pointwise(steps_of(body), operands, result, device)
    steps = tuple(renamed(step, {Out(0): between}) for step in conv.steps)
    return replace(conv, steps=(*steps, last), scratch=(*conv.scratch, result.nbytes))
