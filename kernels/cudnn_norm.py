"""Normalisations by cuDNN, on CUDA devices.

Layers are taken over the last axes, channels along any axis, wherever they lie. How cuDNN sums the
squares for a variance is not documented, so those kernels that take one are not exact; those that
are given the variance are.
"""

from __future__ import annotations

import math

from crossdock.devices.base import DeviceInfo
from crossdock.devices.cuda_dnn import TYPES
from crossdock.devices.cuda_dnn_conv import strides
from crossdock.devices.cuda_dnn_norm import (
    BIAS,
    MEAN,
    SCALE,
    VARIANCE,
    Normalization,
    Standardization,
)
from crossdock.devices.program import In, Lowered
from crossdock.kernels.grid_common import has, not_among, operand, row_major
from crossdock.kernels.library_kernels import misfit, register, without_cudnn
from crossdock.kernels.spec import OpCall

RANK = 16
SPARE = 256 << 10
"""Bytes of workspace beyond a float32 for each element of the operands and the result."""


def _fits(rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    if (why := without_cudnn(device) or misfit(rounds, call, device)) is not None:
        return why
    return not_among(tuple(TYPES), call)


def _fits_layer(rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(rounds, call, device)) is not None:
        return why
    axes, rank = call.attrs["axes"], operand(call, 0).rank
    if not axes or list(axes) != list(range(rank - len(axes), rank)):
        return "not over the last axes in their order"
    return "cuDNN wants a scale beside a bias" if has(call, 2) and not has(call, 1) else None


def _fits_instance(rounds: str, call: OpCall, device: DeviceInfo) -> str | None:
    if (why := _fits(rounds, call, device)) is not None:
        return why
    return None if has(call, 1) and has(call, 2) else "cuDNN wants both a scale and a bias"


def _workspace(call: OpCall) -> int:
    return 4 * sum(spec.size for spec in (*call.inputs, *call.outputs) if spec) + SPARE


def _layer(rounds: str, call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - Lower
    spec = operand(call, 0)
    length = math.prod(spec.dims[axis] for axis in call.attrs["axes"])
    rows = spec.size // length
    asked = Normalization(
        spec.dtype, rounds, _workspace(call),
        (rows, length, 1, 1), (length, 1, 1, 1), (1, length, 1, 1), (length, 1, 1, 1),
        float(call.attrs["epsilon"]), has(call, 1), has(call, 2), "layernorm",
    )  # fmt: skip
    return Lowered((asked.step({SCALE: In(1), BIAS: In(2)}),), (asked.workspace,))


def _instance(rounds: str, call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - Lower
    spec, layout = operand(call, 0), call.attrs["layout"]
    n, c, h, w = (spec.dims[layout.index(axis)] for axis in "nchw")
    image, column = (n, c, h, w), (1, c, 1, 1)
    asked = Normalization(
        spec.dtype, rounds, _workspace(call),
        image, strides(image, layout), column, strides(column, layout),
        float(call.attrs["epsilon"]), has(call, 1), has(call, 2), "instancenorm",
    )  # fmt: skip
    return Lowered((asked.step({SCALE: In(1), BIAS: In(2)}),), (asked.workspace,))


def _batch(rounds: str, call: OpCall, device: DeviceInfo) -> Lowered:  # noqa: ARG001 - Lower
    spec, axis = operand(call, 0), call.attrs["axis"]
    outer, channels, inner = (
        math.prod(part)
        for part in (spec.dims[:axis], spec.dims[axis : axis + 1], spec.dims[axis + 1 :])
    )
    sizes, column = (outer, channels, inner), (1, channels, 1)
    asked = Standardization(
        spec.dtype, rounds, _workspace(call), sizes, row_major(sizes), column, row_major(column),
        float(call.attrs["epsilon"]), has(call, 3), has(call, 4),
    )  # fmt: skip
    slots = {MEAN: In(1), VARIANCE: In(2), SCALE: In(3), BIAS: In(4)}
    return Lowered((asked.step(slots),), (asked.workspace,))


register(
    "cudnn.layer_normalization", "layer_normalization", RANK, "", _fits_layer, _layer, exact=False
)
register(
    "cudnn.instance_normalization",
    "instance_normalization",
    RANK,
    "",
    _fits_instance,
    _instance,
    exact=False,
)
register("cudnn.batch_normalization", "batch_normalization", RANK, "", _fits, _batch)
