"""Arrays that stay on a device: outputs that a caller asks to keep there, and feeds of other runs.

They are shared with other libraries, without a copy, as devices can: by DLPack (the Python side of
the array API standard, 2024.12) on the host and on CUDA devices, and there by the CUDA array
interface, too (version 3). What an array holds is complete from the start, so that no stream of
whoever takes it has to wait.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from crossdock.devices.base import SLOWEST, Borrowed, Buffer, Cap, Device, Event, Queue
from crossdock.runtime import settings
from crossdock.runtime.errors import DeviceError, MemoryBudget, PlanError
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy


class Ledger:
    """Bytes that a session's outputs hold on devices, by id, against what it may take there."""

    def __init__(self, limits: Mapping[str, int | float]) -> None:
        self._limits = limits
        self._lock = threading.RLock()  # a finalizer may run inside of it
        self.held: dict[str, int] = {}

    def bounds(self, device: str) -> bool:
        """Whether there is a limit on a device: without one nothing is counted."""
        return device in self._limits

    def take(self, device: str, nbytes: int, planned: int, what: str) -> None:
        """Count bytes beside those ``planned`` for a run.

        Raises:
            MemoryBudget: they are more than the session may take.
        """
        with self._lock:
            held = self.held.get(device, 0)
            free = self._limits.get(device, math.inf) - planned - held
            if nbytes > free:
                raise MemoryBudget(
                    f"{what} does not fit: {nbytes} bytes wanted on {device}, {max(0, int(free))} "
                    f"of the {int(self._limits[device])} of constraints.memory are free, with "
                    f"{planned} for a run and {held} in outputs kept there; close some of them, or "
                    "run without outputs='device'"
                )
            self.held[device] = held + nbytes

    def give(self, device: str, nbytes: int) -> None:
        """Count bytes as given back."""
        with self._lock:
            self.held[device] -= nbytes


_CLAIMING = threading.Lock()


class DeviceArray:
    """An array in a device's memory, its own: nothing overwrites it.

    The memory counts against the device's budget. It is freed by ``close`` or with the last
    reference, and with the last array of another library that shares it.
    """

    def __init__(
        self,
        owner: Device,
        buffer: Buffer,
        spec: TensorSpec,
        ready: Event | None = None,
        counted: Ledger | None = None,
    ) -> None:
        """``ready`` says when another library has written what lies in the buffer.

        ``counted`` has its bytes among those of a session's outputs.
        """
        self._owner, self._spec = owner, spec
        self._buffer: Buffer | None = buffer
        self._ready = ready
        self._lent = self._claimed = False
        self._counted = counted
        self._ended = "its close"

    def __del__(self) -> None:
        if self._counted is not None:
            self._uncount()

    def _uncount(self) -> None:
        ledger, self._counted = self._counted, None
        if ledger is not None:
            ledger.give(self.device, max(1, self._spec.nbytes))

    @classmethod
    def of(cls, owner: Device, lent: Borrowed) -> DeviceArray:
        """Memory of another library, while a run reads it."""
        return cls(owner, lent.buffer, lent.spec, lent.ready)

    @classmethod
    def put(cls, owner: Device, array: Array, label: str = "") -> DeviceArray:
        """A copy of a numpy array on an opened device; ``label`` names it in errors.

        Raises:
            OutOfMemory: the device has no room for it.
            DeviceError: the device fails.
        """
        return cls(owner, owner.upload(array, label), TensorSpec.of(array))

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
        """Its memory, for a new use.

        Raises:
            DeviceError: it is closed, or donated to a run, or the device is lost.
        """
        if self._claimed:
            raise DeviceError(f"{self!r} is donated to a run that is under way", device="")
        return self.memory()

    def memory(self) -> Buffer:
        """Its memory, also for the run that it is donated to.

        Raises:
            DeviceError: it is closed, or the device is lost.
        """
        if self._buffer is None:
            raise DeviceError(f"an array of {self.device} is used after {self._ended}", device="")
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
        return self.memory().array(self._spec)

    def here(self) -> Array | None:
        """The memory itself where it is the host's and still there; None elsewhere."""
        owner = self._owner
        if self._buffer is None or self._claimed or owner.gone:
            return None
        if Cap.HOST_MEMORY not in owner.info.caps:
            return None
        return self._buffer.array(self._spec)

    def _reader(self, target: Array) -> Any:
        buffer, waits = self.memory(), self.ready

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
        self._lent |= here and not copy
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
        self._uncount()
        if buffer is not None and not self._lent and not self._owner.gone:
            buffer.release()

    @property
    def lent(self) -> bool:
        """Whether others may share its memory."""
        return self._lent

    def claim(self) -> None:
        """Let one run alone use it, which it is donated to.

        Raises:
            DeviceError: another one has it, or it is closed, or the device is lost.
        """
        with _CLAIMING:
            self.buffer()
            self._claimed = True

    def unclaim(self) -> None:
        """Let others use it again: the run has not written to it."""
        self._claimed = False

    def hand_on(self, other: DeviceArray, why: str) -> None:
        """Leave the memory, and what counts it, to an array that shares it; this one is closed."""
        other._counted, self._counted = self._counted, None
        self.forgo(why)

    def forgo(self, why: str) -> None:
        """Be closed, and leave the memory to whoever else has it."""
        self._buffer, self._ended, self._claimed = None, why, False
        self._uncount()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DeviceArray({self._spec} on {self.device})"


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
