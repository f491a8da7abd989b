"""The device kinds there are, and the devices that have been opened.

A *kind* is a module or object that fulfils ``DeviceKind``. Built-in ones are imported only when
they are asked for; others come in through the entry-point group ``crossdock.devices``, whose entry
names are kind names. Devices that others' drivers run, such as ``isolated:opencl:0``, are looked
for only where ``CROSSDOCK_DEVICES`` names them or their kind, and opened by their id.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from crossdock.devices.base import Device, DeviceInfo, Probe
from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime import settings
from crossdock.runtime.errors import DeviceLost, Error, Unavailable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "crossdock.devices"
"""Entry-point group of third-party device kinds."""

BUILT_IN = ("cpu", "cuda", "opencl", "sim")
BY_NAME = ("isolated",)
"""Built-in kinds whose devices are those of the others once more."""
HOST = "cpu:0"
FIX = "call crossdock.rescan() once it works again"


class DeviceKind(Protocol):
    """What a device kind offers, as a module or an object.

    ``probe`` lists the kind's devices, or says why there are none and what to install; it is cheap
    when called again. ``open_device`` takes an id that ``probe`` listed, and may take more options
    than ``threads``; it raises Unavailable.
    """

    KIND: str

    def probe(self) -> Probe:
        """List the devices of this kind."""
        ...

    def open_device(self, device_id: str, /, *, threads: int | None = None) -> Device:
        """Open a device."""
        ...


_LOCK = threading.RLock()
_OPEN: dict[tuple[str, int | None, int | None], Device] = {}
_LOST: dict[str, str] = {}
"""Devices that failed for good, and why, by id."""


def kind_names() -> list[str]:
    """Names of all kinds: the processor's first, built-in ones, then third parties' by name."""
    return [*BUILT_IN, *sorted(_entry_points().keys() - {*BUILT_IN, *BY_NAME})]


def kinds_for(ids: Iterable[str]) -> list[str]:
    """The kinds to look for: all, of those ``BY_NAME`` the ones that ids or the setting name."""
    named = {name.partition(":")[0] for name in (*ids, *(settings.wanted_devices() or ()))}
    return [*kind_names(), *(kind for kind in BY_NAME if kind in named)]


def probe_all(kinds: Iterable[str] | None = None) -> list[Probe]:
    """Probe every kind, or the given ones. Never raises: a kind that fails says why.

    ``CROSSDOCK_DEVICES`` limits what is looked for; the processor is always there. A lost device is
    not listed.
    """
    wanted = settings.wanted_devices()
    kinds = kinds_for(()) if kinds is None else kinds
    found = [_probe(kind, wanted) for kind in kinds]
    return [_without_lost(probe) for probe in found] if _LOST else found


def _without_lost(probe: Probe) -> Probe:
    gone = [info.id for info in probe.devices if _is_out(info.id)]
    if not gone:
        return probe
    left = tuple(info for info in probe.devices if info.id not in gone)
    return Probe(probe.kind, left, "; ".join(map(_why_lost, gone)), FIX)


def _is_out(device_id: str) -> bool:
    """Whether a device is lost and of no use; the host's memory always is of use."""
    return device_id in _LOST and device_id != HOST


def _why_lost(device_id: str) -> str:
    return f"{device_id} was lost ({_LOST[device_id]})"


def lose(device: Device, why: str) -> None:
    """Count an open device as lost: it is not called any more, and not opened until ``rescan``.

    What is open of it is dropped without being closed, which could take for ever. Of the host only
    the computing is lost: its memory goes on feeding the others. One that was lost before stays so,
    whatever was opened in its place since.
    """
    name = device.info.id
    with _LOCK:
        if device.gone:
            return
        if name == HOST:
            _LOST.setdefault(name, why)
            return
        gone = [device]
        opened = {key: found for key, found in _OPEN.items() if key[0] == name}
        if any(found is device for found in opened.values()):
            _LOST[name] = why  # before it is gone: who sees that looks here, and takes no lock
            gone += opened.values()
            for key in opened:
                del _OPEN[key]
        for found in gone:
            found.gone = why
    for found in {id(found): found for found in gone}.values():
        found.abandon()
        found.retire()


