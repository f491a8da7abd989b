"""ONNX convolutions, pools, normalisations, products and cells against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.errors import UnsupportedModel
from crossdock.runtime.loaders import load

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


def test_batch_normalization_in_training_is_refused(make: Any) -> None:
    part = np.ones(3, np.float32)
    node = helper.make_node("BatchNormalization", list("xsbmv"), ["y"], training_mode=1)
    constants = dict.fromkeys("sbmv", part)
    with pytest.raises(UnsupportedModel, match="training mode"):
        load(make([node], {"x": rand(2, 3)}, ["y"], 15, constants))


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


# --- products -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((4,), (2, 4, 5)),
        ((2, 3, 4), (4,)),
    ],
)
def test_matmul(check: Any, a: Any, b: Any) -> None:
    check("MatMul", rand(*a), rand(*b), opset=9, atol=1e-5)


def test_gemm(check: Any) -> None:
    for opset in (7, 9, 11, 13):
        check("Gemm", rand(3, 4), rand(4, 5), rand(5), opset=opset, atol=1e-5)
        check(
            "Gemm",
            rand(4, 3),
            rand(5, 4),
            rand(3, 1),
            opset=opset,
            transA=1,
            transB=1,
            alpha=0.5,
            beta=2.0,
            atol=1e-5,
        )
    check("Gemm", rand(3, 4), rand(4, 5), opset=11, atol=1e-5)


# --- quantisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantize_and_dequantize(check: Any, dtype: Any) -> None:
    x = rand(2, 3, 4) * 40
    scale, zero = np.array(0.5, np.float32), np.array(3, dtype)
    check("QuantizeLinear", x, scale, zero, opset=10, fixed=[1, 2])
    q = np.arange(24).reshape(2, 3, 4).astype(dtype)
    check("DequantizeLinear", q, scale, zero, opset=10, fixed=[1, 2])
    scales, zeros = np.array([0.5, 0.25, 2], np.float32), np.array([1, 2, 3], dtype)
    for axis in (1, -2):
        check("QuantizeLinear", x, scales, zeros, opset=13, axis=axis, fixed=[1, 2])
        check("DequantizeLinear", q, scales, zeros, opset=13, axis=axis, fixed=[1, 2])


def test_quantisation_without_zero_point(check: Any) -> None:
    scale = np.array(0.5, np.float32)
    check("QuantizeLinear", np.abs(rand(3)), scale, opset=13)
    check("DequantizeLinear", np.arange(3, dtype=np.int32), scale, opset=13)
    check("DequantizeLinear", np.arange(3, dtype=np.uint8), scale, opset=13)


def test_quantisation_in_blocks(check: Any) -> None:
    q = np.arange(24, dtype=np.uint8).reshape(4, 6)
    scale = np.abs(rand(2, 6)) + 0.1
    zero = np.arange(12, dtype=np.uint8).reshape(2, 6)
    check("DequantizeLinear", q, scale, zero, opset=21, axis=0, block_size=2, fixed=[1, 2])


def test_dynamic_quantisation(check: Any) -> None:
    check("DynamicQuantizeLinear", rand(3, 4), opset=11, outputs=3)


def test_integer_products(check: Any) -> None:
    """Against onnx's evaluator: onnxruntime saturates in between on some processors."""
    a = RNG.integers(0, 255, (2, 3, 4)).astype(np.uint8)
    b = RNG.integers(-128, 127, (4, 5)).astype(np.int8)
    check("MatMulInteger", a, b, opset=10, oracle="onnx")
    zeros = np.array(7, np.uint8), np.array(3, np.int8)
    check("MatMulInteger", a, b, *zeros, opset=10, oracle="onnx")


# --- cells ----------------------------------------------------------------------------------------


def cell(gates: int, directions: int = 1, steps: int = 5, batch: int = 2) -> list[Any]:
    size, hidden = 3, 4
    return [
        rand(steps, batch, size),
        rand(directions, gates * hidden, size),
        rand(directions, gates * hidden, hidden),
        rand(directions, 2 * gates * hidden),
        None,
        rand(directions, batch, hidden),
    ]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("opset", [7, 14, 22])
def test_lstm(check: Any, direction: str, opset: int) -> None:
    parts = cell(4, 1 + (direction == "bidirectional"))
    parts += [parts[5] * 0.5, rand(parts[1].shape[0], 12)]
    check(
        "LSTM",
        *parts,
        opset=opset,
        outputs=3,
        hidden_size=4,
        direction=direction,
        fixed=[1, 2],
        atol=1e-5,
    )


def test_lstm_with_parts_left_out(check: Any) -> None:
    x, w, r, *_ = cell(4)
    check("LSTM", x, w, r, opset=14, outputs=["", "h"], hidden_size=4, fixed=[1, 2], atol=1e-5)
    check(
        "LSTM",
        x,
        w,
        r,
        None,
        np.array([5, 5], np.int32),
        opset=14,
        hidden_size=4,
        fixed=[1, 2, 4],
        atol=1e-5,
    )
    names = ["Sigmoid", "Relu", "Tanh"]
    check("LSTM", x, w, r, opset=14, hidden_size=4, activations=names, atol=1e-5)


def test_lstm_batch_first(check: Any) -> None:
    x, w, r, b, _, h = cell(4)
    check(
        "LSTM",
        x.transpose(1, 0, 2).copy(),
        w,
        r,
        b,
        None,
        h.transpose(1, 0, 2).copy(),
        opset=14,
        outputs=3,
        hidden_size=4,
        layout=1,
        atol=1e-5,
        oracle="onnx",
    )


def test_lstm_uses_that_are_refused(make: Any) -> None:
    x, w, r, *_ = cell(4)
    feeds = {"x": x, "l": np.array([5, 2], np.int32)}
    for attrs, inputs in (
        ({"clip": 1.0}, ["x", "w", "r"]),
        ({"activations": ["Affine", "Tanh", "Tanh"]}, ["x", "w", "r"]),
        ({}, ["x", "w", "r", "", "l"]),
    ):
        node = helper.make_node("LSTM", inputs, ["y"], hidden_size=4, **attrs)
        with pytest.raises(UnsupportedModel, match="not supported"):
            load(make([node], feeds, ["y"], 14, {"w": w, "r": r}))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("after", [0, 1])
def test_gru(check: Any, direction: str, after: int) -> None:
    parts = cell(3, 1 + (direction == "bidirectional"))
    check(
        "GRU",
        *parts,
        opset=14,
        outputs=2,
        hidden_size=4,
        direction=direction,
        fixed=[1, 2],
        linear_before_reset=after,
        atol=1e-5,
    )


# --- resize ---------------------------------------------------------------------------------------

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
