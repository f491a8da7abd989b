"""A planned graph made ready to run: its program, its instances, and who writes its receipts."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, cast

from crossdock.devices import topology
from crossdock.devices.base import Device, Span
from crossdock.runtime import limits
from crossdock.runtime.checks import Checks
from crossdock.runtime.conduct import conducts
from crossdock.runtime.config import Progress
from crossdock.runtime.direct import Direct
from crossdock.runtime.errors import OutOfMemory
from crossdock.runtime.executor import Care, Outcome, Run
from crossdock.runtime.free_memory import free_bytes
from crossdock.runtime.graph import Graph
from crossdock.runtime.keeping import Keeping
from crossdock.runtime.plan import HOST, Plan, Step
from crossdock.runtime.pool import TURN, Deadline, Pool, free_caches
from crossdock.runtime.program import Instance, Program, Windows, instantiate
from crossdock.runtime.progress import look_around
from crossdock.runtime.queued import QueuedRun
from crossdock.runtime.receipt import Receipt, Recovery, make_receipt, resident_receipt
from crossdock.runtime.sites import ON_HOST, Sites
from crossdock.runtime.tensor import Array
from crossdock.runtime.transit import Fed, NoRoom, Transit, begin
from crossdock.runtime.turns import Flow, Share, Turn

if TYPE_CHECKING:
    from crossdock.runtime.split_choice import Planned

WINDOW = 32
"""Runs whose median is compared with what was predicted."""
PATIENCE = 2
"""Windows in a row that must be too slow, at first."""
LOOKS = 5
"""Times that a pace is taken: a thread that wakes up is late."""


@dataclass
class Recorder:
    """Writes the receipts of a plan's runs; holds no memory of a device.

    ``notes`` say how it came to this plan, where it was not the first, and ``recoveries`` what
    failed while it was made ready.
    """

    plan: Plan
    asked: frozenset[str]
    notes: tuple[str, ...] = ()
    recoveries: tuple[Recovery, ...] = ()

    @cached_property
    def _digest(self) -> str:
        return self.plan.digest()

    def receipt(
        self,
        seconds: float,
        spans: Mapping[str, list[Span]],
        notes: tuple[str, ...] = (),
        avoided: Sequence[Step] = (),
        pulled: Mapping[str, int] | None = None,
        otherwise: Sequence[Step] = (),
    ) -> Receipt:
        """The record of a run that took ``seconds``, with the spans of its steps if profiled.

        ``notes`` say what the devices had to do without in it; ``avoided`` are copies that were not
        made, ``pulled`` bytes copied beside the plan, by link, and ``otherwise`` copies of the plan
        that crossed another link.
        """
        made = self._made(spans) if spans else self._unprofiled
        made = replace(made, measured=seconds, notes=(*made.notes, *notes))
        if not (avoided or pulled or otherwise):
            return made
        return resident_receipt(made, avoided, pulled or {}, otherwise)

    @cached_property
    def _unprofiled(self) -> Receipt:
        """What all runs that are not profiled have in common; so their receipts cost little."""
        return self._made({})

    def _made(self, spans: Mapping[str, list[Span]]) -> Receipt:
        made = make_receipt(self.plan, self._digest, 0.0, spans, self.asked)
        notes = (*made.notes, *self.notes, *map(str, self.recoveries))
        return replace(made, notes=notes, recoveries=self.recoveries)


class Watch:
    """Looks whether runs take longer than their plan said, for long enough to mean it.

    Each time that it was wrong to worry, it waits twice as long before it does again.
    """

    def __init__(self, high: float) -> None:
        """``high`` is the upper end of the plan's prediction, in seconds."""
        self.high = high
        self.patience = PATIENCE
        self._late = 0
        self._seen: deque[float] = deque(maxlen=WINDOW)
        self.count = 0

    def note(self, seconds: float) -> bool:
        """Note a run; True where the runs of several windows in a row were too slow."""
        self._seen.append(seconds)
        self.count += 1
        if self.count % WINDOW:
            return False
        self._late = self._late + 1 if self.median > self.high else 0
        if self._late < self.patience:
            return False
        self._late = 0
        self.patience *= 2
        return True

    @property
    def median(self) -> float:
        """Of the newest runs."""
        return statistics.median(self._seen)


