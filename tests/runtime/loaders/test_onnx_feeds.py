"""What staged graphs are fed and give: strings, sequences, optionals, small floats."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import FeedError, LoadError, MalformedModel
from crossdock.runtime.loaders.onnx_host import EMPTY, HostCall, host_op

DOMAIN = "crossdock.testing.feeds"
F = TensorProto.FLOAT
X = np.array([1, -2, 3], np.float32)


@host_op("Echo", domain=DOMAIN)
def echo(call: HostCall) -> Any:
    """The operand."""
    return call.x()


@host_op("Kind", domain=DOMAIN)
def kind(call: HostCall) -> Any:
    """0 for a tensor, 1 for a sequence, 2 for an empty optional."""
    value = call.x()
    return np.int64(isinstance(value, list) + 2 * (value is EMPTY))


def tensor(dtype: int = F, shape: Any = None) -> Any:
    return helper.make_tensor_type_proto(dtype, shape)


def fed(type_proto: Any, op: str = "Echo") -> xd.Graph:
    nodes = [helper.make_node(op, ["x"], ["y"], domain=DOMAIN)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_value_info("x", type_proto)],
        [onnx.ValueInfoProto(name="y")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return xd.load(helper.make_model(graph, opset_imports=imports, ir_version=10))


@pytest.fixture(params=["evaluate", "session"])
def run(request: pytest.FixtureRequest) -> Any:
    def through(graph: xd.Graph, x: Any) -> Any:
        if request.param == "evaluate":
            return evaluate(graph, {"x": x})["y"]
        with xd.compile(graph, "cpu:0", measure=False) as session:
            return session.run({"x": x})["y"]

    return through


def test_strings(run: Any) -> None:
    graph = fed(tensor(TensorProto.STRING, ["n"]))
    for words in (["a", "ä"], np.array(["a", "ä"]), np.array(["a", "ä"], object)):
        got = run(graph, words)
        assert got.dtype == object
        assert got.tolist() == ["a", "ä"]
    assert run(graph, np.array([b"a"])).tolist() == ["a"]
    for wrong in (X, None, [["a"]]):
        with pytest.raises(FeedError, match=r"'x' wants tensor\(string\)"):
            run(graph, wrong)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        (ml_dtypes.float8_e4m3fn, TensorProto.FLOAT8E4M3FN),
        (ml_dtypes.float8_e5m2fnuz, TensorProto.FLOAT8E5M2FNUZ),
        (ml_dtypes.int4, TensorProto.INT4),
        (ml_dtypes.uint4, TensorProto.UINT4),
        (ml_dtypes.float4_e2m1fn, TensorProto.FLOAT4E2M1),
        (np.complex64, TensorProto.COMPLEX64),
    ],
)
def test_small_and_complex_numbers(run: Any, dtype: Any, number: int) -> None:
    array = np.array([[1, 0, 2]]).astype(dtype)
    got = run(fed(tensor(number, [1, 3])), array)
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got.astype(np.complex64), array.astype(np.complex64))
    with pytest.raises(FeedError, match="'x' wants tensor"):
        run(fed(tensor(number, [1, 3])), array.real.astype(np.float32))
    with pytest.raises(FeedError, match=r"of shape \[1,3\], got \[3\]"):
        run(fed(tensor(number, [1, 3])), array[0])


def test_sequences(run: Any) -> None:
    graph = fed(helper.make_sequence_type_proto(tensor()))
    got = run(graph, [X, X[:0]])
    assert isinstance(got, list)
    assert [a.tolist() for a in got] == [X.tolist(), []]
    assert run(graph, ()) == []
    assert run(fed(helper.make_sequence_type_proto(tensor()), "Kind"), [X]) == 1
    with pytest.raises(FeedError, match=r"'x' wants tensor\(float32\), got float64"):
        run(graph, [X, X.astype(np.float64)])
    with pytest.raises(FeedError, match=r"'x' wants seq\(tensor\(float32\)\), a list, not ndarray"):
        run(graph, X)


def test_optionals(run: Any) -> None:
    optional = helper.make_optional_type_proto(tensor(F, [3]))
    assert run(fed(optional), None) is None
    np.testing.assert_array_equal(run(fed(optional), X), X)
    assert [run(fed(optional, "Kind"), v) for v in (None, EMPTY, X)] == [2, 2, 0]
    of_lists = helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor()))
    assert run(fed(of_lists, "Kind"), [X]) == 1
    with pytest.raises(FeedError, match=r"'x' wants seq"):
        run(fed(of_lists), X)


def test_types_nested_too_deep() -> None:
    deep = tensor()
    for _ in range(20):
        deep = helper.make_sequence_type_proto(deep)
    with pytest.raises(MalformedModel, match="the type of 'x' is nested too deep"):
        fed(deep)


def test_maps_cannot_be_fed() -> None:
    maps = onnx.TypeProto()
    maps.map_type.key_type = TensorProto.INT64
    maps.map_type.value_type.CopyFrom(tensor())
    with pytest.raises(FeedError, match="'x' is a map"):
        evaluate(fed(maps), {"x": {1: X}})


def constant_model(value: Any) -> xd.Graph:
    nodes = [
        helper.make_node("Echo", ["c"], ["y"], domain=DOMAIN),
        helper.make_node("Neg", ["x"], ["z"]),
    ]
    held = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, "c")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_value_info("x", tensor(F, [3]))],
        [onnx.ValueInfoProto(name=n) for n in "yz"],
        [held],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return xd.load(helper.make_model(graph, opset_imports=imports, ir_version=10))


@pytest.mark.parametrize(
    "value",
    [
        np.array(["a", "b"], object),
        np.array([[1, -2, 3]]).astype(ml_dtypes.int4),
        np.array([0.5, 2]).astype(ml_dtypes.float8_e5m2),
        np.array([1 + 2j, 3], np.complex128),
    ],
)
def test_constants_of_types_that_the_host_alone_has(value: Any) -> None:
    """They are read once, and what the host makes of them is known when the model is loaded."""
    graph = constant_model(value)
    got = evaluate(graph, {"x": X})
    assert got["y"].dtype == value.dtype
    assert got["y"].tolist() == value.tolist()
    np.testing.assert_array_equal(got["z"], -X)
    with xd.compile(graph, "cpu:0", measure=False) as session:
        session.run({"x": X})
        assert [o.name for o in session.receipt.ops] == ["Neg_0"]


def test_what_the_host_makes_of_constants_is_one_graph() -> None:
    graph = constant_model(X)
    assert graph.staged is None
    np.testing.assert_array_equal(evaluate(graph, {"x": X})["y"], X)


@pytest.mark.parametrize(
    ("dtype", "dims", "data"),
    [
        (TensorProto.STRING, [3], {"string_data": [b"a"]}),
        (TensorProto.INT4, [9], {"raw_data": b"\x12"}),
        (TensorProto.FLOAT8E5M2, [1 << 40], {"raw_data": b"\x12"}),
        (TensorProto.COMPLEX64, [2], {"float_data": [1.0]}),
    ],
)
def test_constants_whose_data_do_not_fit(dtype: int, dims: list[int], data: Any) -> None:
    held = TensorProto(name="c", data_type=dtype, dims=dims, **data)
    with pytest.raises(MalformedModel, match="initialiser 'c'"):
        constant_model(held)


def test_constants_in_other_files() -> None:
    held = TensorProto(name="c", data_type=TensorProto.INT4, dims=[2])
    held.data_location = TensorProto.EXTERNAL
    with pytest.raises(LoadError, match=r"'c'.*load the model by its path"):
        constant_model(held)
