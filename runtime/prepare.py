"""Preparing a graph for a session: passes, costs, plan, compiled program, pool of instances."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from crossdock.devices import topology
from crossdock.devices.base import Cap, Device, DeviceInfo, Span
from crossdock.devices.machine import DeviceProfile, Status
from crossdock.devices.probe import probe
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing, measure, passes, planner, profiles, rules
from crossdock.runtime.executor import Deadline, Outcome, Pool, Run
from crossdock.runtime.graph import Graph
from crossdock.runtime.lower import Program, Windows, instantiate, lower
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.receipt import Receipt, make_receipt
from crossdock.runtime.split import SplitGraph
from crossdock.runtime.split_choice import Planned, plan_split
from crossdock.runtime.target import Target
from crossdock.runtime.tensor import Array

Progress = Callable[[str, int, int], None]
RUNS_AT_ONCE = 8
MEASURE_SECONDS = 20.0

PREPARING = threading.RLock()
"""Held while measuring and planning: the process's cost model has one writer, and what is timed
should not be disturbed by another timing."""


@dataclass(frozen=True)
class Config:
    """How a session plans and runs; the arguments of ``compile``. No ``devices``: all there are."""

    devices: tuple[str, ...] | None = None
    policy: str = "auto"
    objective: str = "latency"
    constraints: Constraints = field(default_factory=Constraints)
    expected_runs: int = 1000
    threads: int | None = None
    measure: bool | float = True
    skip_passes: tuple[str, ...] = ()
    runs_at_once: int = RUNS_AT_ONCE
    search: bool = False
    split: bool = True


@dataclass
class Recorder:
    """Writes the receipts of a plan's runs; holds no memory of a device."""

    plan: Plan
    asked: frozenset[str]

    @cached_property
    def _digest(self) -> str:
        return self.plan.digest()

    def receipt(self, seconds: float, spans: Mapping[str, list[Span]]) -> Receipt:
        """The record of a run that took ``seconds``, with the spans of its steps if profiled."""
        return make_receipt(self.plan, self._digest, seconds, spans, self.asked)


@dataclass
class Ready:
    """A graph of fixed shapes, planned and lowered."""

    program: Program
    pool: Pool
    recorder: Recorder

    def run(self, arrays: Mapping[str, Array], deadline: Deadline, *, profile: bool) -> Outcome:
        """Run once, with arrays of the inputs' types and shapes."""
        instance = self.pool.take(deadline)
        run = Run(self.program, instance, partial(self.pool.give, instance), profile=profile)
        if self.program.host_only and deadline.seconds is None:
            return run.inline(arrays)
        return run.across(arrays, deadline)


def prepare(
    graph: Graph,
    config: Config,
    devices: Mapping[str, Device],
    progress: Progress | None,
    *,
    again: bool = False,
    kept: Sequence[Ready] = (),
) -> Ready:
    """Make a static graph ready to run on opened devices; the caller holds ``PREPARING``.

    ``again``: its session has planned before, for other shapes or another stage. Then costs are
    fitted from the kernels' times at other shapes where there are any: measuring would take longer
    than a run with new shapes may. ``kept`` is what the session has ready, to share weights with.
    """
    graph = simplify(graph, config.constraints, config.skip_passes)
    asked = frozenset(devices if config.devices is None else config.devices)
    infos = tuple(d.info for d in devices.values())
    measure_missing(graph, config, devices, progress, again=again)
    broken = {i.id: why for i in infos if (why := _PROBED.get(i.fingerprint)) and i.id != HOST}
    model = costing.store().model
    target = Target(infos, asked, model, group_capacity(infos), broken)
    options = planner.Options(
        config.policy, config.constraints, config.expected_runs, search=config.search
    )
    planned = _planned(graph, config, target, options, devices, fits=again)
    return ready(graph, planned, config, devices, progress, kept=kept)


def ready(
    graph: Graph,
    planned: Planned,
    config: Config,
    devices: Mapping[str, Device],
    progress: Progress | None = None,
    *,
    kept: Sequence[Ready] = (),
) -> Ready:
    """Lower the plan of a graph on opened devices."""
    plan, split = planned.plan, planned.split
    asked = frozenset(devices if config.devices is None else config.devices)
    used = {HOST, *(s.device for s in plan.steps)}
    opened = {d: devices[d] for d in devices if d in used}
    windows = Windows(graph.output_specs, split.inputs, split.outputs)
    program = lower(split.graph, plan, opened, progress, [r.program for r in kept], windows)
    pool = Pool(partial(instantiate, program), config.runs_at_once)
    return Ready(program, pool, Recorder(plan, asked))


