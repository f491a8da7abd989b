"""Quantised ONNX operators against onnxruntime on random operands: integers are equal.

Where a processor has no instruction for sums of products of bytes, onnxruntime adds unsigned times
signed ones in pairs that saturate at 16 bits. See ``twins`` in conftest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from crossdock.runtime.loaders import load
from tests.runtime.loaders.conftest import build_model, narrow, run_ort, run_ours, twins, unsigned

MICROSOFT = "com.microsoft"
RNG = np.random.default_rng(7)
U8, I8 = np.uint8, np.int8


def draw(dtype: Any, *shape: int) -> Any:
    limits = np.iinfo(dtype)
    return np.array(RNG.integers(limits.min, int(limits.max) + 1, shape), dtype)


def reals(*shape: int, size: float = 1.0) -> Any:
    return (RNG.standard_normal(shape) * size).astype(np.float32)


def f32(*values: float) -> Any:
    return np.array(values if len(values) > 1 else values[0], np.float32)


def one(op: str, arrays: list[Any], *, domain: str = "", outputs: int = 1, **attrs: Any) -> Any:
    """A model of one node, its operands named a0, a1 ...; None leaves one out."""
    inputs = {f"a{i}": array for i, array in enumerate(arrays) if array is not None}
    names = [f"a{i}" if array is not None else "" for i, array in enumerate(arrays)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, domain=domain, **attrs)
    imports = [helper.make_opsetid("", 21)]
    imports += [helper.make_opsetid(domain, 1)] * bool(domain)
    return build_model([node], inputs, results, opset_imports=imports), inputs


def compare(
    model: Any,
    feeds: dict[str, Any],
    *,
    steps: int = 0,
    atol: float = 0.0,
    theirs: tuple[Any, dict[str, Any]] | None = None,
) -> None:
    """Run a model in both; ``theirs`` is another model, and its inputs, that means the same."""
    wanted = run_ort(*(theirs or (model, feeds)))
    found = run_ours(load(model.SerializeToString()), feeds)
    for name, want in zip(found, wanted, strict=True):
        got = found[name]
        assert got.dtype == want.dtype, name
        assert got.shape == want.shape, name
        if want.dtype.kind in "iu":
            assert np.abs(got.astype(np.int64) - want.astype(np.int64)).max(initial=0) <= steps
        else:
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=atol)


def check(op: str, arrays: list[Any], **options: Any) -> None:
    judged = {key: options.pop(key) for key in ("steps", "atol") if key in options}
    model, feeds = one(op, arrays, **options)
    compare(model, feeds, **judged)


def check_product(op: str, arrays: list[Any], weights: int, zero: int, **options: Any) -> None:
    """Check a product whose weights and their zero are at these places among the operands."""
    judged = {key: options.pop(key) for key in ("steps", "atol") if key in options}
    for ours, theirs in twins(arrays, weights, zero):
        model, feeds = one(op, ours, **options)
        compare(model, feeds, theirs=one(op, theirs, **options), **judged)


# --- to integers and back -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [U8, I8, np.uint16, np.int16])
def test_halves_round_to_even_and_the_rest_saturates(dtype: Any) -> None:
    x = np.concatenate([np.arange(-40, 40) / 2, [1e9, -1e9, np.inf, -np.inf]]).astype(np.float32)
    check("QuantizeLinear", [x, f32(1.0), np.array(3, dtype)])
    check("QuantizeLinear", [reals(4, 5, 6, size=9), f32(0.3, 0.1, 1, 2, 0.7), draw(dtype, 5)])
    check("DequantizeLinear", [draw(dtype, 4, 5), reals(5), draw(dtype, 5)])


@pytest.mark.parametrize(("size", "block"), [(6, 2), (7, 3)])
def test_blocks_of_which_the_last_may_be_short(size: int, block: int) -> None:
    scale = np.abs(reals(3, 3)) + np.float32(0.1)
    options = {"axis": 1, "block_size": block}
    check("QuantizeLinear", [reals(3, size, size=9), scale, draw(I8, 3, 3)], **options)
    check("DequantizeLinear", [draw(I8, 3, size), scale, draw(I8, 3, 3)], **options)


def test_dequantize_of_int32() -> None:
    check("DequantizeLinear", [draw(np.int32, 3, 4), f32(0.01)])


@pytest.mark.parametrize("low", [-3.0, 0.5, -9.0])
def test_dynamic_quantize_linear(low: float) -> None:
    x = RNG.uniform(low, low + 6, (7, 9)).astype(np.float32)
    check("DynamicQuantizeLinear", [x], outputs=3)
    check("DynamicQuantizeLinear", [np.zeros((2, 2), np.float32)], outputs=3)


# --- products -------------------------------------------------------------------------------------

TYPES = [(U8, U8), (U8, I8), (I8, I8)]


@pytest.mark.parametrize(("left", "right"), TYPES)
def test_matmul_integer(left: Any, right: Any) -> None:
    a, b = draw(left, 2, 5, 300), draw(right, 300, 7)
    check_product("MatMulInteger", [a, b, None, None], 1, 3)
    check_product("MatMulInteger", [a, b, draw(left), draw(right, 7)], 1, 3)


@pytest.mark.parametrize(("left", "right"), TYPES)
def test_matmul_integer_of_the_greatest_bytes(left: Any, right: Any) -> None:
    """Pairs of products that 16 bits do not hold, against numpy's integers."""
    (low, high), (least, most) = ((np.iinfo(t).min, np.iinfo(t).max) for t in (left, right))
    a = np.array([[high] * 300, [low] * 300, [low, high] * 150], left)
    b = np.array([[least, most] * 150, [most] * 300, [least] * 300], right).T
    model, feeds = one("MatMulInteger", [a, b])
    (got,) = run_ours(load(model), feeds).values()
    assert got.dtype == np.int32
    assert (got == a.astype(np.int64) @ b.astype(np.int64)).all()


