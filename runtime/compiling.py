"""Compile a graph for this machine: what a caller asks for, checked, then a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from crossdock.runtime import request, settings
from crossdock.runtime.checks import checks_of
from crossdock.runtime.config import NOT_STRICT, RUNS_AT_ONCE, WAITING, Config, Progress
from crossdock.runtime.determined import determined
from crossdock.runtime.fallback import Fallback, contract_of
from crossdock.runtime.fixed import fixed
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Constraints, Plan
from crossdock.runtime.session import Session, Where
from crossdock.runtime.sites import sites_of
from crossdock.scheduler.objective import Objective


def compile(  # noqa: A001 - the public name, used as crossdock.compile
    graph: Graph,
    devices: str | Sequence[str] = "auto",
    policy: str = "auto",
    objective: str | Mapping[str, float] = "latency",
    constraints: Constraints | None = None,
    expected_runs: int = 1000,
    threads: int | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    measure: bool | float = True,
    skip_passes: Sequence[str] = (),
    runs_at_once: int = RUNS_AT_ONCE,
    waiting: int = WAITING,
    search: bool = False,
    watts: Mapping[str, tuple[float, float]] | None = None,
    fallback: str | Fallback = "allow",
    plan: Plan | None = None,
    split: bool = True,
    strict: bool = False,
    resident: Mapping[str, Any] | None = None,
    feeds_on: str | Mapping[str, str] | None = None,
    outputs: Where = "host",
    check_finite: bool = False,
    verify: str | None = None,
    watchdog: float | None = None,
    deterministic: bool = False,
    precision: str = "highest",
    progress: Progress | None = None,
) -> Session:
    """Compile a graph for this machine.

    Args:
        graph: from ``load`` or a ``GraphBuilder``.
        devices: "auto" for every device there is, or device ids; ops that none of them can run
            are run on the host, and the receipt says so. "isolated:opencl:0" is "opencl:0" in a
            process of its own, for drivers that crash or hang (``crossdock.devices.isolated``).
        policy: placement policy by name (``crossdock.scheduler.policies``).
        objective: "latency" (seconds of a run), "throughput" (seconds between the ends of
            successive runs, many of them submitted at once), "energy" (joules of a run), or
            weights of them such as ``{"latency": 0.5, "energy": 0.5}``, each term over its value
            on the best single device.
        constraints: pins, forbidden devices, memory budgets.
        expected_runs: runs over which uploads of weights are spread.
        threads: processor threads a CPU-backed device may use (None: all).
        shapes, dims: bind a graph's symbols now, by input or by symbol; else the first run does.
        measure: time kernels not measured before; a number is the budget in seconds. Shapes after
            the first are planned with costs fitted to what was measured.
        skip_passes: graph passes to leave out, by name (``crossdock.runtime.passes``).
        runs_at_once: runs in flight before callers wait; each has arenas of its own. Sessions that
            use the same devices take turns on them, whatever they have in flight: a run waits for
            about one of each other session.
        waiting: runs submitted that wait for those in flight before ``submit`` waits, or says Busy.
        search: search on from the policy's plan with compiled code: better plans where devices
            share a graph; the first use on a machine compiles that code, for a minute or two.
        watts: what a device draws (idle, computing), by device id, for ``objective="energy"``.
        fallback: which ops may run on the host because no device asked for can run them: "allow"
            any, "forbid" none, or a ``Fallback`` (decided before anything runs; a stage of a
            staged graph before that stage runs).
        split: cut an op, or ops that share a dimension, into parts for several devices where that
            is predicted to pay; only for latency, where devices compute at once, and for the first
            shapes that a session is prepared for. And take ops of a batch image by image, where
            that measures faster.
        strict: only kernels of the ops' plain arithmetic: no Winograd convolution, which has a
            larger error (bounded by ``CROSSDOCK_FAST_ERROR``) and spreads an infinity or NaN over
            a tile of results; and subnormal weights stay what they are, however slow.
        plan: a plan to run, made before for the same graph, constraints and devices; nothing is
            planned or measured then, and shapes that it is not for are refused. It keeps what it
            does to fit its memory, and is refused where ``constraints.memory``, or a device, has
            less than it takes. It may come from a file that nobody vouches for.
        resident: inputs that keep a value from run to run, by name: copied once to the devices
            that read them, as weights are, and not fed any more.
        feeds_on: the device that the inputs of runs lie on, or one for each by the input's name;
            those not named come from the host. A plan is made for that: what lies on a device need
            not be copied to it, and is read where it lies if launches alone use it. A device that
            is not among ``devices`` holds inputs and computes nothing. Runs may be fed from
            elsewhere all the same, and a session that is, for long, plans again.
        outputs: "device" plans for outputs that stay where they are made, and makes that what runs
            do unless they are told otherwise.
        check_finite: end a run with NotFinite that names the first op, in the graph's order, that
            made a NaN or an infinity out of finite operands. Steps then run one by one and their
            results are read, so runs take several times as long; kernels are the same ones.
        verify: "transfers" reads back what every copy wrote and compares: one that arrives damaged
            is made again, and the device is given up where that does not help. "sample:0.01"
            computes one step in a hundred again on the host, drawn anew for every run, and ends a
            run with WrongResult where that gives another result. Both, with a comma. Work that a
            device says is done and is not, and damaged bytes, are noticed by these alone.
        watchdog: seconds that a device may take for any step before it counts as hung; one that
            is predicted to take long may take ten times that. Infinity waits for ever; None is
            ``CROSSDOCK_WATCHDOG``, or 5. A run on the host alone for which under 0.1 s is predicted
            and no timeout given is not looked at, unless a number is given here.
        deterministic: the same bits for the same inputs, run to run, session to session and process
            to process, as long as graph, arguments, devices (with their threads), settings and
            versions are the same, and no device fails meanwhile (a receipt tells of it). Kernels
            are chosen by a fixed rank, places by a fixed policy (the host where it is among
            ``devices`` and no pin says otherwise); nothing is measured, no op is split (but to fit
            ``constraints.memory``) and no plan swapped for another, so runs may take longer.

            With ``strict`` the bits depend neither on devices, pins and other constraints, nor on
            ``threads``, nor on devices that fail: ops that round or compare run on the host alone,
            others where they are placed. A pin of such an op to another device is refused, and so
            is a budget that only split ops fit in. Threads of the host's array library are its own
            settings' (``OPENBLAS_NUM_THREADS``).
        precision: what products of float32 matrices may lose for speed: "highest" nothing; "high"
            lets operands be rounded to TF32 (11 significant bits), "fast" to bfloat16 (8) as well,
            with sums in float32 all the same. A permission: kernels that round are taken where a
            device has them and they are measured, or known, to be faster; the plan and the receipt
            say where. A network's answers move by about as much as its weights are rounded.
        progress: called with (what, done, total) while measuring and compiling.

    Raises:
        PlanError: no placement, no such policy or objective, over a memory budget, or an op would
            fall back to the host that may not; or the plan given is stale or damaged; or both
            strict=True and a precision that loses bits.
        DeviceError: a device named cannot be opened, or a kernel does not build.
    """
    skipped = request.pass_names(skip_passes)
    if strict:
        skipped += tuple(name for name in NOT_STRICT if name not in skipped)
    config = Config(
        request.device_ids(devices),
        policy,
        Objective.of(objective),
        constraints or Constraints(),
        expected_runs,
        threads,
        measure,
        skipped,
        runs_at_once,
        search,
        dict(watts or {}),
        contract_of(fallback),
        plan,
        split,
        strict,
        check_finite,
        settings.watchdog() if watchdog is None else watchdog,
        watchdog is not None or verify is not None,
        checks_of(verify),
        waiting,
        deterministic,
        precision,
    )
    request.check(graph, config)
    if deterministic:
        config = determined(config)
    graph = fixed(graph, resident) if resident else graph
    config = replace(config, sites=sites_of(graph, feeds_on, outputs), outputs=outputs)
    now = not graph.symbols or shapes or dims
    return Session(graph, config, progress, graph.bind(dims, shapes) if now else None)
