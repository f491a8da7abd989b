"""The machine profile: what a probe found and measured, as plain data with a JSON form.

A profile names no host. It can be saved, read on another machine, edited, and planned for. All
times are in seconds, sizes in bytes, rates in operations or bytes per second.
"""

from __future__ import annotations

import enum
import itertools
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from crossdock.devices.base import DeviceInfo
from crossdock.devices.codec import Positive, PositiveInt, decode, encode, refuse, since
from crossdock.runtime.errors import LoadError

SCHEMA = 1
"""Version of the JSON form; a profile of another version is refused."""


class Status(enum.StrEnum):
    """Whether a device proved itself."""

    PASS = "PASS"  # every known-answer test came out right
    FAIL = "FAIL"  # it opened, or should have, and then failed or computed wrongly
    ABSENT = "ABSENT"  # there is no such device, or nothing to reach it with


@dataclass(frozen=True, slots=True)
class Measured:
    """A robust summary of repeated measurements: median, median absolute deviation, count."""

    median: Positive
    mad: float
    samples: PositiveInt

    @classmethod
    def of(cls, values: Iterable[float]) -> Measured:
        """Summarise at least one value."""
        found = list(values)
        middle = statistics.median(found)
        return cls(middle, statistics.median(abs(v - middle) for v in found), len(found))


@dataclass(frozen=True, slots=True)
class SizedRate:
    """A rate at one size."""

    nbytes: PositiveInt
    bytes_per_s: Measured


@dataclass(frozen=True, slots=True)
class Check:
    """A known-answer test: the ``detail`` says what came out where it was wrong, or was skipped."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Rates:
    """What a device sustains.

    Attributes:
        flops: operations per second by "op_class:dtype"; the classes are ``fma`` (multiply-adds,
            registers where the device's language can, else first-level cache), ``gemm`` (a square
            matrix product) and ``elementwise`` (``3 * x + y`` over arrays of 1 MiB, launch and
            all).
        bandwidth: copy of ``nbytes`` bytes within the device, read and written bytes both counted.
        launch_s: one more tiny kernel in a command buffer of many, by step kind: ``grid``,
            ``native``, ``array``.
        launch_alone_s: one tiny kernel, from the call to its completion seen by the host.
        allocation_s: allocating and releasing one mebibyte.
    """

    flops: Mapping[str, Measured]
    bandwidth: tuple[SizedRate, ...]
    launch_s: Mapping[str, Measured]
    launch_alone_s: Measured
    allocation_s: Measured

    def flops_by_class(self) -> dict[str, float]:
        """Operations per second by "op_class:dtype", medians."""
        return {key: rate.median for key, rate in self.flops.items()}

    def launch(self) -> float:
        """Seconds to launch a kernel in a command buffer, of the slowest step kind."""
        return max((found.median for found in self.launch_s.values()), default=0.0)

    def bandwidth_at(self, nbytes: float) -> float:
        """Bytes per second for ``nbytes`` bytes in motion, read and written together.

        The smallest measured size that holds them; the largest where none does.
        """
        for point in self.bandwidth:
            if 2 * point.nbytes >= nbytes:
                return point.bytes_per_s.median
        return self.bandwidth[-1].bytes_per_s.median


@dataclass(frozen=True, slots=True)
class Watts:
    """What a device draws when idle and when it computes, typed in or read from a meter."""

    idle: float
    active: float


@dataclass(frozen=True)
class DeviceProfile:
    """One device, or a kind of device that is not here.

    ``id`` is the device's, or the kind's name where status is ABSENT and ``info`` is None.
    ``rates`` is None where nothing was measured: ABSENT, FAIL, or a device on a virtual clock.
    ``watts`` are not measured: they may be added to the file, for planning by energy.
    """

    id: str
    kind: str
    status: Status
    reason: str = ""
    fix: str = ""
    info: DeviceInfo | None = None
    checks: tuple[Check, ...] = ()
    rates: Rates | None = None
    watts: Watts | None = field(default=None, metadata={"later": True})


@dataclass(frozen=True)
class LinkProfile:
    """Transfers from ``src`` to ``dst``.

    Attributes:
        route: devices that the bytes pass, ends included; longer than two where they are staged.
        latency_s: a transfer of a few bytes, from the call to its completion seen by the host.
        points: bytes over seconds by size, ascending, the latency included in the seconds.
        duplex: seconds for this direction and then the other, over the seconds for both at once:
            1 where they wait for each other, 2 where they do not. None for staged routes.
        zero_copy: the two share memory, and a buffer can be mapped instead of copied.
        how: how one device copies from another without the host; empty with the host at an end.
    """

    src: str
    dst: str
    route: tuple[str, ...]
    latency_s: Measured
    points: tuple[SizedRate, ...]
    duplex: Measured | None
    zero_copy: bool
    how: str = since("")

    def pairs(self) -> tuple[tuple[int, float], ...]:
        """The points as (nbytes, bytes per second), medians."""
        return tuple((p.nbytes, p.bytes_per_s.median) for p in self.points)

    def seconds(self, nbytes: float) -> float:
        """Measured seconds for ``nbytes``, between the measured sizes by straight lines."""
        ends = [(0.0, self.latency_s.median)]
        ends += [(float(n), max(n / rate, self.latency_s.median)) for n, rate in self.pairs()]
        for (n0, t0), (n1, t1) in itertools.pairwise(ends):
            if nbytes <= n1:
                return t0 + (t1 - t0) * (nbytes - n0) / (n1 - n0)
        return ends[-1][1] * nbytes / ends[-1][0] if ends[-1][0] else ends[-1][1]


@dataclass(frozen=True)
class Machine:
    """Everything a probe learned about a machine.

    Attributes:
        schema: version of the form.
        fingerprint: hash of processor, cores and devices; keys the cache. No host name goes in.
        cpu: processor model.
        cores: processor cores this process may use.
        versions: of Python, numpy, crossdock, and each device's driver by device id.
        created: ISO 8601 date and time, UTC.
        quick: measured with few samples and sizes.
        seconds: how long the probe took.
        devices: every device found, then the kinds that are absent.
        links: ordered pairs of devices that passed.
        origin: "measured", or where the figures were typed in from and with which assumptions.
    """

    fingerprint: str
    cpu: str
    cores: int
    versions: Mapping[str, str]
    created: str
    quick: bool
    seconds: float
    devices: tuple[DeviceProfile, ...] = ()
    links: tuple[LinkProfile, ...] = ()
    schema: int = field(default=SCHEMA)
    origin: str = since("measured")

    @property
    def passed(self) -> tuple[DeviceProfile, ...]:
        """The devices that work."""
        return tuple(d for d in self.devices if d.status is Status.PASS)

    def device(self, id: str) -> DeviceProfile | None:  # noqa: A002
        """The profile of a device by id, or None."""
        return next((d for d in self.devices if d.id == id), None)

    def link(self, src: str, dst: str) -> LinkProfile | None:
        """The link from one device to another, or None."""
        return next((k for k in self.links if (k.src, k.dst) == (src, dst)), None)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; ``from_json`` gives the same machine back."""
        form: dict[str, Any] = encode(self)
        return form

    @classmethod
    def from_json(cls, form: Any) -> Machine:
        """Read a profile from what ``json.loads`` gave.

        Raises:
            LoadError: it is no profile, of another schema version, or a field is wrong; names the
                field.
        """
        if not isinstance(form, dict):
            raise refuse("machine", "an object", form)
        if form.get("schema") != SCHEMA:
            raise LoadError(
                f"machine.schema: is {form.get('schema')!r}, this crossdock reads {SCHEMA}; make "
                "the profile anew with `crossdock probe --json FILE`"
            )
        machine: Machine = decode(cls, form, "machine")
        _check(machine)
        return machine


