"""Feeds of other libraries, and outputs that stay on the devices that make them."""

from __future__ import annotations

import asyncio
import gc
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
from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.errors import DeviceError, FeedError, MemoryBudget, OutOfMemory
from crossdock.runtime.graph import Graph
from crossdock.runtime.intake import Intake
from crossdock.runtime.session import Session
from tests.runtime.conftest import Machine
from tests.runtime.lazy_device import World
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_executor import ADVERSARIAL, placed_graphs
from tests.runtime.test_executor_faults import PLACES, compiled, faulty, relay
from tests.runtime.test_session_staged import X, reshaping
from tests.runtime.test_split_choice import GRAPHS

pytestmark = pytest.mark.usefixtures("no_hang")
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
BYTES = VALUES.nbytes


class Library:
    """An array of another library in host memory: it knows DLPack alone."""

    def __init__(
        self, array: np.ndarray, device: tuple[int, int] = (1, 0), error: str = ""
    ) -> None:
        self._array, self._device, self._error = array, device, error

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **options: Any) -> Any:
        if self._error:
            raise BufferError(self._error)
        return self._array.__dlpack__(**options)


class Guarded(Library):
    """It lets numpy have nothing, as torch does where a gradient is wanted."""

    def __array__(self, *given: Any, **options: Any) -> Any:
        raise RuntimeError("detach it first")


def three(device: str, **options: Any) -> Session:
    """y = relu(2 x) and z = -y on a device, and h = y + x on the host."""
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    y = b.relu(b.add(x, x, label="double"), label="relu")
    graph = b.build({"y": y, "z": b.neg(y, label="neg"), "h": b.add(y, x, label="sum")})
    memory = options.pop("memory", {})
    pins = {"double": device, "relu": device, "neg": device, "sum": "cpu:0"}
    rules = xd.Constraints(pin=pins, memory=memory)
    return xd.compile(graph, ["cpu:0", device], constraints=rules, measure=False, **options)


def on(device: Device, array: np.ndarray) -> DeviceArray:
    """An array on a device."""
    return DeviceArray.put(device, array)


@pytest.fixture(params=["cpu:0", "opencl:0", "sim:a"])
def device(request: pytest.FixtureRequest, machine: Machine) -> str:
    name: str = request.param
    if name == "sim:a":
        machine.sim("a")
    elif name.startswith("opencl"):
        request.getfixturevalue("opencl")
    return name


# --- feeds ----------------------------------------------------------------------------------------


