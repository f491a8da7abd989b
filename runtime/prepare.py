"""Preparing a graph for a session: passes, costs, plan, compiled program, pool of instances."""

from __future__ import annotations

import fnmatch
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from crossdock.devices import registry
from crossdock.devices.base import Cap, Device
from crossdock.kernels.spec import OpCall
from crossdock.runtime import (
    costing,
    degrade,
    explain,
    fallback,
    given,
    given_graph,
    images,
    measure,
    passes,
    planner,
    rules,
)
from crossdock.runtime.calls import op_call
from crossdock.runtime.config import Config, Progress
from crossdock.runtime.errors import PlanError, StalePlan
from crossdock.runtime.flips import batch_of
from crossdock.runtime.graph import Graph
from crossdock.runtime.knowledge import measure_missing, measure_parts, target_of
from crossdock.runtime.plan import HOST, Constraints, Explainer, Plan
from crossdock.runtime.prediction import run_mark
from crossdock.runtime.ready import Drift, Ready, check_free, make_ready
from crossdock.runtime.settle import HYSTERESIS, Settling, beats
from crossdock.runtime.sites import Sites
from crossdock.runtime.split import SplitGraph
from crossdock.runtime.split_choice import Planned
from crossdock.runtime.staleness import check_fresh, staleness
from crossdock.runtime.target import Target


def prepare(
    graph: Graph,
    config: Config,
    devices: Mapping[str, Device],
    progress: Progress | None,
    *,
    again: bool = False,
    kept: Sequence[Ready] = (),
    source: Graph | None = None,
    rival: Plan | None = None,
) -> Ready:
    """Make a static graph ready to run on opened devices; the caller holds ``PREPARING``.

    ``again``: its session has planned before, for other shapes or another stage. Then costs are
    fitted from the kernels' times at other shapes where there are any, and no op is split: to
    measure, and to look for splits, would take longer than a run with new shapes may. ``kept`` is
    what the session has ready, to share weights with.
    ``source`` is the graph before its symbols were bound. ``rival`` is a plan for other sites,
    whose placement has to be beaten.
    """
    given_graph = graph
    passes_of = partial(simplify, constraints=_kept(config), skip=_skipped(config))
    batch = None if source is None else batch_of(source, graph, passes_of)
    graph = passes_of(graph)
    asked = frozenset(devices if config.devices is None else config.devices)
    if config.plan is None:
        measure_missing(graph, config, devices, progress, again=again)
    target, options = _planning(config, devices)
    model = target.model

    made_before: list[weakref.ref[Ready]] = []  # other plans of this graph share what is packed

    def make(planned: Planned) -> Ready:
        plan, split = planned.plan, planned.split
        _check_whole(planned, config)
        fallback.check(plan, asked, config.fallback, split.graph)
        if not plan.rungs:
            homes = {s.name: s.device for s in plan.launches() if s.name in split.parts}
            plan = explain.attach(plan, split.graph, target, replace(options, homes=homes), batch)
        planned = replace(planned, plan=plan)
        check_free(plan)
        runs = degrade.runs_within(plan, config.constraints.memory, config.runs_at_once)
        alive = [ready for one in made_before if (ready := one()) is not None]
        others = [*kept, *alive]
        made = make_ready(
            graph, planned, asked, devices, runs, target.capacity, progress, others,
            watched=config.check_finite, watchdog=config.watchdog, alone=not config.watched,
            checks=config.checks, steady=config.deterministic,
        )  # fmt: skip
        made_before[:] = [*map(weakref.ref, alive), weakref.ref(made)]
        made.sites = options.sites
        if config.plan is None and not config.deterministic and len(devices) > 1:
            made.resite = partial(resited, given_graph, config, devices, source)
        return made

    if config.plan is not None:
        ready = make(_given(config.plan, graph, target, options))
        stale = staleness(ready.program.plan, given.situation(graph, target))
        return ready.with_plan(ready.program.plan, tuple(stale.values()))
    splitting = replace(config, split=config.split and not again)
    planned = _planned(graph, splitting, target, options, devices, fits=again)
    same = None if rival is None else _placed_as(rival, graph, target, options)
    if not _settles(config, options, planned, devices):
        stays = same is not None and options.plain and not beats(planned.plan, same.plan)
        return make(same if stays and same is not None else planned)
    ready = make(planned)
    settling = Settling(
        target,
        make,
        lambda: _planned(graph, splitting, target, options, devices, fits=True),
        lambda device: _alone(graph, target, options, device),
    )
    if not again:
        before = model.version
        ready = settling.settle(ready)
        ready = _by_image(ready, graph, config, target, options, devices, settling)
        if same is not None and run_mark(same.plan) != run_mark(ready.program.plan):
            ready = settling.challenge(make(same), ready)
        if model.version != before:
            costing.store().save()
    ready.replan = partial(_replanned, settling)
    return ready


