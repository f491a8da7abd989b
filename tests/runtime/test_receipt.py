"""Receipts: what they say is what the devices did."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices.base import DeviceInfo, Span
from crossdock.devices.sim import SimQueue
from crossdock.runtime import costing
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.receipt import make_receipt
from tests.runtime.conftest import Machine
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_executor import ADVERSARIAL, placed_graphs

pytestmark = pytest.mark.usefixtures("no_hang")


class Copies:
    """Counts what crosses the links of simulated devices."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bytes: Counter[str] = Counter()
        write, read = SimQueue.write, SimQueue.read

        def up(queue: SimQueue, target: Any, source: Any, *waits: Any) -> Any:
            self.bytes[f"cpu:0->{queue.device.info.id}"] += source.nbytes
            return write(queue, target, source, *waits)

        def down(queue: SimQueue, source: Any, target: Any, *waits: Any) -> Any:
            self.bytes[f"{queue.device.info.id}->cpu:0"] += target.nbytes
            return read(queue, source, target, *waits)

        patch.setattr(SimQueue, "write", up)
        patch.setattr(SimQueue, "read", down)


@settings(ADVERSARIAL, max_examples=20)
@given(placed_graphs(), st.integers(0, 99))
def test_bytes_a_link_are_those_copied(
    machine: Machine, made: tuple[Graph, dict[str, int]], seed: int
) -> None:
    graph, where = made
    ids = ["cpu:0", *(machine.sim(name) for name in "abc")]
    rules = xd.Constraints(pin={name: ids[at] for name, at in where.items()})
    with xd.compile(graph, ids, constraints=rules, measure=False) as session:
        with pytest.MonkeyPatch.context() as patch:
            copies = Copies(patch)  # weights went up before
            session.run(whole_feeds(graph, seed))
        receipt = session.receipt
        assert dict(receipt.links) == dict(copies.bytes)
        assert {op.name: op.device for op in receipt.ops if op.name in where} == {
            op.name: ids[where[op.name]] for op in receipt.ops if op.name in where
        }
        assert receipt.devices == {
            op.name: session.devices[op.device].info.physical_id for op in receipt.ops
        }


def chain(n: int = 6) -> Graph:
    b = xd.GraphBuilder()
    x = b.input("x", (8, 8))
    y = x
    for i in range(n):
        y = b.transpose(b.add(y, x, label=f"add{i}"), label=f"turn{i}")
    return b.build({"y": y})


def pinned(graph: Graph, devices: list[str]) -> dict[str, str]:
    """The ops on the devices in turn."""
    return {n.name: devices[i % len(devices)] for i, n in enumerate(graph.nodes)}


def test_a_profile_has_one_span_a_launch_and_a_copy(machine: Machine, opencl: DeviceInfo) -> None:
    graph = chain()
    devices = ["cpu:0", machine.sim("a"), opencl.id]
    rules = xd.Constraints(pin=pinned(graph, devices))
    with xd.compile(graph, devices, constraints=rules, measure=False) as session:
        outcome = session.profile(whole_feeds(graph, 0))
        plan = session.plan
        for queue in {s.queue for s in plan.steps}:
            steps = [s for s in plan.steps if s.queue == queue]
            names = [s.name if s.kind == "launch" else f"copy {s.name}" for s in steps]
            assert [span.label for span in outcome.spans[queue]] == names
            assert all(span.start <= span.end for span in outcome.spans[queue])
        assert set(outcome.spans) == {s.queue for s in plan.steps}
        assert all(op.measured is not None and op.measured >= 0 for op in session.receipt.ops)
        session.run(whole_feeds(graph, 0))
        assert all(op.measured is None for op in session.receipt.ops)


def queue_totals(plan: Any, outcome: Any) -> dict[str, float]:
    """Seconds of all spans by device, and by link: what the profiler says the queues did."""
    named = {s.queue: f"{s.src}->{s.dst}" if s.kind == "copy" else s.device for s in plan.steps}
    totals: dict[str, float] = {}
    for queue, spans in outcome.spans.items():
        name = named[queue]
        totals[name] = totals.get(name, 0.0) + sum(s.end - s.start for s in spans)
    return totals


def test_a_profiled_receipt_adds_up_to_the_profilers_totals(
    machine: Machine, opencl: DeviceInfo
) -> None:
    graph = chain(12)
    devices = ["cpu:0", machine.sim("a"), opencl.id]
    rules = xd.Constraints(pin=pinned(graph, devices))
    with xd.compile(graph, devices, constraints=rules, measure=False) as session:
        outcome = session.profile(whole_feeds(graph, 0))
        receipt = session.receipt
        totals = queue_totals(session.plan, outcome)
        assert receipt.busy() == pytest.approx(totals, rel=0.02)
        assert set(totals) == {*devices, *receipt.links}
        assert sum(op.predicted or 0 for op in receipt.ops) == pytest.approx(
            sum(s.seconds for s in session.plan.launches())
        )
        copies = session.plan.copies()
        assert sum(t.copies for t in receipt.transfers.values()) == len(copies)
        assert sum(t.predicted for t in receipt.transfers.values()) == pytest.approx(
            sum(s.seconds for s in copies)
        )
        session.run(whole_feeds(graph, 0))
        assert session.receipt.busy() == {}
        assert session.receipt.links == receipt.links