def test_host_memory_of_another_library_is_read_where_it_is(machine: Machine) -> None:
    taken = Intake({}).take("x", Library(VALUES))
    assert np.shares_memory(taken, VALUES)
    with three("cpu:0") as session:
        for value in (Library(VALUES), Library(VALUES.T.copy().T), Library(VALUES, (3, 0))):
            np.testing.assert_array_equal(session.run({"x": value})["y"], 2 * VALUES)
            future = session.submit({"x": value})
            np.testing.assert_array_equal(future.result(60)["y"], 2 * VALUES)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Library(VALUES.astype(np.float64)), r"wants float32\[3,4\], got float64\[3,4\]"),
        (Library(VALUES.T), r"got float32\[4,3\]"),
        (Library(VALUES, error="has a gradient"), "wants float32"),
        (Guarded(VALUES, error="has a gradient"), "wants float32.*detach it first"),
        (Library(VALUES, (10, 1), error="no"), "ROCm device 1, which this session does not use"),
        (Library(VALUES, (99, 0), error="no\nway"), "type 99, device 0.*Library says: no way"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(machine: Machine, value: Any, said: str) -> None:
    with three("cpu:0") as session, pytest.raises(FeedError, match=f"'x'.*{said}") as caught:
        session.run({"x": value})
    assert "\n" not in str(caught.value)


def test_a_library_that_copies_to_the_host_is_asked_to(machine: Machine) -> None:
    with three("cpu:0") as session:
        made = session.run({"x": Library(VALUES, (10, 1))})
        np.testing.assert_array_equal(made["y"], 2 * VALUES)
        assert any("48 bytes) came to the host" in note for note in session.receipt.notes)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_arrays_of_libraries_that_are_installed_go_in_and_out(machine: Machine, name: str) -> None:
    library: Any = pytest.importorskip(name, reason=f"{name} is not installed")
    make = library.from_numpy if name == "torch" else library.numpy.asarray
    taken = library.from_dlpack if name == "torch" else library.numpy.from_dlpack
    array = make(VALUES)
    assert np.shares_memory(Intake({}).take("x", array), np.from_dlpack(array))
    with three("cpu:0") as session:
        np.testing.assert_array_equal(session.run({"x": array})["y"], 2 * VALUES)
        kept = session.run({"x": array}, outputs="device")["y"]
        again = session.run({"x": taken(kept)}, outputs="device")["y"]
        np.testing.assert_array_equal(np.asarray(taken(again)), 4 * VALUES)


# --- outputs --------------------------------------------------------------------------------------


def test_outputs_stay_where_the_plan_makes_them(device: str) -> None:
    with three(device) as session:
        want = session.run({"x": VALUES})
        links = session.receipt.links
        kept = session.run({"x": VALUES}, outputs="device")
        assert {n: a.device for n, a in kept.items()} == {"y": device, "z": device, "h": "cpu:0"}
        down = {} if device == "cpu:0" else {f"{device}->cpu:0": BYTES}  # z; the host reads y
        assert session.receipt.avoided == down
        assert sum(links.values()) - sum(session.receipt.links.values()) == sum(down.values())
        session.run({"x": VALUES + 1}, outputs="device")
        session.run({"x": VALUES + 2})
        for name, array in kept.items():
            assert (array.shape, array.dtype, array.nbytes) == ((3, 4), np.float32, BYTES)
            np.testing.assert_array_equal(array.numpy(), want[name])
            np.testing.assert_array_equal(np.asarray(array), want[name])
            np.testing.assert_array_equal(np.asarray(array, dtype=np.float64), want[name])


def test_outputs_are_fed_on_the_device(device: str) -> None:
    with three(device) as session, three(device) as other:
        kept = session.run({"x": VALUES}, outputs="device")
        again = other.run({"x": kept["y"]}, outputs="device")
        np.testing.assert_array_equal(again["y"].numpy(), 4 * VALUES)
        np.testing.assert_array_equal(again["h"].numpy(), 6 * VALUES)
        if device != "cpu:0":
            assert other.receipt.avoided == {f"cpu:0->{device}": BYTES, f"{device}->cpu:0": BYTES}
            assert other.receipt.links == {f"{device}->cpu:0": 2 * BYTES}  # y, and x for the host
        outcome = other.profile({"x": kept["y"]})
        np.testing.assert_array_equal(outcome.outputs["z"], -4 * VALUES)


def test_a_device_copies_an_input_from_its_peer(machine: Machine) -> None:
    near, far = machine.sim("near"), machine.sim("far", peers=("near",))
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    graph = b.build({"y": b.neg(x, label="far"), "z": b.neg(b.relu(x, label="near"), label="far2")})
    rules = xd.Constraints(pin={"far*": far, "near": near})
    with xd.compile(graph, [near, far], constraints=rules, measure=False) as session:
        kept = session.run({"x": on(machine.device(near), VALUES)}, outputs="device")
        np.testing.assert_array_equal(kept["y"].numpy(), -VALUES)
        np.testing.assert_array_equal(kept["z"].numpy(), -VALUES)
        assert session.receipt.links == {f"{near}->{far}": 2 * BYTES}
        back = session.run({"x": on(machine.device(far), VALUES)})  # far's peer is no way to near
        np.testing.assert_array_equal(back["y"], -VALUES)
        assert session.receipt.links[f"{far}->cpu:0"] == 3 * BYTES


def test_every_way_to_run_keeps_outputs(device: str) -> None:
    with three(device, runs_at_once=2) as session:
        futures = [session.submit({"x": VALUES + i}, outputs="device") for i in range(6)]
        for i, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(60)["y"].numpy(), 2 * (VALUES + i))
        late = session.run({"x": VALUES}, outputs="device", timeout=60)
        np.testing.assert_array_equal(late["z"].numpy(), -2 * VALUES)
        made = asyncio.run(session.run_async({"x": late["y"]}, outputs="device"))
        np.testing.assert_array_equal(made["y"].numpy(), 4 * VALUES)
        with pytest.raises(FeedError, match="'host' or 'device'; it is 'gpu'"):
            session.run({"x": VALUES}, outputs="gpu")  # type: ignore[arg-type]


