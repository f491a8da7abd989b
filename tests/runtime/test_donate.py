"""Inputs that are given up, whose memory outputs are written to: states that go round in a loop."""

from __future__ import annotations

import asyncio
import gc
import resource
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.base import Device
from crossdock.devices.sim import Fault
from crossdock.kernels.reference import evaluate
from crossdock.runtime.errors import DeviceError, FeedError, MemoryBudget, Timeout
from crossdock.runtime.graph import Graph
from crossdock.runtime.keeping import Donations, Slot
from crossdock.runtime.program import Program
from crossdock.runtime.session import Session
from crossdock.runtime.tensor import TensorSpec
from tests.fakes import cupy_fake
from tests.runtime.conftest import Gate, Machine
from tests.runtime.lazy_device import World
from tests.runtime.spread import Spread
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_exchange import device, on
from tests.runtime.test_exchange_cuda import Producer
from tests.runtime.test_executor import ADVERSARIAL, placed_graphs

__all__ = ["device"]  # a fixture
pytestmark = pytest.mark.usefixtures("no_hang")
STATE = np.arange(64, dtype=np.float32).reshape(4, 16) % 5
STEP = np.ones((4, 16), np.float32)


def recurrent(where: str, **options: Any) -> Session:
    """h2 = relu(h + x) and y = -h2, on a device."""
    b = xd.GraphBuilder()
    h = b.relu(b.add(b.input("h", STATE.shape), b.input("x", STATE.shape), label="add"))
    graph = b.build({"h2": h, "y": b.neg(h, label="neg")})
    rules = xd.Constraints(pin={"*": where}, memory=options.pop("memory", {}))
    options.setdefault("outputs", "device")
    return xd.compile(
        graph, ["cpu:0", where], constraints=rules, measure=False, feeds_on={"h": where}, **options
    )


