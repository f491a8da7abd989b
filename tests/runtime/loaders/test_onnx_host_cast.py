"""Casts and quantization of strings, small floats and small integers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto as T

from crossdock.runtime.errors import MalformedModel
from tests.runtime.loaders.onnx_hosts import run_host, words

NAN, INF = float("nan"), float("inf")


def cast(values: Any, to: int, dtype: Any = np.float32, **attrs: Any) -> Any:
    x = values if isinstance(values, np.ndarray) else np.array(values, dtype)
    return run_host("Cast", x, to=to, **attrs)[0]


@pytest.mark.parametrize(
    ("to", "largest"),
    [
        (T.FLOAT8E4M3FN, 448.0),
        (T.FLOAT8E4M3FNUZ, 240.0),
        (T.FLOAT8E5M2, 57344.0),
        (T.FLOAT8E5M2FNUZ, 57344.0),
    ],
)
def test_eight_bits_saturate_unless_told_not_to(to: int, largest: float) -> None:
    x = [0, 1.0625, INF, -INF, 1e9, -1e9, NAN]
    got = cast(x, to).astype(np.float64)
    assert got[:-1].tolist() == [0, 1.0, largest, -largest, largest, -largest]
    assert np.isnan(got[-1])
    loose = cast(x, to, saturate=0).astype(np.float64)
    infinite = to == T.FLOAT8E5M2
    assert (np.isinf(loose[2:6]) if infinite else np.isnan(loose[2:6])).all()


@pytest.mark.parametrize(
    ("mode", "saturate", "want"),
    [
        ("up", 1, [2.0**-127, 1, 2, 4, 4, 2.0**127, 2.0**127, 2.0**-127]),
        ("down", 1, [2.0**-127, 1, 1, 2, 2, 2.0**127, 2.0**127, 2.0**-127]),
        ("nearest", 1, [2.0**-127, 1, 1, 4, 2, 2.0**127, 2.0**127, 2.0**-127]),
        ("nearest", 0, [NAN, 1, 1, 4, 2, NAN, NAN, NAN]),
    ],
)
def test_powers_of_two(mode: str, saturate: int, want: list[float]) -> None:
    x = np.array([0, 1, 1.25, 3, 2.5, 1e300, INF, 1e-300])
    got = cast(x, T.FLOAT8E8M0, round_mode=mode, saturate=saturate).astype(np.float64)
    np.testing.assert_array_equal(got, want)
    assert np.isnan(cast([NAN], T.FLOAT8E8M0, round_mode=mode).astype(np.float32))


@given(st.integers(-(2**31), 2**31 - 1))
def test_narrow_integers_drop_high_bits(value: int) -> None:
    x = np.array(value, np.int32)
    assert int(cast(x, T.UINT4)) == value % 16
    assert int(cast(x, T.INT4)) == (value + 8) % 16 - 8
    assert int(cast(x, T.UINT2)) == value % 4
    assert int(cast(x, T.INT2)) == (value + 2) % 4 - 2


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint2, ml_dtypes.float6_e3m2fn])
def test_small_types_widen_exactly(dtype: Any) -> None:
    x = np.array([[0, 1], [2, 3]]).astype(dtype)
    assert cast(x, T.FLOAT).tolist() == [[0, 1], [2, 3]]
    assert cast(x, T.BOOL).tolist() == [[False, True], [True, True]]
    assert cast(x, T.STRING)[1, 1] in ("3", "3.0")


def test_numbers_of_strings() -> None:
    x = words("1", "-2.5", "1e2", "+INF", "-inf", "NaN", " 7 ", ".5")
    got = cast(x, T.FLOAT)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [1, -2.5, 100, INF, -INF, NAN, 7, 0.5])
    assert cast(words("9007199254740993", "100.5"), T.INT64).tolist() == [9007199254740993, 100]
    assert cast(words("18446744073709551615"), T.UINT64)[0] == 2**64 - 1
    assert cast(words("0", "2"), T.BOOL).tolist() == [False, True]


@pytest.mark.parametrize("text", ["Hello", "1_000", "", "0x10", "infinit", "1e", "\u0661"])
def test_what_is_no_number_is_named(text: str) -> None:
    with pytest.raises(MalformedModel, match="is no number"):
        cast(words(text), T.FLOAT)


@pytest.mark.parametrize("text", ["9" * 39, "inf", "nan", "9" * 5000])
def test_what_no_integer_holds_is_an_error(text: str) -> None:
    with pytest.raises(MalformedModel, match="node 'the node'"):
        cast(words(text), T.INT64)


def test_strings_of_numbers_are_plain() -> None:
    got = cast([1.0, 314.5, 1e-7, 1e20, NAN, INF, -INF], T.STRING)
    assert got.tolist() == [
        "1.0",
        "314.5",
        "0.0000001",
        "100000000000000000000.0",
        "NaN",
        "INF",
        "-INF",
    ]
    assert cast(np.array([True, False]), T.STRING).tolist() == ["1", "0"]
    assert cast(np.array(-7), T.STRING).shape == ()


@given(st.floats(width=32))
def test_a_float_survives_as_a_string(value: float) -> None:
    back = cast(cast([value], T.STRING), T.FLOAT)
    np.testing.assert_array_equal(back, np.array([value], np.float32))


def test_misuse_of_casts() -> None:
    with pytest.raises(MalformedModel, match="complex"):
        cast(np.zeros(1, np.complex64), T.FLOAT)
    with pytest.raises(MalformedModel, match="round_mode"):
        cast([1.0], T.FLOAT8E8M0, round_mode="sideways")
    with pytest.raises(MalformedModel, match="no type"):
        cast([1.0], 99)


def test_cast_like() -> None:
    like = np.zeros(0, ml_dtypes.float8_e5m2)
    assert run_host("CastLike", np.array([1e9], np.float32), like)[0].tolist() == [57344]


def test_bits() -> None:
    x = np.arange(-8, 8).astype(ml_dtypes.int4)
    (got,) = run_host("BitCast", x, to=T.UINT4, opset=26)
    assert got.astype(int).tolist() == [*range(8, 16), *range(8)]
    (back,) = run_host("BitCast", got, to=T.INT4, opset=26)
    assert (back == x).all()
    assert run_host("BitCast", np.float32([1.0]), to=T.INT32, opset=26)[0].tolist() == [0x3F800000]
    with pytest.raises(MalformedModel, match="differ in width"):
        run_host("BitCast", np.float32([1.0]), to=T.INT64, opset=26)
    with pytest.raises(MalformedModel, match="strings"):
        run_host("BitCast", words("a"), to=T.INT64, opset=26)


# --- quantization ---


def quantize(x: Any, scale: Any, zero: Any = None, **attrs: Any) -> Any:
    inputs = [np.asarray(x, np.float32), np.asarray(scale, np.float32)]
    return run_host("QuantizeLinear", *inputs, *([] if zero is None else [zero]), **attrs)[0]


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        (ml_dtypes.int2, -2, 1),
        (ml_dtypes.uint2, 0, 3),
        (ml_dtypes.int4, -8, 7),
        (ml_dtypes.uint4, 0, 15),
        (np.int8, -128, 127),
        (np.uint8, 0, 255),
        (np.int16, -32768, 32767),
        (np.uint16, 0, 65535),
    ],
)
def test_quantized_integers_saturate(dtype: Any, low: int, high: int) -> None:
    got = quantize([-INF, -1e9, 1e9, INF, 0], 1.0, np.array(0).astype(dtype))
    assert got.dtype == dtype
    assert got.astype(int).tolist() == [low, low, high, high, 0]


def test_quantization_rounds_to_even_then_shifts() -> None:
    zero = np.array(3, np.uint8)
    assert quantize([0.5, 1.5, 2.5, -0.5], 1.0, zero).tolist() == [3, 5, 5, 3]
    assert quantize([1.0], 2.0, output_dtype=T.INT4).dtype == ml_dtypes.int4
    assert quantize([1e9], 1.0, output_dtype=T.FLOAT4E2M1).astype(float).tolist() == [6.0]
    assert np.isnan(quantize([1e9], 1.0, output_dtype=T.FLOAT8E4M3FN, saturate=0).astype(float))


def test_granularities() -> None:
    x = np.array([[2, 4, 6, 8, 10], [3, 6, 9, 12, 15]])
    assert quantize(x, [1, 3], axis=0, output_dtype=T.UINT4).astype(int).tolist() == [
        [2, 4, 6, 8, 10],
        [1, 2, 3, 4, 5],
    ]
    blocks = quantize(x, [[1, 2, 5], [3, 3, 5]], block_size=2, axis=-1)
    assert blocks.tolist() == [[2, 4, 3, 4, 2], [1, 2, 3, 4, 3]]
    assert quantize([2, 6], [1, 3], axis=0).tolist() == [2, 2]
    with pytest.raises(MalformedModel, match="slices along axis 1"):
        quantize(x, [1, 3])
    with pytest.raises(MalformedModel, match="need"):
        quantize(x, [[1, 2], [3, 3]], block_size=2)
    with pytest.raises(MalformedModel, match="zero point"):
        quantize(x, [1, 3], np.zeros(3, np.int8), axis=0)
    with pytest.raises(MalformedModel, match="output_dtype differs"):
        quantize(x, 1, np.array(0, np.int8), output_dtype=T.UINT8)
    with pytest.raises(MalformedModel, match="no type to quantize"):
        quantize(x, 1, output_dtype=T.INT32)


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9), st.integers(-8, 7))
def test_dequantizing_undoes_quantizing(values: list[int], zero: int) -> None:
    q, z = np.array(values).astype(ml_dtypes.int4), np.array(zero).astype(ml_dtypes.int4)
    (x,) = run_host("DequantizeLinear", q, np.float32(0.25), z)
    assert x.dtype == np.float32
    assert x.tolist() == [(v - zero) / 4 for v in values]
    assert (quantize(x, 0.25, z) == q).all()


def test_dequantized_types() -> None:
    q = np.array([1, 2], ml_dtypes.float8_e4m3fn)
    half = run_host("DequantizeLinear", q, np.array(0.5, np.float16))[0]
    assert (half.dtype, half.tolist()) == (np.float16, [0.5, 1])
    power = np.array(2).astype(ml_dtypes.float8_e8m0fnu)
    named = run_host("DequantizeLinear", q, power, output_dtype=T.BFLOAT16)[0]
    assert (named.dtype, named.tolist()) == (ml_dtypes.bfloat16, [2, 4])
    with pytest.raises(MalformedModel, match="output_dtype"):
        run_host("DequantizeLinear", q, power)
    with pytest.raises(MalformedModel, match="zero point is"):
        run_host("DequantizeLinear", q, np.float32(1), np.array(0, np.int8))
