"""Opsets 1 to 6: one-sided broadcasting, and what were attributes then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from crossdock.runtime.errors import MalformedModel, UnsupportedModel
from crossdock.runtime.loaders import load
from tests.runtime.loaders.conftest import build_model, run_ours

RNG = np.random.default_rng(0)


def rand(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.uniform(0.5, 2, shape).astype(dtype)


def ours(op: str, *arrays: Any, opset: int, outputs: int = 1, fixed: Any = (), **attrs: Any) -> Any:
    names = [f"x{i}" for i in range(len(arrays))]
    results = [f"y{i}" for i in range(outputs)]
    given = dict(zip(names, arrays, strict=True))
    constants = {names[i]: arrays[i] for i in fixed}
    feeds = {n: a for n, a in given.items() if n not in constants}
    node = helper.make_node(op, names, results, **attrs)
    found = run_ours(load(build_model([node], feeds, results, opset, constants)), feeds)
    return found["y0"] if outputs == 1 else list(found.values())


BROADCAST: list[tuple[tuple[int, ...], dict[str, int], tuple[int, ...]]] = [
    ((2, 3, 4, 5), {}, (2, 3, 4, 5)),
    ((5,), {"broadcast": 1}, (5,)),
    ((4, 5), {"broadcast": 1}, (4, 5)),
    ((3,), {"broadcast": 1, "axis": 1}, (3, 1, 1)),
    ((3, 4), {"broadcast": 1, "axis": 1}, (3, 4, 1)),
    ((2,), {"broadcast": 1, "axis": 0}, (2, 1, 1, 1)),
    ((3, 1), {"broadcast": 1, "axis": -3}, (3, 1, 1)),
    ((), {"broadcast": 1}, ()),
    ((1,), {"broadcast": 1, "axis": 1}, (1, 1, 1)),
]


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize(("shape", "attrs", "seen"), BROADCAST)
def test_broadcasting(shape: Any, attrs: Any, seen: Any, opset: int) -> None:
    x, y = rand(2, 3, 4, 5), rand(*shape)
    for op, function in {
        "Add": np.add,
        "Sub": np.subtract,
        "Mul": np.multiply,
        "Div": np.divide,
        "Pow": np.power,
        "Greater": np.greater,
        "Less": np.less,
    }.items():
        want = function(x, y.reshape(seen))
        np.testing.assert_allclose(ours(op, x, y, opset=opset, **attrs), want, rtol=1e-5)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(op: str) -> None:
    x, y = RNG.integers(0, 2, (2, 3, 4)) > 0, RNG.integers(0, 2, 3) > 0
    function = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}[op]
    got = ours(op, x, y, opset=1, broadcast=1, axis=1)
    np.testing.assert_array_equal(got, function(x, y[:, None]))
    assert got.dtype == np.bool_


def test_equality() -> None:
    x, y = RNG.integers(0, 3, (2, 3)), RNG.integers(0, 3, 2)
    np.testing.assert_array_equal(
        ours("Equal", x, y, opset=1, broadcast=1, axis=0), x == y[:, None]
    )


@pytest.mark.parametrize(
    ("shape", "attrs", "match"),
    [
        ((3,), {}, "'broadcast' is not set"),
        ((3,), {"broadcast": 1}, r"\[3\] does not broadcast to \[2, 3, 4\]"),
        ((3, 4), {"broadcast": 1, "axis": 2}, "does not broadcast"),
        ((1, 2, 3, 4), {"broadcast": 1}, "rank 4 does not broadcast to rank 3"),
        ((3,), {"broadcast": 1, "axis": 5}, "axis 5 is out of range"),
    ],
)
def test_what_does_not_broadcast(shape: Any, attrs: Any, match: str) -> None:
    with pytest.raises(MalformedModel, match=match):
        ours("Add", rand(2, 3, 4), rand(*shape), opset=6, **attrs)


def test_prelu_has_a_slope_a_channel() -> None:
    x, slope = rand(2, 3, 4) - 1, rand(3)
    want = np.where(x < 0, slope[:, None] * x, x)
    for opset in (1, 6):
        np.testing.assert_allclose(ours("PRelu", x, slope, opset=opset), want, rtol=1e-6)
    want = np.where(x < 0, slope[0] * x, x)
    np.testing.assert_allclose(ours("PRelu", x, slope[:1], opset=6), want, rtol=1e-6)


def test_shapes_in_attributes() -> None:
    x = rand(2, 3, 4)
    np.testing.assert_array_equal(ours("Reshape", x, opset=1, shape=[0, -1]), x.reshape(2, 12))
    np.testing.assert_array_equal(ours("Concat", x, x, opset=1), np.concatenate((x, x), axis=1))
    first, second = ours("Split", x, opset=1, outputs=2, axis=2, split=[1, 3])
    np.testing.assert_array_equal(first, x[..., :1])
    np.testing.assert_array_equal(second, x[..., 1:])
    sizes = np.array([2, 1])
    first, _ = ours("Split", x, sizes, opset=1, outputs=2, axis=1, fixed=[1])
    np.testing.assert_array_equal(first, x[:, :2])
    got = ours("Tile", x, np.float32([3]), np.float32([1]), opset=1, fixed=[1, 2])
    np.testing.assert_array_equal(got, np.tile(x, (1, 3, 1)))
    got = ours("Pad", x, opset=1, paddings=[0, 1, 0, 0, 0, 2], value=2.5)
    want = np.pad(x, ((0, 0), (1, 0), (0, 2)), constant_values=2.5)
    np.testing.assert_array_equal(got, want)
    got = ours("Upsample", rand(1, 2, 3, 4), opset=1, height_scale=2.0, width_scale=3.0)
    assert got.shape == (1, 2, 6, 12)
    np.testing.assert_array_equal(
        ours("Slice", x, opset=1, starts=[1], ends=[9], axes=[2]), x[..., 1:]
    )


@pytest.mark.parametrize(
    ("name", "dtype"), [("FLOAT16", "float16"), ("DOUBLE", "float64"), ("INT32", "int32")]
)
def test_types_by_name(name: str, dtype: str) -> None:
    assert ours("Cast", rand(3), opset=1, to=name).dtype == np.dtype(dtype)


def test_a_type_that_is_none() -> None:
    with pytest.raises(MalformedModel, match="cast to 'NOTHING', which is no type"):
        ours("Cast", rand(3), opset=1, to="NOTHING")


def test_selu_had_shorter_numbers() -> None:
    x = rand(5) - 1
    want = 1.0507 * np.where(x > 0, x, 1.6732 * (np.exp(x) - 1))
    np.testing.assert_allclose(ours("Selu", x, opset=1), want, rtol=1e-6)


@pytest.mark.parametrize("opset", [1, 6])
def test_batch_normalization_in_test_mode(opset: int) -> None:
    x, parts = rand(2, 3, 4, 4), [rand(3) for _ in range(4)]
    got = ours("BatchNormalization", x, *parts, opset=opset, is_test=1, epsilon=1e-3)
    scale, bias, mean, variance = (p[:, None, None] for p in parts)
    want = (x - mean) / np.sqrt(variance + 1e-3) * scale + bias
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_batch_normalization_of_each_element() -> None:
    x, parts = rand(2, 3, 4), [rand(3, 4) for _ in range(4)]
    for opset, attrs in ((6, {"is_test": 1}), (7, {})):
        got = ours("BatchNormalization", x, *parts, opset=opset, spatial=0, **attrs)
        want = (x - parts[2]) / np.sqrt(parts[3] + 1e-5) * parts[0] + parts[1]
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(("opset", "attrs"), [(6, {"is_test": 0}), (9, {})])
def test_batch_normalization_in_training(opset: int, attrs: Any) -> None:
    x, parts = rand(4, 3, 5), [rand(3) for _ in range(4)]
    y, mean, variance, saved_mean, saved_variance = ours(
        "BatchNormalization", x, *parts, opset=opset, outputs=5, momentum=0.75, **attrs
    )
    own = x.mean(axis=(0, 2)), x.var(axis=(0, 2))
    want = (x - own[0][:, None]) / np.sqrt(own[1][:, None] + 1e-5)
    np.testing.assert_allclose(
        y, want * parts[0][:, None] + parts[1][:, None], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(mean, 0.75 * parts[2] + 0.25 * own[0], rtol=1e-5)
    np.testing.assert_allclose(variance, 0.75 * parts[3] + 0.25 * own[1], rtol=1e-5)
    np.testing.assert_allclose(saved_mean, own[0], rtol=1e-5)
    np.testing.assert_allclose(saved_variance, own[1], rtol=1e-4)


def test_dropout() -> None:
    x = rand(2, 3)
    y, mask = ours("Dropout", x, opset=6, outputs=2, is_test=1)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(mask, np.ones_like(x))
    with pytest.raises(UnsupportedModel, match="'is_test' is not set"):
        ours("Dropout", x, opset=6)


def test_gemm_broadcasts_its_third_operand() -> None:
    a, b, c = rand(3, 4), rand(4, 5), rand(5)
    got = ours("Gemm", a, b, c, opset=6, broadcast=1, alpha=0.5)
    np.testing.assert_allclose(got, 0.5 * (a @ b) + c, rtol=1e-5)


def test_a_norm_of_a_float_order() -> None:
    x = rand(1, 2, 4, 4)
    got = ours("GlobalLpPool", x, opset=1, p=3.0)
    want = (x**3).sum(axis=(2, 3), keepdims=True) ** (1 / 3)
    np.testing.assert_allclose(got, want, rtol=1e-5)
