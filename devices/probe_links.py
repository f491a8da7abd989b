"""What to time between devices: transfers by size, latency, and both directions at once.

A transfer begins or ends in host memory, which is the memory of the processor's device, or is one
that a device makes from another's memory by itself. Two devices of which neither does that are
connected by a route through the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from crossdock.devices.base import Cap, Event
from crossdock.devices.machine import LinkProfile, SizedRate
from crossdock.devices.probe_rates import MIB, Effort, room
from crossdock.devices.probe_trials import Bench, Samples, Trial, outcome
from crossdock.runtime.tensor import Array

LATENCY_BYTES = 64


@dataclass(frozen=True)
class Link:
    """An ordered pair of devices; either end is ``host`` where the other one is not staged."""

    src: Bench
    dst: Bench
    host: Bench | None

    @property
    def key(self) -> str:
        """What trials are called by."""
        return f"{self.src.id}>{self.dst.id}"

    @property
    def staged(self) -> bool:
        """Whether the bytes take two transfers."""
        return self.host not in (self.src, self.dst) and not self.how

    @cached_property
    def how(self) -> str:
        """How the target copies from the source by itself; empty where the host takes part."""
        if self.host in (self.src, self.dst):
            return ""
        return self.dst.device.copies_from(self.src.device)

    @property
    def route(self) -> tuple[str, ...]:
        """The devices that the bytes pass."""
        middle = (self.host.id,) if self.staged and self.host is not None else ()
        return (self.src.id, *middle, self.dst.id)


def links(benches: Sequence[Bench]) -> list[Link]:
    """Every ordered pair of devices."""
    host = next((b for b in benches if Cap.HOST_MEMORY in b.device.info.caps), None)
    return [Link(a, b, host) for a in benches for b in benches if a is not b]


def trials(link: Link, effort: Effort, host: Array) -> Iterator[Trial]:
    """Prepare and warm up the trials of a link; ``host`` is memory of the largest size."""
    ends = (link.src.id, link.dst.id)
    most = min(room(link.src, effort), room(link.dst, effort))
    latency = _transfer(link, effort, host[:LATENCY_BYTES])
    latency()
    yield Trial((link.key, "latency"), ends, latency)
    for nbytes in effort.transfers:
        if nbytes <= most:
            yield Trial((link.key, "transfer", nbytes), ends, _rate(link, effort, host[:nbytes]))
    if not link.staged and link.src is link.host:
        duplex = _duplex(link.dst, effort, host)
        duplex()
        yield Trial((link.key, "duplex"), ends, duplex)


def profile(link: Link, samples: Samples) -> LinkProfile:
    """A link from the samples of its trials; both directions share the duplex ratio."""
    back = f"{link.dst.id}>{link.src.id}"
    device = link.dst if link.src is link.host else link.src
    return LinkProfile(
        src=link.src.id,
        dst=link.dst.id,
        route=link.route,
        latency_s=samples[link.key, "latency"],
        points=tuple(
            SizedRate(key[2], found)
            for key, found in samples.items()
            if key[:2] == (link.key, "transfer") and isinstance(key[2], int)
        ),
        duplex=samples.get((link.key, "duplex")) or samples.get((back, "duplex")),
        zero_copy=not link.staged and not link.how and Cap.MAP in device.device.info.caps,
        how=link.how,
    )


def _transfer(link: Link, effort: Effort, host: Array) -> Callable[[], float]:
    """Median seconds of a transfer of an array's size; of both parts where it is staged."""
    times = 15 if host.nbytes < MIB else 1
    if link.how:
        ends = (bench.buffer("x", room(bench, effort)) for bench in (link.dst, link.src))
        target, source = (buffer.view(0, host.nbytes) for buffer in ends)
        return lambda: link.dst.copy(target, source, times)
    parts: list[Callable[[], float]] = []
    if link.src is not link.host:
        out = link.src.buffer("x", room(link.src, effort))
        parts.append(lambda: link.src.read(out, host, times))
    if link.dst is not link.host:
        into = link.dst.buffer("x", room(link.dst, effort))
        parts.append(lambda: link.dst.write(into, host, times))
    return lambda: sum(part() for part in parts)


def _rate(link: Link, effort: Effort, host: Array) -> Callable[[], float]:
    seconds = _transfer(link, effort, host)
    seconds()
    return lambda: host.nbytes / seconds()


def _duplex(bench: Bench, effort: Effort, host: Array) -> Callable[[], float]:
    """Seconds up plus seconds down, over seconds for both at once."""
    most = room(bench, effort)
    nbytes = min(16 * MIB, effort.transfers[-1] // 2, most // 2)
    up, down = host[:nbytes], host[nbytes : 2 * nbytes]
    target, source = bench.buffer("x", most), bench.buffer("y", most)
    queues = bench.device.queues
    if queues["upload"] is queues["download"]:
        return lambda: 1.0  # one queue, in order: they wait for each other

    def part(submit: Callable[[], Event | None]) -> Callable[[], tuple[float, float]]:
        def job() -> tuple[float, float]:
            start = time.perf_counter()
            event = submit()
            if event is not None:
                event.wait()
            return start, time.perf_counter()

        return job

    def sample() -> float:
        alone = bench.write(target, up) + bench.read(source, down)
        writing = bench.start("upload", part(lambda: queues["upload"].write(target, up)))
        reading = bench.start("download", part(lambda: queues["download"].read(source, down)))
        spans = [outcome(bench.id, writing), outcome(bench.id, reading)]
        return alone / (max(end for _, end in spans) - min(start for start, _ in spans))

    return sample
