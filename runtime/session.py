"""Sessions: a graph compiled for a machine, ready to run from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from crossdock.devices import registry, topology
from crossdock.devices.base import Cap, Device, DeviceInfo, Worker
from crossdock.devices.probe import probe
from crossdock.runtime import costing, measure, passes, planner, profiles
from crossdock.runtime.errors import Error, FeedError, PlanError
from crossdock.runtime.executor import Outcome, Pool, Run
from crossdock.runtime.graph import Graph
from crossdock.runtime.lower import Instance, Program, instantiate, lower
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.receipt import Receipt, make_receipt
from crossdock.runtime.tensor import Array, TensorSpec

Progress = Callable[[str, int, int], None]
SHAPES_KEPT = 8
RUNS_AT_ONCE = 8
MEASURE_SECONDS = 20.0


@dataclass(frozen=True)
class Estimate:
    """Predicted seconds of a run with an 80 % interval, and peak bytes by device id."""

    seconds: float
    low: float
    high: float
    peak_bytes: Mapping[str, int]


class RunFuture(Future[dict[str, Array]]):
    """A ``concurrent.futures.Future`` that can also be awaited in a running event loop."""

    def __await__(self) -> Generator[Any, None, dict[str, Array]]:
        return asyncio.wrap_future(self).__await__()


@dataclass(frozen=True)
class Config:
    """How a session plans and runs; the arguments of ``compile``."""

    devices: str | Sequence[str] = "auto"
    policy: str = "auto"
    objective: str = "latency"
    constraints: Constraints = Constraints()
    expected_runs: int = 1000
    threads: int | None = None
    measure: bool | float = True
    skip_passes: tuple[str, ...] = ()
    runs_at_once: int = RUNS_AT_ONCE


def compile(  # noqa: A001 - the public name, used as crossdock.compile
    graph: Graph,
    devices: str | Sequence[str] = "auto",
    policy: str = "auto",
    objective: str = "latency",
    constraints: Constraints | None = None,
    expected_runs: int = 1000,
    threads: int | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    measure: bool | float = True,
    skip_passes: Sequence[str] = (),
    runs_at_once: int = RUNS_AT_ONCE,
    progress: Progress | None = None,
) -> Session:
    """Compile a graph for this machine.

    Args:
        graph: from ``load`` or a ``GraphBuilder``.
        devices: "auto" for every device there is, or device ids; ops that none of them can run
            are run on the host, and the receipt says so.
        policy: placement policy by name (``crossdock.scheduler.policies``).
        objective: "latency" is the one there is.
        constraints: pins, forbidden devices, memory budgets.
        expected_runs: runs over which uploads of weights are spread.
        threads: processor threads a CPU-backed device may use (None: all).
        shapes, dims: bind a graph's symbols now, by input or by symbol; else the first run does.
        measure: time kernels not measured before; a number is the budget in seconds.
        skip_passes: graph passes to leave out, by name.
        runs_at_once: runs in flight before callers wait; each has arenas of its own.
        progress: called with (what, done, total) while measuring and compiling.

    Raises:
        PlanError: no placement, no such policy or objective, or over a memory budget.
        DeviceError: a device named cannot be opened, or a kernel does not build.
    """
    if objective != "latency":
        raise PlanError(f"objective {objective!r} is not supported; use 'latency'")
    config = Config(
        devices if isinstance(devices, str) else tuple(devices),
        policy,
        objective,
        constraints or Constraints(),
        expected_runs,
        threads,
        measure,
        tuple(skip_passes),
        runs_at_once,
    )
    session = Session(graph, config, progress)
    if not graph.symbols or shapes or dims:
        session.bind(shapes, dims)
    return session


class Session:
    """A compiled graph. Thread-safe; use as a context manager or ``close`` when done."""

    def __init__(self, graph: Graph, config: Config, progress: Progress | None = None) -> None:
        self.graph = graph
        self.config = config
        self._progress = progress
        self._lock = threading.Lock()
        self._ready: OrderedDict[tuple[tuple[int, ...], ...], _Ready] = OrderedDict()
        self._last: _Ready | None = None
        self._receipt: Callable[[], Receipt] | None = None
        self._closed = False
        self.devices = _open(config)

    @property
    def plan(self) -> Plan:
        """The plan of the last shape bound or run; raises PlanError while there is none."""
        return self._bound().program.plan

    @property
    def receipt(self) -> Receipt:
        """What the last run did; raises PlanError before the first."""
        if self._receipt is None:
            raise PlanError("nothing has run yet, so there is no receipt; call run first")
        return self._receipt()

    def estimate(self) -> Estimate:
        """Predicted time of a run and peak bytes a device, before any run."""
        plan = self.plan
        return Estimate(
            plan.predicted, plan.low, plan.high, {d.id: d.peak_bytes for d in plan.devices}
        )

    def bind(
        self,
        shapes: Mapping[str, Sequence[int]] | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> Plan:
        """Plan and prepare for given shapes now, instead of at their first run."""
        return self._prepare(self.graph.bind(dims, shapes)).program.plan

    def run(
        self,
        feeds: Mapping[str, Any],
        *,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Run once and return the outputs by name, in the graph's order; thread-safe.

        Raises:
            FeedError: an input is missing, unknown, or of another dtype or shape.
            Timeout: not done after ``timeout`` seconds.
            DeviceError: a device failed.
        """
        return self._run(feeds, timeout, profile=False).outputs

    def submit(self, feeds: Mapping[str, Any], *, timeout: float | None = None) -> RunFuture:
        """Run in the background; the future is also awaitable. The inputs must not change."""
        future = RunFuture()
        _background().post(lambda: self._fulfil(future, feeds, timeout))
        return future

    def profile(self, feeds: Mapping[str, Any]) -> Outcome:
        """Run once with every step timed (slower: steps are waited for one by one)."""
        return self._run(feeds, None, profile=True)

    def close(self) -> None:
        """Release arenas and weights; devices stay open for other sessions."""
        with self._lock:
            self._closed = True
            self._ready.clear()
            self._last = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _fulfil(self, future: RunFuture, feeds: Mapping[str, Any], timeout: float | None) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self.run(feeds, timeout=timeout))
        except BaseException as error:
            future.set_exception(error)

    def _run(self, feeds: Mapping[str, Any], timeout: float | None, *, profile: bool) -> Outcome:
        arrays = _arrays(self.graph, feeds)
        ready = self._for_shapes(arrays)
        instance = ready.pool.take(timeout)
        run = Run(ready.program, instance, lambda: ready.pool.give(instance), profile=profile)
        if ready.program.host_only and timeout is None:
            outcome = run.inline(arrays)
        else:
            outcome = run.across(arrays, timeout)
        self._receipt = lambda: ready.receipt(outcome)
        return outcome

    def _for_shapes(self, arrays: Mapping[str, Array]) -> _Ready:
        key = tuple(a.shape for a in arrays.values())
        with self._lock:
            found = self._ready.get(key)
            if found is not None:
                self._ready.move_to_end(key)
                self._last = found
                return found
        return self._prepare(self.graph.bind(shapes={n: a.shape for n, a in arrays.items()}))

    def _prepare(self, graph: Graph) -> _Ready:
        key = tuple(spec.dims for spec in graph.inputs.values())
        with self._lock:
            if self._closed:
                raise PlanError("the session is closed; compile again")
            found = self._ready.get(key)
            if found is None:
                found = _Ready.make(graph, self.config, self.devices, self._progress)
                self._ready[key] = found
                while len(self._ready) > SHAPES_KEPT:
                    self._ready.popitem(last=False)
            self._last = found
            return found

    def _bound(self) -> _Ready:
        if self._last is None:
            raise PlanError(
                f"graph {self.graph.name!r} has symbols {', '.join(self.graph.symbols)} without "
                "sizes; bind(shapes=...) or run first"
            )
        return self._last


