"""Compiling a model as the options of the command line ask."""

from __future__ import annotations

from collections.abc import Sequence

from crossdock.runtime.cli import options
from crossdock.runtime.cli.options import Placing
from crossdock.runtime.compiling import compile  # noqa: A004
from crossdock.runtime.config import Progress
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan
from crossdock.runtime.session import Session


def compiled(
    graph: Graph,
    placing: Placing,
    progress: Progress | None,
    *,
    devices: Sequence[str] | None = None,
    plan: Plan | None = None,
) -> Session:
    """A session with everything that ``placing`` says; ``devices`` take the place of its own."""
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
    )
