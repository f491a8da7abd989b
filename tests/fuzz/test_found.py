"""What was found by bytes at random, each as small as it goes."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

import crossdock as xd
from crossdock.runtime import kept
from crossdock.runtime.costing import read_costs
from crossdock.runtime.errors import LONGEST, LoadError, PlanError
from crossdock.runtime.memory import Tenant, plan_arena
from tests.fuzz import graphs
from tests.fuzz.watch import one_line


def test_a_long_value_does_not_make_a_long_message(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(kept.sealed(json.dumps({"schema": "x" * 5_000}).encode()))
    with pytest.raises(PlanError) as found:
        read_costs(path)
    assert one_line(str(found.value))


def test_a_plan_with_a_long_name_is_refused_in_few_words() -> None:
    graphs.quiet()
    plan = next(graphs.plans()).to_json()
    plan |= {"graph": "0" * 64, "graph_name": "\u202e\n" * 3_000}
    with pytest.raises(PlanError) as found:
        xd.compile(graphs.graph(), plan=xd.Plan.from_json(plan), measure=False)
    assert one_line(str(found.value))


@pytest.mark.parametrize("text", ["a\nb", "\u202ea", "\ud800", "\0", "é" * 5_000])
def test_a_message_is_one_line_that_can_be_printed(text: str) -> None:
    said = str(LoadError(f"file {text}: is broken"))
    assert one_line(said)
    assert said.encode()
    assert len(said) <= LONGEST
    assert said.startswith("file ")
    assert said.endswith(": is broken")


def test_many_tensors_that_live_together_lie_side_by_side() -> None:
    rng = random.Random(3)
    together = [Tenant(f"t{i}", rng.randrange(1, 999), (0,), (9,)) for i in range(500)]
    later = [Tenant(f"l{i}", rng.randrange(1, 999), (9,), (12,)) for i in range(200)]
    made = plan_arena([*together, *later])
    assert made.nbytes == made.live_bytes
    for part in (together, later):
        spans = sorted((made.offsets[t.name], made.offsets[t.name] + t.nbytes) for t in part)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
