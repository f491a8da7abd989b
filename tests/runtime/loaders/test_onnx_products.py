"""ONNX products, quantisation and recurrent cells against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RNG = np.random.default_rng(0)


def rand(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


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


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_products_of_integers(check: Any, dtype: str) -> None:
    a, b = (RNG.integers(0, 2**16, s).astype(dtype) for s in ((2, 3, 4), (4, 5)))
    check("MatMul", a, b, opset=13)
    check("MatMul", a, b[:, 0], opset=13)
    a, b = a // 1000, np.ascontiguousarray(b.T // 1000)
    attrs = {"opset": 13, "transB": 1, "alpha": 2.0, "beta": 3.0, "oracle": "onnx"}
    check("Gemm", a[0], b, b[:, 0], **attrs)


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
