"""Resident inputs: uploaded once, not fed, and the answers are those of feeding them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.runtime.errors import FeedError
from crossdock.runtime.graph import Graph
from tests.runtime.conftest import Machine


def graph(rows: int | str = 4) -> Graph:
    b = xd.GraphBuilder("two inputs")
    x, state = b.input("x", (rows, 8)), b.input("state", (8, 8))
    return b.build({"y": b.add(b.matmul(x, state), b.reduce_sum(state, axes=[0]))})


def array(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_a_resident_input_stays_on_the_device(machine: Machine) -> None:
    device, x, state = machine.sim("a"), array(4, 8), array(8, 8)
    with xd.compile(graph(), device, measure=False) as fed:
        want = fed.run({"x": x, "state": state})["y"]
        assert {c.name for c in fed.plan.copies() if c.dst == device} == {"x", "state"}
    kept = state.copy()
    with xd.compile(graph(), device, measure=False, resident={"state": kept}) as session:
        kept[:] = 0  # a copy was taken
        np.testing.assert_allclose(session.run({"x": x})["y"], want, rtol=1e-6)
        assert {c.name for c in session.plan.copies() if c.dst == device} == {"x"}
        # Kept there, with what follows from it alone: its sum over the rows.
        assert session.plan.device(device).resident_bytes == state.nbytes + want[0].nbytes
        with pytest.raises(FeedError, match="no input is named 'state'"):
            session.run({"x": x, "state": state})


def test_other_dimensions_stay_open(costs: object) -> None:
    state = array(8, 8)
    with xd.compile(graph("N"), "cpu:0", measure=False, resident={"state": state}) as session:
        for rows in (1, 5):
            x = array(rows, 8)
            got = session.run({"x": x})["y"]
            np.testing.assert_allclose(got, x @ state + state.sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "weights",
            np.zeros((8, 8), np.float32),
            "no input of graph 'two inputs'; it has x",
        ),
        ("state", np.zeros((8, 8)), "wants float32"),
        ("state", np.zeros(8, np.float32), "wants float32"),
        ("state", np.zeros((8, 9), np.float32), "state"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(FeedError, match=said):
        xd.compile(graph(), "cpu:0", measure=False, resident={name: value})
