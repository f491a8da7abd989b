"""Seconds between successive runs: placed for latency and for throughput, predicted and measured.

    python throughput.py [GRAPH...]

Graphs are those of the coexecution set, and ``chain``, in which nothing runs side by side: only
runs that are in flight together can use both devices there. Each device has a core of its own.
Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from coexecution_graphs import GRAPHS
from pinned import pinned  # first: it sets what PoCL and BLAS read
from timing import feeds_of, opencl

import crossdock as xd

RUNS = 60


def chain() -> Any:
    """Products with weights, one after the other."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("chain")
    y = b.input("x", (384, 384))
    for i in range(12):
        w = b.constant((rng.standard_normal((384, 384)) / 20).astype(np.float32))
        y = b.tanh(b.matmul(y, w, label=f"product{i}"))
    return b.build({"y": y})


def interval(session: Any, feed: Any) -> float:
    """Seconds a run, of many submitted at once."""
    for future in [session.submit(feed) for _ in range(8)]:
        future.result()
    began = time.perf_counter()
    for future in [session.submit(feed) for _ in range(RUNS)]:
        future.result()
    return (time.perf_counter() - began) / RUNS


def measure(name: str) -> dict[str, Any]:
    """A graph's intervals by objective."""
    graph = chain() if name == "chain" else GRAPHS[name]()
    feed, ids = feeds_of(graph), ["cpu:0", opencl()]
    found: dict[str, Any] = {"graph": name}
    for objective in ("latency", "throughput"):
        with xd.compile(graph, ids, threads=1, objective=objective) as session:
            session.run(feed)
            with pinned():
                measured = interval(session, feed)
            goal = session.plan.goal
            found[objective] = {
                "run": session.plan.predicted,
                "predicted": goal.interval,
                "measured": measured,
                "bound": goal.bound,
                "shares": session.plan.shares(),
            }
    return found


if __name__ == "__main__":
    print(json.dumps([measure(name) for name in sys.argv[1:] or ("chain",)], indent=1))
