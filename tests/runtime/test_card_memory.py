"""A card that two devices lead to, in plans and sessions: its memory is promised once."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import crossdock as xd
from crossdock.kernels.reference import evaluate
from crossdock.runtime import degrade
from crossdock.runtime.errors import MemoryBudget, OutOfMemory, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Constraints
from crossdock.runtime.planner import Options, make_plan
from tests.runtime.conftest import Machine
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_planner import CPU, FAST, SLOW, simulated, target, two_branches, where

CARD = "pci-0000:ff:1e.0"
BOTH = {"left": "sim:a", "right": "sim:b"}


def test_one_plan_never_promises_a_cards_memory_twice() -> None:
    """Each of both ways would have room for its part, and the card has not for both."""
    free = make_plan(two_branches(), target((CPU, SLOW), *ways(1 << 30)), pinned())
    parts = [free.device(d).peak_bytes for d in ("sim:a", "sim:b")]
    fits = target((CPU, SLOW), *ways(sum(parts)))
    assert where(make_plan(two_branches(), fits, pinned())) == where(free)
    small = target((CPU, SLOW), *ways(sum(parts) - 1))
    with pytest.raises(MemoryBudget) as caught:
        make_plan(two_branches(), small, pinned())
    said = rf"sim:[ab] needs {sum(parts)} B .*, and \d+ through sim:[ab], the same memory, {CARD}\)"
    assert re.search(said, str(caught.value))
    assert f"has {sum(parts) - 1} B" in str(caught.value)
    apart = target((CPU, SLOW), *ways(sum(parts) - 1, "sim:b"))
    assert where(make_plan(two_branches(), apart, pinned())) == where(free)


def test_a_budget_for_the_card_binds_every_way_to_it() -> None:
    on = target((CPU, SLOW), *ways(1 << 30))
    need = sum(make_plan(two_branches(), on, pinned()).device(d).peak_bytes for d in BOTH.values())
    make_plan(two_branches(), on, pinned(memory={CARD: need}))
    with pytest.raises(MemoryBudget, match=f"has {need - 1} B"):
        make_plan(two_branches(), on, pinned(memory={CARD: need - 1}))
    with pytest.raises(PlanError, match=f"devices are .*, of .*{CARD}"):
        make_plan(two_branches(), on, pinned(memory={"pci-0000:00:00.0": 1}))


def test_what_need_not_be_on_the_card_leaves_it() -> None:
    on = target((CPU, SLOW), *ways(20_000))
    plan = make_plan(two_branches(), on, Options())
    assert sum(plan.device(d).peak_bytes for d in ("sim:a", "sim:b")) <= 20_000


def test_runs_in_flight_are_counted_over_all_ways() -> None:
    plan = make_plan(two_branches(), target((CPU, SLOW), *ways(1 << 30)), pinned())
    parts = [plan.device(d) for d in ("sim:a", "sim:b")]
    fixed, run = sum(p.fixed_bytes for p in parts), sum(p.run_bytes for p in parts)
    assert degrade.runs_within(plan, {CARD: fixed + 3 * run}, 8) == 3
    assert degrade.runs_within(plan, {CARD: fixed + 4 * run - 1}, 8) == 3
    assert (
        degrade.runs_within(plan, {"sim:a": parts[0].fixed_bytes + 2 * parts[0].run_bytes}, 8) == 2
    )


def ways(memory: int, card_of_b: str = CARD) -> list[tuple[xd.DeviceInfo, object]]:
    a, b = (simulated(n, memory_bytes=memory, physical_id=CARD) for n in "ab")
    return [(a, FAST), (replace(b, physical_id=card_of_b), FAST)]


def pinned(memory: dict[str, int] | None = None) -> Options:
    return Options(constraints=Constraints(pin={**BOTH, "join": "cpu:0"}, memory=memory or {}))


@pytest.fixture
def card(machine: Machine) -> tuple[str, str]:
    """Two ways to a card with room for one session of ``two_branches``, and not for two."""
    graph = two_branches()
    alone = machine.sim("alone")
    with session_on(alone, graph) as session:
        need = session.estimate().peak_bytes[alone]
    spec = {"memory_bytes": need, "physical_id": CARD}
    return machine.sim("a", **spec), machine.sim("b", **spec)


def session_on(device: str, graph: Graph, **options: object) -> xd.Session:
    return xd.compile(graph, [device], measure=False, runs_at_once=1, **options)  # type: ignore[arg-type]


def right(session: xd.Session, seed: int = 0) -> None:
    feeds = whole_feeds(session.graph, seed)
    want = evaluate(session.graph, feeds)
    for name, array in session.run(feeds).items():
        np.testing.assert_array_equal(array, want[name])


def test_two_sessions_on_two_ways_never_hold_a_cards_memory_twice(
    card: tuple[str, str], machine: Machine
) -> None:
    a, b = card
    graph = two_branches()
    with session_on(a, graph) as one:
        right(one)
        with session_on(b, graph) as other:
            right(other)
            held = sum(machine.device(d).gauge.used for d in card)
            assert held <= machine.device(a).info.memory_bytes
            told = other.receipt.recoveries
            assert told
            assert all(r.device == b for r in told)
            assert f"{a} holds" in told[0].error
            assert CARD in told[0].error
        right(one, 1)


def test_the_refusal_names_both_ways(card: tuple[str, str], machine: Machine) -> None:
    a, b = card
    hog = machine.device(a).allocate(machine.device(a).info.memory_bytes - 100)
    with (
        pytest.raises(OutOfMemory, match=f"{b}: .* wanted .*{a} holds .*{CARD}"),
        session_on(b, two_branches(), fallback="forbid") as session,
    ):
        right(session)
    hog.release()
    with session_on(b, two_branches(), fallback="forbid") as session:
        right(session)
