"""What a plan's page shows, as plain data. Every text is made harmless and is still untrusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crossdock.kernels.fused import FusedBody
from crossdock.runtime.cli.page.layout import draw
from crossdock.runtime.cli.text import clean, short
from crossdock.runtime.cli.trace_view import measured_steps, queues
from crossdock.runtime.executor import Outcome
from crossdock.runtime.explanation import Explanation
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.plan import Plan, Step
from crossdock.runtime.simulate import Simulation, simulate
from crossdock.runtime.tensor import TensorSpec

CHARACTER, BOLD = 6.6, 7.4
"""Width of a character of a box's second line and its title, in pixels: rather too wide."""
LABEL = 26
MAX_SHOWN = 400


def page_data(
    plan: Plan,
    graph: Graph,
    capacity: Mapping[str, int] | None = None,
    outcome: Outcome | None = None,
    explained: Sequence[Explanation] = (),
) -> dict[str, Any]:
    """The data of a page.

    Args:
        plan: of ``graph``, which is the graph after the passes.
        graph: its specs are shown with the values.
        capacity: as ``simulate`` takes it.
        outcome: of a profiled run, whose times are laid beside the predicted ones.
        explained: of ops, shown with them.
    """
    replay = simulate(plan, capacity)
    rows = queues(plan)
    measured = _measured(plan, rows, outcome)
    why = {e.name: _why(e) for e in explained}
    return {
        "name": clean(plan.graph_name),
        "policy": clean(plan.policy),
        "predicted": plan.predicted,
        "low": plan.low,
        "high": plan.high,
        "bound": plan.lower_bound,
        "replay": replay.makespan,
        "measured": None if outcome is None else outcome.seconds,
        "expectedRuns": plan.expected_runs,
        "devices": _devices(plan, replay),
        "queues": [{"name": q, "device": q.partition("/")[0]} for q in rows],
        "steps": [
            {
                **_step(s, replay, rows, graph, measured.get(s.index, [])),
                "why": why.get(s.name) if s.kind == "launch" else None,
            }
            for s in plan.steps
        ],
        "graph": _drawing(plan, graph),
    }


def _devices(plan: Plan, replay: Simulation) -> list[dict[str, Any]]:
    shares = plan.shares()
    return [
        {
            "id": d.id,
            "name": clean(d.name),
            "share": shares[d.id],
            "alone": d.single_seconds,
            "arena": d.arena_bytes,
            "weights": d.fixed_bytes,
            "busy": replay.busy.get(f"{d.id}/compute", 0.0),
        }
        for d in plan.devices
    ]


def _measured(
    plan: Plan, rows: Sequence[str], outcome: Outcome | None
) -> dict[int, list[tuple[float, float]]]:
    """(start, seconds) of a step's spans, from the beginning of the run."""
    times: dict[int, list[tuple[float, float]]] = {}
    if outcome is None:
        return times
    for queue in rows:
        for step, span in measured_steps(plan, queue, outcome.spans.get(queue, [])):
            at = max(0.0, span.start - outcome.began)
            times.setdefault(step.index, []).append((at, span.end - span.start))
    return times


def _step(
    step: Step,
    replay: Simulation,
    rows: Sequence[str],
    graph: Graph,
    measured: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    return {
        "kind": step.kind,
        "device": step.device,
        "row": rows.index(step.queue),
        "queue": step.queue,
        "name": clean(step.name),
        "op": clean(step.op),
        "kernel": clean(step.kernel),
        "detail": short(step.detail, MAX_SHOWN),
        "start": float(replay.start[step.index]),
        "seconds": step.seconds,
        "low": step.low,
        "high": step.high,
        "source": step.source,
        "waits": list(step.waits),
        "inputs": [_value(v, graph) for v in step.inputs if v is not None],
        "outputs": [_value(v, graph) for v in step.outputs],
        "src": step.src,
        "dst": step.dst,
        "nbytes": step.nbytes,
        "reason": short(step.reason, MAX_SHOWN),
        "measured": [list(pair) for pair in measured],
        "choices": [
            {
                "device": c.device,
                "kernel": clean(c.kernel),
                "seconds": _finite(c.seconds),
                "low": _finite(c.low),
                "high": _finite(c.high),
                "source": c.source,
                "finish": _finite(c.finish),
                "reason": short(c.reason, MAX_SHOWN),
            }
            for c in step.choices
        ],
    }


def _why(found: Explanation) -> dict[str, Any]:
    """An explanation as the page shows it."""
    return {
        "rows": [
            {
                "device": row.device,
                "kernel": clean(row.kernel),
                "code": row.cause,
                "reason": short(row.reason, MAX_SHOWN),
                "launch": _finite(row.launch),
                "compute": _finite(row.compute),
                "transferIn": _finite(row.transfer_in),
                "queueWait": _finite(row.queue_wait),
                "finish": _finite(row.finish),
                "whole": _finite(row.whole),
                "room": row.head_room,
                "chosen": row.chosen,
            }
            for row in found.candidates
        ],
        "runnerUp": clean(found.runner_up),
        "margin": _finite(found.margin),
        "sigmas": _finite(found.sigmas),
        "confidence": _finite(found.confidence),
        "scope": found.scope,
        "flips": [clean(flip) for flip in found.flips],
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _value(name: str, graph: Graph) -> str:
    spec = graph.specs.get(name)
    kind = " (constant)" if name in graph.constants else ""
    return f"{short(name, 80)}: {spec}{kind}" if isinstance(spec, TensorSpec) else short(name, 80)


def _drawing(plan: Plan, graph: Graph) -> dict[str, Any]:
    """Ops, inputs and outputs as boxes, values as edges; constants are left out."""
    at = {s.name: s.index for s in plan.launches()}
    boxes: list[dict[str, Any]] = []
    maker: dict[str, int] = {}
    edges: dict[tuple[int, int], None] = {}
    for name, spec in graph.inputs.items():
        maker[name] = len(boxes)
        boxes.append(_box("input", short(name, LABEL), str(spec), None))
    for node in graph.nodes:
        number = len(boxes)
        step = at.get(node.name)
        kind = "op" if step is not None else "alias"
        boxes.append(_box(kind, _title(node), short(node.name, LABEL), step))
        edges.update({(maker[v], number): None for v in node.operands if v in maker})
        maker.update(dict.fromkeys(node.outputs, number))
    for name, value in graph.outputs.items():
        boxes.append(_box("output", short(name, LABEL), str(graph.specs[value]), None))
        if value in maker:
            edges[maker[value], len(boxes) - 1] = None
    drawing = draw([box["width"] for box in boxes], list(edges))
    for box, (x, y) in zip(boxes, drawing.nodes, strict=True):
        box["x"], box["y"] = round(x, 1), round(y, 1)
    return {
        "boxes": boxes,
        "edges": [
            {"from": a, "to": b, "path": [[round(x, 1), round(y, 1)] for x, y in path]}
            for (a, b), path in zip(edges, drawing.edges, strict=True)
        ],
        "width": round(drawing.width, 1),
        "height": round(drawing.height, 1),
    }


def _box(kind: str, title: str, below: str, step: int | None) -> dict[str, Any]:
    below = short(below, LABEL)
    width = round(max(64.0, BOLD * len(title) + 32.0, CHARACTER * len(below) + 22.0), 1)
    return {"kind": kind, "title": title, "below": below, "step": step, "width": width}


def _title(node: Node) -> str:
    body = node.attrs.get("body")
    if isinstance(body, FusedBody):
        return short("+".join(s.op for s in body.steps), LABEL)
    return short(node.op, LABEL)
