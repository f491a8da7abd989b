"""Memory that runs out, and a card that is lost: typed errors, and runs that go on."""

from __future__ import annotations

from typing import Any

import numpy as np

import crossdock as xd
from bench.gpu_check.place import HOST, Place
from bench.gpu_check.report import Report
from crossdock.devices import registry
from crossdock.runtime.errors import DeviceLost, OutOfMemory

POISON = 'extern "C" __global__ void poison(int *p) { *p = 1; }'
ILLEGAL = 700
"""cudaErrorIllegalAddress: the context answers nothing else from then on."""
BUDGET = 8 << 20


def run(place: Place, report: Report) -> None:
    """Budgets first; the card is lost last, and this process with it."""
    _budget(place, report)
    _whole_card(place, report)
    _budget_of_a_session(place, report)
    _lost(place, report)


def _refused(device: Any, nbytes: int) -> str:
    """The message with which an allocation is refused, or nothing."""
    try:
        device.allocate(nbytes, "a check").release()
    except OutOfMemory as error:
        return str(error)
    return ""


def _budget(place: Place, report: Report) -> None:
    device = place.open(limit=BUDGET)
    said = _refused(device, BUDGET + 1)
    report.check("over the budget: OutOfMemory", bool(said), said)
    report.check("within the budget after it", not _refused(device, BUDGET))


def _whole_card(place: Place, report: Report) -> None:
    device = place.open()
    said = _refused(device, device.info.memory_bytes * 2)
    report.check("twice the card's memory: OutOfMemory", bool(said), said)
    report.check("the card works after it", not _refused(device, BUDGET))


def _products(name: str) -> xd.Graph:
    b = xd.GraphBuilder(name)
    y = b.input("x", (64, 64))
    w = b.constant(np.full((64, 64), 1 / 64, np.float32))
    for i in range(4):
        y = b.tanh(b.matmul(y, w, label=f"product{i}"), label=f"tanh{i}")
    return b.build({"y": y})


FEEDS = {"x": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}


def _budget_of_a_session(place: Place, report: Report) -> None:
    """A budget too small for any plan is refused with the numbers, or eased: never a crash."""
    made = _products("budget")
    limits = xd.Constraints(memory={place.device: 4096})
    try:
        with xd.compile(made, place.device, constraints=limits) as session:
            session.run(FEEDS)
            said, within = f"eased: {session.plan.rungs}", True
    except xd.Error as error:
        said, within = f"{type(error).__name__}: {error}", "4096" in str(error)
    report.check("a session's budget of 4096 B holds", within, said)


def _lost(place: Place, report: Report) -> None:
    """A context that an illegal write has poisoned: the run goes on, and what follows is typed."""
    made = _products("lost")
    with xd.compile(made, HOST) as session:
        want = session.run(FEEDS)["y"]
    pins = xd.Constraints(pin={"*": place.device})
    with xd.compile(made, [HOST, place.device], constraints=pins) as session:
        session.run(FEEDS)
        _poison(place)
        found = session.run(FEEDS)["y"]
        told = "; ".join(map(str, session.receipt.recoveries))
    near = bool(np.allclose(found, want, atol=1e-5))
    report.check("a run outlives the loss of the card", near and bool(told), told)
    report.check("the card counts as lost", place.device in registry.lost(), told)
    try:
        place.open()
        report.check("opening it again: DeviceLost", False)
    except DeviceLost as error:
        report.check("opening it again: DeviceLost", True, str(error))


def _poison(place: Place) -> None:
    """Write to an address that is nobody's."""
    import cupy as cp

    if place.rehearsal:
        cp.machine.break_down(ILLEGAL)
        return
    with cp.cuda.Stream(non_blocking=True):
        cp.RawKernel(POISON, "poison")((1,), (1,), (np.uint64(16),))
