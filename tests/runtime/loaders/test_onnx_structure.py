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

from crossdock.runtime.errors import (
    Error,
    FeedError,
    LoadError,
    MalformedModel,
    ShapeError,
    UnsafeModel,
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
        [node("Det", "x", "t", "inner")], "b", [], [onnx.ValueInfoProto(name="t")]
    )
    other = helper.make_graph([node("Neg", "x", "u")], "b", [], [onnx.ValueInfoProto(name="u")])
    nodes = [
        node("Unique", "x", "a", "first"),
        node("Exp", "x", "fine"),
        node("Frobnicate", "x", "b", "second"),
        node("FusedConv", "x", "c", "third", domain="com.microsoft"),
        node("Unique", "x", "d", "fourth"),
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
    assert "Unique (opset 17) at 'first', 'fourth'" in text
    assert "Frobnicate (opset 17), which ONNX does not have at 'second'" in text
    assert "com.microsoft.FusedConv (opset 1) at 'third'" in text
    assert "Det (opset 17) at 'inner'" in text
    assert "Exp" not in text
    assert "\n" not in text


def test_uses_that_are_not_supported_are_named_together(make: Any) -> None:
    image = np.zeros((1, 1, 4, 4, 4), np.float32)
    filters = np.zeros((1, 1, 2, 2, 2), np.float32)
    nodes = [
        node("Conv", "v w", "a", "deep"),
        node("Exp", "a", "b", "after"),
        node("MaxPool", "p", "c i", "picky", kernel_shape=[2, 2]),
    ]
    model = make(nodes, {"v": image, "p": image[0]}, ["b", "c", "i"], constants={"w": filters})
    with pytest.raises(UnsupportedModel) as caught:
        load(model)
    text = str(caught.value)
    assert "'deep' (Conv): an input with 3 spatial dimensions" in text
    assert "'picky' (MaxPool): the output Indices is not supported" in text
    assert "after" not in text


@pytest.mark.parametrize(
    ("opset", "match"), [(6, "older than opset 7"), (9999, "newer than the installed onnx")]
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


def test_types_of_inputs(make: Any) -> None:
    model = make([node("Identity", "x", "y")], {"x": X}, ["y"])
    tensor = model.graph.input[0].type.tensor_type
    tensor.elem_type = TensorProto.STRING
    with pytest.raises(UnsupportedModel, match=r"input 'x' is a tensor\(string\)"):
        load(model)
    tensor.elem_type = TensorProto.FLOAT
    tensor.ClearField("shape")
    with pytest.raises(UnsupportedModel, match="input 'x' has no declared shape"):
        load(model)
    model.graph.input[0].type.ClearField("tensor_type")
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    with pytest.raises(UnsupportedModel, match="input 'x' is a sequence"):
        load(model)


def test_constants_of_odd_types_matter_where_they_are_used(make: Any) -> None:
    text = helper.make_tensor("t", TensorProto.STRING, [1], [b"a"])
    model = make([node("Relu", "x", "y")], {"x": X}, ["y"])
    model.graph.initializer.append(text)
    assert load(model).nodes
    model.graph.node.append(node("Identity", "t", "z"))
    with pytest.raises(UnsupportedModel, match="tensors of type string at 't'"):
        load(model)


# --- initialisers ---------------------------------------------------------------------------------


def test_an_input_that_is_an_initialiser_is_a_constant(make: Any, compare: Any) -> None:
    model = make([node("Add", "x w", "y")], {"x": X, "w": X}, ["y"], constants={"w": X + 1})
    assert list(load(model).inputs) == ["x"]
    compare(model, {"x": X})


ODD = {
    name: np.array(values, dtype)
    for name, dtype, values in [
        ("float32", np.float32, [1.5, -2, np.inf]),
        ("float64", np.float64, [1.5, -2, 1e300]),
        ("int8", np.int8, [-128, 0, 127]),
        ("uint8", np.uint8, [0, 255, 7]),
        ("int16", np.int16, [-32768, 0, 5]),
        ("uint16", np.uint16, [0, 65535, 5]),
        ("int32", np.int32, [-(1 << 31), 0, 5]),
        ("uint32", np.uint32, [0, (1 << 32) - 1, 5]),
        ("int64", np.int64, [-(1 << 63), 0, 5]),
        ("uint64", np.uint64, [0, (1 << 64) - 1, 5]),
        ("bool", np.bool_, [True, False, True]),
        ("float16", np.float16, [1.5, -2, 65504]),
    ]
}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", ODD)
def test_initialisers_of_every_type(make: Any, dtype: str, raw: bool) -> None:
    array = ODD[dtype]
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    if raw:
        tensor = numpy_helper.from_array(array, "w")
    else:
        bits = array.view({"float16": np.uint16, "bool": np.uint8}.get(dtype, array.dtype))
        tensor = TensorProto(name="w", data_type=kind, dims=array.shape)
        getattr(tensor, helper.tensor_dtype_to_field(kind)).extend(
            int(v) if dtype == "bool" else v for v in bits.tolist()
        )
    model = make([node("Identity", "w", "y")], {"x": X}, ["y"])
    model.graph.initializer.append(tensor)
    graph = load(model)
    from crossdock.kernels.reference import evaluate

    found = evaluate(graph, {"x": X})["y"]
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


def test_bfloat16_initialisers(make: Any) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[2])
    tensor.int32_data.extend([0x3FC0, 0xC000])
    model = make([node("Cast", "w", "y", to=TensorProto.FLOAT)], {"x": X}, ["y"])
    model.graph.initializer.append(tensor)
    from crossdock.kernels.reference import evaluate

    assert evaluate(load(model), {"x": X})["y"].tolist() == [1.5, -2.0]


def test_sparse_initialisers(make: Any, compare: Any) -> None:
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    for indices in (np.array([1, 5]), np.array([[0, 1], [1, 2]])):
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), [2, 3])
        model = make([node("Add", "x w", "y")], {"x": X}, ["y"])
        model.graph.sparse_initializer.append(sparse)
        compare(model, {"x": X})


