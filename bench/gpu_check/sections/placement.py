"""When two devices are faster than the card, and when everything stays on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import crossdock as xd
from bench.gpu_check.nets import NETS, TINY
from bench.gpu_check.nets_ours import graph
from bench.gpu_check.place import HOST, Place
from bench.gpu_check.report import Report
from bench.gpu_check.sections.models import error_of
from bench.streaming import Rate, rate
from bench.timing import interleaved

TOLERANCE = 1e-3
ENOUGH = 12.0
"""Seconds that a graph may take: none is begun with less."""


def branchy(place: Place) -> tuple[xd.Graph, dict[str, Any]]:
    """Sums of a large input, which the link would hold up, beside a chain of products."""
    rows, side, depth = place.size(16384, 64), place.size(2048, 32), place.size(24, 2)
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("sums beside products")
    sums = b.reduce_sum(b.input("rows", (rows, 8192)), axes=[1])
    y = b.input("x", (side, side))
    w = b.constant((rng.standard_normal((side, side)) / side**0.5).astype(np.float32))
    for _ in range(depth):
        y = b.tanh(b.matmul(y, w))
    feeds = {
        "rows": rng.random((rows, 8192), np.float32),
        "x": rng.standard_normal((side, side)).astype(np.float32),
    }
    return b.build({"sums": sums, "y": y}), feeds


def large(place: Place) -> tuple[xd.Graph, dict[str, Any]]:
    """Products of one row with matrices that take more memory than is allowed on the card."""
    side, depth = place.size(4096, 64), 12
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("matrices beyond the budget")
    y = b.input("x", (4, side))
    for _ in range(depth):
        w = rng.standard_normal((side, side), np.float32) / np.float32(side**0.5)
        y = b.tanh(b.matmul(y, b.constant(w)))
    return b.build({"y": y}), {"x": rng.standard_normal((4, side)).astype(np.float32)}


def kept(place: Place) -> tuple[xd.Graph, dict[str, Any]]:
    """Values that are made on the way down and used on the way up: all are alive between."""
    side, depth = place.size(4096, 64), 12
    b = xd.GraphBuilder("values beyond the budget")
    y = b.input("x", (side, side))
    values = []
    for _ in range(depth):
        y = b.softmax(y, axis=1)
        values.append(y)
    for value in reversed(values):
        y = b.softmax(b.mul(y, value), axis=1)
    feeds = {"x": np.random.default_rng(0).random((side, side), np.float32)}
    return b.build({"y": y}), feeds


def run(place: Place, report: Report) -> None:
    """Three graphs for the scheduler, and two that do not fit."""
    parts = [_together, _alone]
    if place.device != HOST:
        parts += [_spilling, _weights]
    for part in parts:
        if place.left < ENOUGH:
            report.not_run(str(part.__doc__).partition(".")[0], "out of time")
        else:
            part(place, report)


def _together(place: Place, report: Report) -> None:
    """A graph that processor and card share, each with what lies nearer to it."""
    made, feeds = branchy(place)
    sets = {"the processor": [HOST], "the card": [place.device], "both": [HOST, place.device]}
    found = _timed(made, feeds, sets, place, report)
    better = min(found["the processor"], found["the card"])
    report.figure(f"{made.name}: both faster by", better / found["both"], "x", ">= 1.05")


def _timed(
    made: xd.Graph,
    feeds: dict[str, Any],
    sets: dict[str, list[str]],
    place: Place,
    report: Report,
) -> dict[str, float]:
    """Median seconds of interleaved runs by device set; the answers are compared."""
    sessions = {name: xd.compile(made, ids) for name, ids in sets.items()}
    answers = {name: session.run(feeds) for name, session in sessions.items()}
    first = next(iter(answers.values()))
    worst = max(error_of(a[key], first[key]) for a in answers.values() for key in first)
    report.bound(f"{made.name}: error", worst, f"<= {TOLERANCE:g}")
    runs = {name: partial(session.run, feeds) for name, session in sessions.items()}
    found = interleaved(runs, place.size(15, 3), seconds=place.seconds / 8)
    for name, session in sessions.items():
        shares = ", ".join(f"{k} {v:.0%}" for k, v in session.plan.shares().items())
        said = f"predicted {session.estimate().seconds * 1e3:.3g} ms; {shares}"
        report.figure(f"{made.name}: {name}", found[name] * 1e3, "ms", note=said)
        session.close()
    return found


def _alone(place: Place, report: Report) -> None:
    """A network that the card runs much faster: not one op leaves it."""
    net = TINY[0] if place.rehearsal else NETS[0]
    made, feeds = graph(net, place.size(8, 2)), net.feeds(place.size(8, 2))
    sets = {"the card": [place.device], "both": [HOST, place.device]}
    found = _timed(made, feeds, sets, place, report)
    with xd.compile(made, [HOST, place.device]) as session:
        elsewhere = [s.name for s in session.plan.launches() if s.device != place.device]
    report.figure(f"{net.name}: ops that leave the card", len(elsewhere), "ops", "== 0")
    loss = found["both"] / found["the card"]
    report.figure(f"{net.name}: both over the card", loss, "x", "<= 1.05")


def _weights(place: Place, report: Report) -> None:
    """Weights twice as large as the budget: each run brings those that have no room."""
    made, feeds = large(place)

    def timed(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
        return interleaved(runs, place.size(15, 3), seconds=place.seconds / 8)

    found = rate(made, feeds, place.device, 0.5, timed)
    report.bound(f"{made.name}: error", found.error, f"<= {TOLERANCE:g}")
    within = f"{found.peak} of {found.budget} B"
    report.check(f"{made.name}: within the budget", found.peak <= found.budget, within)
    report.check(f"{made.name}: brings weights", found.rung == "stream", found.rung)
    said = f"predicted {found.predicted * 1e3:.3g} ms; {found.whole * 1e3:.3g} ms unbounded"
    report.figure(f"{made.name}: a run", found.measured * 1e3, "ms", note=said)
    off = found.predicted / found.measured
    report.figure(f"{made.name}: predicted over measured", off, "x")
    brought = f"{found.nbytes / 1e6:.4g} MB a run"
    report.figure(f"{made.name}: weights brought at", found.rate / 1e9, "GB/s", note=brought)
    report.figure(f"{made.name}: share of the link's rate", found.share, "", ">= 0.8")
    _with_processor(place, report, found)


def _with_processor(place: Place, report: Report, found: Rate) -> None:
    """The same where the processor may help: the faster of the two ways is taken."""
    made, feeds = large(place)
    limits = xd.Constraints(memory={place.device: found.budget})
    with xd.compile(made, [HOST, place.device], constraints=limits) as session:
        seconds = interleaved({"": lambda: session.run(feeds)}, place.size(15, 3))[""]
        taken = session.plan.rungs[-1].name if session.plan.rungs else "none"
        shares = ", ".join(f"{k} {v:.0%}" for k, v in session.plan.shares().items())
    note = f"{taken}; {shares}"
    report.figure(f"{made.name}: with the processor", seconds * 1e3, "ms", note=note)


def _spilling(place: Place, report: Report) -> None:
    """Values twice as large as the budget: they go to the host and come back."""
    made, feeds = kept(place)
    with xd.compile(made, place.device) as session:
        want = session.run(feeds)["y"]
        whole = session.plan.device(place.device).peak_bytes
        free = interleaved({"": lambda: session.run(feeds)}, place.size(15, 3))[""]
    limits = xd.Constraints(memory={place.device: whole // 2}, pin={"softmax": place.device})
    with xd.compile(made, place.device, constraints=limits) as session:
        error = error_of(session.run(feeds)["y"], want)
        seconds = interleaved({"": lambda: session.run(feeds)}, place.size(15, 3))[""]
        taken = [rung.name for rung in session.plan.rungs if rung.taken]
        moved = sum(session.receipt.links.values())
        peak = session.plan.device(place.device).peak_bytes
    report.bound(f"{made.name}: error", error, f"<= {TOLERANCE:g}")
    report.check(f"{made.name}: within the budget", peak <= whole // 2, f"{peak} of {whole // 2} B")
    report.check(f"{made.name}: spills", "spill" in taken, ", ".join(taken))
    report.figure(f"{made.name}: a run", seconds * 1e3, "ms", note=f"{free * 1e3:.3g} ms unbounded")
    report.figure(f"{made.name}: copied at", moved / seconds / 1e9, "GB/s")
