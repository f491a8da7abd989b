"""Objectives of real plans: placed for, predicted, printed, and kept by the executor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.sim import SimDevice
from crossdock.runtime import costing
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.simulate import simulate
from crossdock.scheduler import DeviceRates, LinkModel
from crossdock.scheduler.objective import Objective
from tests.runtime.conftest import Machine
from tests.runtime.test_planner import CPU, A, B, target, where

QUICK = DeviceRates({"*": 1e9}, 1e9, 1e-6)
FRUGAL = DeviceRates({"*": 2.5e8}, 2.5e8, 1e-6)
IDLE = DeviceRates({"*": 1e3}, 1e3, 1e-2)


def chain(length: int = 6, size: int = 64) -> Graph:
    """Products with weights, one after the other."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("chain")
    y = b.input("x", (size, size))
    for i in range(length):
        w = b.constant((rng.standard_normal((size, size)) / size**0.5).astype(np.float32))
        y = b.matmul(y, w, label=f"m{i}")
    return b.build({"y": y})


def test_each_objective_has_a_plan_of_its_own_and_prints_its_value() -> None:
    watts = {CPU.id: (0.0, 1.0), A.id: (0.0, 100.0), B.id: (0.0, 3.0)}
    on = replace(target((CPU, IDLE), (A, QUICK), (B, FRUGAL)), watts=watts)
    plans: dict[str, Plan] = {
        name: make_plan(chain(), on, Options(objective=Objective.of(name)))
        for name in ("latency", "throughput", "energy")
    }
    assert set(where(plans["latency"]).values()) == {A.id}
    assert set(where(plans["throughput"]).values()) == {A.id, B.id}
    assert set(where(plans["energy"]).values()) == {B.id}
    for name, plan in plans.items():
        assert plan.goal.objective == name
        assert f"objective {name}: " in plan.explain()
        assert plan.goal.bound <= plan.goal.value
        for other in plans.values():  # each is the best of the three by its own measure
            assert _term(plan, name) <= _term(other, name) * (1 + 1e-12)
    assert "ms between runs" in plans["throughput"].explain()
    assert "J a run" in plans["energy"].explain()


def _term(plan: Plan, name: str) -> float:
    values = {
        "latency": plan.predicted,
        "throughput": plan.goal.interval,
        "energy": plan.goal.joules,
    }
    found = values[name]
    assert found is not None
    return found


def test_energy_names_the_devices_whose_watts_are_missing() -> None:
    on = replace(target((CPU, IDLE), (A, QUICK)), watts={A.id: (1.0, 2.0)})
    with pytest.raises(PlanError, match=r"needs the watts of cpu:0; give watts=\{'cpu:0'"):
        make_plan(chain(), on, Options(objective=Objective(0.0, 0.0, 1.0)))


def test_a_replay_of_many_runs_comes_to_the_predicted_interval() -> None:
    on = target((CPU, IDLE), (A, QUICK), (B, FRUGAL))
    for name in ("latency", "throughput"):
        plan = make_plan(chain(), on, Options(objective=Objective.of(name)))
        many = simulate(plan, on.capacity, runs=40)
        assert many.interval == pytest.approx(plan.goal.interval, rel=1e-6)
        assert many.run_ends[0] == pytest.approx(simulate(plan, on.capacity).makespan)


def test_submitted_runs_overlap_as_predicted(machine: Machine, costs: costing.CostStore) -> None:
    """The real executor, on virtual clocks: the interval is the plan's, well below a run's time."""
    one = machine.sim("one", speed_flops=2e9, bandwidth=1e12, link_bandwidth=1e11)
    two = machine.sim("two", speed_flops=2e9, bandwidth=1e12, link_bandwidth=1e11)
    for info in (d.info for d in map(registry.open_device, (one, two))):
        costs.model.set_rates(info.fingerprint, DeviceRates({"*": 2e9}, 1e12, 5e-6))
    _set_links(costs, one, two)
    session = xd.compile(chain(), [one, two], objective="throughput", measure=False)
    plan = session.plan
    assert len({s.device for s in plan.launches()}) == 2
    feed = {"x": np.ones((64, 64), np.float32)}
    want = session.run(feed)["y"]
    devices = [d for d in session.devices.values() if isinstance(d, SimDevice)]
    began = max(d.now for d in devices)
    runs = 30
    for future in [session.submit(feed) for _ in range(runs)]:
        np.testing.assert_array_equal(future.result()["y"], want)
    measured = (max(d.now for d in devices) - began) / runs
    # The first run crosses both devices before the steady state begins.
    fill = (plan.predicted - plan.goal.interval) / runs
    assert measured - fill == pytest.approx(plan.goal.interval, rel=0.05)
    assert plan.goal.interval < 0.6 * plan.predicted


def _set_links(costs: costing.CostStore, *ids: str) -> None:
    for name in ids:
        info = registry.open_device(name).info
        wire = LinkModel(1e-5, ((1.0, 1e11),))
        costs.model.set_link(CPU.fingerprint, info.fingerprint, wire)
        costs.model.set_link(info.fingerprint, CPU.fingerprint, wire)


def test_two_runs_are_in_flight_at_once(opencl: xd.DeviceInfo) -> None:
    """cpu:0 and an OpenCL device: one run is on the one while another is on the other."""
    half = {f"m{i}": ("cpu:0" if i < 4 else opencl.id) for i in range(8)}
    rules = xd.Constraints(pin=half)
    feed = {"x": np.ones((512, 512), np.float32)}
    with xd.compile(
        chain(8, 512), ["cpu:0", opencl.id], constraints=rules, measure=False
    ) as session:
        want = session.run(feed)["y"]
        with ThreadPoolExecutor(6) as pool:
            for _ in range(2):  # the first makes the instances
                posted = [pool.submit(session.profile, feed) for _ in range(6)]
                outcomes = [future.result() for future in posted]
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.outputs["y"], want, atol=1e-2)
    assert any(
        a.start < b.end and b.start < a.end
        for i, one in enumerate(outcomes)
        for j, other in enumerate(outcomes)
        if i != j
        for a in one.spans["cpu:0/compute"]
        for b in other.spans[f"{opencl.id}/compute"]
    )
