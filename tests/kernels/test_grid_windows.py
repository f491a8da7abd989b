"""Convolutions and pools on a processor's OpenCL device: every candidate, fused and plain."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from crossdock.devices.base import Device
from crossdock.kernels.fused import FusedBody, FusedStep
from crossdock.runtime.tensor import Array
from tests.kernels.grid_run import call_of, check, grid_kernels, opencl_ids, opened

RELU = FusedBody((FusedStep("relu", {}, (0,), "float32", ("float32",)),))
ADD_RELU = FusedBody(
    (
        FusedStep("add", {}, (0, 1), "float32", ("float32", "float32")),
        FusedStep("relu", {}, (-1,), "float32", ("float32",)),
    )
)


@pytest.fixture(scope="module", params=opencl_ids())
def device(request: pytest.FixtureRequest) -> Device:
    found = opened(request.param)
    if found.info.details["type"] != "cpu":
        pytest.skip("kernels for processors")
    return found


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "same": ((1, 5, 19, 35), (13, 5, 3, 3), {"padding": [1, 1, 1, 1]}),
    "small image": ((2, 24, 7, 7), (70, 24, 1, 1), {}),
    "strides": ((1, 6, 23, 30), (9, 6, 3, 3), {"padding": [1, 0, 1, 1], "strides": [2, 2]}),
    "strides of three": (
        (1, 4, 21, 22),
        (8, 4, 5, 4),
        {"strides": [1, 3], "padding": [2, 2, 0, 3]},
    ),
    "dilated": ((1, 3, 20, 25), (6, 3, 3, 2), {"dilations": [2, 3], "padding": [2, 2, 1, 1]}),
    "groups": ((2, 12, 9, 40), (8, 3, 1, 3), {"groups": 4, "padding": [0, 0, 1, 1]}),
    "1x1 by two": ((1, 16, 18, 17), (40, 16, 1, 1), {"strides": [2, 2]}),
}
DEPTHWISE: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "same": ((2, 6, 21, 37), (6, 1, 3, 3), {"padding": [1, 1, 1, 1]}),
    "strides": ((1, 4, 30, 41), (4, 1, 5, 5), {"padding": [2, 1, 0, 2], "strides": [2, 2]}),
    "multiplied, dilated": ((1, 3, 16, 16), (6, 1, 3, 3), {"dilations": [2, 2]}),
    "narrow": ((1, 8, 7, 3), (8, 1, 3, 3), {"padding": [1, 1, 1, 1], "strides": [3, 3]}),
    "in bands": ((1, 2, 150, 200), (2, 1, 3, 3), {"padding": [1, 1, 1, 1]}),
}


ENDINGS = ("plain", "relu", "residual")


def cases(names: Collection[str]) -> list[Any]:
    """Places of cases; those after the first three are slow: each builds four kernels."""
    return [
        pytest.param(at, id=name, marks=pytest.mark.slow if at > 2 else ())
        for at, name in enumerate(names)
    ]


@pytest.mark.parametrize("at", cases(SHAPES))
def test_convolution(device: Device, at: int) -> None:
    image, filters, attrs = list(SHAPES.values())[at]
    ending = ENDINGS[at % 3]
    check_convolution(device, image, filters, attrs, ending, {"grid.conv2d.direct_widest"})


@pytest.mark.parametrize("at", cases(DEPTHWISE))
def test_depthwise(device: Device, at: int) -> None:
    image, filters, attrs = list(DEPTHWISE.values())[at]
    ending = ENDINGS[at % 3]
    attrs = {**attrs, "groups": image[1]}
    check_convolution(device, image, filters, attrs, ending, {"grid.conv2d.planes"})


def check_convolution(
    device: Device,
    image: tuple[int, ...],
    filters: tuple[int, ...],
    attrs: dict[str, Any],
    ending: str,
    named: set[str],
) -> None:
    x, w, bias = normal(*image), normal(*filters), normal(filters[0])
    arrays: list[Array | None] = [x, w, bias if ending != "plain" else None]
    call = call_of("conv2d", arrays, attrs, constants=(1,))
    if ending != "plain":
        body = {"relu": RELU, "residual": ADD_RELU}[ending]
        arrays += [normal(*call.outputs[0].dims)] if ending == "residual" else []
        call = call_of("fused_conv2d", arrays, {**call.attrs, "body": body}, constants=(1,))
    assert named <= {k.name for k in grid_kernels(call, device.info)}
    check(call, arrays, device)


POOLS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "three": ((2, 3, 19, 35), {"window_dimensions": [3, 3], "padding": [1, 1, 1, 1]}),
    "strides, rounded up": (
        (1, 5, 30, 45),
        {
            "window_dimensions": [3, 2],
            "strides": [2, 2],
            "output_shape_rounding": "ceil",
            "padding": [0, 1, 1, 0],
        },
    ),
    "dilated": ((1, 4, 17, 9), {"window_dimensions": [2, 3], "dilations": [3, 2]}),
}


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("average_pool2d", "three"),
        ("average_pool2d", "strides, rounded up"),
        ("l2_pool2d", "dilated"),
        ("max_pool2d", "three"),
        ("max_pool2d", "strides, rounded up"),
    ],
)
def test_pool(device: Device, op: str, name: str) -> None:
    image, attrs = POOLS[name]
    call = call_of(op, [normal(*image)], attrs)
    assert f"grid.{op}.planes" in {k.name for k in grid_kernels(call, device.info)}
    check(call, [normal(*image)], device)


def test_an_average_counts_padding_where_asked(device: Device) -> None:
    attrs = {"window_dimensions": [3, 3], "padding": [1, 1, 2, 1], "count_include_pad": True}
    x = normal(1, 2, 11, 20)
    check(call_of("average_pool2d", [x], attrs), [x], device)


def test_a_pool_keeps_nan_and_infinities(device: Device) -> None:
    x = normal(1, 1, 8, 40)
    x[0, 0, 3, 5], x[0, 0, 6, 20], x[0, 0, 0, 33] = np.nan, -np.inf, np.inf
    attrs = {"window_dimensions": [3, 3], "padding": [1, 1, 1, 1]}
    check(call_of("max_pool2d", [x], attrs), [x], device)
