"""Running a plan that is given: all that safety hangs on is worked out anew from the graph.

A plan file may say anything. Placement, order and kernels are taken from it, and waits beyond those
that steps need, as plans within a memory budget have them; for which other steps each has to wait,
where values and weights lie in memory and what is copied follows from those, and a plan that says
otherwise is refused. So a damaged plan can be slow, but never reads what is not there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from crossdock.devices.base import DeviceInfo
from crossdock.devices.program import Lowered
from crossdock.kernels.kernel_set import kernel_set
from crossdock.kernels.precision import Permission
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import costing, emulation, footprint, steps
from crossdock.runtime.errors import PlanError, StalePlan
from crossdock.runtime.given_weights import arrivals, check_regions, check_weights
from crossdock.runtime.graph import Graph
from crossdock.runtime.order import placed, with_waits
from crossdock.runtime.plan import HOST, Plan, Step, check_steps
from crossdock.runtime.plan_data import damaged
from crossdock.runtime.staleness import Situation
from crossdock.runtime.target import Target


def situation(graph: Graph, target: Target) -> Situation:
    """What a plan for ``graph`` on ``target`` would be fresh for."""
    return Situation(
        graph.digest(), kernel_set(), target.model.version, {d.id: d for d in target.devices}
    )


def checked(plan: Plan, graph: Graph, target: Target) -> Plan:
    """The plan, if its waits, copies and memory are those that its placement and order need.

    Args:
        plan: fresh for the graph it is of.
        graph: that graph, changed as the plan says.
        target: with the plan's devices.

    Raises:
        StalePlan: the target has not the plan's devices.
        PlanError: the plan is damaged, the message says where; or a kernel loses more than the
            target permits.
    """
    if plan.device_ids() != tuple(d.id for d in target.devices):
        raise StalePlan(
            f"the plan is for the devices {', '.join(plan.device_ids())}, in that order; plan again"
        )
    check_steps(plan)
    ordered = _Order(graph, plan, target.peers).steps()
    waited = with_waits(ordered)
    infos = {d.id: d for d in target.devices}
    roots = costing.alias_roots(graph)
    kernels = _Kernels(graph, infos)
    for step in plan.launches():
        _check_permitted(step, kernels.of(step)[0], target.permission)
    if plan.streamed:
        check_weights(plan, graph, roots, kernels.lowered)
    check_regions(plan, graph, waited, roots, target.devices)
    made = placed(replace(plan, steps=tuple(waited)), graph, target.devices, roots)
    made = footprint.counted(made, graph, kernels.of, infos, kernels.lowerings)
    if made != plan:
        raise damaged("its waits or its memory are not those of its steps")
    return made


def _check_permitted(step: Step, kernel: Kernel, permission: Permission) -> None:
    """Refuse a kernel that loses more than is permitted now, or other bits than the plan says."""
    if step.rounds != kernel.rounds:
        raise damaged(f"op {step.name!r:.80} rounds to {kernel.rounds!r}, not {step.rounds!r}")
    if (why := permission.refuses(kernel)) is not None:
        raise PlanError(
            f"op {step.name!r:.80} of the plan has kernel {kernel.name}: {why}; plan again"
        )


class _Kernels:
    """The kernels that a plan names."""

    def __init__(self, graph: Graph, devices: Mapping[str, DeviceInfo]) -> None:
        self.calls, self.devices = costing.op_calls(graph), devices
        self.lowerings: footprint.Lowerings = {}

    def lowered(self, step: Step) -> Lowered:
        """What a step's kernel is lowered to."""
        kernel, call = self.of(step)
        return footprint.lowered(kernel, call, self.devices[step.device], self.lowerings)

    def of(self, step: Step) -> tuple[Kernel, OpCall]:
        """A step's kernel; raises StalePlan where it is not here."""
        call = self.calls[step.name]
        for kernel in emulation.candidates(call, self.devices[step.device]).fitting:
            if kernel.name == step.kernel:
                return kernel, call
        raise StalePlan(
            f"op {step.name!r} was planned with kernel {step.kernel!r}, which is not here for "
            f"{step.device}; plan again"
        )


