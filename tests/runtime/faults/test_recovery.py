"""What a run keeps when a device fails, what it does again, and what the receipt says of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.faults import Fault, FaultDevice
from crossdock.devices.sim import SimDevice, SimQueue, SimSpec
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing, progress, recovery
from crossdock.runtime.errors import (
    Cancelled,
    DeviceError,
    DeviceHung,
    DeviceLost,
    LaunchError,
    NotFinite,
    PlanError,
    Timeout,
    Unavailable,
)
from crossdock.runtime.finite import Watcher
from crossdock.runtime.fleet import Fleet
from crossdock.runtime.lineage import cut, frontier
from crossdock.runtime.plan import Step
from crossdock.scheduler import DeviceRates, LinkModel
from tests.runtime.faults.graphs import GRAPHS, branches, chain
from tests.runtime.faults.machine import (
    A,
    B,
    C,
    FaultyMachine,
    compiled,
    right,
    same_bits,
    untouched,
)
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_session_staged import selecting

pytestmark = pytest.mark.usefixtures("no_hang")
ROOT = Path(__file__).resolve().parents[3]


def test_what_survivors_hold_is_kept_and_said_so(faulty: FaultyMachine) -> None:
    graph, places = chain()
    devices = faulty.all("abc", C, Fault("lost", 0))
    with compiled(graph, places) as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds, timeout=30))
        (told,) = session.receipt.recoveries
        assert (told.device, told.action) == (C, "lost")
        assert told.error.startswith("DeviceLost: sim:c: execute failed")
        assert set(told.kept.values()) <= {A, B, "cpu:0"}
        assert told.kept, "what b made is still there"
        assert told.redone == ()
        assert set(told.placed) == {n for n in places if n[1] in "2345"}
        ran = {op.name: op.device for op in session.receipt.ops}
        assert all(ran[n] == d for n, d in places.items() if d != C)
        assert all(ran[n] != C for n, d in places.items() if d == C)
        assert str(told) in session.receipt.notes
        assert session.receipt.to_json()["recoveries"][0]["device"] == C
    untouched(list(devices.values()))


def test_values_lost_with_a_device_are_made_again(faulty: FaultyMachine) -> None:
    graph, places = chain()
    faulty.all("abc", A, Fault("lost", 2))  # its second visit: b's and c's values are gone by then
    with compiled(graph, places) as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds, timeout=30))
        (told,) = session.receipt.recoveries
        assert told.kept or told.redone
        assert not set(told.redone) & set(told.kept)


@pytest.mark.parametrize("name", GRAPHS)
def test_devices_that_fail_one_after_the_other(faulty: FaultyMachine, name: str) -> None:
    """Also while the run recovers from the first: the host does what is left."""
    graph, places = GRAPHS[name]()
    made = [faulty.add(n, Fault("lost", i)) for i, n in enumerate("abc")]
    with compiled(graph, places) as session:
        for seed in range(2):
            feeds = whole_feeds(graph, seed)
            right(graph, feeds, session.run(feeds, timeout=30))
        left = set(session.devices)
    lost = {d.info.id for d in made if d.faults.injected}
    assert len(lost) > 1
    assert left == {"cpu:0", A, B, C} - lost
    untouched(made)


def test_no_device_left_is_an_error_with_a_type(faulty: FaultyMachine) -> None:
    graph, places = branches()
    places = {n: d if d != "cpu:0" else A for n, d in places.items()}
    for name in "abc":
        faulty.add(name, Fault("launch", 0))
    with compiled(graph, places, fallback="forbid", devices=[A, B, C]) as session:
        for _ in range(2):
            with pytest.raises((DeviceError, PlanError), match="would fall back to cpu:0"):
                session.run(whole_feeds(graph, 0), timeout=30)
    xd.rescan()


def test_what_is_forbidden_stays_so(faulty: FaultyMachine) -> None:
    """A pin to a lost device binds no more, but ops go nowhere they must not."""
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    graph = b.build({"y": b.add(x, x, label="n0")})
    faulty.all("ab", A, Fault("lost", 0))
    rules = xd.Constraints(pin={"n0": A}, forbid={"n0": [B, "cpu:0"]})
    with xd.compile(graph, ["cpu:0", A, B], constraints=rules, measure=False) as session:
        with pytest.raises(DeviceLost, match="forbidden by 'n0'") as caught:
            session.run(whole_feeds(graph, 0))
        assert caught.value.device == A
        assert not caught.value.retryable
        with pytest.raises(PlanError, match="forbidden by 'n0'"):
            session.run(whole_feeds(graph, 0))


def test_a_value_that_may_not_be_on_the_host_is_made_again(faulty: FaultyMachine) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    n0 = b.add(x, x, label="n0")
    n1 = b.mul(n0, n0, label="n1")
    n2 = b.add(b.reduce_sum(n1, axes=[1], keep_dimensions=True, label="n2"), x, label="n3")
    graph = b.build({"y": n2})
    faulty.all("ab", B, Fault("lost", 0))
    rules = xd.Constraints(pin={"n2": A, "n3": B}, residency={"n0": A, "n1": A})
    with xd.compile(graph, ["cpu:0", A, B], constraints=rules, measure=False) as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds))
        (told,) = session.receipt.recoveries
        assert set(told.kept) == {graph.nodes[2].outputs[0]}


def test_the_next_runs_plan_without_the_device_and_a_rescan_brings_it_back(
    faulty: FaultyMachine,
) -> None:
    graph, places = branches()
    devices = faulty.all("abc", B, Fault("sticky", 0))
    with compiled(graph, places) as session, compiled(graph, places) as other:
        feeds = whole_feeds(graph, 0)
        session.run(feeds)
        for one in (session, other):
            right(graph, feeds, one.run(feeds))
            assert not one.receipt.recoveries
            assert B not in {op.device for op in one.receipt.ops}
            assert "is lost: LaunchError" in one.plan.explain_op("n0")
        untouched(list(devices.values()))
        with pytest.raises(DeviceLost, match="rescan"):
            compiled(graph, places)
        with xd.compile(graph, "auto", measure=False) as third:
            assert B not in third.devices
        assert xd.rescan() == [B]
        for one in (session, other):
            right(graph, feeds, one.run(feeds))
            assert B in {op.device for op in one.receipt.ops}


def test_a_device_that_cannot_be_opened_again_stays_out(
    faulty: FaultyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, places = branches()
    faulty.all("abc", B, Fault("lost", 0))
    with compiled(graph, places) as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds))
        assert xd.rescan() == [B]
        with monkeypatch.context() as patch:
            open_device = registry.open_device

            def shut(name: str, **options: Any) -> Any:
                if name == B:
                    raise Unavailable("its process does not start", device=name)
                return open_device(name, **options)

            patch.setattr(registry, "open_device", shut)
            for _ in range(2):
                right(graph, feeds, session.run(feeds))
                assert B not in {op.device for op in session.receipt.ops}
            assert "Unavailable: its process does not start" in session.plan.explain_op("n0")
        registry.rescan()
        right(graph, feeds, session.run(feeds))
        assert B in session.devices


def test_a_device_lost_on_the_way_is_not_touched(
    faulty: FaultyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the run's own thread does its steps, and another run found out."""
    b = xd.GraphBuilder()
    x = b.input("x", (2, 3))
    made = b.mul(b.add(b.add(x, x, label="first"), x, label="here"), x, label="second")
    graph = b.build({"y": made})
    places = {"first": A, "here": "cpu:0", "second": A}
    device = faulty.add("a")
    touched: list[str] = []

    def watched(name: str) -> None:
        call = getattr(SimQueue, name)

        def look(self: SimQueue, *args: Any, **options: Any) -> Any:
            if device.gone:
                touched.append(name)
            return call(self, *args, **options)

        monkeypatch.setattr(SimQueue, name, look)

    def looked(self: Watcher, step: Step) -> None:
        if step.name == "here" and step.kind == "launch":
            registry.lose(device, "another run found out")

    for name in ("execute", "write", "read", "copy", "finish", "flush"):
        watched(name)
    monkeypatch.setattr(Watcher, "look", looked)
    with compiled(graph, places, check_finite=True, skip_passes=["fuse-elementwise"]) as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds))
        assert [told.action for told in session.receipt.recoveries] == ["lost"]
    assert touched == []


