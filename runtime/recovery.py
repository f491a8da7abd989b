"""Going on with a run when a device fails: what it had made and is still good is not made again.

Recovery by lineage (as of Spark's resilient data sets: Zaharia et al., NSDI 2012): once the other
queues have settled, the values that devices still hold and the inputs that were fed are the roots;
the rest of the graph is placed on the devices left, and run. Ops that were on such a device stay
there, with the kernel they had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from crossdock.runtime import degrade, fallback, planner
from crossdock.runtime.config import PREPARING
from crossdock.runtime.errors import DeviceError, PlanError
from crossdock.runtime.executor import Outcome, Run, late
from crossdock.runtime.fleet import Fleet, Pressure, hopeless
from crossdock.runtime.graph import Graph
from crossdock.runtime.knowledge import target_of
from crossdock.runtime.lineage import Lineage, shy
from crossdock.runtime.losses import let_go, said
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.plan_parts import Key
from crossdock.runtime.pool import Deadline, free_caches
from crossdock.runtime.prepare import concerning
from crossdock.runtime.ready import Ready, check_free, make_ready
from crossdock.runtime.receipt import Receipt, Recovery, recovered_receipt
from crossdock.runtime.residency import matches
from crossdock.runtime.tensor import Array

ATTEMPTS = 4
"""How often a run is gone on with for each device that it began with."""


class Rescue:
    """Watches over one run of ``ready``; costs nothing unless a device fails."""

    __slots__ = ("_arrays", "_began", "_deadline", "_fleet", "_lineage", "_ready", "told")

    def __init__(
        self, fleet: Fleet, ready: Ready, arrays: Mapping[str, Array], deadline: Deadline
    ) -> None:
        self._fleet, self._ready, self._arrays = fleet, ready, arrays
        self._deadline = deadline
        self._lineage: Lineage | None = None
        self._began = time.perf_counter()
        self.told: list[Recovery] = []

    def salvage(self, run: Run) -> None:
        """Save what a failed run has made; called before it gives its memory up."""
        self._known().salvage(run)

    def _known(self) -> Lineage:
        if self._lineage is None:
            program = self._ready.program
            kept_off = shy(program.graph, self._fleet.config.constraints.residency)
            self._lineage = Lineage(program, self._arrays, kept_off)
        return self._lineage

    def recover(self, error: DeviceError) -> Outcome:
        """The outcome of the run, without what failed.

        Raises:
            DeviceError: nothing is left to run it.
            Timeout, Cancelled: the caller waits no more.
        """
        pressure = Pressure()
        try:
            for _ in range(ATTEMPTS * len(self._ready.program.devices)):
                let_go(error)
                try:
                    self._go_on(error, pressure)
                except DeviceError as again:
                    if again is error or isinstance(again.__cause__, PlanError):
                        self._fleet.relent(again)
                        raise
                    error = again
                else:
                    seconds = time.perf_counter() - self._began
                    return Outcome(self._known().outputs(), seconds, {}, self._began)
            raise error
        finally:
            del error  # with the frames that it went through, which hold devices' memory

    def _go_on(self, error: DeviceError, pressure: Pressure) -> None:
        """Run what is left without what failed; what it makes is held then.

        Raises:
            DeviceError: ``error``, or one caused by a PlanError, where nothing is left to run it;
                another one where a device failed at it.
        """
        lineage, action = self._known(), self._fleet.survive(error, pressure)
        if error.device in self._fleet.tight:
            self._ready.program.give_up(error.device)
            free_caches()
        rest = lineage.rest()
        if rest is None:
            self._tell(error, action, None)
            return
        if self._deadline.over():
            raise late(self._ready.program, self._deadline)
        try:
            ready = self._fleet.prepared(partial(self._placed, rest))
            feeds = lineage.feeds(rest)  # after it was found that inputs may be on the host
        except PlanError as why:
            raise hopeless(error, why) from why
        self._tell(error, action, ready.program.plan)
        self.told += ready.recorder.recoveries
        made = ready.run(feeds, self._deadline, profile=False, salvage=self.salvage)
        lineage.held.update(made.outputs)
        lineage.note(ready.program.plan.steps)

    def _placed(self, rest: Graph) -> Ready:
        """The rest of the graph made ready on the devices left; the caller may try again."""
        with PREPARING:
            return placed(rest, self._ready, self._fleet)

    def _tell(self, error: DeviceError, action: str, plan: Plan | None) -> None:
        lineage = self._known()
        launches = () if plan is None else plan.launches()
        self.told.append(
            Recovery(
                device=error.device,
                error=said(error),
                action=action,
                kept=dict(lineage.kept),
                redone=tuple(s.name for s in launches if s.name in lineage.ended),
                placed={s.name: s.device for s in launches},
            )
        )

    def receipt(self, seconds: float) -> Receipt:
        """What the run did in all."""
        return self.amendment()(self._ready.recorder.receipt(seconds, {}))

    def amendment(self) -> Callable[[Receipt], Receipt]:
        """What makes of the receipt of the first plan that of the run; holds no device memory."""
        lineage = self._known()
        return partial(
            recovered_receipt,
            ended=tuple(lineage.ended.values()),
            physical={d.id: d.physical_id for d in self._ready.program.plan.devices},
            crossed=tuple(lineage.crossed),
            told=tuple(self.told),
        )


def placed(rest: Graph, first: Ready, fleet: Fleet) -> Ready:
    """The rest of a graph on the devices left.

    Raises:
        PlanError: there is no placement, or it does not fit.
        DeviceError: a device fails at it.
    """
    config, devices = fleet.now()
    asked = frozenset(devices if config.devices is None else config.devices)
    target = target_of(config, devices, asked)
    before = {s.name: s for s in first.program.plan.launches()}
    able = {name for name in devices if name not in target.broken}
    staying = able - fleet.tight
    homes = {s.name: s.device for s in before.values() if s.device in staying}
    held = first.program.held
    left = concerning(rest, _pinned(config.constraints, rest, homes))
    left = _beside(left, rest, held, {d.id: d.memory_bytes for d in target.devices})
    config = replace(config, constraints=left)
    options = planner.Options(
        "auto",
        config.constraints,
        config.expected_runs,
        objective=config.objective,
        homes=homes,
        kernels={name: (step.device, step.kernel) for name, step in before.items()},
        resident=frozenset(held),
    )
    found = degrade.plan_best(rest, target, options, split=False)
    fallback.check(found.plan, asked, config.fallback, rest)
    check_free(found.plan)
    return make_ready(
        rest,
        found,
        asked,
        devices,
        1,
        target.capacity,
        kept=[first],
        watched=config.check_finite,
        watchdog=config.watchdog,
        alone=not config.watched,
        checks=config.checks,
        steady=config.deterministic,
    )


def _beside(
    constraints: Constraints,
    rest: Graph,
    held: Mapping[tuple[str, Key], int],
    memory: Mapping[str, int],
) -> Constraints:
    """With the memory of devices that what is held there for other ops leaves to the rest."""
    mine = {*rest.constants, *(node.name for node in rest.nodes)}
    budgets = {**constraints.memory}
    for (device, (name, _)), nbytes in held.items():
        if device != HOST and name not in mine:
            budgets[device] = max(0, budgets.get(device, memory[device]) - nbytes)
    return replace(constraints, memory=budgets)


def _pinned(constraints: Constraints, rest: Graph, homes: Mapping[str, str]) -> Constraints:
    """With pins for the ops alone that have no home yet: a pin may be younger than a home."""
    pins = {
        node.name: device
        for node in rest.nodes
        for pattern, device in constraints.pin.items()
        if node.name not in homes and matches(pattern, node)
    }
    return replace(constraints, pin=pins)
