"""Convolutions and pools over one to four spatial dimensions, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.errors import MalformedModel
from crossdock.runtime.loaders import load
from tests.runtime.loaders.conftest import build_model

RNG = np.random.default_rng(0)


def rand(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


CONV: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "line": ((2, 3, 9), (4, 3, 3), {"pads": [1, 2], "strides": [2]}),
    "volume": ((2, 3, 5, 6, 7), (4, 3, 2, 3, 3), {}),
    "strides": (
        (1, 2, 7, 8, 9), (3, 2, 3, 2, 3), {"strides": [2, 3, 1], "pads": [1, 0, 2, 2, 1, 1]},
    ),
    "dilated": ((1, 2, 7, 8, 9), (3, 2, 2, 3, 2), {"dilations": [3, 2, 4]}),
    "groups": ((2, 4, 4, 5, 6), (6, 2, 3, 3, 3), {"group": 2, "pads": [1] * 6}),
    "depthwise": ((1, 4, 4, 4, 4), (4, 1, 2, 2, 2), {"group": 4}),
    "same": ((1, 2, 5, 6, 7), (3, 2, 3, 2, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2, 2]}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONV)
def test_conv(check: Any, name: str) -> None:
    shape, weights, attrs = CONV[name]
    check("Conv", rand(*shape), rand(*weights), rand(weights[0]), opset=11, atol=1e-4, **attrs)


TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "line": ((2, 3, 5), (3, 4, 3), {"strides": [2], "pads": [1, 0]}),
    "volume": ((2, 3, 3, 4, 2), (3, 4, 2, 3, 3), {}),
    "strides": (
        (1, 2, 3, 4, 3),
        (2, 3, 3, 3, 2),
        {"strides": [2, 3, 1], "pads": [1, 0, 0, 2, 1, 1], "output_padding": [1, 2, 0]},
    ),
    "groups": ((1, 4, 3, 3, 3), (4, 3, 2, 2, 2), {"group": 2, "strides": [2, 2, 2]}),
    "dilated": ((1, 2, 3, 3, 3), (2, 2, 2, 2, 2), {"dilations": [2, 1, 3]}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(check: Any, name: str) -> None:
    shape, weights, attrs = TRANSPOSED[name]
    out = weights[1] * attrs.get("group", 1)
    args = (rand(*shape), rand(*weights), rand(out))
    check("ConvTranspose", *args, opset=11, atol=1e-4, **attrs)


POOL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "line": ((2, 3, 11), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    "volume": ((2, 3, 5, 6, 7), {"kernel_shape": [2, 3, 2]}),
    "ceil": (
        (1, 2, 6, 7, 8),
        {"kernel_shape": [3, 3, 3], "strides": [2, 2, 2], "pads": [1] * 6, "ceil_mode": 1},
    ),
    "same": ((1, 2, 6, 7, 8), {"kernel_shape": [3, 2, 3], "auto_pad": "SAME_UPPER"}),
    "four": ((1, 2, 3, 4, 5, 4), {"kernel_shape": [2, 2, 3, 2]}),
}


@pytest.mark.parametrize("name", POOL)
def test_pools(check: Any, name: str) -> None:
    shape, attrs = POOL[name]
    oracle = "onnx" if name == "four" else "ort"
    check("MaxPool", rand(*shape), opset=12, oracle=oracle, **attrs)
    if name == "four":
        return
    check("AveragePool", rand(*shape), opset=19, **attrs)
    check("AveragePool", rand(*shape), opset=19, count_include_pad=1, **attrs)


def test_a_dilated_volume(check: Any) -> None:
    attrs = {"kernel_shape": [2, 2, 2], "dilations": [2, 1, 3], "pads": [1, 0, 1, 0, 1, 1]}
    check("MaxPool", rand(1, 2, 6, 5, 7), opset=12, **attrs)
    check("AveragePool", rand(1, 2, 6, 5, 7), opset=19, **attrs)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(check: Any, p: int) -> None:
    attrs = {"p": p, "kernel_shape": [3, 2, 2], "strides": [2, 1, 2], "pads": [1, 0, 0, 1, 1, 0]}
    check("LpPool", rand(1, 2, 5, 5, 6), opset=18, rtol=1e-4, **attrs)
    check("LpPool", rand(1, 2, 9), opset=18, rtol=1e-4, p=p, kernel_shape=[4])
    check("GlobalLpPool", rand(1, 2, 3, 4, 2), opset=2, rtol=1e-4, p=p)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    ("shape", "attrs"),
    [
        ((2, 3, 7), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
        ((2, 2, 6, 5), {"kernel_shape": [2, 3], "strides": [1, 2], "pads": [1, 1, 0, 1]}),
        ((1, 2, 5, 5), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ((1, 2, 4, 4, 5), {"kernel_shape": [2, 2, 2], "strides": [2, 1, 2]}),
    ],
)
def test_max_pool_with_indices(check: Any, shape: Any, attrs: Any, order: int) -> None:
    check("MaxPool", rand(*shape), opset=12, outputs=2, storage_order=order, **attrs)


def test_the_first_of_equal_cells_is_named(check: Any) -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    found = check("MaxPool", x, opset=12, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    assert found["y1"].tolist() == [[[[0, 2], [8, 10]]]]


def test_max_unpool(check: Any) -> None:
    places = np.array([[[[5, 7], [13, 15]]]])
    x = rand(1, 1, 2, 2)
    check("MaxUnpool", x, places, opset=11, kernel_shape=[2, 2], strides=[2, 2])
    shape = np.array([1, 1, 5, 5])
    node = {"opset": 11, "fixed": [2], "oracle": "onnx"}
    check("MaxUnpool", x, places, shape, kernel_shape=[2, 2], strides=[2, 2], **node)


@pytest.mark.parametrize(
    ("shape", "image", "block", "attrs"),
    [
        ((2, 3 * 4, 12), [4, 5], [2, 2], {}),
        ((1, 2 * 6, 6), [5, 6], [2, 3], {"strides": [2, 2], "pads": [0, 0, 1, 0]}),
        ((1, 4, 12), [6, 6], [2, 2], {"dilations": [3, 2], "pads": [0, 0, 0, 0]}),
    ],
)
def test_col2im(check: Any, shape: Any, image: Any, block: Any, attrs: Any) -> None:
    args = (rand(*shape), np.array(image), np.array(block))
    check("Col2Im", *args, opset=18, fixed=[1, 2], atol=1e-5, **attrs)


@pytest.mark.parametrize(
    ("op", "shape", "kernel", "match"),
    [
        ("MaxPool", (1, 1, 3, 3, 3), [5, 1, 1], "a window of 5 in 3 cells"),
        ("MaxPool", (2, 3), [1], "no spatial dimensions"),
        ("AveragePool", (2, 3, 4), [2, 2], "kernel .* for 1 spatial dimensions"),
    ],
)
def test_windows_that_do_not_fit(op: str, shape: Any, kernel: list[int], match: str) -> None:
    node = helper.make_node(op, ["x"], ["y"], kernel_shape=kernel)
    with pytest.raises(MalformedModel, match=match):
        load(build_model([node], {"x": rand(*shape)}, ["y"], 12))
