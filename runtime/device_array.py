"""Arrays that stay on a device: outputs that a caller asks to keep there, and feeds of other runs.

They are shared with other libraries, without a copy, as devices can: by DLPack (the Python side of
the array API standard, 2024.12) on the host and on CUDA devices, and there by the CUDA array
interface, too (version 3). What an array holds is complete from the start, so that no stream of
whoever takes it has to wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from crossdock.devices.base import SLOWEST, Borrowed, Buffer, Cap, Device, Event, Queue
from crossdock.runtime import settings
from crossdock.runtime.errors import DeviceError, PlanError
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy


class DeviceArray:
    """An array in a device's memory, its own: nothing overwrites it.

    The memory counts against the device's budget. It is freed by ``close`` or with the last
    reference, and with the last array of another library that shares it.
    """

    def __init__(
        self, owner: Device, buffer: Buffer, spec: TensorSpec, ready: Event | None = None
    ) -> None:
        """``ready`` says when another library has written what lies in the buffer."""
        self._owner, self._spec = owner, spec
        self._buffer: Buffer | None = buffer
        self._ready = ready
        self._lent = False

    @classmethod
    def empty(cls, owner: Device, spec: TensorSpec, label: str) -> DeviceArray:
        """New memory on a device; raises OutOfMemory."""
        return cls(owner, owner.allocate(max(1, spec.nbytes), label), spec)

    @classmethod
    def of(cls, owner: Device, lent: Borrowed) -> DeviceArray:
        """Memory of another library, while a run reads it."""
        return cls(owner, lent.buffer, lent.spec, lent.ready)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return self._spec.dims

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type, as numpy names it."""
        return to_numpy(self._spec.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._spec.rank

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._spec.size

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._spec.nbytes

    @property
    def device(self) -> str:
        """Id of the device that it lies on."""
        return self._owner.info.id

    @property
    def closed(self) -> bool:
        """Whether its memory has been given up."""
        return self._buffer is None

    @property
    def owner(self) -> Device:
        """The opened device that it lies on."""
        return self._owner

    @property
    def spec(self) -> TensorSpec:
        """Element type and shape."""
        return self._spec

    @property
    def ready(self) -> Sequence[Event]:
        """What work that reads it has to wait for."""
        return () if self._ready is None else (self._ready,)

    def buffer(self) -> Buffer:
        """Its memory.

        Raises:
            DeviceError: it is closed, or the device is lost.
        """
        if self._buffer is None:
            raise DeviceError(f"an array of {self.device} is used after its close", device="")
        if self._owner.gone:
            raise DeviceError(
                f"{self!r} is gone with the device ({self._owner.gone}); make it again",
                device=self.device,
            )
        return self._buffer

    def numpy(self) -> Array:
        """A copy on the host.

        Raises:
            DeviceError: it is closed, or the device fails.
        """
        made = np.empty(self.shape, self.dtype)
        if Cap.HOST_MEMORY in self._owner.info.caps:
            np.copyto(made, self.view())
        elif made.nbytes:
            self._owner.call("download", self._reader(made), self._patience())
        return made

    def view(self) -> Array:
        """The memory itself as numpy's array, on a device whose memory is the host's."""
        return self.buffer().array(self._spec)

    def _reader(self, target: Array) -> Any:
        buffer, waits = self.buffer(), self.ready

        def fetch(queue: Queue) -> None:
            event = queue.read(buffer, target.reshape(-1).view(np.uint8), waits)
            if event is not None:
                queue.flush()
                event.wait()

        return fetch

    def _patience(self) -> float:
        return settings.watchdog() + self.nbytes / SLOWEST

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """For ``numpy.asarray``: the memory itself where it is the host's, else a copy there."""
        here = Cap.HOST_MEMORY in self._owner.info.caps
        if copy is False and not here:
            raise ValueError(f"{self!r} is not in host memory: numpy has to copy it")
        made = self.view() if here and not copy else self.numpy()
        return made if dtype is None else made.astype(dtype, copy=False)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule that shares the memory.

        Raises:
            BufferError: the device's memory, or the element type, cannot be shared; the reason.
        """
        options = {"max_version": max_version, "dl_device": dl_device, "copy": copy}
        given = {name: value for name, value in options.items() if value is not None}
        return self._shared().__dlpack__(stream=stream, **given)

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device type and number.

        Raises:
            BufferError: the device's memory cannot be shared; the reason.
        """
        kind, number = self._shared().__dlpack_device__()
        return int(kind), int(number)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The CUDA array interface; devices of other kinds have none.

        ``stream`` is None: there is nothing to wait for.
        """
        try:
            found = getattr(self._shared(), "__cuda_array_interface__", None)
        except BufferError as error:
            raise AttributeError(str(error)) from error
        if found is None:
            raise AttributeError(f"{self.device} has no CUDA array interface")
        return {**found, "stream": None}

    def _shared(self) -> Any:
        buffer = self.buffer()
        made = self._owner.lend(buffer, self._spec)
        self._lent = True
        return made

    def close(self) -> None:
        """Give the memory up; later use is an error. Arrays of others that share it keep it."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None and not self._lent and not self._owner.gone:
            buffer.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DeviceArray({self._spec} on {self.device})"


def hosted(host: Device, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs that a run has made on the host, as arrays that stay there; raises OutOfMemory.

    What is no array of numbers stays as it is.
    """
    return {name: _hosted(host, name, value) for name, value in outputs.items()}


def _hosted(host: Device, name: str, value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OSUT":
        return value
    made = DeviceArray.empty(host, TensorSpec.of(value), f"output {name!r:.80}")
    np.copyto(made.view(), value)
    return made


class HostFeeds(Mapping[str, Array]):
    """Feeds as the host has them: those on devices are copied when they are asked for."""

    def __init__(self, feeds: Mapping[str, Array | DeviceArray]) -> None:
        self._feeds = feeds

    def __getitem__(self, name: str) -> Array:
        """The input; raises PlanError where it was on a device that is lost."""
        found = self._feeds[name]
        if not isinstance(found, DeviceArray):
            return found
        try:
            return found.numpy()
        except DeviceError as error:
            raise PlanError(f"input {name!r:.80} was on {found.device} alone: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)
