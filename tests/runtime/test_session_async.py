"""Awaiting runs: the event loop goes on, errors and cancellation reach whom they concern."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.sim import Fault
from crossdock.runtime.errors import DeviceError, FeedError, Timeout
from crossdock.runtime.graph import Graph
from crossdock.runtime.session import Session
from tests.runtime.conftest import Gate, Machine

pytestmark = pytest.mark.usefixtures("no_hang")


def doubling() -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (4,))
    return b.build({"y": b.add(x, x)})


def feed(value: int) -> dict[str, object]:
    return {"x": np.full(4, value, np.float32)}


def on(device: str, **options: object) -> Session:
    return xd.compile(doubling(), device, measure=False, **options)  # type: ignore[arg-type]


async def test_the_loop_turns_while_runs_wait(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a"), runs_at_once=2) as session:
        began = time.monotonic()
        tasks = [asyncio.ensure_future(session.submit(feed(i))) for i in range(200)]
        turns = 0
        while turns < 20:
            await asyncio.sleep(0.001)
            turns += 1
        assert time.monotonic() - began < 30
        assert not any(task.done() for task in tasks)
        gate.open.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks), 60)
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result["y"], np.full(4, 2 * i, np.float32))


async def test_errors_are_raised_where_the_run_is_awaited(machine: Machine) -> None:
    faults = (Fault("launch", 1),)
    with on(machine.sim("a", faults=faults), fallback="forbid") as session:
        assert (await session.submit(feed(1)))["y"][0] == 2
        with pytest.raises(DeviceError, match="sim:a: step 1"):
            await session.submit(feed(1))
        with pytest.raises(FeedError, match="'x' is not fed"):
            await session.submit({})
        xd.rescan()
        assert (await session.submit(feed(1)))["y"][0] == 2


async def test_a_timeout_is_pythons_too(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a")) as session:
        with pytest.raises(Timeout):
            await session.submit(feed(1), timeout=0.01)
        with pytest.raises(TimeoutError):
            await session.submit(feed(1), timeout=0.01)
        gate.open.set()
        assert (await session.submit(feed(3)))["y"][0] == 6


async def test_a_cancelled_task_leaves_the_session_usable(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a"), runs_at_once=1) as session:
        running, waiting = (asyncio.ensure_future(session.submit(feed(i))) for i in range(2))
        await asyncio.to_thread(gate.reached.wait, 10)
        for task in (running, waiting):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.open.set()
        assert (await asyncio.wait_for(session.submit(feed(3)), 30))["y"][0] == 6
        pool = session._plans.bound().pool
        assert len(pool.free) == pool._made == 1


async def test_wait_for_gives_up_and_the_next_run_is_right(machine: Machine, gate: Gate) -> None:
    with on(machine.sim("a")) as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.submit(feed(1)), 0.01)
        gate.open.set()
        assert (await session.submit(feed(4)))["y"][0] == 8


def test_a_run_may_outlive_the_loop_that_awaited_it(machine: Machine, gate: Gate) -> None:
    session = on(machine.sim("a"))

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.submit(feed(1)), 0.01)

    asyncio.run(give_up())
    gate.open.set()
    with session:
        assert session.run(feed(2), timeout=30)["y"][0] == 4


async def test_one_future_may_be_awaited_and_asked_for_its_result(machine: Machine) -> None:
    with on(machine.sim("a")) as session:
        future = session.submit(feed(5))
        first, second = await asyncio.gather(future, future)
        assert first["y"][0] == second["y"][0] == future.result()["y"][0] == 10
