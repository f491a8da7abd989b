"""Kernels on every device, beside the device's roofline: time, rates, share of the limit.

A case counts with its fastest kernel, as the planner would choose; kernels are timed alone, on
the device's clock. Multiply-adds and a copy are timed in turns with them, so that the machine's
pace of the moment is in both: the roofline is that of the same seconds. A kernel cannot be faster
than a launch of nothing, so that a second share counts one launch in: ``launched``.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from roofline_cases import CASES, Ceiling, calls

import crossdock as xd
from crossdock.devices import registry
from crossdock.runtime import costing, emulation, roofline
from crossdock.runtime.trial import prepare_trial

ROUNDS = 15


@pytest.mark.parametrize("device", [d.id for d in xd.devices()])
@pytest.mark.parametrize(("family", "name"), [(f, n) for f, row in CASES.items() for n in row])
@pytest.mark.benchmark(group="roofline")
def test_kernel(family: str, name: str, device: str, benchmark: Any) -> None:
    (call,) = calls(CASES[family][name])
    opened = registry.open_device(device)
    found = emulation.candidates(call, opened.info)
    ready = [prepare_trial(opened, kernel, call) for kernel in found.fitting]
    assert ready, found.reason()
    tries = {t.kernel.name: [t.sample() for _ in range(3)] for t in ready}
    best = min(ready, key=lambda t: statistics.median(tries[t.kernel.name]))
    work = costing.op_work(call)
    ceiling = Ceiling(opened, work.bytes)
    spent: list[float] = []
    limits: list[tuple[float, float, float]] = []
    benchmark.pedantic(
        lambda: spent.append(best.sample()),
        setup=lambda: limits.append(ceiling.sample()),
        rounds=ROUNDS,
    )
    seconds = statistics.median(spent)
    flops, bandwidth, start = (statistics.median(each) for each in zip(*limits, strict=True))
    row = roofline.timed(name, call.op, best.kernel.name, device, seconds, work, (flops, bandwidth))
    launched = ((row.bound or 0.0) + start) / seconds
    ceiling.close()
    for trial in ready:
        trial.close()
    benchmark.extra_info.update(
        family=family, kernel=row.kernel, seconds=seconds, share=row.share,
        launched=launched, launch=start,
        gflops=row.flops / 1e9, gbytes=row.bandwidth / 1e9,
        peak_gflops=flops / 1e9, peak_gbytes=bandwidth / 1e9,
        note=(
            f"{family} {name} {device} {row.kernel}: {seconds * 1e3:.3f} ms, "
            f"{row.flops / 1e9:.1f} GFLOP/s, {row.bandwidth / 1e9:.1f} GB/s, "
            f"{row.share or 0:.0%} of {'memory' if row.memory else 'compute'}, "
            f"{launched:.0%} with a launch of {start * 1e6:.1f} us"
        ),
    )  # fmt: skip