def _settles(
    config: Config, options: planner.Options, planned: Planned, devices: Mapping[str, Device]
) -> bool:
    """Whether a plan is run before it is kept, and its runs are compared with what it says."""
    if not config.measure or not options.plain or planned.plan.rungs:
        return False  # ops within a budget that is short, or for energy, are as they were placed
    if config.looks:
        return False  # runs are timed one by one, and not as ordinary ones
    return not _simulated(devices)


def resited(
    graph: Graph,
    config: Config,
    devices: Mapping[str, Device],
    source: Graph | None,
    ready: Ready,
    sites: Sites,
) -> Ready:
    """Plan again for runs whose inputs and outputs are elsewhere; holds ``PREPARING``.

    Ops move only where that is faster than to leave them where they are; ops in parts, which are
    cut elsewhere for these sites, only where that is faster than runs have been of late.
    """
    asked = tuple(devices) if config.devices is None else config.devices
    config = replace(config, sites=sites, devices=asked)
    more = {name: registry.open_device(name) for name in sites.devices if name not in devices}
    devices = {**devices, **more}
    before, watch = ready.program.plan, ready.watch
    made = prepare(graph, config, devices, None, source=source, rival=before)
    in_parts = any(split.taken for split in before.splits) and watch.count
    if in_parts and made.program.plan.predicted >= (1.0 - HYSTERESIS) * watch.median:
        return ready
    made.drift = Drift(ready.drift.patience)
    made.recorder.notes += (f"planned again for runs that have {sites}",)
    return made


def _placed_as(
    plan: Plan, graph: Graph, target: Target, options: planner.Options
) -> Planned | None:
    """A plan with every op where another plan has it; None where that had ops in parts."""
    if plan.rungs or any(split.taken for split in plan.splits):
        return None
    homes = {step.name: step.device for step in plan.launches()}
    try:
        made = planner.make_plan(graph, target, replace(options, homes=homes))
    except PlanError:
        return None
    return Planned(SplitGraph(graph), made)


def _by_image(
    ready: Ready,
    graph: Graph,
    config: Config,
    target: Target,
    options: planner.Options,
    devices: Mapping[str, Device],
    settling: Settling,
) -> Ready:
    """What runs ops of a batch image by image, where that measures faster than what is ready."""
    plan, host = ready.program.plan, devices[HOST]
    constrained = rules.named(graph, config.constraints) or config.constraints.memory
    small = plan.device(HOST).arena_bytes <= images.CACHED
    if (
        not config.split
        or not options.sites.plain
        or small
        or constrained
        or plan.splits
        or any(s.device != HOST for s in plan.steps)
    ):
        return ready
    thread = registry.open_device(HOST, threads=1)
    deadline = time.monotonic() + config.budget

    def measured(device: Device, calls: Mapping[str, OpCall]) -> None:
        left = deadline - time.monotonic()
        measure.measure_ops(
            calls, [device], target.model, budget_s=left, permission=target.permission
        )

    row = images.by_image(graph, target, host.info, thread.info, partial(measured, thread))
    made = None if row is None else images.joined(graph, row, thread.info, target.permission)
    if row is None or made is None:
        return ready
    joined = (n for n in made.nodes if n.op == "by_image")
    measured(host, {n.name: op_call(made, n) for n in joined})
    found = planner.make_plan(made, target, options)
    found = replace(found, graph=plan.graph, rows=(row,))
    return settling.rival(ready, Planned(SplitGraph(made), found))


def _planning(config: Config, devices: Mapping[str, Device]) -> tuple[Target, planner.Options]:
    """What is planned for, with what is known now, and how."""
    asked = frozenset(devices if config.devices is None else config.devices)
    target = target_of(config, devices, asked)
    options = planner.Options(
        config.policy,
        config.constraints,
        config.expected_runs,
        search=config.search,
        objective=config.objective,
        sites=replace(config.sites.within(devices), in_place=not config.looks),
    )
    return target, options