def counted(card: Device, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is allocated on a device from now on."""
    sizes: list[int] = []
    allocate = card.allocate

    def counting(nbytes: int, label: str = "") -> Any:
        sizes.append(nbytes)
        return allocate(nbytes, label)

    monkeypatch.setattr(card, "allocate", counting)
    return sizes


def test_a_state_takes_no_new_memory(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with recurrent(device) as session:
        state = session.run({"h": STATE, "x": STEP})["h2"]
        want = STATE + STEP
        sizes = counted(session.devices[device], monkeypatch)
        for _ in range(5):
            before = state
            made = session.run({"h": state, "x": STEP}, donate=["h"])
            state, want = made["h2"], want + STEP
            assert before.closed
            np.testing.assert_array_equal(state.numpy(), want)
            np.testing.assert_array_equal(made["y"].numpy(), -want)
        assert sizes == [STATE.nbytes] * 5, "y alone"


@pytest.mark.parametrize(
    ("where", "runs"),
    [
        ("cpu:0", 10_000),
        ("opencl:0", 300),
        pytest.param("opencl:0", 10_000, marks=pytest.mark.slow),
        ("sim:a", 200),
    ],
)
@pytest.mark.parametrize("donate", [["h"], []], ids=["donated", "dropped"])
def test_a_loop_grows_neither_on_the_device_nor_on_the_host(
    machine: Machine, request: pytest.FixtureRequest, where: str, runs: int, donate: list[str]
) -> None:
    machine.sim("a")
    if where.startswith("opencl"):
        request.getfixturevalue("opencl")
    with recurrent(where) as session:
        card = session.devices[where]

        def rounds(state: Any, count: int) -> Any:
            for _ in range(count):
                state = session.run({"h": state, "x": -STEP}, donate=donate)["h2"]
            return state

        state = rounds(session.run({"h": STATE, "x": STEP})["h2"], runs // 10)
        gc.collect()
        card.allocate(0)
        used, objects = card.gauge.used, len(gc.get_objects())
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        card.gauge.reset()
        state = rounds(state, runs)
        gc.collect()
        card.allocate(0)
        assert card.gauge.used == used
        assert card.gauge.peak - used <= 8 * STATE.nbytes
        assert len(gc.get_objects()) - objects < 200
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 8 << 10  # KiB
        np.testing.assert_array_equal(state.numpy(), np.zeros_like(STATE))


def test_every_way_to_run_takes_what_is_donated(device: str) -> None:
    with recurrent(device) as session:
        state = session.run({"h": STATE, "x": STEP})["h2"]
        state = session.submit({"h": state, "x": STEP}, donate=["h"]).result(60)["h2"]
        state = session.run({"h": state, "x": STEP}, donate=["h"], timeout=60)["h2"]
        state = asyncio.run(session.run_async({"h": state, "x": STEP}, donate=["h"]))["h2"]
        np.testing.assert_array_equal(state.numpy(), STATE + 4)
        last = session.run({"h": state, "x": STEP}, donate=["h"], outputs="host")
        np.testing.assert_array_equal(last["h2"], STATE + 5)
        assert state.closed


def test_memory_of_another_size_is_given_back(machine: Machine) -> None:
    a = machine.device(machine.sim("a"))
    b = xd.GraphBuilder()
    x = b.input("x", (4, 16))
    graph = b.build({"s": b.reduce_sum(x, axes=[1], label="sum")})
    with xd.compile(graph, "sim:a", measure=False, outputs="device") as session:
        value = on(a, STATE)
        made = session.run({"x": value}, donate=["x"])["s"]
        assert value.closed
        np.testing.assert_array_equal(made.numpy(), STATE.sum(1))
        with pytest.raises(DeviceError, match="used after it was donated"):
            value.numpy()


def test_one_of_another_type_and_shape_will_do(machine: Machine) -> None:
    a = machine.device(machine.sim("a"))
    b = xd.GraphBuilder()
    cast = b.cast(b.input("x", (4, 16)), "int32", label="cast")
    graph = b.build({"y": b.reshape(cast, (16, 4))})
    with xd.compile(graph, "sim:a", measure=False, outputs="device") as session:
        used = a.gauge.used
        value = on(a, STATE)
        session.run({"x": value})
        a.gauge.reset()
        held = a.gauge.used - used
        made = session.run({"x": value}, donate=["x"])["y"]
        assert a.gauge.used - used <= held
        assert (made.shape, made.dtype) == ((16, 4), np.int32)
        np.testing.assert_array_equal(made.numpy(), STATE.astype(np.int32).reshape(16, 4))


def test_what_others_share_is_not_written_to(machine: Machine) -> None:
    with recurrent("cpu:0") as session:
        state = session.run({"h": STATE, "x": STEP})["h2"]
        for share in (np.asarray, np.from_dlpack):
            seen = share(state)
            before = seen.copy()
            state = session.run({"h": state, "x": STEP}, donate=["h"])["h2"]
            np.testing.assert_array_equal(seen, before)


def test_an_array_that_is_fed_twice_is_read_before_it_is_written(device: str) -> None:
    with recurrent(device) as session:
        state = session.run({"h": STATE, "x": STEP})["h2"]
        made = session.run({"h": state, "x": state}, donate=["h", "x"])
        np.testing.assert_array_equal(made["h2"].numpy(), 2 * (STATE + 1))
        assert state.closed


def test_limits_count_memory_once(machine: Machine) -> None:
    machine.sim("a")
    with recurrent("sim:a") as probe:
        peak = probe.plan.device("sim:a").peak_bytes
    with recurrent("sim:a", memory={"sim:a": peak + 3 * STATE.nbytes - 1}) as session:
        state = session.run({"h": STATE, "x": STEP})["h2"]  # y is dropped
        for _ in range(3):
            state = session.run({"h": state, "x": STEP}, donate=["h"])["h2"]
        with pytest.raises(MemoryBudget, match="close some of them"):
            session.run({"h": state, "x": STEP})
        assert not state.closed
        state.close()
        session.run({"h": STATE, "x": STEP})


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("donate", "said"),
    [
        ("h", "give a list of the names"),
        (["q"], "'q', no input of graph"),
        (["x"], "'x' is ndarray and cannot be donated: only a DeviceArray"),
    ],
)
def test_what_cannot_be_donated_is_refused(device: str, donate: Any, said: str) -> None:
    with recurrent(device) as session:
        state = session.run({"h": STATE, "x": STEP})["h2"]
        for run in (session.run, session.submit):
            with pytest.raises(FeedError, match=said):
                run({"h": state, "x": STEP}, donate=donate)
        np.testing.assert_array_equal(state.numpy(), STATE + 1)


def test_what_was_donated_is_used_no_more(device: str) -> None:
    with recurrent(device) as session:
        state = session.run({"h": STATE, "x": STEP})["h2"]
        session.run({"h": state, "x": STEP}, donate=["h"])
        for use in (lambda: session.run({"h": state, "x": STEP}), state.numpy, state.buffer):
            with pytest.raises((FeedError, DeviceError), match="after"):
                use()
        with pytest.raises(FeedError, match="after"):
            session.run({"h": state, "x": STEP}, donate=["h"])
    closed = session
    with pytest.raises(xd.Error, match="closed"):
        closed.run({"h": STATE, "x": STEP})


def test_two_runs_cannot_have_the_same_array(machine: Machine, gate: Gate) -> None:
    machine.sim("a")
    with recurrent("sim:a") as session:
        state = on(machine.device("sim:a"), STATE)
        first = session.submit({"h": state, "x": STEP}, donate=["h"])
        assert gate.reached.wait(30)
        for more in ({}, {"donate": ["h"]}):
            with pytest.raises(FeedError, match="donated to a run that is under way"):
                session.run({"h": state, "x": STEP}, **more)
        gate.open.set()
        np.testing.assert_array_equal(first.result(30)["h2"].numpy(), STATE + 1)


def test_a_run_with_a_shape_that_does_not_fit_leaves_what_is_donated(device: str) -> None:
    with recurrent(device) as session:
        state = session.run({"h": STATE, "x": STEP})["h2"]
        with pytest.raises(FeedError, match="'x' wants"):
            session.run({"h": state, "x": STEP[:1]}, donate=["h"])
        again = session.run({"h": state, "x": STEP}, donate=["h"])
        np.testing.assert_array_equal(again["h2"].numpy(), STATE + 2)


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1])
def test_a_launch_that_fails_has_not_spoilt_what_is_donated(machine: Machine, step: int) -> None:
    machine.sim("a", faults=(Fault("oom", step),))
    with recurrent("sim:a", skip_passes=["fuse-elementwise"]) as session:
        state = on(machine.device("sim:a"), STATE)
        made = session.run({"h": state, "x": STEP}, donate=["h"], timeout=30)
        assert session.receipt.recoveries
        np.testing.assert_array_equal(made["h2"].numpy(), STATE + 1)
        assert state.closed


def test_a_run_that_is_given_up_keeps_what_it_may_write_to(machine: Machine, gate: Gate) -> None:
    machine.sim("a")
    with recurrent("sim:a") as session:
        card = machine.device("sim:a")
        state = on(card, STATE)
        with pytest.raises(Timeout):
            session.run({"h": state, "x": STEP}, donate=["h"], timeout=0.2)
        assert state.closed
        with pytest.raises(FeedError, match="donated to a run that failed, or was given up"):
            session.run({"h": state, "x": STEP}, timeout=10)
        gate.open.set()
        made = session.run({"h": STATE, "x": STEP})
        np.testing.assert_array_equal(made["h2"].numpy(), STATE + 1)


def test_what_may_have_been_written_to_is_closed() -> None:
    card = registry.open_device("cpu:0")
    whole, spoilt = on(card, STATE), on(card, STATE)
    donations = Donations([whole, spoilt])
    slot = Slot.of(card, TensorSpec.of(STATE), "y", 0)
    first, second = (donations.output(slot, place, lambda _: True) for place in (3, 4))
    assert first is not None
    assert second is not None
    assert donations.output(slot, 5, lambda _: True) is None
    donations.begun.add(4)
    donations.ended(DeviceError("no"))
    assert (whole.closed, spoilt.closed) == (False, True)
    np.testing.assert_array_equal(whole.numpy(), STATE)


# --- plans of any make ----------------------------------------------------------------------------


def rounds_of(machine: Machine, made: tuple[Graph, dict[str, int]], seed: int) -> None:
    """Runs that are fed the memory of all that they may write to, against the reference."""
    spread = Spread(machine, made, seed)
    with spread.session("device") as session:
        for turn in range(2):
            feeds = whole_feeds(spread.graph, seed + turn)
            want = evaluate(spread.graph, feeds)
            placed = spread.placed(feeds, turn)
            got = session.run(placed, donate=list(placed), timeout=60)
            for name, array in got.items():
                np.testing.assert_array_equal(array.numpy(), want[name], err_msg=name)
            assert all(array.closed for array in placed.values())


@settings(ADVERSARIAL, max_examples=12)
@given(placed_graphs(), st.integers(0, 1 << 16))
def test_answers_hold_however_late_work_is_done(
    machine: Machine, made: tuple[Graph, dict[str, int]], seed: int
) -> None:
    rounds_of(machine, made, seed)


def early(machine: Machine, seed: int) -> None:
    """An output is made on a device where an input lies that another device has yet to read."""
    world = World(seed)
    for name in "ab":
        machine.lazy(name, world, peers=("a", "b"))
    b = xd.GraphBuilder()
    h, x = b.input("h", (4, 4)), b.input("x", (4, 4))
    graph = b.build({"y": b.neg(x, label="near"), "z": b.relu(h, label="far")})
    rules = xd.Constraints(pin={"near": "sim:a", "far": "sim:b"})
    feeds = whole_feeds(graph, seed)
    with xd.compile(
        graph, ["sim:a", "sim:b"], constraints=rules, measure=False, feeds_on="sim:a",
        outputs="device",
    ) as session:  # fmt: skip
        placed = {name: on(machine.device("sim:a"), array) for name, array in feeds.items()}
        got = session.run(placed, donate=["h"], timeout=60)
        for name, array in evaluate(graph, feeds).items():
            np.testing.assert_array_equal(got[name].numpy(), array, err_msg=name)


def test_a_place_that_is_written_too_early_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounds() -> None:
        for seed in range(60):
            early(machine, seed)

    rounds()
    monkeypatch.setattr(Program, "follows", lambda *_: True)
    with pytest.raises(AssertionError, match="not equal"):
        rounds()


# --- a card ---------------------------------------------------------------------------------------


def test_a_state_on_a_card_takes_no_new_memory(fake: cupy_fake.FakeCupy) -> None:
    with recurrent("cuda:0") as session:
        state = session.run({"h": STATE, "x": STEP})["h2"]
        addresses = set()
        for i in range(4):
            state = session.run({"h": state, "x": STEP}, donate=["h"])["h2"]
            addresses.add(state.buffer().pointer.ptr)
            np.testing.assert_array_equal(state.numpy(), STATE + 2 + i)
            assert session.receipt.links == {"cpu:0->cuda:0": STEP.nbytes}
        assert len(addresses) == 1
        library = Producer(fake)
        with library.stream:
            taken = fake.from_dlpack(state)  # from now on another library has it, too
        other = session.run({"h": state, "x": STEP}, donate=["h"])["h2"]
        assert other.buffer().pointer.ptr not in addresses
        np.testing.assert_array_equal(library.read(taken), STATE + 5)
        library.release()
