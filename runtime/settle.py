"""Settling on a plan by running it: what does not keep its promise is planned again.

A plan is rehearsed, and what was measured goes into the cost model. If planning with these costs
gives another plan that is predicted to be faster by more than runs differ, that one is rehearsed,
too. A plan that shares the work over devices is run in turns with the best of them alone, and has
to beat it. The fastest measured stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from crossdock.runtime.device_array import DeviceArray, Ledger
from crossdock.runtime.errors import Error
from crossdock.runtime.executor import Outcome
from crossdock.runtime.keeping import Keeping
from crossdock.runtime.plan import Plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.prediction import note_overhead, predict_run, recost, run_mark
from crossdock.runtime.ready import Ready
from crossdock.runtime.rehearsal import Contender, compare_runs, rehearse
from crossdock.runtime.split_choice import Planned
from crossdock.runtime.target import Target
from crossdock.runtime.tensor import Array
from crossdock.runtime.transit import Fed
from crossdock.scheduler import Source

HYSTERESIS = 0.03
"""Share of the time that another plan must save: runs differ by that much anyway."""
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
        first = fresh = ready.program.plan
        best = self.measured(ready)
        if best is None:
            return ready
        if best is not ready:  # it had not run before: plan with what it took
            other = self.plan()
            fresh = other.plan
            if run_mark(fresh) != run_mark(first) and beats(fresh, best.program.plan):
                best = self._better(best, self.make(other))
        alone = {p.id: p.single_seconds for p in fresh.devices if p.single_seconds is not None}
        best = self._against_alone(best, alone)
        plan = _compared(best.program.plan, alone)
        return best.with_plan(plan, _notes(first, plan))

    def _better(self, best: Ready, other: Ready) -> Ready:
        """The one that measures faster; the other must save enough to take its place."""
        found = self.measured(other)
        if found is not None and beats(found.program.plan, best.program.plan):
            return found
        return best

    def _against_alone(self, best: Ready, alone: dict[str, float]) -> Ready:
        """The best plan, or a device alone that it does not beat.

        ``alone`` is what each device is predicted to take by itself; what is measured replaces it.
        A plan that shares the work is run in turns with the best device; one that keeps to a
        device, only with those that promise more.
        """
        left = set(self.target.asked & set(alone))
        while left:
            plan = best.program.plan
            used = {s.device for s in plan.launches()}
            device = min(left, key=lambda name: (alone[name], name))
            left = left - {device}
            shares = len(used) > 1
            if used == {device} or not (shares or alone[device] < plan.predicted):
                continue
            single = self.alone(device)
            if single is None or run_mark(single.plan) == run_mark(plan):
                continue
            best, other = self._in_turns(best, self.make(single))
            alone[device] = other.program.plan.predicted
            limit = (1.0 - HYSTERESIS if shares else 1.0) * alone[device]
            if best.program.plan.predicted > limit:
                best = other
            left = left if len({s.device for s in best.program.plan.launches()}) == 1 else set()
        return best

    def _in_turns(self, best: Ready, other: Ready) -> tuple[Ready, Ready]:
        """Both with what they take when run in turns, unless that is known of both."""
        plans = (best.program.plan, other.program.plan)
        if all(plan.source == Source.MEASURED.value for plan in plans):
            return best, other
        try:
            pair = [_contender(best), _contender(other)]
            compare_runs(pair, best.graph, self.target.model, REHEARSAL_SECONDS)
        except Error:
            return best, other
        return self._predicted(best), self._predicted(other)

    def rival(self, best: Ready, planned: Planned) -> Ready:
        """The better of what is ready and of another plan, run in turns."""
        return self.challenge(best, self.make(planned))

    def challenge(self, best: Ready, other: Ready) -> Ready:
        """The better of two, run in turns: the other one has to save enough to take its place."""
        best, other = self._in_turns(best, other)
        return other if beats(other.program.plan, best.program.plan) else best

    def _predicted(self, ready: Ready) -> Ready:
        """The same with what runs take by what is known now."""
        program = ready.program
        composed = recost(program.plan, program.graph, self.target)
        return ready.with_plan(predict_run(composed, program.graph, self.target.model))

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
                Rehearsed(ready),
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


def _compared(plan: Plan, alone: Mapping[str, float]) -> Plan:
    """The plan with what each device would take alone."""
    used = {s.device for s in plan.launches()}
    parts = tuple(
        replace(part, single_seconds=plan.predicted if used == {part.id} else alone.get(part.id))
        for part in plan.devices
    )
    return replace(plan, devices=parts)


class Rehearsed:
    """Runs something ready on made-up inputs, which lie where it is planned to have them."""

    def __init__(self, ready: Ready) -> None:
        self._ready = ready
        self._given: Mapping[str, Array] | None = None
        self._placed: Mapping[str, Fed] = {}

    def __call__(self, feeds: Mapping[str, Array], profile: bool) -> Outcome:
        """Run once; inputs that are the same ones as before lie where they did."""
        ready, sites = self._ready, self._ready.sites
        if feeds is not self._given:
            self._given, self._placed = feeds, self._put(feeds)
        keeping = Keeping(Ledger({})) if sites.stays else None
        return ready.run(self._placed, Deadline(), profile=profile, keeping=keeping)

    def _put(self, feeds: Mapping[str, Array]) -> dict[str, Fed]:
        devices, placed = self._ready.program.devices, dict[str, Fed](feeds)
        for name, where in self._ready.sites.feeds.items():
            if where in devices:
                placed[name] = DeviceArray.put(devices[where], feeds[name], name)
        return placed


def _contender(ready: Ready) -> Contender:
    program = ready.program
    return Contender(
        Rehearsed(ready),
        program.plan,
        program.graph,
        program.devices,
    )


def beats(plan: Plan, other: Plan) -> bool:
    """Whether a plan saves enough to take another's place."""
    return plan.predicted < (1.0 - HYSTERESIS) * other.predicted


def _notes(first: Plan, best: Plan) -> tuple[str, ...]:
    if run_mark(first) == run_mark(best):
        return ()
    return (
        f"planned again before the first run: the first plan was predicted to take "
        f"{first.predicted * 1e3:.3f} ms ({first.low * 1e3:.3f} to {first.high * 1e3:.3f}) and "
        f"did not; this one measured {best.predicted * 1e3:.3f} ms",
    )