class Drift:
    """Looks whether runs keep coming with inputs, and want their outputs, elsewhere than planned.

    Each time that it has said so, it waits twice as long before it does again.
    """

    def __init__(self, patience: int = WINDOW) -> None:
        """``patience`` is how many runs in a row must be the same."""
        self.patience = patience
        self._seen: Sites | None = None
        self.count = 0

    def note(self, now: Sites, planned: Sites) -> bool:
        """Note a run; True where it is time to plan for what there is now."""
        if now == planned:
            self.count = 0
            return False
        self.count = self.count + 1 if now == self._seen else 1
        self._seen = now
        if self.count < self.patience:
            return False
        self.patience *= 2
        self.count = 0
        return True


@dataclass
class Ready:
    """A graph of fixed shapes, planned and lowered.

    ``graph`` is as its caller feeds it; ``capacity`` says how many devices of a resource group the
    plan lets compute at once. A device may take ``watchdog`` seconds for any step;
    ``alone``: a caller may do a run on the host itself, where nobody can look at it; ``checks``
    are made of its steps and copies. ``replan`` gives
    what to run instead when the watch has seen runs that take too long; the caller of it holds the
    lock of planning. ``sites`` says where it was planned to have its inputs and outputs, ``resite``
    gives what to run where ``drift`` has seen them elsewhere for long. Runs of one ``flow`` share
    their turns on the devices.
    """

    graph: Graph
    program: Program
    pool: Pool
    recorder: Recorder
    capacity: Mapping[str, int]
    watch: Watch
    watchdog: float = math.inf
    alone: bool = True
    checks: Checks | None = None
    replan: Callable[[Ready], Ready] | None = None
    flow: Flow = field(default_factory=Flow)
    sites: Sites = ON_HOST
    resite: Callable[[Ready, Sites], Ready] | None = None
    drift: Drift = field(default_factory=Drift)

    def run(
        self,
        arrays: Mapping[str, Fed],
        deadline: Deadline,
        *,
        profile: bool,
        keeping: Keeping | None = None,
        salvage: Callable[[Run], None] | None = None,
    ) -> Outcome:
        """Run once, with arrays of the inputs' types and shapes.

        With ``keeping`` the outputs stay on the devices that make them.
        ``salvage`` is called with a run that a device has failed, before its memory is given up.

        Raises:
            NoRoom, MemoryBudget: there is no room for outputs that are to stay, even with nothing
                kept for runs to come.
        """
        try:
            instance = self.pool.take(deadline)
        except OutOfMemory as error:
            error.planned = _planned(self.program.plan, error.device)
            raise
        give = partial(self.pool.give, instance)
        try:
            transit = self._transit(instance, arrays, keeping)
        except BaseException:
            give()
            raise
        fed = cast("Mapping[str, Array]", arrays if transit is None else transit.feeds)
        turn = Turn(self.shares, self.flow)
        care = Care(salvage, self.pool.discard, self.watchdog, self.checks, turn, transit)
        try:
            return self._ran(instance, give, fed, deadline, care, profile=profile)
        except BaseException as error:
            if transit is not None:
                transit.failed(error)
            raise

    def _ran(
        self,
        instance: Instance,
        give: Callable[[], None],
        arrays: Mapping[str, Array],
        deadline: Deadline,
        care: Care,
        *,
        profile: bool,
    ) -> Outcome:
        """Run on an instance in the way that suits the program and the caller."""
        brief = deadline.seconds is None and self._brief
        host = brief and self.alone and self.program.host_only
        conducted = brief and self.checks is None and not profile and conducts(self.program)
        if not (self.program.watched or host or conducted):
            queued = QueuedRun(self.program, instance, give, profile=profile, care=care)
            return queued.across(arrays, deadline)
        run = Run(self.program, instance, give, profile=profile, care=care)
        if self.program.watched:
            return run.watched(arrays, deadline)
        return run.inline(arrays) if host else run.conducted(arrays, deadline)

    def _transit(
        self, instance: Instance, arrays: Mapping[str, Fed], keeping: Keeping | None
    ) -> Transit | None:
        checks = self.checks
        looks = {"checked": checks is not None, "verified": checks is not None and checks.transfers}
        with suppress(NoRoom):
            return begin(self.program, instance, arrays, keeping, **looks)
        free_caches()
        return begin(self.program, instance, arrays, keeping, **looks)

    @cached_property
    def direct(self) -> Direct | None:
        """The short way for runs that are neither profiled nor timed out; None where none is."""
        short = self.alone and self._brief
        if self.program.watched or not short or not Direct.suits(self.graph, self.program):
            return None
        return Direct(self.program, self.pool, self.shares, self.flow)

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """Of the devices that a run keeps busy."""
        used = dict.fromkeys(part.device for part in self.program.segments)
        return tuple(self.flow.share(self.program.devices[name]) for name in used)

    @property
    def _brief(self) -> bool:
        """Whether the caller may do work itself: it is deaf to Ctrl-C, and to being cancelled."""
        return self.program.plan.predicted < TURN

    def slowdown(self) -> float:
        """How much longer a run takes at the devices' pace of this moment than at their usual."""
        from crossdock.runtime import costing  # what plans are made with takes long to load
        from crossdock.runtime.prediction import pace_factor

        plan, model = self.program.plan, costing.store().model
        prints = {p.id: p.fingerprint for p in plan.devices}
        now = {
            prints[name]: statistics.median(device.pace() for _ in range(LOOKS))
            for name, device in self.program.devices.items()
        }
        calls = costing.op_calls(self.program.graph)
        here = pace_factor(plan, calls, now.__getitem__, model)
        return here / pace_factor(plan, calls, model.pace, model)

    def with_plan(self, plan: Plan, notes: Sequence[str] = ()) -> Ready:
        """The same, with other predictions for the same steps."""
        plan = replace(plan, algorithms=self.program.plan.algorithms)
        recorder = Recorder(plan, self.recorder.asked, tuple(notes))
        program = replace(self.program, plan=plan)
        return replace(self, program=program, recorder=recorder, watch=Watch(plan.high))