def explained(
    plan: Plan, graph: Graph, config: Config, devices: Mapping[str, Device], source: Graph
) -> Explainer:
    """What explains a plan that an earlier process made of a graph, with the costs of now."""
    passes_of = partial(simplify, constraints=_kept(config), skip=config.skip_passes)
    batch = batch_of(source, graph, passes_of)
    made = explain.attach(plan, passes_of(graph), *_planning(config, devices), batch)
    assert made.explainer is not None
    return made.explainer


def _replanned(settling: Settling, ready: Ready) -> Ready:
    """Plan again where runs take longer than predicted, and not because the machine is slower."""
    if ready.watch.median <= ready.program.plan.high * ready.slowdown():
        return ready
    made = settling.again(ready, ready.watch.median, ready.watch.count)
    made.replan, made.drift = ready.replan, ready.drift
    costing.store().save()
    return made


def _simulated(devices: Mapping[str, Device]) -> bool:
    return any(Cap.VIRTUAL_TIME in d.info.caps for d in devices.values())


def _alone(graph: Graph, target: Target, options: planner.Options, device: str) -> Planned | None:
    """The plan for one device, the host for what it cannot run; None where ops are tied."""
    others = {d.id: f"left out to see what {device} takes alone" for d in target.devices}
    others = {name: why for name, why in others.items() if name not in (HOST, device)}
    target = replace(target, asked=frozenset({device}), broken={**target.broken, **others})
    try:
        return Planned(SplitGraph(graph), planner.make_plan(graph, target, options))
    except PlanError:
        return None


def _given(plan: Plan, graph: Graph, target: Target, options: planner.Options) -> Planned:
    """A plan that was given, held against the graph and the devices.

    Raises:
        StalePlan: it is for others.
        PlanError: it is damaged.
        NoPlacement: it breaks a residency.
        MemoryBudget: it needs more memory than there is, or a constraint allows.
    """
    check_fresh(plan, given.situation(graph, target))
    split = given_graph.remade(plan, graph, target)
    made = given.checked(plan, split.graph, target)
    held = rules.Rules(options.constraints, target, graph, sites=Sites(made.feeds_on, made.stays))
    held.check_residency(made)
    planner.check_memory(made, held)
    return Planned(split, made)


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
    before = target.model.version
    timing = measure_parts(config, devices, target.model, fits=fits)
    planned = degrade.plan_best(graph, target, options, timing, split=config.split)
    if target.model.version != before:
        costing.store().save()
    return planned


def concerning(graph: Graph, constraints: Constraints) -> Constraints:
    """The constraints that concern a stage: those of a staged graph name ops of all its stages."""

    def some(pattern: str) -> bool:
        return any(rules.matches(pattern, node) for node in graph.nodes)

    def fed(pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in graph.inputs)

    return replace(
        constraints,
        pin={p: device for p, device in constraints.pin.items() if some(p)},
        forbid={p: devices for p, devices in constraints.forbid.items() if some(p)},
        residency={p: d for p, d in constraints.residency.items() if some(p) or fed(p)},
    )


def _kept(config: Config) -> Constraints:
    """The constraints whose nodes passes leave alone: none where they must not tell in the bits."""
    return Constraints() if config.deterministic and config.strict else config.constraints


def _check_whole(planned: Planned, config: Config) -> None:
    """Refuse ops in parts where these could make other bits than the whole ops."""
    if config.deterministic and config.strict and planned.split.parts:
        op = next(iter(planned.split.parts))
        raise PlanError(
            f"graph {planned.plan.graph_name!r:.80} fits constraints.memory only with ops split "
            f"({op!r:.80} is a part), which may change bits; raise the budget, or leave out strict"
        )


def _skipped(config: Config) -> Sequence[str]:
    """The passes to leave out: a plan that is given says which it was made without.

    Raises:
        StalePlan: it was made with passes that are not here, or not without those asked for.
    """
    if config.plan is None:
        return config.skip_passes
    made, name = config.plan.passes, config.plan.graph_name
    if tuple(p for p in passes.PASSES if p in made) != made:
        raise StalePlan(
            f"the plan of {name!r} was made with the passes {', '.join(made)}, which are not those "
            "there are here; plan again"
        )
    clash = [p for p in config.skip_passes if p in made]
    if clash:
        raise StalePlan(
            f"the plan of {name!r} was made with the pass {clash[0]!r}, which is to be left out; "
            "plan again"
        )
    return [p for p in passes.PASSES if p not in made]


def simplify(graph: Graph, constraints: Constraints, skip: Sequence[str] = ()) -> Graph:
    """The graph that is planned: after the passes, with the nodes that constraints name kept."""
    return passes.run(graph, skip=skip, keep=rules.named(graph, constraints))
