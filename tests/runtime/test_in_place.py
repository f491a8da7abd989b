"""Arrays that lie on a device, or are to stay there, are read and written where they lie."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.base import Cap, Device, DeviceInfo
from crossdock.devices.cuda import MOST_RETURNED, CudaDevice
from crossdock.devices.links import link_ends
from crossdock.devices.opencl_queue import ClQueue
from crossdock.devices.sim import Fault, SimQueue
from crossdock.runtime import costing
from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.errors import FeedError, Timeout
from crossdock.runtime.executor import Run
from crossdock.runtime.in_place import IN_PLACE
from crossdock.runtime.session import Session
from crossdock.scheduler import LinkModel
from tests.fakes import cupy_fake
from tests.fakes.cuda_machine import Machine as Cards
from tests.runtime.conftest import Machine
from tests.runtime.test_exchange import on
from tests.runtime.test_exchange_cuda import CARD, ByDlpack, Producer

pytestmark = pytest.mark.usefixtures("no_hang")
SHAPE = (8, 64)
VALUES = np.arange(512, dtype=np.float32).reshape(SHAPE) - 100
KINDS = ["sim:a", "opencl:0", CARD]


class Copies:
    """Counts the copies within the memory of devices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for kind in (SimQueue, ClQueue):
            monkeypatch.setattr(kind, "copy", self._counted(kind.copy))
        monkeypatch.setattr(Cards, "copy", self._counted_on_card(Cards.copy))

    def _counted(self, copy: Any) -> Callable[..., Any]:
        def counting(queue: Any, target: Any, source: Any, waits: Any = ()) -> Any:
            self.count += source.device is queue.device
            return copy(queue, target, source, waits)

        return counting

    def _counted_on_card(self, copy: Any) -> Callable[..., Any]:
        def counting(cards: Cards, target: int, source: int, nbytes: int, *more: Any) -> Any:
            found = [cards._live.holding(address) for address in (target, source)]
            self.count += all(a is not None and a.device is not None for a in found)
            return copy(cards, target, source, nbytes, *more)

        return counting


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Copies:
    return Copies(monkeypatch)


@pytest.fixture(params=KINDS)
def device(request: pytest.FixtureRequest, machine: Machine) -> Device:
    """A device of each kind that binds callers' memory to its commands."""
    name: str = request.param
    if name == "sim:a":
        machine.sim("a")
    else:
        request.getfixturevalue("opencl" if name == "opencl:0" else "fake")
    return registry.open_device(name)


def chain(device: str, length: int = 4, **options: Any) -> Session:
    """y = 2 ... 2 x by ops that are not fused, all on one device."""
    b = xd.GraphBuilder()
    value = b.input("x", SHAPE)
    for i in range(length):
        value = b.add(value, value, label=f"op{i}")
    graph = b.build({"y": value})
    options.setdefault("skip_passes", ["fuse-elementwise"])
    return xd.compile(graph, device, measure=False, fallback="forbid", **options)


def test_no_copy_is_made_of_what_lies_on_a_device_and_stays_there(
    device: Device, copies: Copies
) -> None:
    name = device.info.id
    with chain(name) as session:
        for i in range(4):
            fed = on(device, VALUES + i)
            made = session.run({"x": fed}, outputs="device")["y"]
            np.testing.assert_array_equal(made.numpy(), 16 * (VALUES + i))
            np.testing.assert_array_equal(fed.numpy(), VALUES + i)
            again = session.run({"x": made})["y"]
            np.testing.assert_array_equal(again, 256 * (VALUES + i))
    assert copies.count == 0
    np.testing.assert_array_equal(
        made.numpy(), 16 * (VALUES + 3)
    )  # nothing was written to it since


def test_plans_and_receipts_say_so(device: Device, copies: Copies) -> None:
    name = device.info.id
    with chain(name, feeds_on=name, outputs="device") as session:
        within = [s for s in session.plan.steps if s.kind == "copy"]
        assert [(s.moves, s.detail, s.seconds) for s in within] == [
            ("take", IN_PLACE, 0.0), ("keep", IN_PLACE, 0.0)
        ]  # fmt: skip
        assert f"take x on {name} {VALUES.nbytes} B in place" in session.plan.explain()
        session.run({"x": on(device, VALUES)})
        assert (session.receipt.links, session.receipt.avoided) == ({}, {})
        assert copies.count == 0
        host = session.run({"x": VALUES}, outputs="host")["y"]  # not as planned, and right
        np.testing.assert_array_equal(host, 16 * VALUES)


