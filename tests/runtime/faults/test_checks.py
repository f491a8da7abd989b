"""Damaged copies, work that is not done and wrong results: noticed where that is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.faults import Fault
from crossdock.kernels.reference import evaluate
from crossdock.runtime.checks import Checks, checks_of
from crossdock.runtime.errors import PlanError, TransferError, WrongResult
from tests.runtime.faults.graphs import GRAPHS, branches
from tests.runtime.faults.machine import A, B, C, FaultyMachine, compiled, right, same_bits
from tests.runtime.strategies import whole_feeds

pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.mark.parametrize(
    "given", ["", "copies", "sample", "sample:0", "sample:2", "transfers:1", 7]
)
def test_what_is_no_check_is_refused(given: Any) -> None:
    with pytest.raises(PlanError, match="verify="):
        xd.compile(branches()[0], "cpu:0", measure=False, verify=given)


def test_what_is_asked_for() -> None:
    assert checks_of(None) is None
    both = checks_of("transfers, sample:0.25")
    assert both is not None
    assert (both.transfers, both.share) == (True, 0.25)


COPIES = [(kind, nth) for kind in ("corrupt", "short", "early") for nth in range(6)]


@pytest.mark.parametrize(("kind", "nth"), COPIES)
@pytest.mark.parametrize("device", [A, B])
def test_a_damaged_copy_is_made_again(
    faulty: FaultyMachine, kind: str, nth: int, device: str
) -> None:
    graph, places = branches()
    devices = faulty.all("abc", device, Fault(kind, nth, call="copy", bit=30))
    with compiled(graph, places, verify="transfers") as session:
        for seed in range(3):
            feeds = whole_feeds(graph, seed)
            right(graph, feeds, session.run(feeds))
        assert device in session.devices, "once is no reason to give a device up"
    assert devices[device].faults.injected


def test_a_copy_that_comes_late_finds_nothing_to_spoil(faulty: FaultyMachine) -> None:
    """It was said to be done, was made again, and comes when another value lies in its place."""
    b = xd.GraphBuilder()
    x = b.input("x", (400, 400))
    there = b.add(x, x, label="there")
    here = there
    for i in range(12):  # on the host, for longer than the copy is late
        here = b.matmul(here, b.constant(np.eye(400, dtype=np.float32)), label=f"here{i}")
    over = b.mul(there, there, label="over")  # where x was
    graph = b.build({"y": b.add(over, here, label="y")})
    places = {"there": A, "here*": "cpu:0", "over": A, "y": A}
    device = faulty.add("a", Fault("early", 0, call="copy", seconds=0.012))
    with compiled(graph, places, verify="transfers", skip_passes=["fuse-elementwise"]) as session:
        feeds = {"x": np.ones((400, 400), np.float32)}
        right(graph, feeds, session.run(feeds))
    assert device.faults.injected


@pytest.mark.parametrize("kind", ["corrupt", "short", "early"])
def test_a_device_that_damages_every_copy_is_given_up(faulty: FaultyMachine, kind: str) -> None:
    graph, places = branches()
    faulty.all("abc", B, Fault(kind, probability=1.0, call="copy", bit=30))
    with compiled(graph, places, verify="transfers") as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds))
        told = session.receipt.recoveries[0]
        assert told.device == B
        assert "TransferError: the copy of" in told.error
        assert B not in session.devices


@pytest.mark.parametrize(("kind", "nth"), COPIES)
def test_a_damaged_weight_is_sent_again(faulty: FaultyMachine, kind: str, nth: int) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (4, 4))
    weights = [b.constant(np.full((4, 4), i + 1.0, np.float32)) for i in range(2)]
    made = b.add(b.mul(x, weights[0], label="m"), weights[1], label="n")
    graph = b.build({"y": made})
    device = faulty.add("a", Fault(kind, nth, call="copy", bit=30))
    with compiled(graph, {"m": A, "n": A}, verify="transfers") as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds))
        assert A in session.devices
    assert device.faults.injected


@pytest.mark.parametrize("kind", ["corrupt", "short", "early"])
@pytest.mark.parametrize("nth", [4, 5])
def test_what_is_saved_of_a_failed_run_is_looked_at(
    faulty: FaultyMachine, kind: str, nth: int
) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (2, 3))
    kept = b.add(x, x, label="kept")  # on A alone when B fails, and needed for what is left
    crossed = b.mul(kept, x, label="crossed")
    failed = b.sub(crossed, x, label="failed")
    graph = b.build({"y": b.add(failed, kept, label="y")})
    places = {"kept": A, "crossed": A, "failed": B, "y": A}
    device = faulty.add("a", Fault(kind, nth, call="copy", bit=30))
    faulty.add("b", Fault("launch", 0))
    with compiled(graph, places, verify="transfers", skip_passes=["fuse-elementwise"]) as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds))
        assert session.receipt.recoveries
    assert device.faults.injected


def test_nothing_else_notices_a_damaged_copy(faulty: FaultyMachine) -> None:
    """Why there are checks: without them the answer is wrong, and nobody says so."""
    graph, places = branches()
    faulty.all("abc", A, Fault("corrupt", 0, bit=30))
    with compiled(graph, places) as session:
        feeds = whole_feeds(graph, 0)
        got = session.run(feeds)
        assert any((got[k] != v).any() for k, v in evaluate(graph, feeds).items())
        assert not session.receipt.recoveries


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("verify", ["sample:1", "transfers,sample:1", "sample:0.3"])
def test_sound_devices_pass(faulty: FaultyMachine, name: str, verify: str) -> None:
    graph, places = GRAPHS[name]()
    faulty.all("abc", "")
    with compiled(graph, places, verify=verify) as session:
        for seed in range(3):
            feeds = whole_feeds(graph, seed)
            right(graph, feeds, session.run(feeds))
        assert not session.receipt.recoveries


@pytest.mark.parametrize(("device", "nth"), [(A, 0), (A, 2), (B, 0), (C, 0)])
def test_a_step_that_is_not_done_is_named(faulty: FaultyMachine, device: str, nth: int) -> None:
    graph, places = branches()
    faulty.all("abc", device, Fault("early", nth))
    with compiled(graph, places, verify="sample:1") as session:
        with pytest.raises(WrongResult, match="others than the host's") as caught:
            session.run(whole_feeds(graph, 0))
        assert caught.value.device == device
        assert places[caught.value.op] == device
        assert caught.value.kernel == "array"
        assert device in session.devices, "a kernel may be wrong on a sound device"
        right(graph, whole_feeds(graph, 1), session.run(whole_feeds(graph, 1)))


def test_a_copy_that_is_recovered_from_is_checked_too(faulty: FaultyMachine) -> None:
    graph, places = branches()
    faulty.add("a", Fault("lost", 1))
    faulty.add("b", Fault("corrupt", probability=0.2, bit=30), seed=3)
    faulty.add("c", Fault("corrupt", probability=0.2, bit=30), seed=4)
    with compiled(graph, places, verify="transfers") as session:
        for seed in range(8):
            feeds = whole_feeds(graph, seed)
            right(graph, feeds, session.run(feeds))


def test_the_sample_hangs_on_the_run() -> None:
    first, again = Checks(share=0.5), Checks(share=0.5)
    drawn = [first.sampled(range(7)) for _ in range(20)]
    assert drawn == [again.sampled(range(7)) for _ in range(20)]
    assert len(set(drawn)) > 5
    assert 2 < sum(len(one) for one in drawn) / 20 < 5
    assert Checks(transfers=True).sampled(range(7)) == frozenset()


def test_floats_are_held_to_the_ops_tolerance(opencl: Any, costs: Any) -> None:
    """Every kernel of a small network on the processor and in OpenCL, against float64."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder()
    x = b.input("x", (2, 3, 16, 16))

    def weight(*shape: int) -> Any:
        return b.constant(rng.standard_normal(shape).astype(np.float32))

    y = b.relu(b.conv2d(x, weight(8, 3, 3, 3), padding=[1] * 4))
    y = b.instance_normalization(y)
    y = b.reshape(b.max_pool2d(y, window_dimensions=[2, 2], strides=[2, 2]), [2, 512])
    y = b.softmax(b.gemm(y, weight(512, 32), c=weight(32)), 1)
    graph = b.build({"y": y, "z": b.reduce_log_sum_exp(y, axes=[1]), "i": b.arg_max(y, 1)})
    feeds = {"x": rng.standard_normal((2, 3, 16, 16)).astype(np.float32)}
    for device in ("cpu:0", opencl.id):
        with (
            xd.compile(graph, device, measure=False, threads=1) as plain,
            xd.compile(graph, device, measure=False, threads=1, verify="sample:1") as checked,
        ):
            same_bits(checked.run(feeds), plain.run(feeds))
            assert {op.device for op in checked.receipt.ops} == {device}
    assert not registry.lost()


def test_errors_carry_where() -> None:
    assert TransferError("x", device="a").retryable
    error = WrongResult("x", device="a", op="o", kernel="k")
    assert (error.device, error.op, error.kernel, error.retryable) == ("a", "o", "k", False)
