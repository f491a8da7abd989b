"""``compile(precision=...)``: which kernels it permits, and what plans and receipts say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.kernels.precision import FORMATS, POLICIES, Permission
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing, emulation, measure
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.runtime.tensor import Array
from crossdock.scheduler import CostModel
from tests.fakes import cards

FASTEST_LAST = ("cublaslt.matmul", "cublaslt.matmul.tf32", "cublaslt.matmul.bfloat16")
FORMAT = {"highest": "", "high": "tf32", "fast": "bfloat16"}
N = 48


def product() -> tuple[Graph, dict[str, Array], Array]:
    """A graph of one product, its feeds, and its result in float64."""
    rng = np.random.default_rng(0)
    x, w = (rng.uniform(-1, 1, (N, N)).astype(np.float32) for _ in range(2))
    b = xd.GraphBuilder()
    graph = b.build({"y": b.matmul(b.input("x", (N, N)), b.constant(w), label="product")})
    return graph, {"x": x}, x.astype(np.float64) @ w


@pytest.fixture
def card(opencl: Any, monkeypatch: pytest.MonkeyPatch, costs: costing.CostStore) -> Iterator[str]:
    """A card on the fake cupy, on which the coarser a format is, the faster."""
    del opencl
    with cards.installed(monkeypatch):
        device = registry.open_device("cuda:0")
        (call,) = costing.op_calls(product()[0]).values()
        for kernel in emulation.candidates(call, device.info).fitting:
            place = FASTEST_LAST.index(kernel.name) if kernel.name in FASTEST_LAST else -1
            mark = (device.info.fingerprint, kernel.name, call.key())
            costs.model.record_many(*mark, [1e-3 / (place + 2)] * 3, costing.cost_work(call))
        yield device.info.id


compiled = partial(xd.compile, product()[0], measure=False)


@pytest.mark.parametrize("precision", POLICIES)
def test_the_fastest_kernel_permitted_runs(card: str, precision: str) -> None:
    _, feeds, want = product()
    with compiled(card, precision=precision) as session:
        off = np.abs(session.run(feeds)["y"] - want).max()
        (op,) = session.receipt.ops
        plan = session.plan
    rounds = FORMAT[precision]
    assert (op.rounds, op.kernel) == (rounds, f"cublaslt.matmul.{rounds}".rstrip("."))
    assert off < (2 * N * FORMATS[rounds].error if rounds else N * 1e-6)
    assert (off > 1e-4) == bool(rounds)
    assert plan.precision == precision
    assert Plan.loads(plan.dumps()) == plan
    text = plan.explain()
    assert (f"precision {precision!r}: 1 in {rounds}, 0 in the types" in text) == bool(rounds)
    assert (f"[cublaslt.matmul.{rounds}] in {rounds}" in text) == bool(rounds)


def test_explain_says_what_a_kernel_would_need(card: str) -> None:
    with compiled(card, precision="high") as session:
        text = session.plan.explain_op("product")
    assert "rounds operands to bfloat16, which needs precision='fast'" in text
    assert "needs precision='high'" not in text


def test_kernels_that_are_not_permitted_are_not_measured(card: str) -> None:
    calls = costing.op_calls(product()[0])
    counts = [
        measure.measure_ops(
            calls,
            [registry.open_device(card)],
            CostModel(),
            budget_s=60,
            permission=Permission(precision=precision),
        )
        for precision in POLICIES
    ]
    assert np.diff(counts).tolist() == [1, 1]


def test_a_plan_that_rounds_more_than_is_permitted_is_refused(card: str) -> None:
    with compiled(card, precision="high") as session:
        plan = session.plan
    with pytest.raises(PlanError, match=r"rounds operands to tf32.*needs precision='high'"):
        compiled(card, plan=plan)
    (step,) = plan.launches()
    at = plan.steps.index(step)
    lies = (*plan.steps[:at], replace(step, rounds=""), *plan.steps[at + 1 :])
    with pytest.raises(PlanError, match="damaged"):
        compiled(card, plan=replace(plan, steps=lies), precision="high")
    _, feeds, _ = product()
    with compiled(card, plan=plan, precision="fast") as session:
        session.run(feeds)
        assert session.receipt.ops[0].rounds == "tf32"


def test_a_plan_whose_kernel_loses_bits_is_refused_where_none_may_be_lost(card: str) -> None:
    b = xd.GraphBuilder()
    w = b.constant(np.ones((N, N), np.float32))
    graph = b.build({"y": b.relu(b.matmul(b.input("x", (N, N)), w))})
    passes = ["flush-subnormals"]  # which strict=True leaves out, too
    with xd.compile(graph, card, measure=False, skip_passes=passes) as session:
        plan = session.plan
    assert {step.kernel for step in plan.launches()} == {"cublaslt.fused_matmul.relu"}
    with pytest.raises(PlanError, match="loses bits that strict=True keeps; plan again"):
        xd.compile(graph, card, measure=False, skip_passes=passes, plan=plan, strict=True)


def test_sampled_checks_know_what_is_rounded(card: str) -> None:
    _, feeds, _ = product()
    with compiled(card, precision="fast", verify="sample:1.0") as session:
        session.run(feeds)
        assert session.receipt.ops[0].rounds == "bfloat16"


def test_a_device_without_such_kernels_computes_in_float32() -> None:
    _, feeds, want = product()
    with compiled("cpu:0", precision="fast") as session:
        np.testing.assert_allclose(session.run(feeds)["y"], want, rtol=0, atol=N * 1e-6)
        assert session.receipt.ops[0].rounds == ""
        assert "precision 'fast': no op is rounded" in session.plan.explain()


def test_deterministic_takes_the_best_rank_which_rounds_nothing(card: str) -> None:
    pin = xd.Constraints(pin={"product": card})
    with compiled(card, precision="fast", deterministic=True, constraints=pin) as session:
        assert session.plan.find("product").kernel == "cublaslt.matmul"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precision": "low"}, "precision='low': give one of 'highest', 'high', 'fast'"),
        ({"precision": None}, "precision=None: give one of"),
        ({"precision": "high", "strict": True}, "strict=True keeps every bit and precision='high'"),
    ],
)
def test_what_is_no_precision(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        compiled("cpu:0", **given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_permissions() -> None:
    found = emulation.candidates(
        next(iter(costing.op_calls(product()[0]).values())), registry.open_device("cpu:0").info
    ).fitting
    kernel = replace(found[0], exact=True, steady=True)
    coarse = replace(kernel, exact=False, steady=False)
    assert Permission(strict=True, same_bits=True).permitted([kernel, coarse]) == (kernel,)
    assert Permission().permitted([kernel, coarse]) == (kernel, coarse)
    for policy, formats in (("highest", 0), ("high", 1), ("fast", 2)):
        rounding = [replace(kernel, rounds=name) for name in FORMATS]
        assert len(Permission(precision=policy).permitted(rounding)) == formats


def test_a_network_of_products_is_one_graph(card: str) -> None:
    """Products with bias, ReLU, GELU and residual are launches that a graph holds, and replays."""
    rng = np.random.default_rng(1)
    b = xd.GraphBuilder()
    x = b.input("x", (8, N))

    def dense(y: Any) -> Any:
        w = b.constant(rng.uniform(-0.2, 0.2, (N, N)).astype(np.float32))
        return b.add(b.matmul(y, w), b.constant(rng.uniform(-1, 1, N).astype(np.float32)))

    hidden = b.relu(dense(x))
    graph = b.build({"y": b.add(b.gelu(dense(hidden)), b.relu(b.add(dense(hidden), hidden)))})
    feeds = {"x": rng.uniform(-1, 1, (8, N)).astype(np.float32)}
    want = evaluate(graph, feeds, dtype="float64")["y"]
    with xd.compile(graph, card, measure=False, skip_passes=["merge-products"]) as session:
        for _ in range(3):
            np.testing.assert_allclose(session.run(feeds)["y"], want, rtol=0, atol=1e-5)
        text, ops = session.plan.explain(), [s.op for s in session.plan.launches()]
    assert ops.count("fused_matmul") == 3
    assert "[cublaslt.fused_matmul.relu]" in text
    assert "not replayed" not in text, text
