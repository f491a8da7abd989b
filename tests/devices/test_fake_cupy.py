"""The fake cupy bites: each misuse that a real card would punish now and then always fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from crossdock.devices import registry
from crossdock.devices.dialect import CUDA_HEADER, assemble
from tests.fakes import cupy_fake
from tests.fakes.cuda_machine import UsageError

POCL = bool(registry.probe_all(["opencl"])[0].devices)
needs_pocl = pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
TO_DEVICE, TO_HOST = 1, 2


class Rig:
    """Two streams, a device array and pinned memory on a fake."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.one, self.two = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        self.pool = cupy.cuda.MemoryPool()
        self.pointer = self.pool.malloc(1024)
        self.array = cupy.ndarray((256,), np.float32, memptr=self.pointer)
        self.host = np.frombuffer(cupy.cuda.alloc_pinned_memory(1024), np.float32)

    def up(self, stream: Any) -> None:
        self.copy(self.pointer.ptr, self.host.ctypes.data, TO_DEVICE, stream)

    def down(self, stream: Any) -> None:
        self.copy(self.host.ctypes.data, self.pointer.ptr, TO_HOST, stream)

    def copy(self, target: int, source: int, kind: int, stream: Any) -> None:
        self.cupy.cuda.runtime.memcpyAsync(target, source, 1024, kind, stream.ptr)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(cupy_fake.install(monkeypatch))
    yield made
    made.cupy.machine.finish()


def test_right_use_passes(rig: Rig) -> None:
    rig.host[:] = 3
    rig.up(rig.one)
    event = rig.one.record(rig.cupy.cuda.Event())
    rig.two.wait_event(event)
    with rig.two:
        rig.cupy.multiply(rig.array, 2, out=rig.array)
    rig.down(rig.two)
    rig.two.synchronize()
    assert (rig.host == 6).all()
    assert rig.cupy.machine.errors == []


def test_reading_what_another_stream_writes_without_waiting(rig: Rig) -> None:
    rig.up(rig.one)
    with rig.two, pytest.raises(UsageError, match="without waiting"):
        rig.cupy.add(rig.array, 1)


def test_an_event_recorded_too_early_does_not_help(rig: Rig) -> None:
    event = rig.one.record(rig.cupy.cuda.Event())
    rig.up(rig.one)
    rig.two.wait_event(event)
    with rig.two, pytest.raises(UsageError, match="without waiting"):
        rig.cupy.add(rig.array, 1)


def test_writing_what_another_stream_still_reads(rig: Rig) -> None:
    rig.one.synchronize()
    rig.down(rig.one)
    with rig.two, pytest.raises(UsageError, match="without waiting"):
        rig.array[...] = 1


def test_other_parts_of_the_memory_are_free(rig: Rig) -> None:
    with rig.one:
        rig.array[:128] = 1
    with rig.two:
        rig.array[128:] = 2
        with pytest.raises(UsageError, match="without waiting"):
            rig.array[100:200] = 3


def test_host_memory_holds_rubbish_until_it_is_waited_for(rig: Rig) -> None:
    with rig.one:
        rig.array[...] = 5
    rig.down(rig.one)
    assert not (rig.host == 5).any()
    rig.one.synchronize()
    assert (rig.host == 5).all()


def test_host_memory_must_not_change_under_a_copy(rig: Rig) -> None:
    rig.host[:] = 1
    rig.up(rig.one)
    rig.host[:] = 2
    with pytest.raises(UsageError, match="changed while a copy"):
        rig.one.synchronize()


def test_pageable_memory_in_an_asynchronous_copy(rig: Rig) -> None:
    pageable = np.zeros(1024, np.uint8)
    with pytest.raises(UsageError, match="no device or pinned memory"):
        rig.copy(rig.pointer.ptr, pageable.ctypes.data, TO_DEVICE, rig.one)


def test_memory_used_after_it_was_freed(rig: Rig) -> None:
    address = rig.pointer.ptr
    rig.pointer = rig.array = None
    with pytest.raises(UsageError, match="after it was freed"):
        rig.copy(address, rig.host.ctypes.data, TO_DEVICE, rig.one)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_memory_freed_while_a_stream_uses_it(rig: Rig) -> None:
    rig.up(rig.one)
    rig.pointer = rig.array = None
    assert "freed while stream" in rig.cupy.machine.errors[-1]


def test_memory_past_the_end(rig: Rig) -> None:
    with pytest.raises(UsageError, match="outside an allocation"):
        rig.copy(rig.pointer.ptr + 512, rig.host.ctypes.data, TO_DEVICE, rig.one)


