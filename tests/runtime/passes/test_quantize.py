"""The passes of quantised graphs: joined products, moved bytes, quantisation written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime import passes
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes.expand_quantize import expand_quantize
from crossdock.runtime.passes.fuse import fuse_elementwise
from crossdock.runtime.passes.move_quantize import move_quantize
from crossdock.runtime.passes.quantize import fuse_quantized
from crossdock.runtime.tensor import Array

NEW = ("move-quantize", "fuse-quantized", "expand-quantize")


def drawn(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    ends = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(ends.min, ends.max + 1, shape).astype(dtype)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def scalars(b: GraphBuilder, scale: float, zero: int, dtype: str) -> tuple[Operand, Operand]:
    return b.constant(np.float32(scale).reshape(())), b.constant(np.array(zero, dtype))


def real(b: GraphBuilder, x: Operand, scale: float, zero: int) -> Operand:
    return b.dequantize_linear(x, *scalars(b, scale, zero, x.dtype))


def bytes_of(b: GraphBuilder, x: Operand, scale: float, zero: int, dtype: str) -> Operand:
    return b.quantize_linear(x, *scalars(b, scale, zero, dtype))


def weights(b: GraphBuilder, shape: tuple[int, ...], axis: int) -> Operand:
    sizes = [n if i == axis else 1 for i, n in enumerate(shape)]
    scale = np.random.default_rng(1).uniform(0.001, 0.01, sizes).astype(np.float32)
    zero = b.constant(np.zeros(sizes, np.int8))
    return b.dequantize_linear(b.constant(drawn(shape, "int8")), b.constant(scale), zero)


def builder() -> GraphBuilder:
    """One that leaves constants to the passes, as the loaders' does with quantised weights."""
    return GraphBuilder("quantised")


Tail = Callable[[GraphBuilder, Operand], Operand]
TAILS: dict[str, tuple[Tail, str]] = {
    "relu": (lambda b, y: bytes_of(b, b.relu(y), 0.05, 0, "uint8"), "uint8"),
    "six": (
        lambda b, y: bytes_of(b, b.clamp(y, min_value=0.0, max_value=6.0), 0.05, 3, "uint8"),
        "uint8",
    ),
    "signed": (lambda b, y: bytes_of(b, y, 0.08, -7, "int8"), "int8"),
    "real": (lambda b, y: b.relu(y), "float32"),
}


def conv_graph(tail: Tail, bias: str, *, x_type: str = "uint8") -> Graph:
    b = builder()
    x = b.input("x", (1, 6, 9, 9), x_type)
    steps = np.arange(-4, 4)
    given = {
        "none": None,
        "real": np.linspace(-2, 2, 8, dtype=np.float32),
        "steps": (steps * np.float32(0.02)).astype(np.float32),
    }[bias]
    options: dict[str, Any] = {} if given is None else {"bias": b.constant(given)}
    w = weights(b, (8, 6, 3, 3), 0)
    y = b.conv2d(real(b, x, 0.02, 5), w, padding=[1, 1, 1, 1], **options)
    return b.build({"y": tail(b, y)})


@pytest.mark.parametrize("bias", ["none", "real", "steps"])
@pytest.mark.parametrize("tail", TAILS)
def test_convolution_takes_in_what_follows(tail: str, bias: str) -> None:
    graph = conv_graph(TAILS[tail][0], bias)
    joined = fuse_quantized(graph).check()
    assert ops(joined) == ["quantized_conv2d"]
    feeds = {"x": drawn((1, 6, 9, 9), "uint8", 3)}
    got, want = (evaluate(g, feeds)["y"].astype(np.float64) for g in (joined, graph))
    bound = 1.0 if TAILS[tail][1] != "float32" else 1e-5 * np.abs(want).max()
    assert np.abs(got - want).max() <= bound
    assert (got != want).mean() < 0.01 or TAILS[tail][1] == "float32"
    assert want.std() > 1e-3