def test_host_outputs_are_shared_and_others_say_why_not(device: str) -> None:
    with three(device) as session:
        kept = session.run({"x": VALUES}, outputs="device")
    host, made = kept["h"], kept["z"]
    assert host.__dlpack_device__() == (1, 0)
    shared = np.from_dlpack(host)
    shared[0] = 7
    np.testing.assert_array_equal(host.numpy()[0], 7)
    host.close()
    np.testing.assert_array_equal(shared[0], 7)  # who shares it keeps it
    assert not hasattr(made, "__cuda_array_interface__")
    if device != "cpu:0":
        with pytest.raises(BufferError, match=f"{device} is shared by no protocol"):
            np.from_dlpack(made)
        with pytest.raises(ValueError, match="has to copy"):
            np.asarray(made, copy=False)


def test_memory_counts_until_it_is_given_back(device: str) -> None:
    with three(device) as session:
        session.run({"x": VALUES}, outputs="device")
        gauge = registry.open_device(device).gauge
        gc.collect()
        registry.open_device(device).allocate(0)
        before = gauge.used
        kept = session.run({"x": VALUES}, outputs="device")
        assert gauge.used >= before + 2 * BYTES
        with kept["y"], kept["z"], kept["h"]:
            pass
        registry.open_device(device).allocate(0)
        assert gauge.used == before
        assert kept["y"].closed
        with pytest.raises(DeviceError, match="after its close"):
            kept["y"].numpy()
        with pytest.raises(FeedError, match=r"'x'.*after its close"):
            session.run({"x": kept["y"]})


def test_memory_comes_back_with_the_last_reference(device: str) -> None:
    with three(device) as session:
        card = registry.open_device(device)
        session.run({"x": VALUES}, outputs="device")
        gc.collect()
        gc.disable()
        try:
            card.allocate(0)
            before = card.gauge.used
            for way in ({}, {"timeout": 60}):
                kept = session.run({"x": VALUES}, outputs="device", **way)
                assert card.gauge.used > before
                session.run({"x": kept["y"]}, **way)
                del kept
                card.allocate(0)
                assert card.gauge.used == before
        finally:
            gc.enable()


def test_constraints_on_memory_hold(device: str) -> None:
    with three(device) as probe:
        probe.run({"x": VALUES})
        peak = probe.plan.device(device).peak_bytes
    with three(device, memory={device: peak + 6 * BYTES - 1}) as session:  # 3 a run, or 2
        kept = [
            session.run({"x": VALUES}, outputs="device") for _ in range(1 + (device != "cpu:0"))
        ]
        with pytest.raises(MemoryBudget, match=r"output .* does not fit.*close some of them"):
            session.run({"x": VALUES}, outputs="device")
        session.run({"x": VALUES})
        kept.pop()
        session.run({"x": VALUES}, outputs="device")


def test_a_device_without_room_is_told_of(machine: Machine) -> None:
    machine.sim("a", memory_bytes=4096)
    with three("sim:a") as session:
        kept: list[Any] = []

        def fill() -> None:
            while True:
                kept.append(session.run({"x": VALUES}, outputs="device")["y"])

        with pytest.raises(OutOfMemory, match="close arrays kept on sim:a"):
            fill()
        assert len(kept) > 2
        np.testing.assert_array_equal(session.run({"x": VALUES})["y"], 2 * VALUES)
        assert not session.receipt.recoveries
        kept.clear()
        session.run({"x": VALUES}, outputs="device")


# --- plans of any make ----------------------------------------------------------------------------


