"""Kernels that do not build: the next candidate runs, once and for the rest of the process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices.base import DeviceInfo
from crossdock.devices.faults import Fault
from crossdock.devices.program import GridLaunch, In, Lowered, Out
from crossdock.kernels import table
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import refused
from tests.runtime.faults.graphs import branches
from tests.runtime.faults.machine import A, FaultyMachine, compiled, right
from tests.runtime.strategies import whole_feeds

BROKEN = "broken"
SOURCE = "KERNEL void f(CONSTANT float *x, GLOBAL float *y) { y[0] = nobody_declared_this; }"


def lower(call: OpCall, device: DeviceInfo) -> Lowered:
    return Lowered((GridLaunch(SOURCE, "f", (In(0), Out(0)), (1,), (1,)),))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, opencl: DeviceInfo, costs: Any) -> Iterator[str]:
    """The id of a device with a kernel of ``neg``, ahead of all others, that no compiler takes."""
    table.load()
    made = Kernel(BROKEN, "neg", frozenset({"opencl"}), lambda *_: None, lower, rank=1)
    monkeypatch.setitem(table._KERNELS, "neg", [made, *table._KERNELS.get("neg", ())])
    yield opencl.id
    refused.forget()
    xd.rescan()


def compiled_on(device: str) -> xd.Session:
    b = xd.GraphBuilder()
    graph = b.build({"y": b.neg(b.input("x", (8,)), label="neg")})
    pinned = xd.Constraints(pin={"neg": device})
    return xd.compile(graph, ["cpu:0", device], constraints=pinned, measure=False)


def kernels(session: xd.Session) -> dict[str, str]:
    got = session.run({"x": np.arange(8, dtype=np.float32)})["y"]
    assert np.array_equal(got, -np.arange(8))
    return {op.name: op.kernel for op in session.receipt.ops}


def test_the_next_candidate_runs_and_the_log_is_kept(broken: str) -> None:
    with compiled_on(broken) as session:
        assert kernels(session)["neg"] != BROKEN
        (told,) = session.ready().recorder.recoveries
        assert (told.device, told.action) == (broken, "next candidate")
        assert "nobody_declared_this" in told.log
        assert {op.device for op in session.receipt.ops} == {broken}
    (found,) = [one for one in refused.refused().values() if one.kernel == BROKEN]
    assert (found.device, found.kernel) == (broken, BROKEN)
    assert "nobody_declared_this" in found.log
    with compiled_on(broken) as session:  # it is not tried again
        assert kernels(session)["neg"] != BROKEN
        assert not session.ready().recorder.recoveries
    refused.forget()
    with compiled_on(broken) as session:
        assert session.ready().recorder.recoveries


def test_a_device_whose_kernels_do_not_build_is_left_out(faulty: FaultyMachine) -> None:
    graph, places = branches()
    devices = faulty.all("abc", A, Fault("build", probability=1.0, call="compile"))
    with compiled(graph, places) as session:
        for seed in range(2):
            feeds = whole_feeds(graph, seed)
            right(graph, feeds, session.run(feeds))
        assert A in session.devices, "it is not lost"
        assert A not in {step.device for step in session.plan.launches()}
        told = session.ready().recorder.recoveries
        assert [one.action for one in told if one.device == A] == ["next candidate", "left out"]
    assert devices[A].faults.injected