def test_a_bias_in_whole_steps_is_added_to_the_sum() -> None:
    b = builder()
    x = b.input("x", (2, 8), "uint8")
    w = b.dequantize_linear(b.constant(drawn((8, 4), "int8")), *scalars(b, 0.5, 0, "int8"))
    bias = np.array([[-3, 0, 7, 100000]], np.float32) * np.float32(0.5 * 0.25)
    y = b.gemm(real(b, x, 0.25, 9), w, c=b.constant(bias))
    joined = fuse_quantized(b.build({"y": y}))
    (node,) = joined.nodes
    named = dict(zip(("bias", "offset"), node.inputs[5:7], strict=True))
    assert named["offset"] is None
    np.testing.assert_array_equal(joined.constants[str(named["bias"])], [-3, 0, 7, 100000])


@pytest.mark.parametrize("transposed", [False, True])
def test_general_product(transposed: bool) -> None:
    b = builder()
    x = b.input("x", (5, 12), "int8")
    shape = (7, 12) if transposed else (12, 7)
    w = weights(b, shape, 0 if transposed else 1)
    c = b.constant(np.linspace(-1, 1, 7, dtype=np.float32))
    y = b.gemm(real(b, x, 0.03, -4), w, c=c, alpha=0.5, b_transpose=transposed)
    graph = b.build({"y": bytes_of(b, y, 0.02, 100, "uint8")})
    joined = fuse_quantized(graph)
    assert ops(joined) == ["quantized_matmul"]
    feeds = {"x": drawn((5, 12), "int8", 3)}
    got, want = (evaluate(g, feeds)["y"].astype(int) for g in (joined, graph))
    assert np.abs(got - want).max() <= 1


def integer_graph(*, fixed: bool) -> Graph:
    """A product quantised at run time: the left matrix's scale is an input."""
    b = GraphBuilder("dynamic")
    x, zero = b.input("x", (3, 16), "uint8"), b.input("zero", (), "uint8")
    scale = b.constant(np.array(0.01, np.float32)) if fixed else b.input("scale", (), "float32")
    per = b.constant(np.linspace(0.01, 0.02, 5, dtype=np.float32))
    total = b.matmul_integer(x, b.constant(drawn((16, 5), "int8")), a_zero_point=zero)
    y = b.mul(b.cast(total, "float32"), b.mul(scale, per))
    return b.build({"y": b.add(y, b.constant(np.arange(5, dtype=np.float32)))})


@pytest.mark.parametrize("fixed", [False, True])
def test_scale_known_at_run_time_only(fixed: bool) -> None:
    graph = integer_graph(fixed=fixed)
    joined = fuse_quantized(graph)
    assert ops(joined) == (["quantized_matmul"] if fixed else ["mul", "quantized_matmul"])
    feeds: dict[str, Any] = {"x": drawn((3, 16), "uint8", 2), "zero": np.array(77, np.uint8)}
    if not fixed:
        feeds["scale"] = np.array(0.03, np.float32)
    got, want = (evaluate(g, feeds)["y"] for g in (joined, graph))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def _read_twice(b: GraphBuilder) -> dict[str, Operand]:
    x = b.input("x", (2, 8), "uint8")
    y = b.matmul(real(b, x, 0.1, 0), weights(b, (8, 4), 1))
    return {"y": bytes_of(b, y, 0.1, 0, "uint8"), "z": b.relu(y)}


def _scale_of_input(b: GraphBuilder) -> dict[str, Operand]:
    x, scale = b.input("x", (2, 8), "uint8"), b.input("s", (), "float32")
    wide = b.dequantize_linear(x, scale, b.constant(np.array(0, np.uint8)))
    return {"y": b.matmul(wide, weights(b, (8, 4), 1))}


def _scale_along_terms(b: GraphBuilder) -> dict[str, Operand]:
    x = b.input("x", (2, 8), "uint8")
    return {"y": b.matmul(real(b, x, 0.1, 0), weights(b, (8, 4), 0))}


def _rows_of_zeros(b: GraphBuilder) -> dict[str, Operand]:
    x, zero = b.input("x", (2, 8), "uint8"), b.input("zero", (2, 1), "uint8")
    total = b.matmul_integer(x, b.constant(drawn((8, 4), "int8")), a_zero_point=zero)
    return {"y": b.cast(total, "float32")}


