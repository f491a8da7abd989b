"""Compiling a model as the options of the command line ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossdock.runtime.cli import options
from crossdock.runtime.cli.options import Placing
from crossdock.runtime.compiling import compile  # noqa: A004
from crossdock.runtime.config import Progress
from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.runtime.session import Session
from crossdock.runtime.tensor import Array


def compiled(
    graph: Graph,
    placing: Placing,
    progress: Progress | None,
    *,
    devices: Sequence[str] | None = None,
    plan: Plan | None = None,
) -> Session:
    """A session with everything that ``placing`` says; ``devices`` take the place of its own.

    With a ``plan``, inputs lie and outputs stay where it has them, unless that is said otherwise.
    """
    feeds_on, outputs = placing.lying(graph), placing.outputs
    if plan is not None:
        feeds_on = feeds_on or plan.feeds_on
        outputs = outputs or ("device" if plan.stays else "host")
    return compile(
        graph,
        devices=devices or placing.devices or "auto",
        policy=placing.policy,
        objective=options.objective(placing.objective).weights,
        watts=placing.watts,
        constraints=placing.constraints(),
        expected_runs=placing.expected_runs,
        threads=placing.threads,
        measure=placing.budget,
        fallback=placing.fallback,
        skip_passes=placing.skip_passes,
        precision=placing.precision,
        plan=plan,
        progress=progress,
        feeds_on=feeds_on,
        outputs=outputs or "host",
    )


def placed(session: Session, feeds: Mapping[str, Array]) -> dict[str, Any]:
    """Feeds with each input where the session was compiled to have it: on a device, or the host."""
    lying = session.config.sites.feeds
    return {
        name: DeviceArray.put(session.devices[lying[name]], array, f"input {name!r:.80}")
        if name in lying
        else array
        for name, array in feeds.items()
    }


def on_host(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs with those that stayed on devices copied to the host."""
    return {n: v.numpy() if isinstance(v, DeviceArray) else v for n, v in outputs.items()}
