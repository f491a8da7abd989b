"""Sessions at the edges: odd graphs, every type across devices, wrong arguments, many shapes."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.base import DeviceInfo
from crossdock.kernels.reference import evaluate
from crossdock.runtime import prepare
from crossdock.runtime.errors import FeedError, GraphError, PlanError, Unavailable
from crossdock.runtime.graph import Graph
from crossdock.runtime.session import Session
from crossdock.runtime.tensor import DTYPES, TensorSpec, to_numpy
from tests.runtime.conftest import Machine
from tests.runtime.lazy_device import World

Array = np.ndarray[Any, np.dtype[Any]]
pytestmark = pytest.mark.usefixtures("no_hang")


def check(session: Session, feeds: dict[str, Any]) -> None:
    want = evaluate(session.graph, feeds)
    got = session.run(feeds, timeout=60)
    assert list(got) == list(session.graph.outputs)
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name], err_msg=name)
        assert TensorSpec.of(array) == TensorSpec.of(np.asarray(want[name]))


def odd_values(dtype: str) -> Array:
    """All byte patterns that a type's numbers may have ends of, in an odd shape."""
    if dtype == "bool":
        return np.array([[True, False, True]] * 5)
    if dtype in ("float16", "float32", "float64", "bfloat16"):
        numbers = [
            0.0,
            -0.0,
            1.5,
            -2.25,
            1e-3,
            np.inf,
            -np.inf,
            3.0,
            7.0,
            -1.0,
            2.0,
            5.0,
            0.1,
            9,
            8,
        ]
        return np.array(numbers, to_numpy(dtype)).reshape(5, 3)
    info = np.iinfo(to_numpy(dtype))
    return np.array([info.min, info.max, 0, 1, 7] * 3, to_numpy(dtype)).reshape(5, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", ["sim", "opencl"])
def test_every_type_crosses_between_devices(
    machine: Machine, dtype: str, other: str, request: pytest.FixtureRequest
) -> None:
    """Up, across through the host, and down again, turned on the way so that something is done."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    here = machine.lazy("a", World(1))
    there = machine.sim("b") if other == "sim" else str(request.getfixturevalue("opencl").id)
    b = xd.GraphBuilder()
    x = b.input("x", (5, 3), dtype)
    y = b.transpose(b.transpose(b.transpose(x, label="one"), label="two"), label="three")
    graph = b.build({"y": y})
    rules = xd.Constraints(pin={"one": here, "two": there, "three": here})
    try:
        session = xd.compile(graph, [here, there], constraints=rules, measure=False)
    except xd.Error as error:
        pytest.skip(f"{there} moves no {dtype}: {error}")
    with session:
        assert len(session.plan.copies()) == 6
        check(session, {"x": odd_values(dtype)})


@pytest.fixture(params=["cpu:0", "sim:a", "lazy"])
def device(request: pytest.FixtureRequest, machine: Machine) -> str:
    """The host, a device beside it, and one that puts everything off."""
    if request.param == "lazy":
        return machine.lazy("b", World(3))
    return machine.sim("a") if request.param == "sim:a" else "cpu:0"


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def odd_graph(kind: str) -> Graph:
    """Graphs whose outputs are hardly made by any op."""
    b = xd.GraphBuilder(strict=False)
    x = b.input("x", (2, 3))
    b.input("idle", (1000,))
    w = b.constant(X + 1)
    y = b.add(x, w, label="add")
    flat = b.reshape(x, [6])
    ends: dict[str, Any] = {
        "one": y,
        "no op": flat,
        "input": x,
        "constant": w,
        "twice": y,
        "alias twice": b.reshape(y, [3, 2]),
        "alias of alias": b.reshape(b.reshape(flat, [3, 2]), [1, 6]),
    }
    made = {name: v for name, v in ends.items() if name == kind or kind == "all"}
    if kind == "twice":
        made["again"] = y
    graph = b.build(made)
    raw = {"input": x.name, "constant": w.name}
    return replace(graph, outputs={n: raw.get(n, v) for n, v in graph.outputs.items()})


@pytest.mark.parametrize(
    "kind",
    ["one", "no op", "input", "constant", "twice", "alias twice", "alias of alias", "all"],
)
@pytest.mark.parametrize("passes", [True, False], ids=["passes", "plain"])
def test_odd_outputs_are_right(device: str, kind: str, passes: bool) -> None:
    graph = odd_graph(kind)
    skip = () if passes else ("fold-constants", "fuse-elementwise", "prune", "fold-affine")
    with xd.compile(graph, device, measure=False, skip_passes=skip) as session:
        for factor in (1, 2):
            check(session, {"x": X * factor, "idle": np.zeros(1000, np.float32)})
        assert session.estimate().seconds >= 0
        assert session.plan.explain()


def test_outputs_are_the_callers_own(device: str) -> None:
    """What a run returned does not change with the next run, nor the graph with what is done."""
    graph = odd_graph("all")
    with xd.compile(graph, device, measure=False, runs_at_once=1) as session:
        feeds = {"x": X, "idle": np.zeros(1000, np.float32)}
        first = session.run(feeds)
        kept = {n: a.copy() for n, a in first.items()}
        session.run({**feeds, "x": X + 100})
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name])
            array.fill(-1)
        check(session, feeds)


def test_results_that_nobody_reads_do_no_harm(device: str) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (4, 6))
    _, middle, _ = b.split(x, [1, 2, 3], axis=1, label="cut")
    _, last = b.split(b.add(middle, middle), 2, label="half")
    with xd.compile(b.build({"y": last}), device, measure=False) as session:
        check(session, {"x": np.arange(24, dtype=np.float32).reshape(4, 6)})


def test_an_lstm_of_which_only_the_cell_is_read(device: str) -> None:
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder()
    x = b.input("x", (3, 2, 4))
    w = b.constant(rng.standard_normal((1, 20, 4)).astype(np.float32))
    r = b.constant(rng.standard_normal((1, 20, 5)).astype(np.float32))
    _, cell, _ = b.lstm(x, w, r, 3, 5, return_sequence=True, label="lstm")
    graph = b.build({"cell": b.neg(cell)})
    feeds = {"x": rng.standard_normal((3, 2, 4)).astype(np.float32)}
    with xd.compile(graph, device, measure=False) as session:
        got, want = session.run(feeds, timeout=60), evaluate(graph, feeds, dtype="float64")
        # three steps of float32 sums of nine products
        np.testing.assert_allclose(got["cell"], want["cell"], rtol=1e-5, atol=1e-5)


def test_empty_tensors_pass_through(device: str) -> None:
    b = xd.GraphBuilder(strict=False)
    x = b.input("x", (0, 3))
    graph = b.build({"y": b.concat([x, b.neg(x)], 1), "z": b.reshape(x, [3, 0])})
    with xd.compile(graph, device, measure=False) as session:
        check(session, {"x": np.zeros((0, 3), np.float32)})


def test_scalars_pass_through(device: str) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", ())
    with xd.compile(b.build({"y": b.neg(b.neg(x))}), device, measure=False) as session:
        check(session, {"x": np.float32(2.5)})


@pytest.mark.parametrize("layout", ["strided", "fortran", "swapped", "readonly", "list"])
def test_feeds_of_any_layout_are_right(device: str, layout: str) -> None:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.neg(b.input("x", (2, 3), "int64"))})
    plain = np.arange(6).reshape(2, 3)
    feed: Any = {
        "strided": np.arange(12).reshape(2, 6)[:, ::2],
        "fortran": np.asfortranarray(plain),
        "swapped": plain.astype(">i8"),
        "readonly": plain.view(),
        "list": plain.tolist(),
    }[layout]
    if layout == "readonly":
        feed.flags.writeable = False
    with xd.compile(graph, device, measure=False) as session:
        np.testing.assert_array_equal(session.run({"x": feed})["y"], -np.asarray(feed))


GRAPH = odd_graph("one")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"graph": "model.onnx"}, r"takes a Graph, not str; .*crossdock\.load"),
        ({"objective": "speed"}, "objective 'speed': give 'latency', 'throughput', 'energy'"),
        (
            {"objective": "energy", "policy": "heft"},
            "policy 'heft' places for latency alone, in any shares",
        ),
        ({"policy": "fastest"}, "no policy 'fastest'; use one of auto, "),
        ({"devices": []}, "names nothing to run on; give 'auto'"),
        ({"devices": [1]}, "names nothing to run on"),
        ({"devices": None}, "names nothing to run on"),
        ({"expected_runs": 0}, "expected_runs=0: give 1 or more"),
        ({"check_finite": "yes"}, "check_finite='yes': give True or False"),
        ({"strict": 1}, "strict=1: give True or False"),
        ({"runs_at_once": 0}, "runs_at_once=0"),
        ({"threads": 0}, "threads=0"),
        ({"skip_passes": "fuse-bias"}, "skip_passes='fuse-bias': give a list of names"),
        ({"skip_passes": 5}, "skip_passes=5: give a list of names"),
        ({"skip_passes": [5]}, r"skip_passes=\[5\]: give a list of names"),
        ({"watchdog": 0}, "watchdog=0: give seconds"),
        ({"verify": "copies"}, "verify='copies': give 'transfers', 'sample:0.01'"),
        ({"threads": "two"}, "threads='two': give 1 or more"),
        ({"measure": "no"}, "measure='no': give True, False or a budget"),
        ({"measure": -1.0}, r"measure=-1\.0: give True, False or a budget"),
        ({"constraints": {"pin": {}}}, r"constraints is a crossdock\.Constraints, not dict"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_with_the_fix(
    wrong: dict[str, Any], said: str
) -> None:
    arguments: dict[str, Any] = {"graph": GRAPH, "devices": "cpu:0", "measure": False}
    with pytest.raises(PlanError, match=said):
        xd.compile(**arguments | wrong)


def test_devices_that_are_not_here_say_what_is() -> None:
    with pytest.raises(Unavailable, match=r"no device 'sim:z': .*register.*cpu:0"):
        xd.compile(GRAPH, "sim:z", measure=False)
    with pytest.raises(Unavailable, match="no device 'tpu:0'"):
        xd.compile(GRAPH, ["cpu:0", "tpu:0"], measure=False)


def test_a_pass_that_is_not_there_is_named() -> None:
    with pytest.raises(GraphError, match="no pass 'nope'"):
        xd.compile(GRAPH, "cpu:0", measure=False, skip_passes=["nope"])


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        (3, "feeds maps input names to arrays, not int"),
        ({"x": [[1, 2], [3]], "idle": np.zeros(1000, np.float32)}, "input 'x' wants"),
        ({"x": object(), "idle": np.zeros(1000, np.float32)}, "input 'x' wants"),
        ({"x": X[0], "idle": np.zeros(1000, np.float32)}, "input 'x' wants"),
    ],
)
def test_feeds_that_make_no_sense_are_refused(feeds: Any, said: str) -> None:
    with (
        xd.compile(GRAPH, "cpu:0", measure=False) as session,
        pytest.raises(FeedError, match=said),
    ):
        session.run(feeds)


def symbolic() -> Graph:
    b = xd.GraphBuilder()
    return b.build({"y": b.neg(b.input("x", ("n", 2)))})


def test_shapes_are_planned_once_each_and_the_oldest_go() -> None:
    from crossdock.runtime.repertoire import SHAPES_KEPT

    with xd.compile(symbolic(), "cpu:0", measure=False) as session:
        for n in [*range(1, SHAPES_KEPT + 3), 1]:
            np.testing.assert_array_equal(session.run({"x": np.ones((n, 2), np.float32)})["y"], -1)
            assert session.plan.steps[0].outputs
        assert len(session._plans.kept) == SHAPES_KEPT


@pytest.mark.usefixtures("costs")  # what other tests measured would choose another kernel
@pytest.mark.parametrize("device", ["cpu:0", "opencl:0"])
def test_plans_for_several_shapes_share_their_weights(device: str) -> None:
    b = xd.GraphBuilder()
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    w.flags.writeable = False
    graph = b.build({"y": b.matmul(b.input("x", ("n", 2)), b.constant(w))})
    with xd.compile(graph, device, measure=False) as session:
        for n in (2, 5):
            x = np.full((n, 2), n, np.float32)
            np.testing.assert_allclose(session.run({"x": x})["y"], x @ w)
        first, second = (ready.program.residents for ready in session._plans.kept.values())
        assert [id(v) for v in first.values()] == [id(v) for v in second.values()]


def test_shapes_after_the_first_are_planned_without_measuring_what_fits(
    costs: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossdock.runtime import measure

    asked: list[bool] = []

    def noting(*_args: object, fits: bool, **_options: object) -> int:
        asked.append(fits)
        return 0

    monkeypatch.setattr(measure, "measure_ops", noting)
    with xd.compile(symbolic(), "cpu:0") as session:
        for n in (3, 4, 3, 5):
            session.run({"x": np.ones((n, 2), np.float32)})
    assert asked == [False, True, True]


def test_shapes_may_be_bound_before(costs: object) -> None:
    with xd.compile(symbolic(), "cpu:0", measure=False, dims={"n": 4}) as session:
        first = session._plans.bound()
        session.run({"x": np.ones((4, 2), np.float32)})
        assert session._plans.bound() is first
        session.bind({"x": (4, 2)})
        assert session._plans.bound() is first
        with pytest.raises(FeedError, match="wants float32"):
            session.run({"x": np.ones((4, 3), np.float32)})


def test_planning_for_new_shapes_holds_up_no_run_of_known_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reached, go, known = threading.Event(), threading.Event(), prepare.prepare

    def slow(*args: Any, **options: Any) -> Any:
        reached.set()
        assert go.wait(30)
        return known(*args, **options)

    with xd.compile(symbolic(), "cpu:0", measure=False, dims={"n": 1}) as session:
        monkeypatch.setattr(prepare, "prepare", slow)
        futures = [session.submit({"x": np.ones((2, 2), np.float32)}) for _ in range(4)]
        assert reached.wait(10)
        for _ in range(3):
            session.run({"x": np.ones((1, 2), np.float32)})
        go.set()
        for future in futures:
            assert future.result(30)["y"].shape == (2, 2)
        assert len(session._plans.kept) == 2


def test_a_session_closed_while_it_plans_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = prepare.prepare

    def closing(*args: Any, **options: Any) -> Any:
        made = known(*args, **options)
        session.close()
        return made

    monkeypatch.setattr(prepare, "prepare", closing)
    session = xd.compile(symbolic(), "cpu:0", measure=False)
    session.run({"x": np.ones((2, 2), np.float32)})  # was under way when the session was closed
    assert not session._plans.kept
    with pytest.raises(PlanError, match="closed"):
        session.run({"x": np.ones((2, 2), np.float32)})


def test_two_sessions_share_a_device(machine: Machine, opencl: DeviceInfo) -> None:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.tanh(b.input("x", (3,)))})
    with (
        xd.compile(graph, opencl.id, measure=False) as one,
        xd.compile(graph, opencl.id, measure=False) as two,
    ):
        assert one.devices[opencl.id] is two.devices[opencl.id]
        one.close()
        assert two.run({"x": np.zeros(3, np.float32)})["y"].sum() == 0
