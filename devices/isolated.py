"""Any device in a process of its own, for drivers that crash or hang: ``isolated:opencl:0``.

The device does what the one inside does, with the same kernels and to the same bits, but a driver
that crashes ends its own process alone: the device is lost, the error names the signal, and runs go
on without it. A device that hangs is killed, and its memory comes back. ``crossdock.rescan()``
starts another process; work that ended three of them is refused.

These devices are used by name, as in ``compile(graph, devices=["isolated:opencl:0"])`` or
``crossdock run --device isolated:opencl:0``; ``CROSSDOCK_DEVICES=isolated:opencl:0`` (or all of
them: ``isolated``) also lists them, for "auto" and ``crossdock probe``. Their ``kind`` is that of
the device inside, whose kernels they run: they take grid launches, and array calls of this
package's ops. Machine code made in this process does not travel, so the host has no such form.

A command is a short message, and a segment of a plan is one command; tensors go through memory that
both processes share, in pieces that are copied on both sides at once.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from crossdock.devices import registry, sim
from crossdock.devices.base import Cap, DeviceInfo, Probe
from crossdock.devices.codec import decode, encode
from crossdock.devices.isolated_device import IsolatedDevice
from crossdock.devices.isolated_process import DEATHS, DEATHS_AT, START_SECONDS, Process, survived
from crossdock.runtime.errors import DeviceError, Unavailable

KIND = "isolated"
FIX = "use the device without a process of its own"
HOME_ONLY = "machine code made in this process, as that of cpu:0 is, does not travel to another"
_OPENING = "open"


def probe() -> Probe:
    """Every device that can be run in a process of its own; drivers are loaded in another one."""
    found = [_listed(kind) for kind in registry.kind_names() if kind not in ("cpu", sim.KIND)]
    found.append(_simulated())
    infos = tuple(info for probe in found for info in probe.devices)
    reasons = [f"{p.kind}: {p.reason}" for p in found if not p.devices]
    return Probe(KIND, infos, "; ".join((HOME_ONLY, *(() if infos else reasons))), FIX)


@functools.cache
def _listed(kind: str) -> Probe:
    """The devices of a kind as a process that loads its driver sees them."""
    name = f"{KIND}:{kind}"
    try:
        process = Process(name)
        try:
            found: Probe = decode(Probe, process.ask(START_SECONDS, "list", kind), name)
        finally:
            process.kill()
            process.wait(1.0)
    except DeviceError as error:
        return Probe(kind, (), str(error), FIX)
    infos = tuple(_outer(info) for info in found.devices if _travels(info))
    return replace(found, devices=infos)


def _simulated() -> Probe:
    """The simulated devices: they are registered in this process alone."""
    infos = [info for info in sim.probe().devices if sim.spec_of(info.id) is not None]
    return Probe(sim.KIND, tuple(map(_outer, infos)), "no simulated device is registered")


def _travels(info: DeviceInfo) -> bool:
    """Whether what the device runs can be sent to another process."""
    return Cap.NATIVE not in info.caps


def _outer(info: DeviceInfo) -> DeviceInfo:
    """The device with a process of its own."""
    return replace(
        info,
        id=f"{KIND}:{info.id}",
        caps=(info.caps - {Cap.HOST_MEMORY, Cap.MAP, Cap.PROFILING, Cap.REBIND}) | {Cap.EVENTS},
        fingerprint=f"{info.fingerprint}|in a process of its own",
        details={**info.details, "process": "its own"},
    )


def open_device(
    device_id: str, *, threads: int | None = None, limit: int | None = None
) -> IsolatedDevice:
    """Start a process and open a device in it; the options are those of the device's kind.

    Raises:
        Unavailable: it cannot be opened, or ended three processes that tried to.
        DeviceLost: it ended the process.
    """
    inner = device_id.removeprefix(f"{KIND}:")
    if DEATHS_AT.refused(device_id, _OPENING):
        raise Unavailable(
            f"{device_id}: {DEATHS} processes ended while they opened it; update its driver, or "
            "leave it out with CROSSDOCK_DEVICES",
            device=device_id,
        )
    given = {"threads": threads, "limit": limit}
    options = {name: value for name, value in given.items() if value is not None}
    spec = sim.spec_of(inner)
    form = None if spec is None else encode(spec)
    device = IsolatedDevice(device_id)

    def opened() -> Any:
        return device.process.ask(START_SECONDS, "open", inner, device_id, options, form)

    try:
        info, roles = survived(opened, device_id, _OPENING)
        device.begin(_outer(decode(DeviceInfo, info, inner)), roles)
    except BaseException:
        device.abandon()
        raise
    return device
