"""Plans across the host and a CUDA card that is not here: the fake cupy checks every use of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.cuda_graph import Segment
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing
from crossdock.runtime.graph import Graph
from crossdock.runtime.program import instantiate
from tests.fakes import cards, cupy_fake
from tests.runtime.conftest import Machine
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_executor import ADVERSARIAL, able, check_runs, placed_graphs

pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.fixture
def card(opencl: Any, monkeypatch: pytest.MonkeyPatch, costs: costing.CostStore) -> Iterator[str]:
    """A card on the fake cupy, which runs kernels on the OpenCL device."""
    del opencl, costs
    with cards.installed(monkeypatch):
        yield "cuda:0"


@settings(ADVERSARIAL, max_examples=15)
@given(placed_graphs(), st.integers(0, 1 << 16))
def test_answers_hold_and_nothing_is_used_wrongly(
    machine: Machine, card: str, made: tuple[Graph, dict[str, int]], seed: int
) -> None:
    graph, where = made
    ids = ["cpu:0", card, machine.sim("a"), card]
    can = able(graph, registry.open_device(card).info)
    pin = {n: ids[at] for n, at in where.items() if ids[at] != card or n in can}
    with xd.compile(
        graph, ids, constraints=xd.Constraints(pin=pin), measure=False, runs_at_once=2
    ) as session:
        check_runs(session, graph, seed)


@pytest.fixture
def two(card: str) -> tuple[str, str]:
    """Two cards."""
    return card, "cuda:1"


@settings(ADVERSARIAL, max_examples=4)
@given(placed_graphs(), st.integers(0, 1 << 16), st.booleans())
def test_answers_hold_between_two_cards(
    machine: Machine,
    two: tuple[str, str],
    made: tuple[Graph, dict[str, int]],
    seed: int,
    granted: bool,
) -> None:
    import cupy

    one, other = (registry.open_device(name) for name in two)
    cupy.machine.peers = {(0, 1), (1, 0)} if granted else set()
    for card in (one, other):
        card._unreachable.clear()
    graph, where = made
    can = able(graph, one.info)
    ids = ["cpu:0", *two, two[0]]
    pin = {n: ids[at] for n, at in where.items() if not at or n in can}
    rules = xd.Constraints(pin=pin)
    with xd.compile(graph, ids, constraints=rules, measure=False, runs_at_once=2) as session:
        check_runs(session, graph, seed)
        how = {c.detail for c in session.plan.copies() if "cpu:0" not in (c.src, c.dst)}
    assert all((said == "peer access") == granted for said in how)


def test_a_value_goes_from_card_to_card_past_the_host(two: tuple[str, str]) -> None:
    one, other = two
    b = xd.GraphBuilder()
    x = b.input("x", (64, 64))
    graph = b.build({"y": b.add(b.softmax(x, axis=1, label="a"), x, label="b")})
    rules = xd.Constraints(pin={"a": one, "b": other})
    with xd.compile(graph, two, constraints=rules, measure=False) as session:
        for seed in range(2):
            feeds = whole_feeds(graph, seed)
            np.testing.assert_allclose(session.run(feeds)["y"], evaluate(graph, feeds)["y"], 1e-5)
        links = session.receipt.links
        text = session.plan.explain()
        again = xd.compile(graph, two, constraints=rules, measure=False, plan=session.plan)
    assert set(links) == {f"cpu:0->{one}", f"cpu:0->{other}", f"{one}->{other}", f"{other}->cpu:0"}
    assert links[f"{one}->{other}"] == 64 * 64 * 4
    assert f"{one}->{other} {64 * 64 * 4} B by peer access" in text
    with again:
        feeds = whole_feeds(graph, 5)
        np.testing.assert_allclose(again.run(feeds)["y"], evaluate(graph, feeds)["y"], 1e-5)
    with xd.compile(graph, two, constraints=rules, measure=False, verify="transfers") as looked:
        looked.run(feeds)
        assert f"{one}->{other}" not in looked.receipt.links, "both hops are read back"


def test_runs_at_once_share_the_card(card: str) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (3, 4))
    y = b.add(b.mul(x, x, label="up"), x, label="host")
    graph = b.build({"y": b.neg(b.max(y, x, label="up again"), label="last")})
    rules = xd.Constraints(pin={"up*": card, "host": "cpu:0", "last": card})
    with xd.compile(graph, [card], constraints=rules, measure=False, runs_at_once=4) as session:
        feeds = [whole_feeds(graph, i) for i in range(12)]
        futures = [session.submit(f) for f in feeds]
        for f, future in zip(feeds, futures, strict=True):
            np.testing.assert_array_equal(future.result(60)["y"], evaluate(graph, f)["y"])


def test_a_receipt_says_why_launches_are_not_replayed(
    card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (4, 4))
    graph = b.build({"y": b.transpose(b.softmax(x, axis=1), permutation=[1, 0])})
    stream = registry.open_device(card).queues["compute"].stream

    def refuse(*mode: int) -> None:
        raise cupy_fake.CUDARuntimeError(801)

    monkeypatch.setattr(stream, "begin_capture", refuse)
    monkeypatch.setattr(stream, "end_capture", refuse)
    rules = xd.Constraints(pin={"*": card})
    with xd.compile(graph, [card], constraints=rules, measure=False) as session:
        for _ in range(2):
            feeds = whole_feeds(graph, 1)
            np.testing.assert_allclose(session.run(feeds)["y"], evaluate(graph, feeds)["y"], 1e-5)
        assert session.receipt.notes == ("no CUDA graph of 2 launches: error 801",)
        said = "in its last run: no CUDA graph of 2 launches: error 801"
        assert said in session.plan.explain()
        assert said in session.plan.explain_op(session.plan.launches()[0].name)


def test_explain_says_what_is_replayed_as_it_is(card: str) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", (4, 4))
    first = b.transpose(b.softmax(x, axis=1, label="a"), permutation=[1, 0], label="b")
    host = b.neg(b.softmax(first, axis=1, label="c"), label="host")
    graph = b.build({"y": b.softmax(host, axis=1, label="alone")})
    rules = xd.Constraints(pin={"[abc]": card, "alone": card, "host": "cpu:0"})
    with xd.compile(graph, [card], constraints=rules, measure=False) as session:
        made = {s.name: s.replay for s in session.plan.launches()}
        commands = instantiate(session.ready().program).commands.values()
        text, one = session.plan.explain(), session.plan.explain_op("alone")
        again = xd.Plan.from_json(session.plan.to_json())
    graphs = [p for c in commands for p in getattr(c, "parts", ()) if isinstance(p, Segment)]
    assert [len(found.calls) for found in graphs] == [3]
    assert {made[name] for name in "abc"} == {"replayed in graph 1 of 3 launches"}
    assert made["host"] == ""
    assert made["alone"] == "not replayed: no other launch is beside it between two waits"
    assert "3 of 4 ops are replayed in graphs of launches; not replayed: " in text
    assert made["alone"] in one
    assert again.explain() == text
