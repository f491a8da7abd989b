"""A plan and a run of it as a trace: for each device queue a predicted row and a measured one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from crossdock.devices.base import Span
from crossdock.runtime.plan import Plan, Step
from crossdock.runtime.trace import Slice, chrome_trace

ROLES = ("compute", "upload", "download")


def run_trace(
    plan: Plan,
    spans: Mapping[str, list[Span]],
    began: float,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The trace of a profiled run as JSON data; both rows start at the run's beginning.

    Args:
        plan: what was run.
        spans: measured, by queue ("cpu:0/compute"), on the clock of ``time.perf_counter``.
        began: when the run began on that clock.
        metadata: goes into the trace as it is.
    """
    slices: list[Slice] = []
    for queue in queues(plan):
        slices += _predicted(plan, queue)
        slices += _measured(plan, queue, spans.get(queue, []), began)
    about = {"graph": plan.graph_name, "policy": plan.policy, "predicted_s": plan.predicted}
    return chrome_trace(slices, {**about, **(metadata or {})})


def queues(plan: Plan) -> list[str]:
    """The queues that have steps: by device in the plan's order, then by role."""
    order = {d.id: i for i, d in enumerate(plan.devices)}
    found = {s.queue: order[s.device] for s in plan.steps}
    return sorted(found, key=lambda queue: (found[queue], _role(queue), queue))


def _role(queue: str) -> int:
    role = queue.rpartition("/")[2]
    return ROLES.index(role) if role in ROLES else len(ROLES)


def measured_steps(plan: Plan, queue: str, spans: list[Span]) -> Iterator[tuple[Step, Span]]:
    """Pair a queue's spans with its steps: in order, a step having one span or several."""
    steps = [s for s in plan.steps if s.queue == queue]
    at = 0
    for span in spans:
        found = next((i for i in range(at, len(steps)) if label(steps[i]) == span.label), None)
        if found is not None:
            at = found
            yield steps[found], span


def label(step: Step) -> str:
    """What the executor calls a step's spans."""
    return f"copy {step.name}" if step.kind == "copy" else step.name


def _predicted(plan: Plan, queue: str) -> Iterator[Slice]:
    for step in plan.steps:
        if step.queue == queue:
            yield Slice(
                process=queue,
                thread="predicted",
                name=_title(step),
                start=step.start,
                seconds=step.seconds,
                category=step.kind,
                args=_args(step),
                id=str(step.index),
                after=tuple(str(w) for w in step.waits),
            )


def _measured(plan: Plan, queue: str, spans: list[Span], began: float) -> Iterator[Slice]:
    for step, span in measured_steps(plan, queue, spans):
        yield Slice(
            process=queue,
            thread="measured",
            name=_title(step),
            start=max(0.0, span.start - began),
            seconds=span.end - span.start,
            category=step.kind,
            args={**_args(step), "measured_us": round((span.end - span.start) * 1e6, 3)},
        )


def _title(step: Step) -> str:
    return label(step) if step.kind == "copy" else f"{step.op} {step.name}"


def _args(step: Step) -> dict[str, Any]:
    common = {
        "step": step.index,
        "predicted_us": round(step.seconds * 1e6, 3),
        "source": step.source,
    }
    if step.kind == "copy":
        return {**common, "from": step.src, "to": step.dst, "bytes": step.nbytes}
    return {**common, "kernel": step.kernel, "reason": step.reason}
