"""Products on a grid: the tile that was measured to be the fastest beside the rule's choice."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.program import fixed
from crossdock.kernels import table
from crossdock.runtime import binding, costing, trial

ROUNDS = 25


def _matmul(m: int, k: int, n: int) -> Callable[[Any], Any]:
    return lambda b: b.matmul(b.input("x", (m, k)), b.input("w", (k, n)))


def _conv(channels: int, size: int) -> Callable[[Any], Any]:
    def build(b: Any) -> Any:
        x = b.input("x", (1, channels, size, size))
        return b.conv2d(x, b.input("w", (channels, channels, 3, 3)), padding=[1] * 4)

    return build


PRODUCTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "64x1024x1024": ("grid.matmul.tiled", _matmul(64, 1024, 1024)),
    "512x512x512": ("grid.matmul.tiled", _matmul(512, 512, 512)),
    "1000x200x50": ("grid.matmul.tiled", _matmul(1000, 200, 50)),
    "33x2048x1000": ("grid.matmul.tiled", _matmul(33, 2048, 1000)),
    "197x768x197": ("grid.matmul.tiled", _matmul(197, 768, 197)),
    "110x900x70": ("grid.matmul.tiled", _matmul(110, 900, 70)),
    "conv 3x3 64 56x56": ("grid.conv2d.implicit", _conv(64, 56)),
    "conv 3x3 128 28x28": ("grid.conv2d.implicit", _conv(128, 28)),
}
GRIDS = [d.id for d in xd.devices() if d.kind in ("opencl", "cuda")]


@pytest.mark.parametrize("device", GRIDS)
@pytest.mark.parametrize("name", list(PRODUCTS))
@pytest.mark.benchmark(group="tiles")
def test_tile(name: str, device: str, benchmark: Any) -> None:
    """The note has the device's own times, one sample of each in every round."""
    wanted, build = PRODUCTS[name]
    b = xd.GraphBuilder(name)
    (call,) = costing.op_calls(b.build({"y": build(b)})).values()
    opened = registry.open_device(device)
    fitting = table.candidates(call, opened.info).fitting
    kernel = next(k for k in fitting if k.name == wanted)
    lowered = kernel.lowered(call, opened.info)
    by_rule = replace(lowered, steps=tuple(map(fixed, lowered.steps)))
    rule = trial.prepare_trial(opened, kernel, call, lowered=by_rule)
    tuned = trial.prepare_trial(opened, kernel, call, lowered=lowered)
    said = binding.compile_op(opened, kernel, call, lowered).said
    taken: list[tuple[float, float]] = []
    benchmark.pedantic(
        tuned.sample,
        setup=lambda: taken.append((rule.sample(), tuned.sample())),
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    before, after = (statistics.median(row) for row in zip(*taken, strict=True))
    rule.close()
    tuned.close()
    benchmark.extra_info["ratios"] = {"the rule's choice": before / after}
    benchmark.extra_info["note"] = (
        f"{after * 1e6:.0f} us, the rule's choice {before * 1e6:.0f} us, ratio "
        f"{before / after:.2f}; {said or 'it has one tile'}"
    )
