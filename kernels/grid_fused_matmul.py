"""A product and what follows it on a grid: the product's launches, then one more.

The product lies in scratch memory between the two.
"""

from __future__ import annotations

from dataclasses import replace

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import In, Lowered, Out, Scratch, renamed
from crossdock.kernels import table
from crossdock.kernels.fused_matmul import NAME, product_of, whole_body
from crossdock.kernels.grid_common import KINDS
from crossdock.kernels.grid_emit import steps_of
from crossdock.kernels.grid_pointwise import Operand, pointwise
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.kernels.table import kernel


def _product_kernel(call: OpCall, device: DeviceInfo) -> Kernel | str:
    found = table.candidates(product_of(call), device)
    named = [k for k in found.fitting if k.name.startswith("grid.")]
    return named[0] if named else found.reason()


def _fits(call: OpCall, device: DeviceInfo) -> str | None:
    found = _product_kernel(call, device)
    return found if isinstance(found, str) else None


@kernel("grid.fused_matmul", NAME, KINDS, when=_fits, rank=20)
def lower_fused_matmul(call: OpCall, device: DeviceInfo) -> Lowered:
    """The steps of the best product, and one launch for the bias and the elementwise steps."""
    found = _product_kernel(call, device)
    assert isinstance(found, Kernel), found
    product, result = found.lower(product_of(call), device), call.outputs[0]
    body, places = whole_body(call)
    if not body.steps:
        return product
    between = Scratch(len(product.scratch))
    operands = [Operand(between, result.dtype, result.dims)]
    for i in places:
        spec = call.inputs[i]
        assert spec is not None
        operands.append(Operand(In(i), spec.dtype, spec.dims))
    last = pointwise(steps_of(body), operands, result, device)
    steps = tuple(renamed(step, {Out(0): between}) for step in product.steps)
    return replace(product, steps=(*steps, last), scratch=(*product.scratch, result.nbytes))