def _planned(plan: Plan, device: str) -> int:
    """Bytes that a plan takes of a device."""
    return sum(part.peak_bytes for part in plan.devices if part.id == device)


def make_ready(
    graph: Graph,
    planned: Planned,
    asked: frozenset[str],
    devices: Mapping[str, Device],
    runs_at_once: int,
    capacity: Mapping[str, int],
    progress: Progress | None = None,
    kept: Sequence[Ready] = (),
    *,
    watched: bool = False,
    watchdog: float = math.inf,
    alone: bool = True,
    checks: Checks | None = None,
    steady: bool = False,
) -> Ready:
    """Lower a plan of ``graph`` for opened devices, sharing weights with what is ready already.

    ``watched``: its runs look for what is not finite; ``steady``: nothing in it is chosen by
    measurements. ``watchdog``, ``alone``, ``checks``: see ``Ready``.

    Raises:
        CompileError: a kernel does not build.
    """
    from crossdock.runtime.lower import lower  # kernels take long to load

    plan, split = planned.plan, planned.split
    used = {HOST, *(s.device for s in plan.steps), *plan.feeds_on.values()}
    opened = {d: devices[d] for d in devices if d in used}
    windows = Windows(graph.output_specs, split.inputs, split.outputs)
    shared = [r.program for r in kept]
    singly = checks is not None and checks.share > 0
    verified = checks is not None and checks.transfers
    try:
        program = lower(
            split.graph,
            plan,
            opened,
            progress,
            shared,
            windows,
            watched=watched,
            singly=singly,
            verified=verified,
            steady=steady,
        )
    except OutOfMemory as error:
        error.planned = _planned(plan, error.device)
        raise
    pool = Pool(partial(instantiate, program), runs_at_once, graph.name)
    pool.look = look_around
    recorder = Recorder(program.plan, asked)
    watch = Watch(plan.high)
    return Ready(graph, program, pool, recorder, capacity, watch, watchdog, alone, checks)


def check_free(plan: Plan) -> None:
    """Refuse a plan whose runs need more of the machine's memory than is free now.

    Weights are left out: those of the host are there already.

    Raises:
        OutOfMemory: says how much it needs, and how much there is.
    """
    need = sum(p.run_bytes for p in plan.devices if p.physical_id == topology.HOST_CPU)
    if need <= limits.SMALL:
        return
    free = free_bytes()
    if need > free:
        raise OutOfMemory(
            f"a run of {plan.graph_name!r:.80} takes {need:,} bytes of the machine's memory, and "
            f"{free:,} are free; use smaller inputs, constraints.memory, or other devices"
        )
