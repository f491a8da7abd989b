"""Staged graphs in sessions: shapes that hang on values, host ops, what is kept and said."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime import staged as staged_module
from crossdock.runtime.errors import (
    ExecutionError,
    FeedError,
    PlanError,
    ShapeError,
    Timeout,
    UnsupportedModel,
)
from crossdock.runtime.explain import explain_all
from crossdock.runtime.loaders import onnx_staged
from crossdock.runtime.loaders.onnx_host import HostCall, host_op
from crossdock.runtime.prepare import prepare

F, INT, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
DOMAIN = "crossdock.testing"


@host_op("Where1", domain=DOMAIN)
def where_positive(call: HostCall) -> Any:
    """Places of the positive elements of a vector."""
    return np.flatnonzero(call.array() > 0)


@host_op("Fails", domain=DOMAIN)
def fails(call: HostCall) -> Any:
    raise ZeroDivisionError("nothing to divide")


@host_op("Sleeps", domain=DOMAIN)
def sleeps(call: HostCall) -> Any:
    threading.Event().wait(0.2)
    return call.array()


def node(op: str, inputs: str, outputs: str, domain: str = "", **attrs: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, name=op, **attrs)


def info(name: str, dtype: int = F, shape: Any = None) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def load(nodes: list[Any], inputs: list[Any], outputs: list[str], **constants: Any) -> xd.Graph:
    graph = helper.make_graph(
        nodes,
        "model",
        inputs,
        [info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return xd.load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def reshaping() -> xd.Graph:
    """A shape that is an input, and one that is computed: 2 x, reshaped, then by half of it."""
    return load(
        [
            node("Add", "x x", "d"),
            node("Reshape", "d shape", "r"),
            node("Exp", "r", "e"),
            node("Div", "shape two", "half"),
            node("Tile", "e half", "y"),
        ],
        [info("x", F, [6]), info("shape", INT, [2])],
        ["y"],
        two=np.array([2, 1]),
    )


def selecting() -> xd.Graph:
    """The positive elements of -x, doubled: their number hangs on the values."""
    return load(
        [
            node("Neg", "x", "n"),
            node("Where1", "n", "at", DOMAIN),
            node("Gather", "n at", "g", axis=0),
            node("Add", "g g", "y"),
        ],
        [info("x", F, ["n"])],
        ["y"],
    )


X = np.array([1, -2, 3, -4, 5, -6], np.float32)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that are planned."""
    seen: list[str] = []

    def counting(graph: xd.Graph, *rest: Any, **options: Any) -> Any:
        seen.append(graph.name)
        return prepare(graph, *rest, **options)

    monkeypatch.setattr(staged_module, "prepare", counting)
    return seen


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is converted."""
    seen: list[str] = []
    convert = onnx_staged.convert_stage

    def counting(model: Any, scope: Any, *rest: Any) -> Any:
        seen.append(scope.name)
        return convert(model, scope, *rest)

    monkeypatch.setattr(onnx_staged, "convert_stage", counting)
    return seen


def compiled(graph: xd.Graph, devices: Any = "cpu:0", **options: Any) -> xd.Session:
    return xd.compile(graph, devices, measure=False, threads=1, **options)


@pytest.mark.parametrize("devices", ["cpu:0", "opencl:0"])
def test_shapes_that_are_values(devices: str) -> None:
    with compiled(reshaping(), devices) as session:
        for shape in ([2, 3], [6, 1], [4, -1], [2, 3]):
            y = np.exp((X + X).reshape(shape if shape != [4, -1] else (2, 3)))
            if shape == [4, -1]:
                with pytest.raises((ShapeError, xd.Error), match="Reshape"):
                    session.run({"x": X, "shape": np.array(shape)})
                continue
            y = np.tile(y, (shape[0] // 2, shape[1]))
            got = session.run({"x": X, "shape": np.array(shape)})
            np.testing.assert_allclose(got["y"], y, rtol=1e-5)


def in_function(nodes: list[Any], inputs: list[str], outputs: list[str]) -> xd.Graph:
    """A model that is one call of a local function, and a node behind it."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    called = helper.make_function("local", "Called", inputs, outputs, nodes, imports)
    graph = helper.make_graph(
        [node("Called", "x shape", "r", "local"), node("Neg", "r", "y")],
        "model",
        [info("x", F, [6]), info("shape", INT, [2])],
        [info("y")],
    )
    model = helper.make_model(
        graph,
        opset_imports=[*imports, helper.make_opsetid("local", 1)],
        functions=[called],
        ir_version=8,
    )
    return xd.load(model)


