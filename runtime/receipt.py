"""What a run did: where each op ran, what crossed which link, predicted next to measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossdock.devices.base import Span
from crossdock.runtime.fallback import fallbacks
from crossdock.runtime.plan import Plan


@dataclass(frozen=True)
class OpReceipt:
    """One op: where it ran; seconds predicted, and measured where the run was profiled.

    An op that the host ran has kernel "host", is always measured, and nobody predicts it.
    """

    name: str
    op: str
    device: str
    physical_id: str
    kernel: str
    predicted: float | None
    measured: float | None


@dataclass(frozen=True)
class Receipt:
    """A run's record; seconds and bytes. ``links`` maps "SRC->DST" to bytes moved."""

    graph_name: str
    plan: str
    ops: tuple[OpReceipt, ...]
    links: Mapping[str, int]
    predicted: float
    measured: float
    notes: tuple[str, ...] = ()

    @property
    def devices(self) -> dict[str, str]:
        """Physical device by op name."""
        return {op.name: op.physical_id for op in self.ops}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def make_receipt(
    plan: Plan, digest: str, seconds: float, spans: Mapping[str, list[Span]], asked: frozenset[str]
) -> Receipt:
    """Write the record of a run of ``plan`` (``digest`` is the plan's, computed once)."""
    physical = {d.id: d.physical_id for d in plan.devices}
    measured: dict[tuple[str, str], float] = {}
    for queue, timed in spans.items():
        device, _, role = queue.rpartition("/")
        for span in timed if role == "compute" else ():
            key = (device, span.label)
            measured[key] = measured.get(key, 0.0) + span.end - span.start
    ops = tuple(
        OpReceipt(
            s.name,
            s.op,
            s.device,
            physical[s.device],
            s.kernel,
            s.seconds,
            measured.get((s.device, s.name)),
        )
        for s in plan.launches()
    )
    links: dict[str, int] = {}
    for copy in plan.copies():
        name = f"{copy.src}->{copy.dst}"
        links[name] = links.get(name, 0) + copy.nbytes
    notes = tuple(
        f"{s.name} ({s.op}) ran on {s.device}: no device asked for has a kernel"
        for s in fallbacks(plan, asked)
    )
    return Receipt(plan.graph_name, digest, ops, links, plan.predicted, seconds, notes)