def _stays_whole(b: GraphBuilder) -> dict[str, Operand]:
    x = b.input("x", (2, 8), "uint8")
    return {"y": b.matmul_integer(x, b.constant(drawn((8, 4), "int8")))}


@pytest.mark.parametrize(
    "make", [_scale_of_input, _scale_along_terms, _rows_of_zeros, _stays_whole]
)
def test_what_is_no_quantised_product_stays(
    make: Callable[[GraphBuilder], dict[str, Operand]],
) -> None:
    b = builder()
    graph = b.build(make(b))
    assert ops(fuse_quantized(graph)) == ops(graph)


def test_a_result_with_several_readers_stays_real() -> None:
    b = builder()
    graph = b.build(_read_twice(b))
    joined = fuse_quantized(graph)
    assert sorted(ops(joined)) == ["quantize_linear", "quantized_matmul", "relu"]
    feeds = {"x": drawn((2, 8), "uint8")}
    got, want = evaluate(joined, feeds), evaluate(graph, feeds)
    np.testing.assert_allclose(got["z"], want["z"], rtol=1e-5, atol=1e-5)


def test_nodes_that_are_kept_stay() -> None:
    graph = conv_graph(TAILS["relu"][0], "none")
    for node in graph.nodes:
        kept = fuse_quantized(graph, frozenset({node.name}))
        assert node in kept.nodes, node


# --- bytes move ---

MOVES: dict[str, Tail] = {
    "reshape": lambda b, x: b.reshape(x, [2, 3, 64]),
    "transpose": lambda b, x: b.transpose(x, permutation=[0, 2, 3, 1]),
    "slice": lambda b, x: b.slice(x, [0, 1, 2, 3], [1, 3, 4, 5]),
    "max_pool2d": lambda b, x: b.max_pool2d(x, window_dimensions=[2, 3], padding=[1, 0, 1, 1]),
}


def moved_graph(move: Tail, again: tuple[float, int]) -> Graph:
    b = builder()
    x = b.input("x", (1, 6, 8, 8), "uint8")
    return b.build(
        {"y": b.relu(real(b, bytes_of(b, move(b, real(b, x, 0.1, 7)), *again, "uint8"), *again))}
    )


@pytest.mark.parametrize("move", MOVES)
def test_moves_are_of_bytes(move: str) -> None:
    graph = moved_graph(MOVES[move], (0.1, 7))
    moved = move_quantize(graph).check()
    assert ops(moved) == [move, "dequantize_linear", "relu"]
    assert moved.specs[moved.nodes[0].outputs[0]].dtype == "uint8"
    feeds = {"x": drawn((1, 6, 8, 8), "uint8", 4)}
    np.testing.assert_array_equal(evaluate(moved, feeds)["y"], evaluate(graph, feeds)["y"])


def test_another_scale_is_taken_after_the_move() -> None:
    graph = moved_graph(MOVES["transpose"], (0.2, 9))
    moved = move_quantize(graph)
    assert ops(moved)[:3] == ["transpose", "dequantize_linear", "quantize_linear"]
    feeds = {"x": drawn((1, 6, 8, 8), "uint8", 4)}
    np.testing.assert_array_equal(evaluate(moved, feeds)["y"], evaluate(graph, feeds)["y"])


def test_parts_are_quantised_before_they_are_joined() -> None:
    b = builder()
    parts = [b.input(name, (1, 3, 4, 4), "uint8") for name in "xy"]
    joined = b.concat([real(b, parts[0], 0.1, 7), real(b, parts[1], 0.3, 1)], 1)
    graph = b.build({"z": real(b, bytes_of(b, joined, 0.1, 7, "uint8"), 0.1, 7)})
    moved = move_quantize(graph).check()
    assert ops(moved) == ["dequantize_linear", "quantize_linear", "concat", "dequantize_linear"]
    feeds = {name: drawn((1, 3, 4, 4), "uint8", i) for i, name in enumerate("xy")}
    np.testing.assert_array_equal(evaluate(moved, feeds)["z"], evaluate(graph, feeds)["z"])


