"""Runs given up, sessions closed and forgotten, processes that end: nothing leaks or stays."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.devices.host_memory import Budget
from crossdock.devices.sim import SimQueue
from crossdock.devices.worker import JOBS, Worker
from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import (
    Cancelled,
    FeedError,
    OutOfMemory,
    PlanError,
    Timeout,
)
from crossdock.runtime.executor import Run
from crossdock.runtime.graph import Graph
from crossdock.runtime.pool import TURN, Deadline, Pool
from crossdock.runtime.segments import Segment
from crossdock.runtime.session import Session
from crossdock.runtime.submitted import RunFuture, _fulfil
from tests.runtime.conftest import Gate, Machine
from tests.runtime.lazy_device import World
from tests.runtime.strategies import whole_feeds

pytestmark = pytest.mark.usefixtures("no_hang")


def small() -> Graph:
    """One op, a weight, and a second output that is the weight."""
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    w = b.constant(np.ones((4, 5), np.float32))
    return b.build({"y": b.matmul(x, w, label="mm"), "w": b.transpose(b.identity(w), label="t")})


def on(device: str, graph: Graph, **options: Any) -> Session:
    return xd.compile(graph, device, measure=False, **options)


def check(session: Session, seed: int = 1) -> None:
    feeds = whole_feeds(session.graph, seed)
    want = evaluate(session.graph, feeds)
    for name, array in session.run(feeds, timeout=60).items():
        np.testing.assert_array_equal(array, want[name])


def pool_of(session: Session) -> Pool:
    return session._plans.bound().pool


def all_free(pool: Pool, made: int) -> bool:
    """Whether every instance comes back, once each, within ten seconds."""
    back = wait_until(lambda: len(pool.free) >= made)
    once = len({id(i) for i in pool.free}) == len(pool.free) == pool._made == made
    return back and once


def wait_until(true: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.005)
    return true()


def test_a_run_out_of_time_leaves_its_memory_to_the_worker(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a"), small(), runs_at_once=1) as session:
        with pytest.raises(Timeout, match=r"not done after 0\.3 s; the session stays usable"):
            session.run(whole_feeds(session.graph, 0), timeout=0.3)
        assert gate.reached.is_set()
        pool = pool_of(session)
        assert not pool.free, "the worker still uses the instance"
        with pytest.raises(Timeout, match="no free slot"):
            session.run(whole_feeds(session.graph, 0), timeout=0.3)
        with pytest.raises(Timeout):
            session.submit(whole_feeds(session.graph, 0), timeout=0.3).result(30)
        gate.open.set()
        assert all_free(pool, 1)
        for seed in range(3):
            check(session, seed)
        assert all_free(pool, 1)


def test_an_interrupted_run_leaves_its_memory_to_the_worker(
    machine: Machine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Deadline.wait

    def interrupted(self: Deadline, done: Callable[[float], bool]) -> bool:
        def turn(_: float) -> bool:
            if gate.reached.is_set():
                raise KeyboardInterrupt
            return done(0.01)

        return wait(self, turn)

    with on(machine.sim("a"), small(), runs_at_once=1) as session:
        with monkeypatch.context() as patch:
            patch.setattr(Deadline, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.run(whole_feeds(session.graph, 0))
        pool = pool_of(session)
        assert not pool.free, "the worker still uses the instance"
        gate.open.set()
        assert all_free(pool, 1)
        check(session)


def test_a_host_run_out_of_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from crossdock.devices.cpu import CpuQueue

    held, execute = threading.Event(), CpuQueue.execute

    def slow(self: CpuQueue, *args: Any) -> None:
        held.wait(30)
        execute(self, *args)

    with on("cpu:0", small(), runs_at_once=1) as session:
        with monkeypatch.context() as patch:
            patch.setattr(CpuQueue, "execute", slow)
            with pytest.raises(Timeout):
                session.run(whole_feeds(session.graph, 0), timeout=0.02)
            held.set()
            assert all_free(pool_of(session), 1)
        check(session)


def test_the_deadline_of_submit_counts_from_submit(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a"), small(), runs_at_once=1) as session:
        first = session.submit(whole_feeds(session.graph, 0))
        assert gate.reached.wait(10)
        late = session.submit(whole_feeds(session.graph, 0), timeout=0.02)
        time.sleep(0.05)
        gate.open.set()
        assert first.result(30)
        with pytest.raises(Timeout):
            late.result(30)


def test_a_future_cancelled_before_its_turn_never_runs(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a"), small(), runs_at_once=1) as session:
        first = session.submit(whole_feeds(session.graph, 0))
        assert gate.reached.wait(10)
        second = session.submit({"nonsense": 0})
        assert second.cancel()
        gate.open.set()
        assert first.result(30)
        assert not first.cancel()
        assert second.cancelled()
        assert not first.cancelled()
        check(session)


def test_a_job_that_is_begun_as_its_future_is_cancelled_runs_nothing() -> None:
    future, ran = RunFuture(Deadline()), []

    def run(feeds: Any, _: Deadline) -> dict[str, Any]:
        ran.append(feeds)
        return {}

    assert future.cancel()
    _fulfil(future, run, {}, Deadline())
    assert future.cancelled()
    assert not ran


def test_waits_are_in_short_turns() -> None:
    turns: list[float] = []

    def done(seconds: float) -> bool:
        turns.append(seconds)
        return len(turns) == 3

    for deadline in (Deadline(), Deadline(3600.0)):
        turns.clear()
        assert deadline.wait(done)
        assert max(turns) <= TURN


def test_a_wait_ends_where_its_caller_gives_up() -> None:
    deadline, waited = Deadline(), []
    waiter = threading.Thread(
        target=lambda: waited.append(deadline.wait(lambda seconds: time.sleep(0.001) or False)),
        daemon=True,
    )
    waiter.start()
    time.sleep(0.02)
    assert waiter.is_alive()
    deadline.cancel()
    waiter.join(10)
    assert waited == [False]


def test_a_future_cancelled_while_it_runs_frees_its_caller_at_once(
    machine: Machine, gate: Gate
) -> None:
    with on(machine.sim("a"), small(), runs_at_once=1) as session:
        first = session.submit(whole_feeds(session.graph, 0))
        assert gate.reached.wait(10)
        assert first.cancel()
        assert first.cancelled()
        with pytest.raises(Cancelled, match="cancelled while it ran"):
            first.result(0)
        assert not first.cancel()
        gate.open.set()
        assert all_free(pool_of(session), 1)
        check(session)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The run of each segment that was begun."""
    found: list[Run] = []
    given = Run._given

    def counted(self: Run, part: Segment, *args: Any) -> Any:
        found.append(self)
        return given(self, part, *args)

    monkeypatch.setattr(Run, "_given", counted)
    return found


