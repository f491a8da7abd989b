"""Copies each way, pinned and pageable, and both at once, beside the card's own rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np

from bench.gpu_check.place import Place
from bench.gpu_check.report import Report
from bench.timing import interleaved
from crossdock.devices.cuda import CudaDevice
from crossdock.runtime.tensor import TensorSpec

SIZE, SMALL = 256 << 20, 1 << 20
UP, DOWN = 1, 2
"""cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost."""
NO_RATE = "cudaMemcpy has pageable copies one after the other: no own rate"


def run(place: Place, report: Report) -> None:
    """Rates in GB/s (10^9), medians of interleaved runs, ours over the card's own."""
    device = place.open()
    assert isinstance(device, CudaDevice)
    size = place.size(SIZE, SMALL)
    ours, own = Ours(device, size), Own(device.cp, device.index, size)
    for kind, target in (("pinned", ">= 0.95"), ("pageable", ">= 0.9")):
        for what, nbytes in (("up", size), ("down", size), ("both", 2 * size)):
            runs = {"ours": ours.run(kind, what)}
            if kind == "pinned" or what != "both":
                runs["own"] = own.run(kind, what)
            found = interleaved(runs, place.size(20, 3), seconds=place.seconds / 8)
            rates = {name: nbytes / seconds / 1e9 for name, seconds in found.items()}
            if "own" not in rates:
                report.figure(f"{kind}, {what}: ours", rates["ours"], "GB/s", note=NO_RATE)
                continue
            report.figure(f"{kind}, {what}: the card's own", rates["own"], "GB/s")
            report.figure(f"{kind}, {what}: ours", rates["ours"], "GB/s")
            report.figure(f"{kind}, {what}: ours over its own", rates["ours"] / rates["own"], "",
                          target)  # fmt: skip
    report.check("what was copied is right", ours.right())


class Ours:
    """Copies by the device's queues."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        self.device = device
        spec = TensorSpec("uint8", (size,))
        self.arrays = {
            "pinned": (device.host_array(spec), device.host_array(spec)),
            "pageable": (np.empty(size, np.uint8), np.empty(size, np.uint8)),
        }
        for source, target in self.arrays.values():
            source[:] = np.random.default_rng(0).integers(0, 256, size, np.uint8)
            target[:] = 0
        self.into, self.of = device.allocate(size), device.allocate(size)
        self.two = ThreadPoolExecutor(2)
        self._up("pinned")()
        _wait(device.queues["upload"].write(self.of, self.arrays["pinned"][0]))

    def run(self, kind: str, what: str) -> Callable[[], None]:
        """A function that makes the copy and waits for it."""
        return {"up": self._up(kind), "down": self._down(kind), "both": self._both(kind)}[what]

    def _up(self, kind: str) -> Callable[[], None]:
        source = self.arrays[kind][0]
        return lambda: _wait(self.device.queues["upload"].write(self.into, source))

    def _down(self, kind: str) -> Callable[[], None]:
        target = self.arrays[kind][1]
        return lambda: _wait(self.device.queues["download"].read(self.of, target))

    def _both(self, kind: str) -> Callable[[], None]:
        source, target = self.arrays[kind]
        if kind == "pageable":  # each way keeps a thread, which fills or empties what is pinned
            ways = (self._up(kind), self._down(kind))
            return lambda: _wait_all(self.two, ways)

        def run() -> None:
            sent = self.device.queues["upload"].write(self.into, source)
            came = self.device.queues["download"].read(self.of, target)
            _wait(sent)
            _wait(came)

        return run

    def right(self) -> bool:
        """Whether what came down is what went up."""
        return all(np.array_equal(*pair) for pair in self.arrays.values())


class Own:
    """The same copies by cudaMemcpyAsync and cudaMemcpy, with nothing of ours between."""

    def __init__(self, cp: Any, index: int, size: int) -> None:
        self.cp, self.size, self.index = cp, size, index
        with cp.cuda.Device(index):
            self.streams = [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
            self.pool = cp.cuda.MemoryPool()
            self.memory = [self.pool.malloc(size) for _ in range(2)]
            self.pinned = [cp.cuda.alloc_pinned_memory(size) for _ in range(2)]
        self.pageable = [np.zeros(size, np.uint8) for _ in range(2)]

    def run(self, kind: str, what: str) -> Callable[[], None]:
        """A function that makes the copy and waits for it."""
        ways = {"up": (UP,), "down": (DOWN,), "both": (UP, DOWN)}[what]

        def run() -> None:
            with self.cp.cuda.Device(self.index):
                for way in ways:
                    self._copy(kind, way)
                for stream in self.streams:
                    stream.synchronize()

        return run

    def _copy(self, kind: str, way: int) -> None:
        at = way - UP
        device, runtime = self.memory[at].ptr, self.cp.cuda.runtime
        if kind == "pageable":
            host = self.pageable[at].ctypes.data
            target, source = (device, host) if way == UP else (host, device)
            runtime.memcpy(target, source, self.size, way)
            return
        host = np.frombuffer(self.pinned[at], np.uint8).ctypes.data
        target, source = (device, host) if way == UP else (host, device)
        runtime.memcpyAsync(target, source, self.size, way, self.streams[at].ptr)


def _wait_all(pool: Executor, calls: Iterable[Callable[[], None]]) -> None:
    """Make calls at once; raises what one of them raises."""
    for future in [pool.submit(call) for call in calls]:
        future.result()


def _wait(event: Any) -> None:
    if event is not None:
        event.wait()
