"""Feeds that are no numpy arrays: arrays of other libraries, by DLPack or the CUDA array interface.

What lies in host memory is read where it is. What lies on a device stays there, whether the session
uses it or not, and is ordered after the stream that writes it as the protocols have it (DLPack's
``__dlpack__(stream)`` and the ``stream`` of the CUDA array interface, version 3). What lies where
nothing of ours reaches is copied to the host by the library that it is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from crossdock.devices import dlpack, registry
from crossdock.devices.base import Cap, Device
from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.errors import DeviceError, Error, FeedError

HOST_KINDS = frozenset({1, 3, 11})
"""DLPack's device types whose memory the host reads: its own, and what CUDA and ROCm pinned."""
KINDS = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA", 14: "oneAPI"}
_REFUSALS = (AttributeError, BufferError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What libraries raise that cannot export an array."""


class Intake:
    """Takes the feeds of one run in; ``notes`` say what of them went to the host, and why."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        """``devices`` are those of the session, by id."""
        self._devices = devices
        self.notes: list[str] = []

    def held(self, feeds: Any) -> Any:
        """Feeds taken in by this thread: what its libraries write is ordered as it sees it."""
        if not isinstance(feeds, Mapping) or all(
            value.__class__ is np.ndarray for value in feeds.values()
        ):
            return feeds
        return {name: self.take(name, value) for name, value in feeds.items()}

    def on_host(self, feeds: Any) -> Any:
        """Feeds with those on devices copied to the host."""
        if not isinstance(feeds, Mapping):
            return feeds
        taken = {name: self.take(name, value) for name, value in feeds.items()}
        return {n: v.numpy() if isinstance(v, DeviceArray) else v for n, v in taken.items()}

    def take(self, name: str, value: Any) -> Any:
        """A numpy array, a DeviceArray on a device of the session, or what numpy has to look at.

        Raises:
            FeedError: the array cannot be had from where it is.
        """
        if isinstance(value, np.ndarray):
            return value
        if isinstance(value, DeviceArray):
            return self._own(name, value)
        try:
            if hasattr(value, "__dlpack_device__") or hasattr(value, "__cuda_array_interface__"):
                return self._foreign(name, value)
            return value
        except Error:
            raise
        except Exception as error:
            raise FeedError(f"input {name!r:.80}: {_said(value, error)}") from error

    def _own(self, name: str, value: DeviceArray) -> Any:
        try:
            value.buffer()
        except DeviceError as error:
            raise FeedError(f"input {name!r:.80}: {error}") from error
        if Cap.HOST_MEMORY in value.owner.info.caps:
            return value.view()
        self._near(name, value.owner, value.nbytes)
        return value

    def _near(self, name: str, owner: Device, nbytes: int) -> None:
        """Note where an input will pass the host since no device of the session reaches it."""
        ours = self._devices.values()
        if not any(device is owner or device.copies_from(owner) for device in ours):
            self._note(name, owner.info.id, nbytes)

    def _note(self, name: str, where: str, nbytes: int) -> None:
        self.notes.append(
            f"input {name!r:.80} ({nbytes} bytes) came to the host: it lies on {where}, which this "
            "session does not use"
        )

    def _foreign(self, name: str, value: Any) -> Any:
        if _host_kind(value):
            try:
                return dlpack.as_numpy(value)
            except _REFUSALS:
                return value  # numpy may know another way, or says what is wrong
        device = self._holder(value)
        if device is None:
            return self._fetched(name, value)
        made = DeviceArray.of(device, device.borrow(value))
        self._near(name, device, made.nbytes)
        return made

    def _holder(self, value: Any) -> Device | None:
        """The device that an array lies on: of the session, or another one like one of its."""
        for device in self._devices.values():
            if device.holds(value):
                return device
        kinds = {device.info.kind for device in self._devices.values()}
        opened = registry.opened()
        for info in (info for probe in registry.probe_all(kinds) for info in probe.devices):
            if info.id not in self._devices:
                with suppress(DeviceError):
                    found = opened.get(info.id) or registry.open_device(info.id)
                    if found.holds(value):
                        return found
        return None

    def _fetched(self, name: str, value: Any) -> Any:
        """A copy on the host by the library that the array is of."""
        where = _where(value)
        try:
            made = dlpack.as_numpy(value, device="cpu")
        except _REFUSALS as error:
            raise FeedError(
                f"input {name!r:.80} lies on {where}, which this session does not use, and "
                f"{_said(value, error)}; feed a copy on the host, or compile for that device"
            ) from error
        self._note(name, where, made.nbytes)
        return made


def _host_kind(value: Any) -> bool:
    """Whether an array says that the host reads its memory."""
    ask = getattr(value, "__dlpack_device__", None)
    if ask is None or isinstance(value, DeviceArray):
        return False
    return int(ask()[0]) in HOST_KINDS


def _where(value: Any) -> str:
    ask = getattr(value, "__dlpack_device__", None)
    if ask is None:
        return "a CUDA device"
    kind, number = ask()
    return f"{KINDS.get(int(kind), f'DLPack device type {int(kind)},')} device {number}"


def _said(value: Any, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(value).__name__} says: {text:.200}"
