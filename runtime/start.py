"""The program of a session's first shapes: one that is kept on disk, or a new one, which is kept.

What plans and compiles is imported only where there is no program kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crossdock.devices.base import Device
from crossdock.devices.topology import cpu_count
from crossdock.runtime import records
from crossdock.runtime.config import PREPARING, Config, Progress
from crossdock.runtime.graph import Graph
from crossdock.runtime.lazy_graph import LazyGraph
from crossdock.runtime.plan import Explainer, Plan
from crossdock.runtime.ready import Ready
from crossdock.runtime.sites import Sites


def first_ready(
    graph: Graph,
    config: Config,
    devices: Mapping[str, Device],
    progress: Progress | None,
    source: Graph,
) -> Ready:
    """A static graph ready to run; the caller holds ``PREPARING``.

    ``source`` is the graph before its symbols were bound. Raises what ``prepare`` does.
    """
    name = records.key_of(graph, config, devices)
    remake = Remake(graph, config, devices, source)
    if name is None:
        return remake.prepared(progress)

    def kept() -> Ready | None:
        found = records.load(name, graph, devices, remake, config.threads or cpu_count())
        if found is not None:
            found.watchdog, found.sites = config.watchdog, config.sites
            if len(devices) > 1 and not config.deterministic:
                found.resite = remake.resited
        return found

    found = kept()
    if found is not None:
        return found
    made = remake.prepared(progress)
    if not records.save(name, made) or source is not graph or not isinstance(graph, LazyGraph):
        return made  # other sizes of the graph may come, and share its weights
    notes = made.recorder.notes
    del made  # with the weights as the model has them, which no kernel reads
    graph.forget()
    found = kept()
    return remake.prepared() if found is None else found.with_plan(found.program.plan, notes)


@dataclass(frozen=True)
class Remake:
    """Makes what a program that is kept comes without."""

    graph: Graph
    config: Config
    devices: Mapping[str, Device]
    source: Graph

    def prepared(self, progress: Progress | None = None) -> Ready:
        """Everything made anew."""
        from crossdock.runtime.prepare import prepare

        return prepare(self.graph, self.config, self.devices, progress, source=self.source)

    def simplified(self) -> Graph:
        """The graph after the passes."""
        from crossdock.runtime.prepare import simplify

        return simplify(self.graph, self.config.constraints, self.config.skip_passes)

    def explainer(self, plan: Plan) -> Explainer:
        """What explains the plan."""
        from crossdock.runtime.prepare import explained

        with PREPARING:
            return explained(plan, self.graph, self.config, self.devices, self.source)

    def resited(self, ready: Ready, sites: Sites) -> Ready:
        """What to run where inputs and outputs are elsewhere; the caller holds ``PREPARING``."""
        from crossdock.runtime.prepare import resited

        return resited(self.graph, self.config, self.devices, self.source, ready, sites)

    def replanned(self, ready: Ready) -> Ready:
        """What to run where runs take longer than the plan says; the caller holds ``PREPARING``."""
        if ready.watch.median <= ready.program.plan.high * ready.slowdown():
            return ready
        made = self.prepared()
        name = records.key_of(self.graph, self.config, self.devices)
        if name is not None:
            records.save(name, made)
        return made
