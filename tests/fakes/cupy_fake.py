"""A fake cupy: the part that ``crossdock.devices.cuda`` uses, on a machine that checks usage.

``install`` puts it in the place of cupy; whatever the machine found wrong is in
``cupy.machine.errors``.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident, local
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Self

import numpy as np
import pytest

from tests.fakes import cublaslt
from tests.fakes.cuda_machine import Allocation, Clock, Machine
from tests.fakes.cupy_arrays import Context, ndarray, numpy_name, taken
from tests.fakes.cupy_blas import Blas
from tests.fakes.cupy_kernels import RawModule

STATUS = {1: "cudaErrorInvalidValue", 217: "cudaErrorPeerAccessUnsupported",
          704: "cudaErrorPeerAccessAlreadyEnabled", 711: "cudaErrorTooManyPeers",
          2: "cudaErrorMemoryAllocation", 400: "invalid handle",
          500: "CUDA_ERROR_NOT_FOUND", 700: "cudaErrorIllegalAddress"}  # fmt: skip


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(STATUS.get(status, f"error {status}"))


class CUDADriverError(CUDARuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(
            f"Out of memory allocating {size} bytes (allocated so far: {total} bytes, "
            f"limit set to: {limit} bytes)."
        )


class CompileException(Exception):
    def get_message(self) -> str:
        return str(self.args[0])


class PinnedMemoryPointer(np.ndarray):
    """Pinned host memory. It is an array only because cupy's has the buffer protocol."""

    @classmethod
    def make(cls, machine: Machine, nbytes: int) -> PinnedMemoryPointer:
        allocation = machine.allocate(nbytes, pinned=True)
        # Through ctypes: numpy lets arrays that are views of arrays forget those in between.
        size = allocation.memory.size
        data: Any = (ctypes.c_ubyte * size).from_address(allocation.address)
        made = np.ndarray.__new__(cls, (size,), np.uint8, data)
        weakref.finalize(made, machine.free, allocation).atexit = False
        return made


