"""From a graph and costs to a plan: the placement problem, its schedule, and the steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from crossdock.devices.program import Lowered
from crossdock.kernels.kernel_set import kernel_set
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import costing, footprint, goals, steps
from crossdock.runtime.calls import op_call
from crossdock.runtime.costing import Offers
from crossdock.runtime.errors import MemoryBudget, NoPlacement
from crossdock.runtime.goals import Wanted
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.placement import edges_of, problem_of
from crossdock.runtime.plan import HOST, Constraints, Plan, Step
from crossdock.runtime.plan_parts import Goal, Key
from crossdock.runtime.prediction import predict_run
from crossdock.runtime.rules import Rules
from crossdock.runtime.simulate import simulate
from crossdock.runtime.sites import ON_HOST, Sites
from crossdock.runtime.target import Target
from crossdock.scheduler import Problem, Schedule
from crossdock.scheduler.decode import decode
from crossdock.scheduler.drafts import Draft, freeze
from crossdock.scheduler.frugal import frugal_orders
from crossdock.scheduler.objective import Objective


@dataclass(frozen=True)
class Options:
    """How to plan; see ``compiling.compile``.

    ``search`` lets the policy search on with compiled code for ``budget_s`` seconds: better plans,
    but code that takes seconds to load, and a plan that depends on the time there was. Without,
    the same graph, target and options give the same plan. ``homes`` names the one device of nodes
    that are parts of a split, by node name. ``builds`` spreads what kernels take to build over the
    expected runs, as uploads are; the plan's times are those of a run by itself then. ``kernels``
    has the device and kernel of nodes that keep theirs, where they stay there. ``resident`` are
    weights that devices hold already, and go on to: where some have to be brought, it is others.
    ``sites`` says where the inputs lie, and which outputs stay.
    """

    policy: str = "auto"
    constraints: Constraints = field(default_factory=Constraints)
    expected_runs: int = 1000
    budget_s: float = 0.2
    search: bool = False
    objective: Objective = field(default_factory=Objective)
    homes: Mapping[str, str] = field(default_factory=dict)
    builds: bool = False
    sites: Sites = ON_HOST
    kernels: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    resident: frozenset[tuple[str, Key]] = frozenset()

    @property
    def plain(self) -> bool:
        """Whether latency alone counts, and any share of the work may go to any device."""
        return self.objective == Objective() and not self.constraints.max_share


@dataclass
class Known:
    """What plans of graphs that are much alike share: estimates and lowered kernels."""

    estimates: costing.Memo = field(default_factory=dict)
    lowerings: footprint.Lowerings = field(default_factory=dict)
    offers: dict[int, tuple[Node, Offers]] = field(default_factory=dict)

    def offered(
        self,
        graph: Graph,
        nodes: Sequence[Node],
        target: Target,
        kernels: Mapping[str, tuple[str, str]],
    ) -> dict[str, Offers]:
        """The offers for nodes; those of a node that another graph had are as they were."""
        made = {}
        for node in nodes:
            found = self.offers.get(id(node))
            if found is None:
                call = op_call(graph, node)
                offers = costing.offers(
                    call,
                    target.devices,
                    target.model,
                    self.estimates,
                    target.permission,
                    dict([kernels[node.name]] if node.name in kernels else ()),
                )
                found = self.offers[id(node)] = node, offers  # the node is kept, and so its id
            made[node.name] = found[1]
        return made


def make_plan(graph: Graph, target: Target, options: Options) -> Plan:
    """Plan a static graph.

    Raises:
        NoPlacement: an op has no device; every such op is named.
        MemoryBudget: what the plan takes on a device exceeds its budget.
        PlanError: no such policy, or a constraint names no op or device.
    """
    return Planning(graph, target, options).plan()


class Planning:
    """The planning of one graph for one target; ``known`` is shared with others like it."""

    def __init__(
        self, graph: Graph, target: Target, options: Options, known: Known | None = None
    ) -> None:
        self.graph, self.target, self.options = graph, target, options
        self.known = Known() if known is None else known
        self.placed = [n for n in graph.nodes if not costing.is_alias(n)]
        self.offered = self.known.offered(graph, self.placed, target, options.kernels)
        self.rules = Rules(options.constraints, target, graph, options.homes, options.sites)
        self.wanted = Wanted(options.objective, target.watts, options.constraints.max_share)
        self.edges = edges_of(graph, self.placed)

    def under(self, target: Target, options: Options) -> Planning:
        """The same ops and kernels, with other links, budgets or constraints."""
        made = copy.copy(self)
        made.__dict__.pop("_problem", None)
        made.target, made.options = target, options
        made.rules = Rules(options.constraints, target, self.graph, options.homes, options.sites)
        made.wanted = Wanted(options.objective, target.watts, options.constraints.max_share)
        return made

    def plan(self) -> Plan:
        """The plan; raises what ``make_plan`` does."""
        plan = self.draft()
        if self.rules.over_budget(plan):
            plan = self.smaller() or plan
        check_memory(plan, self.rules)
        return plan

    def draft(
        self, rules: Rules | None = None, *, memory: bool = False, brief: bool = False
    ) -> Plan:
        """A plan for the objective; ``memory``: one whose schedule minds the devices' memory.

        ``brief`` leaves out what was considered for each op.
        """
        problem = self.problem(rules)
        made, goal = goals.place_for(
            problem,
            self.wanted,
            self.options.policy,
            self.options.budget_s,
            memory=memory,
            search=self.options.search,
        )
        return self._built(made, goal, brief=brief)

    def smaller(self) -> Plan | None:
        """A plan within the memory budgets with ops on other devices, or None.

        First a schedule that minds memory; then devices whose budget is passed are left out, one
        by one, as long as there is another that was asked for.
        """
        rules = self.rules
        try:
            plan = self.draft(memory=True)
        except MemoryBudget:
            plan = self.draft()
        try:
            while full := [d for d in rules.over_budget(plan) if d != HOST]:
                rules = rules.without(full[0])
                if self.target.asked <= rules.full:
                    return None
                plan = self.draft(rules)
        except NoPlacement:
            return None
        return None if rules.over_budget(plan) else plan

    def frugal(
        self, where: Mapping[str, str], order: str = "", *, brief: bool = False
    ) -> list[Plan]:
        """Plans with every op on the device given, in orders that keep little alive.

        Inputs are copied no earlier than they are needed, and memory waits for what is copied out
        of it: that costs time, which the plans' predictions have in them. ``order`` names the only
        order that is wanted. ``brief`` leaves out what was considered for each op. No plan where a
        device given cannot run its op.
        """
        problem = self.problem()
        feeds = {steps.input_task(n): d for n, d in self.options.sites.feeds.items()}
        homes = {**feeds, **where}
        device = np.array([problem.device_index(homes.get(n, HOST)) for n in problem.task_names])
        if not np.isfinite(problem.cost[np.arange(problem.n), device]).all():
            return []
        made = []
        for name, tasks in frugal_orders(problem, device):
            if order not in ("", name):
                continue
            draft = Draft(name, device, decode(problem, tasks, device, "serial"))
            plan = self._built(
                freeze(problem, "serial", draft, bound=0.0),
                Goal(str(self.wanted.objective)),
                late=True,
                brief=brief,
            )
            made.append(plan)
        return made

    def problem(self, rules: Rules | None = None) -> Problem:
        """The placement problem; raises NoPlacement."""
        if rules is None:
            return self._problem
        return problem_of(
            self.graph,
            self.placed,
            self.offered,
            self.edges,
            self.target,
            rules,
            self.options.expected_runs,
            self.options.sites,
            builds=self.options.builds,
        )

    @cached_property
    def _problem(self) -> Problem:
        return self.problem(self.rules)

    def lowered(self, step: Step) -> Lowered:
        """What an op of a plan is lowered to."""
        kernel, call = self._kernel_of(step)
        return footprint.lowered(kernel, call, self.target.info(step.device), self.known.lowerings)

    def counted(self, plan: Plan) -> Plan:
        """The plan with what its kernels keep and take on each device."""
        infos = {d.id: d for d in self.target.devices}
        return footprint.counted(plan, self.graph, self._kernel_of, infos, self.known.lowerings)

    def _kernel_of(self, step: Step) -> tuple[Kernel, OpCall]:
        offers = self.offered[step.name]
        return offers.best[step.device].kernel, offers.call

    def _built(
        self, made: Schedule, goal: Goal, *, late: bool = False, brief: bool = False
    ) -> Plan:
        stays = {steps.output_task(name) for name in self.options.sites.stays}
        edges = (edge for edge in self.edges if edge.dst not in stays)
        tensors = {
            int(number): str(edge.tensor)
            for number, edge in zip(made.problem.edge_tensor, edges, strict=True)
        }
        plan = steps.build(
            self.graph,
            self.placed,
            self.offered,
            made,
            tensors,
            self.target,
            self.options.expected_runs,
            self.options.sites,
            late=late,
            brief=brief,
        )
        if late or self.options.builds or not self.options.sites.plain:
            plan = _retimed(plan, self.target.capacity)
        plan = self.counted(plan)
        if not brief:
            plan = replace(
                plan,
                cost_model=self.target.model.version,
                kernels=kernel_set(),
                precision=self.target.permission.precision,
            )
            plan = predict_run(plan, self.graph, self.target.model)
        return goals.with_goal(plan, goal, self.wanted, self.target)


def _retimed(plan: Plan, capacity: Mapping[str, int]) -> Plan:
    """The plan with the times that its waits give, where they are not those of its schedule."""
    made = simulate(plan, capacity)
    starts = zip(plan.steps, made.start.tolist(), strict=True)
    spread = (plan.high - plan.low) / 2
    return replace(
        plan,
        steps=tuple(replace(step, start=start) for step, start in starts),
        predicted=made.makespan,
        low=max(0.0, made.makespan - spread),
        high=made.makespan + spread,
        lower_bound=min(plan.lower_bound, made.makespan),
    )


def check_memory(plan: Plan, rules: Rules) -> None:
    """Raise MemoryBudget where a plan passes a device's budget."""
    for device, (need, budget) in rules.over_budget(plan).items():
        raise MemoryBudget(
            f"{footprint.needed(plan, device, need)} and has {int(budget)} B; raise "
            "constraints.memory, allow another device or use a smaller batch"
        )