@pytest.mark.parametrize(("left", "right"), TYPES)
def test_qlinear_matmul(left: Any, right: Any) -> None:
    a, b = draw(left, 6, 40), draw(right, 40, 8)
    zeros = [draw(left), draw(right), draw(left)]
    arrays = [a, f32(0.02), zeros[0], b, f32(0.03), zeros[1], f32(0.9), zeros[2]]
    check_product("QLinearMatMul", arrays, 3, 5)
    arrays[4], arrays[5] = np.abs(reals(8, size=0.05)), draw(right, 8)
    check_product("QLinearMatMul", arrays, 3, 5)


@pytest.mark.parametrize(("left", "right"), TYPES[:2])
@pytest.mark.parametrize("window", [{}, {"pads": [1, 2, 0, 1], "strides": [2, 1]}])
def test_conv_integer(left: Any, right: Any, window: Any) -> None:
    x, w = draw(left, 2, 4, 9, 8), draw(right, 6, 2, 3, 3)
    zero = draw(right) if right is U8 else np.array(0, right)
    check("ConvInteger", [x, w, draw(left), zero], group=2, **window)


@pytest.mark.parametrize(("left", "right"), TYPES)
@pytest.mark.parametrize("shape", [(9,), (9, 8)])
def test_qlinear_conv(left: Any, right: Any, shape: tuple[int, ...]) -> None:
    window = {"pads": [1] * 2 * len(shape), "strides": [2] * len(shape)}
    arrays = [
        draw(left, 2, 4, *shape), f32(0.02), draw(left),
        draw(right, 6, 4, *[3] * len(shape)), f32(0.03), np.array(0, right),
        f32(0.2), draw(left), RNG.integers(-900, 900, 6).astype(np.int32),
    ]  # fmt: skip
    check_product("QLinearConv", arrays, 3, 5, **window)
    if right is I8:
        arrays[4], arrays[5] = np.abs(reals(6, size=0.05)), np.zeros(6, right)
        check_product("QLinearConv", arrays, 3, 5, **window)