def test_values_in_local_functions() -> None:
    """A value that is fed, one that is computed within, a host op, and a branch by a value."""
    thens = helper.make_graph([node("Transpose", "e", "t")], "then", [], [info("t")])
    elses = helper.make_graph([node("Abs", "e", "a")], "else", [], [info("a")])
    graph = in_function(
        [
            node("Reshape", "x shape", "d"),
            node("Where1", "x", "at", DOMAIN),
            node("Size", "at", "count"),
            node("Cast", "count", "factor", to=F),
            node("Exp", "d", "grown"),
            node("Mul", "grown factor", "e"),
            node("ReduceSum", "x", "total", keepdims=0),
            helper.make_node("Constant", [], ["zero"], value_float=0.0),
            node("Greater", "total zero", "up"),
            node("If", "up", "r", then_branch=thens, else_branch=elses),
        ],
        ["x", "shape"],
        ["r"],
    )
    with compiled(graph) as session:
        for x in (X, -X):
            for shape in ((2, 3), (6, 1)):
                e = 3 * np.exp(x.reshape(shape))
                want = -(e.T if x.sum() > 0 else e)
                feeds = {"x": x, "shape": np.array(shape)}
                np.testing.assert_allclose(session.run(feeds)["y"], want, rtol=1e-5)
                np.testing.assert_allclose(evaluate(graph, feeds)["y"], want, rtol=1e-5)
        assert "Called/Where1" in session.receipt.devices


def test_a_second_run_converts_and_plans_nothing(prepared: list[str], converted: list[str]) -> None:
    feeds = {"x": X, "shape": np.array([2, 3])}
    with compiled(reshaping()) as session:
        first = session.run(feeds)["y"]
        counts = len(prepared), len(converted)
        again = session.run({**feeds, "x": X + 1})["y"]
        assert (len(prepared), len(converted)) == counts
        np.testing.assert_allclose(again, first * np.exp(2), rtol=1e-5)
        session.run({"x": X, "shape": np.array([3, 2])})
        assert len(converted) > counts[1]


def test_nothing_runs_for_a_value_that_is_fed(prepared: list[str]) -> None:
    graph = load(
        [node("Reshape", "x shape", "y")], [info("x", F, [6]), info("shape", INT, [2])], "y"
    )
    with compiled(graph) as session:
        assert not prepared
        session.run({"x": X, "shape": np.array([3, 2])})
        assert prepared == ["model"]


def test_a_graph_without_dynamic_parts_is_not_staged() -> None:
    graph = load(
        [node("Shape", "x", "s"), node("Reshape", "x s", "r"), node("Exp", "r", "y")],
        [info("x", F, [2, 3])],
        ["y"],
    )
    assert graph.staged is None
    assert [n.op for n in graph.nodes] == ["exp"]


def test_late_nodes_that_no_output_needs_are_forgotten() -> None:
    graph = load(
        [node("Exp", "x", "y"), node("Where1", "y", "at", DOMAIN), node("Neg", "at", "z")],
        [info("x", F, [6])],
        ["y"],
    )
    assert graph.staged is None


