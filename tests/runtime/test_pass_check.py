"""Finding the pass, and the op, that makes an answer wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime import pass_check, passes
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.errors import GraphError, StalePlan
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.pass_check import check_passes, off, on_devices
from crossdock.runtime.tensor import Array

CPU = on_devices("cpu:0", 1)


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small() -> Graph:
    """Two convolutions; the second's result is scaled by a constant expression."""
    b = GraphBuilder("small")
    x = b.input("x", (1, 8, 9, 9))
    y = b.relu(b.conv2d(x, b.constant(drawn(8, 8, 3, 3)), label="first"), label="clip")
    scale = b.add(b.constant(np.float32(2.0)), b.constant(np.float32(1.0)), label="three")
    y = b.tanh(b.conv2d(y, b.constant(drawn(8, 8, 1, 1)), label="second"), label="squash")
    return b.build({"y": b.mul(y, scale, label="scaled")})


FEEDS = {"x": drawn(1, 8, 9, 9, seed=5)}


def plant(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Graph, frozenset[str]], Graph], *, first: bool
) -> None:
    """Register a pass "wrong", the first of all or the last."""
    every = dict(passes.PASSES)
    new = {"wrong": wrong, **every} if first else {**every, "wrong": wrong}
    monkeypatch.setattr(passes, "PASSES", new)


def edited(name: str, change: Callable[[Node], Node]) -> Callable[[Graph, frozenset[str]], Graph]:
    def apply(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
        nodes = tuple(change(n) if n.name == name else n for n in graph.nodes)
        return replace(graph, nodes=nodes)

    return apply


def test_sound_passes_are_told_with_what_they_did() -> None:
    report = check_passes(small(), FEEDS, CPU)
    assert report.culprit is None
    assert report.reference == "the float64 reference"
    rows = {row.name: row for row in report.rows}
    assert list(rows) == ["", *passes.PASSES]
    assert rows["fold-constants"].changed == 1
    assert rows["fuse-epilogue"].changed >= 2
    assert rows["prune"].ops == len(passes.run(small()).nodes)
    assert rows["fuse-epilogue"].work.bytes < rows["fold-affine"].work.bytes
    assert all(row.error < 1e-5 and row.seconds >= 0 for row in report.rows)


@pytest.mark.parametrize("first", [True, False])
def test_a_pass_that_changes_the_meaning_is_named_with_the_op(
    monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    name = "clip" if first else passes.run(small()).nodes[0].name
    wrong = edited(name, lambda n: replace(n, op="neg", inputs=n.inputs[:1], attrs={}))
    if not first:  # a graph whose ops are fused: the operand of another op is put in

        def wrong(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
            node = graph.nodes[0]
            array = -graph.constants[str(node.inputs[1])]
            constants = {**graph.constants, "turned": array}
            specs = {**graph.specs, "turned": graph.specs[str(node.inputs[1])]}
            inputs = (node.inputs[0], "turned", *node.inputs[2:])
            nodes = (replace(node, inputs=inputs), *graph.nodes[1:])
            return replace(graph, nodes=nodes, constants=constants, specs=specs)

    plant(monkeypatch, wrong, first=first)
    culprit = check_passes(small(), FEEDS, CPU).culprit
    assert culprit is not None
    assert (culprit.name, culprit.op, culprit.rewrite) == ("wrong", name, True)
    assert "means something else" in str(culprit)


def test_a_constant_folded_wrongly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph, keep: frozenset[str] = frozenset()) -> Graph:
        made = passes.fold_constants(graph, keep)
        value = graph.producers()["three"].outputs[0] if "three" in graph.producers() else None
        value = value or next(n.outputs[0] for n in graph.nodes if n.name == "three")
        return replace(made, constants={**made.constants, value: np.float32([4.0]).reshape(())})

    monkeypatch.setattr(passes, "PASSES", {**passes.PASSES, "fold-constants": wrong})
    culprit = check_passes(small(), FEEDS, CPU).culprit
    assert culprit is not None
    assert (culprit.name, culprit.op) == ("fold-constants", "three")


def test_a_kernel_that_computes_a_fused_op_wrongly_is_named() -> None:
    def run(graph: Graph, feeds: pass_check.Feeds) -> tuple[pass_check.Outputs, xd.Plan]:
        """The devices, but fused convolutions come out wrong, and so does what reads them."""
        outputs, plan = CPU(graph, feeds)
        bad = any(n.op == "fused_conv2d" for n in graph.nodes)
        return {n: a + 1 if bad else a for n, a in outputs.items()}, plan

    culprit = check_passes(small(), FEEDS, run).culprit
    assert culprit is not None
    assert (culprit.name, culprit.kind, culprit.rewrite) == ("fuse-epilogue", "fused_conv2d", False)
    assert culprit.device == "cpu:0"
    assert culprit.kernel == "array" or culprit.kernel.startswith("cpu.")  # as it was measured
    assert culprit.kernel in str(culprit)


def test_an_answer_that_is_wrong_without_passes_is_no_pass_s_fault() -> None:
    def run(graph: Graph, feeds: pass_check.Feeds) -> tuple[pass_check.Outputs, xd.Plan]:
        outputs, plan = CPU(graph, feeds)
        return {n: a * 2 for n, a in outputs.items()}, plan

    culprit = check_passes(small(), FEEDS, run).culprit
    assert culprit is not None
    assert culprit.name == ""
    assert culprit.op == "first"
    assert "no pass" in str(culprit)


def test_a_graph_too_large_for_the_reference_is_compared_with_a_run_without_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pass_check, "REFERENCE_FLOPS", 0.0)
    plant(monkeypatch, edited("squash", lambda n: replace(n, op="sigmoid")), first=True)
    report = check_passes(small(), FEEDS, CPU)
    assert "without passes" in report.reference
    assert report.culprit is not None
    assert (report.culprit.name, report.culprit.op) == ("wrong", "squash")


def test_passes_that_are_left_out_are_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, edited("squash", lambda n: replace(n, op="sigmoid")), first=True)
    report = check_passes(small(), FEEDS, CPU, skip=["wrong"])
    assert report.culprit is None
    assert "wrong" not in [row.name for row in report.rows]
    with pytest.raises(GraphError, match="no pass 'nope'"):
        check_passes(small(), FEEDS, CPU, skip=["nope"])