class _Order:
    """Walks a plan's steps, and sees that each has what it reads."""

    def __init__(self, graph: Graph, plan: Plan, peers: Collection[tuple[str, str]]) -> None:
        self.graph, self.plan, self.peers = graph, plan, peers
        self.roots = costing.alias_roots(graph)
        self.nodes = {n.name: n for n in graph.nodes if not costing.is_alias(n)}
        self.sites = plan.feeds_on
        self.at: dict[tuple[str, str], int | None] = {
            (name, HOST): None for name in graph.inputs if name not in self.sites
        }
        self.kept: set[str] = set()
        self.arrivals = arrivals(plan)

    def steps(self) -> list[Step]:
        """The steps, each waiting for all that makes what it reads."""
        made = []
        for step in self.plan.steps:
            if step.seconds < 0 or step.start < 0 or step.low < 0:
                raise damaged(f"step #{step.index} takes less than no time")
            needs = self._launch(step) if step.kind == "launch" else self._copy(step)
            made.append(replace(step, waits=tuple(sorted({*step.waits, *needs}))))
        if self.nodes:
            raise damaged(f"it has no step for {next(iter(self.nodes))!r}")
        for value in self.graph.outputs.values():
            root = self.roots[value]
            there = root in self.graph.constants or root in self.kept
            if not there and (root, HOST) not in self.at:
                raise damaged(f"{value!r} never comes to the host")
        return made

    def _launch(self, step: Step) -> list[int]:
        node = self.nodes.pop(step.name, None)
        same = node is not None and (node.op, tuple(node.inputs), node.outputs) == (
            step.op, step.inputs, step.outputs
        )  # fmt: skip
        if not same or step.queue != f"{step.device}/compute" or step.src or step.dst:
            raise damaged(f"step #{step.index} ({step.name!r}) is no op of the graph, or it twice")
        needs = self._needs(step, [v for v in step.inputs if v is not None], step.device)
        for value in step.outputs:
            self._put(step, value, step.device)
        return needs + self.arrivals.get(step.index, [])

    def _copy(self, step: Step) -> list[int]:
        if step.brings_weight:
            return []
        value = step.name
        spec = self.graph.specs.get(value)
        far = step.src if step.dst == HOST else step.dst
        ends = (step.src, step.dst)
        sound = (
            spec is not None
            and self.roots.get(value) == value
            and value not in self.graph.constants
            and self._whither(step)
            and (step.device, step.queue) == (far, steps.queue_of(*ends, departs=step.departs))
            and step.nbytes == spec.nbytes
        )
        if not sound:
            raise damaged(f"step #{step.index} copies nothing that the graph has")
        needs = self._needs(step, [*map(str, step.inputs)], step.src)
        if step.departs:
            self.kept.add(value)
        else:
            self._put(step, value, step.dst)
        return needs

    def _whither(self, step: Step) -> bool:
        """Whether a copy has the ends that one of its kind has."""
        value, ends = (step.name,), (step.src, step.dst)
        between = (step.src == HOST) != (step.dst == HOST) or ends in self.peers
        within = step.src == step.dst != HOST
        if step.departs:
            results = {self.roots[v] for v in self.graph.outputs.values()}
            return within and step.inputs == value and step.name in results - self.kept
        if step.arrives:
            theirs = step.name in self.graph.inputs and self.sites[step.name] == step.src != HOST
            return theirs and step.outputs == value and (between or within)
        mine = self.sites.get(step.name) != step.src
        return between and mine and step.inputs == step.outputs == value

    def _needs(self, step: Step, values: Sequence[str], device: str) -> list[int]:
        needs = []
        for root in (self.roots[v] for v in values):
            if root in self.graph.constants:
                continue
            if (root, device) not in self.at:
                raise damaged(f"step #{step.index} reads {root!r}, which is not on {device}")
            maker = self.at[root, device]
            needs += [] if maker is None else [maker]
        return needs

    def _put(self, step: Step, value: str, device: str) -> None:
        if (value, device) in self.at:
            raise damaged(f"step #{step.index} puts {value!r} on {device} a second time")
        self.at[value, device] = step.index
