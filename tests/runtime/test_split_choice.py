"""Splitting over unequal devices: near the best split there is, and declined below break-even."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.devices.sim import SimDevice
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing
from crossdock.runtime.graph import Graph
from crossdock.runtime.knowledge import group_capacity
from crossdock.runtime.plan import Constraints, Plan
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.ready import make_ready
from crossdock.runtime.split import SplitGraph, grow
from crossdock.runtime.split_choice import Planned, plan_parts, plan_split
from crossdock.runtime.split_cost import Shares
from crossdock.runtime.target import Target
from crossdock.scheduler import DeviceRates, LinkModel
from tests.runtime.conftest import Machine

GRID = 8


def product() -> Graph:
    """relu(x W)."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("product")
    x, w = b.input("x", (256, 64)), rng.standard_normal((64, 512)).astype(np.float32)
    return b.build({"y": b.relu(b.matmul(x, b.constant(w), label="mm"))})


def convolution() -> Graph:
    """A convolution of one image, so that only its output channels can be cut."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("convolution")
    x, w = b.input("x", (1, 8, 32, 32)), rng.standard_normal((128, 8, 3, 3)).astype(np.float32)
    y = b.conv2d(x, b.constant(w), padding=[1] * 4, label="conv")
    return b.build({"y": b.relu(y)})


def chain() -> Graph:
    """Elementwise ops on two inputs."""
    b = xd.GraphBuilder("chain")
    x, z = b.input("x", (256, 1024)), b.input("z", (1024,))
    return b.build({"y": b.mul(b.tanh(b.add(x, z, label="add")), b.exp(x))})


GRAPHS = {"product": product, "convolution": convolution, "chain": chain}


def feeds_of(graph: Graph) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {n: rng.standard_normal(s.dims).astype(np.float32) for n, s in graph.inputs.items()}


def virtual_seconds(machine: Machine, graph: Graph, planned: Planned, ids: list[str]) -> float:
    """Run a plan on fresh simulated devices; seconds on their clocks. The answer is checked."""
    for name in ids:
        machine.forget(name)
    devices = {name: machine.device(name) for name in ("cpu:0", *ids)}
    ready = make_ready(graph, planned, frozenset(ids), devices, 1, {})
    feeds = feeds_of(graph)
    outcome = ready.run(feeds, Deadline(), profile=True)
    for name, value in evaluate(graph, feeds).items():
        np.testing.assert_allclose(outcome.outputs[name], value, rtol=1e-4, atol=1e-5)
    spans = [s for row in outcome.spans.values() for s in row]
    return max(s.end for s in spans) - min(s.start for s in spans)


def known(machine: Machine, ids: list[str]) -> None:
    """Tell the cost model what the simulated devices and the host take, in place of measuring."""
    model, host = costing.store().model, machine.device("cpu:0").info
    model.set_rates(host.fingerprint, DeviceRates({"*": 1e10}, 5e9, 1e-6))
    for name in ids:
        device = machine.device(name)
        assert isinstance(device, SimDevice)
        spec, here = device.spec, device.info.fingerprint
        rates = DeviceRates({"*": spec.speed_flops * 1e3}, spec.bandwidth, spec.launch_s)
        model.set_rates(here, rates)
        link = LinkModel(spec.link_latency, ((1.0, spec.link_bandwidth),))
        model.set_link(host.fingerprint, here, link)
        model.set_link(here, host.fingerprint, link)


def target_of(machine: Machine, ids: list[str]) -> Target:
    """The target that a session for these devices plans for, with what it has measured."""
    infos = tuple(machine.device(name).info for name in ("cpu:0", *ids))
    return Target(infos, frozenset(ids), costing.store().model, group_capacity(infos))


def best_of_grid(machine: Machine, graph: Graph, target: Target, ids: list[str]) -> float:
    """The least seconds over all axes of the heavy op and all shares on a grid, by running them."""
    options = Options(constraints=Constraints())
    whole = Planned(SplitGraph(graph), make_plan(graph, target, options))
    found = [virtual_seconds(machine, graph, whole, ids)]
    node = graph.nodes[0]
    for axis in range(graph.specs[node.outputs[0]].rank):
        region = grow(graph, node, axis)
        if region is None or region.units % GRID:
            continue
        for k in range(1, GRID):
            sizes = (region.units * k // GRID, region.units - region.units * k // GRID)
            cut = (region, Shares((ids[0], ids[1]), sizes, 0.0))
            made = plan_parts(whole, [cut], target, options)
            assert made is not None
            found.append(virtual_seconds(machine, graph, made, ids))
    return min(found)


@pytest.mark.parametrize("ratio", [1.0, 5.0])
@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_a_split_is_near_the_best_of_a_grid(machine: Machine, name: str, ratio: float) -> None:
    graph = GRAPHS[name]()
    fast = machine.sim("fast", bandwidth=2e9, link_bandwidth=2e10, link_latency=1e-6)
    slow = machine.sim("slow", bandwidth=2e9 / ratio, link_bandwidth=2e10, link_latency=1e-6)
    ids = [fast, slow]
    measured = name == "chain"
    if not measured:
        known(machine, ids)
    with xd.compile(graph, ids, measure=measured) as session:
        planned_seconds = session.estimate().seconds
        taken = [s for s in session.plan.splits if s.taken]
        assert taken, session.plan.explain()
        assert set(taken[0].devices) == {fast, slow}
        assert f"split {taken[0].seed}" in session.plan.explain()
        assert Plan.from_json(json.loads(json.dumps(session.plan.to_json()))) == session.plan
        assert session.plan.predicted < min(
            d.single_seconds for d in session.plan.devices if d.single_seconds is not None
        )
    best = best_of_grid(machine, graph, target_of(machine, ids), ids)
    assert planned_seconds <= 1.10 * best


@pytest.mark.parametrize("latency", [5e-5, 1e-3])
@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_break_even(machine: Machine, name: str, latency: float) -> None:
    """With dearer links the choice stays near the best of the grid, whole or in parts."""
    graph = GRAPHS[name]()
    near = machine.sim("near", bandwidth=2e9, link_bandwidth=2e10, link_latency=1e-6)
    far = machine.sim("far", bandwidth=1e9, link_bandwidth=1e10, link_latency=latency)
    ids = [near, far]
    known(machine, ids)
    with xd.compile(graph, ids, measure=False) as session:
        taken = any(s.taken for s in session.plan.splits)
        chosen = session.estimate().seconds
        whole = min(d.single_seconds for d in session.plan.devices if d.single_seconds is not None)
        assert all("break-even" in s.reason for s in session.plan.splits) or taken
    best = best_of_grid(machine, graph, target_of(machine, ids), ids)
    assert chosen <= 1.10 * best
    if latency == 1e-3:  # each way longer than the whole takes
        assert not taken
        assert chosen == pytest.approx(whole)


def test_named_ops_and_other_policies_are_left_whole(machine: Machine) -> None:
    graph = product()
    ids = [machine.sim("a", bandwidth=2e9), machine.sim("b", bandwidth=2e9)]
    known(machine, ids)
    target = target_of(machine, ids)
    assert any(s.taken for s in plan_split(graph, target, Options()).plan.splits)
    pinned = Options(constraints=Constraints(pin={"mm": ids[1]}))
    plan = plan_split(graph, target, pinned).plan
    assert {s.device for s in plan.launches() if s.op == "matmul"} == {ids[1]}
    assert not any("mm" in s.ops for s in plan.splits)
    assert plan_split(graph, target, Options(policy="best_single")).plan.splits == ()


def test_devices_that_share_compute_split_nothing(machine: Machine) -> None:
    graph = product()
    ids = [machine.sim(n, bandwidth=2e9, resource_group="one chip") for n in ("a", "b")]
    known(machine, ids)
    plan = plan_split(graph, target_of(machine, ids), Options()).plan
    assert plan == make_plan(graph, target_of(machine, ids), Options())


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_parts_on_real_devices(opencl: DeviceInfo, name: str, costs: costing.CostStore) -> None:
    """Parts of one answer from the processor and from OpenCL, along every axis, in every order."""
    graph = GRAPHS[name]()
    ids = ("cpu:0", opencl.id)
    devices = {i: registry.open_device(i) for i in ids}
    infos = tuple(d.info for d in devices.values())
    target = Target(infos, frozenset(ids), costs.model, group_capacity(infos))
    whole = Planned(SplitGraph(graph), make_plan(graph, target, Options()))
    feeds = feeds_of(graph)
    want = evaluate(graph, feeds)
    node = graph.nodes[0]
    for axis in range(graph.specs[node.outputs[0]].rank):
        region = grow(graph, node, axis)
        if region is None:
            continue
        third = max(1, region.units // 3)
        for on in (ids, ids[::-1]):
            shares = Shares(on, (third, region.units - third), 0.0)
            made = plan_parts(whole, [(region, shares)], target, Options())
            assert made is not None
            ready = make_ready(graph, made, frozenset(ids), devices, 1, {})
            got = ready.run(feeds, Deadline(), profile=False).outputs
            assert list(got) == list(graph.outputs)
            for output, value in want.items():
                np.testing.assert_allclose(got[output], value, rtol=1e-4, atol=1e-4)
