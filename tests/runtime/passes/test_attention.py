"""Attention as one op that reads its operands where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels import table
from crossdock.kernels.reference import evaluate
from crossdock.runtime import passes
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.calls import op_call
from crossdock.runtime.emulation import decomposed
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes.attention import fuse_attention
from crossdock.runtime.passes.matmul import fuse_bias, merge_products
from crossdock.runtime.tensor import Array

BATCH, LENGTH, HEADS, WIDTH = 2, 6, 3, 4
COLUMNS = HEADS * WIDTH
Builder = GraphBuilder


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense(b: Builder, x: Operand, seed: int) -> Operand:
    product = b.matmul(x, b.constant(drawn(COLUMNS, COLUMNS, seed=seed)))
    return b.add(product, b.constant(drawn(COLUMNS, seed=seed + 1)))


def heads(b: Builder, x: Operand, order: tuple[int, ...] = (0, 2, 1, 3)) -> Operand:
    split = b.reshape(x, [BATCH, LENGTH, HEADS, WIDTH])
    return b.transpose(split, permutation=list(order))


def back(b: Builder, x: Operand) -> Operand:
    return b.reshape(b.transpose(x, permutation=[0, 2, 1, 3]), [BATCH, LENGTH, COLUMNS])


def projected(b: Builder, x: Operand) -> tuple[Operand, Operand, Operand]:
    q, k, v = (dense(b, x, seed) for seed in (0, 2, 4))
    return heads(b, q), heads(b, k, (0, 2, 3, 1)), heads(b, v)


def usual(b: Builder, x: Operand) -> Operand:
    """As BERT's exporters write it."""
    q, k, v = projected(b, x)
    scores = b.div(b.matmul(q, k), b.constant(np.float32(2)))
    mask = b.input("mask", (BATCH, 1, 1, LENGTH))
    return back(b, b.matmul(b.softmax(b.add(mask, scores), 3), v))


def scaled_before(b: Builder, x: Operand) -> Operand:
    """Query and key are scaled, and there is no mask; the key is turned by itself."""
    q, k, v = (heads(b, dense(b, x, seed)) for seed in (0, 2, 4))
    root = b.constant(np.float32(0.7))
    turned = b.mul(b.transpose(k, permutation=[0, 1, 3, 2]), root)
    return back(b, b.matmul(b.softmax(b.matmul(b.mul(q, root), turned), 3), v))


def sliced(b: Builder, x: Operand) -> Operand:
    """One product for all, split along columns."""
    joined = b.matmul(x, b.constant(drawn(COLUMNS, 3 * COLUMNS)))
    q, k, v = b.split(joined, 3, axis=2)
    scores = b.linear(b.matmul(heads(b, q), heads(b, k, (0, 2, 3, 1))), alpha=0.5)
    mask = b.input("mask", (LENGTH, LENGTH))
    return back(b, b.matmul(b.softmax(b.add(scores, mask), 3), heads(b, v)))


def picked(b: Builder, x: Operand) -> Operand:
    """One product for all, its three parts an axis of their own."""
    joined = b.matmul(x, b.constant(drawn(COLUMNS, 3 * COLUMNS)))
    parts = b.transpose(
        b.reshape(joined, [BATCH, LENGTH, 3, HEADS, WIDTH]), permutation=[2, 0, 3, 1, 4]
    )
    q, k, v = (b.gather(parts, b.constant(np.int64(i)), axis=0) for i in range(3))
    return back(b, b.scaled_dot_product_attention(q, k, v, causal_offset=0))


def by_head(b: Builder, x: Operand) -> Operand:
    """Operands come by head, and the result stays so."""
    k, v = (b.input(name, (BATCH, HEADS, LENGTH, WIDTH)) for name in "kv")
    q = heads(b, x)
    scores = b.matmul(q, b.transpose(k, permutation=[0, 1, 3, 2]))
    return b.matmul(b.softmax(scores, 3), v)


def three_axes(b: Builder, x: Operand) -> Operand:
    """All heads of all sequences are one axis."""
    q, k, v = (b.reshape(heads(b, x), [BATCH * HEADS, LENGTH, WIDTH]) for _ in range(3))
    scores = b.matmul(q, b.transpose(k, permutation=[0, 2, 1]))
    mask = b.input("mask", (BATCH * HEADS, 1, LENGTH))
    return b.matmul(b.softmax(b.add(scores, mask), 2), v)


FORMS: dict[str, Callable[[Builder, Operand], Operand]] = {
    f.__name__: f for f in (usual, scaled_before, sliced, picked, by_head, three_axes)
}


def built(form: Callable[[Builder, Operand], Operand]) -> Graph:
    b = GraphBuilder("attention")
    return b.build({"y": form(b, b.input("x", (BATCH, LENGTH, COLUMNS)))})