def test_many_runs_at_once_all_end_right(faulty: FaultyMachine) -> None:
    graph, places = branches()
    devices = faulty.all("abc", B, Fault("lost", 7))
    feeds = [whole_feeds(graph, seed) for seed in range(8)]
    with compiled(graph, places, runs_at_once=4) as session:
        futures = [(i, session.submit(feeds[i])) for _ in range(5) for i in range(8)]
        for i, future in futures:
            right(graph, feeds[i], future.result(60))
        assert B not in session.devices
    untouched(list(devices.values()))


def test_a_hang_lets_the_threads_of_the_others_go_on(faulty: FaultyMachine) -> None:
    """Those that wait for the device that hangs are replaced, and other runs' jobs move on."""
    graph, places = branches()
    faulty.all("abc", B, Fault("hang", 3))
    feeds = [whole_feeds(graph, seed) for seed in range(6)]
    with compiled(graph, places, runs_at_once=6, watchdog=0.2) as session:
        futures = [session.submit(one) for one in feeds]
        for one, future in zip(feeds, futures, strict=True):
            right(graph, one, future.result(60))
        for one in feeds:
            right(graph, one, session.run(one))
        assert B not in session.devices


def test_a_hang_nobody_waits_for_any_more_is_seen_by_the_next_run(faulty: FaultyMachine) -> None:
    graph, places = branches()
    faulty.all("abc", A, Fault("hang", 0))
    with compiled(graph, places, runs_at_once=1, watchdog=0.3) as session:
        feeds = whole_feeds(graph, 0)
        with pytest.raises(Timeout):
            session.run(feeds, timeout=0.05)
        right(graph, feeds, session.run(feeds))
        assert A not in session.devices


