"""Splitting over devices where inputs lie on one of them, and outputs stay there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.devices.links import link_ends
from crossdock.kernels.reference import evaluate
from crossdock.runtime import costing
from crossdock.runtime.device_array import Ledger
from crossdock.runtime.errors import PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.keeping import Keeping
from crossdock.runtime.knowledge import group_capacity
from crossdock.runtime.plan import Plan
from crossdock.runtime.planner import Options, make_plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.ready import make_ready
from crossdock.runtime.session import Session
from crossdock.runtime.sites import Sites
from crossdock.runtime.split import grow, rewrite
from crossdock.runtime.split_choice import Planned, plan_parts, unsplit
from crossdock.runtime.split_cost import Shares
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel, LinkModel
from tests.runtime.conftest import Machine
from tests.runtime.lazy_device import World
from tests.runtime.strategies import exact_graphs, whole_feeds
from tests.runtime.test_exchange import on
from tests.runtime.test_executor import ADVERSARIAL
from tests.runtime.test_split_choice import GRAPHS, feeds_of, known

pytestmark = pytest.mark.usefixtures("no_hang")
A, B = "sim:a", "sim:b"
SLOW = {"speed_flops": 1e6, "bandwidth": 2e10, "link_bandwidth": 2e10, "link_latency": 1e-6}


def pair(machine: Machine, **far: Any) -> list[str]:
    """Two devices that compute slowly, with fast memory and links; what is given of the second."""
    ids = [machine.sim("a", **SLOW), machine.sim("b", **{**SLOW, **far})]
    known(machine, ids)
    return ids


def heavy() -> Graph:
    """x -> p = x W, small beside what follows -> q = p V -> y = (q U) + z: inner ops weigh most."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("heavy")
    x, z = b.input("x", (64, 8)), b.input("z", (64, 8))
    w, v, u = (
        b.constant(rng.standard_normal(s).astype(np.float32) / 8)
        for s in ((8, 512), (512, 512), (512, 8))
    )
    p = b.tanh(b.matmul(x, w, label="p"))
    q = b.tanh(b.matmul(p, v, label="q"))
    return b.build({"y": b.add(b.matmul(q, u, label="r"), z)})


MADE = {**GRAPHS, "heavy": heavy}


def taken(session: Session) -> list[Any]:
    return [s for s in session.plan.splits if s.taken]


def right(session: Session, graph: Graph, feeds: dict[str, Any], **options: Any) -> Any:
    """Run, and hold the answer against the reference's; the outputs."""
    made: dict[str, Any] = session.run(feeds, **options)
    host = {n: np.asarray(v) if isinstance(v, np.ndarray) else v.numpy() for n, v in feeds.items()}
    for name, value in evaluate(graph, host).items():
        found = made[name]
        found = found if isinstance(found, np.ndarray) else found.numpy()
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-4)
    return made


@pytest.mark.parametrize(
    ("lies", "outputs"), [("x", "host"), ("x", "device"), ("all", "device"), ("none", "device")]
)
@pytest.mark.parametrize("name", sorted(MADE))
def test_ops_are_split_beside_what_lies_on_a_device(
    machine: Machine, name: str, lies: str, outputs: Any
) -> None:
    graph, ids = MADE[name](), pair(machine)
    a, b = (machine.device(i) for i in ids)
    told = {"x": {"x": A}, "all": A, "none": {}}[lies]
    where: dict[str, Any] = {"feeds_on": told, "outputs": outputs}
    with xd.compile(graph, ids, measure=False, **where) as session:
        plan, feeds = session.plan, feeds_of(graph)
        assert taken(session), plan.explain()
        assert {s.device for s in plan.launches()} >= {A, B}
        alone = min(d.single_seconds for d in plan.devices if d.single_seconds is not None)
        assert plan.predicted < alone
        assert set(plan.feeds_on) == (
            {"x"} if lies == "x" else set(graph.inputs) if told else set()
        )
        assert plan.stays == (("y",) if outputs == "device" else ())
        placed = {n: on(a, v) if n in plan.feeds_on else v for n, v in feeds.items()}
        made = right(session, graph, placed)
        assert isinstance(made["y"], np.ndarray) == (outputs == "host")
        assert not session.receipt.avoided
        for other in (feeds, {n: on(b, v) for n, v in feeds.items()}, placed):
            for how in ("host", "device"):
                right(session, graph, other, outputs=how)


