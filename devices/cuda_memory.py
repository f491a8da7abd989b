"""CUDA memory, events and errors: what the queues of ``crossdock.devices.cuda`` are made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crossdock.devices.base import Buffer, Event
from crossdock.devices.cuda_versions import library_problem
from crossdock.runtime.errors import DeviceError, DeviceLost, OutOfMemory
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

if TYPE_CHECKING:
    from crossdock.devices.cuda import CudaDevice

OUT_OF_MEMORY = 2
NOT_READY = 600
STICKY = frozenset({46, 214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})
"""Statuses after which a context answers nothing else (CUDA runtime API, cudaError_t)."""

PINNED = 1
"""cudaMemoryTypeHost: memory of the host that the driver knows."""

CHUNK = 4 << 20
"""Bytes of one of the two staging buffers a copy stream has."""


@contextmanager
def translated(device: CudaDevice) -> Iterator[None]:
    """Run with this device current, and cupy's errors made ours. A lost device stays lost."""
    cp, where = device.cp, device.info.id
    if device.lost:
        raise DeviceLost(f"{where}: {device.lost}", device=where)
    try:
        with cp.cuda.Device(device.index):
            yield
    except cp.cuda.memory.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{where}: {error}; use smaller inputs, or move ops to another device"
        ) from error
    except (cp.cuda.runtime.CUDARuntimeError, cp.cuda.driver.CUDADriverError) as error:
        if error.status == OUT_OF_MEMORY:
            raise OutOfMemory(f"{where}: {error}; use smaller inputs") from error
        if error.status in STICKY:
            device.lost = str(error)
            raise DeviceLost(f"{where}: {error}; the process must be started again") from error
        raise DeviceError(f"{where}: {error}") from error
    except (ImportError, RuntimeError) as error:
        if missing := library_problem(cp, error):
            raise DeviceError(f"{where}: {missing}") from error
        raise


class CudaEvent(Event):
    """A recorded CUDA event; keeps alive what the work before it uses, until that is done.

    ``before`` is the event before it on its stream.
    """

    __slots__ = ("before", "device", "event", "keep")

    def __init__(
        self, device: CudaDevice, event: Any, keep: object = None, before: CudaEvent | None = None
    ) -> None:
        self.device = device
        self.event = event
        self.keep = keep
        self.before = before

    def wait(self) -> None:
        """Block until the work is done, without the interpreter lock."""
        with translated(self.device):
            self.event.synchronize()
        self.let_go()

    def let_go(self) -> None:
        """Keep nothing any more, and let nothing be kept by what was done before."""
        event: CudaEvent | None = self
        while event is not None:
            before, event.before, event.keep = event.before, None, None
            event = before

    def done(self) -> bool:
        """True when the work is done or failed; cupy's own ``done`` is False after a failure."""
        return int(self.device.cp.cuda.runtime.eventQuery(self.event.ptr)) != NOT_READY


