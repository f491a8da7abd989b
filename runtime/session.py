"""Sessions: a graph compiled for a machine, ready to run from any thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from crossdock.devices import registry
from crossdock.devices.base import Device
from crossdock.runtime import request
from crossdock.runtime.config import PREPARING, Config, Progress
from crossdock.runtime.device_array import DeviceArray, Ledger
from crossdock.runtime.errors import DeviceError, Error, FeedError, PlanError
from crossdock.runtime.executor import Outcome
from crossdock.runtime.feeds import arrays_of
from crossdock.runtime.future import RunFuture
from crossdock.runtime.graph import Graph
from crossdock.runtime.intake import Intake
from crossdock.runtime.keeping import Keeping, donated_of, hosted
from crossdock.runtime.plan import HOST, Plan
from crossdock.runtime.pool import Deadline
from crossdock.runtime.ready import Ready
from crossdock.runtime.receipt import Receipt
from crossdock.runtime.repertoire import Repertoire, no_memory
from crossdock.runtime.sites import Sites, sites_now
from crossdock.runtime.submitted import Submissions
from crossdock.runtime.through import Attempt, run_through

if TYPE_CHECKING:
    from crossdock.runtime.residency import Residency
    from crossdock.runtime.staged import StagedReady

Where = Literal["host", "device"]
"""Where outputs are to be."""


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
        self._told: tuple[str, ...] = ()
        self._labels: Residency | None = None
        self._receipt: tuple[Callable[..., Receipt], *tuple[Any, ...]] | None = (
            None  # and arguments
        )
        self._keeping = Keeping(Ledger(config.constraints.memory))
        self._usual = self._keeping if request.keeps(config.outputs) else None
        self._submissions = Submissions(graph.name, config.runs_at_once, config.waiting)
        self._plans = Repertoire(graph, config, progress, bound)
        self._fleet = self._plans.fleet

    @property
    def devices(self) -> Mapping[str, Device]:
        """The devices that it uses now, by id; those that are lost are not among them."""
        return self._fleet.devices

    @property
    def plan(self) -> Plan:
        """The plan of the last shape bound or run; raises PlanError while there is none.

        For a staged graph: the stages of its last run joined, and what the host did, as measured.
        """
        plan = _plan(self._plans.bound())
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
        found = self._plans.bound()
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
        found, plan = self._plans.bound(), self.plan
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
        return _plan(self._plans.prepare(self.graph.bind(dims, shapes)))

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
                What lies on a device that reads it is read where it lies, or copied there; it may
                not be changed while the run is on.
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
                return _ended(done, donated) if donated else done
        done = self._run(feeds, request.deadline(timeout), profile=False, keeping=keeping).outputs
        return _ended(done, donated)

    def _stays(
        self, feeds: Mapping[str, Any], outputs: Where | None, donate: Sequence[str]
    ) -> tuple[Keeping | None, tuple[DeviceArray, ...]]:
        """Whether outputs are to stay, and the arrays that are donated; raises FeedError."""
        if outputs is None and not donate:
            return self._usual, ()
        keep = request.keeps(outputs or self.config.outputs)
        if not donate:
            return (self._keeping if keep else None), ()
        donated = donated_of(self.graph, feeds, donate)
        return (Keeping(self._keeping.ledger, donated) if keep else None), donated

    def _directly(self, feeds: Mapping[str, Any], keeping: Keeping | None) -> dict[str, Any] | None:
        """The outputs of a run that can take the short way, else None."""
        last = self._plans.last
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
            self._plans.unforked()
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
        self._plans.unforked()
        run = partial(self._outputs, keeping=keeping, donated=donated)
        return await self._submissions.awaited(run, self._held(feeds), deadline)

    def _held(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """Feeds for another thread: what is on a device is ordered after this thread's stream."""
        held: Mapping[str, Any] = Intake(self.devices).held(feeds)
        return held

    def profile(self, feeds: Mapping[str, Any]) -> Outcome:
        """Run once with every step timed (slower: steps are waited for one by one).

        Outputs are where they were compiled to be, so that the steps are those of the plan.
        """
        return self._run(feeds, Deadline(), profile=True, keeping=self._usual)

    def close(self) -> None:
        """Release arenas and weights; devices stay open for other sessions.

        Runs in flight end as they would have, and their memory goes with the last of them.
        """
        self._plans.close()
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
            raise no_memory(self.graph, "run") from error

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
        ready = self._plans.for_graph() if staged else self._plans.for_shapes(arrays)
        if isinstance(ready, Ready):
            if self.config.constraints.residency:
                self._hold(ready.graph, sites_now(ready.graph, arrays, keep=keeping is not None))
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

    def _hold(self, graph: Graph, now: Sites) -> None:
        """Raise FeedError for a run that has an input, or wants an output, where that is barred."""
        from crossdock.runtime.residency import Residency  # takes long to load

        labels = self.config.constraints.residency
        if self._labels is None or self._labels.graph is not graph:
            self._labels = Residency(labels, graph)
        if astray := self._labels.astray(now):
            raise FeedError(astray)

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
            self._submissions.post(partial(self._plans.swap, ready, lambda old: resite(old, now)))

    def _replan(self, ready: Ready) -> None:
        """Swap in what runs faster."""
        assert ready.replan is not None
        self._plans.swap(ready, ready.replan)


def _ended(outputs: dict[str, Any], donated: Sequence[DeviceArray]) -> dict[str, Any]:
    """The outputs of a run that has ended well, with which what was donated to it is closed."""
    for array in donated:
        array.close()
    return outputs


def _as_is(receipt: Receipt) -> Receipt:
    return receipt


def _plan(ready: Ready | StagedReady) -> Plan:
    return ready.program.plan if isinstance(ready, Ready) else ready.plan
