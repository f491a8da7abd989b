"""Kernels beside their devices' limits."""

from __future__ import annotations

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.machine import Measured, Rates, SizedRate
from crossdock.devices.program import Work
from crossdock.runtime import roofline

ONE = Measured(1.0, 0.0, 1)


def rates(**flops: float) -> Rates:
    return Rates(
        {f"fma:{dtype}": Measured(rate, 0.0, 3) for dtype, rate in flops.items()},
        (SizedRate(1000, Measured(50.0, 0.0, 3)), SizedRate(4000, Measured(10.0, 0.0, 3))),
        {"grid": ONE},
        ONE,
        ONE,
    )


def test_the_longer_of_operations_and_bytes_bounds() -> None:
    known = rates(float32=100.0)
    busy, moving = Work(1000.0, 50.0, 50.0), Work(10.0, 1500.0, 1500.0)
    for work, bound, memory in ((busy, 10.0, False), (moving, 300.0, True)):
        best = roofline.limits(known, work, "float32")
        row = roofline.timed("n", "op", "kernel", "cpu:0", 400.0, work, best)
        assert (row.bound, row.memory) == (bound, memory)
        assert row.share == bound / 400.0


def test_a_type_that_was_not_measured_has_the_peak_of_float32() -> None:
    known = rates(float32=100.0, float64=50.0)
    assert roofline.peak(known, "float64") == 50.0
    assert roofline.peak(known, "bfloat16") == 100.0


def test_without_rates_there_is_no_share() -> None:
    row = roofline.timed("n", "op", "kernel", "cpu:0", 2.0, Work(10.0, 4.0, 4.0), None)
    assert row.share is None
    assert (row.flops, row.bandwidth) == (5.0, 4.0)


def test_every_op_of_a_run_is_timed() -> None:
    b = xd.GraphBuilder("two")
    x = b.input("x", (8, 16))
    y = b.matmul(x, b.constant(np.ones((16, 4), np.float32)))
    graph = b.build({"y": b.softmax(y, 1)})
    with xd.compile(graph, "cpu:0") as session:
        feeds = {"x": np.ones((8, 16), np.float32)}
        rows = roofline.profile(session, feeds, 3, {"cpu:0": rates(float32=1e11)})
    assert [row.op for row in rows] == ["matmul", "softmax"]
    assert all(row.seconds > 0 and row.share is not None for row in rows)
    assert rows[0].work.flops == pytest.approx(2 * 8 * 16 * 4)
