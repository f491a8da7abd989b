"""Convolutions that are products, by cuBLASLt: windows of one place, one group, no step.

Channels first, each image is a product with the filter on the left, and a bias is one a row, which
cuBLASLt does not add; channels last, all places are one product with the filter on the right.
"""

from __future__ import annotations

from dataclasses import replace

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cuda_blas import Product
from crossdock.devices.program import Lowered
from crossdock.kernels.cublas_matmul import Following, fits_device
from crossdock.kernels.cublaslt_matmul import (
    A,
    B,
    Ending,
    and_then,
    ending_for,
    in_call,
    register_all,
    taken,
    unlike,
)
from crossdock.kernels.fused import FusedBody
from crossdock.kernels.fused_conv import body_of, residual_of
from crossdock.kernels.fused_matmul import with_bias
from crossdock.kernels.grid_common import has, not_among, operand
from crossdock.kernels.grid_conv import Convolution
from crossdock.kernels.grid_matmul import DTYPES
from crossdock.kernels.spec import OpCall

OPS = ("conv2d", "fused_conv2d")
BY_INPUTS = ("hwio", "ihwo")
"""Filter layouts whose rows are input channels."""


def product_for(call: OpCall, rounds: str, *, wide: bool) -> Product:
    """The product that a convolution is; ``wide`` leaves half types' results in float32."""
    conv = Convolution.of(call)
    (n, inputs, height, width), outputs = conv.image, conv.result[1]
    places, turned = height * width, call.attrs["filter_layout"] in BY_INPUTS
    result = "float32" if wide else conv.dtype
    if conv.layout == "nhwc":
        return Product(
            n * places, outputs, inputs, conv.dtype, result, b_transposed=not turned, rounds=rounds
        )
    made = Product(outputs, places, inputs, conv.dtype, result, a_transposed=turned, rounds=rounds)
    if n == 1:
        return made
    return replace(made, batch=(n,), a_strides=(0,), b_strides=(inputs * places,))


def ending_of(rounds: str, call: OpCall) -> Ending | None:
    """What follows it, where cuBLASLt can do it in the call; None where it cannot."""
    biased = has(call, 2)
    if biased and Convolution.of(call).layout == "nchw":
        return None
    return ending_for(rounds, body_of(call), biased, residual_of(call) is not None)


def following(call: OpCall) -> Following:
    """What follows it, bias included."""
    body, places = body_of(call) or FusedBody(), {}
    if residual_of(call) is not None:
        places[3] = operand(call, 3).dims
    if has(call, 2):
        body = with_bias(body, len(places) + 1, call.outputs[0].dtype)
        count = operand(call, 2).size
        nchw = Convolution.of(call).layout == "nchw"
        places[2] = (count, 1, 1) if nchw else (count,)
    return body, places


def _fits(function: str, rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    if (why := fits_device(rounds, call, device) or not_among(DTYPES, call)) is not None:
        return why
    conv = Convolution.of(call)
    if conv.groups > 1 or not conv.is_product:
        return "it is no product"
    return unlike(function, ending_of(rounds, call))


def _lower(function: str, rounds: str, call: OpCall, device: DeviceInfo) -> Lowered:
    ending = taken(function, ending_of(rounds, call))
    product = product_for(call, rounds, wide=ending is None)
    a, b = (B, A) if Convolution.of(call).layout == "nchw" else (A, B)
    if ending is not None:
        return in_call(product, ending, call, device, a, b)
    return and_then(product, following(call), call, device, a, b)


for _op in OPS:
    register_all(_op, _fits, _lower, "fused_conv2d")
