"""Sessions: a graph compiled for a machine, ready to run from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from crossdock.devices import registry
from crossdock.devices.base import Device
from crossdock.devices.worker import JOBS, no_more
from crossdock.runtime import request
from crossdock.runtime.config import PREPARING, Config, Progress
from crossdock.runtime.device_array import DeviceArray, Ledger
from crossdock.runtime.errors import DeviceError, Error, OutOfMemory, PlanError
from crossdock.runtime.executor import Outcome
from crossdock.runtime.feeds import arrays_of
from crossdock.runtime.fleet import Fleet
from crossdock.runtime.future import RunFuture
from crossdock.runtime.graph import Graph
from crossdock.runtime.intake import Intake
from crossdock.runtime.keeping import Keeping, donated_of, hosted
from crossdock.runtime.lru import LruCache
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.ready import Ready
from crossdock.runtime.receipt import Receipt
from crossdock.runtime.sites import Sites, sites_now
from crossdock.runtime.start import first_ready
from crossdock.runtime.submitted import Submissions
from crossdock.runtime.tensor import Dim
from crossdock.runtime.through import Attempt, run_through
from crossdock.runtime.transit import Fed

if TYPE_CHECKING:
    from crossdock.runtime.staged import StagedReady

SHAPES_KEPT = 8
Where = Literal["host", "device"]
"""Where outputs are to be."""
_Shapes = tuple[tuple[Dim, ...], ...]


@dataclass(frozen=True)
class Estimate:
    """Predicted seconds of a run with an 80 % interval, and peak bytes by device id.

    ``streamed_bytes`` has the bytes of weights that each run brings to a device, by its id.
    """

    seconds: float
    low: float
    high: float
    peak_bytes: Mapping[str, int]
    streamed_bytes: Mapping[str, int] = field(default_factory=dict)


class Session:
    """A compiled graph. Thread-safe; use as a context manager or ``close`` when done.

    A *staged* graph (an ONNX model whose shapes hang on values, or that has strings, sequences,
    loops) is planned stage by stage while it runs, and the stages are kept. Its inputs may be
    arrays of strings, lists (sequences) and None (empty optionals), and so may its outputs.
    """

    def __init__(
        self,
        graph: Graph,
        config: Config,
        progress: Progress | None = None,
        bound: Graph | None = None,
    ) -> None:
        """``bound`` is the graph with its symbols replaced, to be made ready at once."""
        self.graph = graph
        self.config = config
        self._progress = progress
        self._lock = threading.Lock()
        self._ready: LruCache[_Shapes, Ready | StagedReady] = LruCache(SHAPES_KEPT)
        self._last: Ready | StagedReady | None = None
        self._told: tuple[str, ...] = ()
        self._receipt: tuple[Callable[..., Receipt], *tuple[Any, ...]] | None = (
            None  # and arguments
        )
        self._keeping = Keeping(Ledger(config.constraints.memory))
        self._closed = False
        self._planned = False
        self._submissions = Submissions(graph.name, config.runs_at_once, config.waiting)
        self._graph: Graph | None = bound  # prepared last
        self._fleet = Fleet(config, request.open_devices(config), self._forget)
        if bound is not None:
            self._prepare(bound)

    @property
    def devices(self) -> Mapping[str, Device]:
        """The devices that it uses now, by id; those that are lost are not among them."""
        return self._fleet.devices

    @property
    def plan(self) -> Plan:
        """The plan of the last shape bound or run; raises PlanError while there is none.

        For a staged graph: the stages of its last run joined, and what the host did, as measured.
        """
        plan = _plan(self._bound())
        return replace(plan, told=self._told) if self._told else plan

    @property
    def receipt(self) -> Receipt:
        """What the last run did; raises PlanError before the first."""
        if self._receipt is None:
            raise PlanError("nothing has run yet, so there is no receipt; call run first")
        write, *facts = self._receipt
        return write(*facts)

    def ready(self) -> Ready:
        """What the last shape bound or run is run with; for tools that look inside.

        Raises:
            PlanError: there is none, or the graph is staged and has one a stage.
        """
        found = self._bound()
        if not isinstance(found, Ready):
            raise PlanError(
                f"graph {self.graph.name!r:.80} runs in stages, each with a plan of its own"
            )
        return found

    def estimate(self) -> Estimate:
        """Predicted time of a run now and peak bytes a device, before any run.

        "Now" is at the pace that the devices have at this moment; the plan's own prediction is for
        their usual pace.

        Raises:
            PlanError: nothing is bound, or the graph is staged and has not run yet: what its
                stages are hangs on the values fed, and a guess would say nothing.
        """
        found, plan = self._bound(), self.plan
        slow = found.slowdown() if isinstance(found, Ready) else 1.0
        seconds = (plan.predicted * slow, plan.low * slow, plan.high * slow)
        peaks = {d.id: d.peak_bytes for d in plan.devices}
        return Estimate(*seconds, peaks, plan.streamed_bytes())

    def bind(
        self,
        shapes: Mapping[str, Sequence[int]] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> Plan:
        """Plan and prepare for given shapes now, instead of at their first run.

        Raises:
            FeedError: the shapes do not fit.
            PlanError: no plan; or the graph is staged: then what is known of it has been prepared,
                and the whole plan comes with the first run.
        """
        return _plan(self._prepare(self.graph.bind(dims, shapes)))

    def run(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Where | None = None,
        donate: Sequence[str] = (),
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Run once and return the outputs by name, in the graph's order; thread-safe.

        Args:
            feeds: an array for each input, by name (see the class for staged graphs): of numpy, a
                ``DeviceArray``, or of any library that exports DLPack or the CUDA array interface.
                What lies on a device that reads it is copied there, not over the host.
            outputs: "host" for numpy's arrays, or "device" for ``DeviceArray``s that stay on the
                devices that make them (those of a staged graph on the host); None is as compiled.
            donate: names of inputs, fed as ``DeviceArray``s, that are given up: the run may write
                outputs that stay to their memory, and they are closed when it has ended well. Where
                it fails they are as before, or closed if it had begun to write to them.
            timeout: seconds until Timeout. The first run for new shapes plans and compiles
                before it runs; that is not broken off, but counts.

        Raises:
            FeedError: an input is missing, unknown, of another dtype or shape, or cannot be had
                from where it lies, or cannot be donated; or the timeout is no number, or
                ``outputs`` another word.
            OutOfMemory, MemoryBudget: there is no room for outputs that are to stay on a device,
                or ``constraints.memory`` has none.
            Timeout: not done after ``timeout`` seconds. The session stays usable.
            PlanError: the session is closed, or there is no plan for these shapes.
            DeviceError: a device failed.
            NotFinite: an op made a NaN or an infinity, in a session with ``check_finite``.
        """
        keeping, donated = self._stays(feeds, outputs, donate)
        if timeout is None:
            done = self._directly(feeds, keeping)
            if done is not None:
                return _ended(done, donated)
        done = self._run(feeds, request.deadline(timeout), profile=False, keeping=keeping).outputs
        return _ended(done, donated)

    def _stays(
        self, feeds: Mapping[str, Any], outputs: Where | None, donate: Sequence[str]
    ) -> tuple[Keeping | None, tuple[DeviceArray, ...]]:
        """Whether outputs are to stay, and the arrays that are donated; raises FeedError."""
        keep = request.keeps(outputs or self.config.outputs)
        if not donate:
            return (self._keeping if keep else None), ()
        donated = donated_of(self.graph, feeds, donate)
        return (Keeping(self._keeping.ledger, donated) if keep else None), donated

    def _directly(self, feeds: Mapping[str, Any], keeping: Keeping | None) -> dict[str, Any] | None:
        """The outputs of a run that can take the short way, else None."""
        last = self._last
        if last is None or (direct := last.direct) is None:
            return None
        try:
            done = direct.run(feeds, keeping)
        except DeviceError as error:
            return self._rescued(last, feeds, error, keeping)
        if done is None:
            return None
        outputs, seconds = done
        if not isinstance(last, Ready):
            self._receipt = (last.receipt, seconds)
            return outputs
        self._receipt = (last.recorder.receipt, seconds, {})
        if last.replan is not None and last.watch.note(seconds):
            self._submissions.post(partial(self._replan, last))
        if last.resite is not None and (keeping is not None or last.drift.count):
            self._moved(last, Sites({}, tuple(outputs) if keeping is not None else ()))
        return outputs

    def _rescued(
        self,
        ready: Ready | StagedReady,
        feeds: Mapping[str, Any],
        error: DeviceError,
        keeping: Keeping | None,
    ) -> dict[str, Any] | None:
        """The outputs of a run that the host failed; None where another run has to find out."""
        if not isinstance(ready, Ready):
            return None
        arrays = arrays_of(self.graph, feeds, Intake(self.devices))
        rescue = Attempt(self._fleet, ready, arrays, Deadline()).rescue
        outcome = rescue.recover(error)
        self._receipt = (_as_is, rescue.receipt(outcome.seconds))
        if keeping is not None:
            return hosted(self.devices[HOST], outcome.outputs, keeping.ledger)
        return outcome.outputs

    def submit(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Where | None = None,
        donate: Sequence[str] = (),
        timeout: float | None = None,
        block: bool = True,
    ) -> RunFuture:
        """Run in the background; the future is also awaitable. The inputs must not change.

        At most ``waiting`` runs (see ``compile``) wait behind those in flight; then this waits for
        room. ``timeout`` counts from now, that wait included. In a coroutine use ``run_async``.

        Everything that goes wrong, ``run``'s errors included, is raised by the future, but for:

        Raises:
            FeedError: the timeout is no number, or ``outputs`` another word.
            Busy: there is no room, and ``block`` is False or this is called back by a future in a
                thread that room could wait for; such calls may pass ``waiting`` by
                ``runs_at_once`` runs.
            ExecutionError: no thread can be started to wait for it.
        """
        deadline = request.deadline(timeout)
        keeping, donated = self._stays(feeds, outputs, donate)
        try:
            self._unforked()
            feeds = self._held(feeds)
        except Error as error:
            future = RunFuture(deadline)
            future.set_exception(error)
            return future
        return self._submissions.submit(
            partial(self._outputs, keeping=keeping, donated=donated), feeds, deadline, block=block
        )

    async def run_async(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Where | None = None,
        donate: Sequence[str] = (),
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """``run`` for a coroutine: the event loop goes on while it waits for room and the result.

        The inputs must not change meanwhile. A task that is cancelled gives its run up.
        """
        deadline = request.deadline(timeout)
        keeping, donated = self._stays(feeds, outputs, donate)
        self._unforked()
        run = partial(self._outputs, keeping=keeping, donated=donated)
        return await self._submissions.awaited(run, self._held(feeds), deadline)

    def _held(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """Feeds for another thread: what is on a device is ordered after this thread's stream."""
        held: Mapping[str, Any] = Intake(self.devices).held(feeds)
        return held

    def profile(self, feeds: Mapping[str, Any]) -> Outcome:
        """Run once with every step timed (slower: steps are waited for one by one)."""
        return self._run(feeds, Deadline(), profile=True)

    def close(self) -> None:
        """Release arenas and weights; devices stay open for other sessions.

        Runs in flight end as they would have, and their memory goes with the last of them.
        """
        with self._lock:
            self._closed = True
            self._ready.clear()
            self._last = None
        self._submissions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _outputs(
        self,
        feeds: Mapping[str, Any],
        deadline: Deadline,
        keeping: Keeping | None,
        donated: tuple[DeviceArray, ...],
    ) -> dict[str, Any]:
        outputs = self._directly(feeds, keeping) if deadline.seconds is None else None
        if outputs is None:
            outputs = self._run(feeds, deadline, profile=False, keeping=keeping).outputs
        return _ended(outputs, donated)

    def _run(
        self,
        feeds: Mapping[str, Any],
        deadline: Deadline,
        *,
        profile: bool,
        keeping: Keeping | None = None,
    ) -> Outcome:
        try:
            return self._done(feeds, deadline, profile=profile, keeping=keeping)
        except MemoryError as error:
            raise self._no_memory("run") from error

    def _no_memory(self, what: str) -> OutOfMemory:
        return OutOfMemory(
            f"graph {self.graph.name!r:.80}: the host has too little memory to {what} it; use "
            "smaller inputs or constraints.memory"
        )

    def _done(
        self,
        feeds: Mapping[str, Any],
        deadline: Deadline,
        *,
        profile: bool,
        keeping: Keeping | None,
    ) -> Outcome:
        if registry.lost():
            self._fleet.refresh()
        staged, intake = self.graph.staged is not None, Intake(self.devices)
        arrays = intake.on_host(feeds) if staged else arrays_of(self.graph, feeds, intake)
        ready = self._for_graph() if staged else self._for_shapes(arrays)
        if isinstance(ready, Ready):
            outcome, rescue = run_through(
                self._fleet, ready, arrays, deadline, profile=profile, keeping=keeping
            )
            if rescue is not None:
                self._receipt = (_as_is, rescue.receipt(outcome.seconds))
                return outcome
            self._told = outcome.notes
            write = ready.recorder.receipt
            notes = (*outcome.notes, *intake.notes)
            stayed = outcome.avoided, outcome.pulled, outcome.otherwise
            self._receipt = (write, outcome.seconds, outcome.spans, notes, *stayed)
            self._learn(ready, outcome, profile=profile)
            if ready.resite is not None:
                self._moved(ready, sites_now(ready.graph, arrays, keep=keeping is not None))
        else:
            outcome, receipt = ready.run(arrays, deadline, profile=profile)
            self._receipt = (receipt,)
            if keeping is not None:
                outcome.outputs = hosted(self.devices[HOST], outcome.outputs, keeping.ledger)
        return outcome

    def _forget(self) -> None:
        """Plan anew from the next run on: the devices are others."""
        with self._lock:
            self._ready.clear()
            self._last = None

    def _learn(self, ready: Ready, outcome: Outcome, *, profile: bool) -> None:
        """Keep the times of a profiled run; plan again where runs take too long."""
        if ready.replan is None:
            return
        if profile:
            from crossdock.runtime import costing
            from crossdock.runtime.rehearsal import observe

            with PREPARING:
                program = ready.program
                model = costing.store().model
                observe(outcome, program.plan, program.graph, program.devices, model)
        elif ready.watch.note(outcome.seconds):
            self._submissions.post(partial(self._replan, ready))

    def _moved(self, ready: Ready, now: Sites) -> None:
        """Note where a run had its inputs and outputs; plan again where that is for long."""
        resite = ready.resite
        if resite is not None and ready.drift.note(now, ready.sites):
            self._submissions.post(partial(self._swap, ready, lambda old: resite(old, now)))

    def _replan(self, ready: Ready) -> None:
        """Swap in what runs faster."""
        assert ready.replan is not None
        self._swap(ready, ready.replan)

    def _swap(self, ready: Ready, make: Callable[[Ready], Ready]) -> None:
        """Swap in what is made of what is ready; runs in flight end as they began."""
        try:
            with PREPARING:
                made = make(ready)
                made.flow = ready.flow
        except Error:
            return  # the plan there is goes on; a device that failed is told of by a run
        with self._lock:
            self._ready.swap(ready, made)
            if self._last is ready:
                self._last = made

    def _for_graph(self) -> Ready | StagedReady:
        return self._found(_shapes(self.graph)) or self._prepare(self.graph)

    def _for_shapes(self, arrays: Mapping[str, Fed]) -> Ready | StagedReady:
        found = self._found(tuple(a.shape for a in arrays.values()))
        if found is not None:
            return found
        return self._prepare(self.graph.bind(shapes={n: a.shape for n, a in arrays.items()}))

    def _found(self, key: _Shapes) -> Ready | StagedReady | None:
        self._unforked()
        with self._lock:
            if self._closed:
                raise PlanError(f"the session of {self.graph.name!r:.80} is closed; compile again")
            found = self._ready.get(key)
            if found is not None:
                self._last = found
            return found

    def _unforked(self) -> None:
        """Raise in a child of the process that made this session, before any lock is taken."""
        if JOBS.forked:
            raise no_more(f"session of {self.graph.name!r:.80}")

    def _prepare(self, graph: Graph) -> Ready | StagedReady:
        """Plan for new shapes; runs for shapes already planned go on meanwhile."""
        key = _shapes(graph)
        self._unforked()
        with PREPARING:
            found = self._found(key)
            if found is not None:
                return found
            try:
                made = self._made(graph)
            except MemoryError as error:
                raise self._no_memory("prepare") from error
            with self._lock:
                if not self._closed:
                    self._last, self._graph = made, graph
                    self._ready.put(key, made)
            return made

    def _made(self, graph: Graph) -> Ready | StagedReady:
        self._fleet.refresh()
        if graph.staged is None:
            again, self._planned = self._planned, True
            if not again:
                return self._fleet.prepared(
                    lambda: first_ready(graph, *self._fleet.now(), self._progress, self.graph)
                )
            kept = [ready for ready in self._ready.values() if isinstance(ready, Ready)]
            from crossdock.runtime.prepare import prepare  # planning takes long to load

            return self._fleet.prepared(
                lambda: prepare(
                    graph, *self._fleet.now(), self._progress, again=again, kept=kept,
                    source=self.graph,
                )
            )  # fmt: skip
        from crossdock.runtime.staged import StagedReady

        return StagedReady(graph, graph.staged, self._fleet, self._progress)

    def _bound(self) -> Ready | StagedReady:
        found = self._last
        if found is None and self._closed:
            raise PlanError(f"the session of {self.graph.name!r:.80} is closed; compile again")
        if found is None and self._graph is not None:
            return self._prepare(self._graph)
        if found is None:
            raise PlanError(
                f"graph {self.graph.name!r:.80} has symbols {', '.join(self.graph.symbols)} "
                "without sizes; bind(shapes=...) or run first"
            )
        return found


def _ended(outputs: dict[str, Any], donated: Sequence[DeviceArray]) -> dict[str, Any]:
    """The outputs of a run that has ended well, with which what was donated to it is closed."""
    for array in donated:
        array.close()
    return outputs


def _as_is(receipt: Receipt) -> Receipt:
    return receipt


def _plan(ready: Ready | StagedReady) -> Plan:
    return ready.program.plan if isinstance(ready, Ready) else ready.plan


def _shapes(graph: Graph) -> _Shapes:
    """What a prepared graph is kept by; a staged one has symbols where any shape will do."""
    return tuple(tuple(spec.shape) for spec in graph.inputs.values())
