"""Host memory for the device kinds whose buffers lie in it: aligned blocks under a budget."""

from __future__ import annotations

import ctypes
import functools
import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from crossdock.devices.base import Buffer, Device
from crossdock.devices.share import Share
from crossdock.runtime.errors import DeviceError
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy

ALIGNMENT = 64
"""Buffers begin on a cache line, and so do views."""
HUGE_PAGE = 2 << 20
"""Larger buffers begin on such a page: kernels that walk many lines of memory at once (a matrix'
rows, a tile's elements) need one address translation for all of them."""


def is_aligned(array: Array) -> bool:
    """Whether an array begins on a cache line."""
    return int(array.ctypes.data) % ALIGNMENT == 0


def aligned_empty(size: int, dtype: str) -> Array:
    """A new array of ``size`` elements that begins on a cache line."""
    width = np.dtype(dtype).itemsize
    raw = np.empty(size * width + ALIGNMENT, np.uint8)
    start = -int(raw.ctypes.data) % ALIGNMENT
    made: Array = raw[start : start + size * width].view(dtype)
    return made


class _Block(np.ndarray[Any, Any]):
    """The memory of a buffer: as it is freed, its share of the device's memory is given back."""

    share: Share
    counted: int

    def __del__(self) -> None:
        self.share.give(self.counted)


class Budget:
    """Blocks of host memory for one device, within its share of the memory; safe for threads."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.gauge = share.gauge

    @property
    def free(self) -> int:
        """Bytes that may still be taken."""
        return self.share.free

    def take(self, nbytes: int, label: str) -> Array:
        """Return uint8[nbytes] on a cache line, given back when the memory is freed.

        The system commits pages on first use. Raises OutOfMemory.
        """
        self.share.take(nbytes, label)
        alignment = HUGE_PAGE if nbytes >= HUGE_PAGE else ALIGNMENT
        try:
            block = _Block((nbytes + alignment,), np.uint8)
        except MemoryError:
            self.share.give(nbytes)
            raise self.share.refusal(nbytes, self.free, label) from None
        block.share, block.counted = self.share, nbytes
        raw = block.view(np.ndarray)  # whose views keep the block, which owns the memory
        address = int(raw.ctypes.data)
        start = -address % alignment
        if alignment == HUGE_PAGE:
            _advise()(address + start, nbytes // HUGE_PAGE * HUGE_PAGE)
        return raw[start : start + nbytes]

    def adopt(self, array: Array, label: str) -> Array:
        """The bytes of a read-only contiguous array, which count like memory taken.

        They are given back when the array returned is freed. Raises OutOfMemory.
        """
        self.share.take(array.nbytes, label)
        found: Array = array.reshape(-1).view(np.uint8)
        weakref.finalize(found, self.share.give, found.nbytes).atexit = False
        return found


@functools.cache
def _advise() -> Callable[[int, int], None]:
    """Ask the system for huge pages from an address on; it may decline, and not all can."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return lambda address, nbytes: None  # noqa: ARG005 - the other one's signature
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def advise(address: int, nbytes: int) -> None:
        madvise(address, nbytes, advice)

    return advise


class HostBuffer(Buffer):
    """A window of host memory, which it keeps alive until ``release``."""

    def __init__(self, device: Device, memory: Array, address: int | None = None) -> None:
        self.device = device
        self.nbytes = memory.size
        self._memory: Array | None = memory
        self._address = address

    def bytes(self) -> Array:
        """The memory as uint8[nbytes]."""
        if self._memory is None:
            raise DeviceError(f"{self.device.info.id}: a buffer is used after its release")
        return self._memory

    def first(self, nbytes: int) -> Array:
        """The first ``nbytes`` of the memory; raises DeviceError where there are fewer."""
        if nbytes > self.nbytes:
            raise DeviceError(
                f"{self.device.info.id}: cannot copy {nbytes} bytes between the host and a buffer "
                f"of {self.nbytes}"
            )
        return self.bytes()[:nbytes]

    def address(self) -> int:
        """Where the memory begins."""
        memory = self.bytes()
        if self._address is None:
            self._address = int(memory.ctypes.data)
        return self._address

    def view(self, offset: int, nbytes: int) -> HostBuffer:
        """A window into this buffer, which keeps the memory alive."""
        if offset % ALIGNMENT or offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise DeviceError(
                f"{self.device.info.id}: no view of {nbytes} bytes at {offset} in a buffer of "
                f"{self.nbytes}; offsets are multiples of {ALIGNMENT}"
            )
        window = self.bytes()[offset : offset + nbytes]
        return type(self)(self.device, window, self.address() + offset)

    def release(self) -> None:
        """Drop the memory; it is freed when no view or command buffer holds it."""
        self._memory = None

    def shaped(self, spec: TensorSpec) -> Array:
        """The memory as an array of ``spec``, for the device's own use."""
        return np.ndarray(spec.dims, to_numpy(spec.dtype), self.bytes())


def copy_bytes(target: Array, source: Array) -> None:
    """Copy a C-contiguous array into another of at least as many bytes, whatever their types."""
    data = source.reshape(-1).view(np.uint8)
    np.copyto(target.reshape(-1).view(np.uint8)[: data.size], data)
