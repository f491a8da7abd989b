"""Elementwise ONNX operators, activations and their opset versions against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

F = np.array([[-2.5, -1.0, -0.5], [0.0, 0.5, 3.25]], np.float32)
G = np.array([1.5, -0.25, 2.0], np.float32)
I = np.array([[-7, -2, 5], [7, 3, -4]], np.int64)  # noqa: E741
J = np.array([3, -2, 2], np.int64)
B = np.array([[True, False, True], [False, False, True]])
C = np.array([True, True, False])


@pytest.mark.parametrize(
    "op",
    [
        "Abs",
        "Ceil",
        "Cos",
        "Cosh",
        "Erf",
        "Exp",
        "Floor",
        "HardSwish",
        "Identity",
        "Mish",
        "Neg",
        "Relu",
        "Round",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Tan",
        "Tanh",
        "Asinh",
    ],
)
def test_unary(check: Any, op: str) -> None:
    for opset in (18, 22):
        check(op, F * 0.9, opset=opset)


@pytest.mark.parametrize("op", ["Log", "Reciprocal", "Sqrt", "Acosh", "Atanh"])
def test_unary_on_a_domain(check: Any, op: str) -> None:
    x = np.array([0.2, 0.5, 0.9], np.float32) + (op == "Acosh")
    check(op, x, opset=13, rtol=2e-5)


@pytest.mark.parametrize("op", ["Abs", "Neg", "Sign", "Relu"])
def test_unary_on_integers(check: Any, op: str) -> None:
    check(op, I.astype(np.int32), opset=14)


@pytest.mark.parametrize("op", ["Abs", "Sign"])
def test_magnitude_of_unsigned(check: Any, op: str) -> None:
    check(op, np.array([0, 1, 250], np.uint8), opset=13)


@pytest.mark.parametrize("opset", [7, 13, 14])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_binary(check: Any, op: str, opset: int) -> None:
    check(op, F, G, opset=opset)
    check(op, I, J, opset=opset)
    check(op, I.astype(np.int32), J.astype(np.int32), opset=opset)
    check(op, F, G, opset=opset, fixed=[0, 1])


def test_halves_and_doubles(check: Any) -> None:
    check("Add", F.astype(np.float16), G.astype(np.float16), opset=13, rtol=1e-3)
    check("Div", F.astype(np.float64), G.astype(np.float64), opset=13)


@pytest.mark.parametrize(
    ("base", "exponent"),
    [
        (np.abs(F), G),
        (F, np.array(2, np.float32)),
        (F, np.array([0, 1, 2], np.int64)),
        (I, np.array([2, 3, 0], np.int64)),
        (I.astype(np.int32), np.array([2.0, 2.0, 1.0], np.float32)),
    ],
)
def test_pow(check: Any, base: Any, exponent: Any) -> None:
    check("Pow", base, exponent, opset=15)
    if base.dtype == exponent.dtype == np.float32:
        check("Pow", base, exponent, opset=7)


@pytest.mark.parametrize("opset", [7, 8, 13])
@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_variadic(check: Any, op: str, opset: int) -> None:
    check(op, F, opset=opset)
    check(op, F, F[::-1].copy(), F * 2, opset=opset)
    if opset >= 8:
        check(op, F, G, np.array(0.25, np.float32), opset=opset)
    if opset >= 12 and op in ("Max", "Min"):
        check(op, I, J, opset=opset)


def test_mod(check: Any) -> None:
    check("Mod", I, J, opset=13)
    check("Mod", I, J, opset=13, fmod=1)
    check("Mod", F, G, opset=13, fmod=1)
    check("Mod", F, G, opset=28, oracle="onnx")


@pytest.mark.parametrize("op", ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"])
def test_comparisons_give_bools(check: Any, op: str) -> None:
    opset = 16 if "Or" in op else 9
    check(op, I, np.array([5, 5, 5]), opset=opset)
    check(op, F, G, opset=max(opset, 11))
    if op == "Equal":
        check(op, I, J, opset=7)
        check(op, F, F, opset=11)
        check(op, B, C, opset=13)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(check: Any, op: str) -> None:
    check(op, B, C, opset=7)


def test_not_and_identity_of_bools(check: Any) -> None:
    check("Not", B, opset=7)
    check("Identity", B, opset=13)
    check("Not", B, opset=7, fixed=[0])


def test_odd_numbers(check: Any) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    check("IsNaN", x, opset=13)
    for negative, positive in ((1, 1), (1, 0), (0, 1), (0, 0)):
        check("IsInf", x, opset=10, detect_negative=negative, detect_positive=positive)


@pytest.mark.parametrize("opset", [9, 16])
def test_where(check: Any, opset: int) -> None:
    check("Where", B, F, G, opset=opset)
    check("Where", C, I, J, opset=opset)
    check("Where", B, B, C, opset=opset, oracle="onnx")


@pytest.mark.parametrize(
    "to", ["FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT64", "BOOL", "UINT32"]
)
def test_cast(check: Any, to: str) -> None:
    number = TensorProto.DataType.Value(to)
    x = np.abs(F) if to.startswith("U") else F
    for opset in (9, 13, 19):
        check("Cast", x, opset=opset, to=number)
    check("Cast", B, opset=13, to=number)
    check("Cast", np.array([0, 1, 3], np.uint8), opset=13, to=number)


def test_cast_like(check: Any) -> None:
    check("CastLike", F, I, opset=15)
    check("CastLike", F, B, opset=19)


@pytest.mark.parametrize("opset", [7, 11, 12, 13])
def test_clip(check: Any, opset: int) -> None:
    low, high = np.array(-1, np.float32), np.array(2, np.float32)
    if opset < 11:
        check("Clip", F, opset=opset, min=-1.0, max=2.0)
        check("Clip", F, opset=opset, min=0.0)
        check("Clip", F, opset=opset)
        return
    for fixed in ([1, 2], []):
        check("Clip", F, low, high, opset=opset, fixed=fixed)
        check("Clip", F, None, high, opset=opset, fixed=fixed)
        check("Clip", F, low, opset=opset, fixed=fixed[:1])
    check("Clip", F, opset=opset)
    check("Clip", F, high, low, opset=opset, fixed=[1, 2])
    if opset >= 12:
        check("Clip", I, np.array(-3), np.array(4), opset=opset, fixed=[1, 2])


def test_activations_with_parameters(check: Any) -> None:
    for alpha in (1.0, 0.3):
        check("Elu", F, opset=7, alpha=alpha)
        check("LeakyRelu", F, opset=7, alpha=alpha)
        check("LeakyRelu", F, opset=16, alpha=alpha)
        check("Celu", F, opset=12, alpha=alpha)
        check("ThresholdedRelu", F, opset=10, alpha=alpha)
        check("Swish", F, opset=24, alpha=alpha, oracle="onnx")
    check("HardSigmoid", F, opset=7)
    check("HardSigmoid", F, opset=22, alpha=0.1, beta=0.3)
    check("Selu", F, opset=7)
    check("Selu", F, opset=7, alpha=1.1, gamma=2.0)
    check("Shrink", F, opset=9, lambd=0.6, bias=0.2)
    check("SwiGLU", F, F * 0.3, opset=28, alpha=1.7, oracle="onnx")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(check: Any, approximate: str) -> None:
    check("Gelu", F, opset=20, approximate=approximate, atol=2e-6)


@pytest.mark.parametrize("opset", [7, 9, 16])
def test_prelu(check: Any, opset: int) -> None:
    image = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 2, 2)
    slope = np.array([0.1, 0.2, 0.3], np.float32).reshape(3, 1, 1)
    check("PRelu", image, slope, opset=opset)
    check("PRelu", F, G, opset=opset, fixed=[1])


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax(check: Any, op: str) -> None:
    x = np.sin(np.arange(24, dtype=np.float32)).reshape(2, 3, 4)
    for opset in (7, 11, 12):
        check(op, x, opset=opset)
        for axis in (0, 1, 2):
            check(op, x, opset=opset, axis=axis)
    check(op, x, opset=13)
    for axis in (-2, 0, 1):
        check(op, x, opset=13, axis=axis)


def test_softmax_of_large_numbers(check: Any) -> None:
    x = np.array([[1000.0, 1001.0, -1000.0]], np.float32)
    check("Softmax", x, opset=13)
    check("LogSoftmax", x, opset=13)


def test_dropout(check: Any) -> None:
    check("Dropout", F, opset=7, ratio=0.3)
    check("Dropout", F, opset=10)
    check("Dropout", F, opset=12, outputs=2)
    off = np.array(False)
    check("Dropout", F, np.array(0.5, np.float32), off, opset=13, fixed=[1, 2])


def test_a_bool_that_is_computed_stays_a_bool(make: Any, compare: Any) -> None:
    """Bools are bytes inside; what leaves the graph has ONNX's type."""
    from onnx import helper

    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["g"]),
        helper.make_node("Concat", ["g", "flag"], ["c"], axis=0),
        helper.make_node("Transpose", ["c"], ["t"]),
        helper.make_node("Not", ["t"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Or", ["n", "t"], ["w"]),
        helper.make_node("Cast", ["g"], ["u"], to=TensorProto.UINT8),
    ]
    feeds = {"x": F, "flag": B}
    zero = np.array(0, np.float32)
    compare(make(nodes, feeds, ["t", "f", "w", "u", "flag"], 13, {"zero": zero}), feeds)