@pytest.mark.parametrize("looks", [{"verify": "transfers"}, {"check_finite": True}])
def test_runs_that_are_looked_at_have_everything_in_the_arena(
    device: Device, copies: Copies, looks: dict[str, Any]
) -> None:
    name = device.info.id
    with chain(name, feeds_on=name, outputs="device", **looks) as session:
        assert not any(step.detail == IN_PLACE for step in session.plan.steps)
        made = session.run({"x": on(device, VALUES)})["y"]
        np.testing.assert_array_equal(made.numpy(), 16 * VALUES)
    assert copies.count == 2


def test_a_sampled_run_is_right(device: Device) -> None:
    name = device.info.id
    with chain(name, feeds_on=name, outputs="device", verify="sample:1") as session:
        made = session.run({"x": on(device, VALUES)})["y"]
        np.testing.assert_array_equal(made.numpy(), 16 * VALUES)


def diamond(device: str, **options: Any) -> Session:
    """y = x + x, read by z = -y on the device too; both are outputs, and y is two of them."""
    b = xd.GraphBuilder()
    x = b.input("x", SHAPE)
    y = b.add(x, x, label="y")
    graph = b.build({"y": y, "same": y, "z": b.neg(y, label="z"), "x2": b.identity(x)})
    options.setdefault("skip_passes", ["fuse-elementwise"])
    return xd.compile(graph, device, measure=False, fallback="forbid", **options)


@pytest.mark.parametrize("planned", [True, False])
def test_values_that_are_several_outputs_or_inputs_are_copied(
    device: Device, planned: bool
) -> None:
    name = device.info.id
    how = {"feeds_on": name, "outputs": "device"} if planned else {}
    with diamond(name, **how) as session:
        for i in range(3):
            fed = on(device, VALUES + i)
            made = session.run({"x": fed}, outputs="device")
            wants = {"y": 2, "same": 2, "z": -2, "x2": 1}
            for output, factor in wants.items():
                array = made[output].numpy()
                np.testing.assert_array_equal(array, factor * (VALUES + i), err_msg=output)
            made["y"].close()
            np.testing.assert_array_equal(made["same"].numpy(), 2 * (VALUES + i))


def test_what_another_device_needs_is_copied(machine: Machine, copies: Copies) -> None:
    machine.sim("a", peers=("b",))
    machine.sim("b", peers=("a",))
    a = machine.device("sim:a")
    b = xd.GraphBuilder()
    x = b.input("x", SHAPE)
    graph = b.build({"y": b.add(x, x, label="near"), "z": b.neg(x, label="far")})
    rules = xd.Constraints(pin={"near": "sim:a", "far": "sim:b"})
    with xd.compile(graph, ["sim:a", "sim:b"], measure=False, constraints=rules) as session:
        made = session.run({"x": on(a, VALUES)}, outputs="device")
        np.testing.assert_array_equal(made["y"].numpy(), 2 * VALUES)
        np.testing.assert_array_equal(made["z"].numpy(), -VALUES)


def test_an_output_that_a_failed_run_had_made_where_it_stays_is_salvaged(
    machine: Machine,
) -> None:
    machine.sim("a")
    machine.sim("b", faults=(Fault("lost", 0),))
    b = xd.GraphBuilder()
    x = b.input("x", SHAPE)
    y = b.add(x, x, label="near")
    graph = b.build({"y": y, "z": b.neg(b.input("w", SHAPE), label="far")})
    rules = xd.Constraints(pin={"near": "sim:a", "far": "sim:b"})
    with xd.compile(graph, ["sim:a", "sim:b"], measure=False, constraints=rules) as session:
        fed = {"x": on(machine.device("sim:a"), VALUES), "w": VALUES + 1}
        made = session.run(fed, outputs="device")
        np.testing.assert_array_equal(np.asarray(made["y"].numpy()), 2 * VALUES)
        np.testing.assert_array_equal(np.asarray(made["z"].numpy()), -VALUES - 1)
        assert session.receipt.recoveries


def test_a_device_that_cannot_bind_memory_anew_copies(machine: Machine, copies: Copies) -> None:
    machine.sim("a")
    device = machine.device("sim:a")
    object.__setattr__(device.info, "caps", device.info.caps - {Cap.REBIND})
    with chain("sim:a") as session:
        made = session.run({"x": on(device, VALUES)}, outputs="device")["y"]
        np.testing.assert_array_equal(made.numpy(), 16 * VALUES)
    assert copies.count == 2


def two_inputs(device: str) -> Session:
    """v of x and w, which one op reads, and n = -w."""
    b = xd.GraphBuilder()
    x, w = b.input("x", SHAPE), b.input("w", SHAPE)
    v = b.sub(b.mul(b.add(x, w, label="both"), x), w)
    graph = b.build({"v": v, "n": b.neg(w)})
    return xd.compile(
        graph, device, measure=False, fallback="forbid", skip_passes=["fuse-elementwise"]
    )


