"""Finding the pass that makes an answer wrong: the graph after each pass is run and compared.

What is compared with is the float64 reference of the graph before the passes, or where that would
take too long the devices' own run of it. A pass is wrong where it rewrites the graph to one that
means something else, or to an op whose kernel is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from crossdock.devices.program import Work
from crossdock.kernels.reference import evaluate, graph_work
from crossdock.runtime import passes
from crossdock.runtime.compiling import compile as compile_graph
from crossdock.runtime.graph import Graph, Node
from crossdock.runtime.passes import Applied
from crossdock.runtime.plan import Plan
from crossdock.runtime.tensor import FLOATS, Array

REFERENCE_FLOPS = 5e10
"""Work of a graph above which the reference would take minutes."""
TOLERANCE = 1e-3
"""Error over an output's largest element that is still rounding, in float32."""
COARSE = 2e-2
"""The same for graphs that compute in 16 bits, or round to integers on the way."""
EXPOSED = 1 << 30
"""Bytes of values that are read to find the op."""

Feeds = Mapping[str, Array]
Outputs = Mapping[str, Array]
Runner = Callable[[Graph, Feeds], tuple[Outputs, Plan]]
"""Runs a graph as it is, without passes; the outputs, and the plan it ran by."""


@dataclass(frozen=True)
class Row:
    """A graph after a pass (``name`` empty: before the first).

    Attributes:
        changed: ops that the pass changed.
        ops: ops there are now.
        seconds: what the pass took.
        work: operations and bytes of the graph.
        predicted: predicted seconds of a run.
        error: the outputs' largest error over their largest element.
    """

    name: str
    changed: int
    ops: int
    seconds: float
    work: Work
    predicted: float
    error: float

    def __add__(self, other: Row) -> Row:
        """Both graphs' together: stages of one model."""
        return Row(
            self.name,
            self.changed + other.changed,
            self.ops + other.ops,
            self.seconds + other.seconds,
            self.work + other.work,
            self.predicted + other.predicted,
            max(self.error, other.error),
        )


@dataclass(frozen=True)
class Culprit:
    """The first graph whose answer is wrong.

    ``name`` is the pass (empty: it is wrong before the first), ``op`` the first op that is wrong,
    where it is found, with its ``kernel`` and ``device``. ``rewrite``: the pass's graph means
    something else by the reference; otherwise a kernel computes it wrongly.
    """

    name: str
    error: float
    rewrite: bool
    op: str = ""
    kind: str = ""
    kernel: str = ""
    device: str = ""

    def __str__(self) -> str:
        where = f"pass {self.name!r}" if self.name else "no pass (the graph as loaded)"
        what = f" at op {self.op!r} ({self.kind})" if self.op else ""
        if self.rewrite:
            why = "the graph it makes means something else"
        elif self.kernel:
            why = f"kernel {self.kernel} on {self.device} computes it wrongly"
        else:
            why = "the devices compute it wrongly"
        return f"{where} is the first with a wrong answer{what}: {why} (error {self.error:.3g})"


@dataclass(frozen=True)
class Report:
    """What came of it; ``reference`` says what was compared with."""

    rows: tuple[Row, ...]
    culprit: Culprit | None
    reference: str
    tolerance: float


def on_devices(devices: str | Sequence[str], threads: int | None = None) -> Runner:
    """Runs graphs by sessions on devices, with what is known of their costs."""

    def run(graph: Graph, feeds: Feeds) -> tuple[Outputs, Plan]:
        every = tuple(passes.PASSES)
        with compile_graph(
            graph, devices, threads=threads, measure=False, skip_passes=every
        ) as made:
            return made.run(dict(feeds)), made.plan

    return run


