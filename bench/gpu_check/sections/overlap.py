"""Uploads, kernels and downloads of independent chunks: how far they hide one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import crossdock as xd
from bench.gpu_check.place import Place
from bench.gpu_check.report import Report
from bench.timing import interleaved, median_seconds
from crossdock.devices.base import Event
from crossdock.devices.cuda import CudaDevice
from crossdock.runtime.tensor import TensorSpec

CHUNKS, SIDE = 16, 2048
FEW, SMALL = 3, 64
DEPTH = 3
"""Products a chunk."""


def chunked(chunks: int, side: int) -> xd.Graph:
    """Chunks that go up, are multiplied by one matrix some times, and come down."""
    b = xd.GraphBuilder("chunks")
    w = b.constant((np.random.default_rng(0).standard_normal((side, side)) / side**0.5)
                   .astype(np.float32))  # fmt: skip
    outputs = {}
    for i in range(chunks):
        y = b.input(f"x{i}", (side, side))
        for k in range(DEPTH):
            y = b.matmul(y, w, label=f"c{i}.{k}")
        outputs[f"y{i}"] = y
    return b.build(outputs)


def run(place: Place, report: Report) -> None:
    """The time of a run over the largest of its uploads, its kernels and its downloads alone."""
    chunks, side = place.size(CHUNKS, FEW), place.size(SIDE, SMALL)
    made, device = chunked(chunks, side), place.open()
    assert isinstance(device, CudaDevice)
    rng = np.random.default_rng(1)
    feeds = {}
    for name in made.inputs:
        feeds[name] = device.host_array(TensorSpec("float32", (side, side)))
        feeds[name][:] = rng.standard_normal((side, side), np.float32)
    with xd.compile(made, place.device) as session:
        session.run(feeds)
        spans = session.profile(feeds).spans[f"{place.device}/compute"]
        kernels = sum(span.end - span.start for span in spans)
        parts = {"kernels": kernels, **_copies(device, chunks, side, place)}
        measured = median_seconds(lambda: session.run(feeds), place.size(20, 3))
    longest = max(parts, key=lambda name: parts[name])
    for name, seconds in parts.items():
        report.figure(f"{name} alone", seconds * 1e3, "ms")
    report.figure("a run", measured * 1e3, "ms", note=f"of {chunks} chunks of {side} x {side}")
    report.figure("a run over the sum of the parts", measured / sum(parts.values()))
    report.figure(f"a run over the largest part ({longest})", measured / parts[longest], "",
                  "<= 1.05")  # fmt: skip


def _copies(device: CudaDevice, chunks: int, side: int, place: Place) -> dict[str, float]:
    """Seconds of all uploads, and of all downloads, from and to pinned memory."""
    spec = TensorSpec("float32", (side, side))
    hosts = [device.host_array(spec) for _ in range(chunks)]
    buffers = [device.allocate(spec.nbytes) for _ in range(chunks)]

    def all_of(copy: Callable[..., Event | None], *ends: Sequence[Any]) -> Callable[[], None]:
        def run() -> None:
            for event in [copy(*pair) for pair in zip(*ends, strict=True)]:
                if event is not None:
                    event.wait()

        return run

    copies = {
        "uploads": all_of(device.queues["upload"].write, buffers, hosts),
        "downloads": all_of(device.queues["download"].read, buffers, hosts),
    }
    found = interleaved(copies, place.size(20, 3))
    for buffer in buffers:
        buffer.release()
    return found
