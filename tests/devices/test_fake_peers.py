"""The fake cupy between two cards: what the driver refuses, and what it leaves to go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.fakes import cupy_fake
from tests.fakes.cuda_machine import UsageError

SIZE = 1024


class Two:
    """A stream and memory on each of two cards; everything on card 0 unless said otherwise."""

    def __init__(self, cupy: Any) -> None:
        self.cupy, self.runtime = cupy, cupy.cuda.runtime
        self.streams, self.memory, self.arrays = [], [], []
        for index in range(2):
            with cupy.cuda.Device(index):
                self.streams.append(cupy.cuda.Stream(non_blocking=True))
                self.memory.append(cupy.cuda.MemoryPool().malloc(SIZE))
            self.arrays.append(cupy.ndarray((SIZE // 4,), np.float32, memptr=self.memory[index]))

    def copy(self, target: int, source: int, stream: int, current: int | None = None) -> None:
        with self.cupy.cuda.Device(stream if current is None else current):
            self.runtime.memcpyPeerAsync(
                self.memory[target].ptr, target, self.memory[source].ptr, source, SIZE,
                self.streams[stream].ptr,
            )  # fmt: skip

    def fill(self, index: int, value: float) -> Any:
        with self.cupy.cuda.Device(index), self.streams[index]:
            self.arrays[index][...] = value
            return self.streams[index].record(self.cupy.cuda.Event())

    def enable(self, index: int) -> None:
        with self.cupy.cuda.Device(index):
            self.runtime.deviceEnablePeerAccess(1 - index)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    made = Two(cupy_fake.install(monkeypatch))
    yield made
    made.cupy.machine.finish()


@pytest.mark.parametrize("stream", [0, 1])
def test_a_copy_that_waits_arrives_on_either_cards_stream(two: Two, stream: int) -> None:
    two.enable(stream)
    made = two.fill(0, 5.0)
    two.streams[stream].wait_event(made)
    two.copy(1, 0, stream)
    assert (two.memory[1].array((SIZE // 4,), np.float32) == 5.0).all()
    assert two.cupy.machine.errors == []


def test_a_copy_without_access_would_go_through_the_host(two: Two) -> None:
    with pytest.raises(UsageError, match="memory of device 0 on device 1 without peer access"):
        two.copy(1, 0, 1)
    two.enable(0)
    with pytest.raises(UsageError, match="memory of device 0 on device 1 without peer access"):
        two.copy(1, 0, 1)


def test_a_copy_that_does_not_wait_for_the_other_card(two: Two) -> None:
    two.enable(1)
    two.fill(0, 5.0)
    with pytest.raises(UsageError, match="without waiting for its event"):
        two.copy(1, 0, 1)


def test_a_copy_on_a_stream_that_is_not_the_current_cards(two: Two) -> None:
    two.enable(0)
    with pytest.raises(UsageError, match="belongs to device 0, device 1 is current"):
        two.copy(1, 0, 0, current=1)


def test_a_copy_whose_ends_are_named_wrongly(two: Two) -> None:
    two.enable(1)
    two.memory.reverse()
    with pytest.raises(UsageError, match="memory of device 0 is said to be of 1"):
        two.copy(1, 0, 1)


def test_a_kernel_that_reaches_over(two: Two) -> None:
    made = two.fill(0, 5.0)
    two.streams[1].wait_event(made)
    with two.cupy.cuda.Device(1):
        with two.streams[1], pytest.raises(UsageError, match="without peer access"):
            two.cupy.add(two.arrays[0], 1, out=two.arrays[1])
        two.enable(1)
        with two.streams[1]:
            two.cupy.add(two.arrays[0], 1, out=two.arrays[1])
    assert (two.memory[1].array((SIZE // 4,), np.float32) == 6.0).all()


def test_access_is_enabled_once_and_only_where_it_can_be(two: Two) -> None:
    assert two.runtime.deviceCanAccessPeer(0, 1) == 1
    two.enable(0)
    with pytest.raises(cupy_fake.CUDARuntimeError, match="AlreadyEnabled"):
        two.enable(0)
    two.cupy.machine.peers.discard((1, 0))
    assert two.runtime.deviceCanAccessPeer(1, 0) == two.runtime.deviceCanAccessPeer(1, 1) == 0
    with pytest.raises(cupy_fake.CUDARuntimeError, match="Unsupported"):
        two.enable(1)


def test_an_event_of_one_card_is_not_recorded_on_anothers_stream(two: Two) -> None:
    event = two.cupy.cuda.Event()
    with two.cupy.cuda.Device(1), pytest.raises(cupy_fake.CUDARuntimeError, match="invalid handle"):
        two.streams[1].record(event)
