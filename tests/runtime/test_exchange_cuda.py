"""Arrays shared with a card that is not here: the fake cupy checks every use of them."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import cuda, registry
from crossdock.devices.links import link_ends
from crossdock.runtime import costing
from crossdock.runtime.errors import FeedError, OutOfMemory
from crossdock.runtime.ready import WINDOW
from crossdock.runtime.session import Session
from crossdock.scheduler import LinkModel
from tests.fakes import cupy_fake

pytestmark = pytest.mark.usefixtures("no_hang")
CARD = "cuda:0"
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


class Producer:
    """Another library with arrays on a card, which it writes on a stream of its own."""

    def __init__(self, fake: cupy_fake.FakeCupy, index: int = 0) -> None:
        self.fake, self.index = fake, index
        with fake.cuda.Device(index):
            self.stream = fake.cuda.Stream(non_blocking=True)
            self.pool = fake.cuda.MemoryPool()

    def array(self, values: np.ndarray) -> Any:
        """A new array, written but not waited for."""
        with self.fake.cuda.Device(self.index), self.stream:
            made = self.fake.ndarray(
                values.shape, values.dtype, memptr=self.pool.malloc(values.nbytes)
            )
            made[...] = self.fake.array(values)
        return made

    def read(self, array: Any) -> np.ndarray:
        """What an array of this library holds."""
        with self.fake.cuda.Device(self.index), self.stream:
            found: np.ndarray = array.get()
            return found

    def release(self) -> None:
        """Wait for everything, as has to be done before memory in use is freed."""
        self.stream.synchronize()


class ByInterface:
    """An array that knows the CUDA array interface alone."""

    def __init__(self, producer: Producer, array: Any, **other: Any) -> None:
        self._producer, self._array, self._other = producer, array, other

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        with self._producer.fake.cuda.Device(self._producer.index), self._producer.stream:
            return {**self._array.__cuda_array_interface__, **self._other}


class ByDlpack:
    """An array that knows DLPack alone."""

    def __init__(self, producer: Producer, array: Any) -> None:
        self._producer, self._array = producer, array

    def __dlpack_device__(self) -> tuple[int, int]:
        found: tuple[int, int] = self._array.__dlpack_device__()
        return found

    def __dlpack__(self, **options: Any) -> Any:
        with self._producer.fake.cuda.Device(self._producer.index), self._producer.stream:
            return self._array.__dlpack__(**options)


def on_card(*more: str, **pins: str) -> Session:
    """y = relu(2 x) and z = -y, on the card but for what ``pins`` say, with ``more`` devices."""
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    y = b.relu(b.add(x, x, label="double"), label="relu")
    graph = b.build({"y": y, "z": b.neg(y, label="neg")})
    rules = xd.Constraints(pin={"double": CARD, "relu": CARD, "neg": CARD, **pins})
    return xd.compile(graph, ["cpu:0", CARD, *more], constraints=rules, measure=False)


@pytest.mark.parametrize("kind", [ByDlpack, ByInterface])
def test_an_array_on_the_card_does_not_pass_the_host(
    fake: cupy_fake.FakeCupy, kind: type[Any]
) -> None:
    library = Producer(fake)
    array = library.array(VALUES)
    with on_card() as session:
        for _ in range(3):
            made = session.run({"x": kind(library, array)})
            np.testing.assert_array_equal(made["y"], 2 * VALUES)
        assert session.receipt.avoided == {"cpu:0->cuda:0": VALUES.nbytes}
        assert session.receipt.links == {"cuda:0->cpu:0": 2 * VALUES.nbytes}
    library.release()


def test_outputs_stay_and_go_from_session_to_session(fake: cupy_fake.FakeCupy) -> None:
    with on_card() as session, on_card() as other:
        first = session.run({"x": VALUES}, outputs="device")
        again = session.run({"x": -VALUES}, outputs="device")
        assert session.receipt.avoided == {"cuda:0->cpu:0": 2 * VALUES.nbytes}
        assert session.receipt.links == {"cpu:0->cuda:0": VALUES.nbytes}
        assert (first["y"].device, first["y"].shape) == (CARD, (3, 4))
        np.testing.assert_array_equal(first["y"].numpy(), 2 * VALUES)
        np.testing.assert_array_equal(again["y"].numpy(), 0 * VALUES)
        np.testing.assert_array_equal(other.run({"x": first["y"]})["y"], 4 * VALUES)
        last = other.run({"x": first["z"]}, outputs="device")
        np.testing.assert_array_equal(np.asarray(last["z"]), 0 * VALUES)
        assert other.receipt.links == {}


def test_a_kept_output_is_shared_without_a_copy(fake: cupy_fake.FakeCupy) -> None:
    library = Producer(fake)
    with on_card() as session:
        kept = session.run({"x": VALUES}, outputs="device")["y"]
        assert kept.__dlpack_device__() == (2, 0)
        facts = kept.__cuda_array_interface__
        assert (facts["shape"], facts["version"], facts["stream"]) == ((3, 4), 3, None)
        with library.stream:
            taken = fake.from_dlpack(kept)
            taken *= 10
        library.release()
        np.testing.assert_array_equal(kept.numpy(), 20 * VALUES)
        address = taken.data.ptr
        assert facts["data"] == (address, False)
        kept.close()  # the other library still has it
        np.testing.assert_array_equal(library.read(taken), 20 * VALUES)
        with library.stream:
            taken += 1
        del taken
        session.run({"x": VALUES}, outputs="device")


def test_memory_comes_back_and_counts(fake: cupy_fake.FakeCupy) -> None:
    with on_card() as session:
        kept = session.run({"x": VALUES}, outputs="device")
        card = registry.open_device(CARD)
        used = card.pool.used_bytes()
        for array in kept.values():
            array.close()
        assert used - card.pool.used_bytes() == 2 * VALUES.nbytes
        with pytest.raises(FeedError, match=r"'x'.*after its close"):
            session.run({"x": kept["y"]})
        card._share.limit = 0
        with pytest.raises(OutOfMemory, match=r"output 'y'.*close arrays kept on cuda:0"):
            session.run({"x": VALUES}, outputs="device")
        np.testing.assert_array_equal(session.run({"x": VALUES})["y"], 2 * VALUES)


def given_back(fake: cupy_fake.FakeCupy, session: Session, library: Producer) -> None:
    """A kept output that another library works with, and lets go while it does."""
    kept = session.run({"x": VALUES}, outputs="device")["y"]
    with library.stream:
        taken = fake.from_dlpack(kept)
        taken += 1
    del taken, kept
    gc.collect()


def test_runs_wait_for_the_whole_card_only_now_and_then(
    fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams of another library may use what it gives back, and only the whole card knows."""
    library, waits = Producer(fake), 0

    def synchronize(self: Any, *, before: Any = cupy_fake.Device.synchronize) -> None:
        nonlocal waits
        waits += 1
        before(self)

    monkeypatch.setattr(cupy_fake.Device, "synchronize", synchronize)
    device = registry.open_device(CARD)
    with on_card() as session:
        for _ in range(3):
            np.testing.assert_array_equal(session.run({"x": VALUES})["y"], 2 * VALUES)
        assert waits == 0
        for _ in range(2 * cuda.MOST_RETURNED + 1):
            given_back(fake, session, library)
        assert waits == 2
        device.allocate(device._share.free + VALUES.nbytes).release()  # there is room after it
        assert waits == 3
    library.release()