@given(values=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=9))
@settings(max_examples=15, deadline=None)
def test_results_whose_size_hangs_on_values(values: list[float]) -> None:
    x = np.array(values, np.float32)
    wanted = -2 * x[x < 0]
    np.testing.assert_array_equal(SELECTING.run({"x": x})["y"], wanted)
    exact = evaluate(GRAPH.bind(shapes={"x": x.shape}), {"x": x}, dtype="float64")["y"]
    np.testing.assert_array_equal(exact, wanted)


GRAPH = selecting()
SELECTING = compiled(GRAPH)


@pytest.fixture
def session() -> Iterator[xd.Session]:
    with compiled(selecting(), shapes={"x": (6,)}) as made:
        yield made


def test_plan_estimate_and_receipt_are_of_the_last_run(session: xd.Session) -> None:
    for ask in (lambda: session.plan, session.estimate, lambda: session.bind({"x": (6,)})):
        with pytest.raises(PlanError, match=r"'model' runs in stages.*call run first"):
            ask()
    with pytest.raises(PlanError, match="call run first"):
        _ = session.receipt
    session.run({"x": X})
    plan = session.plan
    assert [s.op for s in plan.launches()] == ["neg", "Where1", "gather", "add"]
    assert [s.index for s in plan.steps] == list(range(len(plan.steps)))
    host = plan.launches()[1]
    assert (host.device, host.kernel, host.source) == ("cpu:0", "host", "measured")
    assert "no form in the IR" in plan.explain_op("Where1")
    said = explain_all(plan, 0.0)
    assert [e.name for e in said] == [s.name for s in plan.launches()]
    for step, found in zip(plan.launches(), said, strict=True):
        chosen = [(c.device, c.kernel) for c in found.candidates if c.chosen]
        assert chosen == ([] if step is host else [(step.device, step.kernel)])
    assert xd.Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    estimate = session.estimate()
    assert 0 < estimate.low <= estimate.seconds <= estimate.high
    assert estimate.peak_bytes["cpu:0"] > 0
    receipt = session.receipt
    ops = {o.name: o for o in receipt.ops}
    assert ops["Where1"].kernel == "host"
    assert ops["Where1"].predicted is None
    assert ops["Where1"].measured > 0
    assert ops["Where1"].physical_id == ops["Neg"].physical_id
    assert receipt.notes == ("Where1 (Where1) ran on the host: the operator has no form in the IR",)
    assert receipt.measured > 0
    json.dumps(receipt.to_json())


def test_constraints_may_name_ops_of_any_stage() -> None:
    rules = xd.Constraints(pin={"Add": "opencl:0"}, forbid={"Neg": "opencl:0"})
    with compiled(selecting(), ["cpu:0", "opencl:0"], constraints=rules) as session:
        np.testing.assert_array_equal(session.run({"x": X})["y"], [4, 8, 12])
        where = {o.name: o.device for o in session.receipt.ops}
    assert where["Add"] == "opencl:0"
    assert where["Neg"] == where["Where1"] == "cpu:0"
    assert session.receipt.links["opencl:0->cpu:0"] == 12
    assert session.receipt.transfers["opencl:0->cpu:0"].copies >= 1


def test_profiles_span_stages_and_host_ops(session: xd.Session) -> None:
    outcome = session.profile({"x": X})
    labels = [s.label for s in outcome.spans["cpu:0/compute"]]
    assert labels == ["Neg", "Where1", "Gather", "Add"]
    assert all(o.measured is not None for o in session.receipt.ops)


async def test_submitted_runs(session: xd.Session) -> None:
    got = await session.submit({"x": X})
    np.testing.assert_array_equal(got["y"], [4, 8, 12])


