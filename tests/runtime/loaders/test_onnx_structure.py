"""Broken, unsupported and unusual ONNX graphs: errors that name the node, or a right graph."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import (
    Error,
    FeedError,
    LoadError,
    MalformedModel,
    UnsupportedModel,
)
from crossdock.runtime.loaders import load

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def node(op: str, inputs: str, outputs: str, name: str = "", **attrs: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attrs)


def test_nodes_out_of_order_are_sorted(make: Any, compare: Any) -> None:
    model = make([node("Exp", "a", "y"), node("Neg", "x", "a")], {"x": X}, ["y"])
    graph = load(model)
    assert [n.op for n in graph.nodes] == ["neg", "exp"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "match"),
    [
        ([node("Exp", "ghost", "y", "e")], ["y"], r"node 'e' \(Exp\) reads 'ghost', which nothing"),
        ([node("Exp", "b", "a", "e"), node("Neg", "a", "b", "n")], ["b"], "'e'.*cycle"),
        ([node("Exp", "y", "y", "e")], ["y"], "'e'.*cycle"),
        ([node("Exp", "x", "y", "e"), node("Neg", "x", "y", "n")], ["y"], "'n'.*'y'.*already"),
        ([node("Exp", "x", "x", "e")], ["x"], "'e'.*'x'.*already"),
        ([node("Exp", "x", "y")], ["z"], "output 'z' but nothing makes it"),
        ([node("Exp", "x", "y")], ["y", "y"], "output 'y' twice"),
        ([node("Exp", "x", "y")], [], "no outputs"),
        ([node("Exp", "", "y", "e")], ["y"], "'e'.*input 0 is missing"),
        ([node("Concat", "x x", "y", "c")], ["y"], "'c'.*'axis' is missing"),
        ([node("Softmax", "x", "y", "s", axis=7)], ["y"], "'s'.*axis 7 is out of range"),
        ([node("Softmax", "x", "y", "s", axis=1.5)], ["y"], "'s'.*'axis' is no integer"),
        ([node("MatMul", "x x", "y", "m")], ["y"], "'m'.*inner"),
        ([node("If", "x", "y", "i")], ["y"], "'i'.*then_branch"),
        ([node("Conv", "x x", "y", "c")], ["y"], "'c'"),
        ([node("Constant", "", "y", "k")], ["y"], "'k'.*exactly one"),
    ],
)
def test_broken_graphs_name_the_node(make: Any, nodes: Any, outputs: Any, match: str) -> None:
    for n in nodes:
        if n.op_type == "Constant":
            del n.input[:]
    with pytest.raises(MalformedModel, match=match) as caught:
        load(make(nodes, {"x": X}, outputs))
    assert "\n" not in str(caught.value)


def test_everything_unsupported_is_named_at_once(make: Any) -> None:
    branch = helper.make_graph(
        [node("Mumble", "x", "t", "inner")], "b", [], [onnx.ValueInfoProto(name="t")]
    )
    other = helper.make_graph([node("Neg", "x", "u")], "b", [], [onnx.ValueInfoProto(name="u")])
    nodes = [
        node("Bungle", "x", "a", "first"),
        node("Exp", "x", "fine"),
        node("Frobnicate", "x", "b", "second"),
        node("FusedNothing", "x", "c", "third", domain="com.microsoft"),
        node("Bungle", "x", "d", "fourth"),
        node("If", "flag", "y", "cond", then_branch=branch, else_branch=other),
    ]
    flag = np.array(True)
    model = make(
        nodes,
        {"x": X, "flag": flag},
        ["y"],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
    )
    with pytest.raises(UnsupportedModel) as caught:
        load(model)
    text = str(caught.value)
    assert "Bungle (opset 17), which ONNX does not have at 'first', 'fourth'" in text
    assert "Frobnicate (opset 17), which ONNX does not have at 'second'" in text
    assert "com.microsoft.FusedNothing (opset 1) at 'third'" in text
    assert "Mumble (opset 17), which ONNX does not have at 'inner'" in text
    assert "Exp" not in text
    assert "\n" not in text


def test_uses_that_are_not_supported_are_named_together(make: Any) -> None:
    nodes = [
        node("EyeLike", "v", "a", "deep", dtype=14),
        node("Exp", "a", "b", "after"),
        node("EyeLike", "v", "c", "picky", dtype=15),
    ]
    with pytest.raises(UnsupportedModel) as caught:
        load(make(nodes, {"v": np.zeros((3, 4), np.float32)}, ["b", "c"]))
    text = str(caught.value)
    assert "'deep' (EyeLike): a matrix of complex64 is not supported" in text
    assert "'picky' (EyeLike): a matrix of complex128 is not supported" in text
    assert "after" not in text


@pytest.mark.parametrize(
    ("opset", "match"), [(0, "older than opset 1"), (9999, "newer than the installed onnx")]
)
def test_opsets_out_of_range(make: Any, opset: int, match: str) -> None:
    with pytest.raises(UnsupportedModel, match=match):
        load(make([node("Relu", "x", "y")], {"x": X}, ["y"], opset))


def test_a_domain_that_is_not_imported(make: Any) -> None:
    model = make([node("Relu", "x", "y", "r")], {"x": X}, ["y"], opset_imports=[])
    with pytest.raises(UnsupportedModel, match=r"Relu of an operator set.*'r'"):
        load(model)


def test_unused_domains_do_not_matter(make: Any) -> None:
    imports = [helper.make_opsetid("ai.onnx", 13), helper.make_opsetid("ai.onnx.ml", 99)]
    assert load(make([node("Relu", "x", "y")], {"x": X}, ["y"], opset_imports=imports)).nodes


def test_inputs_that_are_no_tensors_of_known_rank(make: Any) -> None:
    model = make([node("Relu", "x", "y")], {"x": X}, ["y"])
    tensor = model.graph.input[0].type.tensor_type
    tensor.ClearField("shape")
    graph = load(model)
    assert graph.staged is not None
    assert graph.staged.inputs == {"x": "tensor(float32)"}
    for x in (X, X[0], X.reshape(-1, 1, 1, 1)):
        np.testing.assert_array_equal(evaluate(graph, {"x": -x})["y"], np.maximum(-x, 0))
    with pytest.raises(FeedError, match=r"'x' wants tensor\(float32\), got float64"):
        evaluate(graph, {"x": X.astype(np.float64)})
    tensor.elem_type = TensorProto.STRING
    with pytest.raises(UnsupportedModel, match=r"input 0 is tensor\(string\), which the IR"):
        evaluate(load(model), {"x": np.array(["a"])})


def test_constants_of_odd_types_matter_where_they_are_used(make: Any) -> None:
    text = helper.make_tensor("t", TensorProto.STRING, [1], [b"a"])
    model = make([node("Relu", "x", "y")], {"x": X}, ["y"])
    model.graph.initializer.append(text)
    assert load(model).nodes
    model.graph.node.append(node("Relu", "t", "z"))
    with pytest.raises(UnsupportedModel, match=r"Relu.*tensor\(string\), which the IR lacks"):
        load(model)
    model.graph.initializer[-1].data_type = TensorProto.UNDEFINED
    with pytest.raises(UnsupportedModel, match="undefined at 't'"):
        load(model)


# --- damage ---------------------------------------------------------------------------------------


def damaged_seed() -> bytes:
    branch = helper.make_graph(
        [helper.make_node("Mul", ["h", "h"], ["t"])], "b", [], [onnx.ValueInfoProto(name="t")]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Clip", ["c", "lo"], ["d"]),
        helper.make_node("Shape", ["d"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["o"]),
        helper.make_node("Add", ["d", "o"], ["h"]),
        helper.make_node("If", ["f"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Reshape", ["i", "r"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("y", 1, ["n", 8])],
        initializer=[
            numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "w"),
            numpy_helper.from_array(np.array(0, np.float32), "lo"),
            numpy_helper.from_array(np.array(True), "f"),
            numpy_helper.from_array(np.array([-1, 8]), "r"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(made.SerializeToString())


SEED = damaged_seed()


def test_the_seed_itself_loads() -> None:
    assert load(SEED).bind({"n": 3}).output_specs["y"].shape == (3, 8)


@settings(max_examples=400)
@given(
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
    flips=st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(1, 255)), max_size=3),
)
def test_damage_gives_our_errors_alone(cut: float, flips: list[tuple[int, int]]) -> None:
    data = bytearray(SEED)
    for place, mask in flips:
        data[place] ^= mask
    with contextlib.suppress(Error):
        graph = load(bytes(data[: round(len(data) * cut)]))
        graph.bind(dict.fromkeys(graph.symbols, 2)).check()


@given(st.binary(max_size=200))
def test_noise_is_no_model(data: bytes) -> None:
    with pytest.raises(LoadError):
        load(data)
