"""How runs of sessions are timed and compared."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import crossdock as xd

ROUNDS = int(os.environ.get("CROSSDOCK_BENCH_ROUNDS", "25"))
"""Rounds of interleaved runs."""


def opencl() -> str:
    """The OpenCL device that shares: the first there is."""
    return next(d.id for d in xd.devices() if d.kind == "opencl")


def feeds_of(graph: Any) -> dict[str, Any]:
    """Random float32 arrays for a graph's inputs."""
    rng = np.random.default_rng(1)
    return {
        name: rng.standard_normal(spec.dims).astype(np.float32)
        for name, spec in graph.inputs.items()
    }


def median_seconds(run: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call."""
    return interleaved({"": run}, rounds)[""]


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS, seconds: float = math.inf
) -> dict[str, float]:
    """Median seconds of calls, one of each in every round, so that a slow moment meets all.

    The first round does not count. Stops after ``seconds``, but makes three rounds at least.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.monotonic()
    for done in range(rounds + 1):
        if done > 3 and time.monotonic() - begun > seconds:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(row[1:]) for name, row in times.items()}


def same(answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that runs by name agree on every output, to float32 accuracy."""
    first, *rest = answers.values()
    for answer in rest:
        for output, value in answer.items():
            scale = float(np.abs(first[output]).max(initial=1e-6))
            np.testing.assert_allclose(value, first[output], rtol=1e-2, atol=1e-3 * scale)
