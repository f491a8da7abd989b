"""What every device's memory does: round trips, windows, release, and running out."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from crossdock.devices.base import Cap, Device
from crossdock.runtime.errors import DeviceError, OutOfMemory
from crossdock.runtime.tensor import DTYPES, TensorSpec, to_numpy
from tests.devices.steps import download, events, upload

SIZES = (1, 3, 64, 1000, 4097, (1 << 20) + 5)


def some(dtype: str, size: int) -> np.ndarray:
    raw = np.random.default_rng(size).integers(0, 256, size * to_numpy(dtype).itemsize, np.uint8)
    if dtype == "bool":
        raw &= 1
    return raw.view(to_numpy(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_comes_back_bit_for_bit(device: Device, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    data = some(dtype, 1001)
    back = download(device, upload(device, data), data)
    assert back.tobytes() == data.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_back(device: Device, size: int) -> None:
    data = some("uint8", size)
    assert np.array_equal(download(device, upload(device, data), data), data)


def test_more_than_a_staging_buffer_comes_back(device: Device) -> None:
    data = some("uint32", 5_000_001)
    assert np.array_equal(download(device, upload(device, data), data), data)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 4)])
def test_every_shape_comes_back(device: Device, shape: tuple[int, ...]) -> None:
    data = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    assert np.array_equal(download(device, upload(device, data), data), data)


def test_read_only_arrays_can_be_written(device: Device) -> None:
    data = np.frombuffer(b"0123456789abcdef", np.uint8)
    assert np.array_equal(download(device, upload(device, data), data), data)


def test_part_of_a_buffer_can_be_read(device: Device) -> None:
    data = some("uint8", 1000)
    assert np.array_equal(download(device, upload(device, data), data[:10]), data[:10])


def test_windows_are_apart(device: Device) -> None:
    step = device.info.alignment
    whole = upload(device, np.zeros(4 * step, np.uint8))
    for i in (0, 2):
        for event in events(
            device.queues["upload"].write(whole.view(i * step, 10), np.full(10, i + 1, np.uint8))
        ):
            event.wait()
    back = download(device, whole, np.empty(4 * step, np.uint8))
    expected = np.zeros(4 * step, np.uint8)
    expected[:10] = 1
    expected[2 * step : 2 * step + 10] = 3
    assert np.array_equal(back, expected)


def test_a_window_of_a_window(device: Device) -> None:
    step = device.info.alignment
    data = some("uint8", 5 * step + 7)
    inner = upload(device, data).view(step, 4 * step + 7).view(2 * step, step + 3)
    assert np.array_equal(download(device, inner, data[: step + 3]), data[3 * step :][: step + 3])


def test_a_window_keeps_the_memory_alive(device: Device) -> None:
    data = some("uint8", 1000)
    window = upload(device, data).view(0, 1000)
    gc.collect()
    others = [upload(device, np.zeros(1000, np.uint8)) for _ in range(4)]
    assert np.array_equal(download(device, window, data), data)
    assert len(others) == 4


def test_an_empty_window(device: Device) -> None:
    window = device.allocate(100).view(0, 0)
    assert window.nbytes == 0
    assert download(device, window, np.empty(0, np.uint8)).size == 0


@pytest.mark.parametrize(("at", "size"), [(1, 4), (-1, 4), (0, 10**6)])
def test_windows_that_do_not_fit_are_refused(device: Device, at: int, size: int) -> None:
    buffer = device.allocate(1 << 12)
    with pytest.raises(DeviceError, match="no view of"):
        buffer.view(at * device.info.alignment if at < 0 else at, size)


def test_copies_that_do_not_fit_are_refused(device: Device) -> None:
    buffer = device.allocate(64)
    with pytest.raises(DeviceError):
        device.queues["upload"].write(buffer, np.zeros(65, np.uint8))
    with pytest.raises(DeviceError):
        device.queues["download"].read(buffer, np.zeros(65, np.uint8))


def test_released_memory_cannot_be_used(device: Device) -> None:
    buffer = upload(device, np.zeros(64, np.uint8))
    buffer.release()
    buffer.release()
    with pytest.raises(DeviceError, match="release"):
        device.queues["upload"].write(buffer, np.zeros(64, np.uint8))
    with pytest.raises(DeviceError, match="release"):
        buffer.view(0, 8)


def test_running_out_of_memory_names_the_bytes(device: Device) -> None:
    too_much = device.info.memory_bytes + 1
    with pytest.raises(OutOfMemory, match=str(too_much)):
        device.allocate(too_much)
    assert download(device, upload(device, np.ones(4, np.uint8)), np.empty(4, np.uint8)).all()


def test_host_memory_is_seen_without_a_copy_or_not_at_all(device: Device) -> None:
    data = np.arange(6, dtype=np.float32)
    buffer = upload(device, data)
    spec = TensorSpec("float32", (2, 3))
    if Cap.HOST_MEMORY in device.info.caps:
        assert np.array_equal(buffer.array(spec), data.reshape(2, 3))
    else:
        with pytest.raises(DeviceError, match=device.info.id):
            buffer.array(spec)


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) + 5])
def test_a_copy_on_the_device(device: Device, size: int) -> None:
    data = some("uint8", size)
    source, target = upload(device, data), device.allocate(max(1, size) + 7)
    copied = device.queues["download"].copy(target, source)
    source.release()
    assert np.array_equal(download(device, target, data, copied), data)


def test_a_copy_of_windows_after_what_writes_them(device: Device) -> None:
    step = device.info.alignment
    data, whole = some("uint8", step), device.allocate(4 * step)
    written = device.queues["upload"].write(whole.view(2 * step, step), data)
    source, target = whole.view(2 * step, step), whole.view(step, step)
    copied = device.queues["download"].copy(target, source, events(written))
    assert np.array_equal(download(device, target, data, copied), data)


def test_copies_on_the_device_that_do_not_fit_are_refused(device: Device) -> None:
    small, large = device.allocate(64), device.allocate(65)
    with pytest.raises(DeviceError, match="65 bytes to one of 64"):
        device.queues["upload"].copy(small, large)
