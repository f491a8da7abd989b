"""Ops at the sizes that models have, one graph each, by kernel family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import crossdock as xd
from crossdock.devices import probe_kernels, probe_rates
from crossdock.devices.base import Device, Queue, Span
from crossdock.devices.probe_trials import Bench
from crossdock.devices.program import Out
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing
from crossdock.runtime.plan import Constraints
from crossdock.runtime.prepare import simplify

Build = Callable[[Any], Any]
_RNG = np.random.default_rng(0)


def _weights(*dims: int) -> Any:
    return (_RNG.standard_normal(dims) * 0.05).astype(np.float32)


def _conv(into: int, out: int, size: int, kernel: int, stride: int = 1, groups: int = 1) -> Build:
    def build(b: Any) -> Any:
        x = b.input("x", (1, into, size, size))
        w = b.constant(_weights(out, into // groups, kernel, kernel))
        pad = [kernel // 2] * 4
        bias = b.constant(_weights(out))
        return b.conv2d(x, w, bias=bias, padding=pad, strides=[stride, stride], groups=groups)

    return build


def _matmul(m: int, k: int, n: int) -> Build:
    return lambda b: b.matmul(b.input("x", (m, k)), b.constant(_weights(k, n)))


def _attention(length: int, heads: int = 12, width: int = 32) -> Build:
    def build(b: Any) -> Any:
        q, k, v = (b.input(name, (1, heads, length, width)) for name in "qkv")
        return b.scaled_dot_product_attention(q, k, v)

    return build


def _softmax(rows: int, columns: int) -> Build:
    return lambda b: b.softmax(b.input("x", (rows, columns)), 1)


def _layer_norm(rows: int, columns: int) -> Build:
    def build(b: Any) -> Any:
        scale, bias = (b.constant(_weights(columns)) for _ in range(2))
        x = b.input("x", (rows, columns))
        return b.layer_normalization(x, scale=scale, bias=bias, axes=[1])

    return build


def _add_relu(channels: int, size: int) -> Build:
    def build(b: Any) -> Any:
        x, y = (b.input(name, (1, channels, size, size)) for name in "xy")
        return b.relu(b.add(x, y))

    return build


def _gelu(rows: int, columns: int) -> Build:
    def build(b: Any) -> Any:
        x = b.input("x", (rows, columns))
        half = b.constant(0.5, "float32")
        inner = b.erf(b.mul(x, b.constant(2**-0.5, "float32")))
        return b.mul(b.mul(x, half), b.add(inner, b.constant(1.0, "float32")))

    return build


CASES: dict[str, dict[str, Build]] = {
    "conv 3x3": {
        "64 56x56": _conv(64, 64, 56, 3),
        "128 28x28": _conv(128, 128, 28, 3),
        "256 14x14": _conv(256, 256, 14, 3),
        "512 7x7": _conv(512, 512, 7, 3),
        "128 56x56 /2": _conv(128, 128, 56, 3, 2),
        "3>64 224x224 7x7 /2": _conv(3, 64, 224, 7, 2),
    },
    "conv 1x1": {
        "64>256 56x56": _conv(64, 256, 56, 1),
        "256>64 56x56": _conv(256, 64, 56, 1),
        "128>512 28x28": _conv(128, 512, 28, 1),
        "1024>256 14x14": _conv(1024, 256, 14, 1),
        "512>2048 7x7": _conv(512, 2048, 7, 1),
    },
    "conv depthwise": {"128 56x56": _conv(128, 128, 56, 3, 1, 128)},
    "matmul": {
        "16x384x384": _matmul(16, 384, 384),
        "128x384x384": _matmul(128, 384, 384),
        "128x384x1536": _matmul(128, 384, 1536),
        "128x1536x384": _matmul(128, 1536, 384),
        "512x384x1536": _matmul(512, 384, 1536),
        "512x512x512": _matmul(512, 512, 512),
        "1x4096x1000": _matmul(1, 4096, 1000),
    },
    "attention": {"12x128x32": _attention(128), "12x512x32": _attention(512)},
    "softmax": {"1536x128": _softmax(1536, 128), "256x1024": _softmax(256, 1024)},
    "layer norm": {"128x384": _layer_norm(128, 384), "512x384": _layer_norm(512, 384)},
    "elementwise": {
        "add relu 256x56x56": _add_relu(256, 56),
        "gelu 128x1536": _gelu(128, 1536),
        "gelu 512x1536": _gelu(512, 1536),
    },
}
"""Sizes of resnet50, MobileNet, VGG's last layer and MiniLM, by family and name."""


def calls(build: Build) -> list[OpCall]:
    """The ops of a case, fused as a session would."""
    b = xd.GraphBuilder("case")
    graph = simplify(b.build({"y": build(b)}), Constraints())
    return [c for n, c in costing.op_calls(graph).items()]


class Ceiling:
    """What a device does at best, now: multiply-adds in registers, a copy, launches of nothing."""

    SPAN = 2e-3
    LAUNCHES = 32

    def __init__(self, device: Device, nbytes: float) -> None:
        effort = probe_rates.FULL
        sizes = effort.sizes
        size = next((s for s in sizes if 2 * s >= nbytes), sizes[-1])
        self._bench = Bench(device)
        self._flops = probe_rates.multiply_adds(self._bench, "float32", self.SPAN)
        self._bytes = probe_rates.copying(self._bench, effort, size)
        tiny = probe_kernels.tiny(probe_kernels.kinds_of(device.info)[0])
        slots = {Out(0): self._bench.buffer("tiny", 64)}
        self._launches = self._bench.record([(tiny, slots)] * (self.LAUNCHES + 1))

    def sample(self) -> tuple[float, float, float]:
        """Operations and bytes a second, for a copy of as many as were given; seconds a launch."""
        return self._flops(), self._bytes(), self._launch()

    def _launch(self) -> float:
        """Seconds of one launch more, timed as kernels are: step by step on the device's clock."""
        spans: list[Span] = []

        def execute(queue: Queue) -> None:
            event = queue.execute(self._launches, (), spans)
            queue.flush()
            if event is not None:
                event.wait()

        self._bench.device.call("compute", execute)
        return max(spans[-1].end - spans[0].end, 1e-9) / self.LAUNCHES if spans else 0.0

    def close(self) -> None:
        """Give the memory back."""
        self._bench.release()