def test_nothing_of_what_lies_on_a_device_goes_to_the_host_to_be_cut(machine: Machine) -> None:
    graph = MADE["chain"]()
    ids = [machine.sim("a", peers=("b",), **SLOW), machine.sim("b", peers=("a",), **SLOW)]
    known(machine, ids)
    a, b = (machine.device(i) for i in ids)
    for ends in ((a, b), (b, a)):
        model = LinkModel(1e-6, ((1.0, 2e10),))
        costing.store().model.set_link(*link_ends(*(d.info for d in ends)), model)
    where: dict[str, Any] = {"feeds_on": A, "outputs": "device"}
    with xd.compile(graph, ids, measure=False, **where) as session:
        assert taken(session), session.plan.explain()
        right(session, graph, {n: on(a, v) for n, v in feeds_of(graph).items()})
        assert set(session.receipt.links) == {f"{A}->{B}", f"{B}->{A}"}


def test_a_split_that_its_links_eat_up_is_not_made(machine: Machine) -> None:
    graph = MADE["product"]()
    ids = pair(machine, link_latency=1e-2)
    with xd.compile(graph, ids, measure=False, feeds_on=A, outputs="device") as session:
        assert not taken(session)
        assert {s.device for s in session.plan.launches()} == {A}
        assert session.plan.copies() == ()
        assert all("break-even" in s.reason for s in session.plan.splits)


def test_what_is_whole_where_it_lies_costs_no_link(machine: Machine) -> None:
    """Parts that would pay for inputs on the host do not where they lie on one device."""
    graph = MADE["chain"]()
    ids = pair(machine, link_bandwidth=2e9)
    far = {"bandwidth": 2e9, "link_bandwidth": 2e9, "link_latency": 1e-6}
    machine.sim("a", **far)
    known(machine, ids)
    with xd.compile(graph, ids, measure=False) as session:
        assert taken(session), session.plan.explain()
    with xd.compile(graph, ids, measure=False, feeds_on=A, outputs="device") as session:
        assert not taken(session), session.plan.explain()


def test_a_plan_with_parts_is_kept_and_given_again(machine: Machine) -> None:
    for name, graph in ((n, make()) for n, make in sorted(MADE.items())):
        ids = pair(machine)
        where: dict[str, Any] = {"feeds_on": A, "outputs": "device"}
        with xd.compile(graph, ids, measure=False, **where) as session:
            plan = Plan.loads(session.plan.dumps())
        assert any(s.taken for s in plan.splits), name
        a = machine.device(A)
        feeds = feeds_of(graph)
        with xd.compile(graph, ids, measure=False, plan=plan, outputs="device") as session:
            right(session, graph, {n: on(a, v) for n, v in feeds.items()})
            assert not session.receipt.avoided
            right(session, graph, feeds, outputs="host")
        with pytest.raises(PlanError, match="damaged"):
            xd.compile(graph, ids, measure=False, plan=_other(plan, "nothing"))
        with pytest.raises(PlanError, match="damaged"):
            xd.compile(graph, ids, measure=False, plan=_other(plan))


def _other(plan: Plan, *stays: str) -> Plan:
    """The plan with other outputs that stay."""
    data = plan.to_json()
    return Plan.from_json({**data, "stays": list(stays)})


def test_labelled_inputs_are_left_whole(machine: Machine) -> None:
    graph, ids = MADE["product"](), pair(machine)
    rules = xd.Constraints(residency={"x": A})
    where: dict[str, Any] = {"feeds_on": A, "outputs": "device", "constraints": rules}
    with xd.compile(graph, ids, measure=False, **where) as session:
        assert not any("mm" in s.ops for s in session.plan.splits)
        a = machine.device(A)
        right(session, graph, {n: on(a, v) for n, v in feeds_of(graph).items()})


def test_a_session_that_is_fed_from_a_device_for_long_keeps_its_parts(machine: Machine) -> None:
    graph, ids = MADE["heavy"](), pair(machine)
    a = machine.device(A)
    with xd.compile(graph, ids, measure=False) as session:
        assert taken(session)
        ready = session.ready()
        feeds = {n: on(a, v) for n, v in feeds_of(graph).items()}
        right(session, graph, feeds, outputs="device")
        assert ready.resite is not None
        made = ready.resite(ready, Sites({"x": A, "z": A}, ("y",)))
        assert any(s.taken for s in made.program.plan.splits)


