"""Copies between the host and OpenCL devices, their overlap with kernels, and runs without them."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.registry import open_device
from crossdock.runtime.device_array import DeviceArray

SIZES = (4 << 10, 256 << 10, 16 << 20)
CHUNKS = 12
SHAPE = (1024, 1024)


def opencl() -> str:
    found = [d.id for d in xd.devices() if d.kind == "opencl"]
    if not found:
        pytest.skip("needs an OpenCL device")
    return found[0]


@pytest.mark.parametrize("role", ["upload", "download"])
@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.benchmark(group="transfers")
def test_copy(nbytes: int, role: str, benchmark: Any) -> None:
    device = open_device(opencl())
    queue = device.queues[role]
    array = np.zeros(nbytes, np.uint8)
    buffer = device.allocate(nbytes)

    def copy() -> None:
        event = queue.write(buffer, array) if role == "upload" else queue.read(buffer, array)
        if event is not None:
            event.wait()

    benchmark.pedantic(copy, rounds=30, warmup_rounds=2)
    rate = nbytes / benchmark.stats.stats.median
    benchmark.extra_info["note"] = f"{rate / 1e9:.2f} GB/s"
    buffer.release()


@pytest.mark.benchmark(group="transfers")
def test_overlap(benchmark: Any) -> None:
    """Independent chunks: each goes up, is worked on, and comes down.

    The figure is the measured time over the larger of all transfers and all kernels alone; 1 is
    full overlap.
    """
    device = opencl()
    b = xd.GraphBuilder("chunks")
    outputs = {}
    for i in range(CHUNKS):
        x = b.input(f"x{i}", SHAPE)
        outputs[f"y{i}"] = b.sigmoid(x, label=f"work{i}")
    graph = b.build(outputs)
    rng = np.random.default_rng(0)
    feeds = {n: rng.random(s.dims, np.float32) for n, s in graph.inputs.items()}
    with xd.compile(graph, device) as session:
        profile = session.profile(feeds)
        kernels = sum(s.end - s.start for s in profile.spans[f"{device}/compute"])
        copies = _copies(device)
        benchmark.pedantic(lambda: session.run(feeds), rounds=25, warmup_rounds=3)
        measured = benchmark.stats.stats.median
        host = _host_copies(feeds)
        benchmark.extra_info["note"] = (
            f"transfers alone {copies * 1e3:.2f} ms, kernels alone {kernels * 1e3:.2f} ms, "
            f"together {(measured - host) * 1e3:.2f} ms (and {host * 1e3:.2f} ms to take the "
            f"inputs in and give the outputs out): {(measured - host) / max(copies, kernels):.2f} "
            f"of the larger, {(measured - host) / (copies + kernels):.2f} of the sum; predicted "
            f"{session.estimate().seconds * 1e3:.2f} ms"
        )


@pytest.mark.benchmark(group="transfers")
@pytest.mark.parametrize("elements", [16, 1 << 20])
def test_resident(elements: int, versus: Any) -> None:
    """One fused op over an input that lies on the device, its output left there.

    Beside it the same from host to host.
    """
    device = opencl()
    b = xd.GraphBuilder("resident")
    x = b.input("x", (elements,))
    graph = b.build({"y": b.add(b.add(x, x), x)})
    array = np.ones(elements, np.float32)
    held = DeviceArray.put(open_device(device), array)
    with (
        xd.compile(graph, device) as host,
        xd.compile(graph, device, feeds_on=device, outputs="device") as session,
    ):
        others = {"host to host": lambda: host.run({"x": array})}
        versus(lambda: session.run({"x": held}), others, rounds=100)


def _copies(device: str) -> float:
    """Seconds to copy all chunks up and down, nothing else going on: medians."""
    opened = open_device(device)
    array = np.zeros(SHAPE, np.float32)
    buffer = opened.allocate(array.nbytes)
    times: list[float] = []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(CHUNKS):
            events = [
                opened.queues["upload"].write(buffer, array),
                opened.queues["download"].read(buffer, array),
            ]
            for event in events:
                if event is not None:
                    event.wait()
        times.append(time.perf_counter() - start)
    buffer.release()
    return statistics.median(times)


def _host_copies(feeds: dict[str, Any]) -> float:
    """Seconds that a run takes to copy the inputs into its arena and the outputs out of it."""
    arena = np.zeros(SHAPE, np.float32)
    times: list[float] = []
    for _ in range(9):
        start = time.perf_counter()
        for array in feeds.values():
            np.copyto(arena, array)
            np.array(arena)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
