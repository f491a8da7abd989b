"""How much memory of a device is in use, and the most that was."""

from __future__ import annotations


class Gauge:
    """Bytes allocated on a device; kept by its allocator, under the allocator's own lock.

    ``used`` counts what is allocated and not freed yet, ``peak`` is the most it was since the
    device was opened or ``reset`` was called.
    """

    def __init__(self) -> None:
        self.used = 0
        self.peak = 0

    def add(self, nbytes: int) -> None:
        """Count an allocation, or with a negative number what was freed."""
        self.show(self.used + nbytes)

    def show(self, used: int) -> None:
        """Set what is in use, where the allocator counts by itself."""
        self.used = used
        if used > self.peak:
            self.peak = used

    def reset(self) -> None:
        """Forget the peak: it is what is in use now."""
        self.peak = self.used
