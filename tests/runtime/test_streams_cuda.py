"""Weights that each run brings to a card that is not here: the fake cupy checks every use of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices.cuda_memory import is_pinned
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing
from crossdock.runtime.errors import MemoryBudget
from crossdock.runtime.graph import Graph
from tests.fakes import cards
from tests.runtime.conftest import Machine
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_executor import ADVERSARIAL, check_runs
from tests.runtime.test_streams import brought, squeezed, weighted_graphs

pytestmark = pytest.mark.usefixtures("no_hang")
CARD = "cuda:0"


@pytest.fixture
def card(opencl: Any, monkeypatch: pytest.MonkeyPatch, costs: costing.CostStore) -> Iterator[str]:
    """A card on the fake cupy, which runs kernels on the OpenCL device."""
    del opencl, costs
    with cards.installed(monkeypatch):
        yield CARD


@settings(ADVERSARIAL, max_examples=4)
@given(weighted_graphs(), st.floats(0.2, 0.9), st.integers(0, 1 << 16))
def test_answers_hold_and_nothing_is_used_wrongly(
    machine: Machine, card: str, graph: Graph, share: float, seed: int
) -> None:
    assert machine is not None
    try:
        session = squeezed(graph, card, share, runs_at_once=2)
    except MemoryBudget:
        return
    with session:
        check_runs(session, graph, seed)


def gelus(depth: int = 6, side: int = 32) -> Graph:
    """Two launches an op and its neighbours, so that there are graphs to replay between waits."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("replayed")
    y = b.input("x", (3, side))
    for i in range(depth):
        w = b.constant(rng.integers(-1, 2, (side, side)).astype(np.float32))
        y = b.clamp(b.matmul(y, w, label=f"m{i}"), min_value=-2, max_value=2, label=f"c{i}")
        y = b.reverse(y, axes=[1], label=f"r{i}")
    return b.build({"y": y})


def test_launches_between_weights_are_replayed(machine: Machine, card: str) -> None:
    assert machine is not None
    graph = gelus()
    with squeezed(graph, card, 0.6) as session:
        plan = session.plan
        assert plan.streamed
        assert any(s.replay.startswith("replayed in graph") for s in plan.launches())
        for seed in range(4):
            feeds = whole_feeds(graph, seed)
            np.testing.assert_array_equal(session.run(feeds)["y"], evaluate(graph, feeds)["y"])
        program = session.ready().program
        import cupy

        assert program.streamed
        assert all(is_pinned(cupy, array) for array in program.streamed.values())
        parts = [
            part
            for commands in session.ready().pool.free[0].commands.values()
            for part in commands.parts  # type: ignore[attr-defined]
        ]
        assert any(getattr(part, "replayed", False) for part in parts)
        assert session.receipt.streamed == {f"cpu:0->{card}": brought(plan, card)}