def test_inputs_may_lie_on_the_device_by_turns(device: Device) -> None:
    kinds: list[Callable[[np.ndarray], Any]] = [lambda a: a, lambda a: on(device, a)]
    with two_inputs(device.info.id) as session:
        for turn in range(12):
            x, w = VALUES + turn, VALUES * turn
            fed = {"x": kinds[turn % 2](x), "w": kinds[turn // 2 % 2](w)}
            made = session.run(fed, outputs="device" if turn % 3 else "host")
            for name, want in {"v": (x + w) * x - w, "n": -w}.items():
                np.testing.assert_array_equal(np.asarray(made[name]), want)
            del fed
            gc.collect()


def test_callers_side_by_side_have_arrays_of_their_own(device: Device) -> None:
    def runs(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(15):
            x, w = VALUES + draw.randrange(9), VALUES * draw.randrange(9)
            own = on(device, w)
            fed = {"x": draw.choice([x, on(device, x)]), "w": draw.choice([w, own])}
            how: dict[str, Any] = {"outputs": draw.choice(["host", "device"])}
            if fed["w"] is own and draw.random() < 0.5:
                how = {"outputs": "device", "donate": ["w"]}
            if draw.random() < 0.2:
                how["timeout"] = draw.choice([1e-5, 1e-3])
            try:
                made = session.run(fed, **how)
            except Timeout:
                continue
            for name, want in {"v": (x + w) * x - w, "n": -w}.items():
                np.testing.assert_array_equal(np.asarray(made[name]), want)

    with two_inputs(device.info.id) as session, ThreadPoolExecutor(4) as threads:
        list(threads.map(runs, range(4)))


# --- a card ---------------------------------------------------------------------------------------


class Rebinds:
    """Counts how often commands are bound anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        rebind = CudaDevice.rebind

        def counting(device: CudaDevice, *what: Any) -> Any:
            self.count += 1
            return rebind(device, *what)

        monkeypatch.setattr(CudaDevice, "rebind", counting)


def test_memory_that_comes_round_again_is_bound_once(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, rebinds = Producer(fake), Rebinds(monkeypatch)
    arrays = [library.array(VALUES), library.array(-VALUES)]
    with chain(CARD) as session:
        for i in range(6):
            with library.stream:
                arrays[i % 2][...] = fake.array(VALUES + i)
            made = session.run({"x": ByDlpack(library, arrays[i % 2])})["y"]
            np.testing.assert_array_equal(made, 16 * (VALUES + i))
    assert rebinds.count == 2
    library.release()


def test_outputs_that_go_round_in_all_that_was_lent_are_bound_once(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many places as a card waits for before it has lent memory back."""
    rebinds, device = Rebinds(monkeypatch), registry.open_device(CARD)
    places = [device.allocate(VALUES.nbytes) for _ in range(MOST_RETURNED + 1)]
    turns, allocate = itertools.cycle(places), device.allocate

    def again(nbytes: int, label: str) -> Any:
        kept = label.startswith("output")
        return next(turns).unowned() if kept else allocate(nbytes, label)  # type: ignore[attr-defined]

    monkeypatch.setattr(device, "allocate", again)
    with chain(CARD, outputs="device") as session:
        for _ in range(3 * len(places)):
            made = session.run({"x": VALUES})["y"]
            np.testing.assert_array_equal(made.numpy(), 16 * VALUES)
    assert rebinds.count == len(places)


def test_commands_that_are_kept_keep_no_memory_of_others(fake: cupy_fake.FakeCupy) -> None:
    library = Producer(fake)
    with chain(CARD) as session:
        session.run({"x": VALUES})
        before = fake.machine.used(0)
        for i in range(3):
            array = library.array(VALUES + i)
            session.run({"x": ByDlpack(library, array)})
            library.release()
            del array
            gc.collect()
            assert fake.machine.used(0) == before


def test_the_launches_between_are_replayed_all_the_same(fake: cupy_fake.FakeCupy) -> None:
    device = registry.open_device(CARD)
    with chain(CARD, length=6, feeds_on=CARD, outputs="device") as session:
        said = [step.replay for step in session.plan.launches()]
        theirs = (
            "not replayed: it is over an array of the caller's, which may lie elsewhere in each run"
        )
        assert said == [theirs, *["replayed in graph 1 of 4 launches"] * 4, theirs]
        launched: list[int] = []
        graph = cupy_fake.Graph.launch
        cupy_fake.Graph.launch = lambda self, stream=None: (  # type: ignore[method-assign]
            launched.append(len(self._launches)), graph(self, stream)
        )  # fmt: skip
        try:
            for i in range(4):
                made = session.run({"x": on(device, VALUES + i)})["y"]
                np.testing.assert_array_equal(made.numpy(), 64 * (VALUES + i))
        finally:
            cupy_fake.Graph.launch = graph  # type: ignore[method-assign]
        assert launched == [4, 4, 4]


def readers(device: str, count: int) -> Session:
    """Outputs that all read x."""
    b = xd.GraphBuilder()
    x = b.input("x", SHAPE)
    graph = b.build({f"y{i}": b.add(x, b.constant(np.float32(i))) for i in range(count)})
    return xd.compile(graph, device, measure=False, skip_passes=["fuse-elementwise"])


@pytest.mark.parametrize(("rate", "copied"), [(1e15, True), (1e7, False), (None, True)])
def test_what_many_launches_read_is_copied_if_that_costs_less(
    fake: cupy_fake.FakeCupy, copies: Copies, rate: float | None, copied: bool
) -> None:
    device = registry.open_device(CARD)
    info: DeviceInfo = device.info
    if rate is not None:
        link = LinkModel(1e-5, ((1.0, rate),))
        costing.store().model.set_link(*link_ends(info, info), link)
    with readers(CARD, 4) as session:
        made = session.run({"x": on(device, VALUES)})
        for i in range(4):
            np.testing.assert_array_equal(made[f"y{i}"], VALUES + i)
    assert copies.count == copied


def test_an_array_that_lies_askew_is_copied(fake: cupy_fake.FakeCupy, copies: Copies) -> None:
    library = Producer(fake)
    with library.stream:
        whole = library.array(np.concatenate([np.zeros((1, 64), np.float32), VALUES, VALUES]))
        odd = whole.reshape(-1)[1 : 1 + VALUES.size].reshape(SHAPE)
        even = whole.reshape(-1)[64 : 64 + VALUES.size].reshape(SHAPE)
    with chain(CARD) as session:
        want = np.concatenate([np.zeros(64, np.float32), VALUES.reshape(-1)])
        made = session.run({"x": ByDlpack(library, odd)})["y"]
        np.testing.assert_array_equal(made.reshape(-1), 16 * want[1 : 1 + VALUES.size])
        assert copies.count == 1
        made = session.run({"x": ByDlpack(library, even)})["y"]
        np.testing.assert_array_equal(made, 16 * VALUES)
        assert copies.count == 1
    library.release()


def test_a_run_that_is_profiled_times_what_is_over_callers_arrays(
    fake: cupy_fake.FakeCupy, copies: Copies
) -> None:
    device = registry.open_device(CARD)
    with chain(CARD) as session:
        made = session.profile({"x": on(device, VALUES)})
        np.testing.assert_array_equal(made.outputs["y"], 16 * VALUES)
        assert all(op.measured is not None for op in session.receipt.ops)
    assert copies.count == 0


@pytest.mark.parametrize("copied", [False, True])
def test_an_array_that_is_closed_while_it_is_in_use_is_refused(
    device: Device, monkeypatch: pytest.MonkeyPatch, *, copied: bool
) -> None:
    """And no fault of the device's, whether it is read where it lies or copied."""
    fed = on(device, VALUES)
    take = Run._take_turn

    def closing(run: Run, deadline: Any) -> None:
        take(run, deadline)
        fed.close()

    looks = {"verify": "transfers"} if copied else {}
    with chain(device.info.id, **looks) as session:
        monkeypatch.setattr(Run, "_take_turn", closing)
        with pytest.raises(FeedError, match="was closed while a run used it"):
            session.run({"x": fed})
        monkeypatch.undo()
        made = session.run({"x": VALUES})["y"]
        np.testing.assert_array_equal(made, 16 * VALUES)


def test_memory_is_not_held_once_a_run_is_over(device: Device) -> None:
    with chain(device.info.id) as session:
        session.run({"x": on(device, VALUES)}, outputs="device")
        gc.collect()
        device.allocate(0)
        before = device.gauge.used
        for _ in range(3):
            fed = on(device, VALUES)
            made = session.run({"x": fed}, outputs="device")
            del fed, made
            device.allocate(0)
            assert device.gauge.used == before


def test_a_closed_array_is_refused(device: Device) -> None:
    with chain(device.info.id) as session:
        fed: DeviceArray = on(device, VALUES)
        session.run({"x": fed})
        fed.close()
        with pytest.raises(xd.Error, match="after its close"):
            session.run({"x": fed})
