"""Sweeping batches and device sets: points, and the batch from which a set pays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.devices.base import Cap, DeviceInfo
from crossdock.runtime import planner
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.knowledge import group_capacity
from crossdock.runtime.split_choice import plan_split
from crossdock.runtime.sweep import Plans, Sweep, Sweeper, default_sets
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel, DeviceRates, LinkModel

CPU, CARD = "cpu:0", "cuda:0"
ROW = 1024
"""Bytes of one sample."""


def info(name: str, group: str) -> DeviceInfo:
    return DeviceInfo(
        id=name,
        kind=name.partition(":")[0],
        name=name,
        vendor="nobody",
        driver="1",
        physical_id=name,
        resource_group=group,
        compute_units=1,
        memory_bytes=1 << 40,
        caps=frozenset({Cap.ARRAY, Cap.GRID, Cap.NATIVE, Cap.FLOAT64}),
        fingerprint=f"print of {name}",
        max_work_group=256,
        local_memory=1 << 15,
    )


class Model:
    """One relu a batch: the host takes a microsecond a sample, the card nothing but its link."""

    def __init__(self, latency: float, rate: float = 1e12) -> None:
        self.latency, self.rate = latency, rate
        self.measured: list[tuple[int, bool]] = []

    def at(self, batch: int, measure: bool) -> tuple[Graph, Target, Plans]:
        self.measured.append((batch, measure))
        b = GraphBuilder("one op")
        graph = b.build({"y": b.relu(b.input("x", (batch, ROW // 4)))})
        infos = info(CPU, "host-cpu"), info(CARD, "card")
        model = CostModel()
        # An op reads and writes every byte once: 2 * ROW a sample.
        model.set_rates(infos[0].fingerprint, DeviceRates({"*": 1e15}, 2 * ROW * 1e6, 0.0))
        model.set_rates(infos[1].fingerprint, DeviceRates({"*": 1e15}, 1e15, 0.0))
        for ends in ((0, 1), (1, 0)):
            link = LinkModel(self.latency, ((1.0, self.rate),))
            model.set_link(*(infos[e].fingerprint for e in ends), link)
        capacity = group_capacity(infos, 1)
        return graph, Target(infos, frozenset({CPU, CARD}), model, capacity), plan_split


def sweep(model: Model, *batches: int) -> Sweep:
    return Sweeper(model.at, planner.Options()).sweep(batches)


def even(made: Sweep, *devices: str, versus: str = CPU) -> int | None:
    found = [b for b in made.break_even if (b.devices, b.versus) == (devices, versus)]
    assert len(found) == 1
    return found[0].batch


def test_every_batch_is_planned_on_each_device_and_on_all_together() -> None:
    made = sweep(Model(1e-4), 64, 1)
    assert made.batches == (1, 64)
    assert made.sets == ((CPU,), (CARD,), (CPU, CARD))
    assert [(p.batch, p.devices) for p in made.points] == [
        (b, s) for b in (1, 64) for s in made.sets
    ]
    host = made.point(64, (CPU,))
    assert host.seconds == pytest.approx(64e-6)
    assert host.throughput == pytest.approx(1e6)
    assert host.shares == {CPU: 1.0}


def test_the_break_even_is_where_the_two_lines_cross() -> None:
    """The card pays from 2 * latency / 1 us on: 200 samples, and 1 % more for it to be sure."""
    made = sweep(Model(1e-4), 1, 8, 4096)
    assert even(made, CARD) == pytest.approx(202, abs=1)
    assert even(made, CPU, CARD) == even(made, CARD)
    assert made.point(8, (CARD,)).seconds == pytest.approx(2e-4, rel=1e-2)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 1000), st.integers(2, 5000))
def test_bisection_finds_what_trying_every_batch_would(micros: int, last: int) -> None:
    model = Model(micros * 1e-6)
    made = sweep(model, 1, last)
    found = even(made, CARD)
    host = Sweeper(model.at, planner.Options())

    def pays(batch: int) -> bool:
        alone, card = (host.point(batch, s).seconds for s in ((CPU,), (CARD,)))
        assert alone is not None
        assert card is not None
        return card <= 0.99 * alone

    if found is None:
        assert not pays(last)
    else:
        assert pays(found)
        assert found == 1 or not pays(found - 1)


def test_only_the_batches_asked_for_are_measured() -> None:
    model = Model(1e-4)
    sweep(model, 1, 4096)
    assert {b for b, measure in model.measured if measure} == {1, 4096}
    assert len([b for b, measure in model.measured if not measure]) <= 12
    assert len({b for b, _ in model.measured}) == len(model.measured)


def test_a_set_that_never_pays_and_one_that_always_does() -> None:
    slow = sweep(Model(1.0), 1, 64)
    assert even(slow, CARD) is None
    fast = sweep(Model(1e-9), 2, 64)
    assert even(fast, CARD) == 2
    assert not fast.break_even[0].exact


def test_a_set_without_a_plan_says_why_and_never_pays() -> None:
    model = Model(1e-9)

    def at(batch: int, measure: bool) -> tuple[Graph, Target, Plans]:
        graph, target, plans = model.at(batch, measure)
        small = tuple(
            info if info.id == CPU else DeviceInfo(**{**_fields(info), "memory_bytes": 8})
            for info in target.devices
        )
        return graph, Target(small, target.asked, target.model, target.capacity), plans

    made = Sweeper(at, planner.Options()).sweep([1, 2], [(CARD,), (CPU,)])
    point = made.point(2, (CARD,))
    assert point.seconds is None
    assert point.throughput is None
    assert "cuda:0" in point.reason
    assert even(made, CARD) is None


def _fields(given: DeviceInfo) -> dict[str, object]:
    return {name: getattr(given, name) for name in given.__dataclass_fields__}


def test_sets_are_in_the_devices_order_and_must_be_there() -> None:
    made = Sweeper(Model(1e-4).at, planner.Options()).sweep([1], [(CARD, CPU)])
    assert made.sets == ((CPU, CARD),)
    with pytest.raises(PlanError, match="--set cuda:9: no such device"):
        Sweeper(Model(1e-4).at, planner.Options()).sweep([1], [("cuda:9",)])


def test_one_device_is_one_set() -> None:
    assert default_sets([CPU]) == ((CPU,),)
