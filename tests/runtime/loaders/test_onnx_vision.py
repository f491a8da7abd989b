"""Grids, regions and offset convolutions against onnxruntime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.errors import MalformedModel, UnsupportedModel
from crossdock.runtime.loaders import load
from tests.runtime.loaders.conftest import build_model

RNG = np.random.default_rng(0)


def rand(*shape: int) -> Any:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


GRIDS = list(
    itertools.product(("linear", "nearest", "cubic"), ("zeros", "border", "reflection"), (0, 1))
)


@pytest.mark.parametrize(("mode", "padding", "corners"), GRIDS)
def test_grid_sample(check: Any, mode: str, padding: str, corners: int) -> None:
    x, grid = rand(2, 3, 5, 6), 1.7 * rand(2, 4, 7, 2)
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    check("GridSample", x, grid, opset=20, atol=1e-4, **attrs)


@pytest.mark.parametrize(("mode", "padding", "corners"), [g for g in GRIDS if g[0] != "cubic"])
def test_grid_sample_of_volumes(check: Any, mode: str, padding: str, corners: int) -> None:
    x, grid = rand(2, 2, 4, 3, 5), 1.7 * rand(2, 2, 3, 4, 3)
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    check("GridSample", x, grid, opset=20, atol=1e-4, **attrs)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample_as_opset_16_had_it(check: Any, mode: str) -> None:
    check("GridSample", rand(1, 2, 4, 4), 1.2 * rand(1, 3, 3, 2), opset=16, atol=1e-4, mode=mode)


def test_a_grid_that_does_not_fit() -> None:
    node = helper.make_node("GridSample", ["x", "g"], ["y"])
    feeds = {"x": rand(1, 2, 4, 4), "g": rand(2, 3, 3, 2)}
    with pytest.raises(MalformedModel, match="a grid of 2 rows for an input of 1"):
        load(build_model([node], feeds, ["y"], 16))


ROIS = np.array([[0, 0, 4, 4], [1.5, 2.25, 9, 7.5], [-3, -2, 3, 20], [5, 5, 5.25, 5.5]], np.float32)
ROWS = np.array([0, 1, 1, 0])


@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(check: Any, mode: str, ratio: int) -> None:
    attrs = {"output_height": 3, "output_width": 2, "sampling_ratio": ratio, "mode": mode}
    args = (rand(2, 3, 9, 11) + 2, ROIS, ROWS)
    for opset in (10, 16):
        check("RoiAlign", *args, opset=opset, fixed=[1], spatial_scale=0.75, atol=1e-4, **attrs)


def test_regions_of_values_need_a_number_of_points() -> None:
    node = helper.make_node("RoiAlign", ["x", "r", "b"], ["y"], output_height=2, output_width=2)
    feeds = {"x": rand(2, 3, 8, 8), "r": ROIS, "b": ROWS}
    with pytest.raises(UnsupportedModel, match="number of points a bin"):
        load(build_model([node], feeds, ["y"], 16))


def test_max_roi_pool(check: Any) -> None:
    rois = np.array([[0, 0, 0, 7, 7], [1, 2, 1, 9, 8], [1, 3, 3, 3, 4]], np.float32)
    for scale in (1.0, 0.6):
        attrs = {"pooled_shape": [3, 2], "spatial_scale": scale}
        check("MaxRoiPool", rand(2, 3, 9, 10), rois, opset=1, **attrs)


@pytest.mark.parametrize(
    ("groups", "shared", "masked"), [(1, 1, False), (2, 2, True), (1, 4, True)]
)
def test_deform_conv(check: Any, groups: int, shared: int, masked: bool) -> None:
    x, weights = rand(2, 4, 6, 7), rand(6, 4 // groups, 2, 3)
    outs = (6, 3)
    offset = 2 * rand(2, shared * 2 * 3 * 2, *outs)
    mask = rand(2, shared * 2 * 3, *outs) if masked else None
    attrs = {"group": groups, "offset_group": shared, "pads": [1, 0, 0, 1], "strides": [1, 2]}
    args = (x, weights, offset, rand(6)) + ((mask,) if masked else ())
    check("DeformConv", *args, opset=19, atol=1e-4, oracle="onnx", **attrs)
