"""Planning models that run in stages: which stages there are, one evaluation of the model tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from crossdock.devices import registry
from crossdock.devices.machine import Machine
from crossdock.kernels.reference import evaluate
from crossdock.runtime.cli.options import Placing
from crossdock.runtime.cli.planning import Asked, Planned, plan_model
from crossdock.runtime.config import Progress
from crossdock.runtime.fallback import check_host_op
from crossdock.runtime.graph import Graph, Staged
from crossdock.runtime.plan import HOST
from crossdock.runtime.stage_log import StageLog
from crossdock.runtime.tensor import Array
from crossdock.runtime.whatif import Comparison


def plan_stages(
    graph: Graph,
    staged: Staged,
    feeds: Mapping[str, Array],
    placing: Placing,
    asked: Asked,
    machine: Machine | None,
    progress: Progress | None,
) -> Planned:
    """Plan every stage that these feeds lead to, and join the plans; errors as ``plan_model``."""
    placing.sites(graph)  # stages take their inputs on the host: refuses others
    planner = _Planner(graph.name, placing, asked, machine, progress)
    staged.open().run(staged.checked(feeds), planner)
    if planner.last is None:  # the host does it all
        planner.last = plan_model(replace(graph, staged=None, outputs={}), placing, asked, machine)
    return replace(
        planner.last, graph=graph, plan=planner.log.plan(), comparison=planner.comparison()
    )


class _Planner:
    """Evaluates the stages, and plans each of them."""

    def __init__(
        self,
        name: str,
        placing: Placing,
        asked: Asked,
        machine: Machine | None,
        progress: Progress | None,
    ) -> None:
        self._arguments = placing, asked, machine, progress
        self._planned: dict[bytes, Planned] = {}
        host = registry.open_device(HOST).info
        self.log, self.unchanged = StageLog(name, host), StageLog(name, host)
        self.last: Planned | None = None

    def run(self, key: bytes, graph: Graph, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Plan a stage, and evaluate it."""
        made = self._planned.get(key)
        if made is None:
            made = self._planned[key] = plan_model(graph, *self._arguments, stage=True)
        self.last = made
        self.log.stage(key, made.plan, made.target.asked, {})
        if made.comparison is not None:
            self.unchanged.stage(key, made.comparison.before, made.target.asked, {})
        outputs: dict[str, Array] = evaluate(graph, feeds)
        return outputs

    def may(self, name: str, op: str, why: str) -> None:
        """Raise PlanError where the host may not run an op."""
        check_host_op(name, op, why, self._arguments[0].fallback)

    def host(self, name: str, op: str, why: str, seconds: float) -> None:
        """Take note of an op that the host ran."""
        self.log.host(name, op, why, seconds)
        self.unchanged.host(name, op, why, seconds)

    def check(self) -> None:
        """Planning has no deadline."""

    def comparison(self) -> Comparison | None:
        """The stages' comparisons as one; None where a stage has none."""
        found = [p.comparison for p in self._planned.values()]
        parts = [c for c in found if c is not None]
        if not parts or len(parts) < len(found):
            return None
        moves = tuple(move for part in parts for move in part.moves)
        return Comparison(self.unchanged.plan(), self.log.plan(), moves)
