"""What differs between two plans: where ops run, by which kernels, how long, and for what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossdock.runtime.plan import Plan, Step


@dataclass(frozen=True)
class Change:
    """One op in both plans: its device or kernel before and after."""

    name: str
    op: str
    before: str
    after: str


@dataclass(frozen=True)
class PlanDiff:
    """From plan a to plan b; seconds and bytes are (a, b).

    ``moved`` are ops on another device, ``kernels`` those on the same by another kernel,
    ``removed`` and ``added`` ops of one plan alone. ``links`` are the bytes that cross a link,
    where they differ. ``stale`` says what one of the plans was made for and the other was not.
    """

    moved: tuple[Change, ...]
    kernels: tuple[Change, ...]
    removed: tuple[str, ...]
    added: tuple[str, ...]
    predicted: tuple[float, float]
    seconds: Mapping[str, tuple[float, float]]
    links: Mapping[str, tuple[int, int]]
    stale: Mapping[str, str]
    same: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"schema": "crossdock-plan-diff/1", **dataclasses.asdict(self)}


def diff(a: Plan, b: Plan) -> PlanDiff:
    """Compare two plans, op by op (by node name)."""
    ops_a = {s.name: s for s in a.launches()}
    ops_b = {s.name: s for s in b.launches()}
    both = [(ops_a[name], ops_b[name]) for name in ops_a if name in ops_b]
    links_a, links_b = _links(a), _links(b)
    return PlanDiff(
        moved=tuple(
            Change(x.name, x.op, x.device, y.device) for x, y in both if x.device != y.device
        ),
        kernels=tuple(
            Change(x.name, x.op, x.kernel, y.kernel)
            for x, y in both
            if x.device == y.device and x.kernel != y.kernel
        ),
        removed=tuple(name for name in ops_a if name not in ops_b),
        added=tuple(name for name in ops_b if name not in ops_a),
        predicted=(a.predicted, b.predicted),
        seconds={x.name: (x.seconds, y.seconds) for x, y in both if x.seconds != y.seconds},
        links={
            name: (links_a.get(name, 0), links_b.get(name, 0))
            for name in sorted({*links_a, *links_b})
            if links_a.get(name, 0) != links_b.get(name, 0)
        },
        stale=_stale(a, b),
        same=a == b,
    )


def _links(plan: Plan) -> dict[str, int]:
    moved: dict[str, int] = {}
    for copy in plan.copies():
        name = _link(copy)
        moved[name] = moved.get(name, 0) + copy.nbytes
    return moved


def _link(copy: Step) -> str:
    return f"{copy.src}->{copy.dst}"


def _stale(a: Plan, b: Plan) -> dict[str, str]:
    """What the plans were made for, where it differs."""
    made_for = {
        "graph": (a.graph[:12], b.graph[:12]),
        "kernel set": (a.kernels, b.kernels),
        "cost model": (a.cost_model, b.cost_model),
        "expected runs": (str(a.expected_runs), str(b.expected_runs)),
    }
    parts_a, parts_b = ({d.id: d for d in plan.devices} for plan in (a, b))
    for name in dict.fromkeys((*parts_a, *parts_b)):
        x, y = parts_a.get(name), parts_b.get(name)
        if x is None or y is None:
            made_for[f"device {name}"] = ("there" if x else "not there", "there" if y else "not")
        elif x.driver != y.driver:
            made_for[f"driver {name}"] = (x.driver, y.driver)
        else:
            made_for[f"device {name}"] = (x.fingerprint, y.fingerprint)
    return {what: f"{x or 'none'} -> {y or 'none'}" for what, (x, y) in made_for.items() if x != y}
