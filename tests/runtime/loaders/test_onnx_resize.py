"""ONNX Resize and Upsample against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.loaders import load

RNG = np.random.default_rng(0)


def rand(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


IMAGE = rand(1, 2, 4, 5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(check: Any, mode: str) -> None:
    check("Upsample", IMAGE, opset=7, mode=mode, scales=[1.0, 1.0, 2.0, 3.0])
    scales = np.array([1, 1, 2, 1.5], np.float32)
    check("Upsample", IMAGE, scales, opset=9, mode=mode, fixed=[1])
    check("Resize", IMAGE, scales, opset=10, mode=mode, fixed=[1])


@pytest.mark.parametrize(
    "coordinates",
    ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"],
)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("sizes", [(8, 10), (6, 9), (3, 2), (1, 5)])
def test_resize_to_sizes(check: Any, coordinates: str, mode: str, sizes: Any) -> None:
    opset = 19 if coordinates == "half_pixel_symmetric" else 13
    target = np.array([1, 2, *sizes], np.int64)
    check(
        "Resize",
        IMAGE,
        None,
        None,
        target,
        opset=opset,
        fixed=[3],
        mode=mode,
        coordinate_transformation_mode=coordinates,
        atol=1e-5,
    )


@pytest.mark.parametrize("scale", [2.0, 0.6, 1.3])
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resize_by_scales(check: Any, scale: float, nearest: str) -> None:
    scales = np.array([1, 1, scale, scale], np.float32)
    for coordinates in ("half_pixel", "asymmetric"):
        check(
            "Resize",
            IMAGE,
            None,
            scales,
            opset=13,
            fixed=[2],
            nearest_mode=nearest,
            coordinate_transformation_mode=coordinates,
        )
    check("Resize", IMAGE, None, scales, opset=13, fixed=[2], mode="linear", atol=1e-5)


def test_resize_options(check: Any) -> None:
    target = np.array([6, 7], np.int64)
    check(
        "Resize",
        IMAGE,
        None,
        None,
        target,
        opset=18,
        fixed=[3],
        axes=[2, 3],
        mode="linear",
        atol=1e-5,
    )
    check(
        "Resize",
        IMAGE,
        None,
        None,
        target // 3,
        opset=18,
        fixed=[3],
        axes=[2, 3],
        mode="linear",
        antialias=1,
        atol=1e-5,
    )
    check(
        "Resize",
        IMAGE,
        None,
        None,
        np.array([1, 2, 6, 7]),
        opset=13,
        fixed=[3],
        mode="cubic",
        cubic_coeff_a=-0.5,
        exclude_outside=1,
        atol=1e-5,
    )
    for policy in ("not_larger", "not_smaller"):
        check(
            "Resize",
            IMAGE,
            None,
            None,
            target,
            opset=18,
            fixed=[3],
            axes=[2, 3],
            keep_aspect_ratio_policy=policy,
            oracle="onnx",
        )
    roi = np.array([0, 0, 0.2, 0.1, 1, 1, 0.8, 1.2], np.float32)
    check(
        "Resize",
        IMAGE,
        roi,
        None,
        np.array([1, 2, 3, 4]),
        opset=13,
        fixed=[1, 3],
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=7.0,
        atol=1e-5,
    )


def test_doubling_is_the_standard_operator(make: Any) -> None:
    node = helper.make_node(
        "Resize",
        ["x", "", "s"],
        ["y"],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    scales = np.array([1, 1, 2, 2], np.float32)
    graph = load(make([node], {"x": IMAGE}, ["y"], 13, {"s": scales}))
    assert [n.op for n in graph.nodes] == ["resample2d"]


@pytest.mark.parametrize("scales", [[1, 1, 2, 3], [1, 1, 0.6, 0.5], [1, 1, 1.5, 0.7]])
def test_a_mode_that_opset_11_had(check: Any, scales: list[float]) -> None:
    x = np.arange(60, dtype=np.float32).reshape(1, 2, 5, 6)
    args = (x, np.array([], np.float32), np.array(scales, np.float32))
    mode = "tf_half_pixel_for_nn"
    check("Resize", *args, opset=11, fixed=[1, 2], coordinate_transformation_mode=mode)
