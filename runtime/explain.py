"""Why an op runs where it does: every candidate, the margin, how sure it is, what would move it.

Nothing here is done when a plan is made: an ``Explainer`` keeps what the plan was made from and
decides again when it is asked. The margin of a device is that of the whole run: the graph planned
anew with the op kept on it, by the same planner with the same options, ends so much later. Where
the time for that is over, it is the op's own end with all else as planned ("local").
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from crossdock.kernels.refusal import Cause, cause_of
from crossdock.kernels.spec import OpCall
from crossdock.runtime import costing, emulation, planner
from crossdock.runtime.errors import PlanError
from crossdock.runtime.explanation import Candidate, Explanation, lines
from crossdock.runtime.flips import Batch, Probes
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.late import LateExplainer
from crossdock.runtime.plan import Choice, Plan, Step, step_line
from crossdock.runtime.prediction import KEY, OVERHEAD, devices_mark, overhead, recost
from crossdock.runtime.rules import Rules
from crossdock.runtime.stage_log import StagesExplainer
from crossdock.runtime.target import Target

Z80 = 1.2815515655446004
"""Standard deviations from the middle to an end of an 80 % interval of a normal distribution."""
COMPOSED = "composed"
MARGINS = 2 / 3
"""Share of the time for explaining all ops that margins may take."""
BUDGET_S = 5.0
"""Seconds that an explanation may take."""


@dataclass(frozen=True)
class _Margin:
    """A comparison of the winner with the runner-up."""

    runner_up: str
    seconds: float
    sigma: float
    scope: str


class Explainer:
    """Explains the plans of one graph, target and options."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        options: planner.Options,
        batch: Batch | None = None,
    ) -> None:
        self.graph, self.target, self.options = graph, target, options
        self._batch = batch

    @cached_property
    def _calls(self) -> dict[str, OpCall]:
        return costing.op_calls(self.graph)

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {n.name: n for n in self.graph.nodes}

    @cached_property
    def _planning(self) -> planner.Planning:
        return planner.Planning(self.graph, self.target, self.options)

    @cached_property
    def _probes(self) -> Probes:
        return Probes(self._planning, self._batch)

    def text(self, plan: Plan, name: str) -> str:
        """``Plan.explain_op``."""
        step = plan.find(name)
        return "\n".join([step_line(step), *lines(self.explain(plan, name))])

    def explain(self, plan: Plan, name: str, budget_s: float = BUDGET_S) -> Explanation:
        """Explain one op of a plan; raises PlanError for one it does not have."""
        deadline = time.monotonic() + budget_s
        step = plan.find(name)
        return self._flipped(plan, self._explained(plan, step, deadline), deadline)

    def explain_all(
        self, plan: Plan, budget_s: float = 4 * BUDGET_S, *, flips: bool = True
    ) -> tuple[Explanation, ...]:
        """Explain every op, those that take longest first.

        Margins may take two thirds of the time; the ops it does not reach have local ones. What
        would move an op is looked for in the rest: what is planned for one tells of all.
        """
        began = time.monotonic()
        steps = sorted(plan.launches(), key=lambda s: -s.seconds)
        share = MARGINS if flips else 1.0
        found = {s.name: self._explained(plan, s, began + share * budget_s) for s in steps}
        if flips:
            deadline = began + budget_s
            found = {name: self._flipped(plan, e, deadline) for name, e in found.items()}
        return tuple(found[s.name] for s in plan.launches())

    def alternatives(self, step: Step, deadline: float) -> dict[str, Plan]:
        """The plans with an op on each other device that may run it, by device id."""
        made: dict[str, Plan] = {}
        for choice in step.choices:
            if choice.device == step.device or choice.seconds is None:
                continue
            if time.monotonic() > deadline:
                break
            homes = {**self.options.homes, step.name: choice.device}
            try:
                options = replace(self.options, homes=homes)
                made[choice.device] = self._planning.under(self.target, options).plan()
            except PlanError:  # it fits there alone, but not with all that is there
                continue
        return made

    def _explained(self, plan: Plan, step: Step, deadline: float) -> Explanation:
        others = self.alternatives(step, deadline)
        later = {d: self._later(plan, other) for d, other in others.items()}
        rows = self._candidates(plan, step, later)
        margin = _local(step) or _by_kernel(rows)
        if later:
            best = min(later, key=lambda d: later[d])
            sigma = self._sigma(plan, others[best])
            margin = _Margin(best, later[best], sigma, "whole")
        made = Explanation(step.name, step.op, step.device, step.kernel, step.reason, rows)
        made = replace(made, objective=str(self.options.objective))
        return _with(made, margin)

    def _flipped(self, plan: Plan, made: Explanation, deadline: float) -> Explanation:
        """With what would move the op, as far as there is time."""
        if time.monotonic() > deadline:
            return made
        other = made.runner_up if made.scope in ("whole", "local") else None
        return replace(made, flips=self._probes.flips(plan, made.name, other, deadline))

    def _later(self, plan: Plan, other: Plan) -> float:
        """How much longer another plan takes, in seconds, with both composed of their steps.

        Of a plan that has run more is known than of one that has not; that must not decide. What
        runs take beyond their steps counts where it is known of both.
        """
        beyond = [overhead(p, self.target.model) for p in (plan, other)]
        mine, theirs = self._composed(plan, beyond[0]), self._composed(other, beyond[1])
        return theirs - mine + (beyond[1] - beyond[0] if all(beyond) else 0.0)

    def _sigma(self, a: Plan, b: Plan) -> float:
        """Deviation of the difference of two plans' times; what both have says nothing of it."""
        mine, theirs = (set(map(_key, plan.steps)) for plan in (a, b))
        apart = [s for s in a.steps if _key(s) not in theirs]
        spread = _spread([*apart, *(s for s in b.steps if _key(s) not in mine)])
        marks = {devices_mark(a), devices_mark(b)}
        known = [self.target.model.estimate(m, OVERHEAD, KEY) for m in marks if len(marks) > 1]
        beyond = [_deviation(e.low or 0.0, e.high or 0.0) for e in known]
        return math.hypot(spread, *beyond)

    def _composed(self, plan: Plan, beyond: float) -> float:
        """What a plan's steps take together."""
        if plan.source == COMPOSED:
            return plan.predicted - beyond
        return recost(plan, self.graph, self.target).predicted

    def _candidates(self, plan: Plan, step: Step, later: dict[str, float]) -> tuple[Candidate, ...]:
        rows: list[Candidate] = []
        for choice in step.choices:
            whole = plan.predicted if choice.device == step.device else None
            if choice.device in later:
                whole = plan.predicted + later[choice.device]
            rows += self._on_device(plan, step, choice, whole)
        return tuple(rows)

    def _on_device(
        self, plan: Plan, step: Step, choice: Choice, whole: float | None
    ) -> list[Candidate]:
        """The kernels of one device, best first; those that do not fit after those that do."""
        call = self._calls[step.name]
        info = self.target.info(choice.device)
        found = emulation.candidates(call, info)
        room = self._head_room(plan, step, choice.device)
        here = choice.device == step.device
        rows = []
        refused = [(k.name, self.target.permission.refuses(k)) for k in found.fitting]
        rejected = [*((name, why) for name, why in refused if why is not None), *found.rejected]
        for kernel in self.target.permission.permitted(found.fitting):
            row = self._timed(choice, kernel.name, call)
            chosen = here and kernel.name == step.kernel
            best = kernel.name == choice.kernel
            rows.append(replace(row, head_room=room, chosen=chosen, whole=whole if best else None))
        rows.sort(key=lambda row: (row.kernel != choice.kernel, row.seconds or 0.0))
        others = [
            Candidate(choice.device, kernel, str(cause_of(why)), str(why))
            for kernel, why in rejected
        ]
        if not found.fitting:
            lead = Candidate(choice.device, "", choice.cause, choice.reason, head_room=room)
            return [lead, *others]
        return rows + others

    def _timed(self, choice: Choice, kernel: str, call: OpCall) -> Candidate:
        """A kernel that fits, with its times on the device of ``choice``."""
        info = self.target.info(choice.device)
        estimate = self.target.model.estimate(
            info.fingerprint, kernel, call.key(), costing.cost_work(call)
        )
        seconds, low, high = costing.interval(estimate)
        rates = self.target.model.rates(info.fingerprint)
        launch = min(seconds, rates.launch_s) if rates is not None else 0.0
        finish = choice.finish
        if finish is not None and choice.seconds is not None:
            finish += seconds - choice.seconds
        return Candidate(
            choice.device,
            kernel,
            choice.cause,
            choice.reason,
            launch,
            seconds - launch,
            low,
            high,
            estimate.source.value,
            choice.transfer_in,
            choice.queue_wait,
            finish,
        )

    def _head_room(self, plan: Plan, step: Step, device: str) -> int:
        """Bytes left on a device with the op there; its operands count in full where it is not."""
        info = self.target.info(device)
        options = self.options
        rules = Rules(options.constraints, self.target, self.graph, options.homes, options.sites)
        room = rules.memory(info) - plan.device(device).peak_bytes
        if device != step.device:
            values = dict.fromkeys((*self._nodes[step.name].operands, *step.outputs))
            room -= sum(self.graph.specs[v].nbytes for v in values)
        return int(room)