def test_errors_are_over_the_largest_element() -> None:
    want = np.float32([[100.0, 1.0]])
    assert off(np.float32([[101.0, 1.0]]), want) == pytest.approx(0.01)
    assert off(want, want) == 0.0
    assert off(np.float32([[np.nan, 1.0]]), want) == np.inf
    assert off(np.float32([100.0, 1.0]), want) == np.inf
    nan = np.float32([np.nan, np.inf])
    assert off(nan, nan) == 0.0
    assert off(np.uint8([3]), np.uint8([4])) == 0.0, "a step of 8 bits is rounding"
    assert off(np.int64([3]), np.int64([4])) > 0.0


def test_a_graph_records_its_passes_and_a_plan_runs_by_those_it_was_made_with() -> None:
    graph = small()
    assert evaluate(graph, FEEDS).keys() == {"y"}
    with xd.compile(graph, "cpu:0", measure=False, skip_passes=["fuse-epilogue"]) as session:
        plan = xd.Plan.loads(session.plan.dumps())
        want = session.run(FEEDS)["y"]
    assert plan.passes == tuple(p for p in passes.PASSES if p != "fuse-epilogue")
    with xd.compile(graph, "cpu:0", plan=plan) as session:
        assert [s.op for s in session.plan.launches()] == [s.op for s in plan.launches()]
        np.testing.assert_array_equal(session.run(FEEDS)["y"], want)
    with pytest.raises(StalePlan, match="'prune', which is to be left out"):
        xd.compile(graph, "cpu:0", plan=plan, skip_passes=["prune"])
    other = replace(plan, passes=("gone", *plan.passes))
    with pytest.raises(StalePlan, match="passes gone, "):
        xd.compile(graph, "cpu:0", plan=other)
