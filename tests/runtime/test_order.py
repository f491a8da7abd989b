"""Order among steps: the waits that stay suffice and none of them is superfluous."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from crossdock.runtime.order import positions, step_clocks, with_waits
from crossdock.runtime.plan import Step
from tests.runtime.closure import done_before
from tests.runtime.strategies import step, waiting_steps


@given(waiting_steps())
def test_the_waits_that_stay_give_the_same_order(given_: list[Step]) -> None:
    kept = with_waits(given_)
    assert done_before(kept) == done_before(given_)
    for before, after in zip(given_, kept, strict=True):
        assert set(after.waits) <= set(before.waits)
        assert replace(after, waits=()) == replace(before, waits=())


@given(waiting_steps())
def test_no_wait_that_stays_can_go(given_: list[Step]) -> None:
    kept = with_waits(given_)
    order = done_before(kept)
    for s in kept:
        for wait in s.waits:
            fewer = list(kept)
            fewer[s.index] = replace(s, waits=tuple(w for w in s.waits if w != wait))
            assert done_before(fewer) != order, f"#{s.index} need not wait for #{wait}"


@given(waiting_steps())
def test_clocks_count_what_is_surely_done(given_: list[Step]) -> None:
    at, done = positions(given_), done_before(given_)
    for s, clock in zip(given_, step_clocks(given_), strict=True):
        for queue in {o.queue for o in given_}:
            known = [o.index for o in given_ if o.queue == queue and o.index in done[s.index]]
            # Queues run in order, so that what is known of one is a beginning of it.
            assert sorted(at[i] for i in known) == list(range(len(known)))
            assert clock.get(queue, 0) == len(known)


def test_a_wait_for_the_own_queue_or_through_another_wait_goes() -> None:
    steps = [
        step(0, "cpu:0/compute"),
        step(1, "a:0/upload", (0,)),
        step(2, "a:0/compute", (0, 1)),
        step(3, "a:0/compute", (1, 2)),
    ]
    assert [s.waits for s in with_waits(steps)] == [(), (0,), (1,), ()]


@given(waiting_steps(), st.randoms(use_true_random=False))
def test_steps_may_be_waited_for_in_any_order(given_: list[Step], random: Random) -> None:
    mixed = []
    for s in given_:
        waits = list(s.waits)
        random.shuffle(waits)
        mixed.append(replace(s, waits=tuple(waits)))
    assert with_waits(mixed) == with_waits(given_)
