"""What one run of a staged graph did: its stages and host ops, joined to one plan and receipt."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from crossdock.devices.base import DeviceInfo, Span
from crossdock.kernels.precision import HIGHEST
from crossdock.runtime.plan import HOST, DevicePlan, Plan, Step, step_line
from crossdock.runtime.receipt import LinkReceipt, OpReceipt, Receipt, Recovery, make_receipt


@dataclass
class StageRecord:
    """A stage's plan, how often the run came to it, and the spans of its steps where profiled.

    ``amend`` corrects its receipt where devices failed.
    """

    plan: Plan
    asked: frozenset[str]
    runs: int = 0
    spans: dict[str, list[Span]] = field(default_factory=dict)
    amend: list[Callable[[Receipt], Receipt]] = field(default_factory=list)


@dataclass
class HostRecord:
    """An op that the host ran, why it was the host, how often, and its seconds in all."""

    name: str
    op: str
    why: str
    runs: int = 0
    seconds: float = 0.0


class StageLog:
    """The stages and host ops of one run, in the order in which it first came to them."""

    def __init__(self, name: str, host: DeviceInfo) -> None:
        self.name = name
        self.host_info = host
        self.entries: dict[bytes | tuple[str, str], StageRecord | HostRecord] = {}

    def stage(
        self, key: bytes, plan: Plan, asked: frozenset[str], spans: Mapping[str, list[Span]]
    ) -> None:
        """Add a run of a stage."""
        found = self.entries.get(key)
        if not isinstance(found, StageRecord):
            found = self.entries[key] = StageRecord(plan, asked)
        found.runs += 1
        for queue, timed in spans.items():
            found.spans.setdefault(queue, []).extend(timed)

    def rescued(self, key: bytes, amend: Callable[[Receipt], Receipt]) -> None:
        """A device failed in the last run of a stage."""
        found = self.entries[key]
        assert isinstance(found, StageRecord)
        found.amend.append(amend)

    def host(self, name: str, op: str, why: str, seconds: float) -> None:
        """Add a run of a host op."""
        found = self.entries.get((name, op))
        if not isinstance(found, HostRecord):
            found = self.entries[name, op] = HostRecord(name, op, why)
        found.runs += 1
        found.seconds += seconds

    def stages(self) -> list[StageRecord]:
        """The stages."""
        return [e for e in self.entries.values() if isinstance(e, StageRecord)]

    def hosts(self) -> list[HostRecord]:
        """The host ops."""
        return [e for e in self.entries.values() if isinstance(e, HostRecord)]

    def plan(self) -> Plan:
        """One plan: each stage's steps once, predicted seconds for as often as it ran.

        A host op is a step of kernel "host" on the host's compute queue, its seconds as measured.
        """
        return _Joiner(self).plan()

    def receipt(self, seconds: float) -> Receipt:
        """One receipt; the seconds of an op that ran several times are summed."""
        ops: list[OpReceipt] = []
        links: dict[str, LinkReceipt] = {}
        streamed: dict[str, int] = {}
        notes: list[str] = []
        recoveries: list[Recovery] = []
        for entry in self.entries.values():
            if isinstance(entry, HostRecord):
                ops.append(_host_receipt(entry, self.host_info.physical_id))
                notes.append(f"{entry.name} ({entry.op}) ran on the host: {entry.why}")
                continue
            part = make_receipt(entry.plan, "", 0.0, entry.spans, entry.asked)
            for amend in entry.amend:
                part = amend(part)
            recoveries += part.recoveries
            ops += [
                dataclasses.replace(op, predicted=_times(op.predicted, entry.runs))
                for op in part.ops
            ]
            notes += part.notes
            for name, link in part.transfers.items():
                many = link.times(entry.runs)
                links[name] = links[name] + many if name in links else many
            for name, nbytes in part.streamed.items():
                streamed[name] = streamed.get(name, 0) + nbytes * entry.runs
        predicted = sum(e.plan.predicted * e.runs for e in self.stages())
        return Receipt(
            self.name, self.digest(Plan.digest), tuple(ops), links, predicted, seconds,
            tuple(notes), tuple(recoveries), streamed=streamed,
        )  # fmt: skip

    def digest(self, part: Callable[[Plan], str]) -> str:
        """SHA-256 over a digest of each stage's plan, in order."""
        return hashlib.sha256("".join(part(s.plan) for s in self.stages()).encode()).hexdigest()


