"""What only CUDA devices do, on the fake cupy: staging, pinned memory, budgets, lost cards."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda, cuda_memory, registry
from crossdock.devices.base import Device, Event
from crossdock.devices.cuda import CudaDevice
from crossdock.devices.program import ArrayCall, GridLaunch, In, Out
from crossdock.runtime.errors import CompileError, DeviceError, DeviceLost, OutOfMemory
from crossdock.runtime.tensor import TensorSpec
from tests.devices.steps import axpb_array, axpb_grid, download, record, upload
from tests.fakes import cards, cupy_fake
from tests.fakes.cuda_machine import Machine

POCL = bool(registry.probe_all(["opencl"])[0].devices)
needs_pocl = pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[cupy_fake.FakeCupy]:
    with cards.installed(monkeypatch) as made:
        yield made


@pytest.fixture
def device(fake: cupy_fake.FakeCupy) -> Iterator[CudaDevice]:
    opened = cuda.open_device("cuda:0")
    yield opened
    opened.close()


def test_each_card_is_found_by_its_address(fake: cupy_fake.FakeCupy) -> None:
    found = cuda.probe().devices
    assert [info.id for info in found] == ["cuda:0", "cuda:1"]
    assert [info.physical_id for info in found] == ["pci-0000:01:00.0", "pci-0000:02:00.0"]
    assert found[0].resource_group != found[1].resource_group


def test_several_staging_buffers_are_in_flight(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "CHUNK", 1000)
    data = np.random.default_rng(1).integers(0, 256, 10_499, np.uint8)
    buffer = upload(device, data)
    assert np.array_equal(download(device, buffer, data), data)
    assert np.array_equal(download(device, buffer, data[:999]), data[:999])


def test_what_was_written_may_be_changed_at_once(device: CudaDevice) -> None:
    data = np.arange(1000, dtype=np.int32)
    buffer = device.allocate(data.nbytes)
    event = device.queues["upload"].write(buffer, data)
    data[:] = 0
    assert np.array_equal(download(device, buffer, data, event), np.arange(1000))


def test_pinned_arrays_are_not_staged(device: CudaDevice) -> None:
    spec = TensorSpec("float32", (10, 20))
    source, target = device.host_array(spec), device.host_array(spec)
    assert cuda_memory.is_pinned(device.cp, source[2:].reshape(-1).view(np.uint8))
    source[:] = np.arange(200).reshape(10, 20)
    buffer = device.allocate(spec.nbytes)
    written = device.queues["upload"].write(buffer, source)
    read = device.queues["download"].read(buffer, target, [written])
    assert not np.array_equal(target, source)  # not there before it has been waited for
    read.wait()
    assert np.array_equal(target, source)


def test_what_another_library_has_pinned_is_not_staged(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is known to the driver alone."""
    pinned = device.cp.machine.allocate(4096, pinned=True)
    source = np.from_dlpack(pinned.memory[:1200].view(np.float32).reshape(10, 30))
    source[:] = np.arange(300).reshape(10, 30)
    buffer = device.allocate(source.nbytes)
    with monkeypatch.context() as patch:
        patch.setattr(cuda_memory.Staging, "upload", None)
        device.queues["upload"].write(buffer, source).wait()
    assert np.array_equal(download(device, buffer, source), source)
    assert not cuda_memory.is_pinned(device.cp, source.copy())
    assert not cuda_memory.is_pinned(device.cp, np.empty(0, np.uint8))
    device.cp.machine.free(pinned)


def test_memory_in_use_is_freed_when_its_work_is_done(device: CudaDevice) -> None:
    x, y = upload(device, np.ones(100, np.float32)), device.allocate(400)
    commands = record(device, (axpb_array(100, 2, 1), {In(0): x, Out(0): y}))
    device.queues["compute"].execute(commands)
    del commands, x, y
    gc.collect()
    again = [device.allocate(400) for _ in range(4)]
    device.queues["compute"].finish()
    assert len(again) == 4


