"""ONNX conditionals: folded where the condition is known, kept as two graphs where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import FeedError, MalformedModel
from crossdock.runtime.loaders import load

X = np.arange(6, dtype=np.float32).reshape(2, 3)
W = X + 10


def branch(nodes: list[Any], output: str, constants: dict[str, Any] | None = None) -> Any:
    initialisers = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    return helper.make_graph(nodes, "b", [], [onnx.ValueInfoProto(name=output)], initialisers)


def node(op: str, inputs: str, output: str, **attrs: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], **attrs)


def choice(**attrs: Any) -> Any:
    return helper.make_node("If", ["flag"], ["y"], name="choice", **attrs)


@pytest.mark.parametrize("flag", [True, False])
def test_a_known_condition_leaves_one_branch(make: Any, compare: Any, flag: bool) -> None:
    pick = choice(
        then_branch=branch([node("Exp", "x", "t")], "t"),
        else_branch=branch([node("Reshape", "x six", "e")], "e", {"six": np.array([6])}),
    )
    model = make([pick], {"x": X}, ["y"], 13, {"flag": np.array(flag)})
    assert [n.op for n in load(model).nodes] == (["exp"] if flag else ["reshape"])
    compare(model, {"x": X})


def test_an_unknown_condition_keeps_both(make: Any, compare: Any) -> None:
    """Branches read outer inputs, outer results, outer constants and their own."""
    yes = branch([node("Mul", "h w", "m"), node("Add", "m own", "t")], "t", {"own": X})
    no = branch([node("Sub", "x w", "s"), node("Mul", "s h", "e")], "e")
    nodes = [node("Exp", "x", "h"), choice(then_branch=yes, else_branch=no), node("Neg", "y", "z")]
    for flag in (True, False):
        feeds = {"x": X, "flag": np.array(flag)}
        model = make(nodes, feeds, ["z"], 13, {"w": W})
        compare(model, feeds)
    assert [n.op for n in load(model).nodes if n.op not in ("cast", "reshape")] == [
        "exp",
        "if_",
        "neg",
    ]
    assert "choice" in [n.name for n in load(model).nodes]


def test_branches_that_only_pass_a_value_on(make: Any, compare: Any) -> None:
    yes, no = branch([], "x"), branch([node("Identity", "w", "e")], "e")
    for flag in (True, False):
        feeds = {"x": X, "flag": np.array(flag)}
        model = make([choice(then_branch=yes, else_branch=no)], feeds, ["y"], 13, {"w": W})
        compare(model, feeds, oracle="onnx")


def test_nested_conditionals(make: Any, compare: Any) -> None:
    inner = helper.make_node(
        "If",
        ["other"],
        ["i"],
        then_branch=branch([node("Add", "x h", "a")], "a"),
        else_branch=branch([node("Sub", "x h", "s")], "s"),
    )
    pick = choice(
        then_branch=branch([inner, node("Neg", "i", "t")], "t"),
        else_branch=branch([node("Exp", "x", "e")], "e"),
    )
    for flag in (True, False):
        for other in (True, False):
            feeds = {"x": X, "flag": np.array(flag), "other": np.array(other)}
            compare(make([node("Sqrt", "x", "h"), pick], feeds, ["y"], 13), feeds)


def test_conditions_that_are_computed(make: Any, compare: Any) -> None:
    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total limit", "flag"),
        choice(
            then_branch=branch([node("Greater", "x limit", "t")], "t"),
            else_branch=branch([node("Less", "x limit", "e")], "e"),
        ),
        node("Cast", "y", "z", to=TensorProto.INT32),
    ]
    limit = {"limit": np.array(3, np.float32)}
    for x in (X, -X):
        compare(make(nodes, {"x": x}, ["y", "z"], 13, limit), {"x": x})


@pytest.mark.parametrize("flag", [True, False])
def test_branches_of_different_shapes_wait_for_the_condition(
    make: Any, compare: Any, flag: bool
) -> None:
    feeds = {"x": X, "flag": np.array(flag)}
    yes, no = branch([node("Exp", "x", "t")], "t"), branch([node("Transpose", "x", "e")], "e")
    nodes = [choice(then_branch=yes, else_branch=no), node("Neg", "y", "z")]
    model = make(nodes, feeds, ["z"], 13)
    graph = load(model)
    assert graph.staged is not None
    assert not graph.nodes
    compare(model, feeds)


def test_branches_that_differ(make: Any) -> None:
    feeds = {"x": X, "flag": np.array(True)}
    yes, no = branch([node("Exp", "x", "t")], "t"), branch([node("Transpose", "x", "e")], "e")
    no = branch([node("Cast", "x", "e", to=TensorProto.INT32)], "e")
    with pytest.raises(MalformedModel, match=r"'choice'.*element types"):
        load(make([choice(then_branch=yes, else_branch=no)], feeds, ["y"], 13))
    with pytest.raises(MalformedModel, match=r"'choice'.*else_branch"):
        load(make([choice(then_branch=yes)], feeds, ["y"], 13))


def test_a_branch_that_does_not_fit_is_an_error_only_when_it_is_chosen(
    make: Any, compare: Any
) -> None:
    """The other branch is written in place, and keeps the nodes' names."""
    fits = branch([node("Exp", "x", "m", name="exp"), node("Neg", "m", "t", name="neg")], "t")
    odd = branch([node("Reshape", "x five", "e")], "e", {"five": np.array([5])})
    feeds = {"x": X, "flag": np.array(True)}
    for pick, good in (
        (choice(then_branch=fits, else_branch=odd), True),
        (choice(then_branch=odd, else_branch=fits), False),
    ):
        model = make([pick], feeds, ["y"], 13)
        graph = load(model)
        assert [n.name for n in graph.nodes if n.op != "cast"] == ["exp", "neg", "choice"]
        compare(model, {**feeds, "flag": np.array(good)})
        with pytest.raises(FeedError, match=r"'choice'.*cannot take the shape"):
            evaluate(graph, {**feeds, "flag": np.array(not good)})
    with pytest.raises(MalformedModel, match="cannot take the shape"):
        load(make([choice(then_branch=odd, else_branch=odd)], feeds, ["y"], 13))


def test_a_branch_that_defines_an_outer_name(make: Any) -> None:
    feeds = {"x": X, "flag": np.array(True)}
    yes, no = branch([node("Exp", "x", "x")], "x"), branch([node("Neg", "x", "e")], "e")
    with pytest.raises(MalformedModel, match="'x', which is defined already"):
        load(make([choice(then_branch=yes, else_branch=no)], feeds, ["y"], 13))


def test_branches_worth_compiling_run_as_stages(make: Any) -> None:
    """The branch follows the condition from run to run, on the short way and on the long one."""
    w = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((8, 512)).astype(np.float32)
    yes = branch([node("MatMul", "x w", "t")], "t", {"w": w})
    no = branch([node("MatMul", "x w", "s"), node("Neg", "s", "e")], "e", {"w": w})
    pick = choice(then_branch=yes, else_branch=no)
    graph = load(make([pick], {"x": x, "flag": np.array(True)}, ["y"], 13))
    assert graph.staged is not None
    with xd.compile(graph, "cpu:0", measure=False) as session:
        for flag in (True, True, False, False, True):
            got = session.run({"x": x, "flag": np.array(flag)})["y"]
            np.testing.assert_allclose(got, x @ w if flag else -(x @ w), rtol=1e-4, atol=1e-3)
            assert sum("matmul" in op.op for op in session.receipt.ops) == 1, "one branch alone"
        with pytest.raises(FeedError, match="'x'"):
            session.run({"x": x[0], "flag": np.array(True)})
