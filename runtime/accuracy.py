"""Predicted against measured on this machine: whole runs and single ops, seen before and not.

What is predicted holds at the pace of the devices while it was measured. An op counts as never seen
when the cost model forgets every time of this model's shapes, and predicts them from others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from crossdock.devices.base import Device, Span
from crossdock.runtime import costing
from crossdock.runtime.metrics import Pair
from crossdock.runtime.plan import Plan, Step
from crossdock.runtime.prediction import overhead, pace_factor, recost
from crossdock.runtime.ready import Ready
from crossdock.runtime.rehearsal import at_once
from crossdock.runtime.session import Session
from crossdock.runtime.target import Target


@dataclass(frozen=True)
class Op:
    """An op of a run: its step, predicted next to measured, and predicted as if never seen."""

    step: Step
    pair: Pair
    unseen: Pair | None

    @property
    def missed(self) -> float:
        """Seconds by which the prediction was off."""
        return abs(self.pair.predicted - self.pair.measured)


@dataclass(frozen=True)
class Measurement:
    """A model on a set of devices.

    Attributes:
        whole: a run, from what is known of it.
        composed: a run, from the times of its ops alone.
        unseen: a run, from ops as if their shapes had never been measured.
        pace: how much longer runs took than at the devices' usual pace.
        ops: the ops.
    """

    whole: Pair
    composed: Pair
    unseen: Pair | None
    pace: float
    ops: tuple[Op, ...]


def measure_accuracy(session: Session, feeds: Mapping[str, Any], repeat: int) -> Measurement:
    """Run a session's graph, whole and with every step timed, and compare.

    Args:
        session: compiled with measuring, so that it has rehearsed its plan.
        feeds: inputs, as ``Session.run`` takes them.
        repeat: timed runs of each kind.
    """
    session.run(feeds)
    if session.graph.staged is not None:
        return _staged(session, feeds, repeat)
    ready = session.ready()
    expected = _Expected(ready)
    devices = {n: d for n, d in session.devices.items() if n in ready.program.devices}
    look = partial(_look, devices)
    runs: list[float] = []
    run_paces = [look()]
    while len(runs) < repeat:
        for _ in range(min(repeat - len(runs), at_once(expected.plan.predicted))):
            began = time.perf_counter()
            session.run(feeds)
            runs.append(time.perf_counter() - began)
        run_paces.append(look())
    found: dict[str, list[float]] = {}
    op_paces = [look()]
    for _ in range(repeat):
        for name, seconds in op_seconds(session.profile(feeds).spans).items():
            found.setdefault(name, []).append(seconds)
        op_paces.append(look())
    times = {name: statistics.median(seconds) for name, seconds in found.items()}
    return expected.compared(_middle(run_paces), statistics.median(runs), _middle(op_paces), times)


def _staged(session: Session, feeds: Mapping[str, Any], repeat: int) -> Measurement:
    """The same for a graph that runs in stages: their plans joined, at the usual pace."""
    runs: list[float] = []
    found: dict[str, list[float]] = {}
    for _ in range(repeat):
        began = time.perf_counter()
        session.run(feeds)
        runs.append(time.perf_counter() - began)
        for name, seconds in op_seconds(session.profile(feeds).spans).items():
            found.setdefault(name, []).append(seconds)
    plan = session.plan
    whole = Pair(plan.predicted, plan.low, plan.high, statistics.median(runs))
    ops = tuple(
        Op(s, Pair(s.seconds, s.low, s.high, statistics.median(found[s.name])), None)
        for s in plan.launches()
        if s.name in found
    )
    return Measurement(whole, whole, None, 1.0, ops)


def _look(devices: Mapping[str, Device]) -> dict[str, float]:
    """The paces of this moment, by device."""
    return {name: device.pace() for name, device in devices.items()}


def _middle(paces: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median pace, by device."""
    return {name: statistics.median(seen[name] for seen in paces) for name in paces[0]}


def op_seconds(spans: Mapping[str, Sequence[Span]]) -> dict[str, float]:
    """Seconds of every op of a profiled run, by name."""
    once: dict[str, float] = {}
    for queue, timed in spans.items():
        for span in timed if queue.endswith("/compute") else ():
            once[span.label] = once.get(span.label, 0.0) + span.end - span.start
    return once


class _Expected:
    """What is predicted before anything is timed: later, the model has learnt from that."""

    def __init__(self, ready: Ready) -> None:
        program = ready.program
        self.model = model = costing.store().model
        self.plan, graph = program.plan, program.graph
        self.calls = costing.op_calls(graph)
        self.prints = {p.id: p.fingerprint for p in self.plan.devices}
        self.usual = {name: model.pace(name) for name in self.prints.values()}
        infos = tuple(d.info for d in program.devices.values())
        target = Target(infos, frozenset(self.prints), model, ready.capacity)
        held = model.without(call.key() for call in self.calls.values())
        self.composed = recost(self.plan, graph, target)
        self.unseen = recost(self.plan, graph, replace(target, model=held))
        self.beyond = overhead(self.plan, model)

    def compared(
        self,
        run_paces: Mapping[str, float],
        run: float,
        op_paces: Mapping[str, float],
        times: Mapping[str, float],
    ) -> Measurement:
        """Next to the seconds of a run and of its ops by name, at the paces of the devices."""
        during = {self.prints[name]: pace for name, pace in run_paces.items()}
        now = {self.prints[name]: pace for name, pace in op_paces.items()}
        slow = pace_factor(self.plan, self.calls, during.__getitem__, self.model)
        slow /= pace_factor(self.plan, self.calls, self.usual.__getitem__, self.model)
        guess = {s.name: s for s in self.unseen.launches()}

        def pair(step: Step) -> Pair:
            name, work = self.prints[step.device], costing.cost_work(self.calls[step.name])
            power = self.model.elasticity(name, step.kernel, work)
            factor = float((now[name] / self.usual[name]) ** power)
            low, middle, high = (x * factor for x in (step.low, step.seconds, step.high))
            return Pair(middle, low, high, times[step.name])

        ops = tuple(
            Op(s, pair(s), pair(g) if (g := guess[s.name]).source != "unknown" else None)
            for s in self.composed.launches()
            if times.get(s.name, 0.0) > 0.0
        )
        said = all(op.unseen is not None for op in ops)
        return Measurement(
            whole=_whole(self.plan, 0.0, slow, run),
            composed=_whole(self.composed, self.beyond, slow, run),
            unseen=_whole(self.unseen, self.beyond, slow, run) if said else None,
            pace=slow,
            ops=ops,
        )


def _whole(plan: Plan, more: float, slow: float, measured: float) -> Pair:
    low, mid, high = (max(0.0, x + more) * slow for x in (plan.low, plan.predicted, plan.high))
    return Pair(mid, low, high, measured)