def tensor(**fields: Any) -> Any:
    made = TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(12))
    for name, value in fields.items():
        made.ClearField(name)
        if isinstance(value, list):
            getattr(made, name).extend(value)
        elif value is not None:
            setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (tensor(raw_data=bytes(11)), "takes 12 bytes, its data has 11"),
        (tensor(dims=[4]), "takes 16 bytes"),
        (tensor(dims=[-1]), "no shape"),
        (tensor(dims=[1 << 40, 1 << 40]), "no shape"),
        (tensor(dims=[1] * 40), "no shape"),
        (tensor(float_data=[1.0, 2.0, 3.0]), "more than one field"),
        (tensor(raw_data=None, float_data=[1.0]), "3 values are due in float_data, it has 1"),
        (tensor(raw_data=None, int64_data=[1, 2, 3]), "more than one field"),
        (tensor(name=""), "no name"),
    ],
)
def test_broken_initialisers(make: Any, broken: Any, match: str) -> None:
    model = make([node("Relu", "x", "y")], {"x": X}, ["y"])
    model.graph.initializer.append(broken)
    with pytest.raises(MalformedModel, match=match):
        load(model)


def test_an_initialiser_that_stands_twice(make: Any) -> None:
    model = make([node("Relu", "x", "y")], {"x": X}, ["y"], constants={"w": X})
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(MalformedModel, match="'w' has no name or stands there twice"):
        load(model)


# --- symbols --------------------------------------------------------------------------------------


def open_model(make: Any, dims: list[Any]) -> Any:
    model = make([node("Relu", "x", "y")], {"x": np.zeros((1,) * len(dims), np.float32)}, ["y"])
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("x", 1, dims))
    return model


def test_symbols_keep_their_names_and_anonymous_ones_get_their_own(make: Any) -> None:
    graph = load(open_model(make, ["batch", 3, "?", "?", None, -1, 0, "batch"]))
    assert graph.inputs["x"].shape == ("batch", 3, "x.2", "x.3", "x.4", "x.5", "x.6", "batch")
    assert graph.symbols == ("batch", "x.2", "x.3", "x.4", "x.5", "x.6")
    assert list(graph.outputs) == ["y"]
    bound = graph.bind({"batch": 2}, {"x": (2, 3, 4, 5, 6, 7, 8, 2)})
    assert bound.output_specs["y"].shape == (2, 3, 4, 5, 6, 7, 8, 2)
    assert bound.symbols == ()
    with pytest.raises(FeedError, match=r"'x\.2'"):
        graph.bind({"batch": 2})


