"""Planning models that run in stages: which stages there are, one evaluation of the model tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from crossdock.devices import registry
from crossdock.devices.machine import Machine
from crossdock.kernels.reference import evaluate
from crossdock.runtime.cli.options import Placing
from crossdock.runtime.cli.planning import Changes, Planned, plan_model
from crossdock.runtime.fallback import check_host_op
from crossdock.runtime.graph import Graph, Staged
from crossdock.runtime.plan import HOST
from crossdock.runtime.prepare import Progress
from crossdock.runtime.stage_log import StageLog
from crossdock.runtime.tensor import Array


def plan_stages(
    graph: Graph,
    staged: Staged,
    feeds: Mapping[str, Array],
    placing: Placing,
    changes: Changes,
    machine: Machine | None,
    progress: Progress | None,
) -> Planned:
    """Plan every stage that these feeds lead to, and join the plans; errors as ``plan_model``."""
    planner = _Planner(graph.name, placing, changes, machine, progress)
    staged.open().run(staged.checked(feeds), planner)
    if planner.last is None:  # the host does it all
        planner.last = plan_model(
            replace(graph, staged=None, outputs={}), placing, changes, machine
        )
    return replace(planner.last, graph=graph, plan=planner.log.plan())


class _Planner:
    """Evaluates the stages, and plans each of them."""

    def __init__(
        self,
        name: str,
        placing: Placing,
        changes: Changes,
        machine: Machine | None,
        progress: Progress | None,
    ) -> None:
        self._arguments = placing, changes, machine, progress
        self._planned: dict[bytes, Planned] = {}
        self.log = StageLog(name, registry.open_device(HOST).info)
        self.last: Planned | None = None

    def run(self, key: bytes, graph: Graph, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Plan a stage, and evaluate it."""
        made = self._planned.get(key)
        if made is None:
            made = self._planned[key] = plan_model(graph, *self._arguments, stage=True)
        self.last = made
        self.log.stage(key, made.plan, made.target.asked, {})
        outputs: dict[str, Array] = evaluate(graph, feeds)
        return outputs

    def may(self, name: str, op: str, why: str) -> None:
        """Raise PlanError where the host may not run an op."""
        check_host_op(name, op, why, self._arguments[0].fallback)

    def host(self, name: str, op: str, why: str, seconds: float) -> None:
        """Take note of an op that the host ran."""
        self.log.host(name, op, why, seconds)

    def check(self) -> None:
        """Planning has no deadline."""