def test_qdq_graph_equals_onnxruntime() -> None:
    """Quantised input and weights around a convolution and a product, as exporters write them."""
    feeds = {"x": reals(2, 3, 8, 8)}
    constants = {
        "s": f32(0.03), "z": np.array(120, U8), "w": draw(I8, 4, 3, 3, 3),
        "ws": np.abs(reals(4, size=0.01)) + np.float32(0.001), "wz": np.zeros(4, I8),
        "ys": f32(0.11), "yz": np.array(7, U8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["y"]),
    ]
    compare(build_model(nodes, feeds, ["y"], 13, constants), feeds, steps=1)


# --- graphs ---------------------------------------------------------------------------------------


class Chain:
    """A random quantised network: every step takes and makes an image of bytes."""

    def __init__(self, seed: int, dtype: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.products: list[tuple[str, str]] = []
        """The names of weights and of their zeros."""
        self.shape = (2, 4, 7, 6)

    def node(self, op: str, *names: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, list(names), [f"v{len(self.nodes)}"], **attrs))
        return f"v{len(self.nodes) - 1}"

    def array(self, value: Any, dtype: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def scale(self, *shape: int, size: float = 0.05) -> str:
        return self.array(self.rng.uniform(0.2, 1, shape) * size, np.float32)

    def zero(self) -> str:
        low = np.iinfo(self.dtype).min
        return self.array(low + self.rng.integers(0, 256), self.dtype)

    def convolution(self, x: str, grid: tuple[str, str]) -> tuple[str, tuple[str, str]]:
        out, kernel = int(self.rng.choice([2, 4, 6])), int(self.rng.choice([1, 3]))
        groups = int(self.rng.choice([1, 2]))
        shape = (out, self.shape[1] // groups, kernel, kernel)
        weights = self.array(self.rng.integers(-128, 128, shape), np.int8)
        single = bool(self.rng.integers(2))
        scale = self.scale(size=0.01) if single else self.scale(out, size=0.01)
        zeros = self.array(0 if single else np.zeros(out), np.int8)
        bias = self.array(self.rng.integers(-3000, 3000, out), np.int32)
        self.products.append((weights, zeros))
        made = self.scale(size=0.3), self.zero()
        attrs = {"group": groups, "pads": [kernel // 2] * 4}
        y = self.node("QLinearConv", x, *grid, weights, scale, zeros, *made, bias, **attrs)
        self.shape = (2, out, *self.shape[2:])
        return y, made

    def real(self, x: str, grid: tuple[str, str]) -> tuple[str, tuple[str, str]]:
        """Out of the bytes, through a function, and back."""
        y = self.node("DequantizeLinear", x, *grid)
        match int(self.rng.integers(4)):
            case 0:
                y = self.node("Relu", y)
            case 1:
                other = self.array(self.rng.standard_normal((self.shape[1], 1, 1)), np.float32)
                y = self.node("Add", y, other)
            case 2:
                y = self.node("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4)
            case _:
                y = self.node("Mul", y, y)
        made = self.scale(size=0.2), self.zero()
        return self.node("QuantizeLinear", y, *made), made

    def product(self, x: str, grid: tuple[str, str]) -> tuple[str, tuple[str, str]]:
        wide = self.shape[3]
        weights = self.array(self.rng.integers(-128, 128, (wide, wide)), np.int8)
        made = self.scale(size=0.3), self.zero()
        own = self.scale(size=0.02), self.array(self.rng.integers(-20, 20), np.int8)
        self.products.append((weights, own[1]))
        return self.node("QLinearMatMul", x, *grid, weights, *own, *made), made

    def models(self, steps: list[int]) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
        """The input, and networks for us beside those that mean the same for onnxruntime."""
        feeds = {"x": self.rng.standard_normal(self.shape).astype(np.float32)}
        grid = self.scale(), self.zero()
        x = self.node("QuantizeLinear", "x", *grid)
        for step in steps:
            x, grid = (self.convolution, self.real, self.product)[step](x, grid)
        y = self.node("DequantizeLinear", x, *grid)

        def build(changed: dict[str, Any]) -> Any:
            return build_model(self.nodes, feeds, [x, y], 13, self.constants | changed)

        if self.dtype == I8:
            return feeds, [(build({}), build({}))]
        known = self.constants
        moved = {name: unsigned(known[name]) for names in self.products for name in names}
        halves = build({name: narrow(known[name]) for name, _ in self.products})
        return feeds, [(build({}), build(moved)), (halves, halves)]


@settings(max_examples=40)
@given(
    st.integers(0, 1 << 20),
    st.sampled_from([U8, I8]),
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
)
def test_random_quantised_networks_equal_onnxruntime(
    seed: int, dtype: Any, steps: list[int]
) -> None:
    """Every step is one correctly rounded operation in both, so that bytes are equal."""
    feeds, models = Chain(seed, dtype).models(steps)
    for ours, theirs in models:
        compare(ours, feeds, theirs=(theirs, feeds))


# --- onnxruntime's own ----------------------------------------------------------------------------


def triple(dtype: Any, *shape: int, scale: float = 0.05) -> list[Any]:
    return [draw(dtype, *shape), f32(scale), draw(dtype)]


@pytest.mark.parametrize("dtype", [U8, I8])
@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_qlinear_pairs(op: str, dtype: Any) -> None:
    arrays = [*triple(dtype, 3, 1, 8), *triple(dtype, 4, 8, scale=0.08), f32(0.1), draw(dtype)]
    check(op, arrays, domain=MICROSOFT, steps=1)


@pytest.mark.parametrize("dtype", [U8, I8])
def test_qlinear_functions(dtype: Any) -> None:
    out = [f32(0.04), draw(dtype)]
    check("QLinearSigmoid", [*triple(dtype, 4, 9), *out], domain=MICROSOFT, steps=1)
    check("QLinearLeakyRelu", [*triple(dtype, 4, 9), *out], domain=MICROSOFT, alpha=0.2, steps=1)
    out = [f32(1 / 256), np.array(np.iinfo(dtype).min, dtype)]
    check(
        "QLinearSoftmax", [*triple(dtype, 4, 9), *out],
        domain=MICROSOFT, steps=1, axis=1, opset=13,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [U8, I8])
def test_qlinear_pools_and_joins(dtype: Any) -> None:
    out = [f32(0.04), draw(dtype)]
    image = triple(dtype, 2, 3, 6, 6)
    options = {"domain": MICROSOFT, "steps": 1}
    check("QLinearGlobalAveragePool", [*image, *out], channels_last=0, **options)
    window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    check("QLinearAveragePool", [*image, *out], **window, **options)
    joined = [*out, *triple(dtype, 2, 3), *triple(dtype, 2, 5, scale=0.07)]
    check("QLinearConcat", joined, axis=1, **options)


def test_products_given_as_floats() -> None:
    a, b = draw(U8, 5, 20), draw(I8, 20, 6)
    zeros = [draw(U8), draw(I8, 6)]
    arrays = [a, b, f32(0.02), np.abs(reals(6)), *zeros, reals(6)]
    check_product("MatMulIntegerToFloat", arrays, 1, 5, domain=MICROSOFT, atol=1e-5)
    arrays = [reals(5, 20), b, f32(0.1), draw(I8), reals(6)]
    check_product("DynamicQuantizeMatMul", arrays, 1, 3, domain=MICROSOFT, atol=1e-5)


@pytest.mark.parametrize("result", [True, False])
def test_qgemm(result: bool) -> None:
    bias = RNG.integers(-900, 900, 6).astype(np.int32)
    arrays = [*triple(U8, 20, 5), *triple(I8, 6, 20), bias]
    arrays[5] = np.array(0, I8)
    arrays += [f32(0.3), draw(U8)] if result else []
    options = {"transA": 1, "transB": 1, "alpha": 1.0, "atol": 1e-5}
    check_product("QGemm", arrays, 3, 5, domain=MICROSOFT, **options)
