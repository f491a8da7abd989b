"""What a session is ready to run: a plan, and its program, for each of the shapes seen lately."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime import request
from crossdock.runtime.config import PREPARING, Config, Progress
from crossdock.runtime.errors import Error, OutOfMemory, PlanError
from crossdock.runtime.fleet import Fleet
from crossdock.runtime.graph import Graph
from crossdock.runtime.lru import LruCache
from crossdock.runtime.ready import Ready
from crossdock.runtime.start import first_ready
from crossdock.runtime.tensor import Dim
from crossdock.runtime.transit import Fed

if TYPE_CHECKING:
    from crossdock.runtime.staged import StagedReady

SHAPES_KEPT = 8
_Shapes = tuple[tuple[Dim, ...], ...]


class Repertoire:
    """A graph made ready for the shapes that it is run with. Thread-safe.

    ``last`` is what was bound or run last; None where nothing was, or the devices are others since.
    ``fleet`` are the devices.
    """

    def __init__(
        self, graph: Graph, config: Config, progress: Progress | None, bound: Graph | None
    ) -> None:
        """``bound`` is the graph with its symbols replaced, to be made ready at once."""
        self.graph = graph
        self.last: Ready | StagedReady | None = None
        self.kept: LruCache[_Shapes, Ready | StagedReady] = LruCache(SHAPES_KEPT)
        self._progress = progress
        self._lock = threading.Lock()
        self._closed = False
        self._planned = False
        self._graph: Graph | None = bound  # prepared last
        self.fleet = Fleet(config, request.open_devices(config), self.forget)
        if bound is not None:
            self.prepare(bound)

    def close(self) -> None:
        """Let go of all that is ready, and make nothing ready any more."""
        with self._lock:
            self._closed = True
            self.kept.clear()
            self.last = None

    def forget(self) -> None:
        """Plan anew from the next run on: the devices are others."""
        with self._lock:
            self.kept.clear()
            self.last = None

    def unforked(self) -> None:
        """Raise in a child of the process that made this session, before any lock is taken."""
        if JOBS.forked:
            raise no_more(f"session of {self.graph.name!r:.80}")

    def swap(self, ready: Ready, make: Callable[[Ready], Ready]) -> None:
        """Swap in what is made of what is ready; runs in flight end as they began."""
        try:
            with PREPARING:
                made = make(ready)
                made.flow = ready.flow
        except Error:
            return  # the plan there is goes on; a device that failed is told of by a run
        with self._lock:
            self.kept.swap(ready, made)
            if self.last is ready:
                self.last = made

    def for_graph(self) -> Ready | StagedReady:
        """What a graph whose shapes are not those of its feeds is run with."""
        return self._found(_shapes(self.graph)) or self.prepare(self.graph)

    def for_shapes(self, arrays: Mapping[str, Fed]) -> Ready | StagedReady:
        """What is run with the shapes of the feeds."""
        found = self._found(tuple(a.shape for a in arrays.values()))
        if found is not None:
            return found
        return self.prepare(self.graph.bind(shapes={n: a.shape for n, a in arrays.items()}))

    def bound(self) -> Ready | StagedReady:
        """What is bound; raises PlanError where nothing is."""
        found = self.last
        if found is None and self._closed:
            raise self._over()
        if found is None and self._graph is not None:
            return self.prepare(self._graph)
        if found is None:
            raise PlanError(
                f"graph {self.graph.name!r:.80} has symbols {', '.join(self.graph.symbols)} "
                "without sizes; bind(shapes=...) or run first"
            )
        return found

    def prepare(self, graph: Graph) -> Ready | StagedReady:
        """Plan for new shapes; runs for shapes already planned go on meanwhile."""
        key = _shapes(graph)
        self.unforked()
        with PREPARING:
            found = self._found(key)
            if found is not None:
                return found
            try:
                made = self._made(graph)
            except MemoryError as error:
                raise no_memory(self.graph, "prepare") from error
            with self._lock:
                if not self._closed:
                    self.last, self._graph = made, graph
                    self.kept.put(key, made)
            return made

    def _over(self) -> PlanError:
        return PlanError(f"the session of {self.graph.name!r:.80} is closed; compile again")

    def _found(self, key: _Shapes) -> Ready | StagedReady | None:
        self.unforked()
        with self._lock:
            if self._closed:
                raise self._over()
            found = self.kept.get(key)
            if found is not None:
                self.last = found
            return found

    def _made(self, graph: Graph) -> Ready | StagedReady:
        fleet, source = self.fleet, self.graph
        fleet.refresh()
        if graph.staged is None:
            again, self._planned = self._planned, True
            if not again:
                return fleet.prepared(
                    lambda: first_ready(graph, *fleet.now(), self._progress, source)
                )
            kept = [ready for ready in self.kept.values() if isinstance(ready, Ready)]
            from crossdock.runtime.prepare import prepare  # planning takes long to load

            return fleet.prepared(
                lambda: prepare(
                    graph, *fleet.now(), self._progress, again=again, kept=kept, source=source
                )
            )
        from crossdock.runtime.staged import StagedReady

        return StagedReady(graph, graph.staged, fleet, self._progress)


def no_memory(graph: Graph, what: str) -> OutOfMemory:
    """The error where the host has too little memory to do something with a graph."""
    return OutOfMemory(
        f"graph {graph.name!r:.80}: the host has too little memory to {what} it; use smaller "
        "inputs or constraints.memory"
    )


def _shapes(graph: Graph) -> _Shapes:
    """What a prepared graph is kept by; a staged one has symbols where any shape will do."""
    return tuple(tuple(spec.shape) for spec in graph.inputs.values())
