"""What ``explain`` says, held against runs on two one-core devices; prints what was found as JSON.

``agree``: ops whose margin exceeds two sigma are kept on the runner-up, and both plans are run.
``flips``: a link is slowed to where two placements break even, and the bandwidth is compared with
the one that the explanation named. Run in a process of its own, as ``coexecution``.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from functools import partial
from typing import Any

from pinned import pinned  # first: it sets what PoCL and BLAS read

# isort: split

from coexecution_graphs import GRAPHS
from timing import feeds_of, interleaved, opencl

import crossdock as xd
from crossdock.devices import registry, throttle
from crossdock.runtime import explain, flips, planner

SIGMAS = 2.0
EACH = 6
"""Ops of a graph that are tried."""
LINK = 4e9
"""Bytes per second of the slow link that flips start from."""
CLOSE = 1.05
NAMES = tuple(GRAPHS)


def compiled(graph: Any, devices: list[str] | None = None, plan: Any = None) -> Any:
    """A session on one core a device, no op in parts."""
    made = devices or "auto"
    return xd.compile(graph, made, threads=1, split=False, plan=plan)


def medians(sessions: dict[str, Any], feeds: dict[str, Any]) -> dict[str, float]:
    """Medians of interleaved runs, after two that do not count."""
    for session in sessions.values():
        for _ in range(2):
            session.run(feeds)
    with pinned():
        return interleaved({name: partial(s.run, feeds) for name, s in sessions.items()})


def agree(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row an op: what keeping it on the runner-up was predicted to cost, and did."""
    rows = []
    for name in names:
        graph = GRAPHS[name]()
        feeds = feeds_of(graph)
        with compiled(graph, ["cpu:0", opencl()]) as base:
            plan = base.plan
            found = explain.explain_all(plan, 60.0, flips=False)
            whole = [e for e in found if e.scope == "whole"]
            sure = [e for e in whole if (e.sigmas or 0.0) > SIGMAS]
            sure.sort(key=lambda e: e.margin or 0.0)
            spread = [sure[i * len(sure) // EACH] for i in range(EACH)] if sure else []
            for said in {e.name: e for e in spread}.values():
                other = plan.explainer.alternatives(plan.find(said.name), math.inf)[said.runner_up]
                with compiled(graph, plan=other) as kept:
                    took = medians({"base": base, "kept": kept}, feeds)
                rows.append(
                    {
                        "graph": name,
                        "op": said.name,
                        "from": said.device,
                        "to": said.runner_up,
                        "sigmas": said.sigmas,
                        "predicted": said.margin,
                        "measured": took["kept"] - took["base"],
                        "base": took["base"],
                        "agrees": took["kept"] > took["base"],
                        "ops": len(found),
                        "sure": len(sure),
                        "better_elsewhere": sum((e.sigmas or 0.0) < -SIGMAS for e in whole),
                    }
                )
    return rows


def behind(bandwidth: float) -> Any:
    """The OpenCL device behind a link of so many bytes per second, as a device of its own."""
    name = f"slow{bandwidth:.0f}"
    real = registry.open_device(opencl(), threads=1)
    return throttle.register(name, real, bandwidth).info


def moved(plan: Any, before: Any, after: Any) -> Any:
    """The plan with one slow device taken for another: the same behind another link."""
    text = plan.dumps()
    for old, new in ((before.id, after.id), (before.fingerprint, after.fingerprint)):
        text = text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    return xd.Plan.loads(text)


def takes(
    graph: Any, plans: dict[str, Any], slow: Any, feeds: dict[str, Any], bandwidth: float
) -> float:
    """Time of the plan after the flip over that of the one before it, at a bandwidth."""
    info = behind(bandwidth)
    sessions = {n: compiled(graph, plan=moved(p, slow, info)) for n, p in plans.items()}
    try:
        took = medians(sessions, feeds)
    finally:
        for session in sessions.values():
            session.close()
    return took["after"] / took["before"]


def flip(name: str) -> dict[str, Any]:
    """The bandwidth at which the graph's placement flips: as explained, and as measured."""
    graph = GRAPHS[name]()
    feeds = feeds_of(graph)
    slow = behind(LINK)
    with compiled(graph, ["cpu:0", slow.id]) as session:
        plan = session.plan
        ops = [s.name for s in plan.launches()]
        away = [s.name for s in plan.launches() if s.device == slow.id] or ops
        op = away[len(away) // 2]
        said = explain.explain_op(plan, op, 60.0)
        found = next((f for f in said.flips if f.knob == "bandwidth"), None)
        if found is None or found.value is None:
            return {"graph": name, "op": op, "excluded": str(found)}
        source = plan.explainer
        target = flips.linked(source.target, slow.id, found.value)
        after = planner.make_plan(source.graph, target, source.options)
    plans = {"before": plan, "after": after}
    ends = sorted((LINK, LINK * found.value))
    low, high = ends[0] / 4, ends[1] * 4
    at = partial(takes, graph, plans, slow, feeds)
    first, last = at(low), at(high)
    rises = first < 1 < last
    if not (rises or last < 1 < first):
        return {"graph": name, "op": op, "excluded": "one plan is faster at every bandwidth tried"}
    while high / low > CLOSE:
        middle = math.sqrt(low * high)
        later = at(middle) > 1
        low, high = (low, middle) if later == rises else (middle, high)
    measured = math.sqrt(low * high)
    said_at = LINK * found.value
    return {
        "graph": name,
        "op": op,
        "predicted": said_at,
        "measured": measured,
        "error": said_at / measured - 1,
    }


def main(what: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What a case found, with its summary."""
    if what == "agree":
        rows = agree(names)
        share = statistics.fmean(r["agrees"] for r in rows) if rows else 0.0
        return {"rows": rows, "ops": len(rows), "agree": share}
    rows = [flip(name) for name in names]
    errors = [abs(r["error"]) for r in rows if "error" in r]
    return {"rows": rows, "flips": len(errors), "within": sum(e <= 0.2 for e in errors)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], tuple(sys.argv[2:]) or NAMES)))
