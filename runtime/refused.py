"""The kernels that did not build in this process: they are not chosen again.

Nothing of it is kept for other processes: there a driver may be another, or well again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

Mark = tuple[str, str, str]
"""Fingerprint of the device, kernel, and key of the op."""


@dataclass(frozen=True)
class Refused:
    """A kernel that did not build on a device, and what its compiler said."""

    device: str
    kernel: str
    reason: str
    log: str


_LOCK = threading.Lock()
_REFUSED: dict[Mark, Refused] = {}


def refuse(mark: Mark, found: Refused) -> None:
    """Remember that a kernel does not build."""
    with _LOCK:
        _REFUSED[mark] = found


def refused() -> Mapping[Mark, Refused]:
    """All of them; changes with every one that is found."""
    return _REFUSED


def forget() -> None:
    """Let all of them be tried again."""
    with _LOCK:
        _REFUSED.clear()
