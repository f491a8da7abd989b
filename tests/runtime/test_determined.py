"""``deterministic=True``: the same kernels and bits each time, and with ``strict`` wherever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.runtime import costing
from crossdock.runtime.calls import op_calls
from crossdock.runtime.differential.draw import draw
from crossdock.runtime.emulation import candidates
from crossdock.runtime.errors import NoPlacement, PlanError
from crossdock.runtime.graph import Graph

PLACES: list[tuple[list[str], int]] = [
    (["cpu:0"], 1),
    (["cpu:0"], 2),
    (["cpu:0", "opencl:0"], 2),
    (["opencl:0"], 1),
]
Feeds = dict[str, Any]


def places() -> list[tuple[list[str], int]]:
    there = {info.id for info in registry.devices()}
    return [(ids, n) for ids, n in PLACES if there.issuperset(ids)]


def floats(*shape: int) -> Any:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def bits(graph: Graph, feeds: Feeds, ids: list[str], threads: int, **options: Any) -> list[Any]:
    given = {"deterministic": True, **options}
    with xd.compile(graph, ids, threads=threads, **given) as session:
        made = [session.run(feeds) for _ in range(2)]
    return [[np.ascontiguousarray(v).tobytes() for v in one.values()] for one in made]


def built(op: str) -> tuple[Graph, Feeds]:
    """Graphs with sums long enough to be shared among threads."""
    b = xd.GraphBuilder()
    if op == "gemm":
        x, y = b.input("x", (65, 700)), b.input("y", (700, 300))
        return b.build({"z": b.gemm(x, y)}), {"x": floats(65, 700), "y": floats(700, 300)}
    if op == "lstm":
        x = b.input("x", (20, 4, 64))
        weights = [b.constant(floats(1, 256, 64)) for _ in range(2)]
        return b.build({"z": b.lstm(x, *weights, 20, 64)[0]}), {"x": floats(20, 4, 64)}
    if op == "conv":
        x, w = b.input("x", (1, 64, 28, 28)), b.constant(floats(64, 64, 3, 3))
        made = b.relu(b.conv2d(x, w, padding=[1, 1, 1, 1]))
        return b.build({"z": made}), {"x": floats(1, 64, 28, 28)}
    x = b.input("x", (3, 100_501))
    return b.build({"z": b.reduce_sum(x), "s": b.softmax(x, 1)}), {"x": floats(3, 100_501)}


def test_random_graphs_have_the_same_bits_wherever_they_run() -> None:
    moved = 0
    for seed in range(12):
        recipe = draw(seed)
        graph, _ = recipe.build()
        found = [bits(graph, recipe.feeds(), *place, strict=True) for place in places()]
        assert all(one == found[0][0] for runs in found for one in runs), seed
        with xd.compile(graph, "opencl:0", deterministic=True, strict=True) as session:
            moved += any(step.device != "cpu:0" for step in session.plan.launches())
    assert moved


@pytest.mark.slow
def test_many_random_graphs_have_the_same_bits_wherever_they_run() -> None:
    for seed in range(1000, 1200):
        recipe = draw(seed)
        graph, _ = recipe.build()
        found = [bits(graph, recipe.feeds(), *place, strict=True) for place in places()]
        assert all(one == found[0][0] for runs in found for one in runs), seed


@pytest.mark.parametrize("op", ["gemm", "lstm", "conv", "sums"])
def test_long_sums_do_not_hang_on_threads_or_devices(op: str) -> None:
    graph, feeds = built(op)
    found = [bits(graph, feeds, *place, strict=True) for place in [*places(), (["cpu:0"], 3)]]
    assert all(one == found[0][0] for runs in found for one in runs)


@pytest.mark.parametrize("ids", [["cpu:0"], ["cpu:0", "opencl:0"]])
def test_what_was_measured_does_not_tell(ids: list[str]) -> None:
    graph, feeds = built("conv")
    with xd.compile(graph, ids, deterministic=True) as session:
        before, first = session.plan.digest(), session.run(feeds)["z"].tobytes()
        model = costing.store().model
        for info in (session.devices[name].info for name in session.devices):
            for call in op_calls(session.ready().program.graph).values():
                for kernel in candidates(call, info).fitting[1:]:
                    model.record(info.fingerprint, kernel.name, call.key(), 1e-9)
        session.profile(feeds)
    with xd.compile(graph, ids, deterministic=True) as session:
        assert session.ready().replan is None
        assert session.plan.digest() == before
        assert session.run(feeds)["z"].tobytes() == first


def test_a_pin_tells_neither_in_fusion_nor_in_bits() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (64, 64))
    turned = b.transpose(b.add(b.mul(x, x), x), permutation=[1, 0])
    graph = b.build({"y": b.concat([turned, x], 0)})
    feeds = {"x": floats(64, 64)}
    free = bits(graph, feeds, ["cpu:0", "opencl:0"], 2, strict=True)
    pin = xd.Constraints(pin={"concat*": "opencl:0"})
    assert bits(graph, feeds, ["cpu:0", "opencl:0"], 2, strict=True, constraints=pin) == free


def test_what_cannot_be_had_is_refused() -> None:
    graph, _ = built("gemm")
    pin = xd.Constraints(pin={"*": "opencl:0"})
    with pytest.raises(NoPlacement, match="may differ from the host's"):
        xd.compile(graph, deterministic=True, strict=True, constraints=pin)
    with pytest.raises(PlanError, match="search"):
        xd.compile(graph, "cpu:0", deterministic=True, search=True)
    with pytest.raises(PlanError, match="objective"):
        xd.compile(graph, "cpu:0", deterministic=True, objective="throughput")
    with pytest.raises(PlanError, match="deterministic=1"):
        xd.compile(graph, "cpu:0", deterministic=1)  # type: ignore[arg-type]
    with xd.compile(graph, "cpu:0", deterministic=True) as session:
        plan = session.plan
    with pytest.raises(PlanError, match="leave out plan"):
        xd.compile(graph, "cpu:0", deterministic=True, strict=True, plan=plan)


def test_a_budget_that_only_parts_fit_in_is_refused() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (512, 64))
    wide = b.softmax(b.matmul(x, b.constant(floats(64, 4096))), 1)
    graph = b.build({"y": b.matmul(wide, b.constant(floats(4096, 64)))})
    with xd.compile(graph, "cpu:0", deterministic=True) as session:
        whole = session.plan.devices[0].peak_bytes
    budget = xd.Constraints(memory={"cpu:0": whole * 0.7})
    with xd.compile(graph, "cpu:0", deterministic=True, constraints=budget) as session:
        assert session.plan.rungs
    with pytest.raises(PlanError, match="only with ops split"):
        xd.compile(graph, "cpu:0", deterministic=True, strict=True, constraints=budget)
