"""Copies between the host and OpenCL devices, and how far they overlap with kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.registry import open_device

SIZES = (4 << 10, 256 << 10, 16 << 20)
CHUNKS = 12


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
    full overlap. The device has one core, so that copies have another.
    """
    device = opencl()
    b = xd.GraphBuilder("chunks")
    outputs = {}
    for i in range(CHUNKS):
        x = b.input(f"x{i}", (512, 1024))
        outputs[f"y{i}"] = b.tanh(b.sin(b.exp(b.tanh(b.sin(x)))), label=f"work{i}")
    graph = b.build(outputs)
    rng = np.random.default_rng(0)
    feeds = {n: rng.random(s.dims, np.float32) for n, s in graph.inputs.items()}
    with xd.compile(graph, device, threads=1) as session:
        profile = session.profile(feeds)
        spans = [(q, s) for q, list_of in profile.spans.items() for s in list_of]
        copies = sum(s.end - s.start for q, s in spans if not q.endswith("/compute"))
        kernels = sum(s.end - s.start for q, s in spans if q.endswith("/compute"))
        benchmark.pedantic(lambda: session.run(feeds), rounds=15, warmup_rounds=2)
        measured = benchmark.stats.stats.median
        benchmark.extra_info["note"] = (
            f"transfers alone {copies * 1e3:.2f} ms, kernels alone {kernels * 1e3:.2f} ms, "
            f"together {measured * 1e3:.2f} ms: {measured / max(copies, kernels):.2f} of the "
            f"larger, {measured / (copies + kernels):.2f} of the sum; predicted "
            f"{session.estimate().seconds * 1e3:.2f} ms"
        )
