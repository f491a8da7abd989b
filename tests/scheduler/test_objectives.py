"""Objectives: each has a placement of its own, and the best there is on small problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from crossdock.runtime.errors import NoPlacement, PlanError
from crossdock.scheduler import DeviceSpec, LinkSpec, Problem, TaskSpec
from crossdock.scheduler.decode import decode
from crossdock.scheduler.objective import Objective
from crossdock.scheduler.objective_search import Aim, place, shares_of
from crossdock.scheduler.objectives import Power, evaluate
from crossdock.scheduler.policies import rank_order
from crossdock.scheduler.throughput import Jobs, interval_bound, interval_of, max_cycle_mean


def stages() -> Problem:
    """A chain of four: the first device is faster throughout, the third frugal and slow."""
    tasks = [TaskSpec(f"t{i}", [1.0, 1.2, 5.0]) for i in range(4)]
    devices = [DeviceSpec("fast"), DeviceSpec("second"), DeviceSpec("frugal")]
    links = [LinkSpec(a, b, 0.3, 1e9) for a, b in itertools.permutations(range(3), 2)]
    return Problem.build(tasks, [(i, i + 1, 1.0) for i in range(3)], devices, links)


WATTS = {"fast": (1.0, 100.0), "second": (1.0, 100.0), "frugal": (0.1, 2.0)}


def exhaustive(problem: Problem, power: Power) -> dict[str, tuple[float, tuple[int, ...]]]:
    """The least value of each term over all placements, and where it is."""
    best: dict[str, tuple[float, tuple[int, ...]]] = {}
    order = rank_order(problem)
    for where in itertools.product(range(problem.m), repeat=problem.n):
        timed = decode(problem, order, where, "serial")
        values = evaluate(problem, where, timed, None, power)
        for name in ("latency", "throughput", "energy"):
            best[name] = min(best.get(name, (np.inf, ())), (values.term(name), where))
    return best


def test_three_objectives_have_three_placements_and_each_is_the_best_there_is() -> None:
    problem = stages()
    power = Power.of(problem, WATTS)
    best = exhaustive(problem, power)
    placements = set()
    for name, (least, _) in best.items():
        made = place(problem, Aim(Objective.of(name), power))
        assert made.values.term(name) == pytest.approx(least)
        placements.add(tuple(made.schedule.device.tolist()))
    assert len(placements) == 3
    assert best["latency"][0] == pytest.approx(4.0)  # all on the fast one
    assert best["throughput"][0] < 2.5  # shared


@pytest.mark.parametrize("n", [12, 30])
def test_the_search_reaches_a_balanced_pipeline(n: int) -> None:
    tasks = [TaskSpec(f"t{i}", [1.0, 1.0]) for i in range(n)]
    links = [LinkSpec("a", "b", 0.01, 1e9, both=True)]
    devices = [DeviceSpec("a"), DeviceSpec("b")]
    problem = Problem.build(tasks, [(i, i + 1, 1.0) for i in range(n - 1)], devices, links)
    made = place(problem, Aim(Objective.of("throughput")))
    assert made.values.throughput == pytest.approx(n / 2)
    assert made.values.throughput >= interval_bound(problem) * 0.999
    assert made.values.latency > n  # a run by itself has to cross


def test_a_mix_weighs_its_terms() -> None:
    problem = stages()
    power = Power.of(problem, WATTS)
    ends = [place(problem, Aim(Objective.of(n), power)).values for n in ("latency", "energy")]
    middle = place(problem, Aim(Objective.of({"latency": 1.0, "energy": 1.0}), power)).values
    assert ends[0].latency <= middle.latency <= ends[1].latency
    assert ends[0].term("energy") >= middle.term("energy") >= ends[1].term("energy")


def test_a_mix_of_one_term_is_that_term() -> None:
    assert Objective.of({"throughput": 7}) == Objective.of("throughput")


@pytest.mark.parametrize(
    "given", ["speed", {}, {"latency": -1.0}, {"latency": 0}, {"cost": 1.0}, 3, {"latency": "1"}]
)
def test_a_wrong_objective_is_refused(given: object) -> None:
    with pytest.raises(PlanError, match="objective"):
        Objective.of(given)


def test_missing_watts_name_the_device() -> None:
    with pytest.raises(PlanError, match="needs the watts of second, frugal"):
        Power.of(stages(), {"fast": (1.0, 2.0)})


def test_idle_watts_of_devices_on_one_chip_count_once() -> None:
    devices = [DeviceSpec("a", resource_group="chip"), DeviceSpec("b", resource_group="chip")]
    problem = Problem.build([TaskSpec("t", [1.0, 9.0])], [], devices)
    power = Power.of(problem, {"a": (3.0, 10.0), "b": (3.0, 10.0)})
    assert power.joules(problem, np.array([1.0, 0.0]), 1.0) == pytest.approx(10.0)


def test_a_queue_that_is_come_back_to_is_held_by_its_run() -> None:
    """a, then b, then a again: a's queue is busy from its first job to its last."""
    chain = Jobs(["a", "b", "a"], [1.0, 5.0, 1.0], [[], [0], [1]], {})
    assert interval_of(chain) == pytest.approx(7.0)
    forward = Jobs(["a", "a", "b"], [1.0, 1.0, 5.0], [[], [0], [1]], {})
    assert interval_of(forward) == pytest.approx(5.0)


def test_the_interval_is_what_a_long_replay_comes_to() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        n, queues = int(rng.integers(2, 14)), int(rng.integers(1, 5))
        jobs = Jobs(
            rng.integers(0, queues, n).tolist(),
            rng.uniform(0.0, 3.0, n).tolist(),
            [sorted(set(rng.integers(0, i, 2).tolist())) if i else [] for i in range(n)],
            {},
        )
        free: dict[int, float] = {}
        ends = []
        for _run in range(200):
            done: list[float] = []
            for q, s, after in zip(jobs.queue, jobs.seconds, jobs.after, strict=True):
                begin = max([free.get(q, 0.0), *(done[i] for i in after)])
                done.append(begin + s)
                free[q] = done[-1]
            ends.append(max(done))
        assert interval_of(jobs) == pytest.approx((ends[-1] - ends[139]) / 60, rel=1e-6)


def test_devices_of_one_resource_add_up() -> None:
    assert interval_of(Jobs(["a", "b"], [1.0, 2.0], [[], []], {0: 3.0})) == pytest.approx(3.0)


def test_the_largest_mean_of_a_cycle() -> None:
    weight = np.array([[1.0, 4.0], [6.0, 2.0]])
    assert max_cycle_mean(weight) == pytest.approx(5.0)


def test_largest_shares_are_kept_or_refused() -> None:
    problem = stages()
    free = place(problem, Aim())
    assert shares_of(problem, free.schedule.device)[0] == pytest.approx(1.0)
    half = place(problem, Aim(shares=np.array([0.5, 1.0, 1.0])))
    assert shares_of(problem, half.schedule.device)[0] <= 0.5
    assert half.values.latency > free.values.latency
    with pytest.raises(NoPlacement, match="at most 10% of the ops' seconds"):
        place(problem, Aim(shares=np.array([0.1, 0.1, 0.1])))
