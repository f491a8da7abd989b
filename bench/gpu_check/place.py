"""Where a section runs: the card, or in a rehearsal the processor and the fake cupy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

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


def geomean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return statistics.geometric_mean(values)
