"""A model's plan over two devices against the best of them alone; prints what was found as JSON.

    python never_worse.py THREADS MODEL...

With THREADS 1 each device has a core of its own; with ``all`` they share all cores, as a machine
without a card comes. A device that the plan says takes more than LEFT_OUT times as long as the best
one is not timed: it is not the best.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

if sys.argv[1] == "1":
    from pinned import pinned  # first: it sets what PoCL and BLAS read

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import inputs
from coexecution_graphs import GRAPHS
from light import path as light_path
from timing import interleaved, opencl

import crossdock as xd

LEFT_OUT = 1.5


def load(name: str) -> tuple[Any, dict[str, Any]]:
    """A real model with its input, a light model of the onnx wheel, or one of the coexecution set.

    The last two are fed random numbers.
    """
    if name in inputs.PATHS:
        feeds = inputs.feeds(name)
        return xd.load(inputs.model_path(name)), feeds
    graph = GRAPHS[name]() if name in GRAPHS else xd.load(light_path(name))
    rng = np.random.default_rng(0)
    return graph, {n: rng.random(s.dims, np.float32) for n, s in graph.inputs.items()}


def measure(name: str, threads: int | None) -> dict[str, Any]:
    """Medians of interleaved runs over both devices and over the best alone, and their ratio."""
    graph, feeds = load(name)
    ids = ["cpu:0", opencl()]
    shapes = {key: value.shape for key, value in feeds.items()}
    with xd.compile(graph, ids, threads=threads, shapes=shapes) as both:
        alone = {d.id: d.single_seconds for d in both.plan.devices if d.single_seconds}
        near = [d for d, s in alone.items() if s <= LEFT_OUT * min(alone.values())]
        sessions = {d: xd.compile(graph, d, threads=threads, shapes=shapes) for d in near}
        runs = {d: partial(s.run, feeds) for d, s in sessions.items()}
        runs["both"] = partial(both.run, feeds)
        for run in runs.values():
            run()
        with pinned() if threads == 1 else nullcontext():
            measured = interleaved(runs)
        single = min(measured[d] for d in near)
        return {
            "model": name,
            "threads": threads,
            "measured": measured,
            "predicted": both.estimate().seconds,
            "ratio": measured["both"] / single,
            "shares": both.plan.shares(),
            "splits": [str(s) for s in both.plan.splits if s.taken],
        }


if __name__ == "__main__":
    given = None if sys.argv[1] == "all" else int(sys.argv[1])
    print(json.dumps([measure(name, given) for name in sys.argv[2:]]))
