"""From plans to programs: segments, weights that go up once, instances that share nothing."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.base import Device
from crossdock.devices.host_memory import HostBuffer
from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import DeviceHung, DeviceLost, OutOfMemory, StalePlan
from crossdock.runtime.executor import Care
from crossdock.runtime.graph import Graph
from crossdock.runtime.lower import lower
from crossdock.runtime.order import with_waits
from crossdock.runtime.plan import HOST, Constraints, Step
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.program import Program, instantiate
from crossdock.runtime.queued import QueuedRun
from crossdock.runtime.segments import segment
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel
from tests.runtime.closure import done_before
from tests.runtime.conftest import Machine
from tests.runtime.strategies import step, waiting_steps, whole_feeds


@given(waiting_steps())
def test_segments_hold_each_step_once_and_in_order(given_: list[Step]) -> None:
    steps = with_waits(given_)
    parts = segment(steps)
    assert sorted(i for p in parts for i in p.steps) == list(range(len(steps)))
    for queue in {s.queue for s in steps}:
        walked = [i for p in parts if f"{p.device}/{p.role}" == queue for i in p.steps]
        assert walked == [s.index for s in steps if s.queue == queue]


@given(waiting_steps())
def test_segments_wait_for_all_that_their_steps_wait_for(given_: list[Step]) -> None:
    """As steps whose waits are those of their segment, whole, the order is no weaker."""
    steps = with_waits(given_)
    parts = segment(steps)
    home = {i: p for p in parts for i in p.steps}
    for part in parts:
        assert all(w < part.index for w in part.waits)
        assert all(parts[w].signals for w in part.waits)
    coarse = []
    for s in steps:
        part = home[s.index]
        first = s.index == part.steps[0]
        waits = tuple(parts[w].steps[-1] for w in part.waits) if first else ()
        coarse.append(replace(s, waits=waits))
    before, after = done_before(steps), done_before(coarse)
    assert all(b <= a for b, a in zip(before, after, strict=True))


def test_a_queue_that_waits_for_nothing_is_one_segment() -> None:
    (part,) = segment([step(i, "cpu:0/compute") for i in range(5)])
    assert part.steps == (0, 1, 2, 3, 4)
    assert not part.signals


@given(st.integers(1, 6))
def test_copies_are_segments_of_their_own(n: int) -> None:
    steps = [step(i, "a:0/upload", src="cpu:0", dst="a:0", inputs=(f"v{i}",)) for i in range(n)]
    assert [p.steps for p in segment(steps)] == [(i,) for i in range(n)]


def program(machine: Machine, graph: Graph, *devices: str, pin: dict[str, str]) -> Program:
    """A graph lowered onto simulated devices and the host."""
    opened: dict[str, Device] = {d: machine.device(d) for d in (HOST, *devices)}
    infos = tuple(d.info for d in opened.values())
    target = Target(infos, frozenset(opened), CostModel())
    plan = make_plan(graph, target, Options(constraints=Constraints(pin=pin)))
    return lower(graph, plan, opened)


def shared_weight() -> Graph:
    """One weight that three ops read, one of them through another shape."""
    b = xd.GraphBuilder(fold=False)
    x = b.input("x", (3, 4))
    w = b.constant(np.arange(12, dtype=np.float32).reshape(3, 4))
    flat = b.reshape(w, [12])
    one, two = b.add(x, w, label="one"), b.mul(x, w, label="two")
    three = b.add(b.reshape(x, [12]), flat, label="three")
    return b.build({"one": one, "two": two, "three": three, "w": b.identity(w)})


def test_a_weight_goes_to_each_device_once(machine: Machine) -> None:
    graph = shared_weight()
    a, b = machine.sim("a"), machine.sim("b")
    made = program(machine, graph, a, b, pin={"one": a, "two": a, "three": b})
    (weight,) = graph.constants
    assert sorted(made.residents) == [(weight, a), (weight, b)]
    assert made.plan.device(a).resident_bytes == made.plan.device(b).resident_bytes == 48
    feeds = whole_feeds(graph, 1)
    run = QueuedRun(made, instantiate(made), lambda: None)
    want = evaluate(graph, feeds)
    for name, array in run.across(feeds, Deadline(30)).outputs.items():
        np.testing.assert_array_equal(array, want[name])


def test_instances_share_weights_and_no_arena(machine: Machine) -> None:
    a = machine.sim("a")
    made = program(machine, shared_weight(), a, pin={"*": a})
    first, second = instantiate(made), instantiate(made)

    def ranges(instance: Any) -> list[tuple[int, int]]:
        scratch = (b for buffers in instance.scratch.values() for b in buffers)
        buffers = [*instance.arenas.values(), *scratch]
        assert all(isinstance(b, HostBuffer) for b in buffers)
        return [(b.address(), b.address() + b.nbytes) for b in buffers]

    spans = sorted([*ranges(first), *ranges(second)])
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_arenas_take_what_the_plan_says(machine: Machine) -> None:
    a = machine.sim("a")
    made = program(machine, shared_weight(), a, pin={"*": a})
    instance = instantiate(made)
    assert {d: b.nbytes for d, b in instance.arenas.items()} == {
        d.id: d.arena_bytes for d in made.plan.devices
    }


def test_an_arena_that_does_not_fit_is_out_of_memory_and_leaves_nothing(machine: Machine) -> None:
    a = machine.sim("a")
    made = program(machine, shared_weight(), a, pin={"*": a})
    device: Any = machine.device(a)
    before = device._budget.free
    taken = device.allocate(before - 10)
    for _ in range(2):
        with pytest.raises(OutOfMemory, match=r"sim:a: \d+ bytes wanted for arena, 10 free"):
            instantiate(made)
    taken.release()
    del taken
    assert device._budget.free == before


def test_a_kernel_that_is_gone_makes_the_plan_stale(machine: Machine) -> None:
    graph = shared_weight()
    opened = {HOST: machine.device(HOST)}
    target = Target((opened[HOST].info,), frozenset([HOST]), CostModel())
    plan = make_plan(graph, target, Options())
    steps = tuple(replace(s, kernel="cpu.lost") for s in plan.steps)
    with pytest.raises(StalePlan, match=r"'one' was planned with kernel 'cpu\.lost'"):
        lower(graph, replace(plan, steps=steps), opened)


def test_progress_names_each_op(machine: Machine) -> None:
    graph, said = shared_weight(), []
    opened = {HOST: machine.device(HOST)}
    target = Target((opened[HOST].info,), frozenset([HOST]), CostModel())
    plan = make_plan(graph, target, Options())
    lower(graph, plan, opened, lambda what, done, total: said.append((what, done, total)))
    assert said == [
        ("preparing add on cpu:0", 0, 3),
        ("preparing mul on cpu:0", 1, 3),
        ("preparing add on cpu:0", 2, 3),
    ]


def test_a_run_that_is_lost_before_its_turn_holds_no_queue_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue hangs at what another run gave it: the runs behind are not to wait for that."""
    a, b = machine.sim("a"), machine.sim("b")
    made = program(machine, shared_weight(), a, b, pin={"one": a, "two": a, "three": b})
    device, turn, over = machine.device(b), threading.Event(), threading.Event()
    worker = device.worker("compute")
    worker.post(lambda: bool(turn.wait(30)))  # another run's turn
    run = QueuedRun(made, instantiate(made), lambda: None)

    def call() -> None:
        with pytest.raises(DeviceLost):
            run.across(whole_feeds(made.graph, 1), Deadline())

    caller = threading.Thread(target=call)
    caller.start()
    registry.lose(machine.device(a), "pulled out")
    caller.join(10)
    assert not caller.is_alive()
    monkeypatch.setattr(device.queues["compute"], "finish", lambda: over.wait(30))
    turn.set()
    came = threading.Event()
    worker.post(came.set)
    assert came.wait(5)
    over.set()


def test_memory_that_the_host_may_still_write_to_is_not_used_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is never gone, as its memory goes on feeding the others; its computing may hang."""
    made = program(
        machine, shared_weight(), machine.sim("a"), pin={"one": "sim:a", "two": HOST, "three": HOST}
    )
    open_, ends = threading.Event(), []
    queue = machine.device(HOST).queues["compute"]
    execute = queue.execute

    def held(*args: Any, **options: Any) -> Any:
        open_.wait(30)
        return execute(*args, **options)

    monkeypatch.setattr(queue, "execute", held)
    care = Care(discard=lambda: ends.append("discarded"), watchdog=0.1)
    run = QueuedRun(made, instantiate(made), lambda: ends.append("given back"), care=care)
    try:
        with pytest.raises(DeviceHung, match="cpu:0"):
            run.across(whole_feeds(made.graph, 1), Deadline())
        assert ends == ["discarded"]
    finally:
        open_.set()
        registry.rescan()
