"""One budget a physical memory, whichever devices lead to it.

A card seen through CUDA and through OpenCL is two devices with allocators of their own, which know
nothing of each other. Each counts what it takes in its ``Share`` of the card's memory, and has free
what neither its own limit nor the others' shares keep from it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from crossdock.devices.gauge import Gauge
from crossdock.runtime.errors import OutOfMemory

Reclaim = Callable[[int], None]
"""Counts as free what an allocator need not keep, waiting only where that makes so many bytes."""


class _Memory:
    """A physical memory: the shares of it that devices have opened."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a finalizer may run inside of `take`
        self.held: tuple[weakref.ref[Share], ...] = ()

    @property
    def shares(self) -> list[Share]:
        """Those whose devices are open."""
        return [share for one in self.held if (share := one()) is not None]

    def join(self, share: Share) -> None:
        """Count with a share from now on, as long as it is there."""
        self.held = (*map(weakref.ref, self.shares), weakref.ref(share))


_MEMORIES: dict[str, _Memory] = {}


class Share:
    """What one device may hold of a physical memory, and holds; safe for threads.

    ``limit`` is the device's own, in bytes; ``capacity`` what the device says the memory has, of
    which the largest counts. Without a ``physical_id`` nobody else leads to the memory.
    """

    def __init__(
        self,
        device_id: str,
        limit: int,
        capacity: int,
        physical_id: str = "",
        gauge: Gauge | None = None,
    ) -> None:
        self.device_id, self.limit, self.capacity = device_id, limit, capacity
        self.physical_id = physical_id
        self.gauge = gauge or Gauge()
        self.cached = 0
        """Bytes that the allocator keeps from the others without using them."""
        self.reclaim: Callable[[], Reclaim | None] = lambda: None
        """Gives the allocator's ``Reclaim``, or None once its device is gone: a weak reference."""
        self._memory = _MEMORIES.setdefault(physical_id, _Memory()) if physical_id else _Memory()
        self.lock = self._memory.lock
        with self.lock:
            self._memory.join(self)

    @property
    def free(self) -> int:
        """Bytes that may still be taken."""
        with self.lock:
            capacity, taken = self.capacity, self.gauge.used
            room = self.limit - taken
            for one in self._memory.held:
                share = one()
                if share is None or share is self:
                    continue
                taken += share.gauge.used + share.cached
                if share.capacity > capacity:
                    capacity = share.capacity
            if capacity - taken < room:
                room = capacity - taken
            return room if room > 0 else 0

    def take(self, nbytes: int, label: str = "") -> None:
        """Count bytes before they are allocated; raises OutOfMemory where too few are free."""
        with self.lock:
            if nbytes <= self.free:
                self.gauge.add(nbytes)
                return
        self.make_room(nbytes)
        with self.lock:
            self.check(nbytes, label)
            self.gauge.add(nbytes)

    def give(self, nbytes: int) -> None:
        """Count bytes as free."""
        with self.lock:
            self.gauge.add(-nbytes)

    def make_room(self, nbytes: int) -> None:
        """Let allocators give back what they need not keep, where too little is free.

        Never under the lock: it may wait for a device.
        """
        if nbytes <= self.free:
            return
        for share in self._memory.shares:
            reclaim = share.reclaim()
            if reclaim is not None:
                reclaim(nbytes)

    def check(self, nbytes: int, label: str = "") -> None:
        """Raise OutOfMemory where fewer than ``nbytes`` are free; the lock is held meanwhile."""
        free = self.free
        if nbytes > free:
            raise self.refusal(nbytes, free, label)

    def refusal(self, nbytes: int, free: int, label: str = "") -> OutOfMemory:
        """The error of a device that cannot give so many bytes; names who else holds memory."""
        what = f" for {label}" if label else ""
        others = self._others()
        shared = f" ({others} of the same memory, {self.physical_id})" if others else ""
        fix = "use smaller inputs, or let other devices take part"
        if others:
            fix = f"close what uses the memory otherwise, {fix}"
        return OutOfMemory(
            f"{self.device_id}: {nbytes} bytes wanted{what}, {free} free of {self.limit}{shared}; "
            f"{fix}",
            device=self.device_id,
            wanted=nbytes,
            free=free,
        )

    def _others(self) -> str:
        shares = [s for s in self._memory.shares if s is not self and s.gauge.used]
        return " and ".join(f"{s.device_id} holds {s.gauge.used}" for s in shares)
