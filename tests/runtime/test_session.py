"""Sessions end to end: right answers whatever the placement, errors that say what and where."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.runtime.errors import FeedError, NoPlacement, PlanError, UnsupportedOp
from crossdock.runtime.graph import Graph
from crossdock.runtime.passes import PASSES

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(7)


def opencl() -> str:
    """The first OpenCL device, or a skip that says why there is none."""
    found = [d.id for d in xd.devices() if d.kind == "opencl"]
    if not found:
        probe = next(p for p in registry.probe_all() if p.kind == "opencl")
        pytest.skip(f"no OpenCL device: {probe.reason}")
    return found[0]


def diamond() -> Graph:
    """x -> two branches of two ops each -> their sum."""
    b = xd.GraphBuilder()
    x = b.input("x", (8, 16))
    w = b.constant(RNG.standard_normal((16, 16)).astype(np.float32))
    left = b.tanh(b.matmul(x, w, label="left"), label="left_act")
    right = b.sigmoid(b.matmul(x, b.transpose(w), label="right"), label="right_act")
    return b.build({"y": b.add(left, right, label="join")})


def diamond_reference(graph: Graph, x: Array) -> Array:
    """The same in float64."""
    w = next(iter(graph.constants.values())).astype(np.float64)
    z = x.astype(np.float64)
    return np.tanh(z @ w) + 1 / (1 + np.exp(-(z @ w.T)))


def feed(seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((8, 16)).astype(np.float32)


def test_the_host_alone() -> None:
    graph = diamond()
    with xd.compile(graph, "cpu:0") as session:
        x = feed()
        y = session.run({"x": x})["y"]
        np.testing.assert_allclose(y, diamond_reference(graph, x), rtol=1e-5, atol=1e-5)
        assert session.estimate().seconds > 0
        assert session.estimate().peak_bytes["cpu:0"] > 0
        assert {op.device for op in session.receipt.ops} == {"cpu:0"}
        assert session.receipt.links == {}


def test_branches_on_two_devices_and_the_receipt_says_so() -> None:
    device = opencl()
    graph = diamond()
    rules = xd.Constraints(pin={"left*": device, "right*": "cpu:0", "join": "cpu:0"})
    with xd.compile(graph, ["cpu:0", device], constraints=rules) as session:
        x = feed()
        y = session.run({"x": x})["y"]
        np.testing.assert_allclose(y, diamond_reference(graph, x), rtol=1e-5, atol=1e-5)
        where = {op.name: op.device for op in session.receipt.ops}
        assert where["left"] == device
        assert where["right"] == "cpu:0"
        # x goes up, one 8 x 16 float32 comes down
        assert session.receipt.links == {f"cpu:0->{device}": 512, f"{device}->cpu:0": 512}


def test_the_plan_is_never_predicted_worse_than_a_single_device() -> None:
    device = opencl()
    with xd.compile(diamond(), ["cpu:0", device]) as session:
        plan = session.plan
        alone = [d.single_seconds for d in plan.devices if d.single_seconds is not None]
        assert alone
        assert plan.lower_bound <= plan.predicted * (1 + 1e-9)
        assert plan.predicted <= min(alone) * (1 + 1e-9)


def test_plan_survives_json_and_explains_every_op() -> None:
    with xd.compile(diamond(), "cpu:0", skip_passes=list(PASSES)) as session:
        plan = session.plan
        again = xd.Plan.from_json(plan.to_json())
        assert again.digest() == plan.digest()
        assert "left_act" in plan.explain()
        assert "cpu:0" in plan.explain_op("left")
        with pytest.raises(PlanError, match=r"no op 'lef'.*left"):
            plan.explain_op("lef")


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "input 'x' is not fed"),
        ({"x": feed(), "z": feed()}, "no input is named 'z'"),
        ({"x": feed().astype(np.float64)}, "wants float32"),
        ({"x": feed()[:3]}, "wants float32"),
    ],
)
def test_wrong_feeds_are_named(feeds: dict[str, Array], said: str) -> None:
    with xd.compile(diamond(), "cpu:0") as session, pytest.raises(FeedError, match=said):
        session.run(feeds)


def test_constraints_that_name_nothing_are_refused() -> None:
    with pytest.raises(PlanError, match="matches no op"):
        xd.compile(diamond(), "cpu:0", constraints=xd.Constraints(pin={"nope": "cpu:0"}))
    with pytest.raises(PlanError, match="names device 'cuda:9'"):
        xd.compile(diamond(), "cpu:0", constraints=xd.Constraints(pin={"left": "cuda:9"}))
    with pytest.raises(NoPlacement, match="left"):
        xd.compile(diamond(), "cpu:0", constraints=xd.Constraints(forbid={"left": "cpu:0"}))
    with pytest.raises(PlanError, match=r"needs .* B"):
        xd.compile(diamond(), "cpu:0", constraints=xd.Constraints(memory={"cpu:0": 100}))


def test_an_unknown_device_says_what_there_is() -> None:
    with pytest.raises(xd.Error, match="cpu:0"):
        xd.compile(diamond(), "opencl:99")


def test_many_threads_share_a_session() -> None:
    graph = diamond()
    with xd.compile(graph, "cpu:0") as session:
        wanted = {i: session.run({"x": feed(i)})["y"] for i in range(8)}

        def work(i: int) -> bool:
            runs = [session.run({"x": feed(i)})["y"] for _ in range(20)]
            return all(np.array_equal(run, wanted[i]) for run in runs)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


def test_two_sessions_at_once_across_devices() -> None:
    device = opencl()
    graph = diamond()
    one = xd.Constraints(pin={"left*": device, "right*": "cpu:0", "join": "cpu:0"})
    two = xd.Constraints(pin={"left*": "cpu:0", "right*": device, "join": device})
    x = feed()
    want = diamond_reference(graph, x)
    with (
        xd.compile(graph, ["cpu:0", device], constraints=one) as a,
        xd.compile(graph, ["cpu:0", device], constraints=two) as b,
    ):
        futures = [s.submit({"x": x}) for _ in range(25) for s in (a, b)]
        for future in futures:
            y = future.result(timeout=60)["y"]
            np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


async def test_a_run_can_be_awaited() -> None:
    graph = diamond()
    with xd.compile(graph, "cpu:0") as session:
        results = await asyncio.gather(*(session.submit({"x": feed(i)}) for i in range(20)))
        for i, result in enumerate(results):
            want = diamond_reference(graph, feed(i))
            np.testing.assert_allclose(result["y"], want, rtol=1e-5, atol=1e-5)


def test_a_failing_run_reaches_the_future() -> None:
    with xd.compile(diamond(), "cpu:0") as session:
        future = session.submit({})
        with pytest.raises(FeedError):
            future.result(timeout=10)


def test_symbols_are_bound_by_the_first_run_and_again() -> None:
    b = xd.GraphBuilder()
    x = b.input("x", ("batch", 16))
    graph = b.build({"y": b.softmax(b.relu(x), 1)})
    assert graph.symbols == ("batch",)
    with xd.compile(graph, "cpu:0") as session:
        with pytest.raises(PlanError, match="batch"):
            _ = session.plan
        for n in (1, 5, 1, 3):
            got = session.run({"x": np.ones((n, 16), np.float32)})["y"]
            np.testing.assert_allclose(got, np.full((n, 16), 1 / 16), rtol=1e-6)


def test_a_closed_session_says_so() -> None:
    session = xd.compile(diamond(), "cpu:0")
    session.close()
    with pytest.raises(PlanError, match="closed"):
        session.run({"x": feed()})


def test_an_unknown_operator_names_near_ones() -> None:
    with pytest.raises(UnsupportedOp, match="relu"):
        xd.GraphBuilder().rellu(None)


def test_runs_in_flight_are_bounded_and_all_end() -> None:
    graph = diamond()
    with xd.compile(graph, "cpu:0", runs_at_once=2) as session:
        done = []
        threads = [
            threading.Thread(target=lambda i=i: done.append(session.run({"x": feed(i)})))
            for i in range(12)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join(timeout=60)
        assert len(done) == 12
