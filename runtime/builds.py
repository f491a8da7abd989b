"""What kernels take to build before they first run, kept in the cost model beside their samples.

A build is all that a kernel's first run in a process takes beyond a later one: compiling its text
or loading what a cache holds of it, and what the driver leaves to the first launch. The newest
build that was seen counts: it says whether the caches are warm.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from crossdock.scheduler import CostModel

Mark = tuple[str, str, str]
"""Fingerprint, kernel and key."""

_LOCK = threading.Lock()
_DONE: set[Mark] = set()


@dataclass(frozen=True)
class Build:
    """Seconds, and where they are from.

    That is "measured", "fitted" from the kernel's other shapes, "built" already in this process,
    or "unknown", which counts as none.
    """

    seconds: float
    source: str


def note(mark: Mark) -> bool:
    """Remember that a kernel is built in this process; whether it was not yet."""
    with _LOCK:
        new = mark not in _DONE
        _DONE.add(mark)
        return new


def done() -> frozenset[Mark]:
    """The kernels built in this process."""
    with _LOCK:
        return frozenset(_DONE)


def record(model: CostModel, mark: Mark, seconds: float) -> None:
    """Keep what a build took."""
    fingerprint, kernel, key = mark
    model.record(fingerprint, _variant(kernel), key, max(seconds, 1e-9))


def build_of(model: CostModel, mark: Mark, built: frozenset[Mark] = frozenset()) -> Build:
    """What a kernel takes to build, given those that are built already."""
    if mark in built:
        return Build(0.0, "built")
    fingerprint, kernel, key = mark
    seen = model.samples(fingerprint, _variant(kernel), key)
    if seen:
        return Build(seen[-1], "measured")
    others = _newest(model, fingerprint, kernel)
    if others:
        return Build(statistics.median(others.values()), "fitted")
    return Build(0.0, "unknown")


def _newest(model: CostModel, fingerprint: str, kernel: str) -> Mapping[str, float]:
    shapes = model.content.kernels.get((fingerprint, _variant(kernel)), {})
    return {key: found.seconds[-1] for key, found in shapes.items() if found.seconds}


def _variant(kernel: str) -> str:
    """What the cost model keeps builds of a kernel by."""
    return f"build {kernel}"