def test_threads_with_values_of_their_own() -> None:
    """Several threads, each with its shapes and values, on one session."""
    with compiled(reshaping(), runs_at_once=2) as session, ThreadPoolExecutor(6) as pool:

        def run(at: int) -> None:
            shape = [(2, 3), (6, 1), (2, 3)][at % 3]
            x = X + at
            y = np.tile(np.exp((x + x).reshape(shape)), (shape[0] // 2, shape[1]))
            got = session.run({"x": x, "shape": np.array(shape)})["y"]
            np.testing.assert_allclose(got, y, rtol=1e-4)

        list(pool.map(run, range(30)))


def test_kept_stages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_module, "STAGES_KEPT", 3)
    monkeypatch.setattr(onnx_staged, "STAGES_KEPT", 4)
    graph = load(
        [node("Reshape", "x shape", "y")], [info("x", F, [24]), info("shape", INT, [2])], "y"
    )
    x = np.arange(24, dtype=np.float32)
    with compiled(graph) as session:
        for rows in (1, 2, 3, 4, 6, 8, 12, 24, 1):
            got = session.run({"x": x, "shape": np.array([rows, 24 // rows])})["y"]
            assert got.shape == (rows, 24 // rows)
        (ready,) = session._plans.kept.values()
        assert len(ready) == 3
        assert len(ready._stages.kept) == 4


def test_a_host_op_that_fails_names_the_node() -> None:
    graph = load([node("Fails", "x", "y", DOMAIN)], [info("x", F, [6])], ["y"])
    with compiled(graph) as session:
        wanted = r"'Fails' \(crossdock.testing.Fails\) failed on the host: ZeroDivisionError"
        with pytest.raises(ExecutionError, match=wanted):
            session.run({"x": X})


def test_what_a_later_stage_cannot_convert_is_said_when_it_is_known() -> None:
    graph = load(
        [node("Where1", "x", "at", DOMAIN), node("LpNormalization", "at", "y", p=5)],
        [info("x", F, [6])],
        ["y"],
    )
    with compiled(graph) as session, pytest.raises(xd.Error, match="LpNormalization"):
        session.run({"x": X})


def test_a_deadline_holds_between_steps() -> None:
    nodes = [node("Sleeps", "x", "a", DOMAIN), node("Sleeps", "a", "y", DOMAIN)]
    with compiled(load(nodes, [info("x", F, [6])], ["y"])) as session:
        with pytest.raises(Timeout, match=r"'model' not done after 0.05 s"):
            session.run({"x": X}, timeout=0.05)
        np.testing.assert_array_equal(session.run({"x": X})["y"], X)


def test_feeds_are_checked(session: xd.Session) -> None:
    with pytest.raises(FeedError, match="'x' is not fed"):
        session.run({})
    loose = compiled(load([node("Neg", "x", "y")], [info("x", F)], ["y"]))
    with pytest.raises(FeedError, match=r"input 'x' is not fed.*x: tensor\(float32\)"):
        loose.run({})
    with pytest.raises(FeedError, match="no input is named 'z'"):
        loose.run({"x": X, "z": X})
    with pytest.raises(FeedError, match="feeds maps"):
        loose.run([X])  # type: ignore[arg-type]
    for x in (X, X.reshape(2, 3), np.float32(2)):
        np.testing.assert_array_equal(loose.run({"x": x})["y"], -x)


def test_symbols_beside_inputs_of_unknown_rank_are_one_size() -> None:
    graph = load(
        [node("Add", "x y", "s"), node("Mul", "s z", "t")],
        [info("x", F, ["n"]), info("y", F, ["n"]), info("z", F)],
        ["t"],
    )
    with compiled(graph) as session:
        np.testing.assert_array_equal(session.run({"x": X, "y": X, "z": X})["t"], 2 * X * X)
        with pytest.raises(
            FeedError, match=r"'y' wants tensor\(float32\) of shape \[n\], got \[2\]"
        ):
            session.run({"x": X, "y": X[:2], "z": X})


def test_a_closed_session_is_closed(session: xd.Session) -> None:
    session.close()
    with pytest.raises(PlanError, match="closed"):
        session.run({"x": X})


def test_strings_that_nothing_can_take() -> None:
    graph = load([node("Neg", "x", "y")], [info("x", TensorProto.STRING, [2])], ["y"])
    with compiled(graph) as session, pytest.raises(UnsupportedModel, match="string"):
        session.run({"x": np.array(["a", "b"])})