def bury(thing: object) -> None:
    """Keep something for as long as the process lives, its end included.

    What a device that hangs may still write to must not be freed, and drivers wait for what is
    under way when they are asked to forget it.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def lost() -> Mapping[str, str]:
    """The devices that are lost, and why, by id; changes as devices are lost and found again."""
    return _LOST


def rescan() -> list[str]:
    """Let lost devices be opened again, as after a driver was reset; returns their ids.

    Sessions that lost one plan with it again from their next run on.
    """
    with _LOCK:
        found = list(_LOST)
        _LOST.clear()
        listeners = list(_LISTENERS)
    for listener in listeners:
        listener.rescanned()
    return found


class Listener(Protocol):
    """Who wants to know that lost devices may be opened again."""

    def rescanned(self) -> None:
        """Called by ``rescan``, in its thread."""
        ...


_LISTENERS: weakref.WeakSet[Any] = weakref.WeakSet()


def listen(listener: Listener) -> None:
    """Tell a listener of every ``rescan`` for as long as it lives."""
    with _LOCK:
        _LISTENERS.add(listener)


def is_there(device_id: str) -> bool:
    """Whether a device of this id can be opened, be it one that ``devices`` does not list."""
    if device_id.partition(":")[0] in BY_NAME:
        infos = _without_lost(_probe(device_id.partition(":")[0], None)).devices
    else:
        infos = tuple(devices())
    return any(info.id == device_id for info in infos)


def devices() -> list[DeviceInfo]:
    """Every device that can be opened, the processor first."""
    return [info for probe in probe_all() for info in probe.devices]


def open_device(device_id: str, threads: int | None = None, limit: int | None = None) -> Device:
    """Open a device, or return the one already open with these options.

    ``threads`` confines a processor to so many cores; ``limit`` is a budget in bytes.

    Raises:
        Unavailable: with the reason and the fix that the kind's probe gave.
        DeviceLost: it failed before.
        ExecutionError: this process was forked when devices were open.
    """
    key = (device_id, threads, limit)
    if JOBS.forked:
        raise no_more(f"opening {device_id}")
    with _LOCK:
        if _is_out(device_id):
            raise DeviceLost(f"{_why_lost(device_id)}; {FIX}", device=device_id)
        found = _OPEN.get(key)
        if found is None:
            found = _open(device_id, {"threads": threads, "limit": limit})
            _OPEN[key] = found
        return found


def opened() -> dict[str, Device]:
    """The devices that are open, by id; of those opened with several options any."""
    with _LOCK:
        return {key[0]: device for key, device in _OPEN.items()}


def _forked() -> None:
    """In a child: what was open before is unusable, and so are locks that a thread held."""
    if _OPEN:
        JOBS.fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def close_all() -> None:
    """Close every open device; they can be opened again."""
    with _LOCK:
        opened = list(_OPEN.values())
        _OPEN.clear()
    for device in opened:
        device.close()


def _open(device_id: str, options: dict[str, int | None]) -> Device:
    kind = device_id.partition(":")[0]
    probe = _probe(kind, None)
    if device_id not in {info.id for info in probe.devices}:
        raise Unavailable(_why_not(device_id, probe))
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return cast(Any, _kind(kind)).open_device(device_id, **given)  # type: ignore[no-any-return]
    except Error:
        raise
    except Exception as error:  # drivers and third parties raise anything
        raise Unavailable(f"{device_id} cannot be opened: {_said(error)}") from error


def _why_not(device_id: str, probe: Probe) -> str:
    there = ", ".join(dict.fromkeys(i.id for i in (*devices(), *probe.devices))) or "none"
    why = f": {probe.reason}" if probe.reason else ""
    fix = f"; {probe.fix}" if probe.fix else ""
    return f"no device {device_id!r}{why}{fix} (devices here: {there})"


def _probe(kind: str, wanted: frozenset[str] | None) -> Probe:
    named = None if wanted is None else {name.partition(":")[0] for name in wanted}
    if named is not None and kind not in named | {"cpu"}:
        return Probe(kind, (), "left out by CROSSDOCK_DEVICES", "add it there, or unset it")
    try:
        found = _kind(kind).probe()
    except Error as error:
        return Probe(kind, (), str(error))
    except Exception as error:  # noqa: BLE001 - drivers and third parties raise anything
        return Probe(kind, (), f"its probe failed: {_said(error)}")
    if wanted is None or kind == "cpu" or kind in wanted:
        return found
    kept = tuple(info for info in found.devices if info.id in wanted)
    return Probe(kind, kept, found.reason, found.fix)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def _kind(name: str) -> DeviceKind:
    if name in BUILT_IN or name in BY_NAME:
        return cast(DeviceKind, importlib.import_module(f"crossdock.devices.{name}"))
    entry = _entry_points().get(name)
    if entry is None:
        raise Unavailable(f"there is no device kind {name!r}: there are {', '.join(kind_names())}")
    return cast(DeviceKind, entry.load())


def _entry_points() -> dict[str, EntryPoint]:
    import importlib.metadata  # takes long to load, and built-in kinds need it not

    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
