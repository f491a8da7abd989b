"""Turns on devices: how many runs a session has on a device at once, where others want it, too.

Queues of devices serve who comes first, and so do the host's processors: a session that keeps many
runs on a device would let every other one wait for all of them. So a session that has a device for
itself may fill it, and sessions that share one have a run or two on it each: who comes next then
waits for about one run of each other session (round-robin), whatever they have in store. A session
shares a device with those that have used it a moment ago.

A run gets onto all of its devices at once, and waits only for earlier runs of its own session; so
no runs wait for each other in a circle. A session alone takes no lock.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

from crossdock.devices.base import Device
from crossdock.runtime.plan import HOST

ALONE = 3
"""Runs that a session alone has on a device: one computes while the next one's inputs are copied
and the last one's outputs are. More gain little, and who comes next or ends the process would have
to wait for them."""
SHARED = 2
"""Runs that sessions which share a device have on it, together; but one each."""
MOMENT = 0.1
"""Seconds for which a session counts after its last run on a device."""

Wait = Callable[[Callable[[float], bool]], bool]
"""Calls a function that waits so many seconds until it is true; False where it gives up."""


class Lane:
    """What sessions do on a device; ``sole`` is the share of one that has it for itself."""

    __slots__ = ("alone", "places", "shares", "sole")

    def __init__(self, places: int, alone: float) -> None:
        """``places`` are for all sessions together, one at least each; ``alone`` for a sole one."""
        self.places, self.alone = places, alone
        self.shares: set[Share] = set()
        self.sole: Share | None = None

    def room(self, share: Share) -> float:
        """How many runs the session of a share may have on the device; under the lock."""
        since = time.monotonic() - MOMENT
        self.shares = {other for other in self.shares if other.on or other.ended > since}
        self.shares.add(share)
        self.sole = share if len(self.shares) == 1 else None
        return self.alone if self.sole else max(1, self.places // len(self.shares))


class Share:
    """The runs that a session has on a device, and when the last one ended."""

    __slots__ = ("ended", "lane", "on")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.on: set[Turn] = set()
        self.ended = 0.0


class Flow:
    """The runs of one session that wait for their turns, the first one first."""

    __slots__ = ("_shares", "waiting")

    def __init__(self) -> None:
        self._shares: WeakKeyDictionary[Device, Share] = WeakKeyDictionary()
        self.waiting: deque[Turn] = deque()

    def share(self, device: Device) -> Share:
        """The session's share of a device."""
        with _LOCK:
            found = self._shares.get(device)
            if found is None:
                found = self._shares[device] = Share(_lane(device))
            return found


class Turn:
    """A run's leave to use its devices; whoever ``take``s it has to ``end`` it, come what may."""

    __slots__ = ("_flow", "_granted", "_shares", "_waits")

    def __init__(self, shares: tuple[Share, ...], flow: Flow) -> None:
        self._shares, self._flow = shares, flow
        self._granted: threading.Lock
        self._waits = False  # among the flow's; changed under the lock

    def take(self, wait: Wait) -> bool:
        """Get onto all devices, as soon as there is room; False where ``wait`` ended before."""
        if self.grab():
            return True
        self._granted = threading.Lock()
        self._granted.acquire()
        with _LOCK:
            self._waits = True
            self._flow.waiting.append(self)
            _grant(self._flow)
        return wait(self._wait)

    def grab(self) -> bool:
        """Get onto devices that the session has for itself, if there is room; takes no lock."""
        if self._flow.waiting:
            return False
        for share in self._shares:
            if share.lane.sole is not share or len(share.on) >= share.lane.alone:
                return False
        self._enter()
        return True

    def fits(self) -> bool:
        """Get onto all devices if there is room; under the lock."""
        if any(len(share.on) >= share.lane.room(share) for share in self._shares):
            return False
        self._enter()
        return True

    def wake(self) -> None:
        """Let who waits go on; under the lock."""
        self._waits = False
        self._granted.release()

    def leave(self, device: Device) -> None:
        """Use a device no more."""
        self._exit(self._flow.share(device))

    def end(self) -> None:
        """Use no device, or wait for none, any more; any number of times, from any thread."""
        if self._waits:
            with _LOCK:
                if self._waits:  # else it has been granted meanwhile
                    self._waits = False
                    self._flow.waiting.remove(self)
                    _grant(self._flow)
        for share in self._shares:
            self._exit(share)

    def _enter(self) -> None:
        for share in self._shares:
            share.on.add(self)

    def _exit(self, share: Share) -> None:
        share.on.discard(self)
        share.ended = time.monotonic()
        if self._flow.waiting:
            with _LOCK:
                _grant(self._flow)

    def _wait(self, seconds: float) -> bool:
        """Wait so long for the turn; whether it came."""
        if self._granted.acquire(timeout=seconds):
            return True
        with _LOCK:
            _grant(self._flow)  # others may have gone
            return not self._waits


_LOCK = threading.Lock()
_LANES: WeakKeyDictionary[Device, Lane] = WeakKeyDictionary()


def _lane(device: Device) -> Lane:
    """A device's lane; the host's processors are shared by the system, too."""
    found = _LANES.get(device)
    if found is None:
        host = device.info.id == HOST
        made = Lane(device.info.compute_units, math.inf) if host else Lane(SHARED, ALONE)
        found = _LANES[device] = made
    return found


def _grant(flow: Flow) -> None:
    """Let those of a session go on that there is room for; under the lock."""
    while flow.waiting and flow.waiting[0].fits():
        flow.waiting.popleft().wake()
