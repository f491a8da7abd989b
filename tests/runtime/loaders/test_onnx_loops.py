"""ONNX loops: Loop, Scan and SequenceMap beside onnx's own evaluator and onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import FeedError, IterationLimit, MalformedModel, PlanError
from crossdock.runtime.loaders import load
from crossdock.runtime.settings import MAX_ITERATIONS, max_iterations

F, INT, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
X = np.arange(6, dtype=np.float32).reshape(3, 2)


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> Any:
    names = ["" if n == "-" else n for n in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attrs)


def info(name: str, dtype: int = F, shape: Any = None) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def body(nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: Any) -> Any:
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    return helper.make_graph(nodes, "body", inputs, outputs, held)


STATE = [info("i", INT, []), info("going", B, [])]


def counting(*, stop_at: float | None = None) -> Any:
    """v grows by the outer ``step``; rows are what it was, and the number of the iteration."""
    nodes = [
        node("Add", "v step", "w"),
        node("Identity", "v", "row"),
        node("Cast", "i", "number", to=F),
    ]
    constants = {}
    if stop_at is None:
        nodes.append(node("Identity", "going", "on"))
    else:
        nodes += [
            node("ReduceMax", "w", "most", keepdims=0),
            node("Less", "most limit", "on"),
        ]
        constants["limit"] = np.float32(stop_at)
    outputs = [info("on", B, []), info("w", F, [2]), info("row", F, [2]), info("number", F, [])]
    return body(nodes, [*STATE, info("v", F, [2])], outputs, **constants)


def model_of(nodes: list[Any], inputs: list[Any], outputs: list[Any], opset: int = 17) -> Any:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def check(model: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    ours = evaluate(load(model), feeds)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = session.run(None, feeds)
    for got, want in zip(ours.values(), wanted, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-6)
    return ours


LOOP_ENDS = [info("final", F, [2]), info("rows", F, ["n", 2]), info("numbers", F, ["n"])]
COUNTED = [info("trips", INT, []), info("start", F, [2]), info("step", F, [2])]


@given(trips=st.integers(0, 5), step=st.floats(-2, 2, width=32))
@settings(max_examples=10)
def test_a_counted_loop(trips: int, step: float) -> None:
    model = model_of(
        [node("Loop", "trips - start", "final rows numbers", body=counting())], COUNTED, LOOP_ENDS
    )
    feeds = {
        "trips": np.array(trips),
        "start": np.array([0, 1], np.float32),
        "step": np.full(2, step, np.float32),
    }
    rows = check(model, feeds)["rows"]
    assert rows.shape == (trips, 2)


@pytest.mark.parametrize("trips", ["trips", "-"])
@pytest.mark.parametrize("first", [True, False])
def test_a_condition_ends_a_loop(trips: str, first: bool) -> None:
    loop = node("Loop", f"{trips} first start", "final rows numbers", body=counting(stop_at=4.5))
    inputs = [info("first", B, []), *(COUNTED if trips == "trips" else COUNTED[1:])]
    feeds = {
        "first": np.array(first),
        "trips": np.array(100),
        "start": np.zeros(2, np.float32),
        "step": np.ones(2, np.float32),
    }
    feeds = {i.name: feeds[i.name] for i in inputs}
    ours = evaluate(load(model_of([loop], inputs, LOOP_ENDS)), feeds)
    assert len(ours["rows"]) == (5 if first else 0)
    np.testing.assert_array_equal(ours["final"], np.full(2, 5.0 if first else 0.0))


def test_a_carried_value_may_grow_and_a_body_read_results_from_around() -> None:
    """Shapes change from iteration to iteration; the body has a weight and an outer result."""
    inner = body(
        [
            node("Concat", "v doubled", "joined", axis=0),
            node("MatMul", "joined weight", "w"),
            node("Identity", "going", "on"),
        ],
        [*STATE, info("v", F, ["k", 2])],
        [info("on", B, []), info("w", F, ["m", 2])],
        weight=np.array([[0, 1], [1, 0]], np.float32),
    )
    nodes = [
        node("Add", "x x", "doubled"),
        node("Loop", "trips - x", "grown", body=inner),
        node("ReduceSum", "grown", "y", keepdims=0),
    ]
    model = model_of(nodes, [info("trips", INT, []), info("x", F, [3, 2])], [info("y", F, [])])
    for trips in (1, 3):
        check(model, {"trips": np.array(trips), "x": X})


def test_loops_in_loops_and_in_functions() -> None:
    outer = body(
        [
            node("Neg", "u", "v0"),
            node("Loop", "turn - v0", "u2 rows numbers", body=counting()),
            node("Identity", "more", "still"),
        ],
        [info("turn", INT, []), info("more", B, []), info("u", F, [2])],
        [info("still", B, []), info("u2", F, [2])],
    )
    called = helper.make_function(
        "custom",
        "Twice",
        ["trips", "start", "step"],
        ["y"],
        [node("Loop", "trips - start", "y", body=outer)],
        [helper.make_opsetid("", 17)],
    )
    call = helper.make_node("Twice", ["trips", "start", "step"], ["final"], domain="custom")
    graph = helper.make_graph([call, node("Abs", "final", "y")], "g", COUNTED, [info("y", F, [2])])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[called], ir_version=8)
    feeds = {
        "trips": np.array(4),
        "start": np.array([1, 2], np.float32),
        "step": np.array([0.5, 1], np.float32),
    }
    check(model, feeds)


def test_iterations_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = node("Loop", "trips - start", "final rows numbers", body=counting(), name="forever")
    monkeypatch.setenv("CROSSDOCK_MAX_ITERATIONS", "7")
    graph = load(model_of([loop], COUNTED, LOOP_ENDS))
    feeds = {
        "trips": np.array(2**62),
        "start": np.zeros(2, np.float32),
        "step": np.ones(2, np.float32),
    }
    with pytest.raises(IterationLimit, match=r"'forever' \(Loop\).*over the limit of 7 iterations"):
        evaluate(graph, feeds)
    assert len(evaluate(graph, {**feeds, "trips": np.array(7)})["rows"]) == 7
    monkeypatch.setenv("CROSSDOCK_MAX_ITERATIONS", "many")
    with pytest.raises(PlanError, match=rf"is 'many'; give .* such as {MAX_ITERATIONS}"):
        max_iterations()


def test_a_body_that_does_not_fit_is_malformed() -> None:
    feeds = {
        "trips": np.array(2),
        "start": np.zeros(2, np.float32),
        "step": np.ones(2, np.float32),
    }
    wrong = counting()
    del wrong.input[2]
    wrong.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "v"))
    loop = node("Loop", "trips - start", "final rows numbers", body=wrong, name="wrong")
    with pytest.raises(MalformedModel, match=r"'wrong' \(Loop\).*2 inputs and 4 outputs for 1"):
        evaluate(load(model_of([loop], COUNTED, LOOP_ENDS)), feeds)


def summing(rank: int = 1) -> Any:
    """A running sum, and its double."""
    row = [2] * rank
    return body(
        [node("Add", "sum item", "next"), node("Add", "next next", "twice")],
        [info("sum", F, row), info("item", F, row)],
        [info("next", F, row), info("twice", F, row)],
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("out_axis", [0, 1, -1])
@pytest.mark.parametrize("backwards", [0, 1])
def test_scan(axis: int, out_axis: int, backwards: int) -> None:
    scan = node(
        "Scan",
        "start x",
        "final rows",
        body=summing(),
        num_scan_inputs=1,
        scan_input_axes=[axis],
        scan_output_axes=[out_axis],
        scan_input_directions=[backwards],
        scan_output_directions=[1 - backwards],
    )
    x = X if axis == 0 else X.T.copy()
    model = model_of(
        [scan],
        [info("start", F, [2]), info("x", F, x.shape)],
        [info("final", F, [2]), info("rows", F, [None, None])],
    )
    ours = evaluate(load(model), {"start": np.ones(2, np.float32), "x": x})
    rows = X[::-1] if backwards else X
    sums = 1 + np.cumsum(rows, 0)
    twice = 2 * (sums if backwards else sums[::-1])
    np.testing.assert_array_equal(ours["final"], sums[-1])
    np.testing.assert_array_equal(ours["rows"], np.moveaxis(twice, 0, out_axis))


@pytest.mark.parametrize("lengths", [None, [3, 1]])
def test_scan_of_opset_8_has_a_batch(lengths: list[int] | None) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    inputs = [info("start", F, [2, 2]), info("x", F, [2, 3, 2])]
    feeds = {"start": np.ones((2, 2), np.float32), "x": x}
    if lengths is not None:
        inputs.insert(0, info("n", INT, [2]))
        feeds["n"] = np.array(lengths)
    scan = node(
        "Scan",
        f"{'-' if lengths is None else 'n'} start x",
        "final rows",
        body=summing(),
        num_scan_inputs=1,
    )
    ends = [info("final", F, [2, 2]), info("rows", F, [2, 3, 2])]
    ours = evaluate(load(model_of([scan], inputs, ends, opset=8)), feeds)
    for at, length in enumerate(lengths or [3, 3]):
        sums = 1 + np.cumsum(x[at, :length], 0)
        np.testing.assert_array_equal(ours["final"][at], sums[-1])
        np.testing.assert_array_equal(ours["rows"][at, :length], 2 * sums)
        assert not ours["rows"][at, length:].any()


def test_scanned_inputs_of_different_lengths() -> None:
    pair = body(
        [node("Add", "a b", "c")], [info("a", F, [2]), info("b", F, [2])], [info("c", F, [2])]
    )
    scan = node("Scan", "x y", "z", body=pair, num_scan_inputs=2, name="pairs")
    model = model_of([scan], [info("x", F, [3, 2]), info("y", F, ["n", 2])], [info("z", F, None)])
    graph = load(model).bind(shapes={"x": (3, 2), "y": (2, 2)})
    with pytest.raises(MalformedModel, match=r"'pairs' \(Scan\).*different lengths: \[2, 3\]"):
        evaluate(graph, {"x": X, "y": X[:2]})


def sequence(name: str) -> Any:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, None))
    return helper.make_value_info(name, kind)


def test_sequence_map() -> None:
    pair = body(
        [node("MatMul", "a b", "c"), node("Shape", "c", "s")],
        [info("a", F, None), info("b", F, None)],
        [info("c", F, None), info("s", INT, None)],
    )
    mapped = node("SequenceMap", "xs w", "ys shapes", body=pair)
    shapes = onnx.ValueInfoProto(name="shapes")
    model = model_of([mapped], [sequence("xs"), info("w", F, [2, 2])], [sequence("ys"), shapes])
    xs = [X, X[:1], X[1:]]
    w = np.array([[0, 1], [1, 0]], np.float32)
    ours = evaluate(load(model), {"xs": xs, "w": w})
    for got, size, x in zip(ours["ys"], ours["shapes"], xs, strict=True):
        np.testing.assert_array_equal(got, x @ w)
        assert size.tolist() == list(x.shape)
    with pytest.raises(FeedError, match=r"'xs' wants seq\(tensor\(float32\)\), a list"):
        evaluate(load(model), {"xs": X, "w": w})
