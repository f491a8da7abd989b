"""Products on a grid by the rule's tile, and by the one that was measured to be the fastest."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import crossdock as xd
from crossdock.devices.base import Device
from crossdock.devices.program import fixed
from crossdock.kernels import table
from crossdock.kernels.spec import OpCall
from crossdock.runtime import binding, costing, trial

NAMES = ("grid.matmul.tiled", "grid.conv2d.implicit")


@dataclass(frozen=True)
class Duel:
    """Median seconds by either, on the device's clock, and what is said of the choice."""

    rule: float
    tuned: float
    said: str

    @property
    def ratio(self) -> float:
        """How many times as fast the measured one is."""
        return self.rule / self.tuned


def matmul(m: int, k: int, n: int) -> OpCall:
    """A product of m x k and k x n."""
    b = xd.GraphBuilder("product")
    return _call(b, b.matmul(b.input("x", (m, k)), b.input("w", (k, n))))


def conv(channels: int, size: int, images: int = 1) -> OpCall:
    """A convolution 3x3 that keeps size and channels."""
    b = xd.GraphBuilder("convolution")
    x = b.input("x", (images, channels, size, size))
    return _call(b, b.conv2d(x, b.input("w", (channels, channels, 3, 3)), padding=[1] * 4))


def _call(b: Any, y: Any) -> OpCall:
    (call,) = costing.op_calls(b.build({"y": y})).values()
    return call


def duel(device: Device, call: OpCall, rounds: int) -> Duel:
    """A sample of either in each round, so that a slow moment meets both."""
    fitting = table.candidates(call, device.info).fitting
    kernel = next(k for k in fitting if k.name in NAMES)
    lowered = kernel.lowered(call, device.info)
    by_rule = replace(lowered, steps=tuple(map(fixed, lowered.steps)))
    trials = [trial.prepare_trial(device, kernel, call, lowered=one) for one in (by_rule, lowered)]
    taken = [[one.sample() for one in trials] for _ in range(rounds)]
    for one in trials:
        one.close()
    said = binding.compile_op(device, kernel, call, lowered).said
    rule, tuned = (statistics.median(row) for row in zip(*taken, strict=True))
    return Duel(rule, tuned, said or "it has one tile")


PRODUCTS: dict[str, Callable[[], OpCall]] = {
    "64x1024x1024": lambda: matmul(64, 1024, 1024),
    "512x512x512": lambda: matmul(512, 512, 512),
    "1000x200x50": lambda: matmul(1000, 200, 50),
    "33x2048x1000": lambda: matmul(33, 2048, 1000),
    "197x768x197": lambda: matmul(197, 768, 197),
    "110x900x70": lambda: matmul(110, 900, 70),
    "conv 3x3 64 56x56": lambda: conv(64, 56),
    "conv 3x3 128 28x28": lambda: conv(128, 28),
}