def test_the_budget_holds(fake: cupy_fake.FakeCupy) -> None:
    device = cuda.open_device("cuda:0", limit=1 << 20)
    first = device.allocate(700_000)
    with pytest.raises(OutOfMemory, match="400000 bytes wanted for weights"):
        device.allocate(400_000, "weights")
    del first
    device.allocate(1_000_000).release()
    device.allocate(1_000_000)
    device.close()


def test_temporaries_of_array_calls_come_from_the_pool(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    using = device.cp.cuda.using_allocator
    monkeypatch.setattr(device.cp.cuda, "using_allocator", lambda a: (seen.append(a), using(a))[1])
    x, y = upload(device, np.ones(4, np.float32)), device.allocate(16)
    device.queues["compute"].execute(
        record(device, (axpb_array(4, 2, 1), {In(0): x, Out(0): y}))
    ).wait()
    assert seen == [device.pool.malloc]


def test_running_out_on_the_card_is_typed(fake: cupy_fake.FakeCupy) -> None:
    device = cuda.open_device("cuda:0")
    device.pool.set_limit(size=1000)
    with pytest.raises(OutOfMemory, match="limit set to: 1000"):
        device.allocate(2000)
    device.close()


def test_a_sticky_error_loses_the_card_for_good(device: CudaDevice) -> None:
    buffer = upload(device, np.ones(10, np.float32))
    machine: Machine = device.cp.machine
    machine.break_down(700)
    with pytest.raises(DeviceLost, match="IllegalAddress"):
        device.queues["compute"].finish()
    machine.sticky = 0
    with pytest.raises(DeviceLost, match="IllegalAddress"):
        device.queues["upload"].write(buffer, np.ones(10, np.float32))
    with pytest.raises(DeviceLost):
        device.allocate(10)


def test_a_lost_card_ends_waits(device: CudaDevice) -> None:
    event = device.queues["upload"].write(device.allocate(40), np.ones(10, np.float32))
    device.cp.machine.break_down(719)
    assert event.done()
    with pytest.raises(DeviceLost):
        event.wait()
    device.cp.machine.sticky = 0


def test_an_error_that_passes_leaves_the_card_alone(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise cupy_fake.CUDARuntimeError(1)

    with monkeypatch.context() as patch:
        patch.setattr(device.cp.cuda.runtime, "memcpyAsync", fail)
        with pytest.raises(DeviceError, match="InvalidValue") as caught:
            upload(device, np.ones(10, np.float32))
    assert not isinstance(caught.value, DeviceLost)
    upload(device, np.ones(10, np.float32))


def test_types_that_cupy_lacks_are_refused(device: CudaDevice) -> None:
    spec = TensorSpec("bfloat16", (4,))
    call = ArrayCall(lambda xp, ins, outs: None, (In(0),), (Out(0),), (spec,), (spec,))
    with pytest.raises(CompileError, match="bfloat16"):
        device.compile(call)


@needs_pocl
def test_a_grid_over_the_limit_is_refused(device: CudaDevice) -> None:
    step = GridLaunch("KERNEL void f() {}", "f", (), (1, 65536), (1, 1))
    with pytest.raises(CompileError, match="65535"):
        device.compile(step)


@needs_pocl
def test_two_cards_work_side_by_side(fake: cupy_fake.FakeCupy) -> None:
    cards: list[Device] = [cuda.open_device(f"cuda:{i}") for i in range(2)]
    data = np.arange(64, dtype=np.float32)
    pending = []
    for card in cards:
        x, y = upload(card, data), card.allocate(data.nbytes)
        step = axpb_grid(64, 2, 1)
        pending.append((card, y, card.queues["compute"].execute(
            record(card, (step, {In(0): x, Out(0): y})))))  # fmt: skip
    for card, y, event in pending:
        assert np.array_equal(download(card, y, data, event), 2 * data + 1)
    for card in cards:
        card.close()


def test_events_of_another_driver_are_waited_for(device: CudaDevice) -> None:
    waited = []

    class Foreign(Event):
        def wait(self) -> None:
            waited.append(True)

        def done(self) -> bool:
            return True

    device.queues["upload"].write(device.allocate(4), np.zeros(1, np.float32), [Foreign()])
    assert waited == [True]
