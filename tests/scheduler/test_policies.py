"""Every policy gives a schedule that keeps every rule, within its bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.runtime.errors import NoPlacement, PlanError
from crossdock.scheduler import (
    DeviceSpec,
    LinkSpec,
    Options,
    Problem,
    Schedule,
    TaskSpec,
    policy,
    policy_names,
    schedule,
    validate,
)
from crossdock.scheduler.policies import _POLICIES
from crossdock.scheduler.result import Links
from tests.scheduler.problems import LINKS, chain, optimum, problems

POLICIES = ("best_single", "heft", "lookahead", "auto")
ROUNDING = 1 + 1e-9


def plan(problem: Problem, name: str, links: Links = "serial", **options: Any) -> Schedule:
    return schedule(problem, name, links=links, **({"compiled": False} | options))


@pytest.mark.parametrize("links", LINKS)
@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40)
@given(problem=problems())
def test_schedules_are_valid_and_bounded(name: str, links: Links, problem: Problem) -> None:
    made = plan(problem, name, links)
    assert validate(problem, made) == []
    assert made.lower_bound <= made.makespan * ROUNDING
    assert made.policy.startswith(name)


@settings(max_examples=40)
@given(problems(), st.sampled_from(LINKS))
def test_auto_is_never_predicted_worse_than_the_best_single_device(
    problem: Problem, links: Links
) -> None:
    best = plan(problem, "best_single", links)
    made = plan(problem, "auto", links)
    assert made.makespan <= best.makespan * ROUNDING
    assert made.makespan <= min(made.single.values()) * ROUNDING
    assert made.placement() == plan(problem, "auto", links).placement()


@settings(max_examples=25)
@given(problems(max_tasks=5, max_devices=2), st.sampled_from(LINKS))
def test_no_policy_beats_the_optimum_and_no_bound_exceeds_it(
    problem: Problem, links: Links
) -> None:
    best = optimum(problem, links)
    for name in POLICIES:
        made = plan(problem, name, links)
        assert made.makespan >= best * (1 - 1e-9) - 1e-12
        assert made.lower_bound <= best * ROUNDING + 1e-12


@settings(max_examples=40)
@given(problems())
def test_tasks_of_one_resource_group_never_overlap(problem: Problem) -> None:
    made = plan(problem, "auto")
    for r in set(problem.resource.tolist()):
        tasks = np.flatnonzero(problem.resource[made.device] == r)
        tasks = tasks[np.lexsort((made.finish[tasks], made.start[tasks]))]
        assert (made.start[tasks][1:] >= made.finish[tasks][:-1] - 1e-9).all()


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.floats(0.1, 5.0), min_size=2, max_size=2), min_size=1, max_size=7),
    st.floats(0.0, 3.0),
)
def test_a_chain_on_one_resource_group_is_placed_optimally(
    costs: list[list[float]], nbytes: float
) -> None:
    problem = chain(costs, nbytes)
    assert plan(problem, "auto").makespan == pytest.approx(optimum(problem, "serial"))


def test_a_barrier_that_no_single_op_pays_for_is_crossed_by_a_cluster() -> None:
    # Sending costs 5.1 s and each of twenty ops gains 0.9 s: only moving all of them pays.
    problem = chain([[1.0, 100.0], *([[1.0, 0.1]] * 20)], nbytes=5.0)
    made = plan(problem, "auto")
    assert set(made.device.tolist()[1:]) == {1}
    assert made.makespan == pytest.approx(1.0 + 5.1 + 2.0)


def test_best_single_falls_back_only_where_it_must() -> None:
    tasks = [TaskSpec("a", [9.0, 1.0]), TaskSpec("b", {"p": 1.0}), TaskSpec("c", [9.0, 1.0])]
    links = [LinkSpec("p", "q", 0.1, 1.0, both=True)]
    problem = Problem.build(
        tasks, [(0, 1, 1.0), (1, 2, 1.0)], [DeviceSpec("p"), DeviceSpec("q")], links
    )
    made = plan(problem, "best_single")
    assert made.policy == "best_single:q"
    assert made.device.tolist() == [1, 0, 1]
    assert made.single == {"p": pytest.approx(19.0), "q": pytest.approx(5.2)}


def test_serial_links_send_a_tensor_to_a_device_once() -> None:
    tasks = [TaskSpec("a", {"p": 1.0}), TaskSpec("b", {"q": 1.0}), TaskSpec("c", {"q": 1.0})]
    links = [LinkSpec("p", "q", 0.0, 1.0)]
    problem = Problem.build(
        tasks, [(0, 1, 2.0), (0, 2, 2.0)], [DeviceSpec("p"), DeviceSpec("q")], links
    )
    made = plan(problem, "heft")
    assert [(x.task, x.src, x.dst, x.nbytes) for x in made.transfers] == [(0, 0, 1, 2.0)]
    assert made.makespan == pytest.approx(1.0 + 2.0 + 2.0)


def test_serial_links_carry_one_transfer_at_a_time_each_way() -> None:
    tasks = [TaskSpec(x, {"p": 1.0}) for x in "ab"] + [TaskSpec(x, {"q": 0.5}) for x in "cd"]
    devices = [DeviceSpec("p"), DeviceSpec("q")]
    problem = Problem.build(
        tasks, [(0, 2, 4.0), (1, 3, 4.0)], devices, [LinkSpec("p", "q", 0.0, 1.0)]
    )
    assert plan(problem, "heft", "free").makespan == pytest.approx(2.0 + 4.0 + 0.5)
    assert plan(problem, "heft", "serial").makespan == pytest.approx(1.0 + 4.0 + 4.0 + 0.5)


def test_unreachable_devices_are_a_named_failure() -> None:
    tasks = [TaskSpec("a", {"p": 1.0}), TaskSpec("b", {"q": 1.0})]
    problem = Problem.build(tasks, [(0, 1, 1.0)], [DeviceSpec("p"), DeviceSpec("q")])
    for name in POLICIES:
        with pytest.raises(NoPlacement):
            plan(problem, name)


def test_three_hundred_tasks_on_three_devices_keep_within_the_plain_path() -> None:
    tasks = [TaskSpec(f"t{i}", [1.0 + i % 5, 2.0, 4.0 - i % 3]) for i in range(300)]
    edges = [(max(0, i - 1 - i % 7), i, float(i % 11)) for i in range(1, 300)]
    links = [LinkSpec(a, b, 0.01, 10.0) for a in range(3) for b in range(3) if a != b]
    problem = Problem.build(tasks, edges, [DeviceSpec(f"d{i}") for i in range(3)], links)
    made = plan(problem, "auto")
    assert validate(problem, made) == []
    assert made.makespan <= plan(problem, "heft").makespan * ROUNDING


def test_an_empty_problem_has_an_empty_schedule() -> None:
    problem = Problem.build([], [], [DeviceSpec("p"), DeviceSpec("q")])
    for name in POLICIES:
        made = plan(problem, name)
        assert (made.makespan, made.lower_bound, len(made.device)) == (0.0, 0.0, 0)


def test_policies_are_found_by_name_and_can_be_added() -> None:
    assert set(POLICIES) <= set(policy_names())
    problem = chain([[1.0, 2.0]])
    with pytest.raises(PlanError, match="no placement policy 'magic'; there are auto"):
        schedule(problem, "magic")
    with pytest.raises(PlanError, match="no link model"):
        schedule(problem, links="wet")  # type: ignore[arg-type]

    @policy("mine")
    def mine(problem: Problem, options: Options) -> Schedule:
        return schedule(problem, "heft", links=options.links)

    try:
        assert schedule(problem, "mine").makespan == 1.0
    finally:
        del _POLICIES["mine"]
