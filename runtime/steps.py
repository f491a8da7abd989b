"""From a schedule to a plan's steps: order, transfers, waits, clocks and arenas."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from crossdock.kernels.fused import FusedBody
from crossdock.kernels.refusal import cause_of
from crossdock.runtime import costing, in_place
from crossdock.runtime.costing import Offers
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.order import plan_arenas, with_waits
from crossdock.runtime.plan import HOST, Choice, DevicePlan, Plan, Step
from crossdock.runtime.sites import ON_HOST, Sites
from crossdock.runtime.target import Target
from crossdock.scheduler import Schedule, Transfer


def input_task(name: str) -> str:
    """Task name of a graph input (no node name can be equal: a NUL leads)."""
    return f"\0in:{name}"


def output_task(name: str) -> str:
    """Task name of a graph output."""
    return f"\0out:{name}"


def queue_of(src: str, dst: str, *, departs: bool = False) -> str:
    """Queue that runs a copy: the target's upload queue, or the download queue to the host.

    What departs goes by the download queue as well, as it does where it goes to the host.
    """
    return f"{src}/download" if dst == HOST or departs else f"{dst}/upload"


@dataclass
class _Draft:
    """A step before it has an index."""

    step: Step
    needs: list[int] = field(default_factory=list)  # drafts that make its inputs


def build(
    graph: Graph,
    placed: Sequence[Node],
    offered: Mapping[str, Offers],
    made: Schedule,
    tensors: Mapping[int, str],
    target: Target,
    expected_runs: int,
    sites: Sites = ON_HOST,
    *,
    late: bool = False,
    brief: bool = False,
) -> Plan:
    """Turn a schedule into a plan, of a problem for the same ``sites``.

    ``tensors`` names the value of each of the schedule's tensor numbers. ``late``: copies wait
    until they are needed, and memory waits for the copies out of it. ``brief`` leaves out the
    graph's digest and what was considered for each op.
    """
    devices = target.devices
    roots = costing.alias_roots(graph)
    drafts = _Drafts(graph, placed, offered, made, roots, tensors, target, sites, brief=brief)
    if late:
        hold_back(drafts.drafts, roots)
    ordered = _order(drafts.drafts)
    if sites.in_place:
        infos = {d.id: d for d in devices}
        ordered = in_place.planned(graph, ordered, roots, infos, target.link)
    waited = with_waits(ordered)
    arenas = plan_arenas(graph, waited, devices, roots)
    parts = tuple(
        DevicePlan(
            id=d.id,
            name=d.name,
            physical_id=d.physical_id,
            fingerprint=d.fingerprint,
            resource_group=d.resource_group,
            arena_bytes=arenas[d.id].nbytes,
            resident_bytes=0,
            offsets=dict(arenas[d.id].offsets),
            single_seconds=_finite(made.single.get(d.id)),
            driver=d.driver,
        )
        for d in devices
    )
    spread = spread_of(waited)
    return Plan(
        graph="" if brief else graph.digest(),
        graph_name=graph.name,
        policy=made.policy,
        devices=parts,
        steps=tuple(waited),
        predicted=made.makespan,
        low=max(0.0, made.makespan - spread),
        high=made.makespan + spread,
        lower_bound=made.lower_bound,
        expected_runs=expected_runs,
        cost_model="",
        passes=graph.passes,
        stays=sites.stays,
    )


def spread_of(steps: Sequence[Step]) -> float:
    """Half of the interval of steps' times together, as of independent ones."""
    return math.sqrt(sum(((s.high - s.low) / 2) ** 2 for s in steps))


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


_LINK_SPREAD = (0.7, 1.5)
_GUESS_SPREAD = (0.1, 10.0)
"""Factors to the ends of a copy's 80 % interval, where its link was measured and where not."""


def copy_spread(seconds: float, *, measured: bool) -> tuple[float, float, str]:
    """The ends of the 80 % interval of a copy's seconds, and their source."""
    low, high = _LINK_SPREAD if measured else _GUESS_SPREAD
    return seconds * low, seconds * high, "measured" if measured else "unknown"


