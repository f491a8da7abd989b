"""Bugs planted in the exchange of arrays with other libraries on a card: all are found.

One use of two sessions and another library touches everything that has to be ordered or kept
alive. As it is it passes on the fake cupy; with any of the bugs the fake complains, or the results
are wrong.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda, cuda_exchange, registry
from crossdock.devices.base import Buffer, Event
from crossdock.devices.cuda import CudaDevice, CudaQueue
from crossdock.devices.cuda_memory import CudaBuffer, CudaEvent
from crossdock.runtime import costing, rebinding
from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.errors import Error
from crossdock.runtime.intake import Intake
from crossdock.runtime.transit import Transit
from tests.fakes import cupy_fake
from tests.fakes.cuda_machine import UsageError
from tests.runtime.test_exchange_cuda import CARD, VALUES, ByDlpack, ByInterface, Producer, on_card

pytestmark = pytest.mark.usefixtures("no_hang")


def use(fake: cupy_fake.FakeCupy) -> None:
    """Feeds by both protocols and by submit, outputs kept, shared, fed on and given back."""
    library = Producer(fake)
    arrays = [library.array(VALUES + i) for i in range(3)]
    with on_card() as session, on_card() as other:
        np.testing.assert_array_equal(
            session.run({"x": ByDlpack(library, arrays[0])})["y"], 2 * VALUES
        )
        late = library.array(VALUES)
        np.testing.assert_array_equal(
            session.run({"x": ByInterface(library, late)})["y"], 2 * VALUES
        )
        with library.stream:
            future = session.submit({"x": arrays[1]}, outputs="device")
        first = future.result(60)["y"]
        second = session.run({"x": ByDlpack(library, arrays[2])}, outputs="device")
        np.testing.assert_array_equal(other.run({"x": first})["y"], 4 * (VALUES + 1))
        np.testing.assert_array_equal(second["z"].numpy(), -2 * (VALUES + 2))
        with library.stream:
            taken = fake.from_dlpack(first)
            taken *= 10
        first.close()
        np.testing.assert_array_equal(library.read(taken), 20 * (VALUES + 1))
        with library.stream:
            taken += 1
        del taken
        session.run({"x": VALUES}, outputs="device")
        device = registry.open_device(CARD)
        device.call("compute", lambda queue: queue.finish())
        device.allocate(8)
    library.release()


def used(fake: cupy_fake.FakeCupy) -> list[str]:
    """Use the card, and everything that was found wrong."""
    found: list[str] = []
    try:
        use(fake)
    except (UsageError, Error, AssertionError, RuntimeError, TypeError) as error:
        found.append(f"{type(error).__name__}: {error}")
    for name in (CARD, "cuda:1"):
        device = registry._OPEN.pop((name, None, None), None)
        if device is not None:
            device.close()
    gc.collect()
    return found + fake.machine.errors


@pytest.fixture
def fake(
    opencl: Any, monkeypatch: pytest.MonkeyPatch, costs: costing.CostStore
) -> cupy_fake.FakeCupy:
    """The fake cupy, which runs kernels on the OpenCL device."""
    del opencl, costs
    monkeypatch.setattr(cuda, "MOST_RETURNED", 1)
    return cupy_fake.install(monkeypatch)


def test_the_exchange_as_it_is_passes(fake: cupy_fake.FakeCupy) -> None:
    assert used(fake) == []


def unordered(value: Any, stream: int) -> Any:
    del stream
    return value.__dlpack__(stream=-1, max_version=(1, 0))


def nameless(
    device: CudaDevice, value: Any, *, named: Any = cuda_exchange._named
) -> Any:  # fmt: skip
    array = value._array
    return named(device, ByInterface(value._producer, array, stream=None))


def careless(
    self: CudaQueue, target: Buffer, source: Buffer, waits: Sequence[Event] = (),
    *, copy: Any = CudaQueue.copy,
) -> CudaEvent:  # fmt: skip
    del waits
    made: CudaEvent = copy(self, target, source)
    return made


def hasty(self: DeviceArray, *, close: Any = DeviceArray.close) -> None:
    """It takes memory back that it has lent."""
    self._lent = False
    close(self)


def windows(self: Transit, keeping: Any, *, keep: Any = Transit.keep) -> None:
    """All runs keep their outputs in the same memory."""
    keep(self, keeping)
    for name, array in self.kept.items():
        array._buffer = _SAME.setdefault((id(self.program), name), array._buffer)


def stale(program: Any, instance: Any, index: int, lying: Any) -> Any:
    """Commands over callers' arrays are bound once."""
    return instance.rebound.get_or_make(
        (index,), lambda: rebinding._made(program, instance, index, lying)
    )


_SAME: dict[tuple[int, str], Any] = {}


def dropped(self: CudaBuffer) -> None:
    """The collector frees memory whoever still uses it."""


MUTANTS: dict[str, tuple[Any, str, Any, str]] = {
    "no wait for what writes an array": (
        cuda_exchange,
        "_capsule",
        unordered,
        "without waiting for its event",
    ),
    "no wait for the stream that an interface names": (
        cuda_exchange,
        "_named",
        nameless,
        "without waiting for its event",
    ),
    "copies on the card that wait for nothing": (
        CudaQueue,
        "copy",
        careless,
        "without waiting for its event",
    ),
    "a feed of another thread's stream": (
        Intake,
        "held",
        lambda self, feeds: feeds,
        "work on the default stream",
    ),
    "memory taken back that is lent": (
        DeviceArray,
        "close",
        hasty,
        "freed while stream",
    ),
    "lent memory used again at once": (
        CudaDevice,
        "_settle",
        lambda self: self.returned.clear(),
        "freed while stream",
    ),
    "memory freed by the collector": (
        CudaBuffer,
        "__del__",
        dropped,
        "freed while stream",
    ),
    "no wait before an array is read where it lies": (
        Transit,
        "ready",
        lambda self, index: [],
        "without waiting for its event",
    ),
    "commands over the memory of a run before": (
        rebinding,
        "_commands",
        stale,
        "Arrays are not equal",
    ),
    "one buffer for the outputs of all runs": (
        Transit,
        "keep",
        windows,
        "Arrays are not equal",
    ),
}
"""Each by what it replaces, and what is said of it."""


def some_slow() -> list[Any]:
    """The bugs, every other one for the slow tests."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if i % 2 else [])
        for i, name in enumerate(MUTANTS)
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", some_slow())
def test_a_planted_bug_is_found(
    name: str, fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, attribute, bug, said = MUTANTS[name]
    _SAME.clear()
    monkeypatch.setattr(where, attribute, bug)
    found = used(fake)
    assert found
    assert any(said in text for text in found), found
