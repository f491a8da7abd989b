"""Plans within a memory budget that are given: they run as they did, damaged ones do no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock as xd
from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.runtime import costing
from crossdock.runtime.errors import MemoryBudget, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.runtime.plan_parts import Edit, Streamed
from crossdock.runtime.session import Session
from tests.fakes import cupy_fake
from tests.runtime import test_degrade
from tests.runtime.conftest import Machine
from tests.runtime.lazy_device import World
from tests.runtime.strategies import whole_feeds
from tests.runtime.test_degrade import device as device
from tests.runtime.test_executor import ADVERSARIAL, check_runs
from tests.runtime.test_plan import JUNK, paths
from tests.runtime.test_streams import (
    chain,
    free_plan,
    linked,
    resampled,
    squeezed,
    weighted_graphs,
)

pytestmark = pytest.mark.usefixtures("no_hang")


def given_again(graph: Graph, plan: Plan, **options: Any) -> Session:
    """The session of a plan that was written and read again."""
    session = xd.compile(graph, plan=Plan.loads(plan.dumps()), measure=False, **options)
    assert session.plan == plan
    return session


RUNGS = [
    *test_degrade.RUNGS,
    (test_degrade.dear_and_late, "elsewhere", 0.001),
]


@pytest.mark.parametrize(("make", "rung", "share"), RUNGS, ids=[r for _, r, _ in RUNGS])
def test_a_plan_of_every_rung_runs_again(
    make: Callable[[], Graph], rung: str, share: float, device: str
) -> None:
    graph = make()
    fed = test_degrade.feeds(graph)
    budget = share * test_degrade.need(graph, device)
    with test_degrade.compiled(graph, device, budget) as session:
        plan, want = session.plan, session.run(fed)
    assert plan.rungs[-1].name == rung
    memory = xd.Constraints(memory={device: budget})
    for rules in (memory, None):
        with given_again(graph, plan, constraints=rules) as session:
            registry.open_device(device).gauge.reset()
            for name, array in session.run(fed).items():
                np.testing.assert_array_equal(array, want[name])
            assert registry.open_device(device).gauge.peak <= budget
    need = plan.device(device).peak_bytes
    if need:
        with pytest.raises(MemoryBudget, match=f"{device} needs {need} B"):
            given_again(graph, plan, constraints=xd.Constraints(memory={device: need - 1}))


@settings(ADVERSARIAL, max_examples=12)
@given(weighted_graphs(), st.floats(0.0, 1.0), st.integers(0, 1 << 16))
def test_plans_that_bring_weights_run_again_however_late_work_is_done(
    machine: Machine, graph: Graph, share: float, seed: int
) -> None:
    part = free_plan(graph, machine.sim("free")).device("sim:free")
    budget = int(part.run_bytes + share * part.fixed_bytes)
    name = machine.lazy("tight", World(seed), memory_bytes=budget)
    try:
        session = xd.compile(graph, [name], measure=False, split=False)
    except MemoryBudget:
        return
    with session:
        plan = session.plan
    machine.lazy("tight", World(seed), memory_bytes=budget)
    with given_again(graph, plan, runs_at_once=2) as session:
        check_runs(session, graph, seed)
        assert session.receipt.streamed == (
            {f"cpu:0->{name}": plan.streamed_bytes()[name]} if plan.streamed else {}
        )
        assert registry.open_device(name).gauge.peak <= budget


def layers(depth: int = 6, side: int = 32) -> Graph:
    """Products with weights, and a value that is read at both ends."""
    rng = np.random.default_rng(1)
    b = xd.GraphBuilder("layers")
    first = b.clamp(b.input("x", (side, side)), min_value=-2, max_value=2, label="kept")
    y = first
    for i in range(depth):
        w = b.constant(rng.integers(-1, 2, (side, side)).astype(np.float32))
        y = b.clamp(b.matmul(y, w, label=f"m{i}"), min_value=-2, max_value=2)
    return b.build({"y": b.add(y, first, label="last")})


@pytest.fixture
def late(machine: Machine, costs: costing.CostStore) -> Callable[[int], str]:
    """Makes a simulated card anew on which nothing is done before somebody waits for it."""

    def made(seed: int) -> str:
        name = machine.lazy("card", World(seed), memory_bytes=1 << 30)
        linked(costs, name, 1e9)
        return name

    return made


@pytest.fixture
def fitted(late: Callable[[int], str]) -> Plan:
    """A plan of ``layers`` that brings weights of ops in parts."""
    card, graph = late(0), layers()
    part = free_plan(graph, card).device(card)
    unit = graph.inputs["x"].nbytes
    budget = part.run_bytes + 2 * unit - unit // 2
    rules = xd.Constraints(memory={card: budget})
    with xd.compile(graph, [card], constraints=rules, measure=False, split=False) as session:
        plan = session.plan
    assert plan.streamed
    assert plan.edits
    return plan


def test_weights_are_brought_to_ops_in_parts(late: Callable[[int], str], fitted: Plan) -> None:
    for seed in range(4):
        late(seed)
        with given_again(layers(), fitted) as session:
            check_runs(session, layers(), seed)


def nodes_of(data: Any, at: tuple[str | int, ...]) -> Any:
    for key in at:
        data = data[key]
    return data


def of_weights(data: Any) -> Iterator[tuple[str | int, ...]]:
    """Where a plan's data says something of its weights, waits, memory and edits."""
    for at in paths(data):
        if len(at) > 2 and at[0] == "steps":
            step = data["steps"][at[1]]
            found = at[2] == "waits" or not (step["inputs"] or step["outputs"])
        elif len(at) > 2 and at[0] == "devices":
            found = at[2] in ("offsets", "region_bytes", "arena_bytes")
        else:
            found = len(at) > 1 and at[0] in ("streamed", "edits", "splits", "rows")
        if found:
            yield at


