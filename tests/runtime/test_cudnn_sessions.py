"""Convolutions by cuDNN in sessions: what runs, what is said of it, and what runs in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing, refused
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import Array
from tests.fakes import cards, cudnn_fake, cupy_fake


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
def cupy(
    opencl: Any, monkeypatch: pytest.MonkeyPatch, costs: costing.CostStore
) -> Iterator[cupy_fake.FakeCupy]:
    """A card on the fake cupy, without cuDNN."""
    del opencl, costs
    with cards.installed(monkeypatch) as fake:
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
