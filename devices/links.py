"""What links between devices are kept under."""

from __future__ import annotations

from crossdock.devices.base import DeviceInfo
from crossdock.devices.registry import HOST


def pinned_ends(host: DeviceInfo, dst: DeviceInfo) -> tuple[str, str]:
    """What the link from memory that a device has had pinned on the host is kept under."""
    return f"{host.fingerprint}|pinned", dst.fingerprint


def link_ends(src: DeviceInfo, dst: DeviceInfo) -> tuple[str, str]:
    """What a link is kept under: the fingerprints of its ends.

    Two cards of one model have one fingerprint, and what is between two cards hangs on which they
    are: a link that does not end at the host has the cards' identities in its name.
    """
    if HOST in (src.id, dst.id):
        return src.fingerprint, dst.fingerprint
    return f"{src.fingerprint}|{src.physical_id}", f"{dst.fingerprint}|{dst.physical_id}"