OTHER = st.sampled_from(["near", "zero", "elsewhere", "remove", "double", "swap", "junk"])


def damage(data: Any, draw: st.DataObject) -> None:
    """Change one thing of a plan's data."""
    at = draw.draw(st.sampled_from([*of_weights(data)]))
    parent, key, how = nodes_of(data, at[:-1]), at[-1], draw.draw(OTHER)
    value = parent[key]
    if how == "near" and isinstance(value, int):
        parent[key] = value + draw.draw(st.sampled_from([-64, -4, -1, 1, 4, 64, 4096]))
    elif how == "zero":
        parent[key] = type(value)() if value is not None else 0
    elif how == "remove":
        del parent[key]
    elif how == "double" and isinstance(parent, list):
        parent.insert(draw.draw(st.integers(0, len(parent))), value)
    elif how == "swap" and isinstance(parent, list):
        other = draw.draw(st.integers(0, len(parent) - 1))
        parent[key], parent[other] = parent[other], parent[key]
    elif how == "junk":
        parent[key] = draw.draw(JUNK)
    else:
        same = [p for p in paths(data) if p and p[-1] == key]
        parent[key] = json.loads(json.dumps(nodes_of(data, draw.draw(st.sampled_from(same)))))


@settings(ADVERSARIAL, max_examples=100)
@given(st.data(), st.integers(0, 1 << 16))
def test_damaged_weights_are_right_or_refused(
    late: Callable[[int], str], fitted: Plan, draw: st.DataObject, seed: int
) -> None:
    graph = layers()
    broken: Any = json.loads(fitted.dumps())
    for _ in range(draw.draw(st.integers(1, 2))):
        damage(broken, draw)
    late(seed)
    try:
        session = xd.compile(graph, plan=Plan.loads(json.dumps(broken)), measure=False)
    except PlanError:
        return
    with session:
        check_runs(session, graph, seed)


def stays(plan: Plan, **fields: Any) -> Plan:
    """The plan with another first weight."""
    return replace(plan, streamed=(replace(plan.streamed[0], **fields), *plan.streamed[1:]))


def steps(plan: Plan, at: int, **fields: Any) -> Plan:
    """The plan with another step in the place of one that brings a weight."""
    index = [s.index for s in plan.steps if s.brings_weight][at]
    made = [replace(s, **fields) if s.index == index else s for s in plan.steps]
    return replace(plan, steps=tuple(made))


def regions(plan: Plan, nbytes: int) -> Plan:
    parts = (replace(d, region_bytes=nbytes) if d.region_bytes else d for d in plan.devices)
    return replace(plan, devices=tuple(parts))


def late_copy(plan: Plan) -> Plan:
    """The plan with the first weight brought after its op."""
    at = next(s.index for s in plan.steps if s.brings_weight)
    op = next(s.index for s in plan.launches() if s.name == plan.streamed[0].op)
    order = [*range(at), *range(at + 1, op + 1), at, *range(op + 1, len(plan.steps))]
    place = {old: new for new, old in enumerate(order)}
    moved = []
    for new, old in enumerate(order):
        waits = sorted(place[w] for w in plan.steps[old].waits if place[w] < new)
        moved.append(replace(plan.steps[old], index=new, waits=tuple(waits)))
    return replace(plan, steps=tuple(moved))