class _Drafts:
    """All steps of a schedule, unordered."""

    def __init__(
        self,
        graph: Graph,
        placed: Sequence[Node],
        offered: Mapping[str, Offers],
        made: Schedule,
        roots: Mapping[str, str],
        tensors: Mapping[int, str],
        target: Target,
        sites: Sites,
        *,
        brief: bool,
    ) -> None:
        self.graph, self.made, self.roots, self.brief = graph, made, roots, brief
        self.target, self.sites = target, sites
        self.measured, self.direct = target.measured_links(), target.direct
        self.how = target.peers
        self.drafts: list[_Draft] = []
        self.at: dict[tuple[str, str], int] = {}  # (root value, device) -> draft that puts it there
        ids = made.problem.device_ids
        for node in placed:
            task = made.problem.index(node.name)
            device = ids[int(made.device[task])]
            self.drafts.append(_Draft(self._launch(node, offered[node.name], task, device)))
            for value in node.outputs:
                self.at[value, device] = len(self.drafts) - 1
        self._take()
        for transfer in made.transfers:
            value = tensors[transfer.tensor]
            self._transfer(value, ids[transfer.src], ids[transfer.dst], transfer)
        self._keep()
        for draft in self.drafts:
            self._link(draft)

    def _launch(self, node: Node, offers: Offers, task: int, device: str) -> Step:
        offer = offers.best[device]
        seconds, low, high = costing.interval(offer.estimate)
        body = node.attrs.get("body")
        return Step(
            index=-1,
            kind="launch",
            device=device,
            queue=f"{device}/compute",
            name=node.name,
            inputs=tuple(None if v is None else v for v in node.inputs),
            outputs=node.outputs,
            waits=(),
            start=float(self.made.start[task]),
            seconds=seconds,
            low=low,
            high=high,
            source=offer.estimate.source.value,
            op=node.op,
            kernel=offer.kernel.name,
            rounds=offer.kernel.rounds,
            detail=str(body) if isinstance(body, FusedBody) else "",
            **({} if self.brief else self._why(offers, task, device)),  # type: ignore[arg-type]
        )

    def _why(self, offers: Offers, task: int, device: str) -> dict[str, object]:
        decision = self.made.decision(task)
        ids = self.made.problem.device_ids
        choices = []
        for candidate in decision.candidates:
            name = ids[candidate.device]
            offer = offers.best.get(name)
            reason = candidate.reason or offers.reasons.get(name, "")
            if offer is None or (candidate.exec_s is None or math.isinf(candidate.exec_s)):
                cause = str(cause_of(reason))
                text = str(reason)  # a plan is plain data
                choices.append(Choice(name, "", None, None, None, "unknown", None, text, cause))
                continue
            seconds, low, high = costing.interval(offer.estimate)
            choices.append(
                Choice(
                    name,
                    offer.kernel.name,
                    seconds,
                    low,
                    high,
                    offer.estimate.source.value,
                    candidate.finish,
                    str(reason),
                    str(cause_of(reason)),
                    candidate.transfer_in if math.isfinite(candidate.transfer_in) else None,
                    candidate.queue_wait,
                )
            )
        return {"choices": tuple(choices), "reason": _reason(choices, device, decision.margin)}

    def _take(self) -> None:
        """Copies of inputs into the arena of the device that they lie on, where that reads them."""
        stays = self._staying()
        for name, device in self.sites.feeds.items():
            read = any(
                self.roots[value] == name
                for draft in self.drafts
                if draft.step.device == device
                for value in draft.step.inputs
                if value is not None
            )
            if read or name in stays:
                self._copy(name, device, device, 0.0, self._within(device, name))

    def _keep(self) -> None:
        """Copies of the outputs that stay on other devices than the host."""
        for root in self._staying():
            device = self._maker(root)
            if device != HOST:
                made = self.drafts[self.at[root, device]].step
                self._copy(
                    root, device, device, made.finish, self._within(device, root), stays=True
                )

    def _staying(self) -> dict[str, None]:
        """The values that stay; windows of an output go to the host, and are put together there."""
        outputs = self.graph.outputs.items()
        return dict.fromkeys(self.roots[v] for name, v in outputs if name in self.sites.stays)

    def _maker(self, root: str) -> str:
        """The device that makes a value, or that an input lies on."""
        launched = (
            d.step.device for d in self.drafts if d.step.kind == "launch" and root in d.step.outputs
        )
        return next(launched, self.sites.feeds.get(root, HOST))

    def _within(self, device: str, value: str) -> float:
        """Seconds of a copy of a value within a device's memory."""
        info = self.target.info(device)
        return self.target.link(info, info).seconds(self.graph.specs[value].nbytes)

    def _transfer(self, value: str, src: str, dst: str, transfer: Transfer) -> None:
        whole = HOST in (src, dst) or (src, dst) in self.direct
        hops = [(src, dst)] if whole else [(src, HOST), (HOST, dst)]
        nbytes = self.graph.specs[value].nbytes
        problem, start = self.made.problem, transfer.start
        for a, b in hops:
            seconds = problem.transfer_s(nbytes, problem.device_index(a), problem.device_index(b))
            fed = value in self.graph.inputs and value not in self.sites.feeds
            if (value, b) not in self.at and not (b == HOST and fed):
                self._copy(value, a, b, start, seconds)
            start += seconds

    def _copy(
        self, value: str, src: str, dst: str, start: float, seconds: float, *, stays: bool = False
    ) -> None:
        low, high, source = copy_spread(seconds, measured=(src, dst) in self.measured)
        step = Step(
            index=-1,
            kind="copy",
            device=src if dst == HOST else dst,
            queue=queue_of(src, dst, departs=stays),
            name=value,
            inputs=() if self.sites.feeds.get(value) == src and not stays else (value,),
            outputs=() if stays else (value,),
            waits=(),
            start=start,
            seconds=seconds,
            low=low,
            high=high,
            source=source,
            src=src,
            dst=dst,
            nbytes=self.graph.specs[value].nbytes,
            detail=self.how.get((src, dst), ""),
        )
        self.drafts.append(_Draft(step))
        if not stays:
            self.at[value, dst] = len(self.drafts) - 1

    def _link(self, draft: _Draft) -> None:
        step = draft.step
        device = step.src if step.kind == "copy" else step.device
        for value in step.inputs:
            if value is None or self.roots[value] in self.graph.constants:
                continue
            found = self.at.get((self.roots[value], device))
            if found is not None:
                draft.needs.append(found)
            else:
                assert self.roots[value] in self.graph.inputs, (step.name, value, device)
                assert device == HOST, (step.name, value, device)


