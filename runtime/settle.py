"""Settling on a plan by running it: what does not keep its promise is planned again.

A plan is rehearsed, and what was measured goes into the cost model. If planning with these costs
gives another plan that is predicted to be faster by more than runs differ, that one is rehearsed,
too. A plan that shares the work over devices is run in turns with the best of them alone, and has
to beat it. The fastest measured stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from crossdock.runtime.errors import Error
from crossdock.runtime.executor import Deadline
from crossdock.runtime.plan import Plan
from crossdock.runtime.prediction import note_overhead, predict_run, recost, run_mark
from crossdock.runtime.ready import Ready
from crossdock.runtime.rehearsal import Contender, compare_runs, rehearse
from crossdock.runtime.split_choice import Planned
from crossdock.runtime.target import Target
from crossdock.scheduler import Source

HYSTERESIS = 0.03
"""Share of the time that another plan must save: runs differ by that much anyway."""
ROUNDS = 3
REHEARSAL_SECONDS = 2.0


@dataclass
class Settling:
    """How to plan and to make ready; see ``settle``.

    Attributes:
        target: devices and costs.
        make: lowers a plan.
        plan: plans with the costs that are known now.
        alone: plans for one device, by id; None where it cannot be alone.
    """

    target: Target
    make: Callable[[Planned], Ready]
    plan: Callable[[], Planned]
    alone: Callable[[str], Planned | None]

    def settle(self, ready: Ready) -> Ready:
        """The plan that measured best, with predictions to match; it says what it replaced."""
        first = ready.program.plan
        best = self.measured(ready)
        if best is None:
            return ready
        tried = {run_mark(first)}
        for _ in range(ROUNDS):
            other = self._next(best.program.plan, tried)
            if other is None:
                break
            tried.add(run_mark(other.plan))
            found = self.measured(self.make(other))
            if found is not None and _beats(found.program.plan, best.program.plan):
                best = found
        best = self._against_alone(best)
        plan = self._compared(best.program.plan)
        return best.with_plan(plan, _notes(first, plan))

    def _against_alone(self, best: Ready) -> Ready:
        """A plan that shares the work must beat the best device alone, run in turns with it."""
        plan = best.program.plan
        if len({s.device for s in plan.launches()}) < 2:
            return best
        known = [p for p in self.plan().plan.devices if p.single_seconds is not None]
        if not known:
            return best
        single = self.alone(min(known, key=lambda p: p.single_seconds or 0.0).id)
        if single is None:
            return best
        other = self.make(single)
        if single.plan.source != Source.MEASURED.value:
            pair = [_contender(best), _contender(other)]
            try:
                compare_runs(pair, best.graph, self.target.model, REHEARSAL_SECONDS)
            except Error:
                return best
            best, other = self._predicted(best), self._predicted(other)
        return best if _beats(best.program.plan, other.program.plan) else other

    def _predicted(self, ready: Ready) -> Ready:
        """The same with what runs take by what is known now."""
        program = ready.program
        composed = recost(program.plan, program.graph, self.target)
        return ready.with_plan(predict_run(composed, program.graph, self.target.model))

    def _compared(self, plan: Plan) -> Plan:
        """The plan with what each device would take alone, by the costs that are known now."""
        fresh = {part.id: part.single_seconds for part in self.plan().plan.devices}
        used = {s.device for s in plan.launches()}
        parts = tuple(
            replace(
                part, single_seconds=plan.predicted if used == {part.id} else fresh.get(part.id)
            )
            for part in plan.devices
        )
        return replace(plan, devices=parts)

    def again(self, ready: Ready, measured: float, runs: int) -> Ready:
        """The plan for a graph whose runs have become slower than predicted.

        It is rehearsed anew; another plan takes its place only if that measures faster.
        """
        old = ready.program.plan
        fresh = self.measured(ready, anew=True)
        if fresh is None:
            return ready
        best = self.settle(fresh)
        new = best.program.plan
        said = (
            f"planned again after {runs} runs: they took {measured * 1e3:.3f} ms, predicted were "
            f"{old.predicted * 1e3:.3f} ms ({old.low * 1e3:.3f} to {old.high * 1e3:.3f}); "
        )
        same = run_mark(new) == run_mark(old)
        said += "no other plan is faster" if same else f"now {new.predicted * 1e3:.3f} ms"
        return best.with_plan(new, (said,))

    def _next(self, best: Plan, tried: set[tuple[str, str, str]]) -> Planned | None:
        """A plan not tried yet that promises to be faster than the best so far.

        The one for all devices first, then those for the devices alone, best first.
        """
        other = self.plan()
        if run_mark(other.plan) not in tried and _beats(other.plan, best):
            return other
        alone = sorted((p.single_seconds or math.inf, p.id) for p in other.plan.devices)
        for seconds, device in alone:
            if seconds >= (1.0 - HYSTERESIS) * best.predicted:
                break
            single = self.alone(device)
            if single is None or run_mark(single.plan) in tried:
                continue
            if _beats(single.plan, best):
                return single
        return None

    def measured(self, ready: Ready, *, anew: bool = False) -> Ready | None:
        """The same with what its runs take; None where it cannot be rehearsed.

        A plan that has been run before is not run once more, unless ``anew``.
        """
        plan, graph = ready.program.plan, ready.program.graph
        if plan.source == Source.MEASURED.value and not anew:
            return ready
        devices, model = ready.program.devices, self.target.model
        try:
            rehearse(
                lambda feeds, profile: ready.run(feeds, Deadline(), profile=profile),
                plan,
                graph,
                ready.graph,
                devices,
                model,
                REHEARSAL_SECONDS,
                anew=anew,
            )
        except Error:
            return None  # made-up inputs that it cannot run on; the caller's will say what is wrong
        composed = recost(plan, graph, self.target)
        whole = predict_run(composed, graph, model)
        if whole.source != Source.MEASURED.value:
            return None
        note_overhead(whole, composed.predicted, model)
        return ready.with_plan(whole)


def _contender(ready: Ready) -> Contender:
    program = ready.program
    return Contender(
        lambda feeds, profile: ready.run(feeds, Deadline(), profile=profile),
        program.plan,
        program.graph,
        program.devices,
    )


def _beats(plan: Plan, other: Plan) -> bool:
    return plan.predicted < (1.0 - HYSTERESIS) * other.predicted


def _notes(first: Plan, best: Plan) -> tuple[str, ...]:
    if run_mark(first) == run_mark(best):
        return ()
    return (
        f"planned again before the first run: the first plan was predicted to take "
        f"{first.predicted * 1e3:.3f} ms ({first.low * 1e3:.3f} to {first.high * 1e3:.3f}) and "
        f"did not; this one measured {best.predicted * 1e3:.3f} ms",
    )
