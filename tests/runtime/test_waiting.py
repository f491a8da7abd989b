"""Back-pressure: a bounded number of runs waits; callers wait for room, or are told."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime.background import Background
from crossdock.runtime.errors import Busy, ExecutionError, FeedError, PlanError, Timeout
from crossdock.runtime.session import Session
from tests.runtime.conftest import Gate, Machine

pytestmark = pytest.mark.usefixtures("no_hang")


def on(device: str, **options: Any) -> Session:
    b = xd.GraphBuilder()
    x = b.input("x", (4,))
    given = {"measure": False, "runs_at_once": 1, "waiting": 2, **options}
    return xd.compile(b.build({"y": b.add(x, x)}), device, **given)


def feed(value: int) -> dict[str, Any]:
    return {"x": np.full(4, value, np.float32)}


def fill(session: Session, gate: Gate) -> list[Future[dict[str, Any]]]:
    """One run in flight and two that wait: all there is room for."""
    futures: list[Future[dict[str, Any]]] = [session.submit(feed(0))]
    assert gate.reached.wait(20)
    return [*futures, session.submit(feed(1)), session.submit(feed(2))]


def test_no_more_wait_than_may(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a")) as session:
        futures = fill(session, gate)
        with pytest.raises(Busy, match="waiting=2"):
            session.submit(feed(3), block=False)
        began = time.monotonic()
        late = session.submit(feed(3), timeout=0.05)
        assert 0.04 < time.monotonic() - began < 10
        with pytest.raises(Timeout, match="no room"):
            late.result(0)
        gate.open.set()
        assert [f.result(20)["y"][0] for f in futures] == [0, 2, 4]
        assert session.submit(feed(3), block=False).result(20)["y"][0] == 6


def test_who_waits_for_room_comes_in_when_a_run_ends(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a")) as session, ThreadPoolExecutor(4) as pool:
        futures = fill(session, gate)
        more = [pool.submit(session.submit, feed(i)) for i in range(3, 7)]
        time.sleep(0.05)
        assert not any(m.done() for m in more)
        gate.open.set()
        assert [m.result(20).result(20)["y"][0] for m in more] == [6, 8, 10, 12]
        assert [f.result(20)["y"][0] for f in futures] == [0, 2, 4]


def test_a_waiting_run_that_is_cancelled_makes_room(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a")) as session, ThreadPoolExecutor(1) as pool:
        futures = fill(session, gate)
        more = pool.submit(session.submit, feed(3))
        assert futures[1].cancel()
        assert futures[1].cancel()
        future = more.result(20)
        with pytest.raises(Busy):
            session.submit(feed(4), block=False)
        gate.open.set()
        assert future.result(20)["y"][0] == 6


def test_who_waits_for_room_is_told_of_the_close(machine: Machine, gate: Gate) -> None:
    session = on(machine.sim("a"))
    with ThreadPoolExecutor(1) as pool:
        futures = fill(session, gate)
        more = pool.submit(session.submit, feed(3))
        session.close()
        future = more.result(20)  # before any run has ended
        gate.open.set()
        assert futures[0].result(20)["y"][0] == 0
        with pytest.raises(PlanError, match="is closed"):
            future.result(20)


@pytest.mark.parametrize("others", [False, True])
def test_a_callback_may_hand_in_another_run(machine: Machine, gate: Gate, *, others: bool) -> None:
    """Even where there is no room, and where two sessions call each other's ``submit``."""
    ended = threading.Event()
    with on(machine.sim("a")) as first, on(machine.sim("b")) as second:
        chained: list[Future[dict[str, Any]]] = []

        def follow(_: object) -> None:
            session = second if others and len(chained) % 2 == 0 else first
            chained.append(session.submit(feed(len(chained))))
            if len(chained) == 20:
                ended.set()
            else:
                chained[-1].add_done_callback(follow)

        futures = fill(first, gate)
        futures[0].add_done_callback(follow)
        gate.open.set()
        assert ended.wait(20)
        assert [f.result(20)["y"][0] for f in chained] == [2 * i for i in range(20)]


def test_callbacks_that_hand_in_ever_more_are_told(machine: Machine, gate: Gate) -> None:
    said: list[BaseException | None] = []
    with on(machine.sim("a")) as session:
        futures = fill(session, gate)

        def flood(_: object) -> None:
            try:
                for _i in range(10):
                    session.submit(feed(1))
            except Busy as error:
                said.append(error)

        futures[0].add_done_callback(flood)
        gate.open.set()
        futures[2].result(20)
        assert len(said) == 1


async def test_the_loop_goes_on_with_a_thousand_in_flight(machine: Machine, gate: Gate) -> None:
    """Far more than may wait; a ticker goes on ticking, and every run is right."""
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.perf_counter())
            await asyncio.sleep(0.001)

    with on(machine.sim("a"), runs_at_once=2, waiting=8) as session:
        ticker = asyncio.create_task(tick())
        tasks = [asyncio.create_task(session.run_async(feed(i))) for i in range(1000)]
        async with asyncio.timeout(60):  # for ever, were the loop blocked
            while len(ticks) < 20:
                await asyncio.sleep(0.01)
        assert not any(t.done() for t in tasks)
        gate.open.set()
        results = await asyncio.gather(*tasks)
        ticker.cancel()
    assert [r["y"][0] for r in results] == [2 * i for i in range(1000)]
    assert np.median(np.diff(ticks)) < 0.05


async def test_awaited_runs_end_with_typed_errors(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a")) as session:
        futures = await asyncio.to_thread(fill, session, gate)
        began = time.monotonic()
        with pytest.raises(Timeout, match="not done after"):
            await session.run_async(feed(3), timeout=0.05)
        assert time.monotonic() - began < 10
        task = asyncio.create_task(session.run_async(feed(4)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(FeedError, match="timeout"):
            await session.run_async(feed(3), timeout=-1)
        waits = asyncio.create_task(session.run_async(feed(5)))
        gate.open.set()
        assert (await waits)["y"][0] == 10
        with pytest.raises(FeedError, match="'x' is not fed"):
            await session.run_async({})
        assert all(f.done() for f in futures)
    with pytest.raises(PlanError, match="is closed"):
        await session.run_async(feed(3))


def test_a_thread_that_cannot_be_started_is_an_error_and_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line, done = Background(2, "short of threads"), threading.Event()
    start = threading.Thread.start

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ExecutionError, match="no thread can be started"):
        line.post(lambda: pytest.fail("it was taken back"))
    monkeypatch.setattr(threading.Thread, "start", start)
    line.post(done.set)
    assert done.wait(10)


def test_where_no_more_threads_can_be_started_those_that_there_are_do_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line, begun, go = Background(2, "short of threads"), threading.Event(), threading.Event()
    done = threading.Event()

    def first() -> None:
        begun.set()
        go.wait(10)

    line.post(first)
    assert begun.wait(10)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    line.post(done.set)
    go.set()
    assert done.wait(10)
