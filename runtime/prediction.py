"""What whole runs of a plan take: as measured where it has run, else composed from its steps.

A run costs more than its steps: feeding, hand-over between threads, reading results. What runs took
beyond their steps is kept by set of devices, and added for plans that never ran.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan, Step
from crossdock.runtime.simulate import simulate
from crossdock.runtime.target import Target
from crossdock.scheduler import CostModel, Estimate, Source

RUN = "run"
OVERHEAD = "overhead"
KEY = "beyond the steps"
Paces = Callable[[str], float]
"""The pace of a device by fingerprint."""


def run_mark(plan: Plan) -> tuple[str, str, str]:
    """What the cost model keeps a plan's runs by: devices, and the graph with its placement."""
    rows = [(s.name, s.device, s.kernel) for s in plan.launches()]
    rows += [(s.name, s.src, s.moves) for s in plan.steps if s.arrives or s.departs]
    text = json.dumps([plan.graph, rows], separators=(",", ":"))
    return devices_mark(plan), RUN, hashlib.sha256(text.encode()).hexdigest()[:24]


def devices_mark(plan: Plan) -> str:
    """The fingerprints of the devices that compute."""
    used = {s.device for s in plan.launches()}
    return "+".join(sorted(p.fingerprint for p in plan.devices if p.id in used))


def pace_factor(plan: Plan, calls: Mapping[str, OpCall], pace: Paces, model: CostModel) -> float:
    """How much longer a run takes at these paces than at pace 1.

    The mean over the ops, by their time: each goes with the pace as its kernel does.
    """
    prints = {part.id: part.fingerprint for part in plan.devices}
    whole = slowed = 0.0
    for step in plan.launches():
        name, work = prints[step.device], costing.cost_work(calls[step.name])
        whole += step.seconds
        slowed += step.seconds * pace(name) ** model.elasticity(name, step.kernel, work)
    return slowed / whole if whole > 0.0 else 1.0


def predict_run(plan: Plan, graph: Graph, model: CostModel) -> Plan:
    """The plan with what a whole run is predicted to take, at the devices' usual paces."""
    known = model.estimate(*run_mark(plan))
    if known.seconds is not None and known.low is not None and known.high is not None:
        factor = pace_factor(plan, costing.op_calls(graph), model.pace, model)
        made = replace(
            plan,
            predicted=known.seconds * factor,
            low=known.low * factor,
            high=known.high * factor,
            source=Source.MEASURED.value,
        )
        return _with_alone(made, plan.predicted, model)
    more = model.estimate(devices_mark(plan), OVERHEAD, KEY)
    if more.seconds is None or not plan.steps:
        return plan
    made = replace(
        plan,
        predicted=plan.predicted + more.seconds,
        low=plan.low + (more.low or 0.0),
        high=plan.high + (more.high or more.seconds),
    )
    return _with_alone(made, plan.predicted, model)


def _with_alone(plan: Plan, composed: float, model: CostModel) -> Plan:
    """The plan with what each device would take alone made comparable with its prediction.

    What runs take beyond their steps is added: as known of the device, else as of this plan, whose
    steps take ``composed`` seconds. What a measured run takes more than its steps may be the fault
    of its own devices, though, and is not laid at another's door.
    """
    used = {s.device for s in plan.launches()}
    measured = plan.source == Source.MEASURED.value
    own = 0.0 if measured else max(0.0, plan.predicted - composed)
    parts = []
    for part in plan.devices:
        if part.single_seconds is None:
            parts.append(part)
            continue
        base = part.single_seconds - part.single_overhead
        known = model.estimate(part.fingerprint, OVERHEAD, KEY).seconds
        more = plan.predicted - base if used == {part.id} else own if known is None else known
        parts.append(replace(part, single_seconds=base + more, single_overhead=more))
    return replace(plan, devices=tuple(parts))


def overhead(plan: Plan, model: CostModel) -> float:
    """Seconds that runs on the plan's devices take beyond their steps; 0 where unknown."""
    return model.estimate(devices_mark(plan), OVERHEAD, KEY).seconds or 0.0


def note_overhead(plan: Plan, composed: float, model: CostModel) -> None:
    """Keep what runs of a measured plan take beyond the ``composed`` seconds of its steps."""
    model.record(devices_mark(plan), OVERHEAD, KEY, max(plan.predicted - composed, 1e-9))


def recost(plan: Plan, graph: Graph, target: Target) -> Plan:
    """The same placement with the costs that are known now, times to match, composed of them."""
    calls = costing.op_calls(graph)
    prints = {part.id: part.fingerprint for part in plan.devices}

    def estimate(step: Step) -> Estimate:
        call = calls[step.name]
        mark = (prints[step.device], step.kernel, call.key())
        return target.model.estimate(*mark, costing.cost_work(call))

    timed = tuple(_recosted(s, estimate(s)) if s.kind == "launch" else s for s in plan.steps)
    plan = replace(plan, steps=timed)
    made = simulate(plan, target.capacity)
    moved = tuple(
        replace(s, start=float(start)) for s, start in zip(timed, made.start, strict=True)
    )
    spread = math.sqrt(sum(((s.high - s.low) / 2) ** 2 for s in moved))
    return replace(
        plan,
        steps=moved,
        predicted=made.makespan,
        low=max(0.0, made.makespan - spread),
        high=made.makespan + spread,
        lower_bound=min(plan.lower_bound, made.makespan),
        cost_model=target.model.version,
        source="composed",
    )


def _recosted(step: Step, estimate: Estimate) -> Step:
    seconds, low, high = costing.interval(estimate)
    source = estimate.source.value
    choices = tuple(
        replace(c, seconds=seconds, low=low, high=high, source=source)
        if c.device == step.device
        else c
        for c in step.choices
    )
    return replace(step, seconds=seconds, low=low, high=high, source=source, choices=choices)
