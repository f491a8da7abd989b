"""Devices that copy from each other: what is measured, planned, told, and accepted of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import probe_links, probe_trials, registry
from crossdock.devices.links import link_ends
from crossdock.devices.machine import Measured
from crossdock.devices.probe_rates import QUICK
from crossdock.runtime import costing, given, measure, profiles, whatif
from crossdock.runtime.errors import PlanError
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel, LinkModel
from tests.runtime.conftest import Machine, no_profile
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_planner import CPU, FAST, SLOW, A, B, target, two_branches

WIRED = {(A.id, B.id): "a wire", (B.id, A.id): "a wire"}
PIN = {"left": A.id, "right": B.id, "join": B.id}


def joined(rate: float | None, peers: Mapping[tuple[str, str], str] = WIRED) -> Target:
    """Two devices with a direct link of so many bytes a second, or one not measured."""
    made = replace(target((CPU, SLOW), (A, FAST), (B, FAST)), peers=peers)
    for ends in peers:
        if rate is not None:
            made.model.set_link(*link_ends(*map(made.info, ends)), LinkModel(1e-6, ((1.0, rate),)))
    return made


def planned(on: Target, size: int = 64, **constraints: Any) -> Plan:
    rules = Constraints(pin=PIN, **constraints)
    return make_plan(two_branches(size), on, Options(constraints=rules))


def between(plan: Plan) -> list[tuple[str, str]]:
    return [(c.src, c.dst) for c in plan.copies() if c.name not in ("x",)]


def test_a_copy_is_direct_where_that_takes_no_longer_than_through_the_host() -> None:
    direct = planned(joined(1e11))
    assert between(direct) == [(A.id, B.id), (B.id, HOST)]
    copy = next(c for c in direct.copies() if c.src == A.id)
    assert (copy.device, copy.queue, copy.source) == (B.id, f"{B.id}/upload", "measured")
    assert copy.seconds == pytest.approx(1e-6 + 64 * 64 * 4 / 1e11)
    assert copy.name not in direct.device(HOST).offsets, "it takes no memory of the host"
    for other in (joined(1e8), joined(1e11, {})):
        assert set(between(planned(other))) == {(A.id, HOST), (HOST, B.id), (B.id, HOST)}
    assert direct.predicted < planned(joined(1e11, {})).predicted
    unknown = planned(joined(None))
    assert {c.source for c in unknown.copies() if c.src == A.id} <= {"unknown", "measured"}


def test_a_faster_link_moves_ops_to_the_second_device() -> None:
    """Two branches side by side pay off where their results meet over a fast link."""
    graph = two_branches(256)
    crawling = LinkModel(0.2, ((1.0, 1e9),))
    rated = ((CPU, SLOW), (A, SLOW), (B, SLOW))
    slow_wire = target(*rated, link=crawling, asked=[A, B])
    fast = replace(slow_wire, peers=WIRED)
    for ends in WIRED:
        fast.model.set_link(*link_ends(*map(fast.info, ends)), LinkModel(1e-6, ((1.0, 1e11),)))
    plan, through_host = (make_plan(graph, on, Options()) for on in (fast, slow_wire))
    assert plan.predicted < through_host.predicted
    assert {s.device for s in plan.launches()} == {A.id, B.id}
    assert len({s.device for s in through_host.launches()}) == 1


def test_a_plan_with_direct_copies_is_only_for_devices_that_make_them() -> None:
    on = joined(1e11)
    graph = two_branches()
    plan = planned(on)
    assert given.checked(Plan.from_json(plan.to_json()), graph, on) == plan
    with pytest.raises(PlanError, match="copies nothing that the graph has"):
        given.checked(plan, graph, replace(on, peers={}))
    staged = planned(replace(on, peers={}))
    assert given.checked(staged, graph, on) == staged


def test_a_direct_link_may_be_supposed() -> None:
    on = joined(1e11)
    changes = whatif.Changes(links={(A.id, B.id): 1e6})
    there = whatif.changed(on, changes)
    assert set(between(planned(there))) == {(A.id, HOST), (HOST, B.id), (B.id, HOST)}
    with pytest.raises(PlanError, match="transfers pass through cpu:0"):
        whatif.changed(replace(on, peers={}), changes)


def test_links_of_two_cards_of_one_model_are_told_apart() -> None:
    cards = [
        replace(A, id=f"cuda:{i}", fingerprint="a card", physical_id=f"pci-{i}") for i in "012"
    ]
    model = CostModel()
    for i, j, rate in ((0, 1, 1e11), (0, 2, 1e10)):
        model.set_link(*link_ends(cards[i], cards[j]), LinkModel(0.0, ((1.0, rate),)))
    on = Target((CPU, *cards), frozenset(), model)
    assert on.link(cards[0], cards[1]).bandwidth(1) == 1e11
    assert on.link(cards[0], cards[2]).bandwidth(1) == 1e10
    assert link_ends(cards[1], cards[0]) not in [link_ends(cards[0], c) for c in cards[1:]]
    assert link_ends(CPU, cards[0]) == link_ends(CPU, cards[1]), "to the host all are alike"


@pytest.fixture
def wired(machine: Machine) -> tuple[str, str]:
    spec = {"peers": ("a", "b"), "peer_bandwidth": 1e11, "peer_latency": 2e-6}
    return machine.sim("a", **spec), machine.sim("b", **spec)


def test_a_session_measures_the_link_and_copies_over_it(
    wired: tuple[str, str], costs: costing.CostStore
) -> None:
    rules = xd.Constraints(pin=PIN)
    graph = two_branches()
    with xd.compile(graph, wired, constraints=rules, measure=0.05) as session:
        session.profile(whole_feeds(graph, 0))
        link = session.receipt.transfers["sim:a->sim:b"]
        assert (link.nbytes, link.copies) == (64 * 64 * 4, 1)
        assert link.measured is not None
        assert "sim:a->sim:b 16384 B by direct" in session.plan.explain()
    infos = [registry.open_device(name).info for name in wired]
    found = costs.model.link(*link_ends(*infos))
    assert found is not None
    assert found.seconds(1 << 20) == pytest.approx(2e-6 + (1 << 20) / 1e11, rel=0.02)
    before = costs.model.version
    measure.measure_peer(*(registry.open_device(name) for name in wired), costs.model)
    assert costs.model.version == before, "it is known"


def test_a_probe_times_direct_links_and_a_profile_plans_with_them(wired: tuple[str, str]) -> None:
    benches = [probe_trials.Bench(registry.open_device(name)) for name in (HOST, *wired)]
    effort = replace(QUICK, transfers=(4096, 1 << 16))
    found = {}
    host = np.ones(16 << 20, np.uint8)
    for link in probe_links.links(benches):
        trials = probe_links.trials(link, effort, host)
        samples = {trial.key: Measured.of([trial.sample()]) for trial in trials}
        found[link.src.id, link.dst.id] = probe_links.profile(link, samples)
    for bench in benches:
        bench.release()
    assert found[wired].route == wired
    assert (found[wired].how, found[HOST, wired[0]].how) == ("direct", "")
    machine = replace(no_profile(), links=tuple(found.values()))
    assert profiles.peers(machine) == dict.fromkeys((wired, wired[::-1]), "direct")
