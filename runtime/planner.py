"""From a graph and costs to a plan: the placement problem, its schedule, and the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from crossdock.kernels.kernel_set import kernel_set
from crossdock.runtime import costing, steps
from crossdock.runtime.costing import Offers
from crossdock.runtime.errors import MemoryBudget, NoPlacement
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.placement import edges_of, problem_of
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.prediction import predict_run
from crossdock.runtime.rules import Rules
from crossdock.runtime.target import Target
from crossdock.scheduler import schedule


@dataclass(frozen=True)
class Options:
    """How to plan; see ``session.compile``.

    ``search`` lets the policy search on with compiled code for ``budget_s`` seconds: better plans,
    but code that takes seconds to load, and a plan that depends on the time there was. Without,
    the same graph, target and options give the same plan. ``homes`` names the one device of nodes
    that are parts of a split, by node name.
    """

    policy: str = "auto"
    constraints: Constraints = field(default_factory=Constraints)
    expected_runs: int = 1000
    budget_s: float = 0.2
    search: bool = False
    homes: Mapping[str, str] = field(default_factory=dict)


def make_plan(graph: Graph, target: Target, options: Options) -> Plan:
    """Plan a static graph.

    Raises:
        NoPlacement: an op has no device; every such op is named.
        MemoryBudget: a device's arena and weights exceed its budget.
        PlanError: no such policy, or a constraint names no op or device.
    """
    calls = costing.op_calls(graph)
    placed = [n for n in graph.nodes if not costing.is_alias(n)]
    memo: costing.Memo = {}
    offered = {
        n.name: costing.offers(calls[n.name], target.devices, target.model, memo) for n in placed
    }
    rules = Rules(options.constraints, target, graph, options.homes)
    plan = _draft(graph, placed, offered, target, options, rules)
    if rules.over_budget(plan):
        plan = _smaller(graph, placed, offered, target, options, rules) or plan
    check_memory(plan, rules)
    plan = replace(plan, cost_model=target.model.version, kernels=kernel_set())
    return predict_run(plan, graph, target.model)


def _smaller(
    graph: Graph,
    placed: Sequence[Node],
    offered: Mapping[str, Offers],
    target: Target,
    options: Options,
    rules: Rules,
) -> Plan | None:
    """A plan within the memory budgets, or None.

    First a schedule that minds memory; then devices whose budget is passed are left out, one by
    one.
    """
    try:
        plan = _draft(graph, placed, offered, target, options, rules, memory=True)
        while full := [d for d in rules.over_budget(plan) if d != HOST]:
            rules = rules.without(full[0])
            plan = _draft(graph, placed, offered, target, options, rules)
    except (NoPlacement, MemoryBudget):
        return None
    return None if rules.over_budget(plan) else plan


def _draft(
    graph: Graph,
    placed: Sequence[Node],
    offered: Mapping[str, Offers],
    target: Target,
    options: Options,
    rules: Rules,
    *,
    memory: bool = False,
) -> Plan:
    edges = edges_of(graph, placed)
    problem = problem_of(graph, placed, offered, edges, target, rules, options.expected_runs)
    made = schedule(
        problem,
        options.policy,
        links="serial",
        budget_s=options.budget_s,
        seed=0,
        memory=memory,
        compiled=options.search,
    )
    tensors = {
        int(number): str(edge.tensor)
        for number, edge in zip(problem.edge_tensor, edges, strict=True)
    }
    return steps.build(
        graph,
        placed,
        offered,
        made,
        tensors,
        target.devices,
        target.measured_links(),
        options.expected_runs,
    )


def check_memory(plan: Plan, rules: Rules) -> None:
    """Raise MemoryBudget where a plan needs more than a device's budget."""
    for device, (need, budget) in rules.over_budget(plan).items():
        part = plan.device(device)
        raise MemoryBudget(
            f"{device} needs {need} B (arena {part.arena_bytes}, weights {part.resident_bytes}) "
            f"and has {int(budget)} B; raise constraints.memory, allow another device or use a "
            "smaller batch"
        )