@settings(ADVERSARIAL, max_examples=25)
@given(exact_graphs(), st.integers(0, 1 << 16), st.data())
def test_answers_hold_however_parts_and_ends_lie_and_late_work_is_done(
    machine: Machine, graph: Graph, seed: int, data: st.DataObject
) -> None:
    """Regions after one another, ops, parts, slices and joins anywhere, inputs and outputs too."""
    world = World(seed)
    ids = ["cpu:0", *(machine.lazy(name, world, peers=("a", "b")) for name in "abc")]
    devices = {name: machine.device(name) for name in ids}
    somewhere = st.sampled_from(ids)
    lies = {n: data.draw(somewhere) for n in graph.inputs}
    stays = tuple(graph.outputs) if data.draw(st.booleans()) else ()
    sites = Sites({n: where for n, where in lies.items() if where != "cpu:0"}, stays)
    split = unsplit(graph, sites)
    for _ in range(2):
        whole = [node for node in split.graph.nodes if node.name not in split.parts]
        node = data.draw(st.sampled_from(whole)) if whole else None
        rank = 0 if node is None else split.graph.specs[node.outputs[0]].rank
        if node is None or not rank:
            break
        axis = data.draw(st.integers(0, rank - 1))
        region = grow(split.graph, node, axis, frozenset(split.parts))
        if region is not None:
            first = data.draw(st.integers(1, region.units - 1))
            split = rewrite(split, region, (first, region.units - first))
    assert sites.feeds.keys() & {w.source for w in split.inputs.values()} == set()
    assert set(stays) & {w.source for w in split.outputs.values()} == set()
    homes = {n.name: data.draw(somewhere) for n in split.graph.nodes}
    target = Target(tuple(d.info for d in devices.values()), frozenset(ids), CostModel())
    plan = make_plan(split.graph, target, Options(sites=sites, homes=homes))
    ready = make_ready(graph, Planned(split, plan), frozenset(ids), devices, 1, {})
    for turn in range(3):
        feeds = whole_feeds(graph, seed + turn)
        fed = {
            name: value if (where := ids[(ids.index(lies[name]) + turn) % 4]) == "cpu:0"
            else on(devices[where], np.asarray(value))
            for name, value in feeds.items()
        }  # fmt: skip
        keep = bool(stays) if turn == 0 else turn == 1
        keeping = Keeping(Ledger({})) if keep else None
        made = ready.run(fed, Deadline(60), profile=False, keeping=keeping)
        assert turn or not (made.avoided or made.pulled)
        for name, value in evaluate(graph, feeds).items():
            found: Any = made.outputs[name]
            assert isinstance(found, np.ndarray) == (not keep)
            np.testing.assert_array_equal(found if not keep else found.numpy(), value)


@pytest.mark.parametrize("name", sorted(MADE))
def test_parts_on_real_devices(opencl: DeviceInfo, name: str, costs: costing.CostStore) -> None:
    check_parts(MADE[name](), opencl.id, costs)


@pytest.mark.usefixtures("fake")
def test_parts_on_a_card(costs: costing.CostStore) -> None:
    check_parts(heavy(), "cuda:0", costs)


def check_parts(graph: Graph, far: str, costs: costing.CostStore) -> None:
    """Inputs on the other device, output there or not, along every axis, parts in either order."""
    ids = ("cpu:0", far)
    devices = {i: registry.open_device(i) for i in ids}
    infos = tuple(d.info for d in devices.values())
    target = Target(infos, frozenset(ids), costs.model, group_capacity(infos))
    feeds = feeds_of(graph)
    placed = {n: on(devices[far], v) for n, v in feeds.items()}
    want = evaluate(graph, feeds)
    node = next(n for n in graph.nodes if n.op in ("matmul", "conv2d", "add"))
    for stays, order in (((), ids), (("y",), ids[::-1])):
        options = Options(sites=Sites(dict.fromkeys(graph.inputs, far), stays))
        whole = Planned(unsplit(graph, options.sites), make_plan(graph, target, options))
        for axis in range(graph.specs[node.outputs[0]].rank):
            region = grow(graph, node, axis)
            if region is None:
                continue
            third = max(1, region.units // 3)
            shares = Shares(order, (third, region.units - third), 0.0)
            made = plan_parts(whole, [(region, shares)], target, options)
            assert made is not None
            ready = make_ready(graph, made, frozenset(ids), devices, 1, {})
            for fed in (placed, feeds):
                got = ready.run(fed, Deadline(), profile=False).outputs
                for output, value in want.items():
                    np.testing.assert_allclose(got[output], value, rtol=1e-4, atol=1e-4)
