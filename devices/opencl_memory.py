"""OpenCL events and buffers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from crossdock.devices.base import Buffer, Event
from crossdock.runtime.errors import DeviceError

if TYPE_CHECKING:
    from crossdock.devices.opencl import OpenCLDevice


class ClEvent(Event):
    """Completion of an OpenCL command; keeps alive what the command uses.

    ``parts`` are the events of the commands that it ends with, where the driver lets threads that
    wait for them work.
    """

    __slots__ = ("device", "event", "keep", "parts")

    def __init__(
        self, device: OpenCLDevice, event: Any, keep: object = None, parts: Iterable[Any] = ()
    ) -> None:
        self.device = device
        self.event = event
        self.keep = keep
        self.parts = deque(parts)

    def wait(self) -> None:
        """Block until the command is done, without the interpreter lock."""
        try:
            self.event.wait()
        except self.device.cl.Error as error:
            raise self.device.failure(error) from error

    def done(self) -> bool:
        """True when the command is done or failed (a negative status)."""
        return int(self.event.command_execution_status) <= 0

    def pause(self, seconds: float) -> None:
        """Work at the next part that is not done, or sleep."""
        while self.parts:
            part = self.parts.popleft()
            if int(part.command_execution_status) > 0:
                with suppress(self.device.cl.Error):  # ``wait`` raises what has failed
                    part.wait()
                return
        time.sleep(seconds)

    def span(self) -> tuple[float, float] | None:
        """Start and end in seconds on the device's clock."""
        if int(self.event.command_execution_status) != 0:
            return None
        return self.event.profile.start * 1e-9, self.event.profile.end * 1e-9


class ClBuffer(Buffer):
    """Device memory, or a window of it (an OpenCL sub-buffer, which keeps the whole alive)."""

    def __init__(
        self,
        device: OpenCLDevice,
        memory: Any,
        nbytes: int,
        root: ClBuffer | None = None,
        offset: int = 0,
    ) -> None:
        self.device: OpenCLDevice = device
        self.nbytes = nbytes
        self._root = root  # None in the root itself: a cycle would delay freeing
        self._memory = memory
        self._offset = offset

    @property
    def root(self) -> ClBuffer:
        """The buffer that this one is a window of, or itself."""
        return self if self._root is None else self._root

    @property
    def memory(self) -> Any:
        """The memory object. Drivers crash on released memory, so that asking for it raises."""
        if self.released or self.root.released:
            raise DeviceError(f"{self.device.info.id}: a buffer is used after its release")
        return self._memory

    @property
    def released(self) -> bool:
        """True when the memory has been given back."""
        return self._memory is None

    def view(self, offset: int, nbytes: int) -> ClBuffer:
        """A window into this buffer."""
        info = self.device.info
        if offset < 0 or offset % info.alignment or offset + nbytes > self.nbytes:
            raise DeviceError(
                f"{info.id}: no view of {nbytes} bytes at {offset} in a buffer of {self.nbytes}; "
                f"offsets are multiples of {info.alignment}"
            )
        at = self._offset + offset if nbytes else 0
        memory = self.root.memory.get_sub_region(at, max(nbytes, 1))
        return ClBuffer(self.device, memory, nbytes, self.root, at)

    def release(self) -> None:
        """Give the memory back; of a window, only the window."""
        memory, self._memory = self._memory, None
        if memory is not None and self._root is None:
            self.device.freed.append(self.nbytes)
            memory.release()

    def __del__(self) -> None:
        if self._memory is not None and self._root is None:
            self.device.freed.append(self.nbytes)
