"""What is replayed as a graph, in a plan's words, against each call looked at by itself."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from crossdock.devices.cuda_graph import Segment, segments
from crossdock.devices.program import ArrayCall, GridLaunch, Lowered
from crossdock.runtime import replays
from crossdock.runtime.replays import ALONE, ARRAYS
from tests.runtime.strategies import step

LAUNCH = GridLaunch("", "f", (), (1,), (1,))
CALL = ArrayCall(lambda xp, ins, outs: None, (), (), (), ())


def told(*ops: list[bool], parted: int = -1) -> list[str]:
    """What is said of ops of such calls (launch or not), on one queue; a wait before ``parted``."""
    made = [step(0, "card/compute")]
    made[0] = replace(made[0], kind="copy", queue="card/upload")
    for i, _ in enumerate(ops, 1):
        made.append(step(i, "card/compute", (0,) if i - 1 == parted else ()))
    lowered = {
        i: Lowered(tuple(LAUNCH if launch else CALL for launch in op))
        for i, op in enumerate(ops, 1)
    }
    return [s.replay for s in replays.told(made, lowered)[1:]]


def test_launches_of_neighbours_are_one_graph() -> None:
    assert told([True], [True, True]) == ["replayed in graph 1 of 3 launches"] * 2
    assert told([True], [True], [True], [True], parted=2) == [
        *["replayed in graph 1 of 2 launches"] * 2, *["replayed in graph 2 of 2 launches"] * 2
    ]  # fmt: skip


def test_what_is_not_replayed_says_why() -> None:
    assert told([True], [False], [True]) == [
        f"not replayed: {ALONE}", f"not replayed: {ARRAYS}", f"not replayed: {ALONE}"
    ]  # fmt: skip
    assert told([True, False, True], [True]) == [
        f"replayed in graph 1 of 2 launches, 2 of its 3 calls not: {ARRAYS}",
        "replayed in graph 1 of 2 launches",
    ]
    assert told([]) == ["nothing to launch"]


def test_steps_of_other_devices_are_left_alone() -> None:
    steps = [step(0, "host/compute"), step(1, "card/compute")]
    made = replays.told(steps, {1: Lowered((LAUNCH, LAUNCH))})
    assert [s.replay for s in made] == ["", "replayed in graph 1 of 2 launches"]


@given(st.lists(st.lists(st.booleans(), max_size=4), max_size=6))
def test_the_words_are_those_of_the_device(ops: list[list[bool]]) -> None:
    flat = list(itertools.chain.from_iterable(ops))
    parts = segments([lambda: None] * len(flat), flat)
    sizes = [len(p.calls) for p in parts if isinstance(p, Segment)]
    said = "; ".join(told(*ops))
    for number, size in enumerate(sizes, 1):
        assert f"graph {number} of {size} launches" in said
    assert f"graph {len(sizes) + 1} of" not in said
