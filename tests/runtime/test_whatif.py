"""What a change of the target does to a plan, and why ops move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crossdock.devices.base import Cap, DeviceInfo
from crossdock.runtime import costing, planner
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.knowledge import group_capacity
from crossdock.runtime.plan import Plan
from crossdock.runtime.prediction import run_mark
from crossdock.runtime.split_choice import plan_split
from crossdock.runtime.target import Target
from crossdock.runtime.whatif import Changes, Comparison, Why, changed, compare
from crossdock.scheduler import CostModel, DeviceRates, LinkModel

CPU, CARD = "cpu:0", "cuda:0"
KERNELS = {CPU: 1e-3, CARD: 1e-4}
"""Seconds of every op."""


def info(name: str, group: str, units: int = 1, memory: int = 1 << 30) -> DeviceInfo:
    kind = name.partition(":")[0]
    caps = frozenset({Cap.ARRAY, Cap.GRID, Cap.NATIVE, Cap.FLOAT64})
    return DeviceInfo(
        id=name,
        kind=kind,
        name=name,
        vendor="nobody",
        driver="1",
        physical_id=name,
        resource_group=group,
        compute_units=units,
        memory_bytes=memory,
        caps=caps,
        fingerprint=f"print of {name}",
        max_work_group=256,
        local_memory=1 << 15,
    )


def branches(depth: int = 4) -> Graph:
    b = GraphBuilder("two branches")
    x = b.input("x", (64, 64))
    w = b.constant(np.ones((64, 64), np.float32))
    ends: list[Any] = []
    for side in "ab":
        y = x
        for i in range(depth):
            y = b.matmul(y, w, label=f"{side}{i}")
        ends.append(y)
    return b.build({"y": b.add(*ends, label="sum")})


def target(graph: Graph, *infos: DeviceInfo, seconds: dict[str, float] | None = None) -> Target:
    """Every kernel of a device takes the same."""
    model = CostModel()
    for call in costing.op_calls(graph).values():
        for device in infos:
            found = costing.offers(call, [device], model).best[device.id].kernel
            spent = (seconds or KERNELS)[device.id]
            model.record_many(device.fingerprint, found.name, call.key(), [spent] * 20)
    host = infos[0].fingerprint
    for device in infos[1:]:
        for ends in ((host, device.fingerprint), (device.fingerprint, host)):
            model.set_link(*ends, LinkModel(1e-5, ((1.0, 10e9),)))
    return Target(infos, frozenset(d.id for d in infos), model, group_capacity(infos, 2))


def card() -> tuple[Graph, Target]:
    graph = branches()
    return graph, target(graph, info(CPU, "host-cpu"), info(CARD, "card"))


def shared() -> tuple[Graph, Target]:
    """Two devices on one core each of the same processor."""
    graph = branches()
    both = info(CPU, "host-cpu"), info("opencl:0", "host-cpu")
    return graph, target(graph, *both, seconds={CPU: 1e-3, "opencl:0": 1e-3})


def what(graph: Graph, before: Target, changes: Changes) -> Comparison:
    def plan(on: Target) -> Plan:
        return planner.make_plan(graph, on, planner.Options())

    return compare(plan(before), plan(changed(before, changes)), before, changes)


def test_without_a_device_its_ops_move_since_it_is_gone() -> None:
    got = what(*card(), Changes(without=(CARD,)))
    assert got.before.shares()[CARD] > 0.9
    assert got.after.device_ids() == (CPU,)
    assert {(m.src, m.dst, m.why) for m in got.moves} == {(CARD, CPU, Why.GONE)}
    assert len(got.moves) == round(got.before.shares()[CARD] * len(got.before.launches()))
    assert got.after.predicted == pytest.approx(9e-3)
    assert {(m.before, m.after) for m in got.moves} == {(KERNELS[CARD], KERNELS[CPU])}


def test_a_slow_link_brings_the_ops_home() -> None:
    got = what(*card(), Changes(links={(CPU, CARD): 1e6, (CARD, CPU): 1e6}))
    assert got.moves
    assert {m.why for m in got.moves} == {Why.LINK}
    assert "slower cpu:0->cuda:0: 0.001 GB/s instead of 10" in got.moves[0].detail


def test_a_small_memory_says_what_there_would_have_to_be() -> None:
    got = what(*card(), Changes(memory={CARD: 1000}))
    assert got.moves
    assert {m.why for m in got.moves} == {Why.MEMORY}
    need = got.before.device(CARD).peak_bytes
    assert got.moves[0].detail == f"unchanged, cuda:0 takes {need} B; it has 1000 B"
    assert got.after.device(CARD).peak_bytes <= 1000


def test_one_core_leaves_one_device_at_a_time() -> None:
    got = what(*shared(), Changes(cores=1))
    assert got.before.predicted < 6e-3
    assert got.after.predicted == pytest.approx(9e-3)
    assert {m.why for m in got.moves} <= {Why.CORES}


def test_fewer_cores_slow_a_device_that_has_more() -> None:
    graph = branches()
    before = target(graph, info(CPU, "host-cpu", units=4), info(CARD, "card"))
    got = what(graph, before, Changes(cores=2, without=(CARD,)))
    assert got.after.predicted == pytest.approx(9 * 2e-3)
    fast = what(graph, before, Changes(cores=8, without=(CARD,)))
    assert fast.after.predicted == pytest.approx(9 * 1e-3)


def test_dearer_ops_move_for_their_cost() -> None:
    graph = branches()
    before = target(
        graph,
        info(CPU, "host-cpu", units=4),
        info("cuda:0", "card"),
        seconds={CPU: 1e-4, CARD: 2e-4},
    )
    got = what(graph, before, Changes(threads=1))
    assert got.moves
    assert {m.src for m in got.moves} == {CPU}
    assert {m.why for m in got.moves} == {Why.COST}
    assert got.moves[0].detail == "0.400 ms on cpu:0 instead of 0.100 ms"


def test_fewer_cores_and_threads_together_leave_the_smaller_number() -> None:
    graph = branches()
    before = target(graph, info(CPU, "host-cpu", units=8), info(CARD, "card"))
    alone = Changes(without=(CARD,))
    for given, units in (((2, 4), 2), ((4, 2), 2), ((16, 1), 1)):
        got = what(graph, before, replace(alone, cores=given[0], threads=given[1]))
        assert got.after.predicted == pytest.approx(9 * 1e-3 * 8 / units)


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        (Changes(without=(CARD,)), True),
        (Changes(memory={CARD: 1 << 20}), True),
        (Changes(links={(CPU, CARD): 1e9}), False),
        (Changes(cores=1), False),
    ],
)
def test_what_runs_took_counts_only_where_they_would_take_the_same(
    changes: Changes, counts: bool
) -> None:
    graph, before = card()
    alone = planner.make_plan(graph, changed(before, Changes(without=(CARD,))), planner.Options())
    before.model.record_many(*run_mark(alone), [0.5] * 20)
    other = changed(before, changes)
    only = replace(other, asked=frozenset({CPU}), devices=other.devices[:1])
    made = planner.make_plan(graph, only, planner.Options())
    assert made.predicted == pytest.approx(0.5 if counts else 9e-3, rel=0.05)
    assert made.source == ("measured" if counts else "composed")


def test_nothing_changed_moves_nothing() -> None:
    graph, before = card()
    made = Changes(links={(CPU, CARD): 10e9, (CARD, CPU): 10e9})
    got = what(graph, before, made)
    assert got.moves == ()
    assert got.kept == 1.0
    assert not Changes()


def test_json_has_latency_and_peak_memory_of_both() -> None:
    got = what(*card(), Changes(without=(CARD,)))
    form = got.to_json()
    assert form["before"]["seconds"] == got.before.predicted
    assert form["after"]["peak_bytes"] == {CPU: got.after.device(CPU).peak_bytes}
    assert form["moves"][0]["why"] == "device gone"
    assert form["kept"] == got.kept


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (Changes(without=("cuda:9",)), "--without cuda:9: no such device"),
        (Changes(memory={"cuda:9": 1}), "--memory cuda:9: no such device"),
        (Changes(without=(CPU, CARD)), "leaves no device"),
        (Changes(cores=0), "--cores 0"),
        (Changes(threads=0), "--threads 0"),
    ],
)
def test_changes_that_mean_nothing_are_refused(changes: Changes, said: str) -> None:
    before = card()[1]
    with pytest.raises(PlanError, match=said):
        changed(before, changes)


def test_a_link_of_a_device_that_is_gone_changes_nothing() -> None:
    got = what(*card(), Changes(without=(CARD,), links={(CPU, CARD): 1e9}))
    assert {m.why for m in got.moves} == {Why.GONE}


def test_links_between_two_cards_are_not_there() -> None:
    before = card()[1]
    other = replace(info("cuda:1", "other"), fingerprint="another")
    wide = replace(before, devices=(*before.devices, other))
    with pytest.raises(PlanError, match="pass through cpu:0"):
        changed(wide, Changes(links={(CARD, "cuda:1"): 1e9}))


@pytest.mark.parametrize(
    ("changes", "dst", "why"),
    [
        (Changes(without=("opencl:0",)), CPU, Why.GONE),
        (Changes(without=(CPU,)), "opencl:0", Why.GONE),
        (Changes(cores=1), CPU, Why.CORES),
        (Changes(links={(CPU, "opencl:0"): 1e6, ("opencl:0", CPU): 1e6}), CPU, Why.LINK),
        (Changes(memory={"opencl:0": 1000}), CPU, Why.MEMORY),
    ],
)
def test_an_op_in_parts_comes_together_for_the_same_reasons(
    changes: Changes, dst: str, why: Why
) -> None:
    b = GraphBuilder("product")
    w = b.constant(np.ones((1024, 1024), np.float32))
    graph = b.build({"y": b.matmul(b.input("x", (1024, 1024)), w, label="product")})
    infos = info(CPU, "host-cpu"), info("opencl:0", "host-cpu")
    model = CostModel()
    for device in infos:
        model.set_rates(device.fingerprint, DeviceRates({"*": 1e10}, 1e11, 1e-6))
    for ends in (infos, infos[::-1]):
        model.set_link(*(d.fingerprint for d in ends), LinkModel(1e-5, ((1.0, 10e9),)))
    ids = frozenset(d.id for d in infos)
    before = Target(infos, ids, model, group_capacity(infos, 2))
    plans = [
        plan_split(graph, on, planner.Options()).plan for on in (before, changed(before, changes))
    ]
    assert any(s.taken for s in plans[0].splits)
    got = compare(*plans, before, changes, ["product"])
    assert [(m.name, m.src, m.dst, m.why) for m in got.moves] == [
        ("product", "cpu:0 + opencl:0", dst, why)
    ]
    assert got.moves[0].after > got.moves[0].before
