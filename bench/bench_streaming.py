"""Runs that bring weights for which their device has no room: predicted, measured, and the rate.

The device has a core, and may hold the values and half of the weights. What runs take without a
budget is timed and predicted beside: where both are off, it is by the pace of the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from streaming import products, rate
from timing import interleaved, opencl

ROUNDS = 15


@pytest.mark.parametrize("rows", [1, 64, 512])
@pytest.mark.benchmark(group="streaming")
def test_streaming(rows: int, benchmark: Any) -> None:
    def timer(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
        benchmark.pedantic(runs["measured"], rounds=ROUNDS, warmup_rounds=1)
        return interleaved(runs, ROUNDS)

    made = rate(*products(rows, 1024, 12), opencl(), 0.5, timer, threads=1)
    assert made.rung == "stream"
    assert made.peak <= made.budget
    assert made.error < 1e-5
    benchmark.extra_info["note"] = str(made)
    benchmark.extra_info["predicted_s"] = made.predicted
    benchmark.extra_info["whole_predicted_s"] = made.whole_predicted
    benchmark.extra_info["whole_s"] = made.whole
    benchmark.extra_info["bytes_per_s"] = made.rate
