"""Launches that come again are captured into a CUDA graph and replayed, on the fake cupy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda_queue, registry
from crossdock.devices.base import CommandBuffer
from crossdock.devices.cuda import CudaDevice
from crossdock.devices.cuda_graph import Segment, segments
from crossdock.devices.cuda_queue import CudaCommands
from crossdock.devices.program import In, Out
from crossdock.runtime.errors import DeviceLost
from tests.devices.steps import axpb_array, axpb_grid, download, record, upload
from tests.fakes import cards, cupy_fake
from tests.fakes.cuda_machine import UsageError

POCL = bool(registry.probe_all(["opencl"])[0].devices)
pytestmark = pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
COUNT = 256


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDevice]:
    with cards.opened(monkeypatch) as made:
        yield made


class Chain:
    """x -> 2x + 1 -> 3y - 1, and in between an array call if asked for."""

    def __init__(self, device: CudaDevice, *, array_call: bool = False) -> None:
        self.device = device
        self.data = np.arange(COUNT, dtype=np.float32)
        self.x = upload(device, self.data)
        self.y, self.z = (device.allocate(self.data.nbytes) for _ in range(2))
        first = axpb_grid(COUNT, 2, 1), {In(0): self.x, Out(0): self.y}
        last = axpb_grid(COUNT, 3, -1), {In(0): self.y, Out(0): self.z}
        between = [(axpb_array(COUNT, 1, 0), {In(0): self.x, Out(0): self.z})] * array_call
        made: CommandBuffer = record(device, first, first, *between, last)
        assert isinstance(made, CudaCommands)
        self.commands = made

    def run(self, factor: float = 1) -> None:
        """Run on new data, and check."""
        sent = self.device.queues["upload"].write(self.x, self.data * np.float32(factor))
        done = self.device.queues["compute"].execute(self.commands, [sent])
        got = download(self.device, self.z, self.data, done)
        assert np.array_equal(got, 3 * (2 * factor * self.data + 1) - 1)


def graphs(commands: CudaCommands) -> list[bool]:
    return [part.replayed for part in commands.parts if isinstance(part, Segment)]


def test_the_second_run_captures_and_later_ones_replay(device: CudaDevice) -> None:
    chain = Chain(device)
    chain.run()
    assert graphs(chain.commands) == [False]
    for factor in (2, 3, 4):
        chain.run(factor)
        assert graphs(chain.commands) == [True]
    assert chain.commands.notes == ()


def test_array_calls_part_segments_and_are_not_captured(device: CudaDevice) -> None:
    chain = Chain(device, array_call=True)
    for factor in (1, 2, 3):
        chain.run(factor)
    assert graphs(chain.commands) == [True]  # the launch after the array call stands alone


def test_a_replay_launches_no_kernel_from_python(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(device)
    chain.run()
    chain.run()
    (segment,) = chain.commands.parts
    assert isinstance(segment, Segment)
    monkeypatch.setattr(segment, "calls", (pytest.fail,))
    chain.run(5)


def refusing(status: int) -> Callable[..., None]:
    def refuse(*args: Any) -> None:
        raise cupy_fake.CUDARuntimeError(status)

    return refuse


def test_a_driver_that_captures_nothing_is_a_reason(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(device)
    queue = device.queues["compute"]
    monkeypatch.setattr(queue.stream, "begin_capture", refusing(801))
    monkeypatch.setattr(queue.stream, "end_capture", refusing(801))
    for factor in (1, 2, 3):
        chain.run(factor)
    assert graphs(chain.commands) == [False]
    assert chain.commands.notes == ("no CUDA graph of 3 launches: error 801",)


def test_a_card_lost_while_capturing_is_lost(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(device)
    chain.run()
    monkeypatch.setattr(device.queues["compute"].stream, "begin_capture", refusing(700))
    with pytest.raises(DeviceLost):
        device.queues["compute"].execute(chain.commands)
    device.cp.machine.died = True


def test_an_array_call_in_a_segment_would_be_found(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_queue, "_launches", lambda item: True)
    chain = Chain(device, array_call=True)
    chain.run()
    with pytest.raises(UsageError, match="an array call"):
        chain.run()
    device.cp.machine.errors.clear()


def test_single_launches_make_no_segment() -> None:
    calls = [lambda: None] * 5
    found = segments(calls, [True, False, True, True, False])
    assert [isinstance(part, Segment) for part in found] == [False, False, True, False]
    assert segments([], []) == []


ILLEGAL: dict[str, Callable[[Any, Any, Any], object]] = {
    "an allocation": lambda cp, stream, array: cp.cuda.MemoryPool().malloc(16),
    "an allocation of pinned memory": lambda cp, stream, array: cp.cuda.alloc_pinned_memory(16),
    "a copy that waits": lambda cp, stream, array: cp.cuda.runtime.memcpy(
        array.data.ptr, array.data.ptr, 16, 3
    ),
    "a wait for the device": lambda cp, stream, array: cp.cuda.Device().synchronize(),
    "a wait for the stream": lambda cp, stream, array: stream.synchronize(),
    "an event's record": lambda cp, stream, array: stream.record(),
    "an array call": lambda cp, stream, array: cp.add(array, 1),
    "a wait for an event": lambda cp, stream, array: stream.wait_event(cp.cuda.Event()),
    "captures already": lambda cp, stream, array: stream.begin_capture(),
}


@pytest.mark.parametrize("what", ILLEGAL)
def test_the_fake_refuses_what_a_capture_forbids(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cp = cupy_fake.install(monkeypatch)
    stream = cp.cuda.Stream(non_blocking=True)
    memory = cp.cuda.MemoryPool().malloc(16)
    array = cp.ndarray((4,), np.float32, memptr=memory)
    with stream:
        stream.begin_capture()
        with pytest.raises(UsageError, match=what):
            ILLEGAL[what](cp, stream, array)
        stream.end_capture()
        with pytest.raises(UsageError, match="has not begun"):
            stream.end_capture()