def _planned(
    graph: Graph,
    config: Config,
    target: Target,
    options: planner.Options,
    devices: Mapping[str, Device],
    *,
    fits: bool,
) -> Planned:
    """The plan, with ops split over devices if that is wanted; their parts are measured, too."""
    if not config.split:
        return Planned(SplitGraph(graph), planner.make_plan(graph, target, options))
    deadline = time.monotonic() + _budget(config)

    def measured(device: str, calls: Mapping[str, OpCall]) -> None:
        left = deadline - time.monotonic()
        measure.measure_ops(calls, [devices[device]], target.model, budget_s=left, fits=fits)

    before = target.model.version
    planned = plan_split(graph, target, options, measured if config.measure else None)
    if target.model.version != before:
        costing.store().save()
    return planned


def _budget(config: Config) -> float:
    """Seconds that measuring may take."""
    return MEASURE_SECONDS if config.measure is True else float(config.measure)


def concerning(graph: Graph, constraints: Constraints) -> Constraints:
    """The constraints that concern a stage: those of a staged graph name ops of all its stages."""

    def some(pattern: str) -> bool:
        return any(rules.matches(pattern, node) for node in graph.nodes)

    return replace(
        constraints,
        pin={p: device for p, device in constraints.pin.items() if some(p)},
        forbid={p: devices for p, devices in constraints.forbid.items() if some(p)},
    )


def simplify(graph: Graph, constraints: Constraints, skip: Sequence[str] = ()) -> Graph:
    """The graph that is planned: after the passes, with the nodes that constraints name kept."""
    patterns = (*constraints.pin, *constraints.forbid)
    keep = [n.name for n in graph.nodes if any(rules.matches(p, n) for p in patterns)]
    return passes.run(graph, skip=skip, keep=keep)


def group_capacity(infos: Sequence[DeviceInfo], cores: int | None = None) -> dict[str, int]:
    """How many devices of each shared resource group may compute at once.

    Devices of one processor run side by side as long as their threads fit its ``cores`` (None:
    those of this machine).
    """
    result: dict[str, int] = {}
    for group in {d.resource_group for d in infos}:
        members = sorted(d.compute_units for d in infos if d.resource_group == group)
        room = members[-1] if group != "host-cpu" else cores or topology.cpu_count()
        fit, used = 0, 0
        for units in members:
            used += units
            fit += used <= room
        result[group] = max(1, fit)
    return result


_PROBED: dict[str, str] = {}
"""Why a device failed its probe in this process, by fingerprint; empty where it passed."""


def _failure(profile: DeviceProfile | None) -> str:
    if profile is None or profile.status is Status.PASS:
        return ""
    return f"failed its probe: {profile.reason}"


def measure_missing(
    graph: Graph,
    config: Config,
    devices: Mapping[str, Device],
    progress: Progress | None,
    *,
    again: bool = False,
) -> None:
    """Probe and measure what the process's cost model lacks for a graph, and keep it on disk.

    ``again``: a cost that can be fitted is not lacking.
    """
    if config.measure is False:
        return
    costs = costing.store()
    before = costs.model.version
    real = [d.info for d in devices.values() if Cap.VIRTUAL_TIME not in d.info.caps]
    unknown = [i for i in real if costs.model.rates(i.fingerprint) is None]
    if any(info.fingerprint not in _PROBED for info in unknown):
        ids = [info.id for info in real]
        machine = probe(quick=True, devices=ids, threads=config.threads)
        profiles.apply(machine, costs.model)
        _PROBED.update((i.fingerprint, _failure(machine.device(i.id))) for i in real)
    sound = [d for d in devices.values() if not _PROBED.get(d.info.fingerprint)]
    for device in sound:
        if device.info.id != HOST:
            measure.measure_link(devices[HOST], device, costs.model)
    measure.measure_ops(
        costing.op_calls(graph),
        sound,
        costs.model,
        budget_s=_budget(config),
        progress=progress,
        fits=again,
    )
    if costs.model.version != before:
        costs.save()
