"""GraphBuilder: leaves, calls, names, building, folding, and binding of symbols."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from crossdock.kernels import table
from crossdock.kernels.fused_conv import INTERNAL
from crossdock.kernels.reference import evaluate
from crossdock.runtime.builder import GraphBuilder, Operand
from crossdock.runtime.errors import FeedError, GraphError, ShapeError, UnsupportedOp
from crossdock.runtime.graph import Graph
from tests.runtime.operator_stub import TARGET, render

# --- leaves ---------------------------------------------------------------------------------------


def test_inputs_have_name_type_and_shape() -> None:
    b = GraphBuilder()
    x = b.input("x", [2, np.int64(3)], "float16")
    assert (x.name, x.dtype, x.shape, x.rank) == ("x", "float16", (2, 3), 2)
    assert b.input("scalar", ()).shape == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", (2, 0)), "no dimension may be 0"),
        (("x", (-1,)), "must be 0 or more"),
        (("x", (2.0,)), "must be an integer"),
        (("x", (True,)), "must be an integer"),
        (("x", 3), "must be a list of sizes"),
        (("x", "N"), "must be a list of sizes"),
        (("x", (2,), "float"), "dtype must be one of"),
        (("", (2,)), "the name must be a string"),
        ((3, (2,)), "the name must be a string"),
    ],
)
def test_bad_inputs_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        GraphBuilder().input(*arguments)


def test_an_input_name_is_used_once() -> None:
    b = GraphBuilder()
    b.input("x", (2,))
    with pytest.raises(GraphError, match="already is an input 'x'"):
        b.input("x", (2,))


def test_constants_come_from_arrays_and_numbers() -> None:
    b = GraphBuilder()
    assert b.constant(np.ones((2, 3), np.int8)).spec.shape == (2, 3)
    assert b.constant(np.float16(2)).dtype == "float16"
    assert b.constant(3, "int64").shape == ()
    assert b.constant([[1, 2], [3, 4]], "float32").shape == (2, 2)
    assert b.constant(np.ones(2), "float32").dtype == "float32"
    big = b.value(b.constant(np.arange(3, dtype=">f4")))
    assert big is not None
    assert big.dtype == np.dtype("<f4")
    assert big.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "needs an element type"),
        (([1, 2],), "needs an element type"),
        ((300, "uint8"), "uint8"),
        ((1.5, "int32"), "no whole number"),
        (("a", "float32"), "no float32 array"),
        ((np.array(["a"]),), "not supported"),
        ((np.ones(2, complex),), "not supported"),
        ((np.zeros((0, 2)),), "no dimension may be 0"),
        ((1, "int4"), "dtype must be one of"),
    ],
)
def test_bad_constants_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        GraphBuilder().constant(*arguments)


def test_a_constant_keeps_its_value_when_the_array_changes() -> None:
    b = GraphBuilder()
    array = np.ones(3, np.float32)
    held = b.value(b.constant(array))
    array[:] = 5
    assert held is not None
    assert held.tolist() == [1, 1, 1]
    assert not held.flags.writeable


def test_a_read_only_array_is_not_copied() -> None:
    b = GraphBuilder()
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    assert b.value(b.constant(array)) is array


# --- calls ----------------------------------------------------------------------------------------


def test_options_are_keywords_and_operands_may_be() -> None:
    b = GraphBuilder()
    x, w = b.input("x", (1, 2, 4, 4)), b.input("w", (3, 2, 3, 3))
    y = b.conv2d(x, w, bias=b.input("bias", (3,)), padding=[1, 1, 1, 1])
    assert y.shape == (1, 3, 4, 4)
    assert b.conv2d(x, filter=w, bias=None).shape == (1, 3, 2, 2)
    assert b.softmax(y, axis=1).shape == y.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, x: b.add(x), r"add: b is missing; call add\(a, b\)"),
        (lambda b, x: b.add(x, 2.0), r"add: b must be an operand; it is float 2.0"),
        (lambda b, x: b.add(x, np.ones(3)), r"add: b must be an operand; it is ndarray"),
        (lambda b, x: b.add(x, x, x), "takes 2 positional arguments; 3 were given"),
        (lambda b, x: b.softmax(x), r"softmax: axis is missing; call softmax\(input, axis\)"),
        (lambda b, x: b.softmax(x, 0, axis=0), "axis was given twice"),
        (lambda b, x: b.relu(x, alpha=1), "relu: no option 'alpha'"),
        (lambda b, x: b.elu(x, alhpa=1), "did you mean alpha"),
        (lambda b, x: b.concat(x, 0), "inputs must be a list of operands"),
        (lambda b, x: b.concat([x, 1], 0), r"inputs\[1\] must be an operand"),
        (lambda b, x: b.gemm(x, x, c=1), "c must be an operand"),
        (lambda b, x: b.relu(x, label=3), "label must be a string"),
        (lambda b, x: b.relu(GraphBuilder().input("y", (3,))), "belongs to another builder"),
        (lambda b, x: b.if_(x, [x]), "then_branch is missing"),
    ],
)
def test_bad_calls_say_what_to_do(call: Any, message: str) -> None:
    b = GraphBuilder()
    with pytest.raises(GraphError, match=message):
        call(b, b.input("x", (3,)))


def test_an_unknown_operator_names_near_ones() -> None:
    b = GraphBuilder()
    with pytest.raises(UnsupportedOp, match="relu"):
        _ = b.rellu  # type: ignore[attr-defined]
    assert not hasattr(b, "conv5d")
    assert hasattr(b, "conv2d")


def test_the_methods_are_listed_and_typed() -> None:
    assert set(table.ops()) - INTERNAL <= set(dir(GraphBuilder()))
    assert TARGET.read_text(encoding="utf-8") == render(), (
        "the op table has changed: run python -m tests.runtime.operator_stub"
    )


def test_a_builder_does_not_pretend_to_have_special_methods() -> None:
    with pytest.raises(AttributeError):
        _ = GraphBuilder().__fspath__  # type: ignore[attr-defined]
    assert copy.copy(GraphBuilder(name="g")).name == "g"


def test_errors_name_the_label() -> None:
    b = GraphBuilder()
    with pytest.raises(ShapeError, match=r"matmul: .* \(at 'head'\)"):
        b.matmul(b.input("x", (2, 3)), b.input("y", (2, 3)), label="head")


def test_several_results_are_a_tuple() -> None:
    b = GraphBuilder()
    parts = b.split(b.input("x", (6,)), 3)
    assert [p.shape for p in parts] == [(2,)] * 3
    assert len(b.split(parts[0], 1)) == 1
    x = b.input("s", (3, 1, 2))
    w, r = b.input("w", (1, 6, 2)), b.input("r", (1, 6, 2))
    assert [o.shape for o in b.gru(x, w, r, 3, 2)] == [(1, 1, 2)]
    assert [o.shape for o in b.gru(x, w, r, 3, 2, return_sequence=True)] == [
        (1, 1, 2),
        (3, 1, 1, 2),
    ]


# --- names ----------------------------------------------------------------------------------------


def test_labels_name_nodes_and_stay_unique() -> None:
    b = GraphBuilder()
    x = b.input("x", (2,))
    y = b.relu(b.relu(b.relu(x, label="act"), label="act"))
    graph = b.build({"y": y})
    assert [n.name for n in graph.nodes] == ["act", "act_1", "relu_0"]


def test_an_input_may_take_a_name_that_a_value_has() -> None:
    b = GraphBuilder()
    y = b.relu(b.input("x", (2,)))
    other = b.input("relu_0", (2,))
    graph = b.build({"y": b.add(y, other)})
    assert list(graph.inputs) == ["x", "relu_0"]
    got = evaluate(graph, {"x": np.array([-1, 2]), "relu_0": np.array([10, 20])})
    assert got["y"].tolist() == [10, 22]


# --- build ----------------------------------------------------------------------------------------


def test_dead_nodes_are_pruned_and_inputs_stay() -> None:
    b = GraphBuilder("pruned")
    x, unused = b.input("x", (2,)), b.input("unused", (2,))
    b.exp(unused)
    b.add(x, b.constant([1, 2], "float32"))
    graph = b.build({"y": b.neg(x)})
    assert [n.op for n in graph.nodes] == ["neg"]
    assert list(graph.inputs) == ["x", "unused"]
    assert graph.constants == {}
    assert graph.name == "pruned"


def test_a_builder_builds_once() -> None:
    b = GraphBuilder()
    x = b.input("x", (2,))
    y = b.relu(x)
    b.build({"y": y})
    for call in (lambda: b.build({"y": y}), lambda: b.relu(x), lambda: b.input("z", (2,))):
        with pytest.raises(GraphError, match="has built its graph"):
            call()


def test_outputs_are_results() -> None:
    b = GraphBuilder()
    x, c = b.input("x", (2,)), b.constant(1, "float32")
    with pytest.raises(GraphError, match="output 'y' is input 'x'"):
        b.build({"y": x})
    with pytest.raises(GraphError, match="output 'y' is a constant"):
        b.build({"y": c})
    with pytest.raises(GraphError, match="at least one name"):
        b.build({})
    with pytest.raises(GraphError, match="belongs to another builder"):
        b.build({"y": GraphBuilder().input("x", (2,))})
    with pytest.raises(GraphError, match="must be an operand"):
        b.build({"y": 3})  # type: ignore[dict-item]


def test_one_result_may_be_several_outputs() -> None:
    b = GraphBuilder()
    y = b.relu(b.input("x", (2,)))
    got = evaluate(b.build({"a": y, "b": y}), {"x": np.array([-1, 1])})
    assert list(got) == ["a", "b"]


def test_feeds_are_checked() -> None:
    b = GraphBuilder()
    graph = b.build({"y": b.relu(b.input("x", (2,)))})
    with pytest.raises(FeedError, match=r"input 'x' .* has no value"):
        evaluate(graph, {})
    with pytest.raises(FeedError, match="wants"):
        evaluate(graph, {"x": np.zeros(3)})


# --- folding --------------------------------------------------------------------------------------


def test_constants_fold() -> None:
    b = GraphBuilder(fold=True)
    c = b.add(b.constant([1, 2], "int64"), b.constant([3, 4], "int64"))
    assert c.value is not None
    assert c.value.tolist() == [4, 6]
    parts = b.split(c, 2)
    assert [p.value.tolist() for p in parts if p.value is not None] == [[4], [6]]
    graph = b.build({"y": b.mul(b.input("x", (1,), "int64"), parts[1])})
    assert [n.op for n in graph.nodes] == ["mul"]


def test_folding_stops_at_its_limit() -> None:
    b = GraphBuilder(fold=True, fold_limit=1000)
    c = b.constant(0, "float32")
    assert b.expand(c, [250]).value is not None
    assert b.expand(c, [251]).value is None


def test_nothing_folds_unless_asked() -> None:
    b = GraphBuilder()
    assert b.neg(b.constant(1, "float32")).value is None


def test_a_lenient_builder_takes_what_formats_have() -> None:
    b = GraphBuilder(fold=True)
    x = b.input("x", (2, 3))
    empty = b.constant(np.zeros((0, 3), np.float32))
    graph = b.build({"y": b.concat([x, empty], 0), "same": x, "one": b.constant(1, "float32")})
    got = evaluate(graph, {"x": np.ones((2, 3))})
    assert got["y"].shape == (2, 3)
    assert got["same"].tolist() == np.ones((2, 3)).tolist()
    assert got["one"] == 1


# --- symbols --------------------------------------------------------------------------------------


def mlp() -> Graph:
    b = GraphBuilder("mlp")
    x = b.input("x", ("N", 4))
    w = b.constant(np.arange(12).reshape(4, 3), "float32")
    hidden = b.relu(b.matmul(x, w), label="hidden")
    wide = b.expand(b.constant([[1, 2, 3]], "float32"), ["N", 3])
    return b.build({"y": b.softmax(b.add(hidden, wide), 1), "flat": b.reshape(hidden, ["N", 1, 3])})


def test_symbols_are_bound_by_replay() -> None:
    graph = mlp()
    assert graph.symbols == ("N",)
    assert graph.output_specs["y"].shape == ("N", 3)
    bound = graph.bind({"N": 5})
    assert bound.symbols == ()
    assert [n.name for n in bound.nodes] == [n.name for n in graph.nodes]
    assert bound.output_specs["flat"].shape == (5, 1, 3)
    assert evaluate(bound, {"x": np.ones((5, 4))})["y"].shape == (5, 3)
    assert graph.bind(shapes={"x": (2, 4)}).output_specs["y"].shape == (2, 3)


def test_a_binding_that_breaks_a_rule_says_so() -> None:
    b = GraphBuilder()
    graph = b.build({"y": b.add(b.input("x", ("N",)), b.input("y", (4,)), label="sum")})
    with pytest.raises(ShapeError, match=r"dimension 4 against 3 \(at 'sum'\)"):
        graph.bind({"N": 3})


def test_a_symbol_comes_from_an_input() -> None:
    b = GraphBuilder()
    y = b.expand(b.input("x", (1,)), ["M"])
    with pytest.raises(GraphError, match="the dimension M, which no input has"):
        b.build({"y": y})


def test_splits_and_options_are_replayed() -> None:
    b = GraphBuilder()
    x = b.input("x", ("N", 6))
    parts = b.split(x, [2, 4], axis=1)
    joined = b.concat([parts[1], parts[0]], 1)
    graph = b.build(
        {"y": b.gemm(joined, b.input("w", (5, 6)), c=parts_sum(b, x), b_transpose=True)}
    )
    bound = graph.bind({"N": 3})
    assert bound.output_specs["y"].shape == (3, 5)


def parts_sum(b: GraphBuilder, x: Operand) -> Operand:
    return b.reduce_sum(x, axes=[1], keep_dimensions=True)


# --- if_ ------------------------------------------------------------------------------------------


def branch(op: str, dtype: str = "float32") -> Graph:
    b = GraphBuilder(op)
    x = b.input("x", (3,), dtype)
    return b.build({"y": getattr(b, op)(x, b.constant(2, dtype))})


def conditional(dtype: str = "float32") -> Graph:
    b = GraphBuilder()
    x = b.input("x", (3,), dtype)
    condition = b.input("c", (), "uint8")
    (y,) = b.if_(condition, [x], then_branch=branch("add", dtype), else_branch=branch("mul", dtype))
    return b.build({"y": y})


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_a_conditional_runs_one_branch(dtype: str | None) -> None:
    x = np.array([1, 2, 3], np.float32)
    graph = conditional()
    for condition, want in ((1, [3, 4, 5]), (0, [2, 4, 6])):
        got = evaluate(graph, {"x": x, "c": np.uint8(condition)}, dtype=dtype)["y"]
        assert got.tolist() == want
        assert got.dtype == (dtype or "float32")
    assert graph.digest() != conditional("float16").digest()


def test_the_branches_of_a_conditional_agree() -> None:
    b = GraphBuilder()
    x, c = b.input("x", (3,)), b.input("c", (1,), "uint8")
    other = branch("equal")
    with pytest.raises(ShapeError, match="both branches must give the same results"):
        b.if_(c, [x], then_branch=branch("add"), else_branch=other)
    with pytest.raises(ShapeError, match="then_branch wants inputs"):
        b.if_(c, [], then_branch=branch("add"), else_branch=branch("mul"))
    with pytest.raises(ShapeError, match="then_branch must be a Graph"):
        b.if_(c, [x], then_branch=3, else_branch=branch("mul"))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="condition must hold one element"):
        b.if_(
            b.input("many", (2,), "uint8"),
            [x],
            then_branch=branch("add"),
            else_branch=branch("mul"),
        )


def test_names_that_are_taken_are_not_given_again() -> None:
    b = GraphBuilder()
    names = ("neg_0", "neg_1", "add", "add_1")
    inputs = [b.input(name, (2,)) for name in names]
    y = b.add(b.neg(b.neg(inputs[0])), inputs[1], label="add")
    graph = b.build({"y": b.add(b.sub(y, inputs[2]), inputs[3], label="add")})
    values = [*graph.inputs, *(value for node in graph.nodes for value in node.outputs)]
    assert len(set(values)) == len(values)
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    fed = {name: np.full(2, i, np.float32) for i, name in enumerate(names, 1)}
    np.testing.assert_array_equal(evaluate(graph, fed)["y"], [1 + 2 - 3 + 4] * 2)
