"""Two cards: copies by peer access and staged, and bugs planted in them, all of which are found."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda, cuda_memory, cuda_peer, registry
from crossdock.devices.base import Event
from crossdock.devices.cuda import CudaDevice
from crossdock.devices.cuda_memory import CudaEvent
from crossdock.devices.cuda_peer import Bridge
from crossdock.devices.cuda_queue import CudaQueue
from crossdock.devices.program import In, Out
from crossdock.runtime.errors import DeviceError, DeviceLost
from tests.devices.steps import axpb_grid, download, record, upload
from tests.devices.test_cuda_mutants import CHUNK, COUNT, NoStream, found_wrong
from tests.fakes import cupy_fake

POCL = bool(registry.probe_all(["opencl"])[0].devices)
pytestmark = [
    pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> cupy_fake.FakeCupy:
    monkeypatch.setattr(cuda_memory, "CHUNK", CHUNK)
    return cupy_fake.install(monkeypatch)


@pytest.fixture
def cards(fake: cupy_fake.FakeCupy) -> Iterator[tuple[CudaDevice, CudaDevice]]:
    one, other = (cuda.open_device(f"cuda:{i}") for i in range(2))
    yield one, other
    for card in (one, other):
        card.close()
    assert fake.machine.errors == []


def copied(one: CudaDevice, other: CudaDevice, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    source, target = upload(one, data), other.allocate(size + 100)
    event = other.queues["upload"].copy(target, source)
    assert np.array_equal(download(other, target, data, event), data)


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("size", [1, CHUNK, 7 * CHUNK + 13])
def test_what_one_card_has_comes_to_the_other(
    cards: tuple[CudaDevice, CudaDevice], fake: cupy_fake.FakeCupy, size: int, granted: bool
) -> None:
    if not granted:
        fake.machine.peers.clear()
    for _ in range(2):
        copied(*cards, size)
        copied(*reversed(cards), size)
    assert fake.machine.access == ({(0, 1), (1, 0)} if granted else set())


def test_a_card_says_how_it_copies_from_others(
    cards: tuple[CudaDevice, CudaDevice], fake: cupy_fake.FakeCupy
) -> None:
    one, other = cards
    fake.machine.peers.remove((0, 1))
    assert other.copies_from(one) == "peer access"
    said = "the driver has no peer access from cuda:0 to cuda:1"
    assert one.copies_from(other) == f"staged in pinned memory: {said}"
    assert one.copies_from(cuda.open_device("cuda:0")) == ""
    assert one.copies_from(registry.open_device("cpu:0")) == ""


def test_access_that_is_refused_is_staged_and_said_so(
    cards: tuple[CudaDevice, CudaDevice], fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(peer: int) -> None:
        raise cupy_fake.CUDARuntimeError(711)

    monkeypatch.setattr(fake.cuda.runtime, "deviceEnablePeerAccess", refuse)
    assert "is refused: cudaErrorTooManyPeers" in cards[1].copies_from(cards[0])
    copied(*cards, 3 * CHUNK)


def test_access_that_another_part_of_the_process_has_enabled_will_do(
    cards: tuple[CudaDevice, CudaDevice], fake: cupy_fake.FakeCupy
) -> None:
    fake.machine.access.add((1, 0))
    assert cards[1].copies_from(cards[0]) == "peer access"
    copied(*cards, CHUNK)


def test_a_buffer_that_is_too_small_is_refused(cards: tuple[CudaDevice, CudaDevice]) -> None:
    one, other = cards
    with pytest.raises(DeviceError, match="cannot copy a buffer of 200 bytes to one of 100"):
        other.queues["upload"].copy(other.allocate(100), one.allocate(200))


@pytest.mark.parametrize("granted", [True, False])
def test_a_lost_card_is_not_copied_from(
    cards: tuple[CudaDevice, CudaDevice], fake: cupy_fake.FakeCupy, granted: bool
) -> None:
    if not granted:
        fake.machine.peers.clear()
    one, other = cards
    source, target = one.allocate(100), other.allocate(100)
    one.lost = "cudaErrorIllegalAddress"
    with pytest.raises(DeviceLost, match="cuda:0: cudaErrorIllegalAddress") as caught:
        other.queues["upload"].copy(target, source)
    assert caught.value.device == "cuda:0"
    assert not other.lost


def use_two(one: CudaDevice, other: CudaDevice) -> None:
    """A kernel on one card, a copy to the other, a kernel there; memory reused and dropped."""
    data = np.arange(COUNT, dtype=np.float32)
    x, y = (one.allocate(data.nbytes) for _ in range(2))
    u, v = (other.allocate(data.nbytes) for _ in range(2))
    first = record(one, (axpb_grid(COUNT, 2, 1), {In(0): x, Out(0): y}))
    second = record(other, (axpb_grid(COUNT, 3, -1), {In(0): u, Out(0): v}))
    got = np.zeros_like(data)
    there = None
    for turn in range(2):
        sent = one.queues["upload"].write(x, data + turn, [there] if there else [])
        made = one.queues["compute"].execute(first, [sent, *([there] if there else [])])
        there = other.queues["upload"].copy(u, y, [made, *([there] if there else [])])
        done = other.queues["compute"].execute(second, [there])
        other.queues["download"].read(v, got, [done]).wait()
        assert np.array_equal(got, 3 * (2 * (data + turn) + 1) - 1)
    again = one.queues["compute"].execute(first, [there])
    other.queues["upload"].copy(u, y, [again])
    y.release()
    w = one.allocate(data.nbytes)  # which no command buffer keeps
    filled = one.queues["upload"].write(w, data)
    other.queues["upload"].copy(u, w, [filled])
    w.release()
    for buffer in (x, u, v):
        buffer.release()


def not_enabled(device: CudaDevice, other: CudaDevice) -> str:
    return ""


def others_stream(self: CudaQueue, target: int, source: int, home: int, nbytes: int) -> None:
    other = next(q for q in QUEUES if q.device.index == home)
    self.device.cp.cuda.runtime.memcpyPeerAsync(
        target, self.device.index, source, home, nbytes, other.stream.ptr
    )


QUEUES: list[CudaQueue] = []


def noted_queue(
    self: CudaQueue, device: CudaDevice, role: str, *, init: Any = CudaQueue.__init__
) -> None:
    init(self, device, role)
    QUEUES.append(self)


def swapped_ends(self: CudaQueue, target: int, source: int, home: int, nbytes: int) -> None:
    self.device.cp.cuda.runtime.memcpyPeerAsync(
        target, home, source, self.device.index, nbytes, self.stream.ptr
    )


def no_native_waits(self: CudaQueue, waits: Sequence[Event]) -> None:
    for event in waits:
        if isinstance(event, CudaEvent) and event.device is self.device:
            self.stream.wait_event(event.event)


def own_queues(self: CudaDevice) -> list[CudaQueue]:
    return list(self.queues.values())


class DeafStream(NoStream):
    """A stream that waits for nothing."""

    def wait_event(self, event: Any) -> None: ...


def deaf(name: str) -> Any:
    def init(self: Bridge, *ends: Any, init: Any = Bridge.__init__) -> None:
        init(self, *ends)
        setattr(self, name, DeafStream(getattr(self, name)))

    return init


def one_buffer(self: Bridge, *ends: Any, init: Any = Bridge.__init__) -> None:
    init(self, *ends)
    self._memory = [self._memory[0]] * 2


MUTANTS: dict[str, tuple[Any, str, Any, str, bool]] = {
    "memory of a card that access is not enabled to": (
        cuda_peer,
        "enable",
        not_enabled,
        "memory of device 0 on device 1 without peer access",
        True,
    ),
    "a copy on the stream of the other card": (
        CudaQueue,
        "_peer",
        others_stream,
        "belongs to device 0, device 1 is current",
        True,
    ),
    "the ends of a copy the wrong way round": (
        CudaQueue,
        "_peer",
        swapped_ends,
        "memory of device 1 is said to be of 0",
        True,
    ),
    "no event between the streams of two cards": (
        CudaQueue,
        "_wait_for",
        no_native_waits,
        "without waiting for its event",
        True,
    ),
    "memory released under another card's copy": (
        CudaDevice,
        "users",
        property(own_queues),
        "freed while stream",
        True,
    ),
    "staged: the way up does not wait for the way down": (
        Bridge,
        "__init__",
        deaf("_up"),
        "without waiting for its event",
        False,
    ),
    "staged: the way down does not wait": (
        Bridge,
        "__init__",
        deaf("_down"),
        "without waiting for its event",
        False,
    ),
    "staged: one buffer for all parts": (
        Bridge,
        "__init__",
        one_buffer,
        "without waiting for its event",
        False,
    ),
}
"""Each by what it replaces, what is said of it, and whether the driver grants peer access."""


@pytest.mark.parametrize("granted", [True, False])
def test_two_cards_as_they_are_pass(fake: cupy_fake.FakeCupy, granted: bool) -> None:
    if not granted:
        fake.machine.peers.clear()
    assert found_wrong(fake, use_two, "cuda:0", "cuda:1") == []
    assert fake.machine.access == ({(1, 0)} if granted else set())


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_between_two_cards_is_found(
    name: str, fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, attribute, bug, said, granted = MUTANTS[name]
    if not granted:
        fake.machine.peers.clear()
    if bug is others_stream:
        monkeypatch.setattr(CudaQueue, "__init__", noted_queue)
    monkeypatch.setattr(where, attribute, bug)
    found = found_wrong(fake, use_two, "cuda:0", "cuda:1")
    QUEUES.clear()
    gc.collect()
    assert found
    assert said in found[0]