def test_a_stream_of_another_device(rig: Rig) -> None:
    with rig.cupy.cuda.Device(1):
        with pytest.raises(RuntimeError, match="another device"), rig.one:
            pass
        with pytest.raises(UsageError, match="belongs to device 0"):
            rig.up(rig.one)


def test_memory_of_another_device(rig: Rig) -> None:
    with rig.cupy.cuda.Device(1):
        stream = rig.cupy.cuda.Stream(non_blocking=True)
        with pytest.raises(UsageError, match="memory of device 0 on device 1"):
            rig.up(stream)


def test_the_default_stream(rig: Rig) -> None:
    with pytest.raises(UsageError, match="default stream"):
        rig.cupy.add(rig.array, 1)
    with pytest.raises(UsageError, match="default stream"):
        rig.cupy.cuda.Stream()


def test_numpy_arrays_do_not_mix(rig: Rig) -> None:
    with rig.one:
        with pytest.raises(TypeError, match="Unsupported type"):
            rig.array + np.ones(256, np.float32)
        with pytest.raises(TypeError, match="Implicit conversion"):
            np.asarray(rig.array)
        with pytest.raises(TypeError, match="Unsupported type"):
            rig.cupy.concatenate([rig.array, np.ones(3)])
        assert rig.cupy.asarray(np.ones(3)).shape == (3,)


def test_names_that_cupy_lacks(rig: Rig) -> None:
    with pytest.raises(AttributeError, match="errstate"):
        rig.cupy.errstate  # noqa: B018 - the look-up is the test
    with pytest.raises(AttributeError, match="byteswap"):
        rig.array.byteswap  # noqa: B018


def test_reductions_stay_on_the_device(rig: Rig) -> None:
    with rig.one:
        rig.array[...] = 2
        total = rig.cupy.sum(rig.array)
        assert total.shape == ()
        assert float(total) == 512


def test_events_take_their_time(rig: Rig) -> None:
    rig.up(rig.one)
    event = rig.one.record(rig.cupy.cuda.Event())
    assert not event.done
    assert event.done


def test_events_without_timing_measure_nothing(rig: Rig) -> None:
    event = rig.one.record(rig.cupy.cuda.Event(disable_timing=True))
    with pytest.raises(RuntimeError, match="invalid handle"):
        rig.cupy.cuda.get_elapsed_time(event, event)


SCALE = (
    "KERNEL void f(GLOBAL float *x, float a, int n) { if (GLOBAL_ID(0) < n) x[GLOBAL_ID(0)] *= a; }"
)


@needs_pocl
def test_kernels_run_and_their_arguments_are_checked(rig: Rig) -> None:
    module = rig.cupy.RawModule(code=assemble(CUDA_HEADER, (), SCALE))
    kernel = module.get_function("f").kernel
    a, n = np.float32(2), np.int32(256)
    with rig.one:
        rig.array[...] = 1
        kernel((8,), (32,), (rig.array, a, n))
        assert float(rig.cupy.sum(rig.array)) == 512
        for args, why in (
            ((rig.array, a), "takes 3 arguments"),
            ((rig.array, 2.0, n), "argument 1 is a float"),
            ((rig.array, a, np.int64(256)), "argument 2 is a int"),
            ((rig.pointer.ptr, a, n), "device array"),
            ((np.ones(4), a, n), "device array"),
        ):
            with pytest.raises(UsageError, match=why):
                kernel((8,), (32,), args)
        with pytest.raises(UsageError, match="cannot be launched"):
            kernel((8,), (2048,), (rig.array, a, n))
        with pytest.raises(UsageError, match="cannot be launched"):
            kernel((0,), (32,), (rig.array, a, n))


@needs_pocl
def test_kernels_are_ordered_like_everything_else(rig: Rig) -> None:
    kernel = rig.cupy.RawModule(code=assemble(CUDA_HEADER, (), SCALE)).get_function("f").kernel
    rig.up(rig.one)
    with rig.two, pytest.raises(UsageError, match="kernel f on stream"):
        kernel((8,), (32,), (rig.array, np.float32(2), np.int32(256)))


@needs_pocl
def test_texts_that_do_not_build(rig: Rig) -> None:
    with pytest.raises(rig.cupy.cuda.compiler.CompileException, match="error"):
        rig.cupy.RawModule(code=CUDA_HEADER + "KERNEL void f() { x }").get_function("f")
    with pytest.raises(UsageError, match="CUDA_HEADER"):
        rig.cupy.RawModule(code="void f() {}")
    module = rig.cupy.RawModule(code=CUDA_HEADER + "KERNEL void f() {}")
    with pytest.raises(rig.cupy.cuda.driver.CUDADriverError):
        module.get_function("g").kernel  # noqa: B018
