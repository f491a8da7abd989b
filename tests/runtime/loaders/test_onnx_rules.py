"""What a model may not be, each rule by the words in which its own guard says so.

Guards behind a guard often catch what it lets through, later or in other words; so it is not enough
that there is some error.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import crossdock as xd
from crossdock.runtime import limits
from crossdock.runtime.errors import (
    IterationLimit,
    LimitError,
    MalformedModel,
    ShapeError,
    UnsupportedModel,
)
from crossdock.runtime.limits import Budget, Limits
from crossdock.runtime.loaders import load
from crossdock.runtime.loaders.onnx_check import sort_model
from crossdock.runtime.loaders.onnx_parse import parse_proto
from crossdock.runtime.loaders.source import Source
from tests.runtime.hostile.graphs import _function
from tests.runtime.hostile.kit import info, model, node
from tests.runtime.hostile.loops import PASS, SAME, W, body, looped

X, Y, C = info("x"), info("y"), info("c", T.BOOL, ())


def calling(name: str, *functions: Any) -> Any:
    return model([node(name, "x", "y", domain="mine")], [X], [Y], functions=functions)


def laughing(wide: int, levels: int) -> Any:
    functions = [_function("f0", ["Relu"])]
    functions += [_function(f"f{k}", [f"f{k - 1}"] * wide) for k in range(1, levels)]
    return calling(f"f{levels - 1}", *functions)


def branching(then: Any, other: Any) -> Any:
    return model([node("If", "c", "y", then_branch=then, else_branch=other)], [X, C], [Y])


def branch(*nodes: Any, ends: str = "b", inputs: Any = (), **held: Any) -> Any:
    constants = [numpy_helper.from_array(np.float32(v), n) for n, v in held.items()]
    return helper.make_graph(list(nodes), "b", list(inputs), [info(ends)], constants)


PLAIN = branch(node("Relu", "x", "b"))
RELU = node("Relu", "x", "y")


@pytest.mark.parametrize(
    ("proto", "error", "said"),
    [
        (calling("f", _function("f", ["f"])), MalformedModel, "function 'f' calls itself"),
        (calling("f", _function("f", ["g"]), _function("g", ["f"])), MalformedModel,
         "function '[fg]' calls itself"),
        (laughing(1, 50), LimitError, "more than 32 functions call one another"),
        (calling("f", _function("f", ["Relu"]), _function("f", ["Relu"] * 2)), MalformedModel,
         "function 'f' is defined twice"),
        (model([RELU], [X, X], [Y]), MalformedModel, "input 'x' has no name or stands there twice"),
        (model([RELU], [X, info("")], [Y]), MalformedModel, "input '' has no name"),
        (model([RELU, node("Neg", "y", "x")], [X], [Y]), MalformedModel,
         "makes 'x', which is defined already"),
        (model([RELU], [X], [Y, Y]), MalformedModel, "gives output 'y' twice"),
        (model([RELU], [X], [Y, info("z")]), MalformedModel, "output 'z' but nothing makes it"),
        (branching(branch(node("Relu", "x", "b"), x=1.0), PLAIN), MalformedModel,
         "graph 'b' defines 'x' again"),
        (branching(branch(node("Relu", "x", "x"), ends="x"), PLAIN), MalformedModel,
         "makes 'x', which is defined already"),
        (model([node("If", "c", "y", then_branch=PLAIN)], [X, C], [Y]), MalformedModel,
         "subgraph 'else_branch' is missing"),
        (model([node("Frobnicate", "x", "y")], [X], [Y]), UnsupportedModel, "Frobnicate"),
        (model([node("Relu; id", "x", "y")], [X], [Y]), UnsupportedModel, "'Relu; id'"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_rules_of_graphs(proto: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load(proto)


def parsed(proto: Any, **given: Any) -> Any:
    return parse_proto(proto, Source(b"", "m", limits=Limits(**given)))


def test_what_functions_unfold_to_is_counted_before_it_is_made() -> None:
    made = parsed(laughing(2, 30))
    with pytest.raises(LimitError, match="unfolds to more than 200,000 nodes"):
        sort_model(made)


def test_nodes_are_counted_as_they_are_read() -> None:
    proto = model([RELU, node("Neg", "y", "z")], [X], [Y])
    assert parsed(proto, nodes=2)
    with pytest.raises(LimitError, match=r"more than 1 nodes; raise Limits\.nodes"):
        parsed(proto, nodes=1)


def held(**fields: Any) -> Any:
    tensor = T(name="w", **{"data_type": T.FLOAT, "dims": [2], **fields})
    return model([node("Relu", "w", "y")], [], [Y], initializers=[tensor])


def sparse(places: list[int], dims: list[int]) -> Any:
    values = numpy_helper.from_array(np.ones(len(places), np.float32), "w")
    made = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(places)), dims)
    proto = model([node("Relu", "w", "y")], [], [Y])
    proto.graph.sparse_initializer.append(made)
    return proto


EIGHT = b"\0" * 8


@pytest.mark.parametrize(
    ("proto", "error", "said"),
    [
        (held(raw_data=EIGHT[1:]), MalformedModel, r"float32\[2\] takes 8 bytes, its data has 7"),
        (held(float_data=[1]), MalformedModel, "2 values are due in float_data, it has 1"),
        (held(raw_data=EIGHT, float_data=[1, 2]), MalformedModel, "data in more than one field"),
        (held(float_data=[1, 2], int32_data=[1]), MalformedModel, "data in more than one field"),
        (held(data_type=T.STRING, string_data=[b"a"]), MalformedModel, "2 strings are due"),
        (held(dims=[-1], raw_data=EIGHT), MalformedModel, r"\[-1\] is no shape of a tensor"),
        (held(dims=[-2, -1], raw_data=EIGHT), MalformedModel, "is no shape of a tensor"),
        (held(dims=[2**31, 2**31], raw_data=EIGHT), MalformedModel, "is no shape of a tensor"),
        (held(dims=[1] * 33, raw_data=EIGHT[4:]), MalformedModel, "is no shape of a tensor"),
        (model([RELU], [info("x", shape=[1] * 33)], [Y]), MalformedModel, "'x' has 33 dimensions"),
        (
            sparse([99], [2]),
            MalformedModel,
            r"sparse indices \[1\] and values \[1\] do not fit \[2\]",
        ),
        (sparse([0], [2**20, 2**20]), LimitError, "made dense: would make a tensor of"),
    ],
)
def test_rules_of_tensors(proto: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load(proto)


def test_an_initialiser_stands_there_once() -> None:
    proto = held(raw_data=EIGHT)
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(MalformedModel, match="initialiser 'w' has no name or stands there twice"):
        load(proto)


def test_a_tensor_has_less_than_2_to_the_63_bytes() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (2**20, 1))
    with pytest.raises(ShapeError, match="bytes"):
        b.expand(x, (2**20, 2**41))


@pytest.mark.parametrize("asked", [1 << 40, 1 << 25])
def test_memory_is_looked_for_before_it_is_taken(
    asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "free_bytes", lambda: 1 << 24)
    with pytest.raises(LimitError, match=rf"a file: takes {asked:,} bytes, and 16,777,216 are"):
        limits.require_free(asked, "a file")


def test_nodes_of_one_name_are_told_apart() -> None:
    nodes = [node("Relu", "x", "a", name="n"), node("Neg", "a", "b", name="n"),
             node("Abs", "b", "y", name="m")]  # fmt: skip
    graph = load(model(nodes, [X], [Y]))
    assert [n.name for n in graph.nodes] == ["Relu_0", "Neg_0", "m"]


# --- words ---------------------------------------------------------------------------------------

IMAGE = info("x", shape=(1, 4, 4, 4))
ZEROS = np.zeros((1, 1, 1, 1), np.float32)
REGION = {"r": np.zeros((1, 4), np.float32), "b": np.zeros(1, np.int64)}
GRID = {"g": np.zeros((1, 2, 2, 2), np.float32)}
SCALES = {"s": np.array([1, 1, 2, 2], np.float32)}

WORDS: list[tuple[Any, dict[str, Any], str]] = [
    (("Conv", "x w"), {"w": np.ones((2, 4, 3, 3), np.float32)}, "auto_pad"),
    (("DepthToSpace", "x", {"blocksize": 2}), {}, "mode"),
    (("Gelu", "x"), {}, "approximate"),
    (("GridSample", "x g"), GRID, "mode"),
    (("GridSample", "x g"), GRID, "padding_mode"),
    (("Pad", "x p"), {"p": np.zeros(8, np.int64)}, "mode"),
    (("Resize", "x - s"), SCALES, "mode"),
    (("Resize", "x - s", {"mode": "linear"}), SCALES, "coordinate_transformation_mode"),
    (("Resize", "x - s", {"mode": "nearest"}), SCALES, "nearest_mode"),
    (("RoiAlign", "x r b"), REGION, "mode"),
    (("RoiAlign", "x r b"), REGION, "coordinate_transformation_mode"),
    (("ScatterElements", "x k u"), {"k": ZEROS.astype(np.int64), "u": ZEROS}, "reduction"),
]


@pytest.mark.parametrize(("op", "constants", "name"), WORDS, ids=lambda v: str(v)[:24])
def test_a_choice_is_one_of_the_operators_words(
    op: Any, constants: dict[str, Any], name: str
) -> None:
    kind, inputs, attrs = (*op, {})[:3]
    wild = {name: "wild*/ int3 /*"}
    proto = model([node(kind, inputs, "y", **attrs, **wild)], [IMAGE], ["y"], opset=20, **constants)
    with pytest.raises(MalformedModel, match=r"'wild\*/ int3 /\*'"):
        load(proto)


# --- what a few bytes ask for ---------------------------------------------------------------------


def test_what_the_host_makes_is_within_the_budget() -> None:
    words = np.full((50, 1), "ab", dtype=object)
    proto = model([node("StringConcat", "a b", "y")], [], ["y"], opset=20, a=words, b=words.T)
    assert run(proto)["y"].shape == (50, 50)
    with pytest.raises(LimitError, match="would make a tensor of 20,000 bytes"):
        run(proto, tensor_bytes=1_000, growth=1)


def test_what_takes_long_is_left_to_the_devices() -> None:
    c = np.zeros((900, 900), np.float32)
    assert [n.op for n in load(model([node("MatMul", "c c", "y")], [], ["y"], c=c)).nodes] == [
        "matmul"
    ]
    assert not load(model([node("MatMul", "c c", "y")], [], ["y"], c=c[:9, :9])).nodes[:-1]


def test_a_node_that_becomes_many_ops_counts_as_many() -> None:
    many = node("Max", " ".join(["x"] * 200), "y")
    assert load(model([many], [X], [Y]), limits=Limits(nodes=200))
    with pytest.raises(LimitError, match="unfolds to more than 100 nodes"):
        load(model([many], [X], [Y]), limits=Limits(nodes=100))


# --- loops ----------------------------------------------------------------------------------------


def run(proto: Any, **given: Any) -> dict[str, Any]:
    with xd.compile(load(proto, limits=Limits(**given)), ["cpu:0"], measure=False) as session:
        return session.run({})


LATER = node("Less", "i most", "on")


@pytest.mark.parametrize("trips", [None, 2**62])
def test_a_loop_that_cannot_end_is_not_begun(trips: int | None) -> None:
    asked = "never ends" if trips is None else "takes 4,611,686,018,427,387,904 iterations"
    with pytest.raises(IterationLimit, match=f"{asked}, over the limit of 50,000"):
        run(looped(SAME, trips))


def test_a_loop_that_might_end_is_counted() -> None:
    counted = body([LATER, node("Neg", "v", "w")], [W], most=np.array(2**62))
    with pytest.raises(IterationLimit, match="still going after the limit of 70 iterations"):
        run(looped(counted, None), iterations=70)


def test_the_time_of_a_loop_is_looked_at_in_every_iteration() -> None:
    """Within a second of it, though iterations are many."""
    counted = body([LATER, node("Neg", "v", "w")], [W], most=np.array(2**62))
    graph = load(looped(counted, None), limits=Limits(seconds=0.2, iterations=10**9))
    with (
        xd.compile(graph, ["cpu:0"], measure=False) as session,
        pytest.raises(LimitError, match=r"not done after 0\.2 s; raise Limits\.seconds"),
    ):
        session.run({})


def test_a_loop_ends_with_its_run() -> None:
    counted = body([LATER, node("Neg", "v", "w")], [W], most=np.array(2**62))
    graph = load(looped(counted, None), limits=Limits(iterations=10**9))
    with xd.compile(graph, ["cpu:0"], measure=False) as session:
        with pytest.raises(xd.Error, match=r"not done after 0\.2 s; the session stays usable"):
            session.run({}, timeout=0.2)
        future = session.submit({})
        future.cancel()
        with pytest.raises(CancelledError):
            future.result(10)


def test_a_loop_that_computes_nothing_ends_with_its_run() -> None:
    passing = body([PASS, node("Identity", "v", "w")], [W])
    graph = load(looped(passing, 10**9), limits=Limits(iterations=10**10))
    with (
        xd.compile(graph, ["cpu:0"], measure=False) as session,
        pytest.raises(xd.Error, match=r"not done after 0\.2 s; the session stays usable"),
    ):
        session.run({}, timeout=0.2)


def test_scan_outputs_may_take_what_one_tensor_may() -> None:
    many = body([PASS, node("Identity", "v", "w"), node("Identity", "v", "row")],
                [W, info("row", T.FLOAT, None)])  # fmt: skip
    proto = looped(many, 100, start=np.ones(1000), outputs="y rows")
    assert run(proto)["rows"].shape == (100, 1000)
    with pytest.raises(LimitError, match="would make a tensor of"):
        run(proto, tensor_bytes=40_000, growth=1)


def test_bodies_of_ever_new_shapes_are_counted() -> None:
    budget = Budget(Limits(iterations=100))
    for _ in range(limits.FREE_STAGES):
        budget.stage("a body")
    with pytest.raises(IterationLimit, match="64 iterations had shapes of their own"):
        budget.stage("a body")
    grow = body([PASS, node("Concat", "v one", "w", axis=0)], [W], one=np.ones(1, np.float32))
    with pytest.raises(IterationLimit, match="64 iterations had shapes of their own"):
        run(looped(grow, 90), iterations=100)