def _times(seconds: float | None, runs: int) -> float | None:
    return None if seconds is None else seconds * runs


def _host_receipt(entry: HostRecord, physical: str) -> OpReceipt:
    return OpReceipt(entry.name, entry.op, HOST, physical, "host", None, entry.seconds)


class _Joiner:
    def __init__(self, log: StageLog) -> None:
        self.log = log
        self.steps: list[Step] = []
        self.now = 0.0

    def plan(self) -> Plan:
        """The stages one after the other."""
        plans = [entry.plan for entry in self.log.stages()]
        low = high = bound = 0.0
        for entry in self.log.entries.values():
            if isinstance(entry, HostRecord):
                self._host(entry)
                low, high, bound = (v + entry.seconds for v in (low, high, bound))
                continue
            self._stage(entry)
            low += entry.plan.low * entry.runs
            high += entry.plan.high * entry.runs
            bound += entry.plan.lower_bound * entry.runs
        return Plan(
            graph=self.log.digest(lambda plan: plan.graph),
            graph_name=self.log.name,
            policy=plans[0].policy if plans else "host",
            devices=self._devices(plans),
            steps=tuple(self.steps),
            predicted=self.now,
            low=low,
            high=high,
            lower_bound=bound,
            expected_runs=plans[0].expected_runs if plans else 1,
            cost_model=plans[0].cost_model if plans else "",
            kernels=plans[0].kernels if plans else "",
            passes=plans[0].passes if plans else (),
            streamed=tuple(one for plan in plans for one in plan.streamed),
            precision=plans[0].precision if plans else HIGHEST,
            explainer=StagesExplainer(tuple(plans)),
        )

    def _stage(self, entry: StageRecord) -> None:
        base = len(self.steps)
        often = f"one of {entry.runs} runs in a loop" if entry.runs > 1 else ""
        for step in entry.plan.steps:
            self.steps.append(
                dataclasses.replace(
                    step,
                    index=step.index + base,
                    waits=tuple(w + base for w in step.waits),
                    start=step.start + self.now,
                    detail="; ".join(filter(None, (step.detail, often))),
                )
            )
        self.now += entry.plan.predicted * entry.runs

    def _host(self, entry: HostRecord) -> None:
        self.steps.append(
            Step(
                index=len(self.steps),
                kind="launch",
                device=HOST,
                queue=f"{HOST}/compute",
                name=entry.name,
                inputs=(),
                outputs=(),
                waits=(),
                start=self.now,
                seconds=entry.seconds,
                low=entry.seconds,
                high=entry.seconds,
                source="measured",
                op=entry.op,
                kernel="host",
                reason=f"ran on the host: {entry.why}",
            )
        )
        self.now += entry.seconds

    def _devices(self, plans: list[Plan]) -> tuple[DevicePlan, ...]:
        """Every stage has arenas and weights of its own."""
        here = self.log.host_info
        found: dict[str, DevicePlan] = {}
        for part in (d for plan in plans for d in plan.devices):
            before = found.get(part.id)
            found[part.id] = part if before is None else _both(before, part)
        if not found:
            ids = here.name, here.physical_id, here.fingerprint, here.resource_group
            found[HOST] = DevicePlan(HOST, *ids, 0, 0, {}, self.now, here.driver)
        return tuple(dataclasses.replace(d, offsets={}) for d in found.values())


@dataclass(frozen=True)
class StagesExplainer:
    """Explains an op by the stage it is in."""

    plans: tuple[Plan, ...]

    def text(self, plan: Plan, name: str) -> str:
        """What the op's stage knows; a host op has nothing but its step."""
        for part in self.plans:
            if any(s.name == name for s in part.launches()):
                return part.explain_op(name)
        return step_line(plan.find(name))


def _both(a: DevicePlan, b: DevicePlan) -> DevicePlan:
    alone = None
    if a.single_seconds is not None and b.single_seconds is not None:
        alone = a.single_seconds + b.single_seconds
    return dataclasses.replace(
        a,
        arena_bytes=a.arena_bytes + b.arena_bytes,
        resident_bytes=a.resident_bytes + b.resident_bytes,
        packed_bytes=a.packed_bytes + b.packed_bytes,
        scratch_bytes=a.scratch_bytes + b.scratch_bytes,
        region_bytes=a.region_bytes + b.region_bytes,
        single_seconds=alone,
    )