class CudaBuffer(Buffer):
    """Device memory from the device's pool, or a window of it that keeps the whole alive.

    Memory that is ``foreign``, another library's, is only kept by who holds the buffer, not by work
    that uses it: it goes back as soon as the run is over that read it.
    """

    def __init__(
        self,
        device: CudaDevice,
        pointer: Any,
        nbytes: int,
        root: CudaBuffer | None = None,
        *,
        foreign: bool = False,
    ) -> None:
        self.device: CudaDevice = device
        self.nbytes = nbytes
        self.foreign = foreign
        self.lent = False  # to another library, which may have work of its own that uses it
        self._root = root
        self._pointer = pointer

    @property
    def root(self) -> CudaBuffer:
        """The buffer that this one is a window of, or itself."""
        return self if self._root is None else self._root

    @property
    def released(self) -> bool:
        """True when the memory has been given back."""
        return self._pointer is None

    @property
    def pointer(self) -> Any:
        """Where the memory begins, as cupy's MemoryPointer."""
        if self.released or self.root.released:
            raise DeviceError(f"{self.device.info.id}: a buffer is used after its release")
        return self._pointer

    def on_device(self, spec: TensorSpec) -> Any:
        """The memory as a cupy array, without a copy."""
        return self.device.cp.ndarray(spec.dims, to_numpy(spec.dtype), memptr=self.pointer)

    def place(self) -> int:
        """The address."""
        return int(self.pointer.ptr)

    def unowned(self) -> CudaBuffer:
        """The same memory, which this one does not keep alive."""
        cp, index = self.device.cp, self.device.index
        memory = cp.cuda.UnownedMemory(self.place(), self.nbytes, None, index)
        return CudaBuffer(self.device, cp.cuda.MemoryPointer(memory, 0), self.nbytes, foreign=True)

    def view(self, offset: int, nbytes: int) -> CudaBuffer:
        """A window into this buffer."""
        info = self.device.info
        if offset < 0 or offset % info.alignment or offset + nbytes > self.nbytes:
            raise DeviceError(
                f"{info.id}: no view of {nbytes} bytes at {offset} in a buffer of {self.nbytes}; "
                f"offsets are multiples of {info.alignment}"
            )
        return CudaBuffer(self.device, self.pointer + offset, nbytes, self.root)

    def release(self) -> None:
        """Give the memory back to the pool, once no stream can still be using it."""
        if self._pointer is not None and self._root is None:
            self.device.drain()
        self._pointer = None

    def __del__(self) -> None:
        # A stream may still be using it, and a collector is no place to wait: the device frees it.
        if self._pointer is not None and self._root is None and not self.foreign:
            if self.lent:
                self.device.returned.append((self._pointer, self.nbytes))
            else:
                self.device.dropped.append(self._pointer)


@dataclass
class _Stage:
    memory: Array
    event: Any = None
    target: Array | None = None

    def settle(self) -> None:
        """Wait for the copy that uses this stage, and hand what came down to its target."""
        if self.event is not None:
            self.event.synchronize()
            self.event = None
        if self.target is not None:
            np.copyto(self.target, self.memory[: self.target.size])
            self.target = None


class Staging:
    """Copies between pageable host memory and the device through two pinned buffers in turn.

    While one is on its way over the bus, the other is filled or emptied by the host.
    """

    def __init__(self, cp: Any, stream: Any) -> None:
        self._cp = cp
        self._stream = stream
        self._stages: deque[_Stage] = deque()

    def _next(self) -> _Stage:
        if len(self._stages) < 2:
            memory = np.frombuffer(self._cp.cuda.alloc_pinned_memory(CHUNK), np.uint8, CHUNK)
            self._stages.appendleft(_Stage(memory))
        stage = self._stages[0]
        self._stages.rotate(-1)
        stage.settle()
        return stage

    def _copy(self, target: int, source: int, nbytes: int, kind: int, stage: _Stage) -> None:
        self._cp.cuda.runtime.memcpyAsync(target, source, nbytes, kind, self._stream.ptr)
        stage.event = self._stream.record(self._cp.cuda.Event(disable_timing=True))

    def upload(self, pointer: int, data: Array) -> None:
        """Enqueue copies of uint8[n] to the device; returns when ``data`` may be changed."""
        kind = self._cp.cuda.runtime.memcpyHostToDevice
        for at in range(0, data.size, CHUNK):
            part = data[at : at + CHUNK]
            stage = self._next()
            np.copyto(stage.memory[: part.size], part)
            self._copy(pointer + at, stage.memory.ctypes.data, part.size, kind, stage)

    def download(self, pointer: int, data: Array) -> None:
        """Fill uint8[n] from the device; returns when it is complete."""
        kind = self._cp.cuda.runtime.memcpyDeviceToHost
        for at in range(0, data.size, CHUNK):
            part = data[at : at + CHUNK]
            stage = self._next()
            self._copy(stage.memory.ctypes.data, pointer + at, part.size, kind, stage)
            stage.target = part
        for stage in list(self._stages):
            stage.settle()


def is_pinned(cp: Any, array: Array) -> bool:
    """True where an array lies in pinned memory: cupy's, or what another library has pinned."""
    base: Any = array
    while base is not None:
        if isinstance(base, cp.cuda.PinnedMemoryPointer):
            return True
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if not array.nbytes:
        return False
    return int(cp.cuda.runtime.pointerGetAttributes(array.ctypes.data).type) == PINNED
