"""The differences of two plans are found and named."""

from __future__ import annotations

from dataclasses import replace

from crossdock.runtime.plan import Plan
from crossdock.runtime.plan_diff import Change, diff
from tests.runtime.test_simulate import device, step
from tests.runtime.test_simulate import plan as make


def plan() -> Plan:
    steps = [step(0, "cpu:0/compute", 1.0), step(1, "cpu:0/compute", 2.0)]
    return make([replace(s, op="relu", kernel="k") for s in steps])


def changed(made: Plan, index: int, **what: object) -> Plan:
    steps = list(made.steps)
    steps[index] = replace(steps[index], **what)  # type: ignore[arg-type]
    return replace(made, steps=tuple(steps))


def test_equal_plans_are_the_same() -> None:
    found = diff(plan(), plan())
    assert found.same
    assert not any((found.moved, found.kernels, found.seconds, found.links, found.stale))


def test_moved_ops_and_other_kernels_are_named_once() -> None:
    after = changed(plan(), 0, device="cuda:0", queue="cuda:0/compute", kernel="c")
    after = changed(after, 1, kernel="other", seconds=4.0)
    found = diff(plan(), after)
    assert not found.same
    assert found.moved == (Change("s0", "relu", "cpu:0", "cuda:0"),)
    assert found.kernels == (Change("s1", "relu", "k", "other"),)
    assert found.seconds == {"s1": (2.0, 4.0)}


def test_ops_of_one_plan_and_bytes_of_one_link_are_named() -> None:
    copy = replace(step(2, "cuda:0/upload", 1.0), src="cpu:0", dst="cuda:0", nbytes=64)
    after = replace(changed(plan(), 1, name="new"), steps=())
    after = replace(after, steps=(*changed(plan(), 1, name="new").steps, copy))
    found = diff(plan(), after)
    assert (found.removed, found.added) == (("s1",), ("new",))
    assert found.links == {"cpu:0->cuda:0": (0, 64)}


def test_what_a_plan_was_made_for_is_told_apart() -> None:
    before = plan()
    newer = replace(device("cuda:0"), driver="2", fingerprint="fp-2")
    after = replace(
        before, graph="1", kernels="b", cost_model="c", devices=(device("cpu:0"), newer)
    )
    assert set(diff(before, after).stale) == {
        "graph", "kernel set", "cost model", "driver cuda:0"
    }  # fmt: skip
    alone = replace(before, devices=(device("cpu:0"),))
    assert diff(before, alone).stale == {"device cuda:0": "there -> not"}