class Memory:
    """Device memory that frees itself."""

    def __init__(self, machine: Machine, nbytes: int) -> None:
        self._machine = machine
        self.allocation: Allocation = machine.allocate(nbytes)

    def __del__(self) -> None:
        self._machine.free(self.allocation)


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:
        self.mem = mem
        self._offset = offset
        self.ptr = mem.allocation.address + offset

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self._offset + offset)

    def array(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.ndarray(shape, dtype, self.mem.allocation.memory, self._offset)


class UnownedMemory:
    """Memory of somebody else, whom it keeps alive."""

    def __init__(self, machine: Machine, ptr: int, size: int, owner: Any, device: int) -> None:
        if size and machine.home(ptr) != device:
            raise machine.problem(f"memory at {ptr} is not on device {device}")
        self.ptr, self.size, self.device_id, self._owner = ptr, size, device, owner
        data: Any = (ctypes.c_ubyte * size).from_address(ptr)
        self.allocation = _Unowned(np.ndarray((size,), np.uint8, data), ptr)


class _Unowned(NamedTuple):
    memory: np.ndarray
    address: int


class ExternalStream:
    """A stream by its handle, of the device given."""

    def __init__(self, cuda: FakeCuda, ptr: int, device_id: int = -1) -> None:
        self._cuda, self.ptr, self.device_id = cuda, ptr, device_id

    def record(self, event: Any) -> Any:
        event.clock = self._cuda.machine.clock(self.ptr)
        return event


class FakeCuda(ModuleType):
    """``cupy.cuda`` of a machine."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("cupy.cuda")
        self.machine = machine
        self._local = local()
        self.runtime = _Runtime(machine)
        self.driver = _namespace("cupy.cuda.driver", CUDADriverError=CUDADriverError)
        self.compiler = _namespace("cupy.cuda.compiler", CompileException=CompileException)
        self.nvrtc = _namespace(
            "cupy.cuda.nvrtc",
            getVersion=lambda: (12, 4),
            getSupportedArchs=lambda: (50, 60, 70, 80, 90),
        )
        self.memory = _namespace("cupy.cuda.memory", OutOfMemoryError=OutOfMemoryError)
        self.PinnedMemoryPointer = PinnedMemoryPointer
        self.MemoryPointer = MemoryPointer
        self.UnownedMemory = functools.partial(UnownedMemory, machine)
        self.ExternalStream = functools.partial(ExternalStream, self)
        self.Device = self._own(Device)
        self.Stream = self._own(Stream)
        self.Event = self._own(Event)
        self.MemoryPool = self._own(MemoryPool)
        self.cublas = Blas(self)

    def _own(self, kind: type) -> Any:
        return type(kind.__name__, (kind,), {"cuda": self})

    def streams(self) -> list[Any]:
        """The calling thread's stack of current streams."""
        if not hasattr(self._local, "streams"):
            self._local.streams = []
        found: list[Any] = self._local.streams
        return found

    def named(self) -> int:
        """The current stream, or the number of the legacy default stream."""
        stack = self.streams()
        return int(stack[-1].ptr) if stack else 1

    def current(self) -> int:
        """The current stream; the default stream is never used by us."""
        stack = self.streams()
        if not stack:
            raise self.machine.problem("work on the default stream")
        return int(stack[-1].ptr)

    def get_current_stream(self) -> Any:
        """The current stream."""
        return SimpleNamespace(ptr=self.current())

    def get_cublas_handle(self) -> int:
        """cupy has a handle for each device of each thread."""
        self.runtime.check()
        return (get_ident() << 8) + self.machine.device + 1

    def alloc_pinned_memory(self, nbytes: int) -> Any:
        self.machine.refuse_capture("an allocation of pinned memory")
        return PinnedMemoryPointer.make(self.machine, nbytes)

    @contextmanager
    def using_allocator(self, allocator: Any = None) -> Iterator[None]:
        assert callable(allocator)
        yield

    def get_elapsed_time(self, start: Any, end: Any) -> float:
        if start.seconds is None or end.seconds is None:
            raise CUDARuntimeError(400)
        return float((end.seconds - start.seconds) * 1e3)


def _namespace(name: str, **members: Any) -> Any:
    module = ModuleType(name)
    vars(module).update(members)
    return module


class _Runtime(ModuleType):
    """``cupy.cuda.runtime``."""

    CUDARuntimeError = CUDARuntimeError
    memcpyHostToDevice = 1  # noqa: N815 - cupy's name
    memcpyDeviceToHost = 2  # noqa: N815 - cupy's name
    memcpyDeviceToDevice = 3  # noqa: N815 - cupy's name
    CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF = 0, 1, 2, 14
    streamCaptureModeThreadLocal = 1  # noqa: N815 - cupy's name

    def __init__(self, machine: Machine) -> None:
        super().__init__("cupy.cuda.runtime")
        self._machine = machine
        self.events: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def check(self) -> None:
        if self._machine.sticky:
            raise CUDARuntimeError(self._machine.sticky)

    def pointerGetAttributes(self, ptr: int) -> Any:  # noqa: N802
        device, kind = self._machine.kind(ptr)
        return SimpleNamespace(device=device, type=kind)

    def getDeviceCount(self) -> int:  # noqa: N802 - cupy's names, here and below
        return self._machine.devices

    def deviceGetAttribute(self, attrib: int, device: int) -> int:  # noqa: N802
        assert attrib == 20, "cudaDevAttrComputeMode"
        return 0

    def getDeviceProperties(self, index: int) -> dict[str, Any]:  # noqa: N802
        return {
            "name": b"Fake GPU", "totalGlobalMem": self._machine.memory, "clockRate": 1000000,
            "multiProcessorCount": 4, "sharedMemPerBlock": 49152, "maxThreadsPerBlock": 1024,
            "major": 8, "minor": 0, "uuid": bytes(range(16 + index, 32 + index)),
        }  # fmt: skip

    def memGetInfo(self) -> tuple[int, int]:  # noqa: N802
        total = self._machine.memory
        return total - self._machine.used(self._machine.device), total

    def driverGetVersion(self) -> int:  # noqa: N802
        return 12040

    def runtimeGetVersion(self) -> int:  # noqa: N802
        return 12040

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
        self.check()
        self._machine.refuse_capture("a copy", stream)
        self._machine.copy(dst, src, size, stream)

    def deviceCanAccessPeer(self, device: int, peer_device: int) -> int:  # noqa: N802
        return int((device, peer_device) in self._machine.peers)

    def deviceEnablePeerAccess(self, peer_device: int) -> None:  # noqa: N802
        self.check()
        pair = (self._machine.device, peer_device)
        if pair not in self._machine.peers or pair in self._machine.access:
            raise CUDARuntimeError(704 if pair in self._machine.access else 217)
        self._machine.access.add(pair)

    def memcpyPeerAsync(  # noqa: N802
        self, dst: int, dst_device: int, src: int, src_device: int, size: int, stream: int
    ) -> None:
        self.check()
        self._machine.refuse_capture("a copy", stream)
        self._machine.copy_peer((dst, dst_device), (src, src_device), size, stream)

    def memcpy(self, dst: int, src: int, size: int, kind: int) -> None:
        """A copy that waits for everything, also of host memory that is not pinned."""
        self.check()
        self._machine.refuse_capture("a copy that waits")
        self._machine.finish()
        ctypes.memmove(dst, src, size)

    def eventQuery(self, event: int) -> int:  # noqa: N802
        return int(self.events[event].query())


class Device:
    """``cupy.cuda.Device``."""

    cuda: FakeCuda

    def __init__(self, index: int | None = None) -> None:
        self.id = self.cuda.machine.device if index is None else index

    def __enter__(self) -> Self:
        self._before, self.cuda.machine.device = self.cuda.machine.device, self.id
        return self

    def __exit__(self, *error: object) -> None:
        self.cuda.machine.device = self._before

    def synchronize(self) -> None:
        self.cuda.runtime.check()
        self.cuda.machine.refuse_capture("a wait for the device")
        self.cuda.machine.finish()

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{self.id + 1:02x}:00.0"


class Event:
    """``cupy.cuda.Event``."""

    cuda: FakeCuda

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.cuda.runtime.check()
        self.ptr = id(self)
        self.clock: Clock = {}
        self.device_id = self.cuda.machine.device
        self.timed = not disable_timing
        self.seconds: float | None = None
        self._queries = 0
        self.cuda.runtime.events[self.ptr] = self

    def query(self) -> int:
        """Status: an error, not ready the first time, then done, which is a wait."""
        if self.cuda.machine.sticky:
            return self.cuda.machine.sticky
        self._queries += 1
        if self._queries < 2 and not self.cuda.machine.passed(self.clock):
            return 600
        self.cuda.machine.synchronize(self.clock)
        return 0

    @property
    def done(self) -> bool:
        return self.query() == 0

    def synchronize(self) -> None:
        self.cuda.runtime.check()
        self.cuda.machine.synchronize(self.clock)


class Stream:
    """``cupy.cuda.Stream``."""

    cuda: FakeCuda

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        if null or not non_blocking:
            raise self.cuda.machine.problem("a stream that the default stream waits for")
        self.ptr = self.cuda.machine.new_stream()
        self.device_id = self.cuda.machine.device

    def __enter__(self) -> Self:
        if self.cuda.machine.device != self.device_id:
            raise RuntimeError("the stream is of another device than the current one")
        self.cuda.streams().append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.cuda.streams().pop()

    def begin_capture(self, mode: int = 2) -> None:
        self.cuda.runtime.check()
        self.cuda.machine.begin_capture(self.ptr)

    def end_capture(self) -> Graph:
        self.cuda.runtime.check()
        return Graph(self, self.cuda.machine.end_capture(self.ptr))

    def is_capturing(self) -> bool:
        return self.cuda.machine.capture_of(self.ptr) is not None

    def record(self, event: Any = None) -> Any:
        self.cuda.runtime.check()
        self.cuda.machine.refuse_capture("an event's record", self.ptr)
        event = event or self.cuda.Event()
        if event.device_id != self.device_id:
            raise CUDARuntimeError(400)
        event.clock = self.cuda.machine.clock(self.ptr)
        virtual = self.cuda.machine.seconds
        now = time.perf_counter() if virtual is None else virtual
        event.seconds = now if event.timed else None
        return event

    def wait_event(self, event: Any) -> None:
        self.cuda.machine.refuse_capture("a wait for an event from outside", self.ptr)
        self.cuda.machine.wait(self.ptr, event.clock)

    def synchronize(self) -> None:
        self.cuda.runtime.check()
        self.cuda.machine.refuse_capture("a wait for the stream")
        self.cuda.machine.synchronize(self.cuda.machine.clock(self.ptr))


class Graph:
    """``cupy.cuda.Graph``: the launches that a stream was given while it captured."""

    def __init__(self, stream: Stream, launches: list[Any]) -> None:
        self._stream = stream
        self._launches = launches

    def launch(self, stream: Any = None) -> None:
        target = stream or self._stream
        target.cuda.runtime.check()
        target.cuda.machine.refuse_capture("a graph's launch", target.ptr)
        with target:
            for launch in self._launches:
                launch()


class MemoryPool:
    """``cupy.cuda.MemoryPool``: it keeps nothing, so that use after release shows."""

    cuda: FakeCuda

    def __init__(self) -> None:
        self._limit = self.cuda.machine.memory
        self._given: weakref.WeakSet[Memory] = weakref.WeakSet()

    def set_limit(self, size: int) -> None:
        self._limit = size

    def used_bytes(self) -> int:
        return sum(memory.allocation.memory.size for memory in list(self._given))

    def total_bytes(self) -> int:
        return self.used_bytes()

    def malloc(self, nbytes: int) -> MemoryPointer:
        self.cuda.runtime.check()
        self.cuda.machine.refuse_capture("an allocation")
        if self.used_bytes() + nbytes > self._limit:
            raise OutOfMemoryError(nbytes, self.used_bytes(), self._limit)
        made = Memory(self.cuda.machine, nbytes)
        self._given.add(made)
        return MemoryPointer(made, 0)

    def free_all_blocks(self) -> None:
        pass


class FakeCupy(ModuleType):
    """The module ``cupy``."""

    __version__ = "14.0.0"

    def __init__(self, machine: Machine | None = None) -> None:
        super().__init__("cupy")
        self.machine = machine or Machine()
        self.cuda = FakeCuda(self.machine)
        context = Context(self.machine, self.cuda.current, self.cuda.named)
        self.ndarray = type("ndarray", (ndarray,), {"context": context})
        self.RawModule = type("RawModule", (RawModule,), {"cupy": self})

    def from_dlpack(self, array: Any) -> Any:
        """A producer's array, which makes the current stream wait, or what it exported."""
        if not hasattr(array, "__dlpack__"):
            return self._of(*taken(array))
        kind, index = array.__dlpack_device__()
        if kind not in (2, 13):
            raise TypeError(f"Unsupported array type: {kind}")
        before, self.machine.device = self.machine.device, index
        try:
            capsule = array.__dlpack__(stream=self.cuda.current(), max_version=(1, 0), copy=None)
        finally:
            self.machine.device = before
        return self._of(*taken(capsule))

    def _of(self, array: Any, dtype: np.dtype[Any]) -> Any:
        made = object.__new__(self.ndarray)
        made._a = array._a.view(dtype)
        made._memptr = array._memptr or MemoryPointer(_foreign(self, array), 0)
        return made

    def __getattr__(self, name: str) -> Any:
        return numpy_name(name, self.ndarray)


def _foreign(fake: FakeCupy, array: Any) -> UnownedMemory:
    address, index = int(array._a.ctypes.data), array.__dlpack_device__()[1]
    return UnownedMemory(fake.machine, address, array._a.nbytes, array, index)


def install(monkeypatch: pytest.MonkeyPatch, machine: Machine | None = None) -> FakeCupy:
    """Put a fake cupy in the place of the real one; there is no cuDNN beside it.

    Its kernels are built and computed by the processor, which may be busy.
    """
    fake = FakeCupy(machine)
    if "CROSSDOCK_WATCHDOG" not in os.environ:
        monkeypatch.setenv("CROSSDOCK_WATCHDOG", "60")
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "cupy.cuda", fake.cuda)
    monkeypatch.setitem(sys.modules, "cudnn", None)
    fake.cublaslt = cublaslt.install(monkeypatch, fake)
    return fake