def attach(
    plan: Plan, graph: Graph, target: Target, options: planner.Options, batch: Batch | None = None
) -> Plan:
    """The plan with what it was made from, to be explained by."""
    return replace(plan, explainer=Explainer(graph, target, options, batch))


def explain_op(plan: Plan, name: str, budget_s: float = BUDGET_S) -> Explanation:
    """Explain an op of any plan; one read from a file has only what is in it.

    Raises:
        PlanError: there is no such op; the message names those that come close.
    """
    step = plan.find(name)
    for part in _parts(plan):
        explainer = _explainer(part)
        if explainer is not None and _has(part, step.name):
            return explainer.explain(part, step.name, budget_s)
    return _bare(step)


def explain_all(
    plan: Plan, budget_s: float = 4 * BUDGET_S, *, flips: bool = True
) -> tuple[Explanation, ...]:
    """Explain every op of a plan, in order; see ``Explainer.explain_all``."""
    found: dict[str, Explanation] = {}
    deadline = time.monotonic() + budget_s
    for part in _parts(plan):
        explainer = _explainer(part)
        if explainer is not None:
            left = max(0.0, deadline - time.monotonic())
            rows = explainer.explain_all(part, left, flips=flips)
            found.update((row.name, row) for row in rows)
    return tuple(found.get(s.name) or _bare(s) for s in plan.launches())


