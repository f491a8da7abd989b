"""Calls of cuDNN in sessions: what runs, what is said of it, and what runs in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels import cublaslt_attention
from crossdock.kernels.reference import evaluate
from crossdock.runtime import refused
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import Array, to_numpy
from tests.fakes import cudnn_fake, cupy_fake


def network() -> tuple[Graph, dict[str, Array], Array]:
    """Two convolutions, the first with a bias and a ReLU; its feeds; its result in float64."""
    rng = np.random.default_rng(0)
    first, second = (rng.uniform(-1, 1, (4, c, 3, 3)).astype(np.float32) for c in (3, 4))
    bias = rng.uniform(-1, 1, 4).astype(np.float32)
    b = xd.GraphBuilder()
    x = b.conv2d(b.input("x", (2, 3, 9, 8)), b.constant(first), bias=b.constant(bias))
    graph = b.build({"y": b.conv2d(b.relu(x), b.constant(second), padding=[1, 1, 1, 1])})
    feeds = {"x": rng.uniform(-1, 1, (2, 3, 9, 8)).astype(np.float32)}
    return graph, feeds, evaluate(graph, feeds, dtype="float64")["y"]


@pytest.fixture
def cupy(fake: cupy_fake.FakeCupy) -> Iterator[cupy_fake.FakeCupy]:
    """A card on the fake cupy, without cuDNN; what it refused is forgotten after."""
    yield fake
    refused.forget()


def check(session: Any, feeds: dict[str, Array], want: Array) -> list[str]:
    """Run often enough for a replay; return the kernels."""
    for _ in range(3):
        np.testing.assert_allclose(session.run(feeds)["y"], want, rtol=0, atol=1e-4)
    return [op.kernel for op in session.receipt.ops]


def test_a_network_is_one_graph(cupy: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn_fake.install(monkeypatch, cupy)
    graph, feeds, want = network()
    with xd.compile(graph, "cuda:0", measure=False, deterministic=True) as session:
        ran = check(session, feeds, want)
        assert ran == ["cudnn.fused_conv2d.relu", "cudnn.conv2d"]
        assert "not replayed" not in session.plan.explain()


def test_where_cudnn_refuses_the_next_candidate_runs(
    cupy: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    dnn = cudnn_fake.install(monkeypatch, cupy)
    dnn.refuse = "No valid engine configs for Conv_"
    graph, feeds, want = network()
    with xd.compile(graph, "cuda:0", measure=False, deterministic=True) as session:
        ran = check(session, feeds, want)
        told = session.receipt.recoveries
    assert all(kernel.startswith("grid.") for kernel in ran)
    assert [(r.device, r.action) for r in told] == [("cuda:0", "next candidate")] * 2
    assert all("Declined: cuDNN has no 3x3 convolution" in r.error for r in told)
    assert all("No valid engine configs for Conv_" in r.log for r in told)


def test_where_it_is_missing_the_explanation_says_what_to_install(
    cupy: cupy_fake.FakeCupy,
) -> None:
    del cupy
    graph, feeds, want = network()
    with xd.compile(graph, "cuda:0", measure=False) as session:
        assert all(kernel.startswith("grid.") for kernel in check(session, feeds, want))
        named = [step.name for step in session.plan.launches()]
        text = "".join(session.plan.explain_op(name) for name in named)
    assert "pip install 'crossdock[cudnn]'" in text


# --- attention and normalisations -----------------------------------------------------------------


def block(dtype: str) -> tuple[Graph, dict[str, Array], Array]:
    """A normalisation by layers, attention under a mask, and one by channels."""
    kind = to_numpy(dtype)
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Array:
        return rng.uniform(-1, 1, shape).astype(kind)

    b = xd.GraphBuilder()
    x = b.input("x", (2, 4, 6, 8), dtype)
    x = b.layer_normalization(x, scale=b.constant(drawn(8)), bias=b.constant(drawn(8)), axes=[3])
    mask = drawn(2, 1, 1, 6)
    mask[1, ..., 2:] = -np.inf
    y = b.scaled_dot_product_attention(x, x, x, bias=b.constant(mask), causal_offset=0)
    mean, variance = b.constant(drawn(4)), b.constant(np.abs(drawn(4)))
    graph = b.build({"y": b.batch_normalization(y, mean, variance)})
    feeds = {"x": drawn(2, 4, 6, 8)}
    return graph, feeds, evaluate(graph, feeds, dtype="float64")["y"]


def blocks(session: Any, feeds: dict[str, Array], want: Array) -> list[str]:
    """Run often enough for a replay; return the kernels."""
    for _ in range(3):
        got = session.run(feeds)["y"].astype(np.float64)
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-3 * np.abs(want).max())
    return [op.kernel for op in session.receipt.ops]


def test_a_block_is_one_graph(cupy: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn_fake.install(monkeypatch, cupy)
    graph, feeds, want = block("float16")
    with xd.compile(graph, "cuda:0", measure=False, deterministic=True) as session:
        ran = blocks(session, feeds, want)
        assert "not replayed" not in session.plan.explain()
    assert ran[:2] == ["cudnn.layer_normalization", "cudnn.attention"]


def test_where_every_bit_counts_none_is_taken_that_loses_some(
    cupy: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn_fake.install(monkeypatch, cupy)
    graph, feeds, want = block("float16")
    with xd.compile(graph, "cuda:0", measure=False, strict=True) as session:
        ran = blocks(session, feeds, want)
    inexact = {"cudnn.layer_normalization", "cudnn.attention", "cublaslt.attention.halves"}
    assert not inexact & set(ran)


def test_float32_attention_stays_with_kernels_of_ours(
    cupy: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    dnn = cudnn_fake.install(monkeypatch, cupy)
    graph, feeds, want = block("float32")
    with xd.compile(graph, "cuda:0", measure=False, deterministic=True) as session:
        ran = blocks(session, feeds, want)
        name = next(s.name for s in session.plan.launches() if "attention" in s.name)
        assert "no float32 kernel" in session.plan.explain_op(name)
    assert not [kernel for kernel in ran if kernel == "cudnn.attention"]
    assert {g.engine.name for g in dnn.graphs if g.engine} <= {"plain", "pointwise"}


def test_what_cudnn_refuses_of_a_block_runs_all_the_same(
    cupy: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    dnn = cudnn_fake.install(monkeypatch, cupy)
    dnn.refuse = "No valid engine configs for Sdpa_"
    graph, feeds, want = block("float16")
    with xd.compile(graph, "cuda:0", measure=False, deterministic=True) as session:
        ran = blocks(session, feeds, want)
        told = session.receipt.recoveries
    assert not [kernel for kernel in ran if kernel.startswith("cudnn.")]
    assert ran[1] == "cublaslt.attention.halves"
    assert {r.action for r in told} == {"next candidate"}
    assert any("cuDNN has no attention of 2x4x6x8" in r.error for r in told)


def attend_in_bfloat16(**options: Any) -> tuple[list[tuple[str, str]], list[str]]:
    """The devices and kernels that ran attention, pinned to the card; what was done about errors.

    No kernel of ours has it in that type.
    """
    kind = to_numpy("bfloat16")
    feeds = {"x": np.random.default_rng(0).uniform(-1, 1, (2, 4, 6, 8)).astype(kind)}
    b = xd.GraphBuilder()
    x = b.input("x", (2, 4, 6, 8), "bfloat16")
    graph = b.build({"y": b.scaled_dot_product_attention(x, x, x, causal_offset=0)})
    want = evaluate(graph, feeds, dtype="float64")["y"]
    (node,) = graph.nodes
    pinned = xd.Constraints(pin={node.name: "cuda:0"})
    with xd.compile(graph, measure=False, constraints=pinned, **options) as session:
        got = session.run(feeds)["y"].astype(np.float64)
        ran = [(op.device, op.kernel) for op in session.receipt.ops]
        told = [r.action for r in session.receipt.recoveries]
    np.testing.assert_allclose(got, want, rtol=0, atol=8e-3)
    return ran, told


def test_what_cudnn_refuses_is_cublas_lts_next(
    cupy: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    dnn = cudnn_fake.install(monkeypatch, cupy)
    assert attend_in_bfloat16() == ([("cuda:0", "cudnn.attention")], [])
    refused.forget()
    dnn.refuse = "No valid engine configs for Sdpa_"
    ran, told = attend_in_bfloat16()
    assert ran == [("cuda:0", "cublaslt.attention.halves")]
    assert told == ["next candidate"]


@pytest.mark.parametrize("strict", [False, True])
def test_an_op_that_only_libraries_have_stays_on_the_card(
    cupy: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    """It runs through its parts where cuDNN declines and scores have no room, or neither may."""
    dnn = cudnn_fake.install(monkeypatch, cupy)
    if not strict:
        dnn.refuse = "No valid engine configs for Sdpa_"
        monkeypatch.setattr(cublaslt_attention, "MOST_BYTES", 0)
    ran, _ = attend_in_bfloat16(strict=strict)
    assert ran == [("cuda:0", "emulated")]


def test_candidates_are_measured_against_each_other(
    cupy: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN's is timed beside ours, whichever wins."""
    cudnn_fake.install(monkeypatch, cupy)
    graph, feeds, want = block("float16")
    with xd.compile(graph, "cuda:0") as session:
        blocks(session, feeds, want)
        told = [session.plan.explain_op(step.name) for step in session.plan.launches()]
    ours = (
        "grid.layer_normalization",
        "cublaslt.attention.halves",
        "grid.batch_normalization",
    )
    theirs = ("cudnn.layer_normalization", "cudnn.attention", "cudnn.batch_normalization")
    for text, names in zip(told, zip(ours, theirs, strict=True), strict=True):
        for name in names:
            assert re.search(rf"cuda:0 {name}: .*\(measured\)", text), (name, text)