def _reason(choices: Sequence[Choice], device: str, margin: float | None) -> str:
    others = [c for c in choices if c.device != device]
    if not others:
        return "only device"
    if all(c.seconds is None for c in others):
        return "; ".join(f"{c.device} {c.reason}" for c in others)
    known = "; ".join(str(c) for c in others)
    if margin is None:
        return known
    if margin >= 0:
        return f"earliest finish by {margin * 1e3:.3f} ms; {known}"
    return f"earlier end of the whole; {known}"


def hold_back(drafts: Sequence[_Draft], roots: Mapping[str, str]) -> None:
    """Let copies wait until they are needed, and memory for the copies out of it.

    A copy to a device waits for the op before its first reader there; the op after the last one
    that touches a value on a device waits until the value is copied out. Ops keep their order.
    """
    lanes: dict[str, list[int]] = {}
    for i, draft in enumerate(drafts):
        if draft.step.kind == "launch":
            lanes.setdefault(draft.step.device, []).append(i)
    last: dict[tuple[str, str], int] = {}  # (root, device) -> place of the last op that touches it
    first: dict[int, int] = {}  # copy -> place of its first reader
    for device, lane in lanes.items():
        lane.sort(key=lambda i: (drafts[i].step.start, i))
        for at, i in enumerate(lane):
            step = drafts[i].step
            values = [v for v in (*step.inputs, *step.outputs) if v is not None]
            last.update(((roots[v], device), at) for v in values)
            for need in drafts[i].needs:
                first.setdefault(need, at)
            drafts[i].needs += lane[at - 1 : at] if at else []
    for i, draft in enumerate(drafts):
        step = draft.step
        if step.kind == "copy":
            after = None if step.arrives else last.get((step.name, step.src))
            _hold_copy(drafts, i, lanes, first.get(i, 0), after)


def _hold_copy(
    drafts: Sequence[_Draft], i: int, lanes: Mapping[str, list[int]], first: int, last: int | None
) -> None:
    """Tie copy ``i`` to the lanes of its ends; places of its first reader and of its last user."""
    step = drafts[i].step
    if step.dst != HOST and first > 0:
        drafts[i].needs.append(lanes[step.dst][first - 1])
    if step.src != HOST and last is not None:
        for after in lanes[step.src][last + 1 : last + 2]:
            drafts[after].needs.append(i)


def _order(drafts: Sequence[_Draft]) -> list[Step]:
    """Topological order by predicted start; every dependency becomes a wait."""
    readers: list[list[int]] = [[] for _ in drafts]
    missing = [0] * len(drafts)
    for i, draft in enumerate(drafts):
        for need in set(draft.needs):
            readers[need].append(i)
            missing[i] += 1
    ready = [(d.step.start, i) for i, d in enumerate(drafts) if missing[i] == 0]
    heapq.heapify(ready)
    index: dict[int, int] = {}
    steps: list[Step] = []
    while ready:
        _, i = heapq.heappop(ready)
        index[i] = len(steps)
        needs = tuple(sorted({index[n] for n in drafts[i].needs}))
        steps.append(replace(drafts[i].step, index=len(steps), waits=needs))
        for r in readers[i]:
            missing[r] -= 1
            if missing[r] == 0:
                heapq.heappush(ready, (drafts[r].step.start, r))
    assert len(steps) == len(drafts), "cycle among steps"
    return steps