@dataclass
class _Ready:
    """A graph of fixed shapes, planned and lowered."""

    program: Program
    pool: Pool
    asked: frozenset[str]

    @classmethod
    def make(
        cls,
        graph: Graph,
        config: Config,
        devices: Mapping[str, Device],
        progress: Progress | None,
    ) -> _Ready:
        keep = [
            n.name
            for n in graph.nodes
            for pattern in (*config.constraints.pin, *config.constraints.forbid)
            if planner.matches(pattern, n)
        ]
        graph = passes.run(graph, skip=config.skip_passes, keep=keep)
        asked = frozenset(devices) if config.devices == "auto" else frozenset(config.devices)
        target = _target(config, devices, asked)
        _measure(graph, config, devices, progress)
        options = planner.Options(config.policy, config.constraints, config.expected_runs)
        plan = planner.make_plan(graph, target, options)
        used = {HOST, *(s.device for s in plan.steps)}
        program = lower(graph, plan, {d: devices[d] for d in devices if d in used}, progress)
        pool = Pool(lambda: _instance(program), config.runs_at_once)
        return cls(program, pool, asked)

    @cached_property
    def digest(self) -> str:
        return self.program.plan.digest()

    def receipt(self, outcome: Outcome) -> Receipt:
        return make_receipt(
            self.program.plan, self.digest, outcome.seconds, outcome.spans, self.asked
        )


