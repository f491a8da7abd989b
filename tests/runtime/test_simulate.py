"""Replaying plans on virtual time: chains add up, queues keep order, groups share their devices."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.runtime.errors import PlanError
from crossdock.runtime.plan import Plan
from crossdock.runtime.simulate import simulate
from tests.runtime.handmade import device, plan, step


def test_a_chain_takes_the_sum() -> None:
    made = simulate(
        plan(
            [
                step(0, "cpu:0/compute", 1.0),
                step(1, "cuda:0/upload", 0.5, (0,)),
                step(2, "cuda:0/compute", 2.0, (1,)),
                step(3, "cuda:0/download", 0.25, (2,)),
            ]
        )
    )
    assert made.makespan == 3.75
    np.testing.assert_array_equal(made.start, [0.0, 1.0, 1.5, 3.5])
    assert made.busy == {
        "cpu:0/compute": 1.0,
        "cuda:0/upload": 0.5,
        "cuda:0/compute": 2.0,
        "cuda:0/download": 0.25,
    }


def test_independent_queues_overlap() -> None:
    made = simulate(plan([step(0, "cpu:0/compute", 1.0), step(1, "cuda:0/compute", 3.0)]))
    assert made.makespan == 3.0


def test_a_queue_keeps_its_order_although_its_head_waits() -> None:
    made = simulate(
        plan(
            [
                step(0, "cpu:0/compute", 5.0),
                step(1, "cuda:0/compute", 1.0, (0,)),
                step(2, "cuda:0/compute", 1.0),
            ]
        )
    )
    np.testing.assert_array_equal(made.start, [0.0, 5.0, 6.0])


def test_a_wait_within_a_queue_is_harmless() -> None:
    made = simulate(plan([step(0, "cpu:0/compute", 1.0), step(1, "cpu:0/compute", 1.0, (0,))]))
    assert made.makespan == 2.0


def test_devices_of_a_group_share_it_by_capacity() -> None:
    steps = [step(0, "cpu:0/compute", 1.0), step(1, "opencl:0/compute", 1.0)]
    both = plan(steps, device("cpu:0", "host"), device("opencl:0", "host"))
    assert simulate(both).makespan == 2.0
    assert simulate(both, {"host": 2}).makespan == 1.0


def test_copies_take_no_share_of_a_group() -> None:
    steps = [step(0, "cpu:0/compute", 1.0), step(1, "opencl:0/upload", 1.0)]
    both = plan(steps, device("cpu:0", "host"), device("opencl:0", "host"))
    assert simulate(both).makespan == 1.0


def test_scale_slows_a_device_and_not_its_copies() -> None:
    steps = [step(0, "cuda:0/upload", 1.0), step(1, "cuda:0/compute", 1.0, (0,))]
    assert simulate(plan(steps), scale={"cuda:0": 3.0}).makespan == 4.0


def test_a_plan_without_steps_takes_no_time() -> None:
    made = simulate(plan([]))
    assert made.makespan == 0.0
    assert made.start.shape == (0,)


def test_a_wait_for_a_later_step_is_refused() -> None:
    with pytest.raises(PlanError, match="#0 waits"):
        simulate(plan([step(0, "cpu:0/compute", 1.0, (1,)), step(1, "cuda:0/compute", 1.0)]))


def test_a_scale_of_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="scale of cpu:0"):
        simulate(plan([]), scale={"cpu:0": 0.0})


QUEUES = ("cpu:0/compute", "opencl:0/compute", "opencl:0/upload", "opencl:0/download")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    steps = []
    for index in range(draw(st.integers(0, 24))):
        waits = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        # Halves are exact in binary, so sums do not depend on their order.
        seconds = draw(st.integers(0, 8)) / 2
        steps.append(step(index, draw(st.sampled_from(QUEUES)), seconds, tuple(sorted(waits))))
    return plan(steps, device("cpu:0", "host"), device("opencl:0", "host"))


def critical_path(made: Plan) -> float:
    """The longest chain through waits and queue order: no replay can be shorter."""
    ends: list[float] = []
    last: dict[str, float] = {}
    for s in made.steps:
        begin = max([last.get(s.queue, 0.0), *(ends[w] for w in s.waits)])
        ends.append(begin + s.seconds)
        last[s.queue] = ends[-1]
    return max(ends, default=0.0)


@given(plans(), st.integers(1, 2))
def test_every_rule_holds(made: Plan, capacity: int) -> None:
    got = simulate(made, {"host": capacity})
    last: dict[str, float] = {}
    for s in made.steps:
        assert got.finish[s.index] == got.start[s.index] + s.seconds
        assert got.start[s.index] >= last.get(s.queue, 0.0)
        assert all(got.start[s.index] >= got.finish[w] for w in s.waits)
        last[s.queue] = float(got.finish[s.index])
    computing = [s for s in made.steps if s.kind == "launch" and s.seconds > 0]
    for s in computing:
        beside = [
            o.index
            for o in computing
            if got.start[o.index] <= got.start[s.index] < got.finish[o.index]
        ]
        assert len(beside) <= capacity


@given(plans())
def test_makespan_lies_between_its_bounds(made: Plan) -> None:
    alone = simulate(made, {"host": 1})
    free = simulate(made, {"host": 2})
    assert critical_path(made) == free.makespan <= alone.makespan
    assert alone.makespan >= sum(s.seconds for s in made.steps if s.kind == "launch")
    assert alone.makespan <= sum(s.seconds for s in made.steps)


@given(plans(), st.integers(2, 5))
def test_slowing_everything_slows_the_whole_alike(made: Plan, factor: int) -> None:
    launches = dataclasses.replace(made, steps=tuple(s for s in made.steps if s.kind == "launch"))
    index = {s.index: i for i, s in enumerate(launches.steps)}
    steps = tuple(
        dataclasses.replace(s, index=i, waits=tuple(index[w] for w in s.waits if w in index))
        for i, s in enumerate(launches.steps)
    )
    launches = dataclasses.replace(launches, steps=steps)
    slow = simulate(launches, scale={"cpu:0": float(factor), "opencl:0": float(factor)})
    assert slow.makespan == factor * simulate(launches).makespan
