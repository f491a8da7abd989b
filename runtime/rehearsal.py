"""A few runs of a prepared graph on made-up inputs: what its steps, and whole runs, really take.

A kernel takes another time within a graph than alone: its operands were just written, its weights
were read a whole run ago, and its neighbours fill the caches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from crossdock.devices.base import Device
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing
from crossdock.runtime.errors import FeedError
from crossdock.runtime.executor import Outcome
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.runtime.prediction import pace_factor, run_mark
from crossdock.runtime.tensor import Array
from crossdock.runtime.trial import sample_feeds
from crossdock.scheduler import CostModel, Work

PROFILED, WHOLE = 7, 15
LEAST = 3
BURST_SECONDS = 2e-3
MOST_AT_ONCE = 15
MOST_NUMBERS = 8
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
    feeds = _feeds(run, inputs)
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
    for _ in range(max(LEAST, 2 * count)):
        recorder.whole(_timed(partial(run, feeds, False), at_once(each)))
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
    feeds = _feeds(contenders[0].run, inputs)
    recorders = []
    for c in contenders:
        c.run(feeds, False)
        used = {s.device: c.devices[s.device] for s in c.plan.launches()}
        prints = {part.id: part.fingerprint for part in c.plan.devices}
        recorders.append(_Recorder(c.plan, costing.op_calls(c.graph), prints, used, model))
    end = time.monotonic() + budget_s
    for turn in range(WHOLE):
        if turn >= LEAST and time.monotonic() > end:
            break
        for c, recorder in zip(contenders, recorders, strict=True):
            recorder.whole(_timed(partial(c.run, feeds, False), 1))
    for recorder in recorders:
        recorder.close(anew=True)


def _feeds(run: Runner, inputs: Graph) -> dict[str, Array]:
    """Made-up inputs that the graph runs on.

    Where whole numbers choose a branch, zero may choose one that cannot run: then those are tried
    that the graph itself holds, since it compares with them.

    Raises:
        FeedError: no such inputs were found.
    """
    own = {
        int(array.reshape(-1)[0])
        for array in inputs.constants.values()
        if array.size == 1 and array.dtype.kind in "iu"
    }
    for number in (0, 1, *sorted(own - {0, 1})[:MOST_NUMBERS]):
        try:
            feeds = sample_feeds(list(inputs.inputs.items()), number)
            run(feeds, False)
        except (FeedError, OverflowError):  # the wrong branch; a number too large for a type
            continue
        return feeds
    raise FeedError("no made-up inputs were found that the graph runs on")


def at_once(seconds: float) -> int:
    """How many runs of so many seconds follow each other before the pace is taken again.

    As runs of users do: the next finds warm caches. The pace changes within tenths of a second.
    """
    return max(1, min(MOST_AT_ONCE, round(BURST_SECONDS / max(seconds, 1e-9))))


def _timed(run: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of so many runs, one after the other."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return found


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
        self.found_at: dict[str, list[float]] = {}
        self.runs: list[float] = []
        self.last = self._look()

    def _look(self) -> dict[str, float]:
        """The paces of this moment, by device."""
        self.last = {name: device.pace() for name, device in self.devices.items()}
        for name, pace in self.last.items():
            self.paces[name].append(pace)
        return self.last

    def _meanwhile(self) -> dict[str, float]:
        """The paces of what has just run: between those before it and those now."""
        before = self.last
        return {name: math.sqrt(before[name] * pace) for name, pace in self._look().items()}

    def pace(self, name: str) -> float:
        """The pace of a device over this rehearsal."""
        return float(np.median(self.paces[name]))

    def steps(self, outcome: Outcome) -> None:
        """Note the time of every op of a profiled run that has just been, and at what pace."""
        paces = self._meanwhile()
        for queue, spans in outcome.spans.items():
            device, _, role = queue.rpartition("/")
            if role != "compute":
                continue
            once: dict[str, float] = {}
            for span in spans:
                once[span.label] = once.get(span.label, 0.0) + span.end - span.start
            for label, seconds in once.items():
                self.found.setdefault(label, []).append(max(seconds, 1e-9))
                self.found_at.setdefault(label, []).append(paces.get(device, 1.0))

    def whole(self, seconds: Sequence[float]) -> None:
        """Note the median of runs that have just been, one after the other, not profiled."""
        by_print = {self.prints[name]: pace for name, pace in self._meanwhile().items()}
        factor = pace_factor(self.plan, self.calls, by_print.__getitem__, self.model)
        self.runs.append(float(np.median(seconds)) / factor)

    def close(self, *, anew: bool = False) -> float:
        """Hand everything to the model; returns the median of the runs."""
        marks: dict[tuple[str, str, str], tuple[Work, list[float]]] = {}
        for step in self.plan.launches():
            call = self.calls[step.name]
            mark = (self.prints[step.device], step.kernel, call.key())
            work, samples = marks.setdefault(mark, (costing.cost_work(call), []))
            found, paces = self.found.get(step.name, []), self.found_at.get(step.name, [])
            if len(found) > 1:
                self.model.note_elasticity(*mark[:2], work, paces, found)
            power = self.model.elasticity(*mark[:2], work)
            samples.extend(s / pace**power for s, pace in zip(found, paces, strict=True))
        for mark, (work, samples) in marks.items() if self.found else ():
            self.model.record_many(*mark, samples, work, running=True, anew=anew)
        by_print = {self.prints[name]: self.pace(name) for name in self.devices}
        for name, pace in by_print.items():
            self.model.note_pace(name, pace)
        if not self.runs:
            return float("inf")
        self.model.record_many(*run_mark(self.plan), self.runs, running=True, anew=anew)
        factor = pace_factor(self.plan, self.calls, by_print.__getitem__, self.model)
        return float(np.median(self.runs)) * factor