def test_a_run_given_up_begins_nothing_more(machine: Machine, gate: Gate, begun: list[Run]) -> None:
    with on(machine.sim("a"), small(), runs_at_once=1) as session:
        all_of_it = len(session.ready().program.segments)
        future = session.submit(whole_feeds(session.graph, 0))
        assert gate.reached.wait(10)
        assert future.cancel()
        assert wait_until(lambda: begun[0].cancelled)  # by the thread that waits for it
        before = len(begun)
        assert before < all_of_it
        gate.open.set()
        assert all_free(pool_of(session), 1)
        assert len(begun) == before


def test_a_run_begins_nothing_more_when_the_process_ends(
    machine: Machine, gate: Gate, begun: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with on(machine.sim("a"), small(), runs_at_once=1) as session:
        all_of_it = len(session.ready().program.segments)
        future = session.submit(whole_feeds(session.graph, 0))
        assert gate.reached.wait(10)
        before = len(begun)
        assert before < all_of_it
        with monkeypatch.context() as patch:
            patch.setattr(JOBS, "ending", True)
            gate.open.set()
            with pytest.raises(Cancelled, match="the process is ending"):
                future.result(30)
            assert all_free(pool_of(session), 1)
        assert len(begun) == before


def test_the_host_stops_between_the_steps_of_a_run_given_up() -> None:
    b = xd.GraphBuilder()
    x = y = b.input("x", (700, 700))
    for _ in range(100):
        y = b.tanh(b.matmul(y, x))
    graph = b.build({"y": y})
    feeds = {"x": np.zeros((700, 700), np.float32)}
    with on("cpu:0", graph, runs_at_once=1) as session:
        whole = math.inf
        for _ in range(3):
            began = time.monotonic()
            session.run(feeds)
            whole = min(whole, time.monotonic() - began)
        future = session.submit(feeds)
        assert wait_until(lambda: not pool_of(session).free)
        time.sleep(0.02)
        pool, began = pool_of(session), time.monotonic()
        assert future.cancel()
        while not pool.free and time.monotonic() < began + 30:
            time.sleep(0.001)
        assert time.monotonic() - began < 0.7 * whole
        np.testing.assert_array_equal(session.run(feeds)["y"], feeds["x"])


@pytest.fixture
def interrupt() -> Iterator[Callable[[Gate], None]]:
    """Sends this process Ctrl-C once a gate has been reached."""
    threads = []

    def start(gate: Gate) -> None:
        def send() -> None:
            assert gate.reached.wait(10)
            time.sleep(0.02)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        threads.append(threading.Thread(target=send))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


@pytest.fixture(params=["plain", "restarted by a driver's compiler"])
def waits(request: pytest.FixtureRequest) -> Iterator[None]:
    """Waits that Ctrl-C interrupts, and waits that it does not."""
    signal.siginterrupt(signal.SIGINT, True)
    if request.param != "plain":
        signal.siginterrupt(signal.SIGINT, False)
    yield
    signal.siginterrupt(signal.SIGINT, True)


@pytest.mark.usefixtures("waits")
def test_control_c_frees_the_caller_and_the_session_goes_on(
    machine: Machine, gate: Gate, interrupt: Callable[[Gate], None]
) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread alone")
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        pytest.skip("this process was started with Ctrl-C ignored, as background jobs are")
    with on(machine.sim("a"), small(), runs_at_once=1) as session:
        interrupt(gate)
        with pytest.raises(KeyboardInterrupt):
            session.run(whole_feeds(session.graph, 0))
        pool = pool_of(session)
        assert not pool.free  # the interrupt came while the run was held up, not after it
        gate.open.set()
        assert all_free(pool, 1)
        check(session)


def test_a_session_closed_under_a_run_lets_it_end(machine: Machine, gate: Gate) -> None:
    device = machine.sim("a")
    session = on(device, small())
    feeds = whole_feeds(session.graph, 3)
    future = session.submit(feeds)
    assert gate.reached.wait(10)
    session.close()
    session.close()
    with pytest.raises(PlanError, match="closed"):
        session.run(feeds)
    with pytest.raises(PlanError, match="closed"):
        session.submit(feeds).result(10)
    with pytest.raises(PlanError, match="closed"):
        _ = session.plan
    gate.open.set()
    np.testing.assert_array_equal(future.result(30)["y"], evaluate(session.graph, feeds)["y"])
    assert session.receipt.ops
    assert freed(machine.device(device)._budget)  # type: ignore[attr-defined]


def freed(budget: Budget) -> bool:
    return wait_until(lambda: budget.free == budget.share.limit)


@pytest.mark.parametrize("how", ["close", "forget"])
def test_memory_is_given_back_with_the_session(machine: Machine, how: str) -> None:
    device = machine.sim("a")
    budget: Budget = machine.device(device)._budget  # type: ignore[attr-defined]
    session = on(device, small(), runs_at_once=3)
    feeds = whole_feeds(session.graph, 0)
    for future in [session.submit(feeds) for _ in range(9)]:
        future.result(30)
    with pytest.raises(FeedError):
        session.submit({}).result(30)
    assert budget.free < budget.share.limit
    if how == "close":
        session.close()
        receipt = session.receipt  # outlives the memory
        assert receipt.links == {"cpu:0->sim:a": 48, "sim:a->cpu:0": 60}
        assert freed(budget)
    else:
        gone = weakref.ref(session)
        del session, future
        assert wait_until(lambda: gone() is None)
        assert freed(budget)


def test_opencl_memory_is_given_back_with_the_session(opencl: DeviceInfo, costs: object) -> None:
    device: Any = registry.open_device(opencl.id)
    device._reclaim(0)
    before = device.gauge.used
    b = xd.GraphBuilder()
    graph = b.build({"y": b.tanh(b.input("x", (256, 256)))})
    session = on(opencl.id, graph)
    check(session)
    assert device.gauge.used > before
    del session

    def back() -> bool:
        device._reclaim(0)
        return bool(device.gauge.used == before)

    assert wait_until(back)


def test_memory_of_failed_instances_comes_back(machine: Machine) -> None:
    """The weight fits, an arena does not; then not even parts of it do; then all of it does."""
    device = machine.sim("a", memory_bytes=60_000)
    b = xd.GraphBuilder()
    graph = b.build({"y": b.add(b.input("x", (50, 50)), b.constant(np.ones((50, 50), np.float32)))})
    with on(device, graph, fallback="forbid") as session:
        taken = [machine.device(device).allocate(45_000)]
        check(session)  # without the weight, which each run brings
        taken.append(machine.device(device).allocate(14_900))
        for _ in range(3):
            with pytest.raises(OutOfMemory, match="sim:a"):
                session.run(whole_feeds(graph, 0))
        for other in taken:
            other.release()
        check(session)


def test_runs_wait_where_the_device_has_room_for_one(machine: Machine) -> None:
    device = machine.sim("a", memory_bytes=60_000)
    b = xd.GraphBuilder()
    x = b.input("x", (70, 70))
    graph = b.build({"y": b.add(x, x), "z": b.neg(x)})  # arena of 58,800 bytes
    with on(device, graph) as session:
        feeds = whole_feeds(graph, 0)
        futures = [session.submit(feeds) for _ in range(12)]
        for future in futures:
            np.testing.assert_array_equal(future.result(30)["y"], feeds["x"] * 2)
        assert pool_of(session)._made == 1


def opposite(graph: Graph, here: str, there: str) -> tuple[Session, Session]:
    """Two sessions whose runs go from one device to the other, and back the other way."""
    ids = ["cpu:0", here, there]
    ways = [{"left*": a, "right*": b, "join": b} for a, b in ((here, there), (there, here))]
    one, two = (
        xd.compile(graph, ids, constraints=xd.Constraints(pin=pin), measure=False, runs_at_once=3)
        for pin in ways
    )
    return one, two


def crossing() -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    left = b.abs(b.neg(x, label="left0"), label="left1")
    right = b.neg(b.abs(left, label="right0"), label="right1")
    return b.build({"y": b.add(b.neg(right, label="left2"), x, label="join")})


@pytest.mark.parametrize("kind", ["sim", "lazy", "opencl"])
def test_sessions_in_opposite_directions_never_lock_each_other(
    machine: Machine, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each takes a while from one queue to the next."""
    post = Worker.post

    def slowly(self: Worker, job: Callable[[], None]) -> None:
        post(self, job)
        time.sleep(0.002)

    monkeypatch.setattr(Worker, "post", slowly)
    graph = crossing()
    world = World(5)
    if kind == "opencl":
        here, there = str(request.getfixturevalue("opencl").id), machine.sim("b")
    elif kind == "lazy":
        here, there = machine.lazy("a", world), machine.lazy("b", world)
    else:
        here, there = machine.sim("a"), machine.sim("b")
    one, two = opposite(graph, here, there)
    feeds = [whole_feeds(graph, i) for i in range(4)]
    wants = [evaluate(graph, f)["y"] for f in feeds]
    with one, two:
        futures = [(i, s.submit(feeds[i])) for _ in range(12) for i in range(4) for s in (one, two)]
        for i, future in futures:
            np.testing.assert_array_equal(future.result(60)["y"], wants[i])


def test_a_queue_is_used_by_its_worker_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring, sending weights and running, all at once: queues need no locks of their own."""
    used: set[tuple[str, str, str]] = set()

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(SimQueue, name)

        def call(queue: SimQueue, *args: Any) -> Any:
            used.add((queue.device.info.id, queue.role, threading.current_thread().name))
            return method(queue, *args)

        return call

    for name in ("execute", "write", "read"):
        monkeypatch.setattr(SimQueue, name, watched(name))
    device = machine.sim("a")
    with on(device, small()) as session:
        futures = [session.submit(whole_feeds(session.graph, i)) for i in range(20)]
        b = xd.GraphBuilder()
        x = b.input("x", (3, 4))
        other = b.build({"y": b.matmul(x, b.constant(np.ones((4, 7), np.float32)))})
        with xd.compile(other, [device], measure=5.0) as second:
            second.profile(whole_feeds(other, 0))
        for future in futures:
            future.result(30)
    assert used == {
        (device, r, f"crossdock {device} {r}") for r in ("compute", "upload", "download")
    }


FORK = """
import os, sys
import numpy as np
import crossdock as xd
from crossdock.devices import registry

b = xd.GraphBuilder()
graph = b.build({"y": b.tanh(b.input("x", (4,)))})
feeds = {"x": np.ones(4, np.float32)}
session = xd.compile(graph, sys.argv[1], measure=False)
session.run(feeds)
session.submit(feeds).result()


def said(call):
    try:
        call()
    except xd.Error as error:
        assert "was forked" in str(error) and "spawn" in str(error), error
        return True
    return False


if os.fork() == 0:
    answers = [
        said(lambda: session.run(feeds)),
        said(lambda: session.submit(feeds).result(5)),
        said(lambda: session.bind()),
        said(lambda: xd.compile(graph, sys.argv[1], measure=False)),
        said(lambda: registry.open_device(sys.argv[1])),
    ]
    print(answers, flush=True)
    sys.exit(not all(answers))
print(os.waitstatus_to_exitcode(os.wait()[1]), session.run(feeds)["y"].shape, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("kind", ["cpu:0", "opencl:0"])
def test_a_forked_child_is_told_and_its_parent_goes_on(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "opencl:0":
        kind = str(request.getfixturevalue("opencl").id)
    done = subprocess.run(
        [sys.executable, "-c", FORK, kind],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert str([True] * 5) in done.stdout
    assert done.stdout.endswith("0 (4,)\n")


EXIT = """
import sys, threading, time
import numpy as np
import crossdock as xd
from crossdock.devices import sim
from crossdock.devices.sim import Fault, SimSpec

kind = sys.argv[1]
b = xd.GraphBuilder()
x = b.input("x", (512, 512))
y = x
for _ in range(50):
    y = b.matmul(y, x) if kind == "cpu:0" else b.tanh(b.add(y, x))
    y = b.clamp(y, min_value=-1.0, max_value=1.0)
graph = b.build({"y": y})
if kind == "sim:hung":
    sim.register(SimSpec("hung", faults=(Fault("hang", 1),)))
session = xd.compile(graph, kind, measure=False)
feeds = {"x": np.ones((512, 512), np.float32)}
futures = [session.submit(feeds) for _ in range(20)]
if kind != "sim:hung":
    futures[0].result()
else:
    time.sleep(0.05)
print(time.time(), sum(f.done() for f in futures), flush=True)
"""


@pytest.mark.parametrize("kind", ["cpu:0", "sim:hung", "opencl:0"])
def test_a_process_ends_at_once_with_work_in_flight(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "opencl:0":
        kind = str(request.getfixturevalue("opencl").id)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXIT, kind],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=tmp_path,
    )
    ended = time.time()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    began, finished = done.stdout.split()
    assert int(finished) < 20, "all work was done already: the test shows nothing"
    assert ended - float(began) < 4  # two seconds, and what a busy machine adds