def test_little_memory_is_left_lying_after_others_had_it(fake: cupy_fake.FakeCupy) -> None:
    library = Producer(fake)
    with on_card() as session:
        session.run({"x": VALUES})
        device = registry.open_device(CARD)
        device.budget = 20 * cuda.RETURNED_PART * VALUES.nbytes
        for _ in range(cuda.MOST_RETURNED - 2):
            given_back(fake, session, library)
            assert sum(nbytes for _, nbytes in device.returned) <= 21 * VALUES.nbytes
    library.release()


def test_the_memory_of_a_feed_is_let_go_after_the_run(fake: cupy_fake.FakeCupy) -> None:
    library = Producer(fake)
    with on_card() as session:
        array = library.array(VALUES)
        before = fake.machine.used(0)
        session.run({"x": ByDlpack(library, array)})
        library.release()
        after = fake.machine.used(0)
        del array
        gc.collect()
        assert after - fake.machine.used(0) == VALUES.nbytes
        assert before <= after


def test_what_the_host_reads_goes_there_once(fake: cupy_fake.FakeCupy) -> None:
    library = Producer(fake)
    array = library.array(VALUES)
    with on_card(double="cpu:0") as session:
        made = session.run({"x": ByDlpack(library, array)})
        np.testing.assert_array_equal(made["y"], 2 * VALUES)
        assert session.receipt.links["cuda:0->cpu:0"] == 3 * VALUES.nbytes
    library.release()