@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3, 3e-5, 7.7e8])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_bytes_come_back_from_every_scale(scale: float, dtype: str) -> None:
    """What the pass rests on: quantising what was dequantised gives the same bytes."""
    every = np.arange(256, dtype=np.uint8).view(dtype)
    b = builder()
    x = b.input("x", (256,), dtype)
    graph = b.build({"y": bytes_of(b, real(b, x, scale, 11), scale, 11, dtype)})
    np.testing.assert_array_equal(evaluate(graph, {"x": every})["y"], every)


# --- written out ---


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantisation_written_out_is_the_same(dtype: str) -> None:
    b = builder()
    x = b.input("x", (2, 5, 7), "float32")
    scale = b.constant(np.linspace(0.1, 0.5, 5, dtype=np.float32).reshape(5, 1))
    zero = b.constant(np.arange(5, dtype=dtype).reshape(5, 1))
    y = b.quantize_linear(x, scale, zero)
    graph = b.build({"y": y, "z": b.dequantize_linear(y, scale, zero)})
    plain = expand_quantize(graph).check()
    assert not {"quantize_linear", "dequantize_linear"} & set(ops(plain))
    feeds = {"x": np.random.default_rng(0).uniform(-60, 60, (2, 5, 7)).astype(np.float32)}
    with xd.compile(graph, "cpu:0", measure=False) as session:
        got = session.run(feeds)
    for name, want in evaluate(graph, feeds).items():
        np.testing.assert_allclose(got[name], want, rtol=1e-6)


def test_a_sum_of_bytes_is_one_op() -> None:
    b = builder()
    x, y = (b.input(name, (1, 3, 4, 4), "uint8") for name in "xy")
    total = b.relu(b.add(real(b, x, 0.1, 7), real(b, y, 0.2, 3)))
    graph = b.build({"z": bytes_of(b, total, 0.15, 0, "uint8")})
    assert ops(fuse_elementwise(expand_quantize(graph))) == ["fused"]


def test_a_function_of_bytes_stays_by_itself() -> None:
    b = builder()
    x, y = (b.input(name, (1, 3, 4, 4), "uint8") for name in "xy")
    root = real(b, bytes_of(b, b.erf(real(b, x, 0.02, 100)), 0.01, 100, "uint8"), 0.01, 100)
    total = bytes_of(b, b.mul(root, real(b, y, 0.2, 3)), 0.15, 0, "uint8")
    graph = fuse_elementwise(expand_quantize(b.build({"z": total})))
    assert [len(node.inputs) for node in graph.nodes if node.op == "fused"][-1] > 2
    bytes_ = [node for node in graph.nodes if graph.specs[node.outputs[0]].dtype == "uint8"]
    assert [len([v for v in node.inputs if v in "xy"]) for node in bytes_] == [1, 1]
    assert bytes_[0].outputs[0] in bytes_[1].inputs


def test_every_reader_dequantises_bytes_itself() -> None:
    b = builder()
    x = b.input("x", (1, 3, 4, 4), "uint8")
    wide = real(b, x, 0.1, 7)
    graph = b.build({"y": b.mul(wide, b.erf(wide)), "z": b.softmax(wide, 1)})
    plain = fuse_elementwise(expand_quantize(graph))
    assert sorted(ops(plain)) == ["fused", "fused", "softmax"]
    feeds = {"x": drawn((1, 3, 4, 4), "uint8")}
    got, want = evaluate(plain, feeds), evaluate(graph, feeds)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)


def test_scales_by_blocks_stay() -> None:
    b = builder()
    x = b.input("x", (4, 6), "uint8")
    scale, zero = np.full((2, 3), 0.5, np.float32), np.zeros((2, 3), np.uint8)
    graph = b.build({"y": b.dequantize_linear(x, b.constant(scale), b.constant(zero))})
    assert ops(expand_quantize(graph)) == ["dequantize_linear"]


@pytest.mark.parametrize("skip", [(), *((name,) for name in NEW), NEW])
def test_every_pass_can_be_left_out(skip: tuple[str, ...]) -> None:
    graph = conv_graph(TAILS["six"][0], "real")
    feeds = {"x": drawn((1, 6, 9, 9), "uint8", 3)}
    want = evaluate(graph, feeds)["y"].astype(int)
    got = evaluate(passes.run(graph, skip=skip), feeds)["y"].astype(int)
    assert np.abs(got - want).max() <= 1