def _parts(plan: Plan) -> tuple[Plan, ...]:
    return plan.explainer.plans if isinstance(plan.explainer, StagesExplainer) else (plan,)


def _explainer(plan: Plan) -> Explainer | None:
    """What knows how a plan was made, where that is still known."""
    found = plan.explainer
    found = found.made if isinstance(found, LateExplainer) else found
    return found if isinstance(found, Explainer) else None


def _has(plan: Plan, name: str) -> bool:
    return any(s.name == name for s in plan.launches())


def _bare(step: Step) -> Explanation:
    """What a step says of itself."""
    rows = tuple(
        Candidate(
            c.device, c.kernel, c.cause, c.reason, None if c.seconds is None else 0.0, c.seconds,
            c.low, c.high, c.source, c.transfer_in, c.queue_wait, c.finish,
            chosen=c.device == step.device,
        )
        for c in step.choices
    )  # fmt: skip
    return _with(Explanation(step.name, step.op, step.device, step.kernel, step.reason, rows),
                 _local(step))  # fmt: skip


def _with(made: Explanation, margin: _Margin | None) -> Explanation:
    """An explanation with its margin."""
    if margin is None:
        return made
    return replace(
        made,
        runner_up=margin.runner_up,
        margin=margin.seconds,
        sigma=margin.sigma,
        confidence=_confidence(margin.seconds, margin.sigma),
        scope=margin.scope,
    )


def _spread(steps: Sequence[Step]) -> float:
    """Deviation of a sum of steps: what is wrong of one op is wrong of its device's others, too."""
    of_device: dict[str, float] = {}
    for s in steps:
        of_device[s.device] = of_device.get(s.device, 0.0) + _deviation(s.low, s.high)
    return math.hypot(*of_device.values())


def _key(step: Step) -> tuple[str, ...]:
    return step.kind, step.name, step.device, step.kernel, step.src, step.dst


def _deviation(low: float, high: float) -> float:
    return (high - low) / 2 / Z80


def _local(step: Step) -> _Margin | None:
    """Against the best other device by the op's own end."""
    home = next((c for c in step.choices if c.device == step.device), None)
    others = [c for c in step.choices if c is not home and c.finish is not None]
    if home is None or home.finish is None or not others:
        return None
    best = min(others, key=lambda c: c.finish or 0.0)
    parts = [c for c in (home, best) if c.low is not None and c.high is not None]
    sigma = math.hypot(*(_deviation(c.low or 0.0, c.high or 0.0) for c in parts))
    return _Margin(best.device, (best.finish or 0.0) - home.finish, sigma, "local")


def _by_kernel(rows: Sequence[Candidate]) -> _Margin | None:
    """Against the best other kernel of the only device there is."""
    winner = next((r for r in rows if r.chosen and r.seconds is not None), None)
    others = [r for r in rows if not r.chosen and r.seconds is not None and r.cause == Cause.OK]
    if winner is None or not others:
        return None
    best = min(others, key=lambda r: r.seconds or 0.0)
    sigma = math.hypot(*(_deviation(r.low or 0.0, r.high or 0.0) for r in (winner, best)))
    margin = (best.seconds or 0.0) - (winner.seconds or 0.0)
    return _Margin(f"{best.device}/{best.kernel}", margin, sigma, "kernel")


def _confidence(margin: float, sigma: float) -> float:
    if sigma > 0:
        return statistics.NormalDist().cdf(margin / sigma)
    return 0.5 if margin == 0 else float(margin > 0)