def test_an_array_on_another_card_is_copied_from_there(fake: cupy_fake.FakeCupy) -> None:
    library = Producer(fake, index=1)
    with on_card("cuda:1") as session:
        for kind in (ByDlpack, ByInterface):
            array = library.array(VALUES)
            made = session.run({"x": kind(library, array)})
            np.testing.assert_array_equal(made["y"], 2 * VALUES)
            assert session.receipt.links["cuda:1->cuda:0"] == VALUES.nbytes
            assert session.receipt.avoided == {"cpu:0->cuda:0": VALUES.nbytes}
    library.release()


@pytest.mark.parametrize("kind", [ByDlpack, ByInterface])
@pytest.mark.parametrize("granted", [True, False], ids=["peer access", "staged"])
def test_an_array_on_a_card_that_the_session_does_not_use_does_not_pass_the_host(
    fake: cupy_fake.FakeCupy, kind: type[Any], granted: bool
) -> None:
    library = Producer(fake, index=1)
    if not granted:
        fake.machine.peers.clear()
    array = library.array(VALUES)
    with on_card() as session:
        made = session.run({"x": kind(library, array)})
        np.testing.assert_array_equal(made["y"], 2 * VALUES)
        assert session.receipt.links["cuda:1->cuda:0"] == VALUES.nbytes
        assert session.receipt.avoided == {"cpu:0->cuda:0": VALUES.nbytes}
        assert session.receipt.notes == ()
    library.release()


def test_outputs_of_one_card_are_fed_to_a_session_on_another(fake: cupy_fake.FakeCupy) -> None:
    with on_card() as session, on_card("cuda:1", double="cuda:1", relu="cuda:1") as other:
        first = session.run({"x": VALUES}, outputs="device")["y"]
        with xd.compile(other.graph, "cuda:1", measure=False) as alone:
            made = alone.run({"x": first}, outputs="device")["y"]
            assert made.device == "cuda:1"
            np.testing.assert_array_equal(made.numpy(), 4 * VALUES)
            assert alone.receipt.links == {"cuda:0->cuda:1": VALUES.nbytes}


@pytest.mark.parametrize(("rate", "passes"), [(1e11, False), (1e7, True)])
def test_the_way_that_was_measured_to_be_faster_is_taken(
    fake: cupy_fake.FakeCupy, rate: float, passes: bool
) -> None:
    library = Producer(fake, index=1)
    array = library.array(VALUES)
    cards = [registry.open_device(f"cuda:{i}").info for i in range(2)]
    host, model = registry.open_device("cpu:0").info, costing.store().model
    for card in cards:
        for ends in ((host, card), (card, host)):
            model.set_link(*link_ends(*ends), LinkModel(1e-6, ((1.0, 1e10),)))
    model.set_link(*link_ends(cards[1], cards[0]), LinkModel(1e-6, ((1.0, rate),)))
    with on_card() as session:
        made = session.run({"x": ByDlpack(library, array)})
        np.testing.assert_array_equal(made["y"], 2 * VALUES)
        assert ("cuda:1->cuda:0" not in session.receipt.links) is passes
        assert ("cuda:1->cpu:0" in session.receipt.links) is passes
    library.release()


