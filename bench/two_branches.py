"""Two independent branches on two one-core devices; prints what was found as JSON.

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

import crossdock as xd

ROUNDS = 15


def branches(depth: int, size: int) -> Any:
    """Two independent chains of products with one matrix each, and their sum."""
    rng = np.random.default_rng(0)
    b = xd.GraphBuilder("two branches")
    x = b.input("x", (size, size))
    ends = []
    for side in ("left", "right"):
        y = x
        w = b.constant((rng.standard_normal((size, size)) / size**0.5).astype(np.float32))
        for i in range(depth):
            y = b.tanh(b.matmul(y, w, label=f"{side}{i}"))
        ends.append(y)
    return b.build({"y": b.add(*ends)})


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


def measure(depth: int, size: int) -> dict[str, Any]:
    """Medians of interleaved runs, predictions and shares; seconds."""
    opencl = next(d.id for d in xd.devices() if d.kind == "opencl")
    sets = {"cpu": ["cpu:0"], "opencl": [opencl], "both": ["cpu:0", opencl]}
    graph = branches(depth, size)
    feed = {"x": np.random.default_rng(1).standard_normal((size, size)).astype(np.float32)}
    sessions = {k: xd.compile(graph, v, threads=1, search=True) for k, v in sets.items()}
    answers = {k: s.run(feed)["y"] for k, s in sessions.items()}
    for answer in answers.values():
        np.testing.assert_allclose(answer, answers["cpu"], atol=1e-3)
    pin()
    times: dict[str, list[float]] = {k: [] for k in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(feed)
            times[name].append(time.perf_counter() - start)
    measured = {k: statistics.median(v) for k, v in times.items()}
    predicted = {k: s.estimate().seconds for k, s in sessions.items()}
    plan = sessions["both"].plan
    return {
        "size": size,
        "measured": measured,
        "predicted": predicted,
        "speedup": min(measured["cpu"], measured["opencl"]) / measured["both"],
        "predicted_speedup": min(predicted["cpu"], predicted["opencl"]) / predicted["both"],
        "lower_bound": plan.lower_bound,
        "shares": plan.shares(),
        "policy": plan.policy,
    }


if __name__ == "__main__":
    print(json.dumps([measure(6, int(size)) for size in sys.argv[1:]]))
