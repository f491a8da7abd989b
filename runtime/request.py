"""What ``compile`` and ``run`` are asked for: arguments checked, devices opened."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from crossdock.devices import registry
from crossdock.devices.base import Device
from crossdock.kernels.precision import HIGHEST, POLICIES
from crossdock.runtime.config import Config
from crossdock.runtime.errors import FeedError, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import HOST, Constraints, Plan
from crossdock.runtime.pool import Deadline
from crossdock.scheduler.objective import Objective


def device_ids(devices: object) -> tuple[str, ...] | None:
    """The ids asked for; None for all."""
    if isinstance(devices, str):
        return None if devices == "auto" else (devices,)
    ids = tuple(devices) if isinstance(devices, Iterable) else ()
    if not ids or not all(isinstance(name, str) for name in ids):
        raise PlanError(
            f"devices={devices!r} names nothing to run on; give 'auto', a device id such as "
            "'cpu:0', or a list of ids"
        )
    return ids


def check(graph: object, config: Config) -> None:
    """Refuse arguments of ``compile`` that nothing can be made of."""
    if not isinstance(graph, Graph):
        raise PlanError(
            f"compile takes a Graph, not {type(graph).__name__}; get one from crossdock.load(...) "
            "or GraphBuilder.build(...)"
        )
    if not isinstance(config.constraints, Constraints):
        raise PlanError(
            f"constraints is a crossdock.Constraints, not {type(config.constraints).__name__}"
        )
    if config.plan is not None and not isinstance(config.plan, Plan):
        raise PlanError(
            f"plan is a crossdock.Plan, not {type(config.plan).__name__}; read a file's with "
            "Plan.loads(text)"
        )
    if config.plan is not None and graph.staged is not None:
        raise PlanError(
            f"graph {graph.name!r} runs in stages that hang on the values fed, so no plan can be "
            "given for it; compile without"
        )
    plain = config.objective == Objective() and not config.constraints.max_share
    if not plain and config.policy != "auto":
        raise PlanError(
            f"policy {config.policy!r} places for latency alone, in any shares; objective "
            f"{config.objective} and max_share need policy='auto'"
        )
    if config.constraints.residency and (config.check_finite or config.checks is not None):
        _check_seen(config.constraints)
    if config.policy != "auto":
        _check_policy(config.policy)
    if config.skip_passes:
        _check_passes(config.skip_passes)
    _check_values(config)


def _check_seen(constraints: Constraints) -> None:
    """Refuse to look at values that may not be on the host, which is where they are looked at."""
    from crossdock.runtime.residency import private  # takes long to load

    for label in private(constraints.residency):
        raise PlanError(
            f"residency {label!r} keeps values off {HOST}, where check_finite and verify look at "
            f"them: leave these out, or add {HOST} to the label"
        )


def _check_passes(names: tuple[str, ...]) -> None:
    from crossdock.runtime import passes  # takes long to load

    passes.check(names)


def pass_names(names: object) -> tuple[str, ...]:
    """The names of passes given; raises PlanError for what is no list of names."""
    found = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else (None,)
    if not all(isinstance(name, str) for name in found):
        raise PlanError(f"skip_passes={names!r:.80}: give a list of names, such as ['fuse-bias']")
    return cast(tuple[str, ...], found)


def _check_policy(name: str) -> None:
    from crossdock.scheduler import policy_names  # takes long to load

    if name not in policy_names():
        raise PlanError(f"there is no policy {name!r}; use one of {', '.join(policy_names())}")


def _check_values(config: Config) -> None:
    """Refuse numbers and flags that are none."""
    for name in ("expected_runs", "runs_at_once", "waiting", "threads"):
        value = getattr(config, name)
        if value is not None and not (isinstance(value, int | float | np.number) and value >= 1):
            raise PlanError(f"{name}={value!r}: give 1 or more")
    _check_precision(config)
    for name in ("search", "split", "strict", "check_finite", "deterministic"):
        value = getattr(config, name)
        if not isinstance(value, bool | np.bool_):
            raise PlanError(f"{name}={value!r:.80}: give True or False")
    watchdog: Any = config.watchdog
    if not (isinstance(watchdog, int | float | np.number) and watchdog > 0):
        raise PlanError(f"watchdog={watchdog!r:.80}: give seconds greater than 0, or float('inf')")
    measure: Any = config.measure
    if not (isinstance(measure, int | float | np.number) and measure >= 0):
        raise PlanError(f"measure={measure!r}: give True, False or a budget in seconds")


def _check_precision(config: Config) -> None:
    """Refuse a precision that there is not, or that strict=True contradicts."""
    if config.precision not in POLICIES:
        names = ", ".join(map(repr, POLICIES))
        raise PlanError(f"precision={config.precision!r:.80}: give one of {names}")
    if config.strict and config.precision != HIGHEST:
        raise PlanError(
            f"strict=True keeps every bit and precision={config.precision!r} gives some up; leave "
            "one of them out"
        )


def open_devices(config: Config) -> dict[str, Device]:
    """Open the devices asked for, the host first (it is always there to feed the others)."""
    if config.plan is not None:  # one that is not here makes the plan stale, which is said then
        ids: Iterable[str] = [n for n in config.plan.device_ids() if registry.is_there(n)]
    elif config.devices is None:
        ids = [d.id for d in registry.devices()]
    else:
        ids = config.devices  # other kinds need not be looked for, nor their drivers loaded
    wanted = dict.fromkeys([HOST, *ids, *sorted(config.sites.devices)])
    return {name: registry.open_device(name, threads=config.threads) for name in wanted}


def keeps(outputs: str) -> bool:
    """Whether outputs are to stay on the devices that make them; raises FeedError."""
    if outputs not in ("host", "device"):
        raise FeedError(f"outputs is 'host' or 'device'; it is {outputs!r:.80}")
    return outputs == "device"


def deadline(timeout: object) -> Deadline:
    """A run's deadline; raises FeedError for what is no number of seconds."""
    if timeout is None:
        return Deadline()
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | np.number):
        raise FeedError(f"timeout={timeout!r:.80}: give a number of seconds, or None")
    if math.isnan(timeout) or timeout < 0:
        raise FeedError(f"timeout={timeout!r}: give a number of seconds from 0 on, or None")
    return Deadline() if math.isinf(timeout) else Deadline(float(timeout))
