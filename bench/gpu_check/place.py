"""Where a section runs: the card, or in a rehearsal the processor and the fake cupy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crossdock.devices import registry
from crossdock.devices.base import Device

CARD = "cuda:0"
HOST = "cpu:0"


@dataclass
class Place:
    """What a section is given.

    Attributes:
        device: the id of the device under test.
        rehearsal: sizes are small and figures mean nothing; the card may be a fake one.
        seconds: how long the section may take in all.
    """

    device: str = CARD
    rehearsal: bool = False
    seconds: float = 60.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left of the section's time."""
        return self.seconds - (time.monotonic() - self.begun)

    def size(self, real: int, small: int) -> int:
        """A size on a card, or in a rehearsal."""
        return small if self.rehearsal else real

    def open(self, limit: int | None = None) -> Device:
        """The device under test, opened."""
        return registry.open_device(self.device, limit=limit)


def pretend_card() -> bool:
    """Put the fake cupy in the place of the real one for the rest of this process.

    Returns False where there is no PoCL, which its kernels run on.
    """
    if not any(i.name.startswith("pthread") for i in registry.probe_all(["opencl"])[0].devices):
        return False
    import pytest

    from tests.fakes import cupy_fake

    cupy_fake.install(pytest.MonkeyPatch())
    return True


def median_seconds(run: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call."""
    return interleaved({"": run}, rounds)[""]


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, seconds: float = float("inf")
) -> dict[str, float]:
    """Median seconds of calls, one of each in every round, so that a slow moment meets all.

    The first round does not count. Stops after ``seconds``, but makes three rounds at least.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.monotonic()
    for done in range(rounds + 1):
        if done > 3 and time.monotonic() - begun > seconds:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(row[1:]) for name, row in times.items()}


def geomean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return statistics.geometric_mean(values)