def test_binding_runs_the_conversion_anew(make: Any, compare: Any) -> None:
    model = open_model(make, ["n", 3])
    del model.graph.node[:]
    model.graph.node.extend(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n"),
            node("Concat", "n two", "t", axis=0),
            node("Reshape", "x t", "y"),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "two"))
    graph = load(model)
    for n in (2, 5):
        assert [v.op for v in graph.bind({"n": n}).nodes] in ([], ["reshape"], ["identity"])
        compare(model, {"x": np.ones((n, 3), np.float32)})


def test_a_size_that_does_not_fit_names_the_node_and_the_sizes(make: Any) -> None:
    model = open_model(make, ["n", 3])
    del model.graph.node[:]
    model.graph.node.append(node("Reshape", "x t", "y", "fold"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 3]), "t"))
    with pytest.raises(ShapeError, match=r"'fold' \(Reshape\).*x float32\[5,3\]"):
        load(model).bind({"n": 5})


# --- functions ------------------------------------------------------------------------------------


def with_function(make: Any, nodes: list[Any], **options: Any) -> Any:
    function = helper.make_function(
        "my",
        "Twice",
        ["a"],
        ["b"],
        nodes,
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("my", 1)],
        attributes=["factor"],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    call = [
        helper.make_node("Twice", ["x"], ["m"], name="one", domain="my", **options),
        helper.make_node("Twice", ["m"], ["y"], name="two", domain="my", **options),
    ]
    return make(call, {"x": X}, ["y"], opset_imports=imports, functions=[function])


def test_functions_are_written_out(make: Any, compare: Any) -> None:
    factor = helper.make_node("Constant", [], ["f"])
    reference = factor.attribute.add(name="value_float", ref_attr_name="factor")
    reference.type = onnx.AttributeProto.FLOAT
    body = [factor, helper.make_node("Mul", ["a", "f"], ["b"], name="times")]
    model = with_function(make, body, factor=3.0)
    graph = load(model)
    assert [n.name for n in graph.nodes] == ["one/times", "two/times"]
    compare(model, {"x": X})


def test_functions_that_call_themselves(make: Any) -> None:
    body = [helper.make_node("Twice", ["a"], ["b"], domain="my")]
    with pytest.raises(MalformedModel, match="'Twice' calls itself"):
        load(with_function(make, body))


def test_functions_that_unfold_without_end(make: Any) -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    functions = [
        helper.make_function(
            "my",
            f"F{i}",
            ["a"],
            ["b"],
            [
                helper.make_node(
                    f"F{i - 1}" if i else "Neg",
                    ["a" if k == 0 else f"t{k}"],
                    [f"t{k + 1}" if k < 9 else "b"],
                    domain="my" if i else "",
                )
                for k in range(10)
            ],
            opset_imports=imports,
        )
        for i in range(10)
    ]
    call = [helper.make_node("F9", ["x"], ["y"], domain="my")]
    model = make(call, {"x": X}, ["y"], opset_imports=imports, functions=functions)
    with pytest.raises(UnsafeModel, match="unfolds to more than"):
        load(model)


# --- names ----------------------------------------------------------------------------------------


def test_node_names_are_the_models_where_they_are_unique(make: Any) -> None:
    nodes = [
        node("Exp", "x", "a", "same"),
        node("Exp", "a", "b", "same"),
        node("Neg", "b", "c"),
        node("Selu", "c", "d", "mine"),
        node("Exp", "d", "y", "Exp_0"),
    ]
    names = [n.name for n in load(make(nodes, {"x": X}, ["y"])).nodes]
    assert names == ["Exp_1", "Exp_2", "Neg_0", "mine/elu", "mine", "Exp_0"]


def test_outputs_keep_names_and_order(make: Any, compare: Any) -> None:
    nodes = [node("Exp", "x", "b"), node("Neg", "x", "a")]
    model = make(nodes, {"x": X}, ["b", "x", "a", "k"], constants={"k": X + 5})
    assert list(compare(model, {"x": X})) == ["b", "x", "a", "k"]


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
