"""Where a graph may run: devices, what they cost, and how they share compute."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from crossdock.devices.base import DeviceInfo
from crossdock.devices.links import link_ends, pinned_ends
from crossdock.kernels.precision import PLAIN, Permission
from crossdock.scheduler import CostModel, LinkModel

DEFAULT_LINK = LinkModel(20e-6, ((1.0, 4e9),))
"""Link of a device whose link was never measured."""
TYPICAL_BYTES = float(1 << 20)
"""Data of a typical copy between two devices, where nothing is known of the graph."""


@dataclass(frozen=True)
class Target:
    """Where a graph may run.

    ``devices`` holds every device considered, the host first; ``asked`` the ids that ops are
    placed on (the host alone runs what no asked device can). ``capacity`` says how many devices
    of a resource group may compute at once; ``broken`` why a device computes nothing, by id;
    ``watts`` what a device draws when idle and when it computes, by id, where that is known;
    ``built`` are the kernels that need no building any more; ``permission`` says what kernels may
    lose, and its ``same_bits`` allows other devices than the host only ops that make the same bits
    everywhere; ``peers`` says how devices copy from each other without the host, by (source,
    target) ids.
    """

    devices: tuple[DeviceInfo, ...]
    asked: frozenset[str]
    model: CostModel
    capacity: Mapping[str, int] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    watts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    built: frozenset[tuple[str, str, str]] = frozenset()
    permission: Permission = PLAIN
    peers: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def link(self, src: DeviceInfo, dst: DeviceInfo) -> LinkModel:
        """The measured link, or the default; within one device, a copy at its memory's speed."""
        found = self.model.link(*link_ends(src, dst))
        rates = self.model.rates(src.fingerprint) if found is None and src.id == dst.id else None
        if rates is not None:
            return LinkModel(rates.launch_s, ((1.0, rates.bandwidth / 2),))
        return found or DEFAULT_LINK

    def weights_link(self, dst: DeviceInfo) -> LinkModel:
        """The link for copies of weights, which lie in pinned memory where a device has that."""
        host = self.devices[0]
        return self.model.link(*pinned_ends(host, dst)) or self.link(host, dst)

    @cached_property
    def direct(self) -> frozenset[tuple[str, str]]:
        """The ``peers`` between which a copy of its own takes no longer than one through the host.

        Decided for ``TYPICAL_BYTES``, once a pair.
        """
        return frozenset(pair for pair in self.peers if self._is_direct(*pair))

    def _is_direct(self, src: str, dst: str) -> bool:
        ids, host = {d.id for d in self.devices}, self.devices[0]
        if not {src, dst} <= ids:
            return False
        a, b = self.info(src), self.info(dst)
        staged = self.link(a, host).seconds(TYPICAL_BYTES) + self.link(host, b).seconds(
            TYPICAL_BYTES
        )
        return self.link(a, b).seconds(TYPICAL_BYTES) <= staged

    def holding(self, devices: Collection[str]) -> Target:
        """The same, where devices hold inputs; those that were not asked for compute nothing."""
        aside = dict.fromkeys(
            set(devices) - self.asked, "holds inputs, and is not among the devices asked for"
        )
        return replace(self, broken={**aside, **self.broken})

    def measured_links(self) -> frozenset[tuple[str, str]]:
        """(source, target) ids of the links whose speed is known."""
        return frozenset(
            (a.id, b.id)
            for a in self.devices
            for b in self.devices
            if self.model.link(*link_ends(a, b)) is not None
        )

    def info(self, name: str) -> DeviceInfo:
        """A device by id."""
        return next(d for d in self.devices if d.id == name)