def fewer_waits(plan: Plan, *, weights: bool) -> Plan:
    """The plan without the waits of one step: of a weight, or of the op that reads one."""
    brought = [s.index for s in plan.steps if s.brings_weight]
    found = next(
        s.index
        for s in plan.steps
        if s.waits and (s.brings_weight if weights else set(brought) & set(s.waits))
    )
    made = (replace(s, waits=()) if s.index == found else s for s in plan.steps)
    return replace(plan, steps=tuple(made))


DAMAGE: list[tuple[Callable[[Plan], Plan], str]] = [
    (lambda p: stays(p, weight="constant_5"), "reads no weight"),
    (lambda p: stays(p, weight=""), "reads no weight"),
    (lambda p: stays(p, weight="none"), "reads no weight"),
    (lambda p: stays(p, pack=0), "reads no weight"),
    (lambda p: stays(p, weight="", pack=1 << 62), "reads no weight"),
    (lambda p: stays(p, nbytes=8), "brings no weight to an op"),
    (lambda p: steps(stays(p, nbytes=8), 0, nbytes=8), "reads no weight .* of 8 B"),
    (lambda p: stays(p, name="other"), "brings no weight to an op"),
    (lambda p: steps(stays(p, name="other"), 0, name="other"), "reads no weight 'other'"),
    (lambda p: steps(stays(p, name="last"), 0, name="last"), "reads no weight 'last'"),
    (lambda p: stays(p, op="last.part1"), "reads no weight"),
    (lambda p: stays(p, op="none"), "brings no weight to an op"),
    (lambda p: stays(p, device="cpu:0"), "brings no weight to an op"),
    (lambda p: stays(p, offset=p.streamed[0].offset + 64), "its memory are not those"),
    (lambda p: stays(p, offset=1 << 40), "its memory are not those"),
    (lambda p: replace(p, streamed=p.streamed[1:]), "brings no weight to an op"),
    (lambda p: replace(p, streamed=()), "brings no weight to an op"),
    (lambda p: replace(p, streamed=(*p.streamed, p.streamed[0])), "or one brings two"),
    (lambda p: steps(p, 0, name=p.streamed[1].name), "brings no weight to an op"),
    (lambda p: steps(p, 0, nbytes=1 << 40), "brings no weight to an op"),
    (lambda p: steps(p, 0, queue="sim:card/download"), "brings no weight to an op"),
    (lambda p: steps(p, 0, src="sim:card"), "brings no weight to an op"),
    (lambda p: steps(p, 0, dst="cpu:0"), "brings no weight to an op"),
    (late_copy, "brings no weight to an op"),
    (lambda p: fewer_waits(p, weights=True), "weights of .* B pass through"),
    (lambda p: fewer_waits(p, weights=False), "weights of .* B pass through|its waits"),
    (lambda p: regions(p, 64), "weights of .* B pass through 64 B"),
    (lambda p: regions(p, 1 << 40), "weights of .* B pass through"),
    (lambda p: steps(p, -1, waits=(len(p.steps) - 1,)), "or wait"),
    (lambda p: replace(p, edits=()), "copies nothing that the graph has"),
    (lambda p: replace(p, edits=(*p.edits, p.edits[0])), "no op 'kept' to split"),
    (lambda p: replace(p, edits=(replace(p.edits[0], sizes=(31, 1)),)), "the plan is damaged"),
    (lambda p: replace(p, edits=(replace(p.edits[0], kind="other"),)), "cannot be changed by"),
    (lambda p: replace(p, edits=(replace(p.edits[0], kind="again"),)), "cannot be changed by"),
    (lambda p: replace(p, edits=(Edit("again", "none", ("last",)),)), "cannot be changed by"),
    (lambda p: replace(p, edits=(Edit("aside", "none", ("last",)),)), "cannot be changed by"),
    (lambda p: replace(p, edits=(Edit("aside", "kept", ("m0", "m0")),)), "cannot be changed"),
]


def test_what_is_damaged_of_weights_is_named(fitted: Plan) -> None:
    for broken, said in DAMAGE:
        with pytest.raises(PlanError, match=said) as found:
            xd.compile(layers(), plan=broken(fitted), measure=False)
        assert str(found.value).startswith("the plan is damaged: ")
        assert str(found.value).endswith("; plan again")


