"""What kernels that are calls of a card's libraries have in common.

Each comes with the operands as they are and, on float32, rounded to a narrower format for the
tensor units, which only a caller that permits it gets (``kernels.precision``). What a call does not
do itself is one launch of our own over what it made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import GridLaunch, In, Lowered, Scratch
from crossdock.kernels.fused import FusedBody
from crossdock.kernels.grid_common import obstacle, operand
from crossdock.kernels.grid_emit import steps_of
from crossdock.kernels.grid_pointwise import Operand, pointwise
from crossdock.kernels.refusal import Cause, Refusal
from crossdock.kernels.spec import OpCall
from crossdock.kernels.table import kernel
from crossdock.runtime.tensor import TensorSpec

TENSOR_UNITS = 8.0
"""The first compute capability with TF32 and bfloat16."""
ROUNDING_RANK = 10
"""Added to the rank of a kernel that rounds: where costs do not decide, our own come before it."""

Fits = Callable[[str, OpCall, DeviceInfo], str | None]
Lower = Callable[[str, OpCall, DeviceInfo], Lowered]
"""Both are given what float32 operands are rounded to first; "" where they are not."""


def register(
    name: str,
    op: str,
    rank: int,
    rounds: str,
    fits: Fits,
    lower: Lower,
    *,
    exact: bool = True,
    declines: bool = True,
) -> None:
    """Register a kernel for an op, named after what it rounds to, and ranked by it.

    ``declines``: whether the library may have nothing for an op that fits.
    """
    kernel(
        f"{name}.{rounds}".rstrip("."),
        op,
        ("cuda",),
        when=partial(fits, rounds),
        rank=rank + ROUNDING_RANK if rounds else rank,
        exact=exact,
        rounds=rounds,
        declines=declines,
    )(partial(lower, rounds))


def without_cudnn(device: DeviceInfo) -> Refusal | None:
    """Why a card has no cuDNN; None where it has."""
    if device.details.get("cudnn"):
        return None
    return Refusal(device.details.get("no cudnn", "no cuDNN is known here"), Cause.LIBRARY)


def misfit(rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    """Why a card does not take an op with its element type, and rounded so; None where it does."""
    if (why := obstacle(call, device)) is not None:
        return why
    dtype = operand(call, 0).dtype
    if rounds and dtype != "float32":
        return Refusal(f"{dtype} operands are not rounded", Cause.DTYPE)
    capability = float(device.details.get("compute_capability", "0"))
    if (rounds or dtype == "bfloat16") and capability < TENSOR_UNITS:
        return Refusal(
            f"compute capability {capability:g} has no {rounds or dtype}; it begins with "
            f"{TENSOR_UNITS:g}",
            Cause.LACKS,
        )
    return None


def launch_over(
    between: TensorSpec,
    body: FusedBody,
    places: Mapping[int, tuple[int, ...]],
    call: OpCall,
    device: DeviceInfo,
) -> GridLaunch:
    """The launch of what follows a call, over its result, which lies in the first scratch.

    ``places`` are the op's operands that the body reads besides, in its order, and their shapes.
    """
    operands = [Operand(Scratch(0), between.dtype, between.dims)]
    operands += [Operand(In(i), operand(call, i).dtype, dims) for i, dims in places.items()]
    return pointwise(steps_of(body), operands, call.outputs[0], device)