def test_pairs_of_cards_are_measured_each_way_and_planned_for(fake: cupy_fake.FakeCupy) -> None:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.relu(b.input("x", (3, 4)), label="relu")})
    rules = xd.Constraints(pin={"relu": CARD})
    with xd.compile(
        graph, CARD, constraints=rules, measure=0.01, feeds_on="cuda:1", outputs="device"
    ) as session:
        (copy,) = session.plan.copies()
        assert (copy.src, copy.dst, copy.arrives) == ("cuda:1", CARD, True)
        assert (copy.source, copy.detail) == ("measured", "peer access")
        cards = [registry.open_device(f"cuda:{i}").info for i in range(2)]
        model = costing.store().model
        for ends in (cards, cards[::-1], (cards[0], cards[0])):
            assert model.link(*link_ends(*ends)) is not None
        library = Producer(fake, index=1)
        made = session.run({"x": ByDlpack(library, library.array(VALUES))})["y"]
        np.testing.assert_array_equal(made.numpy(), VALUES)
        assert session.receipt.links == {"cuda:1->cuda:0": VALUES.nbytes}
        library.release()


def test_a_session_plans_again_for_inputs_of_a_card_that_it_does_not_use(
    fake: cupy_fake.FakeCupy,
) -> None:
    library = Producer(fake, index=1)
    array = library.array(VALUES)
    with on_card() as session:
        first = session.plan
        for _ in range(WINDOW):
            session.run({"x": ByDlpack(library, array)})
        end = time.monotonic() + 60
        while session.plan is first:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert session.plan.feeds_on == {"x": "cuda:1"}
        assert {s.device for s in session.plan.launches()} == {CARD}
        made = session.run({"x": ByDlpack(library, array)})
        np.testing.assert_array_equal(made["y"], 2 * VALUES)
        assert session.receipt.links["cuda:1->cuda:0"] == VALUES.nbytes
    library.release()


def test_what_does_not_fit_is_refused_in_a_line(fake: cupy_fake.FakeCupy) -> None:
    library = Producer(fake)
    array = library.array(VALUES)
    wide = library.array(VALUES.astype(np.float64))
    square = library.array(np.zeros((4, 4), np.float32))
    tall = library.array(np.zeros((4, 3), np.float32))
    with on_card() as session:
        for value, said in [
            (ByDlpack(library, wide), r"wants float32\[3,4\], got float64\[3,4\]"),
            (ByDlpack(library, square), r"wants float32\[3,4\], got float32\[4,4\]"),
            (ByDlpack(library, tall.T), "not in C order"),
            (ByInterface(library, tall.T), "not in C order"),
            (ByInterface(library, array, mask=array), "has a mask"),
            (ByInterface(library, array, stream=0), "stream is 0"),
        ]:
            with pytest.raises(FeedError, match="'x'") as caught:
                session.run({"x": value})
            assert caught.match(said)
            assert "\n" not in str(caught.value)
    library.release()


def test_a_feed_of_a_run_in_the_background_is_ordered_when_it_is_handed_in(
    fake: cupy_fake.FakeCupy,
) -> None:
    library = Producer(fake)
    with on_card() as session:
        array = library.array(VALUES)
        with library.stream:
            future = session.submit({"x": array}, outputs="device")
        np.testing.assert_array_equal(future.result(60)["y"].numpy(), 2 * VALUES)
    library.release()
