"""Bugs planted in the CUDA device, each of a kind that a card punishes now and then: all are found.

One run of a device touches everything that has to be ordered or kept alive. The device as it is
passes on the fake cupy; with any of the bugs the fake complains, or the results are wrong.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from crossdock.devices import cuda, cuda_memory, cuda_queue, registry
from crossdock.devices.base import Bound, Event
from crossdock.devices.cuda import CudaDevice
from crossdock.devices.cuda_memory import CudaBuffer, CudaEvent, Staging
from crossdock.devices.cuda_queue import CudaQueue
from crossdock.devices.program import In, Out
from crossdock.runtime.errors import Error
from crossdock.runtime.tensor import TensorSpec
from tests.devices.steps import axpb_array, axpb_grid, record
from tests.fakes import cupy_fake
from tests.fakes.cuda_machine import UsageError

POCL = bool(registry.probe_all(["opencl"])[0].devices)
pytestmark = [
    pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

COUNT = 1024
CHUNK = 1000


def use(device: CudaDevice) -> None:
    """Pageable and pinned copies, a kernel and an array call, and memory dropped while in use."""
    up, compute, down = (device.queues[role] for role in ("upload", "compute", "download"))
    data = np.arange(COUNT, dtype=np.float32)
    pool = device.allocate(4 * data.nbytes)
    x, y, z = (pool.view(i * data.nbytes, data.nbytes) for i in range(3))
    sent = up.write(x, data)
    both = (axpb_grid(COUNT, 2, 1), {In(0): x, Out(0): y}), (
        axpb_array(COUNT, 3, -1), {In(0): y, Out(0): z}
    )  # fmt: skip
    done = compute.execute(record(device, *both), [sent])
    got = np.zeros_like(data)
    down.read(z, got, [done])
    assert np.array_equal(got, 3 * (2 * data + 1) - 1)
    spans: list[Any] = []
    timed = compute.execute(record(device, *both), [], spans)
    assert len(spans) == 2
    _pinned(device, timed)
    _dropped(device, data)
    pool.release()


def _pinned(device: CudaDevice, after: CudaEvent) -> None:
    spec = TensorSpec("float32", (COUNT,))
    target, buffer = device.host_array(spec), device.allocate(spec.nbytes)
    source = device.host_array(spec)
    source[:] = 7
    sent = device.queues["upload"].write(buffer, source, [after])
    del source
    gc.collect()
    device.queues["download"].read(buffer, target, [sent]).wait()
    assert (target == 7).all()
    buffer.release()


def _dropped(device: CudaDevice, data: np.ndarray) -> None:
    x, y = (device.allocate(data.nbytes) for _ in range(2))
    sent = device.queues["upload"].write(x, data)
    step = axpb_grid(COUNT, 2, 1)
    done = device.queues["compute"].execute(record(device, (step, {In(0): x, Out(0): y})), [sent])
    y.release()
    w = device.allocate(data.nbytes)
    device.queues["upload"].write(w, data)
    w.release()
    del w, x, y, sent, done
    gc.collect()
    assert device.allocate(data.nbytes).nbytes == data.nbytes


# --- bugs -----------------------------------------------------------------------------------------


def no_waits(self: CudaQueue, waits: Sequence[Event]) -> None:
    pass


def early_event(self: CudaQueue, keep: object, *, mark: Any = CudaQueue._mark) -> CudaEvent:
    event: CudaEvent = mark(self, keep)
    event.event.clock = {}
    return event


def forgetful_mark(self: CudaQueue, keep: object, *, mark: Any = CudaQueue._mark) -> CudaEvent:
    event: CudaEvent = mark(self, None)
    return event


def freeing_mark(self: CudaQueue, keep: object, *, mark: Any = CudaQueue._mark) -> CudaEvent:
    """Nothing keeps what the work uses, and the collector does not wait for it."""
    for root in getattr(keep, "roots", ()):
        root._pointer = None
    event: CudaEvent = mark(self, keep)
    return event


def freed_twice(self: CudaBuffer) -> None:
    if self._pointer is not None and self._root is None:
        self.device.drain()
        self.device.cp.machine.free(self._pointer.mem.allocation)
    self._pointer = None


def unsettled(self: Any) -> None:
    self.event = None
    if self.target is not None:
        np.copyto(self.target, self.memory[: self.target.size])
        self.target = None


def one_stage(self: Staging) -> Any:
    if not self._stages:
        memory = np.frombuffer(self._cp.cuda.alloc_pinned_memory(CHUNK), np.uint8, CHUNK)
        self._stages.append(cuda_memory._Stage(memory))
    return self._stages[0]


def impatient_download(self: Staging, pointer: int, data: np.ndarray) -> None:
    kind = self._cp.cuda.runtime.memcpyDeviceToHost
    for at in range(0, data.size, CHUNK):
        part = data[at : at + CHUNK]
        stage = self._next()
        self._copy(stage.memory.ctypes.data, pointer + at, part.size, kind, stage)
        np.copyto(part, stage.memory[: part.size])


@contextmanager
def any_device(device: CudaDevice) -> Iterator[None]:
    yield


def foreign_memory(self: CudaDevice, nbytes: int, label: str = "") -> CudaBuffer:
    with self.cp.cuda.Device(1 - self.index):
        return CudaBuffer(self, self.pool.malloc(max(nbytes, 1)), nbytes)


def shifted_view(
    self: CudaBuffer, offset: int, nbytes: int, *, view: Any = CudaBuffer.view
) -> CudaBuffer:
    made: CudaBuffer = view(self, offset, nbytes)
    made._pointer = self.pointer + 2 * self.nbytes
    return made


def _with_args(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Any:
    def call(self: CudaDevice, item: Bound, *, call: Any = CudaDevice._call) -> Any:
        made = call(self, item)
        if made.func is not getattr(item.executable, "kernel", None):
            return made
        blocks, block, args = made.args
        return functools.partial(made.func, blocks, block, change(args))

    return call


def wide_blocks(self: CudaDevice, item: Bound, *, call: Any = CudaDevice._call) -> Any:
    made = call(self, item)
    if made.func is not getattr(item.executable, "kernel", None):
        return made
    return functools.partial(made.func, (1,), (2048,), made.args[2])


class NoStream:
    """A stream that does not become the current one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def default_stream(
    self: CudaQueue, device: CudaDevice, role: str, *, init: Any = CudaQueue.__init__
) -> None:
    init(self, device, role)
    self.stream = NoStream(self.stream)


