"""Builds and uploads over the expected runs: which plan pays, and from how many runs on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime import builds, costing
from crossdock.runtime.degrade import plan_best
from crossdock.runtime.graph import Graph
from crossdock.runtime.horizon import price
from crossdock.runtime.plan import Plan
from crossdock.runtime.planner import Options
from crossdock.runtime.target import Target
from crossdock.scheduler import DeviceRates, LinkModel
from tests.runtime.test_planner import CPU, A, target, where

QUICK, SLOW = DeviceRates({"*": 1e10}, 1e11, 1e-7), DeviceRates({"*": 1e9}, 1e11, 1e-7)


def products(length: int = 4, size: int = 64) -> Graph:
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("products")
    y = b.input("x", (size, size))
    for i in range(length):
        y = b.matmul(y, b.constant(rng.random((size, size)).astype(np.float32)), label=f"m{i}")
    return b.build({"y": y})


def machine(graph: Graph, build_s: float, link: float = 1e12) -> Target:
    """A quick device whose kernels take ``build_s`` to build, and a slow host."""
    on = target((CPU, SLOW), (A, QUICK), link=LinkModel(1e-7, ((1.0, link),)))
    for call in costing.op_calls(graph).values():
        for offer in costing.offers(call, [A], on.model).best.values():
            builds.record(on.model, (A.fingerprint, offer.kernel.name, call.key()), build_s)
    return on


def plan_for(graph: Graph, on: Target, runs: int) -> Plan:
    return plan_best(graph, on, Options(expected_runs=runs), split=False).plan


@pytest.mark.parametrize(
    ("build_s", "link", "runs"), [(0.05, 1e12, 5000), (1e-9, 2e7, 150)], ids=["build", "upload"]
)
def test_one_run_and_many_have_different_plans_and_a_crossover(
    build_s: float, link: float, runs: int
) -> None:
    graph = products()
    on = machine(graph, build_s, link)
    few, many = plan_for(graph, on, 1), plan_for(graph, on, runs)
    assert set(where(few).values()) == {"cpu:0"}
    assert set(where(many).values()) == {A.id}
    at = few.horizon.crossover
    assert at is not None
    assert at == pytest.approx(many.horizon.crossover)
    # What the two take in all crosses where they say.
    one, other = price(few, graph, on), price(many, graph, on)
    assert one.each(round(at * 0.9)) < other.each(round(at * 0.9))
    assert one.each(round(at * 1.1) + 1) > other.each(round(at * 1.1) + 1)
    # And plans change there.
    assert where(plan_for(graph, on, max(1, int(at * 0.8)))) == where(few)
    assert where(plan_for(graph, on, int(at * 1.3) + 1)) == where(many)
    assert f"this plan is for up to {at:.3g} runs, else all on {A.id}" in few.explain()
    assert f"this plan is for from {at:.3g} runs, else all on cpu:0" in many.explain()


def test_a_plans_prediction_is_of_a_run_by_itself() -> None:
    graph = products()
    on = machine(graph, 0.05)
    plan = plan_for(graph, on, 1000)
    assert plan.predicted == pytest.approx(price(plan, graph, on).run, rel=1e-3)
    assert plan.horizon.builds == pytest.approx(0.05)  # the ops share one kernel
    assert plan.horizon.sources == "measured"


def test_what_is_built_already_counts_as_nothing() -> None:
    graph = products()
    on = machine(graph, 0.05)
    marks = {
        (A.fingerprint, offer.kernel.name, call.key())
        for call in costing.op_calls(graph).values()
        for offer in costing.offers(call, [A], on.model).best.values()
    }
    plan = plan_for(graph, replace(on, built=frozenset(marks)), 1)
    assert set(where(plan).values()) == {A.id}
    assert plan.horizon.builds == 0.0
    assert plan.horizon.sources == "built"


def test_unknown_builds_are_said_to_be_unknown() -> None:
    on = target((CPU, SLOW), (A, QUICK))
    plan = plan_for(products(), on, 1000)
    assert plan.horizon.builds == 0.0
    assert "kernels 0.000 ms (unknown)" in plan.explain()


def test_other_shapes_say_what_a_build_takes() -> None:
    on = machine(products(), 0.05)
    other = products(size=48)
    plan = plan_for(other, on, 1_000_000)
    assert plan.horizon.sources == "fitted"
    assert plan.horizon.builds == pytest.approx(0.05)


def test_builds_are_measured_once_a_process(costs: costing.CostStore) -> None:
    shape = (37, 41)  # which no other test builds for
    b = xd.GraphBuilder("odd")
    x = b.input("x", shape)
    graph = b.build({"y": b.softmax(b.matmul(x, b.transpose(x)), axis=1)})
    xd.compile(graph, "cpu:0", measure=5.0).close()
    kept = [v for _, v in costs.model.content.kernels if v.startswith("build ")]
    assert kept
    samples = {
        k: len(s.seconds)
        for (_, v), shapes in costs.model.content.kernels.items()
        for k, s in shapes.items()
        if v in kept
    }
    assert set(samples.values()) == {1}
