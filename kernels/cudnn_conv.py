"""Convolutions by cuDNN, on CUDA devices: with a bias, an addend and a ReLU in the call.

Other things that follow a convolution are a launch of our own. cuDNN's ReLU may make a zero of a
NaN, and so is not exact. Rounding operands to TF32 is what only a caller that permits it gets; of
engines that lose bits otherwise (Winograd, FFT, sums in half types) none is taken.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cuda_dnn import TYPES
from crossdock.devices.cuda_dnn_conv import Convolution
from crossdock.devices.program import In, Lowered, Scratch
from crossdock.kernels.fused_conv import NAME, body_of, conv_of, residual_of
from crossdock.kernels.grid_common import has, not_among, operand
from crossdock.kernels.grid_conv import Convolution as Sizes
from crossdock.kernels.library_kernels import launch_over, misfit, register, without_cudnn
from crossdock.kernels.ops_conv import FILTER_AXES
from crossdock.kernels.spec import OpCall

RANK = 16
ROUNDINGS = ("", "tf32")
SPARE = 64 << 10
"""Bytes of workspace beyond copies of the operands and the result in another layout."""


def _fits(relu: bool, rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    if (why := without_cudnn(device) or misfit(rounds, call, device)) is not None:
        return why
    if (why := not_among(tuple(TYPES), call)) is not None:
        return why
    if _depthwise(conv_of(call)):
        return "cuDNN 9.28 was seen to crash the process as it planned one with one channel a group"
    if relu != bool(_ends_in_relu(call)):
        return "no ReLU follows" if relu else "the kernel with a ReLU does it"
    return None


def _depthwise(conv: OpCall) -> bool:
    dims = operand(conv, 1).dims
    each = dims[FILTER_AXES[conv.attrs["filter_layout"]][1]]
    return bool(each == 1 and conv.attrs["groups"] > 1)


def _ends_in_relu(call: OpCall) -> bool | None:
    """Whether the call itself ends in a ReLU; None where what follows is a launch of its own."""
    body, beside = body_of(call), residual_of(call) is not None
    steps = [] if body is None else [(step.op, step.args) for step in body.steps]
    added = [("add", (0, 1))] if beside else []
    if steps == added:
        return False
    return True if steps == [*added, ("relu", (-1,) if added else (0,))] else None


def _wanted(rounds: str, call: OpCall) -> Convolution:
    """The convolution that an op asks for, without what follows it."""
    conv = conv_of(call)
    sizes, filter_layout = Sizes.of(conv), conv.attrs["filter_layout"]
    dims = operand(conv, 1).dims
    moved = [spec.nbytes for spec in (operand(conv, 0), operand(conv, 1), conv.outputs[0])]
    return Convolution(
        sizes.dtype,
        rounds,
        sum(moved) + SPARE,
        sizes.image,
        tuple(dims[axis] for axis in FILTER_AXES[filter_layout]),
        sizes.result,
        sizes.padding,
        sizes.steps,
        sizes.dilations,
        sizes.layout,
        filter_layout,
        bias=has(conv, 2),
    )


def _lower(rounds: str, call: OpCall, device: DeviceInfo) -> Lowered:
    """One call of cuDNN, and one launch for what it does not do itself."""
    wanted, body, residual = _wanted(rounds, call), body_of(call), residual_of(call)
    bias, beside = In(2) if wanted.bias else None, None if residual is None else In(3)
    relu = _ends_in_relu(call)
    if relu is not None:
        whole = replace(wanted, beside=residual is not None, relu=relu)
        return Lowered((whole.step(bias, beside),), (whole.workspace,))
    assert body is not None
    result = call.outputs[0]
    places = {} if residual is None else {3: residual.dims}
    last = launch_over(result, body, places, call, device)
    steps = (wanted.step(bias, y=Scratch(0), workspace=Scratch(1)), last)
    return Lowered(steps, (result.nbytes, wanted.workspace))


for _rounds in ROUNDINGS:
    for _op in ("conv2d", NAME):
        register(f"cudnn.{_op}", _op, RANK, _rounds, partial(_fits, False), _lower)
    register(f"cudnn.{NAME}.relu", NAME, RANK, _rounds, partial(_fits, True), _lower, exact=False)