def _check(machine: Machine) -> None:
    """Verify what single fields cannot say; raises LoadError naming the field."""
    try:
        datetime.fromisoformat(machine.created)
    except ValueError:
        raise refuse("machine.created", "an ISO 8601 date", machine.created) from None
    ids: set[str] = set()
    for i, device in enumerate(machine.devices):
        _check_device(device, f"machine.devices[{i}]", ids)
    pairs: set[tuple[str, str]] = set()
    for i, link in enumerate(machine.links):
        _check_link(link, f"machine.links[{i}]", ids, pairs)


def _check_device(device: DeviceProfile, path: str, ids: set[str]) -> None:
    if device.id in ids:
        raise refuse(f"{path}.id", "the only one of its name", device.id)
    if device.status is not Status.ABSENT:
        ids.add(device.id)
    if device.info is not None and (device.info.id, device.info.kind) != (device.id, device.kind):
        raise refuse(f"{path}.info.id", f"{device.id!r} of kind {device.kind!r}", device.info.id)
    if device.status is Status.PASS and device.info is None:
        raise refuse(f"{path}.info", "given for a device that passed")
    if device.rates is not None:
        _check_sizes(device.rates.bandwidth, f"{path}.rates.bandwidth")


def _check_link(link: LinkProfile, path: str, ids: set[str], pairs: set[tuple[str, str]]) -> None:
    for name, end in (("src", link.src), ("dst", link.dst)):
        if end not in ids:
            raise refuse(f"{path}.{name}", f"one of the devices {', '.join(sorted(ids))}", end)
    if len(link.route) < 2 or (link.route[0], link.route[-1]) != (link.src, link.dst):
        raise refuse(f"{path}.route", f"from {link.src} to {link.dst}", list(link.route))
    if (link.src, link.dst) in pairs:
        raise refuse(path, f"the only link from {link.src} to {link.dst}")
    pairs.add((link.src, link.dst))
    _check_sizes(link.points, f"{path}.points")


def _check_sizes(points: tuple[SizedRate, ...], path: str) -> None:
    sizes = [p.nbytes for p in points]
    if not sizes or sizes != sorted(set(sizes)):
        raise refuse(path, "a list of at least one size, ascending", sizes)