def test_time_in_which_nobody_looked_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may have been stopped, and its devices with it."""
    now = [50.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    awake = progress._Clock()
    now[0] += 0.1
    assert awake() == pytest.approx(0.1)
    now[0] += 100.0
    assert awake() == pytest.approx(0.1 + progress.LONGEST)


def test_what_a_hung_device_may_write_to_is_kept_and_not_used_again(
    faulty: FaultyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, places = branches()
    buried: list[Any] = []
    monkeypatch.setattr(registry, "bury", buried.append)
    faulty.all("abc", B, Fault("hang", 0))
    with compiled(graph, places, watchdog=0.2, runs_at_once=1) as session:
        pool = session.ready().pool
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds, timeout=30))
        (run,) = buried
        assert run.instance not in pool.free


def test_steps_may_take_as_long_as_they_are_predicted_to(faulty: FaultyMachine) -> None:
    graph, places = branches()
    faulty.all("abc", B, Fault("hang", 0, seconds=0.4))
    with compiled(graph, places, watchdog=30) as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds))
        assert not session.receipt.recoveries
        assert B in session.devices


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan"])
def test_a_watchdog_is_seconds(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = branches()
    monkeypatch.setenv("CROSSDOCK_WATCHDOG", given)
    with pytest.raises(PlanError, match="CROSSDOCK_WATCHDOG is"):
        xd.compile(graph, "cpu:0", measure=False)
    monkeypatch.setenv("CROSSDOCK_WATCHDOG", "off")
    with pytest.raises(PlanError, match="watchdog=0"):
        xd.compile(graph, "cpu:0", measure=False, watchdog=0)


def test_the_deadline_holds_while_a_run_recovers(faulty: FaultyMachine) -> None:
    graph, places = branches()
    faulty.add("a", Fault("lost", 1))
    faulty.add("b", Fault("hang", 0))
    faulty.add("c")
    with compiled(graph, places) as session:
        began = time.perf_counter()
        with pytest.raises(Timeout):
            session.run(whole_feeds(graph, 0), timeout=0.3)
        assert time.perf_counter() - began < 10


def test_nothing_is_planned_for_a_caller_who_waits_no_more(
    faulty: FaultyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, places = branches()
    faulty.all("abc", A, Fault("lost", 1))
    handed_in, planned = threading.Event(), []
    survive = Fleet.survive

    def given_up(self: Fleet, *args: Any) -> str:
        assert handed_in.wait(10)
        future.cancel()
        return survive(self, *args)

    monkeypatch.setattr(Fleet, "survive", given_up)
    monkeypatch.setattr(recovery, "placed", lambda *args: planned.append(args))
    with compiled(graph, places) as session:
        future = session.submit(whole_feeds(graph, 0))
        handed_in.set()
        with pytest.raises(Cancelled):
            future.result(10)
        session.close()
        assert soon(lambda: session._submissions._background._busy == 0)
    assert planned == []


def soon(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()


def test_looking_for_what_is_not_finite_goes_on(faulty: FaultyMachine) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    n0 = b.log(x, label="n0")
    graph = b.build({"y": b.add(b.neg(n0, label="n1"), n0, label="n2")})
    places = {"n0": A, "n1": B, "n2": A}
    faulty.all("ab", B, Fault("lost", 0))
    with compiled(graph, places, check_finite=True) as session:
        with pytest.raises(NotFinite) as caught:
            session.run({"x": np.zeros((3, 4), np.float32)})
        assert caught.value.op == "n0"


@pytest.mark.parametrize("kind", ["launch", "oom"])
def test_the_host_fails_and_others_compute(faulty: FaultyMachine, kind: str) -> None:
    graph, places = branches()
    faulty.all("abc", "")
    real = registry.open_device("cpu:0")
    host = FaultDevice(real, [Fault(kind, 0)], name=None)
    registry._OPEN["cpu:0", None, None] = host
    try:
        with compiled(graph, places) as session:
            feeds = whole_feeds(graph, 0)
            right(graph, feeds, session.run(feeds, timeout=30))
            (told,) = session.receipt.recoveries
            assert told.device == "cpu:0"
            right(graph, feeds, session.run(feeds, timeout=30))
            on_host = "cpu:0" in {op.device for op in session.receipt.ops}
            assert on_host == (kind == "oom")
            assert ("cpu:0" in registry.lost()) == (kind == "launch")
    finally:
        registry._OPEN["cpu:0", None, None] = real


def test_the_host_alone_has_nobody_to_help_it(faulty: FaultyMachine) -> None:
    graph, _ = branches()
    real = registry.open_device("cpu:0")
    registry._OPEN["cpu:0", None, None] = FaultDevice(real, [Fault("launch", 1)], name=None)
    try:
        with xd.compile(graph, "cpu:0", measure=False) as session:
            feeds = whole_feeds(graph, 0)
            with pytest.raises(LaunchError, match="cannot be done without") as caught:
                session.run(feeds)
            assert caught.value.device == "cpu:0"
            assert xd.rescan() == ["cpu:0"]
            right(graph, feeds, session.run(feeds))
    finally:
        registry._OPEN["cpu:0", None, None] = real


@pytest.mark.parametrize(("kind", "call"), [("lost", "execute"), ("lost", "copy"), ("oom", "copy")])
@pytest.mark.parametrize("nth", range(1, 4))
def test_resident_inputs_and_split_ops(
    faulty: FaultyMachine, kind: str, call: str, nth: int
) -> None:
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder()
    x, w = b.input("x", (256, 1024)), b.input("w", (1024,))
    graph = b.build({"y": b.mul(b.max(b.add(x, w), b.abs(x)), x)})
    feeds = {
        "x": rng.integers(-3, 4, (256, 1024)).astype(np.float32),
        "w": rng.integers(-3, 4, (1024,)).astype(np.float32),
    }
    for name in "ab":
        spec = SimSpec(name, bandwidth=2e9, link_bandwidth=2e10, link_latency=1e-6)
        plan = [Fault(kind, nth, call=call)] if name == "b" else []
        known(faulty.add(name, *plan, inner=SimDevice(spec)), spec)
    resident = {"w": feeds["w"]}
    with xd.compile(graph, [A, B], measure=False, resident=resident) as session:
        assert any(split.taken for split in session.plan.splits)
        want = evaluate(graph, feeds)["y"]
        for _ in range(4):
            got = session.run({"x": feeds["x"]})["y"]
            np.testing.assert_array_equal(got, want)
        assert (B in session.devices) == (kind == "oom")


def known(device: FaultDevice, spec: SimSpec) -> None:
    """Tell the cost model what a device takes, in place of measuring."""
    model, host = costing.store().model, registry.open_device("cpu:0").info
    model.set_rates(host.fingerprint, DeviceRates({"*": 1e10}, 5e9, 1e-6))
    here = device.info.fingerprint
    model.set_rates(here, DeviceRates({"*": spec.speed_flops * 1e3}, spec.bandwidth, spec.launch_s))
    link = LinkModel(spec.link_latency, ((1.0, spec.link_bandwidth),))
    model.set_link(host.fingerprint, here, link)
    model.set_link(here, host.fingerprint, link)


@pytest.mark.parametrize("nth", range(0, 6, 2))
def test_a_staged_graph_recovers_in_the_stage_that_failed(faulty: FaultyMachine, nth: int) -> None:
    graph = selecting()
    made = faulty.all("ab", A, Fault("lost", nth))
    x = np.array([0, -1, 2, 3, -4, 5], np.float32)
    n = -x
    want = {"y": 2 * n[n > 0]}
    with xd.compile(graph, [A, B], measure=False) as session:
        told = []
        for _ in range(3):
            got: Any = session.run({"x": x})
            same_bits(got, want)
            told += session.receipt.recoveries
        assert bool(told) == bool(made[A].faults.injected)
    untouched(list(made.values()))


def test_the_cut_of_a_graph() -> None:
    graph, _ = branches()
    value = {node.name: node.outputs[0] for node in graph.nodes}
    whole = cut(graph, {})
    assert whole is not None
    assert [n.name for n in whole.nodes] == [n.name for n in graph.nodes]
    there = {value["n1"]: np.zeros(1), value["n2"]: np.zeros(1), value["n0"]: np.zeros(1)}
    assert sorted(frontier(graph, set(there))) == sorted([value["n1"], value["n2"]])
    rest = cut(graph, there)
    assert rest is not None
    assert {n.name for n in rest.nodes} == {"n3", "n4", "n5", "n6"}
    assert set(rest.inputs) == {value["n1"], value["n2"]}
    assert cut(graph, {value["n6"]: np.zeros(1), value["n4"]: np.zeros(1)}) is None


def test_threads_of_a_hung_device_that_wake_up_change_nothing(faulty: FaultyMachine) -> None:
    graph, places = branches()
    faulty.add("a")
    hung = faulty.add("b", Fault("hang", 0), inner=registry.open_device("cpu:0"))
    faulty.add("c")
    with compiled(graph, places, watchdog=0.2) as session:
        feeds = whole_feeds(graph, 0)
        right(graph, feeds, session.run(feeds))
        xd.rescan()
        before = threading.active_count()
        hung.release()
        time.sleep(0.1)
        right(graph, feeds, session.run(feeds))
        assert B in session.devices, "an old thread's error does not count against the new one"
        assert threading.active_count() <= before + 4


def test_errors_say_which_device_and_what_is_a_hang() -> None:
    assert issubclass(DeviceHung, DeviceLost)
    assert DeviceHung("x", device="sim:a").device == "sim:a"
    assert xd.Error in DeviceHung.__mro__


def test_other_kernels_give_what_they_give_without_a_fault(
    faulty: FaultyMachine, opencl: Any
) -> None:
    """Floats over OpenCL and native code: bit-equal to a run of the kernels that ran last."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder()
    x = b.input("x", (1, 4, 12, 12))

    def weight(*shape: int) -> Any:
        return b.constant(rng.standard_normal(shape).astype(np.float32))

    y = b.conv2d(x, weight(8, 4, 3, 3), padding=[1] * 4, label="n0")
    y = b.softmax(b.reshape(y, [8, 144]), 1, label="n1")
    y = b.gemm(y, weight(144, 16), label="n2")
    graph = b.build({"y": b.tanh(y, label="n3"), "s": b.reduce_sum(y, axes=[1], label="n4")})
    feeds = {"x": rng.standard_normal((1, 4, 12, 12)).astype(np.float32)}
    places = {"n0": A, "n1": B, "n2": A, "n3": B, "n4": A}
    inner = {"a": registry.open_device(opencl.id, threads=1), "b": registry.open_device("cpu:0")}

    def session(places: dict[str, str], *plan: Fault) -> xd.Session:
        for name in "ab":
            faulty.add(name, *(plan if name == "a" else ()), inner=inner[name])
        return compiled(graph, places, devices=["cpu:0", A, B])

    for nth in range(3):
        with session(places, Fault("lost", nth)) as failing:
            got = failing.run(feeds)
            ran = {op.name: (op.device, op.kernel) for op in failing.receipt.ops}
            assert failing.receipt.recoveries
        xd.rescan()
        with session({name: device for name, (device, _) in ran.items()}) as sound:
            same_bits(sound.run(feeds), got)
            assert {op.name: (op.device, op.kernel) for op in sound.receipt.ops} == ran


@pytest.mark.parametrize("how", ["plain", "--check-finite"])
def test_a_driver_with_an_endless_kernel(opencl: Any, how: str) -> None:
    """A real one, in a process of its own: a driver waits for its kernels when it is unloaded.

    The caller does the run itself, as it does whatever is predicted to be brief.
    """
    command = [sys.executable, "-m", "tests.runtime.faults.endless", how]
    made = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env=os.environ | {"CROSSDOCK_WATCHDOG": "1"},
    )
    first, second = made.stdout.splitlines()
    assert "DeviceHung: opencl:0/compute has not ended 'n0'" in first
    assert second == "[] ['cpu:0']"
