"""Running staged graphs: every stage a program of its own, planned over the devices at need.

A stage is prepared when a run first comes to it, and kept; the same shapes and shape-like values
find it again. Plan and receipt are those of the last run: its stages joined, and its host ops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from crossdock.devices import registry
from crossdock.devices.base import Span
from crossdock.runtime.config import MEASURE_SECONDS, PREPARING, Progress
from crossdock.runtime.direct import DirectStage, StagedDirect
from crossdock.runtime.errors import PlanError
from crossdock.runtime.executor import Outcome
from crossdock.runtime.fallback import check_host_op
from crossdock.runtime.fleet import Fleet
from crossdock.runtime.graph import Graph, Staged
from crossdock.runtime.lru import LruCache
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.prepare import concerning, prepare
from crossdock.runtime.ready import Ready
from crossdock.runtime.receipt import Receipt
from crossdock.runtime.stage_log import StageLog
from crossdock.runtime.tensor import Array
from crossdock.runtime.through import run_through

STAGES_KEPT = 64
"""Prepared stages that a session keeps for each set of input shapes."""


class StagedReady:
    """A staged graph on opened devices. Thread-safe; the caller holds ``PREPARING`` to make it."""

    def __init__(
        self,
        graph: Graph,
        staged: Staged,
        fleet: Fleet,
        progress: Progress | None,
    ) -> None:
        config = fleet.config
        self.name = graph.name
        self._outputs = tuple(graph.outputs)
        self.host = fleet.devices[HOST].info
        for op in staged.host_ops():
            check_host_op(*op, config.fallback)
        self._staged = staged
        self._stages = staged.open()
        self.fleet, self._progress = fleet, progress
        self._budget = MEASURE_SECONDS if config.measure is True else float(config.measure)
        self.contract = config.fallback
        self._planned = False
        self._ready: LruCache[bytes, Ready] = LruCache(STAGES_KEPT, PREPARING)
        self._last: StageLog | None = None
        self.direct: StagedDirect | None = None
        """The way of the last run, for runs that go the same one."""
        first = self._stages.first()
        if first is not None:
            self.stage(*first)

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def plan(self) -> Plan:
        """The plan of the last run; raises PlanError before the first."""
        if self._last is None:
            raise PlanError(
                f"graph {self.name!r:.80} runs in stages that hang on the values fed, so there is "
                "no plan before a run; call run first"
            )
        return self._last.plan()

    def receipt(self, seconds: float) -> Receipt:
        """What a run did that went the way of the last one, or was it, in so many seconds."""
        assert self._last is not None
        return self._last.receipt(seconds)

    def run(
        self, feeds: Mapping[str, Any], deadline: Deadline, *, profile: bool
    ) -> tuple[Outcome, Callable[[], Receipt]]:
        """Run all stages; what came out, and what writes the receipt."""
        checked = self._staged.checked(feeds)
        runner = _Runner(self, deadline, profile=profile)
        began = time.perf_counter()
        outputs = self._stages.run(checked, runner)
        seconds = time.perf_counter() - began
        self._last = runner.log
        self.direct = self._direct(checked)
        outcome = Outcome(outputs, seconds, runner.spans, began)
        return outcome, partial(runner.log.receipt, seconds)

    def _direct(self, inputs: Iterable[str]) -> StagedDirect | None:
        """The short way through the stages of the last run, if there is one."""
        made: list[DirectStage] = []
        for call in self._stages.trail():
            short = None if call.graph is None else self.stage(call.key, call.graph).direct
            if call.graph is not None and short is None:
                return None
            made.append(DirectStage(short, call.feeds, call.demands))
        fed = {name for stage in made for name in stage.feeds}
        if not fed.issuperset(inputs):  # each stage looks at what it is fed; nobody else would
            return None
        return StagedDirect(made, self._outputs) if made else None

    def stage(self, key: bytes, graph: Graph) -> Ready:
        """A stage made ready, anew where a device that it was on is lost."""
        if registry.lost() and self.fleet.refresh():
            self._ready.clear()
        return self._ready.get_or_make(key, partial(self._made, graph))

    def _made(self, graph: Graph) -> Ready:
        """Prepare a stage; all of them share the seconds that may be spent on measuring."""
        began = time.perf_counter()
        made = self.fleet.prepared(partial(self._prepared, graph))
        self._planned = True
        self._budget = max(0.0, self._budget - (time.perf_counter() - began))
        return made

    def _prepared(self, graph: Graph) -> Ready:
        (config, devices), kept = self.fleet.now(), self._ready.values()
        config = replace(config, constraints=concerning(graph, config.constraints))
        if config.measure is not False:
            config = replace(config, measure=self._budget)
        again = self._planned
        return prepare(graph, config, devices, self._progress, again=again, kept=kept)


class _Runner:
    """One run's ``StageRunner``; what it did is in ``log``."""

    def __init__(self, ready: StagedReady, deadline: Deadline, *, profile: bool) -> None:
        self._ready, self._deadline, self._profile = ready, deadline, profile
        self.log = StageLog(ready.name, ready.host)
        self.spans: dict[str, list[Span]] = {}

    def run(self, key: bytes, graph: Graph, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run a stage, preparing it at need."""
        ready = self._ready.stage(key, graph)
        fleet, deadline = self._ready.fleet, self._deadline
        outcome, rescue = run_through(fleet, ready, feeds, deadline, profile=self._profile)
        recorder = ready.recorder
        self.log.stage(key, recorder.plan, recorder.asked, outcome.spans)
        if rescue is not None:
            self.log.rescued(key, rescue.amendment())
        for queue, spans in outcome.spans.items():
            self.spans.setdefault(queue, []).extend(spans)
        return outcome.outputs

    def may(self, name: str, op: str, why: str) -> None:
        """Raise PlanError where the host may not run an op."""
        check_host_op(name, op, why, self._ready.contract)

    def host(self, name: str, op: str, why: str, seconds: float) -> None:
        """Take note of an op that the host ran."""
        self.log.host(name, op, why, seconds)
        if self._profile:
            end = time.perf_counter()
            self.spans.setdefault(f"{HOST}/compute", []).append(Span(name, end - seconds, end))

    def check(self) -> None:
        """Raise Timeout, or Cancelled, where the deadline is over."""
        if self._deadline.over():
            name, seconds = self._ready.name, self._deadline.seconds
            late = f"run of {name!r:.80} not done after {seconds} s; the session stays usable"
            raise self._deadline.error(name, late)