def _instance(program: Program) -> Instance:
    return instantiate(program)


def _open(config: Config) -> dict[str, Device]:
    """Open the devices asked for, the host first (it is always there to feed the others)."""
    if config.devices == "auto":
        ids = [info.id for info in registry.devices()]
    else:
        ids = [config.devices] if isinstance(config.devices, str) else list(config.devices)
        if not ids:
            raise PlanError("devices=[] leaves nothing to run on; name a device or use 'auto'")
    wanted = dict.fromkeys([HOST, *ids])
    return {id: registry.open_device(id, threads=config.threads) for id in wanted}


def _target(config: Config, devices: Mapping[str, Device], asked: frozenset[str]) -> planner.Target:
    infos = tuple(d.info for d in devices.values())
    model = costing.store().model
    return planner.Target(infos, asked, model, group_capacity(infos))


def group_capacity(infos: Sequence[DeviceInfo], cores: int | None = None) -> dict[str, int]:
    """How many devices of each shared resource group may compute at once.

    Devices of one processor run side by side as long as their threads fit its ``cores`` (None:
    those of this machine).
    """
    result: dict[str, int] = {}
    for group in {d.resource_group for d in infos}:
        members = sorted(d.compute_units for d in infos if d.resource_group == group)
        room = members[-1] if group != "host-cpu" else cores or topology.cpu_count()
        fit, used = 0, 0
        for units in members:
            used += units
            fit += used <= room
        result[group] = max(1, fit)
    return result


def _measure(
    graph: Graph, config: Config, devices: Mapping[str, Device], progress: Progress | None
) -> None:
    if config.measure is False:
        return
    costs = costing.store()
    before = costs.model.version
    real = [d.info for d in devices.values() if Cap.VIRTUAL_TIME not in d.info.caps]
    if any(costs.model.rates(info.fingerprint) is None for info in real):
        ids = [info.id for info in real]
        profiles.apply(probe(quick=True, devices=ids, threads=config.threads), costs.model)
    for id, device in devices.items():
        if id != HOST:
            measure.measure_link(devices[HOST], device, costs.model)
    budget = MEASURE_SECONDS if config.measure is True else float(config.measure)
    measure.measure_ops(
        costing.op_calls(graph),
        list(devices.values()),
        costs.model,
        budget_s=budget,
        progress=progress,
    )
    if costs.model.version != before:
        costs.save()


def _arrays(graph: Graph, feeds: Mapping[str, Any]) -> dict[str, Array]:
    unknown = [n for n in feeds if n not in graph.inputs]
    missing = [n for n in graph.inputs if n not in feeds]
    if unknown or missing:
        raise FeedError(
            f"graph {graph.name!r}: "
            + "; ".join(
                [f"no input is named {', '.join(map(repr, unknown))}"] * bool(unknown)
                + [f"input {', '.join(map(repr, missing))} is not fed"] * bool(missing)
            )
            + f"; its inputs are {', '.join(f'{n}: {s}' for n, s in graph.inputs.items())}"
        )
    return {name: _checked(name, spec, feeds[name]) for name, spec in graph.inputs.items()}


def _checked(name: str, spec: TensorSpec, value: Any) -> Array:
    array = np.asarray(value)
    try:
        have = TensorSpec.of(array)
    except Error as error:
        raise FeedError(f"input {name!r} wants {spec}: {error}") from error
    if have.dtype != spec.dtype:
        raise FeedError(
            f"input {name!r} wants {spec}, got {have}; convert it with .astype({spec.dtype!r})"
        )
    fits = have.rank == spec.rank and all(
        isinstance(want, str) or want == got
        for want, got in zip(spec.shape, have.shape, strict=True)
    )
    if not fits:
        raise FeedError(f"input {name!r} wants {spec}, got {have}")
    return array


class _Background:
    """A few daemon threads that wait for runs on behalf of ``submit``."""

    def __init__(self, size: int) -> None:
        self._workers = [Worker(f"crossdock submit {i}") for i in range(size)]
        self._next = 0

    def post(self, job: Callable[[], None]) -> None:
        """Hand a job to the next thread in turn."""
        self._next = (self._next + 1) % len(self._workers)
        self._workers[self._next].post(job)


_BACKGROUND_LOCK = threading.Lock()
_BACKGROUND: list[_Background] = []


def _background() -> _Background:
    with _BACKGROUND_LOCK:
        if not _BACKGROUND:
            _BACKGROUND.append(_Background(RUNS_AT_ONCE))
        return _BACKGROUND[0]
