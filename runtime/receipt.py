"""What a run did: where each op ran, what crossed which link, predicted next to measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crossdock.devices.base import Span
from crossdock.runtime.fallback import fallbacks
from crossdock.runtime.plan import Plan, Step


@dataclass(frozen=True)
class OpReceipt:
    """One op: where it ran; seconds predicted, and measured where the run was profiled.

    An op that the host ran has kernel "host", is always measured, and nobody predicts it.
    ``rounds`` is the format that the kernel rounded float32 operands to, as
    ``compile(precision=...)`` permits; empty where it computed in the operands' own.
    ``algorithm`` says by which algorithm of a library, or tile, the kernel ran, and how that was
    chosen.
    """

    name: str
    op: str
    device: str
    physical_id: str
    kernel: str
    predicted: float | None
    measured: float | None
    rounds: str = ""
    algorithm: str = ""


@dataclass(frozen=True)
class LinkReceipt:
    """What crossed a link in one direction: bytes, copies, and their seconds one after the other.

    ``measured`` is there where the run was profiled.
    """

    nbytes: int
    copies: int
    predicted: float
    measured: float | None

    def times(self, runs: int) -> LinkReceipt:
        """The same for several runs, of which ``measured`` is the sum already."""
        return LinkReceipt(
            self.nbytes * runs, self.copies * runs, self.predicted * runs, self.measured
        )

    def __add__(self, other: LinkReceipt) -> LinkReceipt:
        both = [m for m in (self.measured, other.measured) if m is not None]
        return LinkReceipt(
            self.nbytes + other.nbytes,
            self.copies + other.copies,
            self.predicted + other.predicted,
            sum(both) if both else None,
        )


@dataclass(frozen=True)
class Recovery:
    """A failure that a run outlived, or a kernel that did not build, and what was done about it.

    ``action`` is "lost" (the device is not used any more), or says how it got by with too little
    memory, or "next candidate". ``kept`` has the devices of the values that were still good, by
    name; ``placed`` the devices of the ops that were run from then on, and ``redone`` those of them
    that had been run before. ``log`` is a compiler's text.
    """

    device: str
    error: str
    action: str
    kept: Mapping[str, str] = field(default_factory=dict)
    redone: tuple[str, ...] = ()
    placed: Mapping[str, str] = field(default_factory=dict)
    log: str = ""

    def __str__(self) -> str:
        if not self.placed and not self.kept:
            return f"{self.device} {self.action} ({self.error})"
        done = f"{len(self.kept)} values kept, {len(self.placed)} ops run from there"
        return f"{self.device} {self.action} ({self.error}): {done}, {len(self.redone)} again"


@dataclass(frozen=True)
class Receipt:
    """A run's record; seconds and bytes. ``links`` says by "SRC->DST" what was copied.

    ``recoveries`` are the failures on the way; ``ops`` then say where each op ran last.
    ``avoided`` has by "SRC->DST" the bytes that the plan copies and that stayed on their device:
    inputs fed from it, and outputs kept on it. ``streamed`` has by "SRC->DST" those bytes of
    ``links`` that were weights, which have no room to stay on their device.
    """

    graph_name: str
    plan: str
    ops: tuple[OpReceipt, ...]
    transfers: Mapping[str, LinkReceipt]
    predicted: float
    measured: float
    notes: tuple[str, ...] = ()
    recoveries: tuple[Recovery, ...] = ()
    avoided: Mapping[str, int] = field(default_factory=dict)
    streamed: Mapping[str, int] = field(default_factory=dict)

    @property
    def devices(self) -> dict[str, str]:
        """Physical device by op name."""
        return {op.name: op.physical_id for op in self.ops}

    @property
    def links(self) -> dict[str, int]:
        """Bytes moved, by "SRC->DST"."""
        return {name: link.nbytes for name, link in self.transfers.items()}

    def busy(self) -> dict[str, float]:
        """Measured seconds of a profiled run by device, and by link for its copies."""
        made: dict[str, float] = {}
        for op in self.ops:
            if op.measured is not None:
                made[op.device] = made.get(op.device, 0.0) + op.measured
        timed = {n: t.measured for n, t in self.transfers.items() if t.measured is not None}
        return {**made, **timed}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**dataclasses.asdict(self), "links": self.links}


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
            s.rounds,
            plan.algorithms.get(s.name, ""),
        )
        for s in plan.launches()
    )
    notes = tuple(
        f"{s.name} ({s.op}) ran on {s.device}: no device asked for has a kernel"
        for s in fallbacks(plan, asked)
    )
    return Receipt(
        plan.graph_name,
        digest,
        ops,
        _transfers(plan, spans),
        plan.predicted,
        seconds,
        notes,
        streamed=_streamed(plan.copies()),
    )


def resident_receipt(
    made: Receipt,
    avoided: Iterable[Step],
    pulled: Mapping[str, int],
    otherwise: Iterable[Step] = (),
) -> Receipt:
    """The record of a run without the copies that it avoided, and with ``pulled`` bytes by link.

    Copies made ``otherwise`` are among those that were pulled.
    """
    links, spared = dict(made.transfers), dict[str, int]()
    avoided = tuple(avoided)
    for step in avoided:
        name = f"{step.src}->{step.dst}"
        spared[name] = spared.get(name, 0) + step.nbytes
    for step in (*avoided, *(step for step in otherwise if step.src != step.dst)):
        name = f"{step.src}->{step.dst}"
        link = links.pop(name)
        if link.copies > 1:
            left = link.nbytes - step.nbytes, link.copies - 1, link.predicted - step.seconds
            links[name] = LinkReceipt(*left, link.measured)
    for name, nbytes in pulled.items():
        one = LinkReceipt(nbytes, 1, 0.0, None)
        links[name] = links[name] + one if name in links else one
    return dataclasses.replace(made, transfers=links, avoided=spared)


def recovered_receipt(
    first: Receipt,
    ended: Iterable[Step],
    physical: Mapping[str, str],
    crossed: Iterable[Step],
    told: Iterable[Recovery],
) -> Receipt:
    """The record of a run that a device failed.

    ``first`` is that of its first plan; ``ended`` the steps that ended last for each op, and
    ``crossed`` the copies that were made, under all plans; ``physical`` identifies devices by id.
    """
    last = {step.name: step for step in ended}
    ops = [
        dataclasses.replace(
            op,
            device=last[op.name].device,
            physical_id=physical.get(last[op.name].device, ""),
            kernel=last[op.name].kernel,
            rounds=last[op.name].rounds,
            algorithm=op.algorithm if _same(op, last[op.name]) else "",
            predicted=last[op.name].seconds,
        )
        if op.name in last
        else op
        for op in first.ops
    ]
    links: dict[str, LinkReceipt] = {}
    crossed = tuple(crossed)
    for copy in (step for step in crossed if step.src != step.dst):
        name, one = f"{copy.src}->{copy.dst}", LinkReceipt(copy.nbytes, 1, copy.seconds, None)
        links[name] = links[name] + one if name in links else one
    new = tuple(told)
    return dataclasses.replace(
        first,
        ops=tuple(ops),
        transfers=links,
        streamed=_streamed(crossed),
        notes=(*first.notes, *map(str, new)),
        recoveries=(*first.recoveries, *new),
    )


def _streamed(copies: Iterable[Step]) -> dict[str, int]:
    """Bytes of weights by link."""
    made: dict[str, int] = {}
    for copy in copies:
        if copy.brings_weight:
            name = f"{copy.src}->{copy.dst}"
            made[name] = made.get(name, 0) + copy.nbytes
    return made


def _same(op: OpReceipt, step: Step) -> bool:
    return (op.device, op.kernel) == (step.device, step.kernel)


def _transfers(plan: Plan, spans: Mapping[str, list[Span]]) -> dict[str, LinkReceipt]:
    """The copies of a plan by link, with the seconds of those that were timed."""
    made: dict[str, LinkReceipt] = {}
    for copy in plan.copies():
        name = f"{copy.src}->{copy.dst}"
        one = LinkReceipt(copy.nbytes, 1, copy.seconds, None)
        made[name] = made[name] + one if name in made else one
    links = {(c.queue, f"copy {c.name}"): f"{c.src}->{c.dst}" for c in plan.copies()}
    seconds: dict[str, float] = {}
    for (queue, label), name in links.items():
        for span in spans.get(queue, ()):
            if span.label == label:
                seconds[name] = seconds.get(name, 0.0) + span.end - span.start
    return {
        name: dataclasses.replace(link, measured=seconds.get(name)) for name, link in made.items()
    }
