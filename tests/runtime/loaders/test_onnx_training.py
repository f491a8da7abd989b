"""Optimisers' steps and gradients of parts of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import MalformedModel, UnsupportedModel
from crossdock.runtime.loaders import load

DOMAIN = "ai.onnx.preview.training"
IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]


def model(nodes: list[Any], feeds: dict[str, Any], outputs: list[str], **constants: Any) -> Any:
    info = helper.make_tensor_value_info
    given = [
        info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    made = [info(name, TensorProto.DOUBLE, None) for name in outputs]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", given, made, held), opset_imports=IMPORTS
    )


def stepped(op: str, *arrays: Any, outputs: int, **attrs: Any) -> list[Any]:
    names = [f"x{i}" for i in range(len(arrays))]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, domain=DOMAIN, **attrs)
    feeds = dict(zip(names, arrays, strict=True))
    return list(evaluate(load(model([node], feeds, results)), feeds).values())


R, X, G, V, H = (np.array(v) for v in (0.1, [1.0, 2.0], [0.5, -1.0], [0.2, 0.3], [0.4, 0.6]))


@pytest.mark.parametrize("t", [0, 3])
def test_adam(t: int) -> None:
    alpha, beta = np.float32(0.9), np.float32(0.999)
    v = alpha * V + (1 - alpha) * G
    h = beta * H + (1 - beta) * G * G
    rate = R * np.sqrt(1 - beta**t) / (1 - alpha**t) if t else R
    got = stepped("Adam", R, np.array(t), X, G, V, H, outputs=3)
    np.testing.assert_allclose(got, [X - rate * v / (np.sqrt(h) + 1e-6), v, h], rtol=1e-4)


@pytest.mark.parametrize(("t", "scale"), [(0, 1.0), (3, 0.5)])
def test_momentum(t: int, scale: float) -> None:
    attrs = {"alpha": 0.5, "beta": 0.5, "norm_coefficient": 0.25}
    g = 0.25 * X + G
    v = 0.5 * V + scale * g
    got = stepped("Momentum", R, np.array(t), X, G, V, outputs=2, mode="standard", **attrs)
    np.testing.assert_allclose(got, [X - R * v, v])
    got = stepped("Momentum", R, np.array(t), X, G, V, outputs=2, mode="nesterov", **attrs)
    np.testing.assert_allclose(got[0], X - R * (g + 0.5 * v))


def test_adagrad_of_several_tensors() -> None:
    other = (np.array([[3.0]]), np.array([[1.0]]), np.array([[0.0]]))
    tensors = (X, other[0], G, other[1], H, other[2])
    got = stepped("Adagrad", R, np.array(1), *tensors, outputs=4, decay_factor=1.0, epsilon=0.5)
    h = H + G * G
    np.testing.assert_allclose(got[0], X - R / 2 * G / (np.sqrt(h) + 0.5))
    np.testing.assert_allclose(got[2], h)
    np.testing.assert_allclose(got[1], 3 - 0.1 / 2 / 1.5)


def test_misuse_of_optimisers() -> None:
    with pytest.raises(MalformedModel, match="multiple of 3"):
        stepped("Adagrad", R, np.array(1), X, G, outputs=2)
    with pytest.raises(MalformedModel, match="'alpha' is missing"):
        stepped("Momentum", R, np.array(1), X, G, V, outputs=2)
    with pytest.raises(MalformedModel, match="shape or type"):
        stepped("Adagrad", R, np.array(1), X, G[:1], H, outputs=2)


# --- gradients ---

A, B = np.array([[0.5, 1.5, 2.5]]), np.array([[0.7], [1.3]])
M, N = np.linspace(-1, 1, 12).reshape(2, 2, 3), np.linspace(1, 2, 6).reshape(3, 2)
S = np.linspace(0.3, 1.7, 6).reshape(2, 3)

CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *[(op, [A, B], {}) for op in ("Add", "Sub", "Mul", "Div", "Pow")],
    ("Sum", [A, B, A], {}),
    *[(op, [S], {}) for op in ("Abs", "Cos", "Erf", "Exp", "Log", "Neg", "Reciprocal", "Sigmoid")],
    *[(op, [S], {}) for op in ("Sin", "Softplus", "Sqrt", "Tanh", "Identity")],
    *[(op, [S - 1], {}) for op in ("Relu", "LeakyRelu")],
    ("Transpose", [M], {"perm": [2, 0, 1]}),
    ("Flatten", [M], {"axis": 2}),
    ("Concat", [S, S * 2], {"axis": -1}),
    ("ReduceMean", [M], {"axes": [-1], "keepdims": 0}),
    ("ReduceSum", [M], {}),
    ("Softmax", [S], {"axis": 0}),
    ("MatMul", [M, N], {}),
    ("MatMul", [M, N[:, 0]], {}),
    ("MatMul", [N[:, 0], N], {}),
    ("MatMul", [N[:, 0], N[:, 1]], {}),
    ("Gemm", [S, N, np.array([0.5, 1.0])], {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", [S.T, N.T, np.array(0.5)], {"transA": 1, "transB": 1}),
]


@pytest.mark.parametrize(
    ("op", "arrays", "attrs"), CASES, ids=lambda v: v if type(v) is str else ""
)
def test_a_gradient_is_the_limit_of_differences(
    op: str, arrays: list[Any], attrs: dict[str, Any]
) -> None:
    names = [f"x{i}" for i in range(len(arrays))]
    # A weight on each element, so that slopes that cancel in a plain sum are seen.
    nodes = [
        helper.make_node(op, names, ["y"], **attrs),
        helper.make_node("Sin", ["y"], ["s"]),
        helper.make_node("ReduceSum", ["s"], ["z"], keepdims=0),
        helper.make_node("Gradient", names, [f"d{n}" for n in names], xs=names, y="z",
                         domain=DOMAIN),
    ]  # fmt: skip
    feeds = dict(zip(names, arrays, strict=True))
    graph = load(model(nodes, feeds, ["z", *(f"d{n}" for n in names)]))
    got = evaluate(graph, feeds)
    for name, array in feeds.items():
        want = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = array.copy()
                moved[at] += step
                ends.append(evaluate(graph, {**feeds, name: moved})["z"])
            want[at] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(got[f"d{name}"], want, rtol=1e-5, atol=1e-7)


def gradient(inputs: list[str], **attrs: Any) -> Any:
    return helper.make_node("Gradient", inputs, ["d"], domain=DOMAIN, **attrs)


def test_a_gradient_at_other_values_and_of_constants() -> None:
    square = helper.make_node("Mul", ["x", "x"], ["y"])
    nodes = [square, gradient(["at"], xs=["x"], y="y")]
    feeds = {"x": np.array([1.0]), "at": np.array([5.0])}
    assert evaluate(load(model(nodes, feeds, ["d"])), feeds)["d"] == [10]
    held = model([square, gradient(["x"], xs=["x"], y="y")], {}, ["d"], x=np.array([3.0]))
    assert evaluate(load(held), {})["d"] == [6]


def test_the_parts_of_a_gradient() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["h"]),
        helper.make_node("Mul", ["h", "w"], ["y"]),
    ]
    feeds = {"x": np.array([3.0]), "w": np.array([2.0])}
    inner = [*nodes, gradient(["h", "w"], xs=["h"], zs=["w"], y="y")]
    assert evaluate(load(model(inner, feeds, ["d"])), feeds)["d"] == [2]
    apart = [*nodes, gradient(["w"], xs=["w"], y="h")]
    assert evaluate(load(model(apart, feeds, ["d"])), feeds)["d"] == [0]


def test_what_has_no_gradient() -> None:
    feeds = {"x": np.array([[3.0]])}
    node = helper.make_node("Det", ["x"], ["y"])
    with pytest.raises(UnsupportedModel, match="a gradient through"):
        load(model([node, gradient(["x"], xs=["x"], y="y")], feeds, ["d"]))
    node = helper.make_node("Neg", ["x"], ["y"])
    with pytest.raises(MalformedModel, match="'q' is no tensor"):
        load(model([node, gradient(["x"], xs=["x"], y="q")], feeds, ["d"]))
    with pytest.raises(MalformedModel, match="2 tensors in xs and zs, 1 inputs"):
        load(model([node, gradient(["x"], xs=["x", "y"], y="y")], feeds, ["d"]))