def check(session: Session, graph: Graph, homes: list[Device], seed: int) -> None:
    """Runs with inputs on devices, and outputs kept, against the reference, exactly."""
    for i in range(2):
        feeds = whole_feeds(graph, seed + i)
        want = evaluate(graph, feeds)
        session.run(feeds)
        planned = sum(session.receipt.links.values())
        placed: dict[str, Any] = {
            name: on(homes[(seed + i + at) % len(homes)], np.asarray(array))
            for at, (name, array) in enumerate(feeds.items())
        }
        kept = session.run(placed, outputs="device", timeout=60)
        receipt = session.receipt
        pulled = sum(receipt.links.values()) + sum(receipt.avoided.values()) - planned
        assert 0 <= pulled <= len(homes) * sum(a.nbytes for a in placed.values())
        session.run(whole_feeds(graph, seed + i + 1))
        assert list(kept) == list(graph.outputs)
        for name, array in kept.items():
            np.testing.assert_array_equal(array.numpy(), want[name], err_msg=name)
            assert array.dtype == want[name].dtype


@settings(ADVERSARIAL, max_examples=15)
@given(placed_graphs(), st.integers(0, 1 << 16))
def test_answers_hold_however_late_work_is_done(
    machine: Machine, made: tuple[Graph, dict[str, int]], seed: int
) -> None:
    graph, where = made
    world = World(seed)
    ids = ["cpu:0", *(machine.lazy(name, world, peers=("a", "b")) for name in "abc")]
    rules = xd.Constraints(pin={name: ids[at] for name, at in where.items()})
    with xd.compile(graph, ids, constraints=rules, measure=False) as session:
        check(session, graph, [machine.device(name) for name in ids], seed)


def test_ops_in_parts_take_and_give_whole_arrays(machine: Machine) -> None:
    graph = GRAPHS["chain"]()
    names = [
        machine.sim(name, bandwidth=2e9, link_bandwidth=2e10, link_latency=1e-6) for name in "ab"
    ]
    with xd.compile(graph, names) as session:
        assert any(s.taken for s in session.plan.splits)
        feeds = whole_feeds(graph, 1)
        want = session.run(feeds)
        placed = {name: on(machine.device(names[0]), array) for name, array in feeds.items()}
        kept = session.run(placed, outputs="device")
        for name, array in kept.items():
            assert array.device == "cpu:0"
            np.testing.assert_array_equal(array.numpy(), want[name])


def test_a_staged_graph_has_its_outputs_on_the_host(machine: Machine) -> None:
    machine.sim("a")
    with xd.compile(reshaping(), "cpu:0", measure=False, threads=1) as session:
        feeds = {"x": on(machine.device("sim:a"), X), "shape": Library(np.array([2, 3]))}
        kept = session.run(feeds, outputs="device")
        want = session.run({"x": X, "shape": np.array([2, 3])})
        assert kept["y"].device == "cpu:0"
        np.testing.assert_array_equal(kept["y"].numpy(), want["y"])


# --- devices that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("kind", ["launch", "lost", "oom"])
def test_a_run_goes_on_where_a_device_fails(machine: Machine, kind: str, step: int) -> None:
    graph = relay()
    faulty(machine, "sim:b", Fault(kind, step))  # type: ignore[arg-type]
    feeds = whole_feeds(graph, 3)
    want = evaluate(graph, feeds)
    with compiled(graph) as session:
        home = machine.device(next(d for d in PLACES.values() if d == "sim:a"))
        placed = {name: on(home, array) for name, array in feeds.items()}
        kept = session.run(placed, outputs="device", timeout=30)
        assert session.receipt.recoveries
        for name, array in want.items():
            np.testing.assert_array_equal(kept[name].numpy(), array)


def test_an_input_on_a_device_that_is_lost_is_named(machine: Machine) -> None:
    graph = relay()
    faulty(machine, "sim:a", Fault("lost", 0))
    with compiled(graph) as session:
        home = machine.device("sim:a")
        feeds = {name: on(home, array) for name, array in whole_feeds(graph, 3).items()}
        with pytest.raises(DeviceError, match=r"input '.*' was on sim:a alone"):
            session.run(feeds, timeout=30)
        with pytest.raises(FeedError, match="gone with the device"):
            session.run(feeds, timeout=30)
