"""ONNX initialisers, open dimensions, functions and names: what becomes of them in the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import (
    FeedError,
    MalformedModel,
    ShapeError,
    UnsafeModel,
)
from crossdock.runtime.loaders import load

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def node(op: str, inputs: str, outputs: str, name: str = "", **attrs: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attrs)


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
    found = evaluate(graph, {"x": X})["y"]
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


def test_bfloat16_initialisers(make: Any) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[2])
    tensor.int32_data.extend([0x3FC0, 0xC000])
    model = make([node("Cast", "w", "y", to=TensorProto.FLOAT)], {"x": X}, ["y"])
    model.graph.initializer.append(tensor)
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