def fed(graph: Graph) -> dict[str, Array]:
    feeds = {n: drawn(*s.dims, seed=9 + i) for i, (n, s) in enumerate(graph.inputs.items())}
    if "mask" in feeds:
        feeds["mask"][..., -1] = -10000.0
    return feeds


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def close(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_it_becomes_one_op_and_nothing_is_moved(form: str) -> None:
    graph = built(FORMS[form])
    fused = fuse_attention(graph).check()
    assert ops(fused).count("fused_attention") == 1
    moved = {"softmax", "split", "gather"} | ({"transpose"} if form != "three_axes" else set())
    assert not moved & set(ops(fused))
    close(evaluate(fused, fed(graph))["y"], evaluate(graph, fed(graph))["y"])


def test_products_of_one_operand_are_one() -> None:
    graph = built(usual)
    merged = merge_products(fuse_bias(fuse_attention(graph))).check()
    assert ops(merged) == ["fused_matmul", "fused_attention", "reshape"]
    close(evaluate(merged, fed(graph))["y"], evaluate(graph, fed(graph))["y"])
    for node in fuse_bias(fuse_attention(graph)).nodes:
        alone = merge_products(fuse_bias(fuse_attention(graph)), frozenset({node.name}))
        assert ops(alone.check()).count("fused_matmul") == (
            2 if node.op == "fused_matmul" else 3 if node.op == "fused_attention" else 1
        )


def other_reader(b: Builder, x: Operand) -> Operand:
    q, k, v = projected(b, x)
    shares = b.softmax(b.matmul(q, k), 3)
    return b.add(back(b, b.matmul(shares, v)), b.reduce_sum(shares))


def other_axis(b: Builder, x: Operand) -> Operand:
    q, k, v = projected(b, x)
    return back(b, b.matmul(b.softmax(b.matmul(q, k), 2), v))


def scaled_after(b: Builder, x: Operand) -> Operand:
    q, k, v = projected(b, x)
    scores = b.add(b.matmul(q, k), b.input("mask", (LENGTH,)))
    return back(b, b.matmul(b.softmax(b.mul(scores, b.constant(np.float32(2))), 3), v))


def shared_keys(b: Builder, x: Operand) -> Operand:
    k, v = (b.input(name, (BATCH, 1, LENGTH, WIDTH)) for name in "kv")
    scores = b.matmul(heads(b, x), b.transpose(k, permutation=[0, 1, 3, 2]))
    return b.matmul(b.softmax(scores, 3), v)


def half(b: Builder, x: Operand) -> Operand:
    q, k, v = (b.cast(p, "float64") for p in projected(b, x))
    return b.matmul(b.softmax(b.matmul(q, k), 3), v)


@pytest.mark.parametrize("form", [other_reader, other_axis, scaled_after, shared_keys, half])
def test_what_is_something_else_stays(form: Callable[[Builder, Operand], Operand]) -> None:
    graph = built(form)
    assert ops(fuse_attention(graph)) == ops(graph)


def test_nodes_that_must_stay_stay() -> None:
    graph = built(usual)
    for node in graph.nodes:
        fused = fuse_attention(graph, frozenset({node.name}))
        if node.op in ("softmax", "div") or node.name in {graph.nodes[-3].name}:
            assert node.name in {n.name for n in fused.nodes}
            assert "fused_attention" not in ops(fused)


@pytest.mark.parametrize("form", ["usual", "picked", "by_head"])
@pytest.mark.parametrize("device", ["cpu:0", "opencl:0"])
def test_devices_agree(form: str, device: str) -> None:
    if device not in {d.id for d in xd.devices()}:
        pytest.skip("no OpenCL device here")
    graph = built(FORMS[form])
    with xd.compile(graph, device, measure=False) as session:
        assert any(step.op == "fused_attention" for step in session.plan.launches())
        close(session.run(fed(graph))["y"], evaluate(graph, fed(graph))["y"])
        assert not session.receipt.notes


def test_a_row_that_sees_nothing_is_as_softmax_has_it() -> None:
    graph = built(usual)
    feeds = fed(graph)
    feeds["mask"][0] = -math.inf
    fused = passes.run(graph)
    want = evaluate(graph, feeds)["y"]
    assert np.isnan(want[0]).all()
    np.testing.assert_allclose(evaluate(fused, feeds)["y"], want, rtol=1e-4, atol=1e-5)
    with xd.compile(graph, "cpu:0", measure=False) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_it_decomposes_into_ops_of_the_builder(form: str) -> None:
    graph = fuse_attention(built(FORMS[form]))
    node = next(n for n in graph.nodes if n.op == "fused_attention")
    parts, places = decomposed(op_call(graph, node))
    rng = np.random.default_rng(3)
    arrays = {
        i: rng.standard_normal(graph.specs[v].dims).astype(np.float32)
        for i, v in enumerate(node.operands)
    }
    feeds = {name: arrays[i] for name, i in places.items()}
    want = table.op(node.op).run(np, *(arrays[i] for i in range(len(arrays))), **node.attrs)
    close(evaluate(parts, feeds)["result.0"], want)
