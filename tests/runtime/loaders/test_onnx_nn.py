"""ONNX convolutions, pools and normalisations against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RNG = np.random.default_rng(0)


def rand(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


# --- convolution ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"pads": [1, 0, 2, 1], "strides": [2, 1]},
        {"dilations": [2, 1], "kernel_shape": [3, 3]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
        {"auto_pad": "VALID"},
        {"auto_pad": "NOTSET", "pads": [0, 1, 0, 1]},
    ],
)
@pytest.mark.parametrize("opset", [7, 11, 22])
def test_conv(check: Any, attrs: Any, opset: int) -> None:
    check(
        "Conv",
        rand(2, 3, 8, 7),
        rand(4, 3, 3, 3),
        rand(4),
        opset=opset,
        fixed=[1, 2],
        atol=1e-5,
        **attrs,
    )


def test_conv_groups_and_dynamic_filters(check: Any) -> None:
    check("Conv", rand(1, 4, 6, 6), rand(6, 2, 3, 3), opset=11, group=2, atol=1e-5)
    check("Conv", rand(1, 4, 6, 6), rand(4, 1, 3, 3), opset=11, group=4, fixed=[1], atol=1e-5)


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"pads": [2, 1], "strides": [2]},
        {"dilations": [2]},
        {"auto_pad": "SAME_UPPER", "strides": [2]},
    ],
)
def test_conv_of_one_dimension(check: Any, attrs: Any) -> None:
    check("Conv", rand(2, 3, 9), rand(4, 3, 3), rand(4), opset=11, fixed=[1, 2], atol=1e-5, **attrs)


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": [2, 2]},
        {"strides": [2, 3], "pads": [1, 0, 1, 1], "output_padding": [1, 2]},
        {"strides": [2, 2], "output_shape": [9, 8]},
        {"strides": [2, 2], "output_shape": [8, 8]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [3, 3], "auto_pad": "VALID"},
        {"dilations": [2, 1]},
    ],
)
def test_conv_transpose(check: Any, attrs: Any) -> None:
    for opset in (7, 11):
        check(
            "ConvTranspose",
            rand(1, 3, 4, 4),
            rand(3, 2, 3, 3),
            rand(2),
            opset=opset,
            fixed=[1, 2],
            atol=1e-5,
            **attrs,
        )


def test_conv_transpose_groups_and_one_dimension(check: Any) -> None:
    check("ConvTranspose", rand(1, 4, 3, 3), rand(4, 2, 2, 2), opset=11, group=2, atol=1e-5)
    check("ConvTranspose", rand(1, 3, 5), rand(3, 2, 3), opset=11, strides=[2], atol=1e-5)


# --- pools ----------------------------------------------------------------------------------------

POOLS = [
    {"kernel_shape": [2, 2]},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
    {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [1, 1], "strides": [3, 3], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2, 2], "strides": [1, 1], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [2, 2], "auto_pad": "VALID"},
]


@pytest.mark.parametrize("attrs", POOLS)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pools(check: Any, op: str, attrs: Any) -> None:
    check(op, rand(1, 2, 7, 8), opset=10 if "ceil_mode" in attrs else 7, **attrs)
    check(op, rand(1, 2, 7, 8), opset=22, **attrs)


@pytest.mark.parametrize("attrs", POOLS)
def test_average_with_padding(check: Any, attrs: Any) -> None:
    check("AveragePool", rand(1, 2, 7, 8), opset=19, count_include_pad=1, **attrs)


def test_pools_with_dilation(check: Any) -> None:
    check("MaxPool", rand(1, 2, 9, 9), opset=10, kernel_shape=[3, 2], dilations=[2, 3])
    check(
        "AveragePool",
        rand(1, 2, 9, 9),
        opset=19,
        kernel_shape=[3, 2],
        dilations=[2, 3],
        pads=[1, 1, 1, 1],
    )


def test_pools_of_one_dimension(check: Any) -> None:
    for op in ("MaxPool", "AveragePool", "LpPool"):
        check(op, rand(2, 3, 9), opset=11, kernel_shape=[3], strides=[2], pads=[1, 1])


def test_pools_of_bytes(check: Any) -> None:
    x = np.arange(32, dtype=np.uint8).reshape(1, 2, 4, 4)
    check("MaxPool", x, opset=12, kernel_shape=[2, 2], pads=[1, 1, 0, 0])


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norm_pools(check: Any, p: int) -> None:
    x = rand(1, 2, 6, 6)
    check("LpPool", x, opset=11, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], p=p)
    check("GlobalLpPool", x, opset=7, p=p)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_global_pools(check: Any, shape: Any) -> None:
    check("GlobalAveragePool", rand(*shape), opset=7)
    check("GlobalMaxPool", rand(*shape), opset=7)


# --- normalisations -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_normalization(check: Any, shape: Any, opset: int) -> None:
    parts = [rand(3), rand(3), rand(3), np.abs(rand(3)) + 0.1]
    check(
        "BatchNormalization",
        rand(*shape),
        *parts,
        opset=opset,
        fixed=[1, 2, 3, 4],
        epsilon=1e-3,
        atol=1e-5,
    )


def test_batch_normalization_in_training(check: Any) -> None:
    parts = [np.abs(rand(3)) for _ in range(4)]
    attrs = {"training_mode": 1, "momentum": 0.6, "epsilon": 1e-3}
    for shape in ((4, 3), (2, 3, 4, 5)):
        check("BatchNormalization", rand(*shape), *parts, opset=15, outputs=3, atol=1e-5, **attrs)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 4, 5), (1, 3, 2, 3, 4)])
def test_instance_normalization(check: Any, shape: Any) -> None:
    check("InstanceNormalization", rand(*shape), rand(3), rand(3), opset=7, atol=1e-5)


def test_layer_normalization(check: Any) -> None:
    x = rand(2, 3, 4)
    check("LayerNormalization", x, rand(4), rand(4), opset=17, fixed=[1, 2], atol=1e-5)
    check("LayerNormalization", x, rand(3, 4), opset=17, axis=1, atol=1e-5)
    check("LayerNormalization", x, rand(4), rand(4), opset=17, outputs=3, epsilon=1e-3, atol=1e-5)


def test_rms_normalization(check: Any) -> None:
    check("RMSNormalization", rand(2, 3, 4), rand(4), opset=23, atol=1e-5)


def test_group_normalization(check: Any) -> None:
    x = rand(2, 6, 3, 3)
    check("GroupNormalization", x, rand(6), rand(6), opset=21, num_groups=3, atol=1e-5)
    check("GroupNormalization", x, rand(3), rand(3), opset=18, num_groups=3, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(check: Any, size: int) -> None:
    check("LRN", rand(2, 6, 3, 4), opset=7, size=size, alpha=0.02, beta=0.6, bias=1.5)


def test_mean_variance_normalization(check: Any) -> None:
    check("MeanVarianceNormalization", rand(2, 3, 4, 5), opset=13, atol=1e-5)