def test_names_that_the_caller_has_given_are_not_given_again(machine: Machine) -> None:
    assert machine is not None
    b = xd.GraphBuilder()
    cut = b.relu(b.input("x", (4, 4)), label="cut")
    graph = b.build({"y": b.cumulative_sum(cut, axis=0, label="cut.part0")})
    plan = free_plan(graph, "cpu:0")
    edit = Edit("split", "cut", ("cut",), axis=0, sizes=(2, 2))
    with pytest.raises(PlanError, match=r"changes the graph to none .*'cut\.part0'"):
        xd.compile(graph, plan=replace(plan, edits=(edit,)), measure=False)


AGAIN = """
import contextlib, sys
import numpy as np, pytest
import crossdock as xd
from tests.fakes import cards
from tests.runtime.test_streams import chain
device, plan, feeds, outs = sys.argv[1:]
with pytest.MonkeyPatch.context() as patch:
    fake = cards.installed(patch) if device.startswith("cuda:") else contextlib.nullcontext()
    with fake, xd.compile(chain(), plan=xd.Plan.loads(open(plan).read())) as session:
        np.savez(outs, **session.run(dict(np.load(feeds))))
        print(session.receipt.plan, session.receipt.streamed)
"""


def in_a_fresh_process(device: str, place: Path) -> None:
    """Hold a plan that brings weights to what it does in a process that did not make it."""
    graph, feeds = chain(), whole_feeds(chain(), 0)
    with squeezed(graph, device, 0.6) as session:
        plan, want = session.plan, session.run(feeds)
        streamed = session.receipt.streamed
    assert plan.streamed
    (place / "plan.json").write_text(plan.dumps())
    np.savez(place / "feeds.npz", **feeds)
    files = [str(place / name) for name in ("plan.json", "feeds.npz", "outs.npz")]
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, device, *files],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "CROSSDOCK_CACHE_DIR": "off"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{plan.digest()} {streamed}\n"
    with np.load(place / "outs.npz") as got:
        for name, array in want.items():
            np.testing.assert_array_equal(got[name], array)


def test_a_saved_plan_brings_weights_in_a_fresh_process(
    opencl: DeviceInfo, machine: Machine, tmp_path: Path
) -> None:
    assert machine is not None
    in_a_fresh_process(opencl.id, tmp_path)


def test_a_saved_plan_of_a_card_brings_weights_in_a_fresh_process(
    fake: cupy_fake.FakeCupy, machine: Machine, tmp_path: Path
) -> None:
    assert fake is not None
    assert machine is not None
    in_a_fresh_process("cuda:0", tmp_path)


def test_packed_weights_of_a_saved_plan_are_brought(opencl: DeviceInfo, machine: Machine) -> None:
    assert machine is not None
    graph = resampled()
    feeds = whole_feeds(graph, 0)
    part = free_plan(graph, opencl.id).device(opencl.id)
    rules = xd.Constraints(memory={opencl.id: part.run_bytes + 0.7 * part.fixed_bytes})
    with xd.compile(graph, opencl.id, constraints=rules, measure=False, split=False) as session:
        plan, want = session.plan, session.run(feeds)["y"]
    packed = [one for one in plan.streamed if one.pack is not None]
    with given_again(graph, plan) as session:
        for _ in range(2):
            np.testing.assert_array_equal(session.run(feeds)["y"], want)
    for other in (replace(packed[0], pack=7), replace(packed[0], weight="x")):
        stays = tuple(other if s is packed[0] else s for s in plan.streamed)
        with pytest.raises(PlanError, match="reads no weight"):
            xd.compile(graph, plan=replace(plan, streamed=stays), measure=False)


def test_the_host_brings_nothing_to_itself(machine: Machine) -> None:
    assert machine is not None
    graph = chain()
    plan = free_plan(graph, "cpu:0")
    op = plan.launches()[0]
    (weight,) = (v for v in op.inputs if v in graph.constants)
    nbytes = graph.constants[str(weight)].nbytes
    stay = Streamed(f"{weight} for {op.name}", "cpu:0", op.name, str(weight), None, 0, nbytes)
    copy = replace(
        op, index=0, kind="copy", queue="cpu:0/download", name=stay.name, inputs=(), outputs=(),
        src="cpu:0", dst="cpu:0", nbytes=nbytes,
    )  # fmt: skip
    later = (replace(s, index=s.index + 1, waits=(0,) if s is op else ()) for s in plan.steps)
    broken = replace(plan, steps=(copy, *later), streamed=(stay,))
    with pytest.raises(PlanError, match="brings no weight to an op"):
        xd.compile(graph, plan=broken, measure=False)
