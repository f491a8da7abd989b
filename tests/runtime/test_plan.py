"""Plans as data: they round-trip, damaged ones are refused, and they say when they are stale."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices import cpu
from crossdock.runtime.errors import PlanError, StalePlan
from crossdock.runtime.plan import Plan, step_line
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.staleness import Situation, check_fresh, staleness
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel

CPU = cpu.probe().devices[0]


@functools.cache
def plan() -> Plan:
    b = xd.GraphBuilder()
    x = b.input("x", (4, 4))
    y = b.matmul(b.tanh(x, label="act"), b.constant(np.ones((4, 4), np.float32)), label="mm")
    return make_plan(
        b.build({"y": b.relu(y, label="Relu.1")}),
        Target((CPU,), frozenset([CPU.id]), CostModel()),
        Options(),
    )


def data() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(plan().to_json()))
    return made


def paths(node: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where every value of some JSON data is."""
    found = [at]
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            found += paths(value, (*at, key))
    return found


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1 << 70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)


@given(st.data())
def test_a_damaged_plan_is_refused_or_is_another_plan(draw: st.DataObject) -> None:
    broken = data()
    at = draw.draw(st.sampled_from(paths(broken)))
    how = draw.draw(st.sampled_from(["replace", "remove", "add"]))
    junk = draw.draw(JUNK)
    parent: Any = broken
    for key in at[:-1]:
        parent = parent[key]
    if not at:
        broken = junk
    elif how == "replace":
        parent[at[-1]] = junk
    elif how == "remove":
        del parent[at[-1]]
    elif isinstance(parent[at[-1]], dict):
        parent[at[-1]]["extra"] = junk
    with contextlib.suppress(PlanError):
        made = Plan.from_json(broken)
        made.explain()
        assert Plan.from_json(made.to_json()) == made


@given(JUNK)
def test_what_is_no_plan_is_refused(junk: object) -> None:
    with pytest.raises(PlanError, match="plan again"):
        Plan.from_json(junk)


@pytest.mark.parametrize(
    ("field", "value"),
    [("index", 5), ("kind", "leap"), ("device", "sim:z"), ("queue", "cpu:0"), ("waits", [1])],
)
def test_a_step_that_contradicts_the_plan_is_named(field: str, value: object) -> None:
    broken = data()
    broken["steps"][1][field] = value
    with pytest.raises(PlanError, match="step #1 "):
        Plan.from_json(broken)


def test_a_plan_round_trips_and_is_named_by_its_content() -> None:
    assert Plan.from_json(data()) == plan()
    other = copy.deepcopy(data())
    other["policy"] = "another"
    assert Plan.from_json(other).digest() != plan().digest()


def situation(made: Plan, **other: Any) -> Situation:
    now = {"graph": made.graph, "kernels": made.kernels, "cost_model": made.cost_model}
    return Situation(**{**now, "devices": {CPU.id: CPU}, **other})


@pytest.mark.parametrize(
    ("other", "what", "said"),
    [
        ({"graph": "0"}, "graph", "another graph"),
        ({"kernels": "0"}, "kernel set", "the kernels are not those"),
        ({"devices": {}}, "missing cpu:0", r"needs cpu:0 .*not here"),
        ({"devices": {CPU.id: replace(CPU, driver="9.9")}}, "driver cpu:0", "cpu:0 is '9.9'"),
        ({"devices": {CPU.id: replace(CPU, fingerprint="x")}}, "device cpu:0", "is not the device"),
    ],
)
def test_what_made_a_plan_stale_is_named(other: dict[str, Any], what: str, said: str) -> None:
    made = plan()
    check_fresh(made, situation(made))
    assert staleness(made, situation(made)) == {}
    assert list(staleness(made, situation(made, **other))) == [what]
    with pytest.raises(StalePlan, match=f"{said}.*; plan again"):
        check_fresh(made, situation(made, **other))


def test_other_costs_make_a_plan_stale_and_leave_it_runnable() -> None:
    made = plan()
    now = situation(made, cost_model="0")
    assert list(staleness(made, now)) == ["cost model"]
    check_fresh(made, now)


def test_a_plan_is_saved_as_the_same_bytes_and_hashed_as_the_file() -> None:
    text = plan().dumps()
    assert Plan.loads(text) == plan()
    assert Plan.loads(text).dumps() == text
    plan.cache_clear()
    assert plan().dumps() == text
    assert plan().digest() == hashlib.sha256(text.encode()).hexdigest()


TEXTS = st.sampled_from(
    ["NaN", "-Infinity", "1e999", "9" * 5000, "[" * 4000, "{}", '"\\ud800"', "null", "-0.0", ""]
)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_file_is_refused_or_is_another_plan(draw: st.DataObject) -> None:
    text = plan().dumps()
    at = draw.draw(st.integers(0, len(text)))
    end = draw.draw(st.integers(at, min(len(text), at + 40)))
    broken = text[:at] + draw.draw(st.one_of(TEXTS, st.text(max_size=4))) + text[end:]
    with contextlib.suppress(PlanError):
        made = Plan.loads(broken.encode("utf-8", "surrogatepass"))
        made.explain()
        assert Plan.loads(made.dumps()) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": "a", "schema": "b"}', "'schema' is given twice"),
        ("[" * 100_000, "nested too deeply|no JSON"),
        ('{"schema": NaN}', "NaN is no JSON number"),
        (b"\xff\xfe\xff", "no JSON"),
        ("1" * 10_000, "no JSON|schema"),
        ('{"schema": "crossdock-plan/0"}', "plan again"),
    ],
)
def test_what_is_no_file_of_ours_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.loads(text)


@pytest.mark.parametrize("seconds", [10**400, float("nan"), -(10**400), True, "1"])
def test_numbers_that_no_clock_shows_are_refused(seconds: object) -> None:
    broken = data()
    broken["predicted"] = seconds
    with pytest.raises(PlanError, match=r"the plan.predicted is damaged"):
        Plan.from_json(broken)


def alone(seconds: dict[str, float | None], **fields: Any) -> Plan:
    """The plan with these devices and what each takes alone."""
    parts = [replace(plan().devices[0], id=d, single_seconds=s) for d, s in seconds.items()]
    return replace(plan(), devices=tuple(parts), **fields)


def test_a_plan_says_its_gap_and_the_best_single_device() -> None:
    made = alone({"cpu:0": 3.0, "cuda:0": 2.0, "opencl:0": None}, predicted=1.5, lower_bound=1.0)
    assert made.gap == 0.5
    best = made.best_single()
    assert best is not None
    assert best.id == "cuda:0"
    said = "lower bound 1000.000 ms (gap 50.0%), best single device cuda:0 2000.000 ms: 1.33 x"
    assert said in made.explain()
    assert (
        alone({"cpu:0": 1.5})
        .comparison()
        .endswith("best single device cpu:0 1500.000 ms: the plan")
    )
    assert alone({"cpu:0": None}).comparison().endswith("no device can run it alone")
    assert replace(made, lower_bound=0.0).gap == 0.0


def test_a_plan_explains_itself_one_line_a_step() -> None:
    made = plan()
    lines = made.explain().splitlines()
    assert len(lines) == 4 + len(made.devices) + len(made.steps)
    assert lines[-1] == step_line(made.steps[-1])
    assert "unknown" in made.explain_op("mm")
    with pytest.raises(PlanError, match=r"no op 'relu' .*did you mean Relu\.1\?"):
        made.explain_op("relu")
    with pytest.raises(PlanError, match="has no device 'cuda:0'"):
        made.device("cuda:0")
    assert made.shares() == {"cpu:0": 1.0}
