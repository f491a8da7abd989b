"""The machines that are shipped: sound profiles that say where their figures are from."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.devices import machines
from crossdock.devices.machine import Machine, Status
from crossdock.runtime import planner
from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.cli.options import Placing
from crossdock.runtime.cli.planning import scene_of
from crossdock.runtime.errors import LoadError

TYPED = "typed in from the data sheets of "


def test_there_are_measured_and_typed_in_machines() -> None:
    origins = [machines.read(name).origin for name in machines.names()]
    assert origins.count("measured") >= 1
    assert sum(o.startswith(TYPED) for o in origins) >= 3
    assert all(o == "measured" or o.startswith(TYPED) for o in origins)


@pytest.mark.parametrize("name", machines.names())
def test_a_machine_is_whole(name: str) -> None:
    made = machines.read(name)
    working = [d for d in made.devices if d.status is Status.PASS]
    assert working[0].id == "cpu:0"
    assert len(working) >= 2
    for device in working:
        assert device.rates is not None
        if device.id != "cpu:0":
            assert made.link("cpu:0", device.id) is not None
            assert made.link(device.id, "cpu:0") is not None
    if made.origin != "measured":
        assert "assumed" in made.origin
        assert all(d.rates.launch_alone_s.samples == 1 for d in working if d.rates is not None)


@pytest.mark.parametrize("name", machines.names())
def test_a_machine_is_planned_for_without_its_drivers(name: str) -> None:
    """A product of large matrices is worth a card's link."""
    b = GraphBuilder("product")
    x = b.input("x", (2048, 2048))
    w = b.constant(np.ones((2048, 2048), np.float32))
    y = x
    for _ in range(4):
        y = b.matmul(y, w)
    graph = b.build({"y": y})
    machine = machines.read(name)
    target = scene_of(graph, Placing(), machine, None).target
    plan = planner.make_plan(graph, target, planner.Options())
    assert {s.source for s in plan.launches()} <= {"roofline", "fitted", "measured"}
    assert all(part.single_seconds for part in plan.devices)
    cards = {d.id for d in machine.passed if d.kind == "cuda"}
    if cards:
        assert {s.device for s in plan.launches()} <= cards


def test_a_name_that_is_not_shipped_lists_those_that_are() -> None:
    with pytest.raises(LoadError, match="server-h100-sxm"):
        machines.read("nowhere")


def test_a_profile_of_before_there_was_an_origin_was_measured() -> None:
    form = machines.read("server-h100-sxm").to_json()
    assert form.pop("origin").startswith(TYPED)
    assert Machine.from_json(form).origin == "measured"
    with pytest.raises(LoadError, match=r"machine\.origin: must be a string"):
        Machine.from_json({**form, "origin": 3})