def test_bytes_to_and_from_an_opencl_device_are_those_copied(opencl: DeviceInfo) -> None:
    from crossdock.devices.opencl_queue import ClQueue

    graph = chain()
    rules = xd.Constraints(pin=pinned(graph, ["cpu:0", opencl.id]))
    moved: Counter[str] = Counter()
    with xd.compile(graph, ["cpu:0", opencl.id], constraints=rules, measure=False) as session:
        with pytest.MonkeyPatch.context() as patch:
            write, read = ClQueue.write, ClQueue.read

            def up(queue: Any, target: Any, source: Any, *waits: Any) -> Any:
                moved[f"cpu:0->{opencl.id}"] += source.nbytes
                return write(queue, target, source, *waits)

            def down(queue: Any, source: Any, target: Any, *waits: Any) -> Any:
                moved[f"{opencl.id}->cpu:0"] += target.nbytes
                return read(queue, source, target, *waits)

            patch.setattr(ClQueue, "write", up)
            patch.setattr(ClQueue, "read", down)
            session.run(whole_feeds(graph, 0))
        assert session.receipt.links == dict(moved)


def test_a_receipt_of_a_run_is_not_made_anew(machine: Machine) -> None:
    graph = chain(3)
    with xd.compile(graph, machine.sim("a"), measure=False) as session:
        session.run(whole_feeds(graph, 0))
        first = session.receipt
        session.run(whole_feeds(graph, 1))
        second = session.receipt
    assert second.ops is first.ops
    assert second.transfers is first.transfers
    assert second.measured != first.measured


def test_wall_clock_spans_lie_within_the_run(opencl: DeviceInfo, costs: object) -> None:
    graph = chain()
    rules = xd.Constraints(pin=pinned(graph, ["cpu:0", opencl.id]))
    with xd.compile(graph, ["cpu:0", opencl.id], constraints=rules, measure=False) as session:
        outcome = session.profile(whole_feeds(graph, 0))
    slack = 2e-3  # the device's clock is matched to the host's by the best of a few markers
    for spans in outcome.spans.values():
        for span in spans:
            assert outcome.began - slack <= span.start
            assert span.end <= outcome.began + outcome.seconds + slack


def test_a_node_named_like_a_copy_is_told_from_it(machine: Machine) -> None:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.neg(b.input("x", (2,)), label="copy x")})
    with xd.compile(graph, machine.sim("a"), measure=False) as session:
        session.profile({"x": np.ones(2, np.float32)})
        plan, (op,) = session.plan, session.receipt.ops
        spans = {"sim:a/upload": [Span("copy x", 0, 9)], "sim:a/compute": [Span("copy x", 0, 2)]}
        (other,) = make_receipt(plan, "0", 1.0, spans, frozenset(["sim:a"])).ops
    assert op.measured is not None
    assert other.measured == 2


def test_receipts_while_others_run_are_whole(machine: Machine) -> None:
    b = xd.GraphBuilder()
    x = b.input("x", ("n", 4))
    graph = b.build({"y": b.neg(x)})
    stop = threading.Event()
    with xd.compile(graph, machine.sim("a"), measure=False) as session:
        session.run({"x": np.ones((1, 4), np.float32)})

        def work(n: int) -> None:
            while not stop.is_set():
                session.run({"x": np.ones((n, 4), np.float32)}, timeout=30)

        threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(200):
                receipt = session.receipt
                up, down = (receipt.links[k] for k in ("cpu:0->sim:a", "sim:a->cpu:0"))
                assert up == down in (16, 32, 48)
                assert receipt.measured > 0
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)


def test_what_ran_where_nobody_asked_is_noted(machine: Machine) -> None:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.neg(b.input("x", (2,)), label="n")})
    feeds = {"x": np.ones(2, np.float32)}
    for devices in ("cpu:0", ["cpu:0"], machine.sim("a"), "auto"):
        with xd.compile(graph, devices, measure=False) as session:
            session.run(feeds)
            assert session.receipt.notes == ()
    with xd.compile(graph, "cpu:0", measure=False) as session:
        made = make_receipt(session.plan, "0", 1.0, {}, frozenset(["sim:a"]))
    assert made.notes == ("n (neg) ran on cpu:0: no device asked for has a kernel",)


def test_a_receipt_is_plain_data_and_there_is_none_before_a_run(machine: Machine) -> None:
    graph = chain(1)
    with xd.compile(graph, machine.sim("a"), measure=False) as session:
        with pytest.raises(PlanError, match="call run first"):
            _ = session.receipt
        session.run(whole_feeds(graph, 0))
        receipt = session.receipt
        assert json.loads(json.dumps(receipt.to_json()))["plan"] == session.plan.digest()
        assert receipt.predicted == session.plan.predicted == session.estimate().seconds


def test_estimates_are_intervals(machine: Machine, costs: costing.CostStore) -> None:
    del costs
    with xd.compile(chain(), machine.sim("a"), measure=False) as session:
        estimate = session.estimate()
        assert 0 <= estimate.low <= estimate.seconds <= estimate.high
        assert set(estimate.peak_bytes) == {"cpu:0", "sim:a"}
        assert all(n > 0 for n in estimate.peak_bytes.values())
