"""Turns on devices: a session alone fills them, sessions that share them get on side by side."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.base import Device
from crossdock.devices.sim import SimCommands, SimQueue
from crossdock.runtime import turns
from crossdock.runtime.errors import Cancelled, Timeout
from crossdock.runtime.graph import Graph
from crossdock.runtime.pool import Deadline
from crossdock.runtime.session import Session
from crossdock.runtime.turns import ALONE, Flow, Turn
from tests.runtime.conftest import Gate, Machine

pytestmark = pytest.mark.usefixtures("no_hang")
DEEP = 64


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """A clock that stands; it is set forward by the test."""
    clock = [100.0]
    monkeypatch.setattr(turns.time, "monotonic", lambda: clock[0])

    def forward(seconds: float) -> None:
        clock[0] += seconds

    return forward  # type: ignore[return-value]


def turn(flow: Flow, *devices: Device) -> Turn:
    return Turn(tuple(map(flow.share, devices)), flow)


def never(done: Callable[[float], bool]) -> bool:
    """Wait for nothing."""
    return done(0.0)


def devices(machine: Machine, *names: str) -> list[Device]:
    return [machine.device(machine.sim(name)) for name in names]


def on(flow: Flow, *used: Device, most: int = 8) -> list[Turn]:
    """As many runs as get on without waiting."""
    got = []
    for _ in range(most):
        mine = turn(flow, *used)
        if not mine.take(never):
            mine.end()
            break
        got.append(mine)
    return got


def test_a_session_alone_fills_a_device(machine: Machine) -> None:
    (device,) = devices(machine, "a")
    flow = Flow()
    held = on(flow, device)
    assert len(held) == ALONE
    held.pop().end()
    assert len(on(flow, device)) == 1


def test_the_host_is_filled_by_one_session(machine: Machine, now: Callable[[float], None]) -> None:
    now(1e9)  # sessions of other tests used it just before
    host = machine.device("cpu:0")
    assert len(on(Flow(), host, most=100)) == 100


def test_who_comes_to_a_full_device_gets_on_at_once(machine: Machine) -> None:
    (device,) = devices(machine, "a")
    heavy, light = Flow(), Flow()
    held = on(heavy, device)
    assert len(on(light, device)) == 1
    for _ in range(ALONE - 1):
        held.pop().end()
        assert not on(heavy, device), "the other session's run counts"
    held.pop().end()
    assert len(on(heavy, device)) == 1


def test_a_session_counts_for_a_moment(machine: Machine, now: Callable[[float], None]) -> None:
    (device,) = devices(machine, "a")
    heavy, light = Flow(), Flow()
    on(light, device, most=1)[0].end()
    now(turns.MOMENT / 2)
    held = on(heavy, device)
    assert len(held) == 1
    now(turns.MOMENT)
    assert len(on(heavy, device)) == ALONE - 1


def test_all_devices_or_none(machine: Machine) -> None:
    first, second = devices(machine, "a", "b")
    flow, other = Flow(), Flow()
    held = on(flow, second)
    assert not on(flow, first, second)
    assert len(on(other, first)) == 1, "nothing is held of the first by who waits for the second"
    for mine in held:
        mine.end()
    assert len(on(flow, first, second)) == 1


def test_no_run_passes_by_one_of_its_session(machine: Machine) -> None:
    first, second = devices(machine, "a", "b")
    flow, order = Flow(), list[str]()
    held = on(flow, first)
    waiting = threading.Event()

    def run(name: str, *used: Device) -> None:
        mine = turn(flow, *used)
        assert mine.take(lambda done: [waiting.set(), Deadline(30).wait(done)][1])  # type: ignore[func-returns-value]
        order.append(name)
        mine.end()

    threads = []
    for name, used in (("wide", (first, second)), ("narrow", (second,))):
        waiting.clear()
        threads.append(threading.Thread(target=run, args=(name, *used)))
        threads[-1].start()
        assert waiting.wait(30)
    assert len(flow.waiting) == 2
    assert not order
    for mine in held:
        mine.end()
    for thread in threads:
        thread.join()
    assert sorted(order) == ["narrow", "wide"]


def test_who_gives_up_holds_up_nobody(machine: Machine) -> None:
    (device,) = devices(machine, "a")
    flow = Flow()
    held = on(flow, device)
    tired = turn(flow, device)
    assert not tired.take(Deadline(0.01).wait)
    tired.end()
    held.pop().end()
    assert len(on(flow, device)) == 1


def doubling() -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (4,))
    return b.build({"y": b.add(x, x, label="double")})


def feed(value: int) -> dict[str, object]:
    return {"x": np.full(4, value, np.float32)}


@contextmanager
def compiled(*ids: str, quick: bool = False, **options: object) -> Iterator[Session]:
    pin = xd.Constraints(pin={"double": ids[-1]})
    with xd.compile(doubling(), list(ids), measure=False, constraints=pin, **options) as made:  # type: ignore[arg-type]
        for device in made.devices.values():
            device.submits_at_once = quick or device.submits_at_once
        yield made


class Log:
    """The values that a simulated device was given, in order; the first one is held up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
        self.values: list[float] = []
        execute = SimQueue.execute

        def logged(
            queue: SimQueue, commands: SimCommands, *args: object, **named: object
        ) -> object:
            self.values += [float(step.ins[0].flat[0]) for step in commands.steps]
            return execute(queue, commands, *args, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(SimQueue, "execute", logged)


@pytest.mark.parametrize("quick", [True, False])
def test_a_light_session_waits_for_no_backlog(
    machine: Machine, gate: Gate, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    """Of 64 runs in flight, those get done before the other session's one that are on already."""
    where, log = machine.sim("a"), Log(monkeypatch, gate)
    with compiled(where, quick=quick) as heavy, compiled(where, quick=quick) as light:
        deep = [heavy.submit(feed(1), timeout=None if quick else 60) for _ in range(DEEP)]
        assert gate.reached.wait(30)
        one = light.submit(feed(2), timeout=None if quick else 60)
        share = light.ready().shares[0]
        while not share.on:  # it has got on, at once
            threading.Event().wait(0.001)
        gate.open.set()
        assert one.result(60)["y"][0] == 4
        assert log.values.index(2.0) <= ALONE
        assert all(future.result(60)["y"][0] == 2 for future in deep)
    assert Counter(log.values) == {1.0: DEEP, 2.0: 1}


def test_sessions_take_turns(machine: Machine, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three sessions with many runs each, each has one on the device, once the first's end."""
    where, made, on_it = machine.sim("a"), list[Session](), list[list[int]]()
    monkeypatch.setattr(turns, "MOMENT", 1e9)
    execute = SimQueue.execute

    def counted(queue: SimQueue, *args: object, **named: object) -> object:
        on_it.append([len(session.ready().shares[0].on) for session in made])
        return execute(queue, *args, **named)  # type: ignore[arg-type]

    with compiled(where) as a, compiled(where) as b, compiled(where) as c:
        made += (a, b, c)
        monkeypatch.setattr(SimQueue, "execute", counted)
        futures = []
        for value, session in enumerate(made, 1):
            futures += [session.submit(feed(value), timeout=60) for _ in range(20)]
            while not session.ready().shares[0].on:
                threading.Event().wait(0.001)
        gate.open.set()
        for value, future in enumerate(futures):
            assert future.result(60)["y"][0] == 2 * (1 + value // 20)
    crowded = [i for i, counts in enumerate(on_it) if max(counts) > 1]
    assert len(on_it) == 60
    assert crowded == list(range(len(crowded))), "it has more than one on again"
    assert len(crowded) < 30


def test_a_run_that_waits_for_its_turn_can_be_given_up(machine: Machine, gate: Gate) -> None:
    with compiled(machine.sim("a")) as session:
        deep = [session.submit(feed(1), timeout=60) for _ in range(ALONE)]
        assert gate.reached.wait(30)
        while len(session.ready().shares[0].on) < ALONE:
            threading.Event().wait(0.001)
        with pytest.raises(Timeout, match="not done after"):
            session.run(feed(1), timeout=0.05)
        future = session.submit(feed(1))
        while not session.ready().flow.waiting:
            threading.Event().wait(0.001)
        future.cancel()
        with pytest.raises(Cancelled):
            future.result(10)
        gate.open.set()
        assert all(f.result(60)["y"][0] == 2 for f in deep)
        assert session.run(feed(3), timeout=60)["y"][0] == 6
        flow = session.ready().flow
        while flow.waiting or session.ready().shares[0].on:
            threading.Event().wait(0.001)
