"""A few runs of a prepared graph on made-up inputs: what its steps, and whole runs, really take.

A kernel takes another time within a graph than alone: its operands were just written, its weights
were read a whole run ago, and its neighbours fill the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.devices.base import Device
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing
from crossdock.runtime.executor import Outcome
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.runtime.prediction import pace_factor, run_mark
from crossdock.runtime.tensor import Array
from crossdock.runtime.trial import sample_feeds
from crossdock.scheduler import CostModel, Work

PROFILED, WHOLE = 7, 15
LEAST = 3
LOOKS = 5  # times that a pace is taken: a thread that wakes up is late
Runner = Callable[[Mapping[str, Array], bool], Outcome]
"""Runs the graph once; with spans of its steps where asked for."""


def rehearse(
    run: Runner,
    plan: Plan,
    graph: Graph,
    inputs: Graph,
    devices: Mapping[str, Device],
    model: CostModel,
    budget_s: float,
    *,
    anew: bool = False,
) -> float:
    """Run a plan of ``graph`` and record its steps and whole runs.

    ``inputs`` is the graph as its caller feeds it. Returns the median seconds of a run, at the
    paces that there were; infinite where the budget allows no run. ``anew``: what earlier runs took
    is no longer true.

    Raises:
        Error: the graph cannot run on made-up values, or a device failed.
    """
    feeds = sample_feeds(list(inputs.inputs.items()))
    end = time.monotonic() + budget_s
    begin = time.monotonic()
    run(feeds, False)
    calls = costing.op_calls(graph)
    used = {s.device: devices[s.device] for s in plan.launches()}
    prints = {part.id: part.fingerprint for part in plan.devices}
    each = max(time.monotonic() - begin, 1e-6)
    count = int(min(1.0, (end - time.monotonic()) / each / (PROFILED + WHOLE)) * PROFILED)
    if count < LEAST and each * 2 * LEAST > budget_s:
        return float("inf")
    recorder = _Recorder(plan, calls, prints, used, model)
    for _ in range(max(LEAST, count)):
        recorder.steps(run(feeds, True))
    recorder.look()
    for _ in range(max(LEAST, 2 * count)):
        began = time.perf_counter()
        run(feeds, False)
        recorder.whole(time.perf_counter() - began)
    recorder.look()
    return recorder.close(anew=anew)


@dataclass(frozen=True)
class Contender:
    """A plan of ``graph`` that is compared with others: how to run it, and on which devices."""

    run: Runner
    plan: Plan
    graph: Graph
    devices: Mapping[str, Device]


def compare_runs(
    contenders: Sequence[Contender], inputs: Graph, model: CostModel, budget_s: float
) -> None:
    """Run plans in turn, so that what disturbs meets all, and record what their runs take.

    Earlier times of their runs are forgotten: these are comparable, and those were not.

    Raises:
        Error: one cannot run on made-up values, or a device failed.
    """
    feeds = sample_feeds(list(inputs.inputs.items()))
    recorders = []
    for c in contenders:
        c.run(feeds, False)
        used = {s.device: c.devices[s.device] for s in c.plan.launches()}
        prints = {part.id: part.fingerprint for part in c.plan.devices}
        recorders.append(_Recorder(c.plan, costing.op_calls(c.graph), prints, used, model))
    end = time.monotonic() + budget_s
    for recorder in recorders:
        recorder.look()
    for turn in range(WHOLE):
        if turn >= LEAST and time.monotonic() > end:
            break
        for c, recorder in zip(contenders, recorders, strict=True):
            began = time.perf_counter()
            c.run(feeds, False)
            recorder.whole(time.perf_counter() - began)
    for recorder in recorders:
        recorder.look()
        recorder.close(anew=True)


def observe(
    outcome: Outcome, plan: Plan, graph: Graph, devices: Mapping[str, Device], model: CostModel
) -> None:
    """Record the steps of one profiled run of a plan of ``graph``."""
    used = {s.device: devices[s.device] for s in plan.launches()}
    prints = {part.id: part.fingerprint for part in plan.devices}
    recorder = _Recorder(plan, costing.op_calls(graph), prints, used, model)
    recorder.steps(outcome)
    recorder.close()


class _Recorder:
    """Takes runs apart into samples at pace 1."""

    def __init__(
        self,
        plan: Plan,
        calls: Mapping[str, OpCall],
        prints: Mapping[str, str],
        devices: Mapping[str, Device],
        model: CostModel,
    ) -> None:
        self.plan, self.calls, self.prints = plan, calls, prints
        self.devices, self.model = devices, model
        self.paces: dict[str, list[float]] = {d: [] for d in devices}
        self.found: dict[str, list[float]] = {}
        self.runs: list[float] = []
        self._look()

    def _look(self) -> None:
        for name, device in self.devices.items():
            self.paces[name].append(device.pace())

    def pace(self, name: str) -> float:
        """The pace of a device over this rehearsal."""
        return float(np.median(self.paces[name]))

    def steps(self, outcome: Outcome) -> None:
        """Note the time of every op of a profiled run."""
        for queue, spans in outcome.spans.items():
            if not queue.endswith("/compute"):
                continue
            once: dict[str, float] = {}
            for span in spans:
                once[span.label] = once.get(span.label, 0.0) + span.end - span.start
            for label, seconds in once.items():
                self.found.setdefault(label, []).append(max(seconds, 1e-9))
        self._look()

    def whole(self, seconds: float) -> None:
        """Note a run without profiling; the next one follows at once, as runs of users do."""
        self.runs.append(seconds)

    def look(self) -> None:
        """Take the paces of this moment."""
        for _ in range(LOOKS):
            self._look()

    def close(self, *, anew: bool = False) -> float:
        """Hand everything to the model; returns the median of the runs."""
        marks: dict[tuple[str, str, str], tuple[Work, list[float]]] = {}
        for step in self.plan.launches():
            call = self.calls[step.name]
            work = costing.cost_work(call)
            slow = self.pace(step.device) ** work.arithmetic
            mark = (self.prints[step.device], step.kernel, call.key())
            samples = [s / slow for s in self.found.get(step.name, [])]
            marks.setdefault(mark, (work, []))[1].extend(samples)
        for mark, (work, samples) in marks.items() if self.found else ():
            self.model.record_many(*mark, samples, work, running=True, anew=anew)
        by_print = {self.prints[name]: self.pace(name) for name in self.devices}
        for name, pace in by_print.items():
            self.model.note_pace(name, pace)
        if not self.runs:
            return float("inf")
        factor = pace_factor(self.plan, self.calls, by_print.__getitem__)
        runs = [s / factor for s in self.runs]
        self.model.record_many(*run_mark(self.plan), runs, running=True, anew=anew)
        return float(np.median(self.runs))
