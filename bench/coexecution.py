"""Graphs shared by two one-core devices against each device alone; prints what was found as JSON.

Run in a process of its own, since PoCL reads the number of its threads when it is loaded: a part of
a device made by fission still runs on all of them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from typing import Any

os.environ["POCL_MAX_PTHREAD_COUNT"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from coexecution_graphs import GRAPHS

import crossdock as xd

ROUNDS = int(os.environ.get("CROSSDOCK_BENCH_ROUNDS", "25"))


def pin() -> None:
    """Give the processor's queue the first core and the OpenCL driver's thread the second.

    Left alone, the kernel starts both on the core that woke them and parts them milliseconds later.
    """
    first, second, *_ = sorted(os.sched_getaffinity(0))
    ours = {t.native_id: t.name for t in threading.enumerate()}
    for task in os.listdir("/proc/self/task"):
        name = ours.get(int(task))
        if name is None:
            os.sched_setaffinity(int(task), {second})
        elif name.startswith("crossdock cpu:0"):
            os.sched_setaffinity(int(task), {first})


def opencl() -> str:
    """The OpenCL device that shares: the first there is."""
    return next(d.id for d in xd.devices() if d.kind == "opencl")


def interleaved(sessions: dict[str, Any], feeds: dict[str, Any]) -> dict[str, float]:
    """Median seconds of runs of several sessions, one after the other in each round."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(feeds)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(row) for name, row in times.items()}


def feeds_of(graph: Any) -> dict[str, Any]:
    """Random float32 arrays for a graph's inputs."""
    rng = np.random.default_rng(1)
    return {
        name: rng.standard_normal(spec.dims).astype(np.float32)
        for name, spec in graph.inputs.items()
    }


def measure(name: str) -> dict[str, Any]:
    """Medians of interleaved runs, predictions, and the distance from the plan's lower bound."""
    graph, other = GRAPHS[name](), opencl()
    feeds = feeds_of(graph)
    sets = {"cpu": ["cpu:0"], "opencl": [other], "both": ["cpu:0", other]}
    sessions = {k: xd.compile(graph, v, threads=1, search=True) for k, v in sets.items()}
    answers = {k: s.run(feeds) for k, s in sessions.items()}
    for answer in answers.values():
        for output, value in answer.items():
            np.testing.assert_allclose(value, answers["cpu"][output], rtol=1e-2, atol=1e-3)
    pin()
    measured = interleaved(sessions, feeds)
    predicted = {k: s.estimate().seconds for k, s in sessions.items()}
    plan = sessions["both"].plan
    single = min(measured["cpu"], measured["opencl"])
    allowed = min(predicted["cpu"], predicted["opencl"]) / plan.lower_bound
    return {
        "graph": name,
        "measured": measured,
        "predicted": predicted,
        "speedup": single / measured["both"],
        "allowed": allowed,
        "ratio": single / measured["both"] / allowed,
        "lower_bound": plan.lower_bound,
        "gap": plan.predicted / plan.lower_bound - 1.0,
        "splits": [str(s) for s in plan.splits if s.taken],
        "shares": plan.shares(),
    }


if __name__ == "__main__":
    print(json.dumps([measure(name) for name in sys.argv[1:] or GRAPHS]))