def blocking_stream(self: CudaQueue, device: CudaDevice, role: str) -> None:
    self.stream = device.cp.cuda.Stream()


def untimed(self: CudaQueue, commands: Any, spans: list[Any]) -> None:
    event = self.device.cp.cuda.Event
    marks = [self.stream.record(event(disable_timing=True)) for _ in range(len(commands) + 1)]
    self.device.cp.cuda.get_elapsed_time(marks[0], marks[-1])


MUTANTS: dict[str, tuple[Any, str, Any, str]] = {
    "no wait for another stream's event": (
        CudaQueue,
        "_wait_for",
        no_waits,
        "without waiting for its event",
    ),
    "an event recorded before the work": (
        CudaQueue,
        "_mark",
        early_event,
        "without waiting for its event",
    ),
    "pinned memory dropped under its copy": (
        CudaQueue,
        "_mark",
        forgetful_mark,
        "freed while stream",
    ),
    "memory released without waiting": (
        CudaDevice,
        "drain",
        lambda self: None,
        "freed while stream",
    ),
    "memory freed by the collector": (
        CudaQueue,
        "_mark",
        freeing_mark,
        "used after its release",
    ),
    "memory freed twice": (
        CudaBuffer,
        "release",
        freed_twice,
        "freed twice",
    ),
    "a staging buffer filled under its copy": (
        cuda_memory._Stage,
        "settle",
        unsettled,
        "changed while a copy was reading it",
    ),
    "one staging buffer for all parts": (
        Staging,
        "_next",
        one_stage,
        "changed while a copy was reading it",
    ),
    "host memory read before its copy is done": (
        Staging,
        "download",
        impatient_download,
        "AssertionError",
    ),
    "pageable memory in an asynchronous copy": (
        cuda_queue,
        "is_pinned",
        lambda cp, array: True,
        "no device or pinned memory",
    ),
    "another card is current": (
        cuda_queue,
        "translated",
        any_device,
        "belongs to device 1",
    ),
    "memory of another card": (
        CudaDevice,
        "allocate",
        foreign_memory,
        "memory of device 0 on device 1",
    ),
    "a view past the end": (
        CudaBuffer,
        "view",
        shifted_view,
        "no device or pinned memory",
    ),
    "an argument too few": (
        CudaDevice,
        "_call",
        _with_args(lambda args: args[:-1]),
        "takes 5 arguments",
    ),
    "an argument of another type": (
        CudaDevice,
        "_call",
        _with_args(lambda args: (*args[:-1], np.int64(args[-1]))),
        "argument 4 is a int",
    ),
    "host memory as an argument": (
        CudaDevice,
        "_call",
        _with_args(lambda args: (np.zeros(COUNT, np.float32), *args[1:])),
        "argument 0 has to be a device array",
    ),
    "blocks of too many threads": (
        CudaDevice,
        "_call",
        wide_blocks,
        "cannot be launched",
    ),
    "work on the default stream": (
        CudaQueue,
        "__init__",
        default_stream,
        "work on the default stream",
    ),
    "a stream that the default stream waits for": (
        CudaQueue,
        "__init__",
        blocking_stream,
        "a stream that the default stream waits for",
    ),
    "events without timing measure": (
        CudaQueue,
        "_timed",
        untimed,
        "invalid handle",
    ),
}
"""Each by what it replaces, and what is said of it."""


def run(fake: cupy_fake.FakeCupy) -> list[str]:
    """Use a card, and everything that was found wrong."""
    return found_wrong(fake, use, "cuda:1")


def found_wrong(fake: cupy_fake.FakeCupy, use: Callable[..., None], *ids: str) -> list[str]:
    """What was found wrong while cards were used."""
    found: list[str] = []
    try:
        devices = [cuda.open_device(name) for name in ids]
        use(*devices)
        for device in devices:
            device.close()
    except (UsageError, Error, AssertionError, RuntimeError, TypeError) as error:
        found.append(f"{type(error).__name__}: {error}")
    gc.collect()
    return found + fake.machine.errors


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> cupy_fake.FakeCupy:
    monkeypatch.setattr(cuda_memory, "CHUNK", CHUNK)
    return cupy_fake.install(monkeypatch)


def test_the_device_as_it_is_passes(fake: cupy_fake.FakeCupy) -> None:
    assert run(fake) == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_found(
    name: str, fake: cupy_fake.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, attribute, bug, said = MUTANTS[name]
    monkeypatch.setattr(where, attribute, bug)
    found = run(fake)
    assert found
    assert said in found[0]
