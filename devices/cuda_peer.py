"""Copies between two cards: by peer access where the driver grants it, else through pinned memory.

Peer access is of one card to the memory of another, and is enabled once in a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossdock.devices import cuda_memory
from crossdock.devices.base import Event
from crossdock.devices.cuda_memory import CudaEvent, translated

if TYPE_CHECKING:
    from crossdock.devices.cuda import CudaDevice

ALREADY_ENABLED = 704
"""cudaErrorPeerAccessAlreadyEnabled: somebody else in this process has done it."""


def enable(device: CudaDevice, other: CudaDevice) -> str:
    """Let a card reach another's memory; why it cannot, or nothing where it can."""
    runtime = device.cp.cuda.runtime
    ids = f"{device.info.id} to {other.info.id}"
    with translated(device):
        if not runtime.deviceCanAccessPeer(device.index, other.index):
            return f"the driver has no peer access from {ids}"
        try:
            runtime.deviceEnablePeerAccess(other.index)
        except runtime.CUDARuntimeError as error:
            if error.status in cuda_memory.STICKY:
                raise
            if error.status != ALREADY_ENABLED:
                return f"peer access from {ids} is refused: {error}"
    return ""


class Bridge:
    """Copies from a card that cannot be reached, part by part through two pinned buffers in turn.

    While one part goes up to this card, the next one comes down from the other, on a stream of its
    own there. The host waits for nothing: the streams wait for each other's events.
    """

    def __init__(self, device: CudaDevice, other: CudaDevice, up: Any) -> None:
        self._device, self._other, self._up = device, other, up
        self._cp = device.cp
        with translated(other):
            self._down = self._cp.cuda.Stream(non_blocking=True)
        self._memory = [self._pinned() for _ in range(2)]
        self._sent: list[Any] = [None, None]  # events after a buffer was last read
        self._part = 0

    def _pinned(self) -> Any:
        size = cuda_memory.CHUNK
        return np.frombuffer(self._cp.cuda.alloc_pinned_memory(size), np.uint8, size)

    def copy(self, target: int, source: int, nbytes: int, waits: Sequence[Event]) -> None:
        """Enqueue the copy between two addresses; the up stream ends with it."""
        with translated(self._other):
            for event in waits:
                if isinstance(event, CudaEvent):
                    self._down.wait_event(event.event)
        size = cuda_memory.CHUNK
        for at in range(0, nbytes, size):
            self._copy_part(target + at, source + at, min(size, nbytes - at))

    def _copy_part(self, target: int, source: int, nbytes: int) -> None:
        runtime, event = self._cp.cuda.runtime, self._cp.cuda.Event
        turn, self._part = self._part % 2, self._part + 1
        address = int(self._memory[turn].ctypes.data)
        with translated(self._other):
            if self._sent[turn] is not None:
                self._down.wait_event(self._sent[turn])
            kind = runtime.memcpyDeviceToHost
            runtime.memcpyAsync(address, source, nbytes, kind, self._down.ptr)
            came = self._down.record(event(disable_timing=True))
        with translated(self._device):
            self._up.wait_event(came)
            kind = runtime.memcpyHostToDevice
            runtime.memcpyAsync(target, address, nbytes, kind, self._up.ptr)
            self._sent[turn] = self._up.record(event(disable_timing=True))
