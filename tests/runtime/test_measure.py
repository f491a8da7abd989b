"""Measuring: simulated devices take what they say, real ones something, nothing stays behind."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import sim
from crossdock.devices.base import Device
from crossdock.devices.machine import DeviceProfile, Machine, Status
from crossdock.devices.program import Work
from crossdock.devices.sim import SimDevice
from crossdock.kernels import table
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing, knowledge, measure
from crossdock.runtime.costing import CostStore
from crossdock.runtime.graph import Graph
from crossdock.scheduler import CostModel
from tests.runtime.conftest import Machine as Bench
from tests.runtime.conftest import no_profile


def graph(n: int = 32) -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (n, n))
    i = b.input("i", (n,), "int32")
    y = b.gather(b.matmul(x, x, label="mm"), i, label="pick")
    return b.build({"y": b.relu(b.reshape(y, [n * n]), label="act")})


def simulated(bench: Bench, name: str = "a", **spec: Any) -> SimDevice:
    device = bench.device(bench.sim(name, **spec))
    assert isinstance(device, SimDevice)
    return device


def samples(model: CostModel, device: Device, call: OpCall) -> dict[str, tuple[float, ...]]:
    kernels = table.candidates(call, device.info).fitting
    return {k.name: model.samples(device.info.fingerprint, k.name, call.key()) for k in kernels}


def test_a_simulated_device_takes_its_roofline(machine: Bench) -> None:
    device = simulated(machine, bandwidth=1e6, launch_s=0.25, speed_flops=1e6)
    calls, model = costing.op_calls(graph()), CostModel()
    assert measure.measure_ops(calls, [device], model, budget_s=60) == 3
    made = samples(model, device, calls["act"])["array"]
    each = device.spec.seconds(Work(32 * 32, 4 * 32 * 32, 4 * 32 * 32))
    assert made == pytest.approx([each] * len(made))
    assert len(made) >= 2


def test_a_simulated_link_takes_its_latency_and_bandwidth(machine: Bench) -> None:
    device = simulated(machine, link_latency=0.5, link_bandwidth=1e6)
    host, model = machine.device("cpu:0"), CostModel()
    measure.measure_link(host, device, model)
    for src, dst in ((host, device), (device, host)):
        link = model.link(src.info.fingerprint, dst.info.fingerprint)
        assert link is not None
        assert link.seconds(1e6) == pytest.approx(1.5, rel=0.05)


def test_what_was_measured_is_not_measured_again(machine: Bench) -> None:
    device, calls, model = simulated(machine), costing.op_calls(graph()), CostModel()
    assert measure.measure_ops(calls, [device], model, budget_s=60) == 3
    before = model.version
    assert measure.measure_ops(calls, [device], model, budget_s=60) == 0
    measure.measure_link(machine.device("cpu:0"), device, model)
    linked = model.version
    measure.measure_link(machine.device("cpu:0"), device, model)
    assert model.version == linked != before


def test_a_cost_that_can_be_fitted_need_not_be_measured(machine: Bench) -> None:
    device, model = simulated(machine, bandwidth=1e6), CostModel()
    for n in (8, 16, 32):
        assert measure.measure_ops(costing.op_calls(graph(n)), [device], model, budget_s=60) == 3
    calls = costing.op_calls(graph(24))
    assert measure.measure_ops(calls, [device], model, budget_s=60, fits=True) == 0
    other = simulated(machine, "b")
    assert measure.measure_ops(calls, [device, other], model, budget_s=60, fits=True) == 3
    assert measure.measure_ops(calls, [device], model, budget_s=60) == 3


def test_aliases_are_free_and_a_spent_budget_ends_it(machine: Bench) -> None:
    device, calls, model = simulated(machine), costing.op_calls(graph()), CostModel()
    assert measure.measure_ops(calls, [device], model, budget_s=-1) == 0
    said: list[str] = []
    measure.measure_ops(
        calls, [device], model, budget_s=60, progress=lambda what, *_: said.append(what)
    )
    assert sorted(said) == [f"measuring {op} on sim:a" for op in ("gather", "matmul", "relu")]


def test_the_host_takes_some_time(machine: Bench) -> None:
    host, calls, model = machine.device("cpu:0"), costing.op_calls(graph(8)), CostModel()
    assert measure.measure_ops(calls, [host], model, budget_s=60) >= 3
    for call in (calls["mm"], calls["act"]):
        for made in samples(model, host, call).values():
            assert len(made) >= 1
            assert all(0 < s < 1 for s in made)


@pytest.mark.parametrize("error", [ValueError("bad index"), xd.Error("no"), MemoryError()])
def test_a_kernel_that_fails_has_no_samples(
    machine: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    device, calls, model = simulated(machine), costing.op_calls(graph()), CostModel()
    run = sim._Timed.run

    def fail(self: Any) -> None:
        if len(self.ins) == 1:  # relu alone
            raise error
        run(self)

    monkeypatch.setattr(sim._Timed, "run", fail)
    assert measure.measure_ops(calls, [device], model, budget_s=60) == 2
    assert samples(model, device, calls["act"]) == {"array": ()}


def test_memory_is_given_back(machine: Bench) -> None:
    device, calls = simulated(machine), costing.op_calls(graph())
    measure.measure_ops(calls, [device], CostModel(), budget_s=60)
    measure.measure_link(machine.device("cpu:0"), device, CostModel())
    assert device._budget.free == device._budget.share.limit


def test_sessions_measure_and_plan_by_it(machine: Bench) -> None:
    """A fast and a slow device: what the model has learned decides."""
    machine.sim("slow", launch_s=1.0)
    machine.sim("fast", launch_s=1e-9, bandwidth=1e15, link_latency=1e-9, link_bandwidth=1e15)
    with xd.compile(graph(), ["sim:slow", "sim:fast"]) as session:
        assert {s.device for s in session.plan.launches()} == {"sim:fast"}
        assert {s.source for s in session.plan.steps} == {"measured"}
        slow = next(c for c in session.plan.launches()[0].choices if c.device == "sim:slow")
        assert slow.seconds == pytest.approx(1.0, rel=0.01)


def test_a_device_that_failed_its_probe_computes_nothing(
    machine: Bench, monkeypatch: pytest.MonkeyPatch, costs: CostStore, opencl: Any
) -> None:
    failed = DeviceProfile(opencl.id, "opencl", Status.FAIL, reason="2 + 2 = 5", info=opencl)
    probes: list[tuple[str, ...]] = []

    def look(*, quick: bool, devices: list[str], threads: int | None) -> Machine:
        probes.append(tuple(devices))
        return no_profile(failed)

    monkeypatch.setattr(knowledge, "probe", look)
    monkeypatch.setattr(knowledge, "_PROBED", {})
    for _ in range(2):
        with xd.compile(graph(4), ["cpu:0", opencl.id], measure=1.0) as session:
            assert {s.device for s in session.plan.launches()} == {"cpu:0"}
            assert "failed its probe: 2 + 2 = 5" in session.plan.explain_op("mm")
    assert probes == [("cpu:0", opencl.id)], "once a process"


def test_sessions_compiled_at_once_do_not_disturb_each_other(machine: Bench) -> None:
    """The cost model has one writer: measuring in several threads neither fails nor mixes up."""
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            with xd.compile(graph(4 + i), machine.sim(f"d{i}"), measure=5.0) as session:
                session.run({"x": np.ones((4 + i, 4 + i), np.float32), "i": np.zeros(4 + i, "i4")})
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