def check_passes(
    graph: Graph,
    feeds: Feeds,
    run: Runner,
    *,
    skip: Collection[str] = (),
    tolerance: float | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Run a graph before the first pass and after each, and find the first that is wrong.

    Args:
        graph: without symbols; of one that runs in stages, those stages that the feeds lead to.
        feeds: its inputs.
        run: runs a graph.
        skip: passes to leave out.
        tolerance: of errors; None for one that suits the graph's types.
        progress: told what comes next.

    Raises:
        GraphError: ``skip`` names no pass.
        Error: a graph does not run; which one, ``progress`` was told.
    """
    passes.check(skip)
    reports = []
    for part, fed in _parts(graph, feeds):
        one = _Check(part, fed, run, tolerance or _allowed(part), progress)
        reports.append(one.report(skip))
    if not reports:
        return Report((), None, "nothing to run: the host does it all", tolerance or TOLERANCE)
    rows = reports[0].rows
    for other in reports[1:]:
        rows = tuple(a + b for a, b in zip(rows, other.rows, strict=True))
    culprits = [r.culprit for r in reports if r.culprit is not None]
    return replace(
        reports[0],
        rows=rows,
        culprit=culprits[0] if culprits else None,
        tolerance=max(r.tolerance for r in reports),
    )


def _allowed(graph: Graph) -> float:
    types = {spec.dtype for spec in graph.specs.values()}
    coarse = types & {"float16", "bfloat16"} or any("quantize" in n.op for n in graph.nodes)
    return COARSE if coarse else TOLERANCE


def _parts(graph: Graph, feeds: Feeds) -> list[tuple[Graph, Feeds]]:
    """The graph, or its stages, each with what it is fed."""
    if graph.staged is None:
        return [(graph, feeds)]
    found = _Collector()
    graph.staged.open().run(graph.staged.checked(feeds), found)
    return list(found.stages.values())


@dataclass
class _Collector:
    """Evaluates stages, and keeps each with what it was fed first."""

    stages: dict[bytes, tuple[Graph, Feeds]] = field(default_factory=dict)

    def run(self, key: bytes, graph: Graph, feeds: Feeds) -> Outputs:
        """Evaluate a stage."""
        self.stages.setdefault(key, (graph, dict(feeds)))
        return evaluate(graph, feeds)

    def may(self, name: str, op: str, why: str) -> None:
        """The host may run any op."""

    def host(self, name: str, op: str, why: str, seconds: float) -> None:
        """What the host takes is of no interest here."""

    def check(self) -> None:
        """There is no deadline."""


class _Check:
    """The check of one static graph."""

    def __init__(
        self,
        graph: Graph,
        feeds: Feeds,
        run: Runner,
        tolerance: float,
        progress: Callable[[str], None],
    ) -> None:
        self._graph, self._feeds, self._run = graph, feeds, run
        self._tolerance, self._progress = tolerance, progress
        self._exact = graph_work(graph).flops <= REFERENCE_FLOPS

    def report(self, skip: Collection[str]) -> Report:
        """The rows, and the first that is wrong."""
        self._progress("the reference")
        want = self._meaning(self._graph)
        error, plan = self._error(self._graph, want, "without passes")
        work, ops = graph_work(self._graph), len(self._graph.nodes)
        rows = [Row("", 0, ops, 0.0, work, plan.predicted, error)]
        culprit = None
        if error > self._tolerance:
            culprit = self._found(Applied("", _nothing(self._graph), self._graph, 0.0), error, plan)
        for made in passes.each(self._graph, skip=skip):
            if made.changed or len(made.after.nodes) != rows[-1].ops:
                error, plan = self._error(made.after, want, f"after {made.name}")
            ops = len(made.after.nodes)
            rows.append(
                Row(made.name, made.changed, ops, made.seconds, made.work, plan.predicted, error)
            )
            if culprit is None and error > self._tolerance:
                self._progress(f"the op that {made.name} breaks")
                culprit = self._found(made, error, plan)
        said = "the float64 reference" if self._exact else "the devices' run without passes"
        return Report(tuple(rows), culprit, said, self._tolerance)

    def _meaning(self, graph: Graph) -> Outputs:
        if self._exact:
            return evaluate(graph, self._feeds, dtype="float64")
        return self._run(graph, self._feeds)[0]

    def _error(self, graph: Graph, want: Outputs, said: str) -> tuple[float, Plan]:
        self._progress(said)
        got, plan = self._run(graph, self._feeds)
        return max((off(got[n], want[n]) for n in want), default=0.0), plan

    def _found(self, made: Applied, error: float, plan: Plan) -> Culprit:
        """The op that is wrong first, and whether by the pass or by its kernel."""
        before = made.before if made.name else self._graph
        values = _within(before, list(_shared(before, made)))
        want = self._meaning(_exposing(before, values))
        meant = self._meaning(_exposing(made.after, values)) if made.name else want
        got, _ = self._run(_exposing(made.after, values), self._feeds)
        makers = {v: n for g in (before, made.after) for n in g.nodes for v in n.outputs}
        for value in values:
            rewrite = off(meant[value], want[value]) > self._tolerance
            if rewrite or off(got[value], want[value]) > self._tolerance:
                node = makers[value]
                at = next((s for s in plan.launches() if s.name == node.name), None)
                ran = ("", "") if at is None or rewrite else (at.kernel, at.device)
                return Culprit(made.name, error, rewrite, node.name, node.op, *ran)
        ends = list(self._graph.outputs)
        want, meant = self._meaning(before), self._meaning(made.after)
        rewrite = any(off(meant[n], want[n]) > self._tolerance for n in ends)
        return Culprit(made.name, error, rewrite)


def _nothing(graph: Graph) -> Graph:
    return replace(graph, nodes=())


def _shared(before: Graph, made: Applied) -> Iterator[str]:
    """Values of both graphs that another op makes now, or that became constants; in order."""
    specs = made.after.specs
    old = {v: n for n in before.nodes for v in n.outputs}
    new: dict[str, Node | None] = dict.fromkeys(v for v in old if v in made.after.constants)
    new |= {v: n for n in made.new for v in n.outputs}
    return (v for v in new if v in old and specs[v] == before.specs[v])


def _within(graph: Graph, values: Sequence[str]) -> list[str]:
    """The first values that may be read at once."""
    kept, room = [], EXPOSED
    for value in values:
        room -= graph.specs[value].nbytes
        if room < 0:
            break
        kept.append(value)
    return kept


def _exposing(graph: Graph, values: Sequence[str]) -> Graph:
    """The graph with these values as its outputs."""
    return replace(graph, outputs={v: v for v in values} or graph.outputs)


def off(got: Array, want: Array) -> float:
    """The largest error over the largest element that is wanted.

    Infinite where one is NaN or infinite and the other is not the same, and for another shape. A
    step of an 8-bit integer is rounding.
    """
    if got.shape != want.shape:
        return np.inf
    have, ref = np.asarray(got, np.float64), np.asarray(want, np.float64)
    with np.errstate(all="ignore"):
        same = (have == ref) | (np.isnan(have) & np.isnan(ref))
        wrong = np.where(same, 0.0, np.abs(have - ref))
    if got.dtype.kind in "iu" and got.dtype.itemsize == 1:
        wrong = np.maximum(wrong - 1.0, 0.0)
    worst = float(np.where(np.isnan(wrong), np.inf, wrong).max(initial=0.0))
    largest = float(np.abs(ref, where=np.isfinite(ref), out=np.zeros_like(ref)).max(initial=0.0))
    floor = 1e-30 if str(got.dtype) in FLOATS else 1.0
    return worst / max(largest, floor)
