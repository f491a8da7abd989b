"""The ladder that a plan over a memory budget goes down: slower plans that take less.

In order: *reorder* the ops so that less is alive at once, with copies no earlier than needed;
*recompute* a value instead of keeping it; *split* ops into parts that run one after the other. Each
of these starts from the best graph so far, and the first whose plan fits is taken. What else there
is may cost anything: *spill* values to the host and back, *stream* weights from the host in each
run, or run ops *elsewhere*. Of those that fit the one is taken that is predicted to be fastest;
where none is, the refusal has the numbers. Every step is judged by the plan it gives: its arenas,
scratch and weights, and its predicted time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from crossdock.runtime import costing, footprint, rules, streams
from crossdock.runtime.errors import MemoryBudget, NoPlacement
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.graph_edits import kept_aside, made_again
from crossdock.runtime.horizon import best_over_runs
from crossdock.runtime.lives import Idle, Lane
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.plan_parts import Edit, Rung
from crossdock.runtime.planner import Known, Options, Planning
from crossdock.runtime.simulate import simulate
from crossdock.runtime.split import SplitGraph, grow, rewrite
from crossdock.runtime.split_choice import Planned, plan_split, unsplit
from crossdock.runtime.split_cost import Measure
from crossdock.runtime.target import Target

ROUNDS = 24
"""Edits of one kind."""
CHOICES = 4
"""Candidates that are tried for each edit, largest first."""
PARTS = (2, 4, 8, 16)
SEEDS = 6
"""Ops around the peak that splits are grown from."""
EFFORT = 10_000
"""Ops in all the graphs that a rung plans; with ``TRIALS`` of them for a large graph."""
TRIALS = 12


def plan_within(graph: Graph, target: Target, options: Options) -> Planned:
    """Plan a static graph within the devices' memory; the plan says which rung that took.

    Raises:
        NoPlacement: an op has no device; every such op is named.
        MemoryBudget: no rung fits; the message has what each came to.
        PlanError: no such policy, or a constraint names no op or device.
    """
    known = Known()
    planning = Planning(graph, target, options, known)
    plan = planning.draft()
    if not planning.rules.over_budget(plan):
        return Planned(unsplit(graph, options.sites), plan)
    return _Ladder(planning, plan).descend()


def plan_best(
    graph: Graph,
    target: Target,
    options: Options,
    measure: Measure | None = None,
    *,
    split: bool = True,
) -> Planned:
    """Plan within memory, and where that is no matter, with ops split over devices if that pays.

    Splits are chosen for latency alone. ``measure`` and errors are those of ``plan_split``.
    """
    whole = plan_within(graph, target, options)
    if whole.plan.rungs or not options.plain or options.policy != "auto":
        return whole
    whole = replace(whole, plan=best_over_runs(graph, target, options, whole.plan))
    return plan_split(graph, target, options, measure, whole) if split else whole


def runs_within(plan: Plan, memory: Mapping[str, int | float], most: int) -> int:
    """How many runs may be in flight, at most ``most``, within budgets; at least 1.

    Budgets are by device id, or by the physical id that devices share.
    """
    found = most
    for name, budget in memory.items():
        parts = [p for p in plan.devices if name in (p.id, p.physical_id)]
        run = sum(p.run_bytes for p in parts)
        if run:
            found = min(found, int((budget - sum(p.fixed_bytes for p in parts)) // run))
    return max(1, found)


@dataclass(frozen=True)
class _State:
    """A graph with the device of every op, and the plan that takes least memory for it."""

    split: SplitGraph
    where: Mapping[str, str]
    plan: Plan
    key: tuple[float, float, float]
    planning: Planning
    edits: tuple[Edit, ...] = ()

    @property
    def fits(self) -> bool:
        return self.key[0] <= 0.0


@dataclass
class _Ladder:
    """The descent of one graph; ``planning`` and ``first`` are those of the plan over budget."""

    planning: Planning
    first: Plan
    rungs: list[Rung] = field(default_factory=list)
    left: int = 0  # trials of this rung
    order: str = ""  # the one that took least for the graph as it was
    lean: bool = False  # states are judged as if each run brought all weights

    def __post_init__(self) -> None:
        self.target, self.options = self.planning.target, self.planning.options
        self.base_s = self._seconds(self.first)
        self.keep = rules.named(self.planning.graph, self.options.constraints)

    def descend(self) -> Planned:
        """The first rung that fits, or the fastest of the last; raises MemoryBudget for none."""
        where = {s.name: s.device for s in self.first.launches()}
        state = self._state(SplitGraph(self.planning.graph), where)  # windows take the least memory
        assert state is not None, "the placement of a plan can be planned again"
        self.order = state.plan.policy
        reordered = state
        for name, rung in self._rungs():
            state = self._down(name, rung, state)
            if state.fits:
                return Planned(state.split, self._whole(state))
        spilled = self._down("spill", lambda state: self._edited(state, self._spilled), state)
        found = [Planned(spilled.split, self._whole(spilled))] if spilled.fits else []
        found += self._streamed([reordered] if spilled is reordered else [reordered, spilled])
        found += self._elsewhere()
        if not found:
            raise self._refusal()
        best = min(found, key=lambda planned: self._rank(planned.plan))
        return replace(best, plan=replace(best.plan, rungs=self._told(best.plan.rungs[-1])))

    def _rungs(self) -> list[tuple[str, Callable[[_State], _State]]]:
        return [
            ("reorder", lambda state: state),
            ("recompute", lambda state: self._edited(state, self._again)),
            ("split", self._split),
        ]

    def _down(self, name: str, rung: Callable[[_State], _State], state: _State) -> _State:
        """What a rung makes of a state, noted."""
        before = len(state.edits)
        self.left = max(TRIALS, EFFORT // max(1, len(state.where)))
        state = state if self._hopeless(state) else rung(state)
        self._note(name, state.plan, [*map(str, state.edits[before:])], taken=state.fits)
        return state

    def _told(self, taken: Rung) -> tuple[Rung, ...]:
        """All rungs that were tried, the one that is taken last."""
        others = [replace(r, taken=False) for r in self.rungs if r is not taken]
        return (*others, taken)

    def _streamed(self, states: Sequence[_State]) -> list[Planned]:
        """Plans that fit with weights brought by each run, of the states given or of a smaller one.

        Where the rest of a plan leaves no room for that, less is made of it: as if the weights took
        no more than that.
        """
        tried = [(s, self._with_streams(s)) for s in states]
        known = [(state, plan) for state, plan in tried if plan is not None]
        if known and not any(self._fits(plan) for _, plan in known):
            state = self._leaner(states[-1])
            plan = self._with_streams(state)
            known += [] if plan is None else [(state, plan)]
        if not known:
            return []
        state, plan = min(known, key=lambda pair: (not self._fits(pair[1]), self._seconds(pair[1])))
        fits = self._fits(plan)
        edits = (*map(str, state.edits), streams.said(state.planning, plan, fits=fits))
        self._note("stream", plan, edits, taken=fits)
        return [Planned(state.split, replace(plan, rungs=tuple(self.rungs)))] if fits else []

    def _with_streams(self, state: _State) -> Plan | None:
        return streams.streamed(state.planning, self._whole(state))

    def _leaner(self, state: _State) -> _State:
        """A state with as little beside its weights as the edits come to."""
        self.lean = True
        for _, rung in [*self._rungs(), ("spill", lambda s: self._edited(s, self._spilled))]:
            self.left = max(TRIALS, EFFORT // max(1, len(state.where)))
            judged = self._state(state.split, state.where, state.edits)
            assert judged is not None, "the placement of a plan can be planned again"
            state = judged if self._hopeless(judged) else rung(judged)
            if state.fits:
                break
        self.lean = False
        return state

    def _elsewhere(self) -> list[Planned]:
        """The plan with ops on other devices, where there is one."""
        plan = self.planning.smaller()
        if plan is None:
            return []
        self._note("elsewhere", plan, (), taken=True)
        return [Planned(SplitGraph(self.planning.graph), replace(plan, rungs=tuple(self.rungs)))]

    def _refusal(self) -> MemoryBudget:
        tried = "; ".join(str(r) for r in self.rungs)
        (device, (need, budget)), *_ = self.planning.rules.over_budget(self.first).items()
        return MemoryBudget(
            f"{footprint.needed(self.first, device, need)} and has {int(budget)} B ({tried}; "
            "elsewhere: no other device has room); raise constraints.memory, allow another "
            "device or use a smaller batch"
        )

    def _fits(self, plan: Plan) -> bool:
        return not self.planning.rules.over_budget(plan)

    def _seconds(self, plan: Plan) -> float:
        """What the steps of a plan take, whichever of its like have been measured whole."""
        return simulate(plan, self.target.capacity).makespan

    def _rank(self, plan: Plan) -> tuple[bool, float]:
        """Whether ops go to a device that was not asked for, which is the last resort; seconds."""
        known = self.target.asked | {s.device for s in self.first.launches()}
        return any(s.device not in known for s in plan.launches()), self._seconds(plan)

    def _judged(self, planning: Planning, plan: Plan) -> Plan:
        """The plan as it is judged: a lean one has all its weights brought by each run."""
        if not self.lean:
            return plan
        parts = tuple(
            replace(part, packed_bytes=0, resident_bytes=streams.least(planning, plan, part.id))
            if part.id != HOST and part.fixed_bytes
            else part
            for part in plan.devices
        )
        return replace(plan, devices=parts)

    def _over(self, state: _State) -> dict[str, tuple[int, float]]:
        return self.planning.rules.over_budget(self._judged(state.planning, state.plan))

    def _note(self, name: str, plan: Plan, edits: Sequence[str], *, taken: bool) -> None:
        """Remember what a rung came to, on the device with least room."""
        budgets = {d.id: self.planning.rules.memory(d) for d in self.target.devices}
        tight = max(plan.devices, key=lambda part: part.peak_bytes - budgets[part.id])
        seconds = self._seconds(plan) - self.base_s
        self.rungs.append(
            Rung(
                name,
                taken,
                tight.id,
                tight.peak_bytes,
                int(budgets[tight.id]),
                seconds,
                tuple(edits),
            )
        )

    def _whole(self, state: _State) -> Plan:
        """The plan of a state with its explanations, as one of the graph that was given."""
        (plan,) = state.planning.frugal(state.where, state.plan.policy)
        alone = {d.id: d.single_seconds for d in self.first.devices}
        return replace(
            plan,
            graph=self.first.graph,
            lower_bound=min(self.first.lower_bound, plan.predicted),
            devices=tuple(replace(d, single_seconds=alone[d.id]) for d in plan.devices),
            rungs=tuple(self.rungs),
            edits=state.edits,
        )

    def _planning(self, graph: Graph, where: Mapping[str, str]) -> Planning:
        """Planning of an edited graph; what was spilled to the host may not go elsewhere."""
        own = {n.name for n in self.planning.graph.nodes}
        aside = {name: HOST for name, device in where.items() if device == HOST and name not in own}
        options = replace(self.options, homes={**self.options.homes, **aside})
        return Planning(graph, self.target, options, self.planning.known)

    def _hopeless(self, state: _State) -> bool:
        """Whether what stays from run to run is too much already: no edit makes that less."""
        plan = self._judged(state.planning, state.plan)
        over = self.planning.rules.over_budget(plan)
        return any(plan.device(d).fixed_bytes > budget for d, (_, budget) in over.items())

    def _spent(self) -> bool:
        """Take a trial; whether there was none left."""
        self.left -= 1
        return self.left < 0

    # --- judging ----------------------------------------------------------------------------------

    def _state(
        self, split: SplitGraph, where: Mapping[str, str], edits: tuple[Edit, ...] = ()
    ) -> _State | None:
        """The best frugal plan of a graph; None where a device cannot run what it is given."""
        try:
            planning = self._planning(split.graph, where)
            plans = planning.frugal(where, self.order, brief=True)
        except NoPlacement:
            return None
        roots = costing.alias_roots(split.graph)
        states = [
            _State(split, where, p, self._key(planning, p, roots), planning, edits) for p in plans
        ]
        return min(states, key=lambda s: s.key, default=None)

    def _key(
        self, planning: Planning, plan: Plan, roots: Mapping[str, str]
    ) -> tuple[float, float, float]:
        """Bytes over the budgets, how much is alive beyond them over time, predicted seconds."""
        plan = self._judged(planning, plan)
        over = self.planning.rules.over_budget(plan)
        beyond = 0.0
        for device, (_, budget) in over.items():
            part = plan.device(device)
            room = budget - part.peak_bytes + part.arena_bytes
            beyond += Lane(planning.graph, plan, device, roots).beyond(room)
        return sum(need - budget for need, budget in over.values()), beyond, plan.predicted

    # --- recompute and spill: one value after the other ----------------------------------------

    def _edited(
        self, state: _State, edit: Callable[[_State, str, Idle, Lane], _State | None]
    ) -> _State:
        """Take the best edit of a value idle at the peak, again and again while it helps."""
        for _ in range(ROUNDS):
            made = [edit(state, *candidate) for candidate in self._idle(state)]
            best = min((m for m in made if m is not None), key=lambda m: m.key, default=None)
            if best is None or best.key[:2] >= state.key[:2]:
                break
            state = best
            if state.fits:
                break
        return state

    def _idle(self, state: _State) -> Iterator[tuple[str, Idle, Lane]]:
        """Values that lie idle at the peak of a device over its budget."""
        roots = costing.alias_roots(state.split.graph)
        for device in self._over(state):
            lane = Lane(state.split.graph, state.plan, device, roots)
            for idle in lane.idle(lane.peak())[:CHOICES]:
                yield device, idle, lane

    def _again(self, state: _State, device: str, idle: Idle, lane: Lane) -> _State | None:
        maker = state.split.graph.producers().get(idle.value)
        if maker is None or maker.name in self.keep or self._spent():
            return None
        late = _late(lane, idle)
        found = made_again(state.split.graph, idle.value, late)
        return self._with(state, found, Edit("again", idle.value, late, device))

    def _spilled(self, state: _State, device: str, idle: Idle, lane: Lane) -> _State | None:
        if device == HOST or self._spent():
            return None
        late = _late(lane, idle)
        found = kept_aside(state.split.graph, idle.value, late)
        return self._with(state, found, Edit("aside", idle.value, late, HOST))

    def _with(self, state: _State, found: tuple[Graph, str] | None, edit: Edit) -> _State | None:
        if found is None:
            return None
        graph, name = found
        where = {**state.where, name: edit.device}
        return self._state(replace(state.split, graph=graph), where, (*state.edits, edit))

    # --- split: parts one after the other ---------------------------------------------------------

    def _split(self, state: _State) -> _State:
        """Split around the peak, then around what is the peak then, while that helps."""
        for _ in range(ROUNDS):
            best = self._split_once(state)
            if best.key[:2] >= state.key[:2]:
                break
            state = best
            if state.fits:
                break
        return state

    def _split_once(self, state: _State) -> _State:
        """The split around the peak into the fewest parts that fit, else that which helps most."""
        best = state
        for parts in PARTS:
            for seed, device in self._seeds(state):
                for axis in range(state.split.graph.specs[seed.outputs[0]].rank):
                    made = self._in_parts(state, seed, axis, parts, device)
                    if made is not None and made.key < best.key:
                        best = made
            if best.fits:
                break
        return best

    def _seeds(self, state: _State) -> list[tuple[Node, str]]:
        """Makers of the largest values alive at the peaks, with the device."""
        graph = state.split.graph
        makers, roots = graph.producers(), costing.alias_roots(graph)
        found: dict[str, tuple[Node, str]] = {}
        for device in self._over(state):
            lane = Lane(graph, state.plan, device, roots)
            for value in lane.alive(lane.peak()):
                if value in makers:
                    found.setdefault(makers[value].name, (makers[value], device))
        return list(found.values())[:SEEDS]

    def _in_parts(
        self, state: _State, seed: Node, axis: int, parts: int, device: str
    ) -> _State | None:
        if self.left <= 0:
            return None
        own = {n.name for n in self.planning.graph.nodes}
        made = frozenset(n.name for n in state.split.graph.nodes if n.name not in own)
        region = grow(state.split.graph, seed, axis, self.keep | made)  # an op is split once
        if region is None or region.units < parts or self._spent():
            return None
        sizes = [region.units * (i + 1) // parts - region.units * i // parts for i in range(parts)]
        split = rewrite(state.split, region, sizes)
        old = {n.name for n in state.split.graph.nodes}
        where = dict(state.where)
        for node in split.graph.nodes:
            if node.name not in old:
                where[node.name] = state.where.get(node.name.rpartition(".part")[0], device)
        size = state.split.graph.specs[seed.outputs[0]].dims[axis]
        shares = tuple(n * size // region.units for n in sizes)
        edit = Edit("split", region.seed, region.nodes, axis=axis, sizes=shares)
        return self._state(split, where, (*state.edits, edit))


def _late(lane: Lane, idle: Idle) -> tuple[str, ...]:
    """The ops that touch a value once it is no longer idle."""
    places = lane.touches[idle.value]
    return tuple(lane.names[at] for at in places if at >= idle.until)
