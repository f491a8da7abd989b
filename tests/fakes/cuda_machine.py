"""A pretended machine with CUDA cards that checks how it is used.

Work is done at once, in the order of submission, but the machine knows what a real one would be
free to do: every stream and the host have vector clocks, every access to memory is noted with its
stream, and two accesses that nothing orders are an error, as are freed memory, foreign devices and
host memory that is read before its copy has been waited for (it holds rubbish until then).

The host counts as one thread: what one thread has waited for, all have.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

Clock = dict[int, int]
ALIGN = 256
QUARANTINE = 64 << 20


class UsageError(Exception):
    """What a real machine would answer with a wrong result, or a crash, now and then."""


@dataclass(frozen=True)
class Range:
    """Bytes that a piece of work touches."""

    address: int
    nbytes: int

    def meets(self, other: Range) -> bool:
        return (
            self.address < other.address + other.nbytes
            and other.address < self.address + self.nbytes
        )


@dataclass(frozen=True)
class Access:
    """Step ``seq`` of a stream reads or writes a range."""

    stream: int
    seq: int
    span: Range
    writes: bool
    what: str


@dataclass(eq=False)
class Allocation:
    """Memory of a device, or pinned memory of the host (device None)."""

    memory: np.ndarray
    device: int | None
    freed: bool = False
    accesses: list[Access] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.address = int(self.memory.ctypes.data)
        self.end = self.address + self.memory.size


class Book:
    """Allocations by address."""

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self._found: list[Allocation] = []

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self._found)

    def add(self, allocation: Allocation) -> None:
        at = bisect_right(self._addresses, allocation.address)
        self._addresses.insert(at, allocation.address)
        self._found.insert(at, allocation)

    def remove(self, allocation: Allocation) -> None:
        at = bisect_right(self._addresses, allocation.address) - 1
        del self._addresses[at], self._found[at]

    def holding(self, address: int) -> Allocation | None:
        at = bisect_right(self._addresses, address) - 1
        found = self._found[at] if at >= 0 else None
        return found if found is not None and address < found.end else None


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.empty(max(nbytes, 1) + ALIGN, np.uint8)
    at = -int(raw.ctypes.data) % ALIGN
    return raw[at : at + max(nbytes, 1)]


@dataclass(frozen=True)
class Delivery:
    """What happens to host memory when the host has waited for a step of a stream."""

    stream: int
    seq: int
    span: Range
    action: Callable[[], None]


class Machine:
    """Cards, streams and memory."""

    def __init__(self, devices: int = 2, memory: int = 256 << 20) -> None:
        self.devices = devices
        self.peers = {(a, b) for a in range(devices) for b in range(devices) if a != b}
        self.access: set[tuple[int, int]] = set()  # (a, b): a may use memory of b
        self.memory = memory
        self.errors: list[str] = []
        self.sticky = 0
        self.died = False
        self.seconds: float | None = None
        """What events are timed by, where it is virtual; only what says so takes any of it."""
        self._lock = threading.RLock()
        self._local = threading.local()
        self._live, self._dead = Book(), Book()
        self._quarantine: deque[Allocation] = deque()
        self._quarantined = 0
        self._streams: dict[int, tuple[int, Clock]] = {}
        self._host: Clock = {}
        self._deliveries: list[Delivery] = []

    def problem(self, text: str) -> UsageError:
        """An error that is kept, too: one raised while memory is freed never reaches a test."""
        self.errors.append(text)
        return UsageError(text)

    # --- devices and streams ---------------------------------------------------------------------

    @property
    def device(self) -> int:
        """The calling thread's current device."""
        return getattr(self._local, "device", 0)

    @device.setter
    def device(self, index: int) -> None:
        self._local.device = index

    def new_stream(self) -> int:
        with self._lock:
            number = len(self._streams) + 1
            self._streams[number] = (self.device, {number: 0})
            return number

    def clock(self, stream: int) -> Clock:
        """What is ordered before the stream's next work."""
        with self._lock:
            return {**self._host, **self._later(self._host, self._streams[stream][1])}

    def wait(self, stream: int, clock: Clock) -> None:
        """The stream's later work comes after everything in ``clock``."""
        with self._lock:
            device, own = self._streams[stream]
            self._streams[stream] = (device, self._later(own, clock))

    def passed(self, clock: Clock) -> bool:
        """True when the host has waited for everything in ``clock``."""
        return all(self._host.get(stream, 0) >= seq for stream, seq in clock.items())

    def synchronize(self, clock: Clock) -> None:
        """The host waits for everything in ``clock``; copies to the host arrive."""
        with self._lock:
            self._host = self._later(self._host, clock)
            self._settle([d for d in self._deliveries if self._host.get(d.stream, 0) >= d.seq])

    def finish(self) -> None:
        """The host waits for everything."""
        for stream in list(self._streams):
            self.synchronize(self.clock(stream))

    def break_down(self, status: int) -> None:
        """From now on every call fails with a status after which a context is lost."""
        self.sticky, self.died = status, True

    def _settle(self, due: list[Delivery]) -> None:
        self._deliveries = [d for d in self._deliveries if d not in due]
        for delivery in due:
            delivery.action()

    @staticmethod
    def _later(a: Clock, b: Clock) -> Clock:
        return {key: max(a.get(key, 0), b.get(key, 0)) for key in {*a, *b}}

    # --- captures --------------------------------------------------------------------------------

    def begin_capture(self, stream: int) -> None:
        """From now on the stream's launches by this thread are kept instead of run."""
        captures = self._captures()
        if stream in captures:
            raise self.problem("the stream captures already")
        captures[stream] = []

    def end_capture(self, stream: int) -> list[Callable[[], None]]:
        """The launches kept since the capture began."""
        if stream not in self._captures():
            raise self.problem("the end of a capture that has not begun")
        return self._captures().pop(stream)

    def capture_of(self, stream: int) -> list[Callable[[], None]] | None:
        """What the calling thread captures on a stream, or None."""
        return self._captures().get(stream)

    def refuse_capture(self, what: str, stream: int | None = None) -> None:
        """A call that a capture of this thread forbids: on one stream, or (None) on any."""
        captures = self._captures()
        if captures if stream is None else stream in captures:
            raise self.problem(f"{what} while a stream captures")

    def _captures(self) -> dict[int, list[Callable[[], None]]]:
        if not hasattr(self._local, "captures"):
            self._local.captures = {}
        found: dict[int, list[Callable[[], None]]] = self._local.captures
        return found

    # --- memory ----------------------------------------------------------------------------------

    def allocate(self, nbytes: int, pinned: bool = False) -> Allocation:
        memory = _aligned(nbytes)
        memory[:] = 0xCD
        made = Allocation(memory, None if pinned else self.device)
        with self._lock:
            self._live.add(made)
        return made

    def free(self, allocation: Allocation) -> None:
        """Free memory: an error while a stream may still be using it."""
        with self._lock:
            if allocation.freed:
                raise self.problem("memory is freed twice")
            allocation.freed = True
            self._live.remove(allocation)
            late = [a for a in allocation.accesses if self._host.get(a.stream, 0) < a.seq]
            if late and not self.died:
                raise self.problem(
                    f"memory is freed while stream {late[0].stream} may be using it "
                    f"({late[0].what}): synchronise first"
                )
            allocation.memory[:] = 0xDD
            self._quarantine.append(allocation)
            self._dead.add(allocation)
            self._quarantined += allocation.memory.size
            while self._quarantined > QUARANTINE:
                old = self._quarantine.popleft()
                self._dead.remove(old)
                self._quarantined -= old.memory.size

    def used(self, device: int) -> int:
        return sum(a.memory.size for a in self._live if a.device == device)

    def find(self, span: Range) -> Allocation | None:
        """The allocation that holds these bytes; None where the address is nobody's."""
        with self._lock:
            found = self._live.holding(span.address)
            dead = self._dead.holding(span.address)
        if found is not None and span.address + span.nbytes > found.end:
            raise self.problem(
                f"{span.nbytes} bytes at offset {span.address - found.address} are outside an "
                f"allocation of {found.memory.size}"
            )
        if found is None and dead is not None:
            raise self.problem("memory is used after it was freed")
        return found

    def need(self, span: Range, what: str) -> Allocation:
        found = self.find(span)
        if found is None:
            raise self.problem(f"{what}: the address is no device or pinned memory")
        return found

    def home(self, address: int) -> int:
        """The device of memory at an address."""
        found = self.need(Range(address, 0), "a question where memory lies")
        if found.device is None:
            raise self.problem("a question on which card host memory lies")
        return found.device

    def kind(self, address: int) -> tuple[int, int]:
        """The device and cudaMemoryType of an address: 0 unregistered, 1 pinned, 2 a device's."""
        found = self.find(Range(address, 0))
        if found is None:
            return -2, 0
        return (0, 1) if found.device is None else (found.device, 2)

    # --- work ------------------------------------------------------------------------------------

    def submit(
        self, stream: int, reads: Iterable[Range], writes: Iterable[Range], what: str
    ) -> int:
        """Check and note a piece of work; the caller then does it. Returns its step number."""
        with self._lock:
            device, _ = self._streams[stream]
            if self.device != device:
                raise self.problem(
                    f"{what}: stream {stream} belongs to device {device}, device {self.device} "
                    "is current"
                )
            clock = self.clock(stream)
            seq = clock.get(stream, 0) + 1
            spans = [(span, False) for span in reads] + [(span, True) for span in writes]
            touched = []
            for span, writing in spans:
                if span.nbytes:
                    access = Access(stream, seq, span, writing, what)
                    touched.append((self._checked(access, device, clock), access))
            for found, access in touched:
                late = [a for a in found.accesses if self._host.get(a.stream, 0) < a.seq]
                found.accesses = [*late, access]
            self._streams[stream] = (device, {**clock, stream: seq})
            return seq

    def _checked(self, access: Access, home: int, clock: Clock) -> Allocation:
        found = self.need(access.span, access.what)
        if found.device not in (None, home) and (home, found.device) not in self.access:
            raise self.problem(
                f"{access.what}: memory of device {found.device} on device {home} without peer "
                "access"
            )
        for other in found.accesses:
            harmless = not (access.writes or other.writes) or not other.span.meets(access.span)
            ordered = other.stream == access.stream or clock.get(other.stream, 0) >= other.seq
            if not (harmless or ordered):
                verb = "writes" if access.writes else "reads"
                raise self.problem(
                    f"{access.what} on stream {access.stream} {verb} memory that {other.what} on "
                    f"stream {other.stream} uses, without waiting for its event"
                )
        return found

    def copy_peer(
        self, target: tuple[int, int], source: tuple[int, int], nbytes: int, stream: int
    ) -> None:
        """A copy between the memories of two devices, as (address, device) each."""
        what = "a copy between devices"
        for address, device in (target, source):
            if nbytes and (home := self.need(Range(address, nbytes), what).device) != device:
                raise self.problem(f"{what}: memory of device {home} is said to be of {device}")
        device, _ = self._streams[stream]
        if device not in (target[1], source[1]):
            raise self.problem(f"{what}: stream {stream} belongs to device {device}, which is none")
        self.copy(target[0], source[0], nbytes, stream, what)

    def copy(
        self, target: int, source: int, nbytes: int, stream: int, what: str = "a copy"
    ) -> None:
        """An asynchronous copy. Host memory has to be pinned, unchanged, and waited for."""
        to, of = Range(target, nbytes), Range(source, nbytes)
        seq = self.submit(stream, [of], [to], what)
        with self._lock:
            self._settle([d for d in self._deliveries if d.span.meets(to) or d.span.meets(of)])
            a, b = self.need(to, what), self.need(of, what)
            into = a.memory[target - a.address :][:nbytes]
            out = b.memory[source - b.address :][:nbytes]
            data = out.copy()
            if a.device is None:
                into[:] = 0xA5
                arrive = Delivery(stream, seq, to, lambda: np.copyto(into, data))
                self._deliveries.append(arrive)
            else:
                into[:] = data
            if b.device is None:
                check = Delivery(stream, seq, of, lambda: self._unchanged(out, data))
                self._deliveries.append(check)

    def _unchanged(self, memory: np.ndarray, data: np.ndarray) -> None:
        if not np.array_equal(memory, data):
            raise self.problem("host memory was changed while a copy was reading it")
