"""Machine profiles as costs: rates become rooflines, links keep their times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crossdock.devices import cpu
from crossdock.devices.machine import (
    DeviceProfile,
    LinkProfile,
    Machine,
    Measured,
    Rates,
    SizedRate,
    Status,
)
from crossdock.runtime import costing, profiles
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.calls import op_call
from crossdock.scheduler import CostModel, Source, Work

CPU = cpu.probe().devices[0]
GPU = replace(CPU, id="cuda:0", kind="cuda", fingerprint="card")
BAD = replace(CPU, id="opencl:0", kind="opencl", fingerprint="bad")


def measured(value: float) -> Measured:
    return Measured(value, 0.0, 5)


def rates(**flops: float) -> Rates:
    return Rates(
        {key.replace("_", ":"): measured(value) for key, value in flops.items()},
        (SizedRate(1 << 16, measured(4e10)), SizedRate(1 << 26, measured(1e10))),
        {"native": measured(1e-6), "array": measured(3e-6)},
        measured(1e-5),
        measured(1e-6),
    )


def link(src: str, dst: str) -> LinkProfile:
    points = tuple(
        SizedRate(n, measured(n / (1e-5 + n / 1e9))) for n in (1 << 12, 1 << 20, 1 << 24)
    )
    return LinkProfile(src, dst, (src, dst), measured(1e-5), points, measured(1.0), zero_copy=False)


def machine() -> Machine:
    made = rates(gemm_float32=1e11, elementwise_float32=2e9)
    return Machine(
        "0",
        "cpu",
        2,
        {},
        "2026-01-01T00:00:00",
        quick=True,
        seconds=1.0,
        devices=(
            DeviceProfile(CPU.id, "cpu", Status.PASS, info=CPU, rates=made),
            DeviceProfile(GPU.id, "cuda", Status.PASS, info=GPU),
            DeviceProfile(BAD.id, "opencl", Status.FAIL, info=BAD, rates=made),
            DeviceProfile("sim", "sim", Status.ABSENT, reason="none"),
        ),
        links=(link(CPU.id, GPU.id),),
    )


def test_devices_that_passed_get_a_roofline_and_the_others_none() -> None:
    model = CostModel()
    profiles.apply(machine(), model)
    assert model.rates(CPU.fingerprint) is not None
    assert model.rates(GPU.fingerprint) is None, "it has no rates"
    assert model.rates(BAD.fingerprint) is None, "it failed"
    work = Work(2e9, 1e3, 1e3, "gemm", "float32")
    estimate = model.estimate(CPU.fingerprint, "kernel", "key", work)
    assert estimate.source is Source.ROOFLINE
    assert estimate.seconds == pytest.approx(2e9 / 1e11, rel=0.01)


def test_links_take_the_time_they_were_measured_to_take() -> None:
    model = CostModel()
    profiles.apply(machine(), model)
    assert model.link(GPU.fingerprint, CPU.fingerprint) is None, "that way was not measured"
    made = model.link(CPU.fingerprint, GPU.fingerprint)
    assert made is not None
    for n in (0, 1 << 12, 1 << 20, 1 << 24):
        assert made.seconds(n) == pytest.approx(1e-5 + n / 1e9, rel=0.1)


def test_types_that_were_not_probed_take_the_plainest_rate() -> None:
    made = profiles.device_rates(rates(gemm_float32=1e11, elementwise_float32=2e9))
    assert made.flops["*"] == 2e9
    only = profiles.device_rates(rates(gemm_float32=1e11))
    assert only.flops["*"] == 1e11
    assert profiles.device_rates(rates()).flops == {}


def test_products_of_bytes_take_the_rate_of_products_of_floats() -> None:
    made = profiles.device_rates(rates(gemm_float32=1e11, elementwise_float32=2e9))
    b = GraphBuilder("bytes")
    product = b.matmul_integer(b.input("a", (4, 5), "uint8"), b.input("b", (5, 6), "int8"))
    graph = b.build({"y": product})
    work = costing.cost_work(op_call(graph, graph.nodes[0]))
    assert work.flops == 2 * 4 * 5 * 6
    assert made.peak(work) == 1e11


def test_bandwidth_is_that_of_the_data_in_motion() -> None:
    some = rates(elementwise_float32=1e9)
    assert profiles.device_rates(some, 1 << 12).bandwidth == 4e10
    assert profiles.device_rates(some, 1 << 24).bandwidth == 1e10
    assert profiles.device_rates(some).launch_s == 3e-6


def test_applying_a_profile_again_changes_nothing() -> None:
    model = CostModel()
    profiles.apply(machine(), model)
    version = model.version
    profiles.apply(machine(), model)
    assert model.version == version
